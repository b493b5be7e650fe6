"""Each method as each library offers it: calls that explain given classes of every image.

``python -m benchmarks.libraries LIBRARY METHOD MODEL IMAGES CLASSES LAYER`` prints the resident memory of such a call.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.measure import Call, resident_peak
from camlib.comparison import DEFAULT_METHODS

OfClass = Callable[[int], Any]
"""A peer's call, from the class."""
SAMPLES = 200
"""RISE's masks; its default of 4000 says the same about speed."""
WINDOW, STRIDE = 32, 16
"""Of occlusion."""
OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"samples": SAMPLES},
    "occlusion": {"window": WINDOW, "stride": STRIDE},
    "full_grad": {"tolerance": math.inf},  # most networks are not piecewise linear; the time is the same
}
COMPARE, ONE_BY_ONE = "compare", "one by one"
"""The default methods of ``camlib.compare``: in one call, or each in its own."""

GRADIENT = ("grad_cam", "grad_cam_plus_plus", "x_grad_cam", "layer_cam")
TORCHCAM = (*GRADIENT, "smooth_grad_cam_plus_plus", "cam", "score_cam", "ss_cam", "is_cam")
MATRIX = ("eigen_cam", "eigen_grad_cam", "kpca_cam", "fem")
OTHERS = ("hires_cam", "grad_cam_element_wise", "shapley_cam", "full_grad", "random_cam", "score_cam", "ablation_cam")
GRAD_CAM = (*GRADIENT, *MATRIX, *OTHERS)
CAPTUM = ("grad_cam", "guided_backprop", "guided_grad_cam", "occlusion")
"""The methods that are measured of each peer, by camlib's names."""


class NotOfferedError(Exception):
    """A library offers a method, but not for such a network."""


def network(name: str, images: int, side: int = 224, device: str = "cpu") -> tuple[nn.Module, Tensor, str]:
    """The model with random weights, its images, and the layer that camlib finds."""
    torch.manual_seed(0)
    options = {"image_size": side} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval().to(device)
    for module in model.modules():  # the peers' hooks meet in-place layers; the same network for everybody
        if isinstance(getattr(module, "inplace", None), bool) and name.startswith("vgg"):
            module.inplace = False
    batch = torch.rand(images, 3, side, side, device=device)
    return model, batch, camlib.find_layer(model, batch[:1])


def bare(model: Callable[[Tensor], Any], images: Tensor) -> Call:
    """The forward pass alone, in inference mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return call


def camlib_call(method: str, model: nn.Module, images: Tensor, layer: str, classes: Sequence[int]) -> Call:
    """Camlib's."""
    target = classes[0] if len(classes) == 1 else torch.tensor(classes).expand(len(images), -1)
    if method == COMPARE:
        return lambda: camlib.compare(model, images, DEFAULT_METHODS, target, layer=layer)
    if method == ONE_BY_ONE:
        calls = [camlib_call(name, model, images, layer, classes) for name in DEFAULT_METHODS]
        return lambda: [call() for call in calls]
    of_layer = not camlib.METHODS[method].layerless
    explainer = camlib.create(method, model, layer if of_layer else None, **OPTIONS.get(method, {}))
    return lambda: explainer(images, target)


def grad_cam_class(method: str) -> Any:
    """pytorch-grad-cam's class of a method; most are called as camlib's."""
    import pytorch_grad_cam

    return getattr(pytorch_grad_cam, camlib.METHODS[method].__name__.replace("KPCA", "KPCA_"))


def torchcam_class(method: str) -> Any:
    """Torchcam's class of a method."""
    import torchcam.methods

    return getattr(torchcam.methods, camlib.METHODS[method].__name__.replace("PlusPlus", "pp"))


def grad_cam_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """pytorch-grad-cam's; one by one each explainer removes its hooks before the next."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    options: dict[str, Any] = {"reshape_transform": _grid} if has_tokens(model) else {}

    def made(name: str) -> Any:
        return grad_cam_class(name)(model, [model.get_submodule(layer)], **options)

    def explained(explainer: Any, category: int) -> Any:
        return explainer(input_tensor=images, targets=[ClassifierOutputTarget(category) for _ in images])

    def one_by_one(category: int) -> None:
        for name in DEFAULT_METHODS:
            with made(name) as explainer:
                explained(explainer, category)

    if method == ONE_BY_ONE:
        return one_by_one
    return functools.partial(explained, made(method))


def torchcam_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """Torchcam's: a forward pass with its hooks, then the extractor."""
    _needs_grids(model)
    options = {"num_samples": 8} if method == "smooth_grad_cam_plus_plus" else {}  # camlib's default
    extractor = torchcam_class(method)(model, target_layer=layer, **options)
    no_gradients = method in ("cam", "score_cam", "ss_cam", "is_cam")

    def call(category: int) -> Any:
        with torch.set_grad_enabled(not no_gradients):
            return extractor([category] * len(images), model(images))

    return call


