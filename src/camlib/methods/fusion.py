"""Fuse the maps of several layers into one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camlib.imaging.normalization import normalized
from camlib.imaging.resizing import interpolated

FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(0),
    "max": lambda maps: maps.amax(0),
    "product": lambda maps: maps.prod(0),
}
"""Ways to fuse maps stacked along the first axis."""


def fuse(maps: Sequence[Tensor], how: str, scale: str = "minmax", dims: int = 2) -> Tensor:
    """Resize maps to the finest grid among them (the one with the most cells), normalise each, and fuse them.

    Each is normalised by itself, also the levels of one pyramid: maps of different layers have no common unit, and the
    same evidence is spread over more cells of a finer map. A map of zeros stays zero.

    Args:
        maps: for each layer (..., h, w); the grids may differ.
        how: a key of :data:`FUSIONS`.
        scale: the method of :func:`camlib.normalize` that makes layers comparable; "signed" for signed maps.
        dims: how many of the last axes are the grid: 1 for signals (..., l), 3 for volumes and videos (..., t, h, w).

    Returns:
        (..., h, w) on the finest grid. The maps of a single layer are returned unchanged.

    Example:
        >>> fuse([torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]])], "mean")
        tensor([[0.5000, 0.5000]])
    """
    if len(maps) == 1:
        return maps[0]
    grid = max((tuple(layer.shape[-dims:]) for layer in maps), key=math.prod)
    scaled = [normalized(interpolated(layer, grid).flatten(-dims), scale) for layer in maps]
    fused = FUSIONS[how](torch.stack(scaled))
    return fused.reshape(*fused.shape[:-1], *grid)
