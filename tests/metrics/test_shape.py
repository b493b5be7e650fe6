"""A heatmap of one pixel is the simplest, one that is spread evenly the least simple."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib.metrics.shape import complexity, entropy, sparseness

Metric = Callable[[Any], Tensor]

METRICS = [sparseness, entropy, complexity]
SIGNED = [sparseness, entropy]
maps = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6),
    elements=st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-1, 1),
)


def single(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_values_by_hand() -> None:
    heatmap = single(0, 1, 1, 2)
    assert sparseness(heatmap).item() == (-3 * 0 - 1 * 1 + 1 * 1 + 3 * 2) / (4 * 4)
    assert entropy(heatmap).item() == pytest.approx(2 * 0.25 * math.log(4) + 0.5 * math.log(2), abs=1e-15)
    assert complexity(heatmap / 2).item() == 0.5


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (2, 3, 4)])
def test_one_pixel_is_simplest_and_all_pixels_least_simple(shape: tuple[int, ...]) -> None:
    pixels = math.prod(shape)
    one, everything = (torch.full((1, *shape), value, dtype=torch.float64) for value in (0.0, 0.3))
    one.view(-1)[-1] = 0.3
    assert sparseness(one).item() == pytest.approx(1 - 1 / pixels, abs=1e-15)
    assert sparseness(everything).item() == pytest.approx(0, abs=1e-15)
    assert entropy(one).item() == 0
    assert entropy(everything).item() == pytest.approx(math.log(pixels), abs=1e-14)
    assert complexity(one).item() == pytest.approx(0.3 / pixels, abs=1e-15)
    assert complexity(everything).item() == pytest.approx(0.3, abs=1e-15)


def test_heatmap_of_zeros_prefers_no_pixel() -> None:
    nothing = torch.zeros(1, 3, 5)
    assert sparseness(nothing).item() == 0
    assert entropy(nothing).item() == pytest.approx(math.log(15), abs=1e-6)
    assert complexity(nothing).item() == 0


@settings(max_examples=100, deadline=None)
@given(values=maps)
def test_sparseness_is_the_mean_difference_of_two_pixels_over_twice_the_mean(values: np.ndarray[Any, Any]) -> None:
    sizes = np.abs(values).ravel() / (np.abs(values).max() or 1)  # as means of the least floats have few digits
    differences = np.abs(sizes[:, None] - sizes).mean()
    expected = differences / (2 * sizes.mean()) if sizes.any() else 0
    assert sparseness(values[None]).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(values=maps.filter(np.any))
def test_entropy_is_that_of_scipy(values: np.ndarray[Any, Any]) -> None:
    expected = scipy.stats.entropy(np.abs(values).ravel() / np.abs(values).max())
    assert entropy(values[None]).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("pixels", [14, 19, 20, 200])
def test_rounding_makes_no_pixel_less_than_equal(pixels: int) -> None:
    assert 0 <= sparseness(torch.full((1, pixels), 0.3)).item() < 1e-6


@settings(max_examples=50, deadline=None)
@given(values=maps)
def test_results_are_in_their_range(values: np.ndarray[Any, Any]) -> None:
    assert 0 <= sparseness(values[None]).item() <= 1 - 1 / values.size + 1e-12
    assert 0 <= entropy(values[None]).item() <= math.log(values.size) + 1e-12
    assert 0 <= complexity(np.abs(values[None])).item() <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_pixels_does_not_matter(metric: Metric) -> None:
    heatmaps = torch.rand(3, 6, 7).double()
    shuffled = heatmaps.flatten(1)[:, torch.randperm(42)]
    torch.testing.assert_close(metric(shuffled), metric(heatmaps), rtol=0, atol=1e-13)


@pytest.mark.parametrize("metric", SIGNED)
@pytest.mark.parametrize("factor", [-1.0, 1e-30, 1e30, 5e37])
def test_scale_and_sign_do_not_matter(metric: Metric, factor: float) -> None:
    heatmaps = torch.randn(3, 12, 13)
    torch.testing.assert_close(metric(factor * heatmaps), metric(heatmaps), rtol=0, atol=2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_gives_what_its_images_give(metric: Metric) -> None:
    heatmaps = torch.rand(4, 6, 7).double() ** torch.tensor([1, 2, 8, 1])[:, None, None]
    heatmaps[3] = 0
    alone = torch.cat([metric(heatmaps[i : i + 1]) for i in range(4)])
    assert len(alone.unique()) == 4
    torch.testing.assert_close(metric(heatmaps), alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_arrays_signals_and_volumes_are_taken_and_left_alone(metric: Metric) -> None:
    heatmaps = torch.rand(2, 6, 8).double()
    before = heatmaps.clone()
    expected = metric(heatmaps)
    assert expected.dtype == torch.float64
    assert expected.shape == (2,)
    assert metric(heatmaps.float()).dtype == metric(heatmaps.half()).dtype == torch.float32
    for other in (heatmaps.numpy(), heatmaps.reshape(2, 48), heatmaps.reshape(2, 2, 3, 8)):
        assert torch.equal(metric(other), expected)
    assert torch.equal(heatmaps, before)


@pytest.mark.parametrize("metric", METRICS)
def test_values_that_are_not_heatmaps_are_refused(metric: Metric) -> None:
    with pytest.raises(camlib.errors.CamlibTypeError, match="got list"):
        metric([[0.0, 1.0]])
    with pytest.raises(camlib.errors.CamlibValueError, match=r"\(3,\); they must be \(N, H, W\)"):
        metric(torch.rand(3))
    with pytest.raises(camlib.errors.CamlibValueError, match="NaN or infinity"):
        metric(torch.tensor([[0.0, torch.inf]]))


@pytest.mark.parametrize("low", [-0.1, 0.2])
def test_complexity_is_for_heatmaps_in_the_unit_range(low: float) -> None:
    with pytest.raises(camlib.errors.CamlibValueError, match=r"must be in \[0, 1\]: camlib.normalize"):
        complexity(low + torch.linspace(0, 1, 6).reshape(1, 2, 3))
