"""Grad-CAM of many networks as a file of ONNX: whether it is exported, and how far ONNX Runtime is from eager calls.

The networks are all classifiers of torchvision at the layer that camlib finds, ResNet-18 and 50 at two more layers, ten
networks of timm and five of Hugging Face, with random weights. The batch has any length. Each line is saved when it is
there, so that the script goes on where it was stopped.

``python -m benchmarks.exporting`` writes ``exporting.json`` in ``benchmarks/results``; with names, only those lines.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.coverage import BUILT_WITH, SIDES
from benchmarks.results import load_if_there, provenance, save

NAME = "exporting"
DEEPER = {f"{model}@{layer}": (model, layer) for model in ("resnet18", "resnet50") for layer in ("layer3", "layer2")}
TIMM = [
    "convnext_atto",
    "deit_tiny_patch16_224",
    "efficientnet_lite0",
    "ghostnet_100",
    "hrnet_w18_small",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "regnety_002",
    "resnest14d",
    "resnet26d",
]
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "ConvNextForImageClassification": {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128]},
    "MobileNetV2ForImageClassification": {},
    "ResNetForImageClassification": {"depths": [1, 1, 1, 1], "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128]},
    "SwinForImageClassification": {"depths": [1, 1, 2, 1], "embed_dim": 48},
    "ViTForImageClassification": {"num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 4},
}
SIDE_224 = ("deit_tiny_patch16_224", "SwinForImageClassification", "ViTForImageClassification")
"""Networks that take images of this size alone; others get 96."""


def names() -> list[str]:
    """The name of each line."""
    return [
        *torchvision.models.list_models(torchvision.models),
        *DEEPER,
        *(f"timm {name}" for name in TIMM),
        *(f"transformers {name}" for name in HUGGING_FACE),
    ]


def built(name: str) -> tuple[nn.Module, Tensor, str | None]:
    """The network of a line with random weights, images, and the layer if it is given."""
    library, _, model = name.rpartition(" ")
    torch.manual_seed(0)
    side = 224 if model in SIDE_224 else 96
    if library == "timm":
        import timm

        return timm.create_model(model, pretrained=False, num_classes=10).eval(), torch.rand(2, 3, side, side), None
    if library == "transformers":
        import transformers

        kind = getattr(transformers, model)
        config = kind.config_class(num_labels=10, **HUGGING_FACE[model])
        return kind(config).eval(), torch.rand(2, 3, side, side), None
    of, layer = DEEPER.get(name, (name, None))
    side = 112 if of.startswith("vit_") else SIDES.get(of, side)
    options: dict[str, Any] = (
        {"image_size": side} if of.startswith("vit_") and of != "vit_b_32" else BUILT_WITH.get(of, {})
    )
    found: nn.Module = torchvision.models.get_model(of, weights=None, num_classes=10, **options).eval()
    for parameter in found.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a head that starts with zeros has no gradient
            nn.init.normal_(parameter, std=0.02)
    side = 96 if of == "vit_b_32" else side
    return found, torch.rand(2, 3, side, side), layer


def exported(name: str) -> dict[str, Any]:
    """What export_onnx says of a network: the layer and the difference, or the reason of the refusal."""
    import onnx

    model, images, layer = built(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = camlib.export_onnx(camlib.GradCAM(model, layer), images, Path(folder) / "model.onnx")
        except camlib.CamlibError as error:
            return {"refused": str(error)[:400]}
        graph = onnx.load(str(path), load_external_data=False)
        metadata = {one.key: one.value for one in graph.metadata_props}
        return {
            "layer": metadata["layer"],
            "side": images.shape[-1],
            "nodes": len(graph.graph.node),
            "error": float(metadata["error"]),
            "eager_error": float(metadata["eager_error"]),
            "reference": metadata["reference"],
        }


def main(wanted: list[str]) -> None:
    """Export each network that has no line yet, or those that are named."""
    lines = load_if_there(NAME).get("networks", {})
    for name in wanted or [one for one in names() if one not in lines]:
        lines[name] = exported(name)
        ordered = {one: lines[one] for one in names() if one in lines}
        save(
            NAME,
            {**provenance("torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime"), "networks": ordered},
        )
        print(name, lines[name], flush=True)
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
