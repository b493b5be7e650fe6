"""The overhead of Grad-CAM: by camlib, by thirty lines without checks, and by other libraries.

``benchmarks/run price`` measures on a CPU, in one thread, with images of 32 px, for which the network has little to
compute. ``benchmarks/run gpu`` measures batches of 1, 8, 32 and 128 images of 224 px on a GPU, with peers where they
are installed (four minutes). Some calls are also compiled. Subjects take turns; times are medians over rounds. The
results are ``price.json`` and ``price_cuda.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from benchmarks.libraries import bare, build, network
from benchmarks.measure import Call, compared
from benchmarks.results import provenance, save

NETWORKS = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "convnext_tiny", "vit_b_16")
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128)}
SIDES = {"cpu": 32, "cuda": 224}
ROUNDS = {"cpu": 30, "cuda": 12}
COMPILED = {("resnet18", 1), ("resnet50", 1), ("resnet50", 32)}
"""Networks and batches that are also compiled, with CUDA graphs on a GPU; each takes up to a minute to compile."""
PEERS = {"torchcam": "torchcam", "captum": "captum", "grad-cam": "pytorch_grad_cam"}
"""The module of each peer."""


def naive_cut(model: nn.Module, images: Tensor, layer: str, tokens: bool) -> Call:
    """Grad-CAM without checks: a hook that cuts the graph, one tail gradient, and the weighted sum."""
    module = model.get_submodule(layer)

    def call() -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())
            torch.set_grad_enabled(True)
            return kept[0].clone()

        handle = module.register_forward_hook(cut)
        try:
            with torch.no_grad():
                outputs = model(images)
                with torch.enable_grad():
                    scores = outputs.gather(1, outputs.argmax(1, keepdim=True)).sum()
                (gradient,) = torch.autograd.grad(scores, kept[0])
        finally:
            handle.remove()
        features, gradient = (_as_grid(one) if tokens else one for one in (kept[0].detach(), gradient))
        weights = gradient.mean((2, 3), keepdim=True)
        return outputs.detach(), (weights * features).sum(1).relu()

    return call


def compiled(model: nn.Module, images: Tensor, layer: str, device: str) -> dict[str, Call]:
    """The compiled forward pass and the compiled Grad-CAM."""
    options: dict[str, Any] = {"mode": "reduce-overhead"} if device == "cuda" else {}
    fast = torch.compile(model, fullgraph=True, dynamic=False, **options)
    cam = camlib.GradCAM(model, layer).compile(**options)
    return {"compiled forward": bare(fast, images), "camlib, compiled": lambda: cam(images)}


def _as_grid(tokens: Tensor) -> Tensor:
    side = int((tokens.shape[1] - 1) ** 0.5)
    grid: Tensor = tokens[:, 1:].mT.unflatten(2, (side, side))
    return grid


def subjects(name: str, model: nn.Module, images: Tensor, layer: str, device: str) -> dict[str, Call]:
    """The calls to compare, by name; ratios are relative to the first."""
    cam = camlib.GradCAM(model, layer)
    calls: dict[str, Call] = {
        "forward": bare(model, images),
        "naive cut": naive_cut(model, images, layer, name.startswith("vit")),
        "camlib": lambda: cam(images),
        "camlib, heatmaps": lambda: cam(images).heatmaps(),
        "camlib, 10 classes": lambda: cam(images, camlib.TopK(10)),
    }
    if device == "cuda":
        for peer, module in PEERS.items():
            if importlib.util.find_spec(module):
                calls[peer] = build(peer, "grad_cam", model, images, layer, [1])[1]
    if (name, len(images)) in COMPILED:
        calls |= compiled(model, images, layer, device)
    return calls


def waits(call: Callable[[], Any]) -> int | None:
    """How often a call waits for the GPU, by torch's sync debug mode; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def cells(name: str, images: int, device: str) -> list[dict[str, Any]]:
    """One record for each subject on one network."""
    model, batch, layer = network(name, images, SIDES[device], device)
    calls = subjects(name, model, batch, layer, device)
    measured = compared(calls, ROUNDS[device], device)
    cut = measured["naive cut"]["seconds"]
    records = []
    for of, took in measured.items():
        record = {"model": name, "images": images, "subject": of, **took, "over the cut": took["seconds"] / cut}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            record["waits"] = waits(calls[of])
            record["bytes"] = torch.cuda.max_memory_allocated()
        records.append(record)
    return records


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=BATCHES, default="cpu")
    device = parser.parse_args().device
    if device == "cpu":
        torch.set_num_threads(1)
    results: dict[str, Any] = provenance("torch", "torchvision") | {"cells": []}
    if device == "cuda":
        results["machine"] = torch.cuda.get_device_name()
    for name in NETWORKS:
        for images in BATCHES[device]:
            results["cells"] += cells(name, images, device)
            last = [one for one in results["cells"] if (one["model"], one["images"]) == (name, images)]
            print(name, images, *(f"{one['subject']} {one['over the cut']:.2f}" for one in last), sep=", ", flush=True)
    save("price" if device == "cpu" else "price_cuda", results)


if __name__ == "__main__":
    main()
