"""How far camlib's maps differ from the peers' and, in float64, from each paper's equation.

Each library explains class 3 of the same images at the same layer. Maps are raw, ReLU'd, at the layer's resolution and
divided by their largest value, because some peers scale theirs. Of the methods in ``AS_HEATMAPS``, which the peers
return at the size of the images, heatmaps in [0, 1] are compared. The table gives the largest difference; where a peer
differs, ``REASONS`` says why. ``benchmarks/run parity`` writes ``parity.json`` in ``benchmarks/results``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.libraries import GRADIENT, MATRIX, grad_cam_class, torchcam_class
from benchmarks.results import provenance, save
from tests import equations

CLASS = 3
LAYERS = {"resnet18": "layer4", "mobilenet_v3_small": "features", "densenet121": "features"}
IN_PLACE = "the ReLU behind the layer works in place, before the peers read its output"
REASONS = {
    ("grad-cam", "grad_cam_plus_plus"): "grad-cam: an absolute epsilon in alpha flattens small gradients",
    ("torchcam", "grad_cam_plus_plus"): "torchcam: alpha is divided in a copy of it and stays the gradient's square",
    ("grad-cam", "x_grad_cam"): "grad-cam: an absolute epsilon in a sum of signed activations that is nearly zero",
    ("torchcam", "x_grad_cam"): "torchcam: an absolute epsilon in a sum of signed activations that is nearly zero",
    ("grad-cam", "eigen_cam"): "grad-cam: centred features, and the sign left to chance; as EigenCAM(center=True)",
    ("grad-cam", "eigen_grad_cam"): "grad-cam: centred features, and the sign left to chance; as center=True",
    ("grad-cam", "fem"): "grad-cam: activations weighted by the share of rare positions, not these by the mean",
    ("grad-cam", "seg_eigen_cam"): "grad-cam: centred features; the paper's projection is of the features themselves",
    ("grad-cam", "finer_cam"): 'grad-cam: as FinerCAM(weight=1.0, average="probability"), but for an absolute epsilon',
    ("grad-cam", "refine_cam"): "grad-cam and the authors' code: as upsample=True; maps are resized, then multiplied",
    ("grad-cam", "score_cam"): "grad-cam: masks are resized with aligned corners",
    ("torchcam", "score_cam"): "torchcam: masks are normalised before they are resized",
    ("torchcam", "le_grad"): 'torchcam and the paper: a score for each block, as LeGrad(score="block"), which agrees',
    ("grad-cam", "kpca_cam"): 'grad-cam: as KPCACAM(kernel="sigmoid", gamma="1/C", center=True), sign left to chance',
}
AS_HEATMAPS = ("shapley_cam", "seg_eigen_cam", "finer_cam", "ablation_cam", "score_cam", "refine_cam", "full_grad")
"""Methods that are compared once, as heatmaps."""
AGREES = 1e-4
"""Smaller differences are rounding."""
Maps = Iterator[tuple[str, Tensor]]
"""By method."""


def captum(model: nn.Module, layer: str, images: Tensor) -> Maps:
    """Captum's LayerGradCam."""
    from captum.attr import LayerGradCam

    maps = LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=CLASS, relu_attributions=True)
    yield "grad_cam", maps.squeeze(1)


def torchcam(model: nn.Module, layer: str, images: Tensor) -> Maps:
    """Torchcam's extractors, before they normalise."""
    for name in GRADIENT:
        with torchcam_class(name)(model, target_layer=layer) as cam:
            scores = model(images)
            yield name, cam.compute_cams([CLASS] * len(images), scores, normalized=False)[0]


def grad_cam(model: nn.Module, layer: str, images: Tensor) -> Maps:
    """pytorch-grad-cam's methods, before they scale and resize."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module, targets = model.get_submodule(layer), [ClassifierOutputTarget(CLASS) for _ in images]
    for name in (*GRADIENT, *MATRIX, "hires_cam", "grad_cam_element_wise"):
        with grad_cam_class(name)(model=model, target_layers=[module]) as cam:
            cam(input_tensor=images, targets=targets)
            held = cam.activations_and_grads
            read = [found[0].detach().numpy() if found else None for found in (held.activations, held.gradients)]
            yield name, torch.as_tensor(cam.get_cam_image(images, module, targets, *read, False))


PEERS: dict[str, Callable[[nn.Module, str, Tensor], Maps]] = {
    "captum": captum,
    "torchcam": torchcam,
    "grad-cam": grad_cam,
}


def build(name: str) -> nn.Module:
    """The network with random weights of a size at which gradients are neither tiny nor huge."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return model


def difference(maps: Tensor, expected: Tensor) -> float:
    """The largest difference of maps, each ReLU'd and divided by its largest value."""
    positive = [one.detach().double().relu() for one in (maps, expected)]
    largest = [one.amax((1, 2), keepdim=True) for one in positive]
    one, other = (of / torch.where(most > 0, most, 1) for of, most in zip(positive, largest, strict=True))
    return float((one - other).abs().amax())


