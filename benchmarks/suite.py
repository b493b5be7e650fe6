"""Every method on seven networks, by camlib and by each peer that offers it: time, peak memory and forward passes.

Subjects take turns; times are medians over rounds of the ratio to a bare ``inference_mode`` forward pass of the same
images in the same round. Peak memory is that of live tensors. A call that would take over a minute is not run. The
goals of the perturbation methods come first; then overlays, how time grows, and both precisions, eager and compiled.

``benchmarks/run suite`` takes forty minutes at most, and writes ``suite.json`` in ``benchmarks/results`` after every
cell. ``python -m benchmarks.suite --device cuda`` measures on a GPU; maps stay there.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

import camlib
from benchmarks import results
from benchmarks.libraries import COMPARE, PERTURBING, NotOfferedError, build, network, offering, resident_memory
from benchmarks.libraries import expected_passes as expected
from benchmarks.measure import Call, compared, in_turns, passes, ratio, tensor_peak
from camlib.comparison import DEFAULT_METHODS
from camlib.metrics.similarity import spearman

MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "vgg16", "convnext_tiny", "vit_b_16")
CAP = 60.0
"""Seconds that one call may take."""
LARGER = {8: (*DEFAULT_METHODS, COMPARE), 32: ("grad_cam", COMPARE)}
"""The methods that are measured on more than one image, by how many."""
GROWTH = {
    "images": (1, 2, 4, 8, 16, 32),
    "classes": (1, 3, 10, 30, 100),
    "channels": (32, 64, 128, 256, 512, 1024, 2048),
}
GOALS: dict[tuple[str, str, int], dict[str, float]] = {
    ("ablation_cam", "resnet18", 3): {"times faster than grad-cam": 100, "maps apart": 1e-4},
    ("score_cam", "resnet18", 3): {"times faster than the faster peer": 1.25, "the same in bfloat16": 2.2}
    | {"rank correlation of bfloat16": 0.99, "memory of torchcam's": 0.6, "memory of grad-cam's": 0.3},
    ("ablation_cam", "resnet50", 1): {"times faster than grad-cam": 50, "maps apart": 1e-4},
}
"""By method, model and rounds, what was to be reached: lower bounds, but for memory and distances."""
CHUNK = 16
"""Images in a pass when precisions are compared: a batch, or a chunk of Score-CAM's masked images."""


