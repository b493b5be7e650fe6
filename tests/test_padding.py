"""Padding: what a detector adds to its pictures is known, and heatmaps leave it out."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import camlib
from camlib.inputs import Inputs
from camlib.passes.hooks import hooked
from camlib.passes.padding import Padding
from tests import networks


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=96, num_classes=3
    ).eval()


class ByBatch(nn.Module):
    """The detector's own transform, and a small network behind it."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.network = networks.small_cnn()

    def forward(self, pictures: Any) -> Any:
        batch, _ = self.transform(pictures)
        return self.network(batch.tensors)


def noted(model: nn.Module, inputs: Any) -> tuple[float, ...] | None:
    padding = Padding()
    with torch.no_grad(), hooked(padding.hooks(model.modules(), Inputs(inputs).size)):
        model(inputs)
    return padding.extent


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((40, 50), (64, 80), (64, 96)),
        ((50, 40), (80, 64), (96, 64)),
        ((30, 90), (32, 96), (32, 96)),
        ((128, 100), (81, 64), (96, 64)),
    ],
)
def test_extent_is_the_padded_size_in_the_inputs_pixels(detector, size, resized, padded):
    pictures = [torch.rand(3, *size) for _ in range(2)]
    batch, _ = detector.transform(pictures)
    assert [tuple(one) for one in batch.image_sizes] == [resized] * 2
    assert batch.tensors.shape[2:] == padded
    expected = tuple(pad / own * side for pad, own, side in zip(padded, resized, size, strict=True))
    model = ByBatch(detector.transform)
    extent = noted(model, pictures)
    if padded == resized:
        assert extent is None
    else:
        assert extent == pytest.approx(expected)
    assert noted(model, torch.stack(pictures)) == extent  # a batch is taken too


def test_explanations_of_a_detector_know_the_extent_and_cut_the_padding_off(detector):
    explanation = camlib.EigenCAM(detector, "backbone.body.layer4")([torch.rand(3, 40, 50)])
    assert explanation.maps.shape == (1, 2, 3)  # of (64, 96), of which (64, 80) are the picture
    assert explanation.extent == pytest.approx((40, 50 * 96 / 80))
    assert explanation.heatmaps().shape == (1, 40, 50)
    whole = camlib.resize(explanation.maps, (40, 60))[..., :50]
    torch.testing.assert_close(explanation.heatmaps(normalize="none"), whole)
    assert not explanation.degenerate.any()


def test_models_that_take_a_tensor_pad_nothing():
    assert noted(networks.small_cnn(), torch.rand(2, 3, 9, 7)) is None


def test_pictures_of_several_sizes_are_refused_before_the_forward_pass(detector):
    with pytest.raises(camlib.CamlibValueError, match="the images have different sizes"):
        camlib.GradCAM(detector, "backbone.body.layer4")([torch.rand(3, 40, 50), torch.rand(3, 50, 40)])


def test_pictures_that_the_model_resizes_to_several_sizes_are_refused(detector):
    model = ByBatch(detector.transform)
    cam = camlib.GradCAM(
        model, "network.3", forward=lambda model, x: model([picture[:, : 20 + 20 * n] for n, picture in enumerate(x)])
    )
    with pytest.raises(camlib.CamlibValueError, match=r"resizes the images to different sizes, \[.*one by one"):
        cam(torch.rand(2, 3, 40, 50))


def test_no_hook_is_left_whatever_happens(detector):
    with pytest.raises(TypeError), hooked(Padding().hooks(detector.modules(), (40, 50))):
        detector.transform(None)
    assert not detector.transform._forward_hooks


def test_forward_passes_of_other_threads_are_not_noted(detector):
    padding = Padding()
    with hooked(padding.hooks(detector.modules(), (40, 50))):
        thread = threading.Thread(target=lambda: detector.transform([torch.rand(3, 40, 50)]))
        thread.start()
        thread.join()
        assert padding.extent is None
        detector.transform([torch.rand(3, 40, 50)])
        assert padding.extent is not None
