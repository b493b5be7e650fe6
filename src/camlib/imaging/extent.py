"""Maps that cover another part of the images than the whole: a detector pads its pictures, a network crops them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from camlib.imaging.resizing import interpolated, resize

Extent = tuple[float, ...] | None
"""What the maps cover, in input pixels along each axis; None where that is the input."""


class Covered(NamedTuple):
    """Which part of the images maps cover."""

    origin: tuple[float, ...]
    """Where they begin, in input pixels along each axis; negative in front of the images."""
    extent: tuple[float, ...]
    """How much they cover."""


def cells_of_input(maps: Tensor, extent: Extent, input_size: tuple[int, ...] | None, origin: Extent = None) -> Tensor:
    """Return the cells of maps (..., *grid) that the input reaches, in whole or in part."""
    if extent is None or input_size is None:
        return maps
    starts = origin or (0.0,) * len(extent)
    for axis, (start, covered, inside) in enumerate(zip(starts, extent, input_size, strict=True), -len(input_size)):
        cells = maps.shape[axis]
        reached = round((inside - start) / covered * cells, 6)  # 25.000000001 cells are 25
        first, last = math.floor(round(max(-start, 0.0) / covered * cells, 6)), min(math.ceil(reached), cells)
        maps = maps.narrow(axis, first, max(last - first, 0))
    return maps


def resized_to_input(
    maps: Tensor,
    size: tuple[int, ...],
    extent: Extent,
    input_size: tuple[int, ...] | None,
    origin: Extent = None,
) -> Tensor:
    """Return maps (..., *size), each pixel over its own pixels of the input; zero where the maps do not reach."""
    return laid_over(maps, size, extent, input_size, origin, resize)


def laid_over(
    maps: Tensor,
    size: tuple[int, ...],
    extent: Extent,
    input_size: tuple[int, ...] | None,
    origin: Extent = None,
    resized: Callable[[Tensor, tuple[int, ...]], Tensor] = interpolated,
) -> Tensor:
    """Return :func:`resized_to_input` without checks, which would wait for the device; ``resized`` resizes maps."""
    if extent is None or input_size is None:
        return resized(maps, size)
    scales = [side / full for side, full in zip(size, input_size, strict=True)]
    starts = [round(start * scale) for start, scale in zip(origin or (0.0,) * len(size), scales, strict=True)]
    covered = tuple(max(1, round(own * scale)) for own, scale in zip(extent, scales, strict=True))
    if origin is None:
        covered = tuple(map(max, size, covered))
    maps = resized(maps, covered)
    found = maps.new_zeros(*maps.shape[: -len(size)], *size)
    to: list[Any] = [...]
    of: list[Any] = [...]
    for start, own, side in zip(starts, covered, size, strict=True):
        to.append(slice(max(start, 0), max(min(start + own, side), 0)))
        of.append(slice(max(-start, 0), max(min(own, side - start), 0)))
    found[tuple(to)] = maps[tuple(of)]
    return found
