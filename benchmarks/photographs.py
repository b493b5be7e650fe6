"""Every method on three photographs, by a pretrained network: where its energy lies, and a figure.

EfficientNet-Lite0 explains scikit-image's cat, espresso and rocket (all public domain). The table gives the share of
each heatmap's energy inside a box drawn by hand around the subject, and the box's share of the picture. Three pictures
show how to read such a table; they do not rank methods.

``benchmarks/run photographs`` writes ``photographs.json`` in ``benchmarks/results`` and ``docs/_static/methods.jpg``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import skimage.data
import skimage.transform
import torch
from torch import Tensor

import camlib
from benchmarks.results import provenance, save
from camlib.comparison import Comparison
from docs.gallery.efficientnet_lite0 import efficientnet_lite0

SIDE = 224


class Photograph(NamedTuple):
    """A photograph of scikit-image and its subject."""

    name: str
    label: str
    category: int
    """The ImageNet class that is explained."""
    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1) around the subject, in the photograph's pixels."""

    def picture(self) -> Any:
        """(H, W, 3) uint8."""
        return getattr(skimage.data, self.name)()

    def share(self, heatmap: Tensor) -> float:
        """The share of a heatmap's sum that lies in the box."""
        x0, y0, x1, y1 = self.box
        return float(heatmap[y0:y1, x0:x1].sum() / heatmap.sum())


PHOTOGRAPHS = (
    Photograph("chelsea", "Egyptian cat", 285, (15, 0, 385, 300)),
    Photograph("coffee", "espresso", 967, (172, 17, 410, 308)),
    Photograph("rocket", "missile", 657, (305, 125, 338, 408)),
)
LEFT_OUT = {
    name: "the network has no attention" for name, method in camlib.METHODS.items() if method.reads == "attention"
}
OPTIONS: dict[str, dict[str, Any]] = {
    "full_grad": {"tolerance": math.inf},  # ReLU6 is not linear where it saturates: a part is missing
    "score_cam": {"channels": 64},
    "ss_cam": {"channels": 16, "samples": 4},
    "is_cam": {"channels": 16, "samples": 4},
    "rise": {"samples": 200},
    "expected_gradients": {"baselines": 0.0},  # grey: three photographs are too few to draw from
}
"""Methods with very many passes take fewer than by default; expected gradients have no default baselines."""


def resized(picture: Any) -> Any:
    """A picture as the network sees it, (224, 224, 3) in [0, 1]."""
    return skimage.transform.resize(picture, (SIDE, SIDE), anti_aliasing=True)


def explained(names: Iterable[str]) -> Comparison:
    """What the named methods say of the photographs."""
    model = efficientnet_lite0()
    small = [torch.from_numpy(resized(photograph.picture())) for photograph in PHOTOGRAPHS]
    methods = [camlib.create(name, model, **OPTIONS.get(name, {})) for name in names]
    images = torch.stack(small).movedim(-1, 1).float() * 2 - 1
    return camlib.compare(model, images, methods, [photograph.category for photograph in PHOTOGRAPHS])


def shares_inside(comparison: Comparison) -> dict[str, list[float | None]]:
    """Each method's energy inside each photograph's box; None for a map without positive values."""
    return {
        name: [
            None if one.degenerate else photograph.share(one.heatmaps(photograph.picture().shape[:2], "max")[0])
            for one, photograph in zip(explanation, PHOTOGRAPHS, strict=True)
        ]
        for name, explanation in comparison.items()
    }


def main() -> None:
    """Explain, print, write the JSON and the figure."""
    comparison = explained(name for name in camlib.METHODS if name not in LEFT_OUT)
    probabilities = comparison["grad_cam"].outputs.softmax(1)
    pictures = [photograph.picture() for photograph in PHOTOGRAPHS]
    areas = [photograph.share(torch.ones(one.shape[:2])) for photograph, one in zip(PHOTOGRAPHS, pictures, strict=True)]
    results = provenance("torch", "scikit-image", "efficientnet-lite-pytorch") | {
        "layer": comparison["grad_cam"].layer,
        "photographs": [
            photograph._asdict() | {"area of the box": area, "probability": float(probability[photograph.category])}
            for photograph, area, probability in zip(PHOTOGRAPHS, areas, probabilities, strict=True)
        ],
        "energy inside the box": shares_inside(comparison),
        "left out": LEFT_OUT,
        "options": {name: repr(options) for name, options in OPTIONS.items()},
    }
    save("photographs", results)
    print(*results["energy inside the box"].items(), sep="\n")
    names = ["" for _ in range(probabilities.shape[1])]
    for photograph in PHOTOGRAPHS:
        names[photograph.category] = photograph.label
    figure = comparison.plot([resized(picture) for picture in pictures], names)
    path = Path(__file__).parents[1] / "docs" / "_static" / "methods.jpg"
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
