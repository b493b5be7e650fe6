"""Each method as each library has it: a call that explains class 0 of every image, or the ten best classes of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from benchmarks.measure import Call
from camlib.comparison import DEFAULT_METHODS

OfClass = Callable[[int], Any]
"""A peer's call, from the class."""

SAMPLES = 200
"""Of RISE: the default of 4000 says the same of the speed."""
WINDOW, STRIDE = 32, 16
"""Of occlusion."""
COMPARE = "compare"
"""``camlib.compare`` with its eight default methods, as if it were one."""

GRAD_CAM = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "x_grad_cam": "XGradCAM",
    "hires_cam": "HiResCAM",
    "grad_cam_element_wise": "GradCAMElementWise",
    "layer_cam": "LayerCAM",
    "eigen_grad_cam": "EigenGradCAM",
    "shapley_cam": "ShapleyCAM",
    "full_grad": "FullGrad",
    "eigen_cam": "EigenCAM",
    "kpca_cam": "KPCA_CAM",
    "fem": "FEM",
    "score_cam": "ScoreCAM",
    "ablation_cam": "AblationCAM",
    "random_cam": "RandomCAM",
}
TORCHCAM = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMpp",
    "smooth_grad_cam_plus_plus": "SmoothGradCAMpp",
    "x_grad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "cam": "CAM",
    "score_cam": "ScoreCAM",
    "ss_cam": "SSCAM",
    "is_cam": "ISCAM",
}
CAPTUM = ("grad_cam", "guided_backprop", "guided_grad_cam", "occlusion")


class NotOfferedError(Exception):
    """A library that has a method does not have it for such a network."""


def bare(model: nn.Module, images: Tensor) -> Call:
    """The forward pass alone, in inference mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return call


def camlib_call(method: str, model: nn.Module, images: Tensor, layer: str, classes: int) -> Call:
    """Camlib's."""
    target: Any = 0 if classes == 1 else camlib.TopK(classes)
    if method == COMPARE:
        return lambda: camlib.compare(model, images, DEFAULT_METHODS, target, layer=layer)
    options: dict[str, dict[str, Any]] = {
        "rise": {"samples": SAMPLES},
        "occlusion": {"window": WINDOW, "stride": STRIDE},
        "full_grad": {"tolerance": float("inf")},  # what a network that is not piecewise linear lacks takes no time
    }
    of_layer = issubclass(camlib.METHODS[method], camlib.methods.LayerMethod)
    explainer = camlib.create(method, model, layer if of_layer else None, **options.get(method, {}))
    return lambda: explainer(images, target)


def grad_cam_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """pytorch-grad-cam's."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    options: dict[str, Any] = {"reshape_transform": _grid} if has_tokens(model) else {}
    explainer = getattr(pytorch_grad_cam, GRAD_CAM[method])(model, [model.get_submodule(layer)], **options)
    return lambda category: explainer(input_tensor=images, targets=[ClassifierOutputTarget(category) for _ in images])


def torchcam_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """Torchcam's: a forward pass with its hooks, then the extractor."""
    from torchcam import methods

    _needs_grids(model)
    options = {"num_samples": 8} if method == "smooth_grad_cam_plus_plus" else {}  # as many as camlib's default
    extractor = getattr(methods, TORCHCAM[method])(model, target_layer=layer, **options)
    of_scores = method in ("cam", "score_cam", "ss_cam", "is_cam")  # no gradients

    def call(category: int) -> Any:
        with torch.set_grad_enabled(not of_scores):
            return extractor([category] * len(images), model(images))

    return call


def captum_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """Captum's."""
    from captum import attr

    module, leaf = model.get_submodule(layer), images.clone().requires_grad_()
    if method == "occlusion":
        window, stride = (images.shape[1], WINDOW, WINDOW), (images.shape[1], STRIDE, STRIDE)
        occlusion = attr.Occlusion(model)
        return lambda category: occlusion.attribute(images, window, stride, target=category, perturbations_per_eval=16)
    if method == "guided_backprop":
        guided = attr.GuidedBackprop(model)
        return lambda category: guided.attribute(leaf, target=category)
    _needs_grids(model)
    if method == "guided_grad_cam":
        both = attr.GuidedGradCam(model, module)
        return lambda category: both.attribute(leaf, target=category)
    of_layer = attr.LayerGradCam(model, module)
    return lambda category: of_layer.attribute(images, target=category, relu_attributions=True)


PEERS: dict[str, tuple[Any, Callable[[str, nn.Module, Tensor, str], OfClass]]] = {
    "torchcam": (TORCHCAM, torchcam_call),
    "captum": (CAPTUM, captum_call),
    "grad-cam": (GRAD_CAM, grad_cam_call),
}
"""The methods of each peer, and what makes its calls."""


def libraries(method: str) -> list[str]:
    """The libraries that have a method."""
    return ["camlib", *(peer for peer, (methods, _) in PEERS.items() if method in methods)]


def build(
    library: str, method: str, model: nn.Module, images: Tensor, layer: str, classes: int
) -> tuple[nn.Module, Call]:
    """A library's own copy of a model, and its call; peers, which explain one class a call, are called for each."""
    own = copy.deepcopy(model)
    if library == "camlib":
        return own, camlib_call(method, own, images, layer, classes)
    call = PEERS[library][1](method, own, images, layer)
    return own, lambda: [call(category) for category in range(classes)]


def rows(library: str, method: str, channels: int, side: int) -> int:
    """About how many forward passes of an image a perturbation method takes; 0 for every other method."""
    of_method = {
        "score_cam": channels,
        "ss_cam": 35 * channels,
        "is_cam": 10 * channels,
        "ablation_cam": 0 if library == "camlib" else channels,
        "rise": SAMPLES,
        "occlusion": ((side - WINDOW) // STRIDE + 1) ** 2,
    }
    return of_method.get(method, 0)


def has_tokens(model: nn.Module) -> bool:
    """Whether a model is a vision transformer."""
    return hasattr(model, "class_token")


def _needs_grids(model: nn.Module) -> None:
    if has_tokens(model):
        raise NotOfferedError("it cannot be told that a layer's output is tokens")


def _grid(tokens: Tensor) -> Tensor:
    """Tokens (N, 1 + L, C) as (N, C, h, w), the class token left out; a grid as it is."""
    if tokens.dim() == 4:
        return tokens
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).movedim(-1, 1)
