"""torchcam's tests: invariants of its methods on small networks, and refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import camlib
from tests.peers.captum import refused
from tests.peers.case import Case

PEER = "torchcam f44afef"
NUMBER: Any = 3


def tiny(classes: int = 3) -> nn.Module:
    """Two convolutions, pooling and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, classes),
    ).eval()  # fmt: skip


def video() -> nn.Module:
    """The same for videos, in two blocks."""
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv3d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 8, 3, 1, 1), nn.ReLU()
    )
    return nn.Sequential(trunk, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


IMAGES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
CLIPS = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def finite(name: str, model: Callable[[], nn.Module], layer: str, inputs: torch.Tensor) -> None:
    """Maps at the layer's resolution, without NaN, for one class and for a class of each image; frozen parameters."""
    network = model().requires_grad_(False)
    (grid,) = (info.shape[2:] for info in camlib.list_layers(network, inputs) if info.name == layer)
    for target in (1, list(range(len(inputs)))):
        maps = camlib.create(name, network, layer)(inputs, target).maps
        assert maps.shape == (len(inputs), *grid)
        assert bool(maps.isfinite().all())


def leaves_gradients() -> None:
    """Gradients of parameters that were there stay as they were."""
    model = tiny()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    camlib.GradCAM(model, "2")(IMAGES, 1)
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters() if parameter.grad is not None)
    assert not any(module._forward_hooks for module in model.modules())


def finer_is_grad_cam_of_the_difference() -> None:
    """Finer-CAM with given references: Grad-CAM of the class minus gamma times their mean."""
    model = tiny(5)
    target = camlib.targets.Contrast(1, against=[[0, 3], [2, 4]], weight=0.6)
    maps = camlib.GradCAM(model, "2", relu=False)(IMAGES, target).maps
    against = torch.tensor([[0, 3], [2, 4]])
    expected = camlib.GradCAM(model, "2", relu=False)(
        IMAGES, lambda out: out[:, 1] - 0.6 * out.gather(1, against).mean(1)
    )
    torch.testing.assert_close(maps, expected.maps)


GRADIENT = ("grad_cam", "grad_cam_plus_plus", "smooth_grad_cam_plus_plus", "x_grad_cam", "layer_cam")
ACTIVATION = ("cam", "score_cam", "ss_cam", "is_cam")


def _cases() -> list[Case]:
    checks: dict[str, Callable[[], object]] = {}
    for name in GRADIENT:
        checks[f"test_methods_gradient.img_cams.{name}"] = functools.partial(finite, name, tiny, "2", IMAGES)
        checks[f"test_methods_gradient.video_cams.{name}"] = functools.partial(finite, name, video, "0.3", CLIPS)
    for name in ACTIVATION:
        layer = "3" if name == "cam" else "2"
        checks[f"test_methods_activation.img_cams.{name}"] = functools.partial(finite, name, tiny, layer, IMAGES)
    checks["test_methods_gradient.without_touching_parameter_grads"] = leaves_gradients
    checks["test_methods_gradient.finercam_matches_contrastive_scores"] = finer_is_grad_cam_of_the_difference
    checks["test_methods_core.constructor_wrong_layer"] = refused(lambda: camlib.GradCAM(tiny(), "30"))
    checks["test_methods_core.constructor_wrong_type"] = refused(lambda: camlib.GradCAM(tiny(), NUMBER))
    checks["test_methods_core.constructor_list_of_wrong_type"] = refused(lambda: camlib.GradCAM(tiny(), [NUMBER]))
    checks["test_methods_core.constructor_unrelated_module"] = refused(lambda: camlib.GradCAM(tiny(), nn.ReLU()))
    checks["test_methods_gradient.finercam_refuses_a_negative_weight"] = refused(
        lambda: camlib.FinerCAM(tiny(), weight=-0.1)
    )
    checks["test_methods_gradient.finercam_refuses_repeated_references"] = refused(
        lambda: camlib.GradCAM(tiny())(IMAGES, camlib.targets.Contrast(1, against=[[2, 2], [0, 0]]))
    )
    checks["test_methods_gradient.refinecam_refuses_one_layer"] = refused(lambda: camlib.RefineCAM(tiny(), ["2"]))
    return [Case(PEER, test, "pass", check) for test, check in checks.items()]


CASES = _cases()
