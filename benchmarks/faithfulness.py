"""How faithful are the methods, and which metrics separate them from baselines?

On phantoms, whose truth is known, explained on the network that the example trains on them at 128 px; and on crops of
scikit-image's photographs, explained on EfficientNet-Lite0. ``faithfulness.json``: every metric of Grad-CAM and of two
baselines, random weights and a Gaussian in the middle. A metric that does not prefer Grad-CAM may still be right.
``methods.json``: every method, by the metrics that separate Grad-CAM from the baselines, and by deletion, which most
papers report. Crops of one photograph are not independent: their intervals are too narrow.

``benchmarks/run faithfulness`` writes both in ``benchmarks/results``; it trains the network if ``runs/phantoms-128`` is
missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import camlib
from benchmarks import photographs
from benchmarks.results import provenance, save
from camlib.metrics import METRICS
from docs.gallery.efficientnet_lite0 import efficientnet_lite0

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "phantoms-128"
EXAMPLE = ROOT / "examples" / "pneumonia"
BASELINES = ("random_cam", "center_gaussian")
OPTIONS: dict[str, dict[str, Any]] = {
    "insertion": {"steps": 14},
    "deletion": {"steps": 14},
    "faithfulness_correlation": {"samples": 30},
    "sensitivity_n": {"samples": 10},
    "infidelity": {"samples": 10, "normalize": True},
    "pointing_game": {"tolerance": 3},
    "top_k_intersection": {"k": 200},
    "max_sensitivity": {"samples": 5},
    "average_sensitivity": {"samples": 5},
    "lipschitz_estimate": {"samples": 5},
}
"""Fewer passes than by default; and infidelity scales the heatmaps, which are no shares of the score."""
FEW = ("insertion", "deletion", "energy_pointing_game")
"""The metrics of every method."""
CROPS = 8
"""Of each photograph."""
OWN_LAYERS = ("cam", "refine_cam")
"""CAM reads the classifier's weights; RefineCAM finds its layers."""
Data = tuple[nn.Module, Tensor, Tensor, Any, str | None]
"""The network, its images, their masks, the target, and the layer."""


def phantoms(images: int) -> Data:
    """The trained network, sick test phantoms (N, 3, 128, 128), and the layer chosen on validation images."""
    if not (RUN / "metrics.json").exists():
        subprocess.run([sys.executable, EXAMPLE / "run.py", "--size", "128", "--output", RUN], check=True)
    sys.path.insert(0, str(EXAMPLE))
    from pneumonia.augment import prepare
    from pneumonia.checkpoint import read_checkpoint
    from pneumonia.sources import Source

    checkpoint = read_checkpoint(RUN / "checkpoint.pt")
    size = checkpoint.recipe.size
    sick = Source().read(size, checkpoint.recipe.seed).test.sick(images)
    masks, decision = sick.masks_at(size), checkpoint.decision
    assert masks is not None
    assert decision is not None
    return checkpoint.model, prepare(sick.pixels, size), masks, 1, decision.layer


def crops() -> Data:
    """The network, crops (N, 3, 224, 224) that hold the subject, and masks of its box."""
    generator = np.random.default_rng(0)
    inputs, masks, categories = [], [], []
    for photograph in photographs.PHOTOGRAPHS:
        picture = photograph.picture()
        x0, y0, x1, y1 = photograph.box
        whole = torch.from_numpy(picture).movedim(-1, 0)[None].float() / 127.5 - 1
        inside = torch.zeros(picture.shape[:2])
        inside[y0:y1, x0:x1] = 1
        for _ in range(CROPS):
            left, top = (int(generator.integers(0, start // 2 + 1)) for start in (x0, y0))
            ends = ((x1, picture.shape[1]), (y1, picture.shape[0]))
            right, bottom = (int(generator.integers((end + side + 1) // 2, side + 1)) for end, side in ends)
            window = (..., slice(top, bottom), slice(left, right))
            size = (photographs.SIDE, photographs.SIDE)
            crop = nn.functional.interpolate(whole[window], size, mode="bilinear", antialias=True)
            mask = camlib.resize(inside[window], size) >= 0.5
            if generator.random() < 0.5:
                crop, mask = crop.flip(-1), mask.flip(-1)
            inputs.append(crop)
            masks.append(mask)
            categories.append(photograph.category)
    return efficientnet_lite0(), torch.cat(inputs), torch.stack(masks), categories, None


def evaluated(data: Data, names: Any, metrics: Any, baselines: Any) -> dict[str, Any]:
    """By method and metric: the mean, and how much better it is than each baseline, with its interval over images."""
    model, inputs, masks, target, layer = data
    layers = {name: None if camlib.METHODS[name].layerless or name in OWN_LAYERS else layer for name in names}
    methods = [camlib.create(name, model, layers[name], **photographs.OPTIONS.get(name, {})) for name in names]
    options = {name: OPTIONS.get(name, {}) for name in metrics}
    evaluation = camlib.evaluate(
        model, inputs, methods, None, options, masks, target=target, max_passes=3000, progress=True
    )
    rows = {row.method: row for row in evaluation.rows}

    def over(name: str, other: str, metric: str) -> dict[str, Any]:
        difference, interval = evaluation.difference(rows[name], rows[other], metric)
        return {"difference": difference, "interval": interval}

    return {
        name: {
            metric: {
                "mean": evaluation.mean(row, metric),
                "over": {other: over(name, other, metric) for other in baselines},
            }
            for metric in evaluation.metrics
        }
        for name, row in rows.items()
    }


def main() -> None:
    """Evaluate, print, write the JSON."""
    data = {"phantoms": phantoms(32), "photographs": crops()}
    every = [name for name in camlib.METHODS if name not in photographs.LEFT_OUT]
    versions = provenance("torch", "torchvision", "scikit-image", "efficientnet-lite-pytorch")
    for result, names, metrics, baselines in (
        ("faithfulness", ("grad_cam", *BASELINES), METRICS, BASELINES),
        ("methods", every, FEW, BASELINES[:1]),
    ):
        found = {name: evaluated(of, names, metrics, baselines) for name, of in data.items()}
        about = {"images": {name: len(of[1]) for name, of in data.items()}, "options": repr(OPTIONS)}
        save(result, versions | about | {"found": found})
        print(*found.items(), sep="\n")


if __name__ == "__main__":
    main()
