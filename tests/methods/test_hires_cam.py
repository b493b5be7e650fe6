"""HiResCAM with gradients that are averaged in windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import camlib
from tests import equations
from tests.networks import small_cnn

hires_cam, grad_cam = camlib.functional.hires_cam, camlib.functional.grad_cam


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 9), st.integers(0, 10**6))
def test_the_map_is_the_equation_from_hires_cam_to_grad_cam(grid: list[int], pool: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, g = torch.randn(2, 2, 3, *grid, generator=generator, dtype=torch.float64)
    found = hires_cam(a, g, pool)
    equations.assert_close(found, *equations.hires_cam(a, g, pool), 1e-12)
    if pool == 1:
        assert torch.equal(found, hires_cam(a, g))
    if pool >= max(grid):
        torch.testing.assert_close(found, grad_cam(a, g))
    torch.testing.assert_close(hires_cam(torch.ones_like(a), g, pool).sum(), hires_cam(torch.ones_like(a), g).sum())


@pytest.mark.parametrize("pool", [1, 2, 99])
def test_the_class_pools_for_each_class(pool: int) -> None:
    model, images = small_cnn(classes=4).double().eval(), torch.rand(2, 3, 12, 14, dtype=torch.float64)
    with camlib.capture(model, "2") as captured:
        outputs = model(images)
    expected = [hires_cam(captured.activations, captured.gradients(outputs[:, c]), pool) for c in (0, 2)]
    cam = camlib.HiResCAM(model, "2", pool=pool, relu=False)
    torch.testing.assert_close(cam(images, [[0, 2]] * 2).maps, torch.stack(expected, 1))
    other = camlib.GradCAM if pool == 99 else camlib.HiResCAM
    assert torch.allclose(cam(images, 2).maps, other(model, "2", relu=False)(images, 2).maps) == (pool != 2)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", None, (2, 2)])
def test_a_pool_that_is_no_positive_int_is_refused(wrong: object) -> None:
    with pytest.raises(camlib.CamlibError, match="pool"):
        camlib.HiResCAM(nn.Conv2d(3, 1, 1), pool=wrong)
    with pytest.raises(camlib.CamlibError, match="pool"):
        hires_cam(torch.rand(1, 1, 2), torch.rand(1, 1, 2), wrong)
