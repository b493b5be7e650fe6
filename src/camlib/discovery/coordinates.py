"""Coordinates of a tensor's elements along the axes of an input, and what windows and averages make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Axis = tuple[int, int]
"""An axis of an input: the number of the tensor among the inputs, and the axis; ``~axis`` for the keys of attention."""


class Coordinate(NamedTuple):
    """The places of a tensor's elements along one axis of an input."""

    values: Tensor
    """In elements of the input; NaN for elements from elsewhere. As many axes as the tensor, each of its size or 1."""
    pitch: float
    """The distance between neighbours, in elements of the input."""

    @property
    def is_known(self) -> bool:
        """Whether any element has a place."""
        return not bool(self.values.isnan().all())

    @property
    def varies(self) -> tuple[int, ...]:
        """The axes of the tensor along which the coordinate changes."""
        return tuple(axis for axis, size in enumerate(self.values.shape) if size > 1)

    def compact(self) -> Coordinate:
        """Return the same coordinate with size 1 along the axes where it does not change."""
        return compact(self)


Place = dict[Axis, Coordinate]


class Windows(NamedTuple):
    """The windows of a convolution or a pooling along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    transposed: bool = False

    def centres(self, count: int) -> Tensor:
        """The centre of each window, in cells of what it reads."""
        reach = self.dilation * (self.kernel - 1) / 2 - self.padding
        cells = torch.arange(count)
        return (cells - reach) / self.stride if self.transposed else cells * self.stride + reach

    @property
    def step(self) -> float:
        """The distance between windows, in cells of what they read."""
        return 1 / self.stride if self.transposed else self.stride

    @property
    def border(self) -> int:
        """How many cells at each border are not a window's centre, so that a network may take them from elsewhere."""
        return self.dilation * (self.kernel - 1)


class Scaled(NamedTuple):
    """Cells that share out another number of cells evenly."""

    cells: int
    into: int
    corners: bool = False
    """Whether the centres of the first and of the last cells agree, as with ``align_corners``."""

    def centres(self, count: int) -> Tensor:
        """The centre of each new cell, in old cells."""
        if self.corners and count > 1:
            return torch.arange(count) * ((self.cells - 1) / (count - 1))
        return (torch.arange(count) + 0.5) * self.step - 0.5

    @property
    def step(self) -> float:
        """The distance between new cells, in old cells."""
        return self.cells / self.into

    @property
    def border(self) -> int:
        """No cell is left out."""
        return 0


def along(shape: Sequence[int], axis: int) -> Coordinate:
    """The coordinate of an input along one of its axes."""
    values = torch.arange(shape[axis], dtype=torch.float32)
    return Coordinate(values.view([-1 if axis == other else 1 for other in range(len(shape))]), 1.0)


def over_windows(one: Coordinate, windows: Sequence[Windows | Scaled], out: Sequence[int]) -> Coordinate | None:
    """The coordinate of windows over the last axes; None if it does not progress evenly along a single one of them."""
    first = one.values.dim() - len(windows)
    if sum(axis >= first for axis in one.varies) > 1:
        one = compact(Coordinate(_without_padding(one.values, first), one.pitch))
    varying = [axis for axis in one.varies if axis >= first]
    if not varying:
        return one
    if len(varying) > 1:
        return None
    axis = varying[0]
    window, count = windows[axis - first], out[axis - first]
    line = _line_but_border(one.values.movedim(axis, -1), one.pitch, window.border)
    if line is None:
        return None
    start, step = line
    values = start[..., None] + step[..., None] * window.centres(count).to(start)
    return Coordinate(values.movedim(-1, axis), one.pitch * window.step)


def _without_padding(values: Tensor, first: int) -> Tensor:
    """Values with size 1 along the axes, from ``first`` on, where they change only into padding (NaN)."""
    for axis in range(first, values.dim()):
        high = values.nan_to_num(-math.inf).amax(axis, keepdim=True)
        low = values.nan_to_num(math.inf).amin(axis, keepdim=True)
        if torch.equal(high.clamp(max=low), high):
            values = high.masked_fill(high.isinf(), math.nan)
    return values


