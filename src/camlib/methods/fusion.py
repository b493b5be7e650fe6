"""One map from the maps of several layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camlib.imaging import normalize, resize

FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(0),
    "max": lambda maps: maps.amax(0),
    "product": lambda maps: maps.prod(0),
}
"""Ways to fuse maps stacked along the first axis."""


def fuse(maps: Sequence[Tensor], how: str, scale: str = "minmax") -> Tensor:
    """Resize maps to the finest grid among them, normalise each, and fuse them.

    Args:
        maps: for each layer (..., h, w), with grids of their own.
        how: a key of :data:`FUSIONS`.
        scale: the method of :func:`camlib.normalize` that makes layers comparable; "signed" for signed maps.

    Returns:
        (..., h, w) on the finest grid. A single layer's maps come back as they are.
    """
    if len(maps) == 1:
        return maps[0]
    height, width = max((layer.shape[-2:] for layer in maps), key=lambda grid: grid[0] * grid[1])
    stacked = torch.stack([normalize(resize(layer, (height, width)), scale) for layer in maps])
    return FUSIONS[how](stacked)