def heatmaps_of_grad_cam(model: nn.Module, layers: list[str], images: Tensor) -> Maps:
    """The heatmaps of pytorch-grad-cam's methods."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    for method in AS_HEATMAPS:
        own = copy.deepcopy(model)
        read = [own.get_submodule(layer) for layer in (layers if method == "refine_cam" else layers[-1:])]
        targets = None if method == "finer_cam" else [ClassifierOutputTarget(CLASS)] * len(images)
        explain = grad_cam_class(method)(model=own, target_layers=read)
        options = {"target_idx": CLASS} if method == "finer_cam" else {}
        yield method, torch.as_tensor(explain(input_tensor=images, targets=targets, **options))


def heatmaps_of_torchcam(model: nn.Module, layers: list[str], images: Tensor) -> Maps:
    """The heatmaps of torchcam's Score-CAM and Finer-CAM."""
    for method in ("score_cam", "finer_cam"):
        own = copy.deepcopy(model)
        with torchcam_class(method)(own, target_layer=layers[-1]) as cam:
            maps = cam.compute_cams([CLASS] * len(images), own(images), normalized=False)[0]
        yield method, camlib.normalize(camlib.resize(maps.detach().relu(), tuple(images.shape[2:])))


def vision_transformer() -> torchvision.models.VisionTransformer:
    """A small one of torchvision's, with random weights also in its head."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(96, 16, 4, 4, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)
    model.eval()
    return model


def heatmap_rows(name: str, layers: list[str]) -> dict[str, dict[str, Any]]:
    """Differences of heatmaps by method."""
    model, images = build(name), torch.rand(2, 3, 96, 96)
    found: dict[str, dict[str, Any]] = {}
    peers = {"grad-cam": heatmaps_of_grad_cam, "torchcam": heatmaps_of_torchcam}
    for peer, explain in peers.items():
        for method, maps in explain(model, layers, images):
            read = {"refine_cam": layers, "full_grad": None}.get(method, layers[-1])
            options = {"tolerance": math.inf} if method == "full_grad" else {}
            own = camlib.create(method, model, read, **options)(images, CLASS).heatmaps()
            compared(found.setdefault(method, {}), peer, method, difference(maps, own))
    transformer = vision_transformer()
    blocks = [name for name, _ in transformer.named_modules() if name.count(".") == 2 and "encoder_layer_" in name]
    with torchcam_class("le_grad")(transformer, blocks) as cam:
        maps = cam.compute_cams([CLASS] * len(images), transformer(images), normalized=False)
    of_blocks = torch.stack(list(maps)).mean(0)
    own = camlib.LeGrad(transformer)(images, CLASS).maps
    compared(found.setdefault("le_grad", {}), "torchcam", "le_grad", difference(of_blocks, own))
    own = camlib.LeGrad(transformer, score="block")(images, CLASS).maps
    found["le_grad"]["torchcam, score of each block"] = difference(of_blocks, own)
    return found


def compared(row: dict[str, Any], peer: str, method: str, apart: float) -> None:
    """Note a difference, and why there is one."""
    row[peer] = apart
    if apart > AGREES:
        row["why"] = [*row.get("why", []), *([REASONS[peer, method]] if (peer, method) in REASONS else [])]


def rows(name: str, layer: str) -> dict[str, dict[str, Any]]:
    """Differences by method: of camlib to the equation, and of each peer to camlib."""
    model, images = build(name), torch.rand(2, 3, 96, 96)
    with torch.no_grad(), camlib.capture(model, layer) as captured:
        outputs = model(images)
    read = captured.activations, captured.gradients(outputs[:, CLASS])
    found: dict[str, dict[str, Any]] = {}
    for peer, explain in PEERS.items():
        for method, maps in explain(copy.deepcopy(model), layer, images):
            own = camlib.create(method, model, layer)(images, CLASS).maps
            if method not in found:
                paper, _ = getattr(equations, method)(*read[: 1 + camlib.METHODS[method].needs_gradients])
                found[method] = {"equation": difference(own, paper)}
            row = found[method]
            row[peer] = difference(maps, own)
            if row[peer] > AGREES:
                why = [REASONS[peer, method]] if (peer, method) in REASONS else []
                why += [IN_PLACE] if name.startswith("densenet") else []
                row["why"] = list(dict.fromkeys([*row.get("why", []), *why]))
            if peer == "grad-cam" and method.startswith("eigen"):
                centred = camlib.create(method, model, layer, center=True, relu=False)(images, CLASS).maps
                row["grad-cam, centred, up to the sign"] = min(difference(sign * maps, centred) for sign in (1, -1))
    return found


def main() -> None:
    """Compare, print, write the JSON."""
    models = {name: {"layer": layer, "methods": rows(name, layer)} for name, layer in LAYERS.items()}
    layers = ["layer3", "layer4"]
    models["resnet18, heatmaps"] = {"layer": " + ".join(layers), "methods": heatmap_rows("resnet18", layers)}
    print(*models.items(), sep="\n")
    save("parity", provenance("torch", "torchvision", "grad-cam", "torchcam", "captum") | {"models": models})


if __name__ == "__main__":
    main()
