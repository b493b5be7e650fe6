"""MONAI's tests of Grad-CAM, CAM and occlusion sensitivity: shapes in two and three dimensions, one output."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn

import camlib
from tests.peers.captum import refused
from tests.peers.case import Case

PEER = "MONAI d388d1c"
MODE: Any = "test"
ONE = "class 0 of a single output y is the negative class, -y, and a warning says so; class 1 and Output(0) are y"
METHODS = {"GradCAM": "grad_cam", "GradCAMpp": "grad_cam_plus_plus"}
SIZES: dict[int, tuple[int, ...]] = {2: (48, 64), 3: (8, 8, 48)}


def network(axes: int, classes: int = 3) -> nn.Module:
    """Convolutions, pooling, linear layer; in two or three dimensions."""
    conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if axes == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    torch.manual_seed(0)
    trunk = (conv(1, 6, 3, 2, 1), nn.ReLU(), conv(6, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*trunk, pool(1), nn.Flatten(), nn.Linear(8, classes)).double().eval()


def images(axes: int) -> torch.Tensor:
    return torch.rand(2, 1, *SIZES[axes], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def has_the_sizes(name: str, axes: int) -> None:
    """Heatmaps have the input's size, maps the layer's; the layer need not be given."""
    explanation = camlib.create(name, network(axes))(images(axes))
    assert explanation.heatmaps().shape == (2, *SIZES[axes])
    assert explanation.maps.shape == (2, *(side // 4 for side in SIZES[axes]))


def class_zero_is_the_negative(name: str, axes: int) -> None:
    """A warning says that 0 is -y; 1 is what MONAI's class 0 is."""
    model, given = network(axes, 1), images(axes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = camlib.create(name, model, "3", relu=False)(given, 0).maps
    assert any("single output" in str(one.message) for one in caught)
    negative = camlib.create(name, model, "3", relu=False)(given, lambda outputs: -outputs[:, 0]).maps
    torch.testing.assert_close(found, negative)
    same = camlib.create(name, model, "3", relu=False)(given, lambda outputs: outputs[:, 0]).maps
    torch.testing.assert_close(camlib.create(name, model, "3", relu=False)(given, 1).maps, same)
    torch.testing.assert_close(camlib.create(name, model, "3", relu=False)(given, camlib.targets.Output(0)).maps, same)


def _cases() -> list[Case]:
    cases = []
    for theirs, ours in METHODS.items():
        for axes in (2, 3):
            shape, one = (
                functools.partial(has_the_sizes, ours, axes),
                functools.partial(class_zero_is_the_negative, ours, axes),
            )
            cases.append(Case(PEER, f"test_vis_gradcam.{theirs}_{axes}d", "pass", shape))
            cases.append(Case(PEER, f"test_vis_gradcam.{theirs}_{axes}d_bin", "by design", one, ONE))
    for axes in (2, 3):
        cases.append(Case(PEER, f"test_vis_cam.shape_{axes}d", "pass", functools.partial(has_the_sizes, "cam", axes)))
        occlusion = functools.partial(occludes, axes)
        cases.append(Case(PEER, f"test_occlusion_sensitivity.{axes}d", "pass", occlusion))
    too_large = refused(lambda: camlib.Occlusion(network(2), window=200)(images(2)))
    cases.append(Case(PEER, "test_occlusion_sensitivity.fails_with_a_large_mask", "pass", too_large))
    unknown = refused(lambda: camlib.Occlusion(network(2), baseline=MODE)(images(2)))
    cases.append(Case(PEER, "test_occlusion_sensitivity.fails_with_an_unknown_mode", "pass", unknown))
    box = "camlib occludes the whole image; there is no b_box"
    cases += [Case(PEER, f"test_occlusion_sensitivity.b_box_{axes}d", "cannot", None, box) for axes in (2, 3)]
    return cases


def occludes(axes: int) -> None:
    """A heatmap of the input's size for the predicted class."""
    explanation = camlib.Occlusion(network(axes), window=8, stride=8)(images(axes))
    assert explanation.heatmaps().shape == (2, *SIZES[axes])


CASES = _cases()
