"""Float32 beside bfloat16, eager beside compiled: what a precision and ``torch.compile`` give, on a CPU or a GPU.

Maps stay on the device; on a GPU CUDA events tell the time. camlib explains a compiled model eagerly, since hooks do
not fire in compiled code. The many passes of Score-CAM need no hook, so that ``forward=`` can compile those alone:
:func:`compiled_score`. What compiling takes is told apart.

Run it with ``benchmarks/run variants``, ``--device cuda`` on a GPU; it is a part of :mod:`benchmarks.suite`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.measure import Call

IMAGES = 16
"""That a pass holds: a batch, or a chunk of Score-CAM's masked images."""


def seconds_on(device: torch.device, call: Call) -> float:
    """The seconds of one call, until the device has done it: by CUDA events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def compiled_score(model: nn.Module, compiled: Any) -> camlib.ScoreCAM:
    """Score-CAM whose masked images run through a compiled network; the image itself, which has hooks, does not."""
    return camlib.ScoreCAM(
        model, "layer4", chunk_size=IMAGES, forward=lambda model, x: (compiled if len(x) == IMAGES else model)(x)
    )


def subjects_of(name: str, side: int, device: torch.device) -> dict[str, tuple[int, Call]]:
    """Each call with the number of images that it is for."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    batch = torch.rand(IMAGES, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    image = batch[:1].contiguous()
    compiled = torch.compile(model, dynamic=False)

    def bare(network: Any) -> Call:
        def call() -> Tensor:
            with torch.no_grad():
                made: Tensor = network(batch)
                return made

        return call

    grad_cam = camlib.GradCAM(model, "layer4")
    score, ablation = camlib.ScoreCAM(model, "layer4", chunk_size=IMAGES), camlib.AblationCAM(model, "layer4")
    through_compiled = compiled_score(model, compiled)
    return {
        "forward": (IMAGES, bare(model)),
        "forward, compiled": (IMAGES, bare(compiled)),
        "grad_cam": (IMAGES, lambda: grad_cam(batch, 0)),
        "compare": (IMAGES, lambda: camlib.compare(model, batch, target=0, layer="layer4")),
        "ablation_cam": (1, lambda: ablation(image, 0)),
        "score_cam": (1, lambda: score(image, 0)),
        "score_cam, compiled": (1, lambda: through_compiled(image, 0)),
    }


def in_turns(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each call in each round; the first call of each is told apart, as "NAME, first"."""
    found = {f"{name}, first": [seconds_on(device, call)] for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            found.setdefault(name, []).append(seconds_on(device, call))
    return found


def measured(name: str, side: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Seconds for each image by each subject in each precision, and beside the eager forward pass of that precision."""
    lines = []
    for precision in (torch.float32, torch.bfloat16):
        subjects = subjects_of(name, side, device)
        calls = {subject: call for subject, (_, call) in subjects.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            took = in_turns(calls, rounds, device)
        base = statistics.median(took["forward"]) / IMAGES
        for subject, (images, _) in subjects.items():
            each = statistics.median(took[subject]) / images
            lines.append(
                {
                    "model": name,
                    "precision": str(precision).removeprefix("torch."),
                    "subject": subject,
                    "seconds an image": each,
                    "forwards of time": each / base,
                    "seconds of the first call": took[f"{subject}, first"][0],
                }
            )
            print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="resnet18", choices=("resnet18", "resnet50"))
    parser.add_argument("--side", type=int, default=224)
    arguments = parser.parse_args()
    measured(arguments.model, arguments.side, arguments.rounds, torch.device(arguments.device))


if __name__ == "__main__":
    main()
