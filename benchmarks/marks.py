"""A watermark that is a shortcut, or noise: do maps tell the difference (after Clark et al. 2026, arXiv 2602.09238)?

Three networks learn discs and crosses from the same pictures: with a translucent mark on the crosses only (*shortcut*),
on half of the pictures of both classes (*noise*), or on none (*absent*). All three explain the class "cross" of the
same marked pictures. How much the logits change when the mark is added shows which networks depend on it. The paper
finds that five methods put more weight on the mark after any training, and that shortcut and noise differ little.

``benchmarks/run marks`` writes ``marks.json`` in ``benchmarks/results``, in about three minutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import camlib
from benchmarks.drawn import SEEDS, block, draws, trained
from benchmarks.results import provenance, save
from benchmarks.subjects import scene
from benchmarks.truth import interval, mean, resamples
from camlib import metrics

SETTINGS = ("shortcut", "noise", "absent")
METHODS = (
    "grad_cam", "hires_cam", "layer_cam", "eigen_grad_cam", "guided_backprop", "input_x_gradient",
    "integrated_gradients", "occlusion", "ablation_cam", "eigen_cam", "sobel", "random_cam",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"integrated_gradients": {"steps": 10}, "occlusion": {"window": 12, "stride": 6}}
SIDE, TRAINING, EXPLAINED = 48, 600, 48
MARK = torch.zeros(SIDE, SIDE, dtype=torch.bool)
MARK[20:28, 4:44] = True
"""Where the mark is: a band across the middle of the picture."""


def pictures(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of a square and a disc (0) or a cross (1), and their classes."""
    classes = random.integers(0, 2, count)
    made = [scene(random, SIDE, [1, 2 if label else 0], (6, 9))[0] for label in classes]
    return torch.stack(made), torch.from_numpy(classes)


def marked(images: Tensor, which: Tensor) -> Tensor:
    """The pictures, with bars of the mark over those that are chosen."""
    bars = MARK & (torch.arange(SIDE) % 4 < 2)
    return torch.where(bars & which[:, None, None, None], 0.5 * images + 0.5, images)


def network(setting: str, seed: int) -> nn.Module:
    """The network of a setting."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    images, classes = pictures(random, TRAINING)
    chosen = {
        "shortcut": classes == 1,
        "noise": torch.from_numpy(random.random(TRAINING) < 0.5),
        "absent": torch.zeros(TRAINING, dtype=torch.bool),
    }[setting]
    images, order = marked(images, chosen), draws(random, TRAINING, 32, 300)
    model = nn.Sequential(
        block(3, 16), block(16, 32), block(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)
    )
    return trained(
        model, len(order), 4e-3, lambda step: F.cross_entropy(model(images[order[step]]), classes[order[step]])
    )


def seen(model: nn.Module, images: Tensor) -> dict[str, NDArray[np.float64]]:
    """By method, the share of energy on the mark of each marked picture; and what the mark adds to the logit."""
    every = torch.ones(len(images), dtype=torch.bool)
    with torch.no_grad():
        outputs = model(marked(images, every)) - model(images)
    found = {"logit": (outputs[:, 1] - outputs[:, 0]).double().numpy()}
    for name in METHODS:
        explanation = camlib.create(name, model, **OPTIONS.get(name, {}))(marked(images, every), 1)
        heatmaps = explanation.heatmaps(normalize="none").clamp(min=0)
        energy = metrics.energy_pointing_game(heatmaps, MARK.expand(len(images), SIDE, SIDE))
        found[name] = energy.double().numpy()
    return found


def main() -> None:
    """Train, explain, print, write the JSON."""
    values: dict[str, list[dict[str, NDArray[np.float64]]]] = {setting: [] for setting in SETTINGS}
    accuracy: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for seed in SEEDS:
        images, classes = pictures(np.random.default_rng(1000 + seed), EXPLAINED)
        for setting in SETTINGS:
            model = network(setting, seed)
            with torch.no_grad():
                accuracy[setting].append(float((model(images).argmax(1) == classes).float().mean()))
            values[setting].append(seen(model, images))
            print(setting, seed, accuracy[setting][-1], flush=True)
    draws_of = resamples([range(EXPLAINED)] * len(SEEDS), 2000, np.random.default_rng(0))
    found: dict[str, Any] = {}
    for name in ("logit", *METHODS):
        by = {setting: [one[name] for one in values[setting]] for setting in SETTINGS}
        more = [one - other for one, other in zip(by["shortcut"], by["noise"], strict=True)]
        found[name] = {setting: {"mean": mean(of), "interval": interval(of, draws_of)} for setting, of in by.items()}
        found[name]["shortcut over noise"] = {"mean": mean(more), "interval": interval(more, draws_of)}
        print(name, {key: round(of["mean"], 3) for key, of in found[name].items()}, found[name]["shortcut over noise"])
    about = {"share of the mark": float(MARK.float().mean()), "images": EXPLAINED, "seeds": len(SEEDS)}
    save("marks", provenance("torch", "torchvision") | about | {"accuracy without marks": accuracy, "found": found})


if __name__ == "__main__":
    main()
