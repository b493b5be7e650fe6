"""Every method on seven networks, by camlib and by each peer that has it: time, peak memory and forward passes.

Subjects take turns; times are medians over rounds of the ratio to a bare ``inference_mode`` forward pass of the same
images in the same round. Peak memory is that of live tensors. What costs too much is not run, and said so. The goals of
the perturbation methods come first, in full; then how time grows, and both precisions, eager and compiled.

Run it with ``benchmarks/run suite`` (forty minutes at most), or in that environment ``python -m benchmarks.suite
--quick`` (five); it writes ``benchmarks/results/suite.json`` after every cell, and at the end the tables and the figure
of :mod:`benchmarks.report`. On a GPU: ``--device cuda``; maps stay there.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks import perturbation, report, subjects, variants
from benchmarks.measure import Call, forwards, ratio, seconds, tensor_peak
from benchmarks.provenance import provenance
from camlib.comparison import DEFAULT_METHODS

MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "vgg16", "convnext_tiny", "vit_b_16")
OF_PERTURBATION = ("resnet18", "resnet50")
CAP = 60.0
"""Seconds that one call may take."""
PERTURBATION = {"score_cam", "ss_cam", "is_cam", "ablation_cam", "rise", "occlusion"}
LARGER = {8: (*DEFAULT_METHODS, subjects.COMPARE), 32: ("grad_cam", subjects.COMPARE)}
"""The methods that are measured on more than one image, by how many."""
LEFT_OUT = [
    "perturbation methods: one image, ResNet-18 and ResNet-50, one class",
    "8 images: the methods of camlib.compare alone, of the peers' Grad-CAM alone, one round",
    "32 images: Grad-CAM and camlib.compare alone, one round",
    "10 classes: one image, one round, and of the peers' methods Grad-CAM alone, a call for each class",
]


class Plan(NamedTuple):
    """How much is measured."""

    models: tuple[str, ...]
    methods: tuple[str, ...]
    side: int
    rounds: int
    goals: dict[str, int]
    """Rounds by the goal's method and model."""
    growth: dict[str, tuple[int, ...]]
    variants: tuple[str, ...]
    """The models that are measured in both precisions, eager and compiled."""


FULL = Plan(
    MODELS,
    tuple(camlib.METHODS),
    224,
    3,
    {"ablation_cam, resnet18": 3, "score_cam, resnet18": 3, "ablation_cam, resnet50": 1},
    {"images": (1, 2, 4, 8, 16, 32), "channels": (32, 64, 128, 256, 512, 1024, 2048), "classes": (1, 3, 10, 30, 100)},
    ("resnet18",),
)
QUICK = FULL._replace(
    models=("resnet18", "mobilenet_v3_large"),
    methods=("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam", "full_grad", "ablation_cam", "occlusion"),
    rounds=2,
    goals={"ablation_cam, resnet18": 1},
    growth={"images": (1, 4, 16), "channels": (32, 128, 512), "classes": (1, 10)},
    variants=(),
)
SMOKE = QUICK._replace(
    models=("resnet18",), side=64, rounds=1, goals={}, growth={"images": (1, 2), "channels": (8, 16), "classes": (1, 2)}
)
PLANS = {"full": FULL, "quick": QUICK, "smoke": SMOKE}


class Bench:
    """What has been measured, in a file at all times, and the time that is left."""

    def __init__(self, path: Path, results: dict[str, Any], minutes: float) -> None:
        self._path = path
        self.results = results
        self._deadline = time.monotonic() + 60 * minutes

    def refused(self, cost: float, calls: int) -> str | None:
        """Why calls of so many seconds each are not run, if they are not."""
        if cost > CAP:
            return f"not run: cost (about {cost:.0f} s)"
        if time.monotonic() + cost * calls > self._deadline:
            return "not run: time"
        return None

    def write(self) -> None:
        """Bring the file up to date."""
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(self.results, indent=1) + "\n")


def network(name: str, images: int, side: int, device: torch.device) -> tuple[nn.Module, Tensor, str]:
    """The model with random weights, its images, and the layer that camlib finds."""
    torch.manual_seed(0)
    options = {"image_size": side} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval().to(device)
    batch = torch.rand(images, 3, side, side, device=device)
    for module in model.modules():  # the peers' hooks meet in-place layers; the same network for everybody
        if isinstance(getattr(module, "inplace", None), bool) and name.startswith("vgg"):
            module.inplace = False
    return model, batch, camlib.find_layer(model, batch[:1])


def finished(call: Call, device: torch.device) -> Call:
    """The call, until the device has done what it says."""
    if device.type != "cuda":
        return call

    def to_the_end() -> Any:
        made = call()
        torch.cuda.synchronize(device)
        return made

    return to_the_end


