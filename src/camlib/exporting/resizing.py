"""Linear interpolation as products with matrices, which every runtime computes in the same way and fast."""

from __future__ import annotations

import torch
from torch import Tensor


def resized_by_products(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps (..., *size), as :func:`camlib.resize`, also for symbolic sizes.

    Example:
        >>> import torch
        >>> resized_by_products(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    dims = len(size)
    axes = tuple(range(-dims, 0))
    low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
    for axis, side in zip(axes, size, strict=True):
        matrix = _weights(maps, maps.shape[axis], side)
        maps = (maps.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return maps.clamp(low, high)  # rounding would turn ones into 1.0000001


def _weights(like: Tensor, cells: int, pixels: int) -> Tensor:
    """(cells, pixels), the weight of each cell in each pixel, with half-pixel centres."""
    centre = (torch.arange(pixels, device=like.device).to(like.dtype) + 0.5) * (cells / pixels) - 0.5
    centre = centre.clamp(min=0).clamp(max=cells - 1)
    cell = torch.arange(cells, device=like.device).to(like.dtype)
    return (1 - (centre - cell[:, None]).abs()).clamp(min=0)
