"""camlib's maps beside the peers', and beside each paper's equation in float64: where they agree, and where not.

Each library explains class 3 of the same images at the same layer. Maps are raw, ReLU'd, at the layer's resolution,
each divided by its own largest value, because some peers scale theirs; the table gives the largest difference. Where a
peer differs, ``REASONS`` says why.

Run it with ``benchmarks/run parity``; it writes ``benchmarks/results/parity.json``, ``parity.csv`` and
``parity_reasons.csv``, which the documentation shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.results import provenance, save

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
    ("grad-cam", "kpca_cam"): "grad-cam: sigmoid kernel on centred features, and the sign left to chance",
}
AGREES = 1e-4
"""Differences below this are rounding."""


def equation(name: str, activations: Tensor, gradients: Tensor) -> Tensor | None:
    """The paper's map in float64, said as plainly as can be; None where the parity says enough."""
    a, g = activations.double(), gradients.double()
    total = a.sum((2, 3), keepdim=True)
    weights = {
        "grad_cam": g.mean((2, 3)),
        "x_grad_cam": (a * g / total).nan_to_num(0, 0, 0).sum((2, 3)),
        "grad_cam_plus_plus": (g.relu() / (2 + g * total)).sum((2, 3)),
    }
    if name in weights:
        return (weights[name][..., None, None] * a).sum(1).relu()
    products = {"hires_cam": g * a, "layer_cam": g.relu() * a, "grad_cam_element_wise": (g * a).relu()}
    if name in products:
        return products[name].sum(1).relu()
    if name == "fem":
        mean, deviation = a.mean((2, 3), keepdim=True), a.std((2, 3), keepdim=True, correction=0)
        return (mean * (a >= mean + 2 * deviation)).sum(1).relu()
    return None


def captum(model: nn.Module, layer: str, images: Tensor) -> dict[str, Tensor]:
    """Captum's LayerGradCam."""
    from captum.attr import LayerGradCam

    maps = LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=CLASS, relu_attributions=True)
    return {"grad_cam": maps.squeeze(1).detach()}


def torchcam(model: nn.Module, layer: str, images: Tensor) -> dict[str, Tensor]:
    """Torchcam's extractors, before they normalise."""
    from torchcam import methods

    named = {
        "grad_cam": methods.GradCAM,
        "grad_cam_plus_plus": methods.GradCAMpp,
        "x_grad_cam": methods.XGradCAM,
        "layer_cam": methods.LayerCAM,
    }
    found = {}
    for name, extractor in named.items():
        with extractor(model, target_layer=layer) as cam:
            scores = model(images)
            found[name] = cam.compute_cams([CLASS] * len(images), scores, normalized=False)[0].detach()
    return found


def grad_cam(model: nn.Module, layer: str, images: Tensor) -> dict[str, Tensor]:
    """pytorch-grad-cam's methods, before they scale and resize."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    named = {
        "grad_cam": pytorch_grad_cam.GradCAM,
        "grad_cam_plus_plus": pytorch_grad_cam.GradCAMPlusPlus,
        "x_grad_cam": pytorch_grad_cam.XGradCAM,
        "hires_cam": pytorch_grad_cam.HiResCAM,
        "grad_cam_element_wise": pytorch_grad_cam.GradCAMElementWise,
        "layer_cam": pytorch_grad_cam.LayerCAM,
        "eigen_cam": pytorch_grad_cam.EigenCAM,
        "eigen_grad_cam": pytorch_grad_cam.EigenGradCAM,
        "kpca_cam": pytorch_grad_cam.KPCA_CAM,
        "fem": pytorch_grad_cam.FEM,
    }
    found = {}
    for name, method in named.items():
        module = model.get_submodule(layer)
        cam = method(model=model, target_layers=[module])
        targets = [ClassifierOutputTarget(CLASS) for _ in images]
        cam(input_tensor=images, targets=targets)
        held = cam.activations_and_grads
        activations = held.activations[0].detach().cpu().numpy()
        gradients = held.gradients[0].detach().cpu().numpy() if held.gradients else None
        maps = cam.get_cam_image(images, module, targets, activations, gradients, False)
        found[name] = torch.as_tensor(maps)
        held.release()
    return found


PEERS: dict[str, Callable[[nn.Module, str, Tensor], dict[str, Tensor]]] = {
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


def scaled(maps: Tensor) -> Tensor:
    """Each map ReLU'd and divided by its largest value."""
    positive = maps.double().relu()
    largest = positive.amax((1, 2), keepdim=True)
    return positive / torch.where(largest > 0, largest, 1)


def difference(maps: Tensor, expected: Tensor) -> float:
    """The largest difference of scaled maps."""
    return float((scaled(maps) - scaled(expected)).abs().amax())


def rows(name: str, layer: str) -> dict[str, dict[str, Any]]:
    """Differences by method: of camlib to the equation, and of each peer to camlib."""
    model, images = build(name), torch.rand(2, 3, 96, 96)
    with torch.no_grad(), camlib.capture(model, layer) as captured:
        outputs = model(images)
    activations, gradients = captured.activations, captured.gradients(outputs[:, CLASS])
    found: dict[str, dict[str, Any]] = {}
    for peer, explain in PEERS.items():
        for method, maps in explain(copy.deepcopy(model), layer, images).items():
            own = camlib.create(method, model, layer)(images, CLASS).maps
            paper = equation(method, activations, gradients)
            row = found.setdefault(method, {"equation": None if paper is None else difference(own, paper)})
            row[peer] = difference(maps, own)
            if row[peer] > AGREES:
                why = [REASONS[peer, method]] if (peer, method) in REASONS else []
                why += [IN_PLACE] if name.startswith("densenet") else []
                row.setdefault("why", []).extend(reason for reason in why if reason not in row.get("why", []))
            if peer == "grad-cam" and method.startswith("eigen"):
                explainer = camlib.create(method, model, layer, center=True, relu=False)
                centred = explainer(images, CLASS).maps
                row["grad-cam, centred, up to the sign"] = min(difference(sign * maps, centred) for sign in (1, -1))
    return found


def main() -> None:
    """Compare, print the table, write JSON and CSV."""
    packages = ("torch", "torchvision", "grad-cam", "torchcam", "captum")
    results = provenance(*packages) | {
        "models": {name: {"layer": layer, "methods": rows(name, layer)} for name, layer in LAYERS.items()}
    }
    save("parity", results)


if __name__ == "__main__":
    main()
