"""Grad-CAM beside a bare forward pass and beside the peers: time and peak memory, as ratios from one run.

Every subject explains class 0 of the same images on its own copy of the model, at the layer camlib finds. Times
are medians over rounds in which the subjects take turns; peak memory is measured in a fresh process for each.

Run it with ``benchmarks/run grad_cam``; it writes ``benchmarks/results/grad_cam.json``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.provenance import provenance

MODELS = {"resnet18": 16, "resnet50": 8, "densenet121": 8, "mobilenet_v3_large": 16, "vgg16": 4}
"""Batch size by model, images of 224 x 224."""

Call = Callable[[], Any]


def bare(model: nn.Module, images: Tensor, layer: str) -> Call:
    """The forward pass alone, in inference mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return call


def camlib_one(model: nn.Module, images: Tensor, layer: str) -> Call:
    """camlib, one class for each image."""
    cam = camlib.GradCAM(model, layer)
    return lambda: cam(images, 0)


def camlib_ten(model: nn.Module, images: Tensor, layer: str) -> Call:
    """camlib, ten classes for each image."""
    cam = camlib.GradCAM(model, layer)
    return lambda: cam(images, camlib.TopK(10))


def torchcam(model: nn.Module, images: Tensor, layer: str) -> Call:
    """torchcam: a forward pass with its hooks, then the extractor."""
    from torchcam.methods import GradCAM

    extractor = GradCAM(model, target_layer=layer)
    return lambda: extractor([0] * len(images), model(images))


def captum(model: nn.Module, images: Tensor, layer: str) -> Call:
    """Captum's LayerGradCam."""
    from captum.attr import LayerGradCam

    explainer = LayerGradCam(model, model.get_submodule(layer))
    return lambda: explainer.attribute(images, target=0, relu_attributions=True)


def grad_cam(model: nn.Module, images: Tensor, layer: str) -> Call:
    """pytorch-grad-cam."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = GradCAM(model=model, target_layers=[model.get_submodule(layer)])
    targets = [ClassifierOutputTarget(0) for _ in images]
    return lambda: explainer(input_tensor=images, targets=targets)


SUBJECTS: dict[str, Callable[[nn.Module, Tensor, str], Call]] = {
    "forward": bare,
    "camlib": camlib_one,
    "camlib, 10 classes": camlib_ten,
    "torchcam": torchcam,
    "captum": captum,
    "grad-cam": grad_cam,
}


def build(name: str) -> tuple[nn.Module, Tensor, str]:
    """The model with random weights, its images, and the layer that camlib finds."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.rand(MODELS[name], 3, 224, 224)
    layer = camlib.find_layer(model, images)
    for module in model.modules():  # the peers' hooks meet in-place layers; the same network for everybody
        if isinstance(getattr(module, "inplace", None), bool) and name.startswith("vgg"):
            module.inplace = False
    return model, images, layer


def times(name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every subject in every round; a peer that fails on the model is left out."""
    model, images, layer = build(name)
    calls: dict[str, Call] = {}
    for subject, make in SUBJECTS.items():
        try:
            call = make(copy.deepcopy(model), images, layer)
            call()
            calls[subject] = call
        except Exception as error:
            print(f"  {subject} fails on {name} at {layer}: {type(error).__name__}: {str(error)[:90]}")
    seconds: dict[str, list[float]] = {subject: [] for subject in calls}
    for _ in range(rounds):
        for subject, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[subject].append(time.perf_counter() - start)
    return seconds


def peak_memory(name: str, subject: str) -> float:
    """Bytes at the peak of one call over what the process held before it, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grad_cam", "--peak", name, subject]
    # Every large tensor in pages of its own, handed back when it dies: the resident memory is then what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def measure_peak(name: str, subject: str) -> float:
    """Run in the process of :func:`peak_memory`: sample the resident memory while the call runs."""
    model, images, layer = build(name)
    call = SUBJECTS[subject](model, images, layer)
    call()  # what a first call alone allocates is not counted
    gc.collect()
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def sample() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.0005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    call()
    done.set()
    sampler.join()
    return float(highest - before)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "SUBJECT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(measure_peak(*arguments.peak))
        return
    results: dict[str, Any] = provenance("torch", "torchvision", "grad-cam", "torchcam", "captum") | {
        "rounds": arguments.rounds,
        "models": {},
    }
    print(f"{results['machine']}; {results['versions']}\ntime and (peak memory), relative to a bare forward pass")
    print(f"{'':26}" + "".join(f"{subject:>20}" for subject in SUBJECTS if subject != "forward"))
    for name, batch in MODELS.items():
        if name not in arguments.models:
            continue
        seconds = times(name, arguments.rounds)
        memory = {subject: peak_memory(name, subject) for subject in seconds}
        row = {
            subject: {
                "seconds": statistics.median(seconds[subject]),
                "time": statistics.median(
                    own / base for own, base in zip(seconds[subject], seconds["forward"], strict=True)
                ),
                "bytes": memory[subject],
                "memory": memory[subject] / memory["forward"],
            }
            for subject in seconds
        }
        results["models"][name] = {"batch": batch, "subjects": row}
        cells = (
            f"{row[subject]['time']:11.2f} ({row[subject]['memory']:5.2f})" if subject in row else f"{'fails':>19}"
            for subject in SUBJECTS
            if subject != "forward"
        )
        forward = row["forward"]["seconds"]
        print(f"{name + f' x {batch}':20}{forward:5.2f}s" + " ".join(f"{cell:>20}" for cell in cells), flush=True)
        path = Path(__file__).parent / "results" / "grad_cam.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
