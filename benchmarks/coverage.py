"""Every method on the smallest member of each of torchvision's families of classifiers: explained, or refused and why.

Weights are random, since what is asked is whether a network's parts suit a method: the layer that is found, how many
images run through the network for one that is explained, and of refusals the reason. Methods that perturb are told to
take few samples, so that their passes are no measure of their cost; those of the others are.

Run it with ``python -m benchmarks.coverage`` (four minutes on one core; no peers are needed); it writes
``coverage.json`` and the tables of the documentation, ``coverage_*.csv``, in ``benchmarks/results``.
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
MODELS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "convnext_tiny": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "maxvit_t": {},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "resnet18": {},
    "resnext50_32x4d": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vgg11": {},
    "vit_b_32": {"image_size": SIDE},
    "wide_resnet50_2": {},
}
"""The builders, and what they are told."""
SIDES = {"maxvit_t": 224, "inception_v3": 160}
"""Where 96 x 96 will not do: the windows of MaxViT are of one size, and the last grid of Inception would be a cell."""
OPTIONS: dict[str, dict[str, Any]] = {
    "smooth_grad_cam_plus_plus": {"samples": 2},
    "score_cam": {"channels": 8},
    "ss_cam": {"channels": 4, "samples": 2},
    "is_cam": {"channels": 4, "samples": 2},
    "rise": {"samples": 8},
    "occlusion": {"window": SIDE // 2, "stride": SIDE // 2},
}
"""What the methods are told, to take few passes."""


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A builder's network with random weights, those of heads that start with zeros too, and a picture."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **MODELS[name]).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model, torch.rand(1, 3, SIDES.get(name, SIDE), SIDES.get(name, SIDE))


def explained(method: str, model: nn.Module, image: Tensor, layer: str, stages: list[str]) -> dict[str, Any]:
    """What one method says of a picture: the layer, the maps' grid and the passes; or why it refuses."""
    cls = camlib.METHODS[method]
    read = None if cls.layerless else layer if cls.finds_one_layer else stages
    explanations: list[camlib.Explanation] = []
    try:
        cam = camlib.create(method, model, read, **OPTIONS.get(method, {}))
        count = passes(model, lambda: explanations.append(cam(image, 7)))
    except camlib.CamlibError as error:
        return {"refused": str(error)}
    return {"layer": explanations[0].layer, "grid": list(explanations[0].maps.shape[1:]), "passes": count}


def covered(name: str) -> dict[str, Any]:
    """Every method on one network."""
    model, image = network(name)
    layer = camlib.find_layer(model, image)
    stages = camlib.find_stages(model, image)[-2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", camlib.CamlibWarning)  # where Ablation-CAM runs the whole network: see passes
        methods = {method: explained(method, model, image, layer, stages) for method in camlib.METHODS}
    return {"side": image.shape[-1], "layer": layer, "methods": methods}


def main() -> None:
    """Explain, print what is refused, write JSON and CSV."""
    results = provenance("torch", "torchvision") | {"options": OPTIONS, "models": {}}
    for name in MODELS:
        results["models"][name] = covered(name)
        refused = [method for method, cell in results["models"][name]["methods"].items() if "refused" in cell]
        print(f"{name}: {results['models'][name]['layer']}; refused: {', '.join(refused) or 'none'}", flush=True)
        gc.collect()
    save("coverage", results)


if __name__ == "__main__":
    main()