def methods_of(plan: Plan, name: str, images: int, classes: int) -> Iterator[tuple[str, list[str]]]:
    """The methods that are measured on a model, each with the libraries."""
    for method in (*plan.methods, subjects.COMPARE):
        if method in PERTURBATION and (images > 1 or classes > 1 or name not in OF_PERTURBATION):
            continue
        if images > 1 and method not in LARGER[images]:
            continue
        with_peers = method == "grad_cam" or (images == 1 and classes == 1)
        yield method, subjects.libraries(method) if with_peers else ["camlib"]


def turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call in each round, in which they take turns; each has been called before."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def first(model: nn.Module, call: Call, base: int) -> dict[str, float]:
    """What a call's first run tells: images that run through the network, and live tensors beside a bare pass's."""
    peaks: list[int] = []
    count = forwards(model, lambda: peaks.append(tensor_peak(call)))
    return {"images through the network": count, "memory": peaks[0] / base}


def cells(bench: Bench, plan: Plan, name: str, images: int, classes: int, device: torch.device) -> None:
    """Measure every method on one model, and add what was seen to the results."""
    model, batch, layer = network(name, images, plan.side, device)
    bare = finished(subjects.bare(model, batch), device)
    base = tensor_peak(bare)
    forward = statistics.median(turns({"": bare}, 3)[""])
    with torch.no_grad(), camlib.capture(model, layer) as captured:
        model(batch[:1])
    channels = captured.activations.shape[1]
    for method, libraries in methods_of(plan, name, images, classes):
        calls: dict[str, Call] = {"forward": bare}
        row: dict[str, dict[str, Any]] = {}
        rows = max(subjects.rows(library, method, channels, plan.side) for library in libraries)
        rounds = plan.rounds if rows <= 100 and images == classes == 1 else 1
        for library in libraries:
            many = max(subjects.rows(library, method, channels, plan.side), 3 * (1 if library == "camlib" else classes))
            if refusal := bench.refused(forward * many, 1 + rounds):
                row[library] = {"left out": refusal}
                continue
            try:
                own, call = subjects.build(library, method, model, batch, layer, classes)
                row[library] = first(own, call, base)
                calls[library] = finished(call, device)
            except subjects.NotOfferedError as error:
                row[library] = {"left out": f"not offered: {error}"}
            except Exception as error:  # a peer that fails must not end the run
                row[library] = {"left out": f"fails: {type(error).__name__}: {str(error).partition(chr(10))[0][:90]}"}
        took = turns(calls, rounds)
        for library in calls.keys() - {"forward"}:
            row[library] |= {
                "seconds": statistics.median(took[library]),
                "time": ratio(took[library], took["forward"]),
                "rounds": rounds,
            }
        where = {"model": name, "layer": layer, "images": images, "classes": classes, "method": method}
        for library, seen in row.items():
            bench.results["cells"].append(where | {"library": library} | seen)
            say = seen.get("left out") or f"{seen['time']:.2f} forwards of time, {seen['memory']:.2f} of memory"
            print(f"{name} x {images}, {classes} classes: {method}, {library}: {say}", flush=True)
        bench.write()
        gc.collect()


def goal(what: str, asked: float, seen: float, *, at_most: bool = False) -> dict[str, Any]:
    """One line of what was asked and seen."""
    return {
        "what": what,
        "asked": asked,
        "at most": at_most,
        "seen": seen,
        "met": (seen <= asked) is at_most or seen == asked,
    }


def goals(bench: Bench, plan: Plan) -> None:
    """What the perturbation methods were to reach, on the networks and in the rounds of the plan."""
    lines: list[dict[str, Any]] = bench.results["goals"]
    for name, rounds in plan.goals.items():
        method, _, model = name.partition(", ")
        if method == "ablation_cam":
            seen = perturbation.ablation(model, rounds)
            lines += [
                goal(
                    f"{name}: times faster than grad-cam",
                    {"resnet18": 100, "resnet50": 50}[model],
                    seen["times faster than grad-cam"],
                ),
                goal(f"{name}: maps apart", 1e-4, seen["maps apart"], at_most=True),
            ]
        else:
            seen = perturbation.score(model, rounds)
            lines += [
                goal(f"{name}: times faster than the faster peer", 1.25, seen["times faster"]),
                goal(f"{name}: the same in bfloat16", 2.2, seen["times faster in bfloat16"]),
                goal(f"{name}: rank correlation of bfloat16", 0.99, seen["rank correlation of bfloat16"]),
                goal(f"{name}: memory of torchcam's", 0.6, seen["memory of torchcam's"], at_most=True),
                goal(f"{name}: memory of grad-cam's", 0.3, seen["memory of grad-cam's"], at_most=True),
            ]
        bench.results["goals' measurements"][name] = seen | {"rounds": rounds}
        bench.write()
    for line in lines:
        sign = "at most" if line["at most"] else "at least"
        print(
            f"{line['what']}: {line['seen']:.3g}, asked {sign} {line['asked']}: {'met' if line['met'] else 'NOT met'}"
        )


