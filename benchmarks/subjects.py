"""What ``truth.py`` measures on: a network, images, a score of each image, and the pixels which that score is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Target = Callable[[slice], Any]
"""From the rows of a batch to their target."""


@dataclass(frozen=True)
class Trial:
    """One network and the maps whose truth is known; a subject has one for each seed of its training."""

    model: nn.Module
    inputs: Any
    """A tensor (N, C, H, W), or a list of images (C, H, W) for detectors."""
    truth: Tensor
    """(N, H, W), or (N, K, H, W) for K maps of each image; bool."""
    target: Target
    groups: Sequence[int]
    """(N,) numbers; images with the same number depend on one another, and intervals draw them together."""
    probability: Target | None = None
    """The same score behind its softmax."""
    layer: str | None = None
    """None for the one that camlib finds."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By method."""
    signed: bool = False
    """Whether the absolute values of signed maps are measured: evidence against the class counts, too."""


@dataclass(frozen=True)
class Subject:
    """What is explained, and how to make it."""

    name: str
    about: str
    """One line for the documentation."""
    make: Callable[[], Iterator[Trial]]
    left_out: dict[str, str] = field(default_factory=dict)
    """Methods that are not run, and why."""
    batch: int = 16
    seeds: int = 1


def indexed(values: Any, make: Callable[[Any], Any] = lambda rows: rows) -> Target:
    """The target of a batch: the values of its rows, or what is made of them."""
    return lambda rows: make(values[rows])


SHAPES = ("disc", "square", "cross", "ring")


def shape(label: int, side: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    """(side, side) bool: the pixels of a shape."""
    rows, columns = np.mgrid[:side, :side]
    across, down = np.abs(columns - x), np.abs(rows - y)
    distance = np.hypot(across, down)
    shapes: dict[int, NDArray[np.bool_]] = {
        0: distance < radius,
        1: np.maximum(across, down) < 0.9 * radius,
        2: (np.minimum(across, down) < 0.35 * radius) & (np.maximum(across, down) < radius),
        3: (distance < radius) & (distance > 0.55 * radius),
    }
    return shapes[label]


def scene(
    random: np.random.Generator, side: int, labels: Sequence[int], radii: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """A picture (3, side, side) of shapes in random colours, one in each quarter; their masks and (K, 4) boxes."""
    quarters = np.array([(1, 1), (3, 1), (1, 3), (3, 3)]) * side / 4
    picture = np.full((side, side, 3), random.uniform(0.15, 0.5, 3))
    places = random.permutation(quarters)[: len(labels)]
    masks, boxes = [], []
    for label, (x, y) in zip(labels, places, strict=True):
        radius = random.uniform(*radii)
        free = side / 4 - radius - 1
        x, y = x + random.uniform(-free, free), y + random.uniform(-free, free)
        inside = shape(label, side, x, y, radius)
        picture[inside] = random.uniform(0.5, 1, 3)
        masks.append(inside)
        boxes.append([x - radius, y - radius, x + radius, y + radius])
    picture = (picture + random.normal(0, 0.03, picture.shape)).clip(0, 1).transpose(2, 0, 1)
    return torch.tensor(picture).float(), torch.tensor(np.stack(masks)), torch.tensor(boxes).float()
