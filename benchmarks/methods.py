"""How faithful is each method? Every method beside random weights, on the phantoms and crops of ``faithfulness``.

By the metrics which there told Grad-CAM from maps that do not look: insertion on the phantoms, and the energy inside
the mask or box on both; and by deletion, which most papers report. Run it with ``benchmarks/run methods``; it writes
``methods.json``, ``methods.csv`` and ``choice.csv`` in ``benchmarks/results``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import camlib
from benchmarks import faithfulness, photographs
from benchmarks.results import provenance, save

METRICS: dict[str, dict[str, Any]] = {"insertion": {"steps": 14}, "deletion": {"steps": 14}, "energy_pointing_game": {}}
RANDOM = "random_cam"
LAST_LAYER_ALONE = ("cam", "refine_cam")
"""CAM is the classifier's own weights; RefineCAM finds its layers itself."""


def judged(model: nn.Module, inputs: Tensor, masks: Tensor, target: Any, layer: str | None) -> dict[str, Any]:
    """By method and metric: the mean, and how much better than random weights, with its interval over images."""
    methods = [
        camlib.create(
            name,
            model,
            None if method.layerless or name in LAST_LAYER_ALONE else layer,
            **photographs.OPTIONS.get(name, {}),
        )
        for name, method in camlib.METHODS.items()
        if name not in photographs.NOT_HERE
    ]
    evaluation = camlib.evaluate(
        model, inputs, methods, None, METRICS, masks, target=target, max_passes=3000, progress=True
    )
    rows = {row.method: row for row in evaluation.rows}
    return {
        name: {
            metric: {"mean": evaluation.mean(row, metric)} | _over_random(evaluation, row, rows[RANDOM], metric)
            for metric in METRICS
        }
        for name, row in rows.items()
    }


def _over_random(evaluation: camlib.evaluation.Evaluation, row: Any, random: Any, metric: str) -> dict[str, Any]:
    mean, interval = evaluation.difference(row, random, metric)
    return {"over random": mean, "interval": interval}


def main() -> None:
    """Judge, print, write JSON and CSV."""
    model, inputs, masks, layer = faithfulness.phantoms(32)
    found = {"phantoms": judged(model, inputs, masks, 1, layer)}
    network, photos, boxes, categories = faithfulness.crops()
    found["photographs"] = judged(network, photos, boxes, categories, None)
    results = provenance("torch", "torchvision", "scikit-image", "efficientnet-lite-pytorch") | {
        "images": {"phantoms": len(inputs), "photographs": len(photos)},
        "layer of the phantoms' network": layer,
        "options": {name: repr(told) for name, told in photographs.OPTIONS.items()},
        "metrics": METRICS,
        "found": found,
    }
    save("methods", results)


if __name__ == "__main__":
    main()