class Pooled(nn.Sequential):
    """A synthetic network whose last features have as many channels as wanted."""

    def __init__(self, channels: int) -> None:
        features = nn.Sequential(nn.Conv2d(3, channels, 32, 32), nn.ReLU())
        super().__init__(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def growth(bench: Bench, plan: Plan, device: torch.device) -> None:
    """Seconds against the number of images and classes (Grad-CAM, ResNet-18) and channels (Ablation-CAM, synthetic)."""
    torch.manual_seed(0)
    made: Callable[[int], tuple[str, nn.Module, Tensor, str, int]]
    for what, made in (
        ("images", lambda n: ("grad_cam", *network("resnet18", n, plan.side, device), 1)),
        ("classes", lambda k: ("grad_cam", *network("resnet18", 1, plan.side, device), k)),
        (
            "channels",
            lambda c: (
                "ablation_cam",
                Pooled(c).eval().to(device),
                torch.rand(1, 3, plan.side, plan.side, device=device),
                "0",
                1,
            ),
        ),
    ):
        for number in plan.growth[what]:
            if bench.refused(1, 10):
                continue
            method, model, batch, layer, classes = made(number)
            calls = {"forward": finished(subjects.bare(model, batch), device)}
            for library in ("camlib", "grad-cam"):
                calls[library] = finished(subjects.build(library, method, model, batch, layer, classes)[1], device)
            took = seconds(calls, plan.rounds if number < 30 else 1)
            medians = {library: statistics.median(found) for library, found in took.items()}
            bench.results["growth"].append({"of": what, "number": number, "seconds": medians})
            print(f"{what}, {number}:", medians, flush=True)
        bench.write()


def overlays(bench: Bench, plan: Plan) -> None:
    """Images per second of camlib.overlay, and of OpenCV alone, which colours and blends the same."""
    picture = np.random.default_rng(0).integers(0, 256, (plan.side, plan.side, 3), np.uint8)
    heatmap = np.random.default_rng(1).random((plan.side, plan.side), np.float32)

    def opencv() -> Any:
        colours = cv2.applyColorMap((255 * heatmap).astype(np.uint8), cv2.COLORMAP_JET)
        return cv2.addWeighted(picture, 0.5, cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), 0.5, 0)

    calls: dict[str, Call] = {"camlib.overlay": lambda: camlib.overlay(picture, heatmap), "cv2": opencv}
    bench.results["overlays per second"] = {
        name: 1 / statistics.median(found) for name, found in seconds(calls, 50 * plan.rounds).items()
    }
    print(bench.results["overlays per second"], flush=True)
    bench.write()


def main() -> None:
    """Measure, print, write the JSON, the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", dest="plan", action="store_const", const="quick", default="full")
    parser.add_argument("--smoke", dest="plan", action="store_const", const="smoke", help="that it runs at all")
    parser.add_argument("--minutes", type=float, help="after which no cell is begun: 40, or 5 with --quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="a folder for all that is written, instead of the project's own")
    arguments = parser.parse_args()
    plan, device = PLANS[arguments.plan], torch.device(arguments.device)
    results: dict[str, Any] = provenance("torch", "torchvision", "grad-cam", "torchcam", "captum") | {
        "plan": plan._asdict() | {"name": arguments.plan},
        "left out": LEFT_OUT,
        "goals": [],
        "goals' measurements": {},
        "cells": [],
        "growth": [],
        "variants": [],
    }
    native = torch.cpu._is_avx512_bf16_supported()
    results["machine"] += f", native bfloat16: {native}"
    if device.type == "cuda":
        results["machine"] += f", {torch.cuda.get_device_name(device)}"
    print(results["machine"], results["versions"], flush=True)
    results_folder, docs, page = report.places(arguments.output)
    bench = Bench(results_folder / "suite.json", results, arguments.minutes or (40 if plan is FULL else 5))
    warnings.simplefilter("ignore")
    start = time.monotonic()
    if device.type == "cpu":
        goals(bench, plan)
    overlays(bench, plan)
    growth(bench, plan, device)
    for name in plan.variants:
        results["variants"] += variants.measured(name, plan.side, max(plan.rounds - 1, 1), device)
        bench.write()
    for images, classes in ((1, 1), (1, 10), (8, 1), (32, 1)):
        for name in plan.models:
            cells(bench, plan, name, images, classes, device)
    results["minutes"] = (time.monotonic() - start) / 60
    bench.write()
    report.write(results, page, docs, results_folder)


if __name__ == "__main__":
    main()
