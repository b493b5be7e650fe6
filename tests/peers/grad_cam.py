"""grad-cam's tests: every method on common networks, one channel, and what a call leaves behind."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any, cast

import torch
import torchvision
from torch import nn

import camlib
from tests.peers.case import Case

PEER = "grad-cam 084273b"
NETWORKS = ("resnet18", "vgg11")
SIZES = ((2, 32, 32), (1, 40, 32))
"""Images, their height and their width."""
TARGETS = (None, 5)
RUN = {
    "ScoreCAM": ("score_cam", {"channels": 8}),
    "AblationCAM": ("ablation_cam", {}),
    "GradCAM": ("grad_cam", {}),
    "GradCAMPlusPlus": ("grad_cam_plus_plus", {}),
    "XGradCAM": ("x_grad_cam", {}),
    "EigenCAM": ("eigen_cam", {}),
    "EigenGradCAM": ("eigen_grad_cam", {}),
    "LayerCAM": ("layer_cam", {}),
    "FullGrad": ("full_grad", {}),
    "KPCA_CAM": ("kpca_cam", {}),
    "SegEigenCAM": ("seg_eigen_cam", {}),
}
"""grad-cam's classes, and camlib's methods with their options."""
LAYERS = {"resnet18": ["layer4.1", "layer4.0"], "vgg11": ["features.20"]}
EIGEN = "camlib has no eigen_smooth; EigenCAM and EigenGradCAM are methods of their own"
METHODS = (
    "grad_cam", "grad_cam_plus_plus", "x_grad_cam", "eigen_cam", "eigen_grad_cam", "layer_cam", "full_grad", "kpca_cam",
    "hires_cam", "grad_cam_element_wise", "fem", "shapley_cam", "finer_cam", "refine_cam",
)  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: Any = torchvision.models.get_model(name, weights=None, num_classes=8)
    if name == "vgg11":  # whose hidden layers of 4096 units take most of the time
        model.classifier = nn.Sequential(nn.Linear(25088, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 8))
    return cast(nn.Module, model.eval())


shared_network = functools.lru_cache(maxsize=2)(network)


def runs(name: str, method: str, size: tuple[int, int, int], target: int | None) -> None:
    """Heatmaps of the images' size at grad-cam's layers, also of images that are hardly larger than a cell."""
    ours, options = RUN[method]
    count, *sides = size
    given = torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(0))
    layers = {} if ours == "full_grad" else {"layer": LAYERS[name]}
    heatmaps = camlib.create(ours, shared_network(name), **layers, **options)(given, target).heatmaps()
    assert heatmaps.shape == (count, *sides)
    assert bool(heatmaps.isfinite().all())


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 96, 96, generator=torch.Generator().manual_seed(0))


def of_the_images_size(name: str, method: str) -> None:
    """Heatmaps in [0, 1] at the size of the images, for a class of each image."""
    heatmaps = camlib.create(method, shared_network(name))(images(), [1, 2]).heatmaps()
    assert heatmaps.shape == (2, 96, 96)
    assert float(heatmaps.min()) >= 0
    assert float(heatmaps.max()) <= 1


def one_channel() -> None:
    """Images of a single channel."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert camlib.GradCAM(model)(images(1), 1).heatmaps().shape == (2, 96, 96)


def leaves_activations_as_they_are() -> None:
    """The projection of features onto their first component changes no feature."""
    features = torch.randn(2, 5, 4, 6)
    before = features.clone()
    camlib.functional.eigen_cam(features, center=True)
    camlib.functional.kpca_cam(features, center=True)
    assert torch.equal(features, before)


def releases_the_model() -> None:
    """Neither hooks nor references keep the model after a call."""
    model = network("resnet18")
    explanation = camlib.GradCAM(model)(images(), 1)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert explanation.maps.shape[0] == 2


def _cases() -> list[Case]:
    cases = [
        Case(PEER, f"test_run_all_models.{method}_{name}", "pass", functools.partial(of_the_images_size, name, method))
        for name in NETWORKS
        for method in METHODS
    ]
    for name in NETWORKS:
        for method in RUN:
            for size in SIZES:
                for target in TARGETS:
                    check = functools.partial(runs, name, method, size, target)
                    test = f"test_run_all_models.{method}_{name}_{'x'.join(map(str, size))}_{target}"
                    cases.append(Case(PEER, test, "pass", check))
    for method in RUN:
        cases.append(Case(PEER, f"test_run_all_models.{method}_eigen_smooth", "cannot", None, EIGEN))
    cases.append(Case(PEER, "test_one_channel", "pass", one_channel))
    cases.append(Case(PEER, "test_svd_no_side_effect", "pass", leaves_activations_as_they_are))
    cases.append(Case(PEER, "test_context_release", "pass", releases_the_model))
    return cases


CASES = _cases()
