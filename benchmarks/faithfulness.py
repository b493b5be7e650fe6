"""Does each metric tell Grad-CAM from maps that do not look? Touchstones: random weights, and a bell in the middle.

On phantoms, whose truth is known, explained on the network that the example trains on them at 128 px; and on crops of
scikit-image's photographs, explained on EfficientNet-Lite0, trained on ImageNet, nothing downloaded. A metric that does
not prefer Grad-CAM there may still be right: the table says which do; it does not make one the judge of the others.
Crops of one photograph are not independent: their intervals are too narrow.

Run it with ``benchmarks/run faithfulness``; it trains the network if ``runs/phantoms-128`` is not there, and writes
``faithfulness.json`` and ``faithfulness.csv`` in ``benchmarks/results``.
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
from camlib.evaluation import Evaluation, TableRow
from camlib.metrics import METRICS

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "phantoms-128"
EXAMPLE = ROOT / "examples" / "pneumonia"
METHODS = ("grad_cam", "random_cam", "center_gaussian")
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
"""Fewer passes than by default; and a scale of their own for the heatmaps, which are no shares of the score."""
CROPS = 8
"""Of each photograph."""


def phantoms(images: int) -> tuple[nn.Module, Tensor, Tensor, str]:
    """The trained network, sick test phantoms (N, 3, 128, 128), their masks, and the layer chosen on validation."""
    if not (RUN / "metrics.json").exists():
        subprocess.run([sys.executable, EXAMPLE / "run.py", "--size", "128", "--output", RUN], check=True)
    sys.path.insert(0, str(EXAMPLE))
    from pneumonia.augment import MARGIN, prepare
    from pneumonia.judging import explained_layer, trained
    from pneumonia.sources import from_phantoms

    model, recipe = trained(RUN / "checkpoint.pt")
    test = from_phantoms(1120, round(recipe["size"] * MARGIN), recipe["seed"]).test
    sick = test.take(test.labels.nonzero().flatten()[:images].tolist())
    assert sick.masks is not None
    masks = camlib.resize(sick.masks.float(), (recipe["size"], recipe["size"])) >= 0.5
    (layer,) = explained_layer(RUN) or ["layer4"]
    return model, prepare(sick.pixels, recipe["size"]), masks, layer


def crops() -> tuple[nn.Module, Tensor, Tensor, list[int]]:
    """The network, crops (N, 3, 224, 224) that hold the thing, masks of its box, and the classes."""
    generator = np.random.default_rng(0)
    inputs, masks, categories = [], [], []
    for photograph in photographs.PHOTOGRAPHS:
        picture, _ = photographs.read(photograph)
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
    return photographs.network(), torch.cat(inputs), torch.stack(masks), categories


def judged(model: nn.Module, inputs: Tensor, masks: Tensor, target: Any, layers: list[str] | None) -> Evaluation:
    """Every metric of Grad-CAM and of the touchstones."""
    options = {name: OPTIONS.get(name, {}) for name in METRICS}
    return camlib.evaluate(model, inputs, METHODS, layers, options, masks, target=target, progress=True)


def verdicts(evaluation: Evaluation) -> dict[str, Any]:
    """For each metric the means, and how much better Grad-CAM is than each touchstone, with its interval."""
    rows = {row.method: row for row in evaluation.rows}
    return {
        metric: {
            "means": {method: evaluation.mean(row, metric) for method, row in rows.items()},
            "better than": {other: _difference(evaluation, rows, other, metric) for other in METHODS[1:]},
        }
        for metric in evaluation.metrics
    }


def _difference(evaluation: Evaluation, rows: dict[str, TableRow], other: str, metric: str) -> dict[str, Any]:
    mean, interval = evaluation.difference(rows["grad_cam"], rows[other], metric)
    return {"difference": mean, "interval": interval}


def main() -> None:
    """Judge, print, write JSON and CSV."""
    model, inputs, masks, layer = phantoms(32)
    found = {"phantoms": verdicts(judged(model, inputs, masks, 1, [layer]))}
    network, photos, boxes, categories = crops()
    found["photographs"] = verdicts(judged(network, photos, boxes, categories, None))
    results = provenance("torch", "torchvision", "scikit-image") | {
        "images": {"phantoms": len(inputs), "photographs": len(photos)},
        "layer of the phantoms' network": layer,
        "options": OPTIONS,
        "found": found,
    }
    save("faithfulness", results)


if __name__ == "__main__":
    main()
