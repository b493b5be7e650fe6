"""Every method on one network of each family of torchvision's classifiers: explained, or refused and why.

Weights are random, because the question is whether a network's parts suit a method: the layer that is found, the images
that run through the network per explained image, and the reason of a refusal. Methods that perturb take few samples, so
that their passes do not show their usual cost.

``benchmarks/run coverage`` writes ``coverage.json`` in ``benchmarks/results`` (four minutes on one core).
"""

from __future__ import annotations

import gc
import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.measure import passes
from benchmarks.results import provenance, save

SIDE = 96
MODELS = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
    mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5
    squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_32 wide_resnet50_2"""
BUILT_WITH: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_b_32": {"image_size": SIDE},
}
SIDES = {"maxvit_t": 224, "inception_v3": 160}
"""Exceptions from 96: MaxViT's windows have one size, and the last grid of Inception would be a single cell."""
OPTIONS: dict[str, dict[str, Any]] = {
    "smooth_grad_cam_plus_plus": {"samples": 2},
    "score_cam": {"channels": 8},
    "ss_cam": {"channels": 4, "samples": 2},
    "is_cam": {"channels": 4, "samples": 2},
    "rise": {"samples": 8},
    "occlusion": {"window": SIDE // 2, "stride": SIDE // 2},
}
"""Few passes."""


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, also in heads that start with zeros, and a picture."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **BUILT_WITH.get(name, {})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model, torch.rand(1, 3, SIDES.get(name, SIDE), SIDES.get(name, SIDE))


def explained(method: str, model: nn.Module, image: Tensor, layer: str, stages: list[str]) -> dict[str, Any]:
    """What a method says of a picture: the layer, the maps' grid and the passes; or why it refuses."""
    cls = camlib.METHODS[method]
    read = None if cls.layerless else layer if cls.finds_one_layer else stages
    explanations: list[camlib.Explanation] = []
    try:
        cam = camlib.create(method, model, read, **OPTIONS.get(method, {}))
        count = passes(model, lambda: explanations.append(cam(image, 7)))
    except camlib.CamlibError as error:
        return {"refused": str(error)}
    return {"layer": explanations[0].layer, "grid": list(explanations[0].maps.shape[1:]), "passes": count}


def main() -> None:
    """Explain, print what is refused, write the JSON."""
    results = provenance("torch", "torchvision") | {"options": OPTIONS, "models": {}}
    warnings.simplefilter("ignore", camlib.CamlibWarning)  # where Ablation-CAM runs the whole network: see passes
    for name in MODELS.split():
        model, image = network(name)
        layer, stages = camlib.find_layer(model, image), camlib.find_stages(model, image)[-2:]
        methods = {method: explained(method, model, image, layer, stages) for method in camlib.METHODS}
        results["models"][name] = {"side": image.shape[-1], "layer": layer, "methods": methods}
        print(name, layer, "refused:", *(method for method in methods if "refused" in methods[method]), flush=True)
        gc.collect()
    save("coverage", results)


if __name__ == "__main__":
    main()
