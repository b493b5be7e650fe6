"""Maps that cover more than the input, since a detector pads its pictures at the right and at the bottom."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from camlib.imaging import resize

Extent = tuple[float, ...] | None
"""What the maps cover, in input pixels along each axis; None where that is the input."""


def cells_of_input(maps: Tensor, extent: Extent, input_size: tuple[int, ...] | None) -> Tensor:
    """Return the cells of maps (..., *grid) that the input reaches, in whole or in part."""
    if extent is None or input_size is None:
        return maps
    for axis, (covered, inside) in enumerate(zip(extent, input_size, strict=True), start=-len(input_size)):
        reached = round(min(inside / covered, 1) * maps.shape[axis], 6)  # 25.000000001 cells are 25
        maps = maps.narrow(axis, 0, math.ceil(reached))
    return maps


def resized_to_input(maps: Tensor, size: tuple[int, ...], extent: Extent, input_size: tuple[int, ...] | None) -> Tensor:
    """Return maps (..., *size), each pixel over its own pixels of the input; the padding is cut off."""
    if extent is None or input_size is None:
        return resize(maps, size)
    sides = zip(size, extent, input_size, strict=True)
    maps = resize(maps, tuple(max(side, round(side * covered / full)) for side, covered, full in sides))
    inside: tuple[Any, ...] = (..., *map(slice, size))
    return maps[inside]
