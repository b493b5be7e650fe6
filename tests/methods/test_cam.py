"""CAM exists only where a linear classifier reads the mean of the features, in every precision."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib

PRECISIONS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "autocast": (torch.float32, torch.bfloat16),
}


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_accepts_the_mean_of_the_features_in_every_precision(precision: str) -> None:
    dtype, cast = PRECISIONS[precision]
    model = torchvision.models.resnet18(num_classes=10).to(dtype).eval()
    images = torch.rand(2, 3, 64, 64).to(dtype)
    with autocast(cast):
        explanation = camlib.CAM(model, relu=False)(images, 3)
        with torch.no_grad(), camlib.capture(model, "layer4") as captured:
            model(images)
    expected = torch.einsum("k,nkij->nij", model.fc.weight[3].double(), captured.activations.double())
    torch.testing.assert_close(explanation.maps.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_refuses_features_that_something_lies_behind_in_every_precision(precision: str) -> None:
    """DenseNet pools what a ReLU has made of its features."""
    dtype, cast = PRECISIONS[precision]
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10).to(dtype).eval()
    with autocast(cast), pytest.raises(RuntimeError, match="needs logits = W mean"):
        camlib.CAM(model, "features")(torch.rand(2, 3, 64, 64).to(dtype))


def test_refuses_outputs_that_are_no_longer_the_classifiers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
    with pytest.raises(RuntimeError, match="and returns the outputs"):
        camlib.CAM(model, "0")(torch.rand(2, 3, 8, 8))


def test_reads_a_head_that_is_a_convolution_of_one_cell() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten())
    images = torch.rand(2, 3, 8, 8)
    maps = camlib.CAM(model, "0", relu=False)(images, 1).maps
    linear = nn.Linear(4, 3)
    linear.load_state_dict({"weight": model[2].weight.flatten(1), "bias": model[2].bias})
    same = nn.Sequential(model[0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    torch.testing.assert_close(maps, camlib.CAM(same, "0", relu=False)(images, 1).maps)


def test_of_two_heads_the_one_that_makes_the_outputs_counts() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)
            self.other, self.head = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            means = self.features(x).mean((2, 3))
            self.other(means)
            return self.head(means)

    model, images = TwoHeads().eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        features = model.features(images)
    expected = torch.einsum("k,nkij->nij", model.head.weight[0].detach(), features)
    torch.testing.assert_close(camlib.CAM(model, "features", relu=False)(images, 0).maps, expected)
