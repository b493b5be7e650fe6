"""A run over 2,000 pictures of 224 px, end to end, next to decoding them and bare forward passes.

``python -m benchmarks.dataset_runs`` writes pictures into a temporary folder. Parts of 200 pictures are explained and
run bare in turns, so that other work on the machine meets both. What is compared is the CPU time of the process, with
that of its threads, of which the network has one; the ratio must be at most 1.3.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

import camlib
from benchmarks.results import provenance, save

COUNT, PART, BATCH = 2_000, 200, 32
LIMIT = 1.3
"""The highest ratio that is allowed."""


def photographs(folder: Path, count: int) -> list[Path]:
    """Write smooth random pictures of 224 px as JPEG."""
    random, files = np.random.default_rng(0), []
    for number in range(count):
        small = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        files.append(folder / f"{number:05d}.jpg")
        Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def bare(model: torch.nn.Module, transforms: Callable[[Any], torch.Tensor], files: list[Path]) -> None:
    """Decode the pictures, transform them, and run the model."""
    for start in range(0, len(files), BATCH):
        images = [transforms(Image.open(path).convert("RGB")) for path in files[start : start + BATCH]]
        with torch.inference_mode():
            model(torch.stack(images))


def measured(call: Callable[..., object], *given: Any) -> dict[str, float]:
    """The seconds of a call, on the clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*given)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    """Measure, print, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--storage", default="files", choices=["files", "parquet", "webdataset"])
    given = parser.parse_args()
    torch.set_num_threads(1)  # idle threads of a pool would count as CPU time
    model = torchvision.models.resnet18().eval()
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    explainer = camlib.GradCAM(model)
    took: dict[str, list[dict[str, float]]] = {"bare": [], "run": []}
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), given.count + PART)

        def run(number: int, part: list[Path]) -> object:
            return camlib.explain_dataset(
                explainer,
                part,
                Path(folder, f"run{number}"),
                transforms=transforms,
                batch_size=BATCH,
                workers=2,
                storage=given.storage,
                progress=False,
            )

        parts = [files[start : start + PART] for start in range(0, len(files), PART)]
        bare(model, transforms, parts[0])
        run(0, parts[0])  # imports, and finds the layer
        memory = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
        for number, part in enumerate(parts[1:], 1):
            took["bare"].append(measured(bare, model, transforms, part))
            took["run"].append(measured(run, number, part))
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            print(number, took["bare"][-1], took["run"][-1], flush=True)
        stored = sum(path.stat().st_size for path in Path(folder, "run1").rglob("*") if path.is_file()) / PART
    totals = {
        f"{name} {clock}": sum(one[clock] for one in parts_)
        for (name, parts_), clock in itertools.product(took.items(), ("wall", "cpu"))
    }
    result = {
        "images": given.count,
        "storage": given.storage,
        **totals,
        "ratio of CPU time": totals["run cpu"] / totals["bare cpu"],
        "ratio of wall time": totals["run wall"] / totals["bare wall"],
        "bytes an image": stored,
        "peak MiB after each part": [kib // 1024 for kib in memory],
    }
    print(result)
    save(f"dataset_{given.storage}", {**provenance(), "result": result})
    assert result["ratio of CPU time"] <= LIMIT, f"the run takes more than {LIMIT} times the CPU time"


if __name__ == "__main__":
    main()