def captum_call(method: str, model: nn.Module, images: Tensor, layer: str) -> OfClass:
    """Captum's."""
    from captum import attr

    if method in ("grad_cam", "guided_grad_cam"):
        _needs_grids(model)
    module, channels = model.get_submodule(layer), images.shape[1]
    options: dict[str, Any] = {"inputs": images.clone().requires_grad_(method.startswith("guided"))}
    if method == "grad_cam":
        explainer, options = attr.LayerGradCam(model, module), options | {"relu_attributions": True}
    elif method == "guided_grad_cam":
        explainer = attr.GuidedGradCam(model, module)
    elif method == "guided_backprop":
        explainer = attr.GuidedBackprop(model)
    else:
        explainer, options = attr.Occlusion(model), options | {"perturbations_per_eval": 16}
        options |= {"sliding_window_shapes": (channels, WINDOW, WINDOW), "strides": (channels, STRIDE, STRIDE)}
    return lambda category: explainer.attribute(target=category, **options)


PEERS: dict[str, tuple[tuple[str, ...], Callable[[str, nn.Module, Tensor, str], OfClass]]] = {
    "torchcam": (TORCHCAM, torchcam_call),
    "captum": (CAPTUM, captum_call),
    "grad-cam": (GRAD_CAM, grad_cam_call),
}
"""The methods of each peer, and what makes its calls."""


def offering(method: str) -> list[str]:
    """The libraries that offer a method."""
    return ["camlib", *(peer for peer, (methods, _) in PEERS.items() if method in methods)]


def build(
    library: str, method: str, model: nn.Module, images: Tensor, layer: str, classes: Sequence[int]
) -> tuple[nn.Module, Call]:
    """A copy of the model for one library, and its call; peers explain one class per call and are called for each."""
    own = copy.deepcopy(model)
    if library == "forward":
        return own, bare(own, images)
    if library == "camlib":
        return own, camlib_call(method, own, images, layer, classes)
    call = PEERS[library][1](method, own, images, layer)
    return own, lambda: [call(category) for category in classes]


def resident_memory(library: str, method: str, name: str, images: int = 1, classes: int = 1, layer: str = "") -> float:
    """Bytes of resident memory at the peak of a call, in a new process."""
    command = [sys.executable, "-m", "benchmarks.libraries", library, method, name, str(images), str(classes), layer]
    # Each large tensor in its own pages, returned when it is freed: resident memory is then what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


PERTURBING = ("score_cam", "ss_cam", "is_cam", "ablation_cam", "rise", "occlusion")


def expected_passes(library: str, method: str, channels: int, side: int) -> int:
    """About how many forward passes a perturbation method takes for an image; 0 for every other method."""
    positions = ((side - WINDOW) // STRIDE + 1) ** 2
    ablated = 0 if library == "camlib" else channels
    counts = (channels, 35 * channels, 10 * channels, ablated, SAMPLES, positions)
    return dict(zip(PERTURBING, counts, strict=True)).get(method, 0)


def has_tokens(model: nn.Module) -> bool:
    """Whether a model is a vision transformer."""
    return hasattr(model, "class_token")


def _needs_grids(model: nn.Module) -> None:
    if has_tokens(model):
        raise NotOfferedError("no option says that a layer's output is tokens")


def _grid(tokens: Tensor) -> Tensor:
    """Tokens (N, 1 + L, C) as (N, C, h, w) without the class token; a grid as it is."""
    if tokens.dim() == 4:
        return tokens
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).movedim(-1, 1)


if __name__ == "__main__":
    library, method, name, images, classes, layer = sys.argv[1:]
    model, batch, found = network(name, int(images))
    _, measured = build(library, method, model, batch, layer or found, range(int(classes)))
    measured()  # what only the first call allocates is not counted
    print(resident_peak(measured))
