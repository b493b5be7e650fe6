"""A small network, transforms and pictures for the tests of runs; `python -m tests.datasets.small` kills runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import camlib


class Scaled:
    """Resize to a size and scale to [0, 1]."""

    def __init__(self, size=(24, 24)):
        self.size = size

    def __call__(self, picture):
        values = np.asarray(picture.resize(self.size[::-1], Image.Resampling.BILINEAR), np.float32) / 255
        return torch.from_numpy(values).permute(2, 0, 1)


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def pictures(folder, count, size=(30, 40)):
    """Write pictures, of which some are damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    random_numbers = np.random.default_rng(0)
    for number in range(count):
        values = random_numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number:04d}.png")
        if number % 17 == 5:
            content = (folder / f"{number:04d}.png").read_bytes()
            (folder / f"{number:04d}.png").write_bytes(content[: len(content) // 2])
    return folder


def explained(source, out, **options):
    """Run on pictures, with small batches."""
    chosen = {"transforms": Scaled(), "batch_size": 4, "shard_size": 8, "progress": False, **options}
    return camlib.explain_dataset(camlib.GradCAM(network(), "1"), source, out, **chosen)


def contents(out):
    """Everything in the folder of a run, by name."""
    return {str(path.relative_to(out)): path.read_bytes() if path.is_file() else b"" for path in sorted(out.rglob("*"))}


def rows(run):
    """The rows of a run as plain values."""
    return [(row.number, row.path, row.classes, row.scores, row.map.tolist(), row.heatmap().tolist()) for row in run]


def _child(source, out, storage, loaded=None):
    process = os.fork()
    if process == 0:
        status = 1
        try:
            explained(source, out, storage=storage, workers=2)
            if loaded:
                loaded.write_text(json.dumps(list(sys.modules)))
            status = 0
        finally:
            os._exit(status)
    return process


def kill_at_random_moments(folder, storage, trials, seed):
    """Print for each trial how many batches were done when the run was killed, and then let it end.

    This process imports what a run needs, which takes longer than the run, and runs nothing itself: it has no threads
    and may fork.
    """
    folder, moments, done = Path(folder), random.Random(seed), []
    assert os.waitpid(_child(folder / "in", folder / "first", storage, folder / "modules"), 0)[1] == 0
    for name in json.loads((folder / "modules").read_text()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    begin = time.monotonic()
    assert os.waitpid(_child(folder / "in", folder / "whole", storage), 0)[1] == 0
    length = time.monotonic() - begin
    for trial in range(trials):
        out = folder / f"trial{trial}"
        for share in (moments.uniform(0, 0.5), moments.uniform(0.2, 1)):
            process = _child(folder / "in", out, storage)
            time.sleep(share * length)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            manifest = out / "manifest.jsonl"
            done.append(manifest.read_bytes().count(b'"batches":') if manifest.exists() else 0)
        assert os.waitpid(_child(folder / "in", out, storage), 0)[1] == 0
    print(json.dumps(done))


if __name__ == "__main__":
    kill_at_random_moments(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
