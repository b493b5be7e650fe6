"""Grad-CAM and ``camlib.compare`` on batches of images, by camlib and its peers: time and resident memory.

Each is a ratio to a bare forward pass. Subjects take turns, each on its own copy of the model; times are medians over
rounds; memory is measured in a new process for each. ``benchmarks/run batches`` writes ``grad_cam.json`` and
``compare.json`` in ``benchmarks/results``.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.libraries import COMPARE, ONE_BY_ONE, build, network, resident_memory
from benchmarks.measure import in_turns, ratio
from benchmarks.results import provenance, save

BATCHES = {"resnet18": 16, "resnet50": 8, "densenet121": 8, "mobilenet_v3_large": 16, "vgg16": 4}
"""Images by model."""
SUBJECTS: dict[str, dict[str, tuple[str, str, int]]] = {
    "grad_cam": {
        "forward": ("forward", "", 1),
        "camlib": ("camlib", "grad_cam", 1),
        "camlib, 10 classes": ("camlib", "grad_cam", 10),
        "torchcam": ("torchcam", "grad_cam", 1),
        "captum": ("captum", "grad_cam", 1),
        "grad-cam": ("grad-cam", "grad_cam", 1),
    },
    "compare": {
        "forward": ("forward", "", 1),
        "camlib.compare": ("camlib", COMPARE, 1),
        "camlib, one by one": ("camlib", ONE_BY_ONE, 1),
        "grad-cam, one by one": ("grad-cam", ONE_BY_ONE, 1),
    },
}
"""By result: library, method and number of classes of each subject."""


def cells(name: str, images: int, subjects: dict[str, tuple[str, str, int]], rounds: int) -> list[dict[str, Any]]:
    """One record for each subject on one model."""
    model, batch, layer = network(name, images)
    calls = {
        subject: build(library, method, model, batch, layer, range(classes))[1]
        for subject, (library, method, classes) in subjects.items()
    }
    for call in calls.values():
        call()
    took = in_turns(calls, rounds)
    held = {of: resident_memory(library, method, name, images, k) for of, (library, method, k) in subjects.items()}
    return [
        {"model": name, "images": images, "subject": subject, "seconds": statistics.median(took[subject])}
        | {"time": ratio(took[subject], took["forward"]), "bytes": held[subject]}
        | {"memory": held[subject] / held["forward"]}
        for subject in subjects
    ]


def main(rounds: int = 7) -> None:
    """Measure, print, write the JSON."""
    for result, subjects in SUBJECTS.items():
        results = provenance("torch", "torchvision", "grad-cam", "torchcam", "captum") | {"rounds": rounds, "cells": []}
        for name, images in BATCHES.items():
            results["cells"] += cells(name, images, subjects, rounds)
            print(*results["cells"][-len(subjects) :], sep="\n", flush=True)
            save(result, results)


if __name__ == "__main__":
    main()