class Suite:
    """What has been measured so far, which is in the file at all times, and the time that is left."""

    def __init__(self, found: dict[str, Any], device: str = "cpu", side: int = 224, minutes: float = 40) -> None:
        self.found = found | {name: [] for name in ("goals", "cells", "growth", "overlays", "variants")}
        self.device, self.side, self.rounds = device, side, 3
        self._start, self._minutes = time.monotonic(), minutes

    def add(self, what: str, *records: Any) -> None:
        """Print records, and write the file with them."""
        self.found[what] += records
        self.found["minutes"] = (time.monotonic() - self._start) / 60
        print(what, *records, sep="\n  ", flush=True)
        results.save("suite", self.found)

    def refusal(self, cost: float, calls: int) -> str | None:
        """Why calls of so many seconds each are not run, if they are not."""
        if cost > CAP:
            return f"not run: cost (about {cost:.0f} s)"
        return "not run: time" if time.monotonic() - self._start + cost * calls > 60 * self._minutes else None

    def cells(self, name: str, images: int, classes: int) -> None:
        """Every method on one model, by each library."""
        model, batch, layer = network(name, images, self.side, self.device)
        _, bare = build("forward", "", model, batch, layer, [0])
        base, forward = tensor_peak(bare), statistics.median(in_turns({"": bare}, 3, self.device)[""])
        with torch.no_grad(), camlib.capture(model, layer) as captured:
            model(batch[:1])
        channels = captured.activations.shape[1]
        for method, libraries in measured(name, images, classes):
            calls: dict[str, Call] = {"forward": bare}
            row: dict[str, dict[str, Any]] = {}
            counts = {library: expected(library, method, channels, self.side) for library in libraries}
            rounds = self.rounds if max(counts.values()) <= 100 and images == classes == 1 else 1
            for library, count in counts.items():
                cost = forward * max(count, 3 * (1 if library == "camlib" else classes))
                if refusal := self.refusal(cost, 1 + rounds):
                    row[library] = {"left out": refusal}
                    continue
                row[library], call = first(library, method, model, batch, layer, classes, base)
                calls |= {library: call} if call else {}
            took = in_turns(calls, rounds, self.device)
            for library in took.keys() - {"forward"}:
                row[library] |= {"seconds": statistics.median(took[library]), "rounds": rounds}
                row[library] |= {"time": ratio(took[library], took["forward"])}
            where = {"model": name, "layer": layer, "images": images, "classes": classes, "method": method}
            self.add("cells", *(where | {"library": library} | seen for library, seen in row.items()))
            gc.collect()

    def goals(self) -> None:
        """What the perturbation methods were to reach."""
        for (method, name, rounds), goals in GOALS.items():
            seen = perturbation(method, name, rounds)
            for what, asked in goals.items():
                upper = "memory" in what or "apart" in what
                met = seen[what] <= asked if upper else seen[what] >= asked
                line = {"what": f"{method}, {name}: {what}", "asked": asked, "seen": seen[what]}
                self.add("goals", line | {"met": "yes" if met else "no", "bound": "at most" if upper else "at least"})

    def growth(self) -> None:
        """Seconds against the number of images and classes (Grad-CAM) and channels (Ablation-CAM, synthetic)."""
        for what, number in ((what, number) for what, numbers in GROWTH.items() for number in numbers):
            model, batch, layer = network("resnet18", number if what == "images" else 1, self.side, self.device)
            if what == "channels":
                model, layer = pooled(number).to(self.device), "0"
            method, classes = "ablation_cam" if what == "channels" else "grad_cam", number if what == "classes" else 1
            libraries = ("forward", "camlib", "grad-cam")
            calls = {of: build(of, method, model, batch, layer, range(classes))[1] for of in libraries}
            took = compared(calls, self.rounds if number < 30 else 1, self.device)
            self.add("growth", {"of": what, "number": number, "seconds": {of: took[of]["seconds"] for of in took}})

    def precisions(self, name: str) -> None:
        """Seconds per image in both precisions, relative to the eager forward pass of that precision."""
        for precision in ("float32", "bfloat16"):
            images, calls = precision_calls(name, self.side, self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=precision == "bfloat16"):
                took = compared(calls, self.rounds - 1, self.device)
            for subject, one in took.items():
                line: dict[str, Any] = {"model": name, "precision": precision, "subject": subject}
                line |= {"seconds an image": one["seconds"] / images[subject]}
                line |= {"forwards of time": one["time"] * CHUNK / images[subject]}
                self.add("variants", line | {"seconds of the first call": one["seconds of the first call"]})

    def overlays(self) -> None:
        """Images per second of camlib.overlay, and of OpenCV alone, which colors and blends the same."""
        picture = np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), np.uint8)
        heatmap = np.random.default_rng(1).random((self.side, self.side), np.float32)

        def opencv() -> Any:
            colors = cv2.applyColorMap((255 * heatmap).astype(np.uint8), cv2.COLORMAP_JET)
            return cv2.addWeighted(picture, 0.5, cv2.cvtColor(colors, cv2.COLOR_BGR2RGB), 0.5, 0)

        took = compared({"camlib.overlay": lambda: camlib.overlay(picture, heatmap), "cv2": opencv}, 150)
        self.add("overlays", *({"subject": name, "per second": 1 / one["seconds"]} for name, one in took.items()))


def measured(name: str, images: int, classes: int) -> Iterator[tuple[str, list[str]]]:
    """The methods that are measured on a model, each with the libraries."""
    for method in (*camlib.METHODS, COMPARE):
        if method in PERTURBING and (images > 1 or classes > 1 or name not in ("resnet18", "resnet50")):
            continue
        if images == 1 or method in LARGER[images]:
            yield method, offering(method) if method == "grad_cam" or images == classes == 1 else ["camlib"]


def first(
    library: str, method: str, model: nn.Module, batch: Tensor, layer: str, classes: int, base: int
) -> tuple[dict[str, Any], Call | None]:
    """A call, and its first run: images through the network, live tensors relative to a bare pass; or why it fails."""
    peaks: list[int] = []
    try:
        own, call = build(library, method, model, batch, layer, range(classes))
        count = passes(own, lambda: peaks.append(tensor_peak(call)))
    except NotOfferedError as error:
        return {"left out": f"not offered: {error}"}, None
    except Exception as error:  # a peer that fails must not end the run
        says = str(error).partition("\n")[0][:90]
        return {"left out": f"fails: {type(error).__name__}: {says}"}, None
    return {"images through the network": count, "memory": peaks[0] / base}, call


