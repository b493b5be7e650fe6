"""Eight methods from one forward pass, beside a bare forward pass and beside the same methods one after the other.

Every subject explains class 0 of the same images with ``camlib.comparison.DEFAULT_METHODS`` at the layer camlib finds.
Times are medians over rounds in which the subjects take turns.

Run it with ``benchmarks/run compare``; it writes ``benchmarks/results/compare.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import camlib
from benchmarks.grad_cam import MODELS, Call, bare, build
from benchmarks.provenance import provenance
from camlib.comparison import DEFAULT_METHODS


def together(model: nn.Module, images: Tensor, layer: str) -> Call:
    """camlib.compare."""
    return lambda: camlib.compare(model, images, DEFAULT_METHODS, 0, layer=layer)


def one_by_one(model: nn.Module, images: Tensor, layer: str) -> Call:
    """Camlib's explainers, one after the other."""
    explainers = [camlib.create(name, model, layer) for name in DEFAULT_METHODS]
    return lambda: [explainer(images, 0) for explainer in explainers]


def grad_cam_one_by_one(model: nn.Module, images: Tensor, layer: str) -> Call:
    """pytorch-grad-cam's explainers of the same methods, one after the other."""
    import pytorch_grad_cam as peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    methods = (
        peer.GradCAM,
        peer.GradCAMPlusPlus,
        peer.XGradCAM,
        peer.HiResCAM,
        peer.LayerCAM,
        peer.EigenGradCAM,
        peer.EigenCAM,
        peer.FEM,
    )
    targets = [ClassifierOutputTarget(0) for _ in images]

    def call() -> None:
        for method in methods:
            with method(model=model, target_layers=[model.get_submodule(layer)]) as explainer:
                explainer(input_tensor=images, targets=targets)

    return call


SUBJECTS = {
    "forward": bare,
    "camlib.compare": together,
    "camlib, one by one": one_by_one,
    "grad-cam, one by one": grad_cam_one_by_one,
}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    results: dict[str, Any] = provenance("torch", "torchvision", "grad-cam") | {
        "methods": DEFAULT_METHODS,
        "rounds": rounds,
        "models": {},
    }
    print(f"{results['machine']}; {results['versions']}\ntime relative to a bare forward pass")
    for name, batch in MODELS.items():
        model, images, layer = build(name)
        calls = {subject: make(copy.deepcopy(model), images, layer) for subject, make in SUBJECTS.items()}
        seconds: dict[str, list[float]] = {subject: [] for subject in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for subject, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[subject].append(time.perf_counter() - start)
        row = {
            subject: statistics.median(own / base for own, base in zip(found, seconds["forward"], strict=True))
            for subject, found in seconds.items()
        }
        results["models"][name] = {
            "batch": batch,
            "forward seconds": statistics.median(seconds["forward"]),
            "time": row,
        }
        print(f"{name + f' x {batch}':24}" + "".join(f"{subject} {row[subject]:.2f}   " for subject in SUBJECTS))
        path = Path(__file__).parent / "results" / "compare.json"
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