def _line_but_border(values: Tensor, pitch: float, border: int) -> tuple[Tensor, Tensor] | None:
    """:func:`_line`, apart from a border that comes from elsewhere, such as the other side in circular padding."""
    size = values.shape[-1]
    for cells in range(min(border, (size - 1) // 2) + 1):
        for before, after in ((cells, cells), (cells, 0), (0, cells)):
            inner = values.clone()
            inner[..., :before] = inner[..., size - after :] = math.nan
            line = _line(inner, pitch)
            if line is not None or not cells:
                break
        if line is not None:
            return line
    return None


def _line(values: Tensor, pitch: float) -> tuple[Tensor, Tensor] | None:
    """Start and step of an arithmetic progression along the last axis, which padding (NaN) may surround."""
    known = ~values.isnan()
    rows = known.any(-1)
    count = known.sum(-1)
    if not bool(rows.any()) or bool((count[rows] < 2).any()):
        return None
    first = known.int().argmax(-1)
    index = torch.arange(values.shape[-1])
    inside = (index >= first[..., None]) & (index < (first + count)[..., None])
    if not torch.equal(inside, known):
        return None
    a = values.gather(-1, first[..., None])[..., 0]
    b = values.gather(-1, (first + count - 1).clamp(min=0)[..., None])[..., 0]
    step = (b - a) / (count - 1)
    start = a - step * first
    off = (values - (start[..., None] + step[..., None] * index)).abs()
    return (start, step) if bool((off[known] <= pitch / 8).all()) else None


def averaged(one: Coordinate, dims: Sequence[int]) -> Coordinate | None:
    """The mean along some axes, which are kept with size 1; None if no change along other axes is left."""
    total = one.values.dim()
    dims = [dim % total for dim in dims if one.values.shape[dim] > 1]
    if not dims:
        return one
    if set(dims) == set(one.varies):
        return None
    mean = one.values.nanmean(dims, keepdim=True)
    known = one.values.masked_fill(one.values.isnan(), math.inf).amin(dims, keepdim=True)
    span = one.values.masked_fill(one.values.isnan(), -math.inf).amax(dims, keepdim=True) - known
    finite = span[span.isfinite()]
    grown = one.pitch + float(finite.amax()) if finite.numel() else one.pitch
    averaged = compact(Coordinate(mean, grown))
    return averaged if averaged.varies else None


def agreed(one: Coordinate | None, other: Coordinate | None) -> Coordinate | None:
    """The coordinate of elements that are joined; None where they come from different places."""
    if one is None or other is None:
        return None
    if one.values is other.values:
        return one
    within, others = any(axis > 0 for axis in one.varies), any(axis > 0 for axis in other.varies)
    if within != others:  # one is a single place in each image, such as the pooled map of a gate
        return one if within else other
    a, b = one.values, other.values
    pitch = max(one.pitch, other.pitch)
    joined = torch.where(a.isnan(), b, a)
    apart = (a - b).abs() > 1.01 * pitch
    if bool(apart.any()):
        joined = joined.masked_fill(apart.expand(joined.shape), math.nan)
        if bool(joined.isnan().all()):
            return None
    return Coordinate(joined, pitch)


def aligned(one: Coordinate, result: Tensor) -> Coordinate:
    """The coordinate with as many axes as a result that it is broadcast to."""
    missing = result.dim() - one.values.dim()
    return one if missing <= 0 else Coordinate(one.values[(None,) * missing], one.pitch)


def reshaped(one: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate:
    """The coordinate of a tensor that is viewed in another shape, expanded only along the axes that change."""
    expand, shape = [], []
    for before, after in _groups(list(old), list(new)):
        own = [one.values.shape[axis] for axis in before]
        constant = all(size == 1 for size in own)
        expand += [1 if constant else old[axis] for axis in before]
        shape += [1 if constant else new[axis] for axis in after]
    return compact(Coordinate(one.values.expand(expand).reshape(shape), one.pitch), look=False)


def _groups(old: list[int], new: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [], []
        a = b = 1
        if i < len(old):
            before.append(i)
            a, i = old[i], i + 1
        if j < len(new):
            after.append(j)
            b, j = new[j], j + 1
        while a != b:
            if a < b and i < len(old):
                before.append(i)
                a, i = a * old[i], i + 1
            elif j < len(new):
                after.append(j)
                b, j = b * new[j], j + 1
            else:
                before.append(i)
                a, i = a * old[i], i + 1
        yield before, after


def compact(one: Coordinate, look: bool = True) -> Coordinate:
    """The same coordinate with size 1 along the axes where it does not change: by its strides, or by a look at it."""
    values = one.values
    for axis, size in enumerate(values.shape):
        if size > 1 and (values.stride(axis) == 0 or (look and _same(values, axis))):
            values = values.narrow(axis, 0, 1)
    return Coordinate(values, one.pitch)


def _same(values: Tensor, axis: int) -> bool:
    """Whether values do not change along an axis."""
    first = values.narrow(axis, 0, 1)
    return bool(((values == first) | (values.isnan() & first.isnan())).all())


def full(one: Coordinate | None, tensor: Tensor) -> Tensor:
    """The coordinate in full size; NaN if there is none."""
    return torch.full(tuple(tensor.shape), math.nan) if one is None else one.values.expand(tensor.shape).contiguous()