def pooled(channels: int) -> nn.Module:
    """A synthetic network whose last feature map has so many channels."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, channels, 32, 32), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)).eval()


def perturbation(method: str, name: str, rounds: int) -> dict[str, float]:
    """Ablation-CAM or Score-CAM of the predicted class, whose logit is positive, and the peers' on the same image."""
    model, image, layer = network(name, 1)
    with torch.no_grad():
        category = int(model(image).argmax())
    peers = offering(method)[1:]
    calls = {of: build(of, method, model, image, layer, [category])[1] for of in ("camlib", *peers)}

    def in_bfloat16() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return calls["camlib"]()

    exact, half, theirs = calls["camlib"]().maps, in_bfloat16().maps, calls["grad-cam"]()[0]
    took = in_turns(calls | {"bfloat16": in_bfloat16}, rounds)
    faster = min((took[peer] for peer in peers), key=statistics.median)
    seen = {
        "times faster than grad-cam": ratio(took["grad-cam"], took["camlib"]),
        "times faster than the faster peer": ratio(faster, took["camlib"]),
        "the same in bfloat16": ratio(faster, took["bfloat16"]),
        "rank correlation of bfloat16": float(spearman(exact, half)),
        "maps apart": apart(exact, torch.from_numpy(theirs)),
    }
    if method == "score_cam":
        own = resident_memory("camlib", method, name)
        seen |= {f"memory of {peer}'s": own / resident_memory(peer, method, name) for peer in peers}
    return seen


def apart(maps: Tensor, others: Tensor) -> float:
    """The largest difference of two maps, each scaled to 0 to 1 and resized to the second one's size."""
    sized = camlib.resize(maps.float(), tuple(others.shape[-2:])), others.float()
    one, other = (camlib.normalize(maps, "minmax") for maps in sized)
    return float((one - other).abs().max())


def precision_calls(name: str, side: int, device: str) -> tuple[dict[str, int], dict[str, Call]]:
    """The number of images that each call explains, and the calls.

    camlib runs a compiled model eagerly, because hooks do not fire in compiled code. The passes of Score-CAM's masked
    images need no hook, so that ``forward=`` can compile these alone.
    """
    model, batch, layer = network(name, CHUNK, side, device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    image, compiled = batch[:1].contiguous(), torch.compile(model, dynamic=False)

    def forward(model: Any, images: Tensor) -> Any:
        return (compiled if len(images) == CHUNK else model)(images)

    grad_cam, ablation = camlib.GradCAM(model, layer), camlib.AblationCAM(model, layer)
    score = camlib.ScoreCAM(model, layer, chunk_size=CHUNK)
    through_compiled = camlib.ScoreCAM(model, layer, chunk_size=CHUNK, forward=forward)
    calls: dict[str, Call] = {
        "forward": torch.no_grad()(lambda: model(batch)),
        "forward, compiled": torch.no_grad()(lambda: compiled(batch)),
        "grad_cam": lambda: grad_cam(batch, 0),
        "compare": lambda: camlib.compare(model, batch, target=0, layer=layer),
        "ablation_cam": lambda: ablation(image, 0),
        "score_cam": lambda: score(image, 0),
        "score_cam, compiled": lambda: through_compiled(image, 0),
    }
    alone = ("ablation_cam", "score_cam", "score_cam, compiled")
    return {subject: 1 if subject in alone else CHUNK for subject in calls}, calls


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40, help="no cell is begun later")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    found = results.provenance("torch", "torchvision", "grad-cam", "torchcam", "captum")
    found["machine"] += f", native bfloat16: {torch.cpu._is_avx512_bf16_supported()}"
    found["machine"] += f", {torch.cuda.get_device_name()}" if arguments.device == "cuda" else ""
    warnings.simplefilter("ignore")
    suite = Suite(found, arguments.device, minutes=arguments.minutes)
    if arguments.device == "cpu":
        suite.goals()
    suite.overlays()
    suite.growth()
    suite.precisions("resnet18")
    for images, classes in ((1, 1), (1, 10), (8, 1), (32, 1)):
        for name in MODELS:
            suite.cells(name, images, classes)


if __name__ == "__main__":
    main()
