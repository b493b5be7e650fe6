"""Grad-CAM and ``camlib.compare`` on batches of images, by camlib and its peers: time and resident memory.

Each is a ratio to a bare forward pass. Subjects take turns, each on its own copy of the model; times are medians over
rounds; memory is measured in a new process for each. ``benchmarks/run batches`` writes ``grad_cam.json`` and
``compare.json`` in ``benchmarks/results``.
"""

from __future__ import annotations

from typing import Any

from benchmarks.libraries import COMPARE, ONE_BY_ONE, build, network, resident_memory
from benchmarks.measure import compared
from benchmarks.results import provenance, save

BATCHES = {"resnet18": 16, "resnet50": 8, "densenet121": 8, "mobilenet_v3_large": 16, "vgg16": 4}
"""Images by model."""
SUBJECTS: dict[str, dict[str, tuple[str, str, int]]] = {
    "grad_cam": {"forward": ("forward", "", 1), "camlib": ("camlib", "grad_cam", 1)}
    | {"camlib, 10 classes": ("camlib", "grad_cam", 10)}
    | {peer: (peer, "grad_cam", 1) for peer in ("torchcam", "captum", "grad-cam")},
    "compare": {"forward": ("forward", "", 1), "camlib.compare": ("camlib", COMPARE, 1)}
    | {f"{library}, {ONE_BY_ONE}": (library, ONE_BY_ONE, 1) for library in ("camlib", "grad-cam")},
}
"""By result: library, method and number of classes of each subject."""


def cells(name: str, images: int, subjects: dict[str, tuple[str, str, int]], rounds: int) -> list[dict[str, Any]]:
    """One record for each subject on one model."""
    model, batch, layer = network(name, images)
    calls = {of: build(library, what, model, batch, layer, range(k))[1] for of, (library, what, k) in subjects.items()}
    held = {of: resident_memory(library, what, name, images, k) for of, (library, what, k) in subjects.items()}
    return [
        {"model": name, "images": images, "subject": of}
        | took
        | {"bytes": held[of], "memory": held[of] / held["forward"]}
        for of, took in compared(calls, rounds).items()
    ]


def main() -> None:
    """Measure, print, write the JSON."""
    for result, subjects in SUBJECTS.items():
        results = provenance("torch", "torchvision", "grad-cam", "torchcam", "captum") | {"rounds": 7, "cells": []}
        for name, images in BATCHES.items():
            results["cells"] += cells(name, images, subjects, results["rounds"])
            print(*results["cells"][-len(subjects) :], sep="\n", flush=True)
            save(result, results)


if __name__ == "__main__":
    main()
