"""Completeness: whether a map adds up to the score that it explains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import completeness
from camlib.metrics.fills import baseline_images
from tests import metric_equations as equations
from tests.metrics.test_oracles import assert_close, cnn
from tests.networks import signal_cnn


class Head(nn.Module):
    """Pooling and a linear layer, with or without a bias, behind a convolution."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 4, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images).mean((2, 3)))
        return scores


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), baseline=st.sampled_from(["zero", "mean", "blur", 0.4, None]))
def test_it_is_the_equation(seed: int, baseline: str | float | None) -> None:
    torch.manual_seed(seed)
    model, images, target = cnn(), torch.randn(3, 3, 8, 7).double(), torch.randint(3, (3,))
    cam = camlib.GradCAM(model, "3", relu=False)
    found = completeness(cam, images, target, baseline=baseline)
    maps, rows = cam(images, target).maps.numpy(), torch.arange(3)
    with torch.no_grad():
        scores = model(images)[rows, target].tolist()
        nothing = [0.0] * 3
        if baseline is not None:
            nothing = model(baseline_images(images, baseline))[rows, target].tolist()
    assert_close(found, [equations.completeness(*one) for one in zip(maps, scores, nothing, strict=True)])


def test_hires_cam_adds_up_to_the_logit_less_the_bias() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 9).double()
    for bias in (False, True):
        model = Head(bias).double()
        found = completeness(camlib.HiResCAM(model, "features", relu=False), images, [1, 2], baseline=None)
        missing = model.head.bias[[1, 2]].abs() if bias else torch.zeros(2).double()
        torch.testing.assert_close(found, missing.detach(), rtol=0, atol=1e-12)


def test_the_class_of_the_image_is_that_of_the_baseline_too() -> None:
    torch.manual_seed(0)
    model, images = cnn(), torch.randn(4, 3, 8, 7).double()
    cam = camlib.GradCAM(model, "3", relu=False)
    predicted = cam(images).target
    torch.testing.assert_close(completeness(cam, images), completeness(cam, images, predicted))


def test_maps_of_signals_have_a_sum_too() -> None:
    assert completeness(camlib.GradCAM(signal_cnn()), torch.randn(2, 2, 20)).shape == (2,)


@pytest.mark.parametrize("baseline", ["grey", float("nan"), True])
def test_another_baseline_is_refused(baseline: object) -> None:
    with pytest.raises(camlib.CamlibError, match="baseline"):
        completeness(camlib.GradCAM(cnn(), "3"), torch.randn(2, 3, 8, 7).double(), baseline=baseline)
