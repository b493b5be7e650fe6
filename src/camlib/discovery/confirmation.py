"""The layout of a layer's output, by the positions of its cells in a pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from camlib.discovery.coordinates import Coordinate, Place
from camlib.discovery.positions import Positions
from camlib.imaging.extent import Covered
from camlib.inputs import ImageAxes, Inputs
from camlib.layers.layouts import ChannelsFirst, ChannelsLast, Frames, Layout, Size, Tokens, Transposed

APART = 1.0
"""How far from its place a cell may be drawn, in cells, or in those of the coarsest map that it is made of."""


def followed(inputs: Inputs) -> Positions:
    """Return a context that follows the positions of the inputs' elements."""
    return Positions(inputs.tensors)


def is_followed(place: Place, axes: ImageAxes) -> bool:
    """Whether the positions of a layer's output along all spatial axes of the images are known."""
    return all((axes.tensor, axis) in place for axis in axes.spatial)


def layout_by_positions(place: Place, shape: Size, inputs: Inputs, axes: ImageAxes) -> Layout | str:
    """Return the layout of a tensor, or why it is not a grid of the images.

    Its cells must progress evenly along each spatial axis of the images, and change along no other.

    Args:
        place: the positions of a layer's output.
        shape: its shape.
        inputs: the inputs of the pass.
        axes: where the images are among them.

    Example:
        >>> import torch
        >>> inputs = Inputs(torch.rand(1, 3, 32, 48))
        >>> with torch.no_grad(), followed(inputs) as positions:
        ...     patches = torch.nn.functional.avg_pool2d(inputs.raw, 16).flatten(2).mT
        ...     tokens = torch.cat([torch.zeros(1, 1, 3), patches], 1)
        ...     some = tokens[:, :6].clone()
        >>> layout = layout_by_positions(positions.of(tokens), (1, 7, 3), inputs, inputs.axes)
        >>> layout.grid, layout.prefix
        ((2, 3), 1)
        >>> layout_by_positions(positions.of(some), (1, 6, 3), inputs, inputs.axes)
        'its 5 cells are not a whole 2 x 3 grid'
    """
    coordinates = []
    for axis in axes.spatial:
        if (axes.tensor, axis) not in place:
            return f"its cells do not follow axis {axis} of the input"
        coordinates.append(place[axes.tensor, axis].compact())
    if inputs.is_list:  # the positions are those of the first image
        coordinates = [Coordinate(one.values[:1], one.pitch) for one in coordinates]
    images = len(inputs.tensors) if inputs.is_list else len(inputs.tensors[axes.tensor])
    if len(shape) == 3 and shape[1] == images and all(one.varies in ((), (0,)) for one in coordinates):
        return _batch_second(coordinates, place.get((axes.tensor, 0)), shape)
    if any(0 in one.varies for one in coordinates):
        if any(one.values.flatten(1).isnan().all(1).any() for one in coordinates):
            return (
                "some of its rows come from elsewhere, such as another input that runs in the same batch (reshape= may "
                "pick the rows of one input)"
            )
        frames = _frames(coordinates, place.get((axes.tensor, 0)), shape, images)
        return frames or "its rows are not the images, but parts of them"
    if shape[0] != images:
        return f"its {shape[0]} rows are not the {images} images"
    rows = None if inputs.is_list else place.get((axes.tensor, 0))
    if rows is not None and not _are_in_order(rows.compact(), images):
        return "its rows are in another order than the images"
    return _layout([_over_channels(one) for one in coordinates], shape)


def _batch_second(coordinates: Sequence[Coordinate], rows: Coordinate | None, shape: Size) -> Layout | str:
    """The layout of tokens (T, N, C)."""
    swapped = [Coordinate(one.values.transpose(0, 1), one.pitch) for one in coordinates]
    if rows is not None and not _are_in_order(Coordinate(rows.compact().values.transpose(0, 1), 1.0), shape[1]):
        return "its images are in another order"
    found = _tokens(swapped, (shape[1], shape[0], shape[2]))
    return found if isinstance(found, str) else dataclasses.replace(found, batch_second=True)


def _are_in_order(rows: Coordinate, images: int) -> bool:
    """Whether the rows are the images, one after the other."""
    of_rows = rows.values.flatten(1) if rows.values.dim() > 1 else rows.values[:, None]
    return images == 1 or bool((of_rows.isnan() | (of_rows == torch.arange(images)[:, None])).all())


def _over_channels(one: Coordinate) -> Coordinate:
    """A coordinate averaged over the channels, if these are at almost the same place."""
    for channels in (1, one.values.dim() - 1) if len(one.varies) > 1 else ():
        if channels in one.varies:
            spread = one.values.amax(channels) - one.values.amin(channels)
            if bool((spread <= one.pitch).all()):
                return Coordinate(one.values.mean(channels, keepdim=True), one.pitch).compact()
    return one


def _frames(coordinates: Sequence[Coordinate], image: Coordinate | None, shape: Size, images: int) -> Frames | None:
    """The layout of rows that are the frames of the images, along one axis of the grid; None if they are not."""
    axis = next(axis for axis, one in enumerate(coordinates) if 0 in one.varies)
    along, within = coordinates[axis], [*coordinates[:axis], *coordinates[axis + 1 :]]
    time = _of_rows(along)
    if time is None or image is None or shape[0] % images or any(0 in one.varies for one in within):
        return None
    frame = _layout(within, shape) if within else "no axes"
    if isinstance(frame, str):
        return None
    frames, rows = shape[0] // images, torch.arange(shape[0])
    of_image = image.compact().values.expand(shape).flatten(1)[:, 0]
    for frames_first in (False, True):
        table = rows.view(frames, images).T if frames_first else rows.view(images, frames)
        lines = time[table]
        in_order = _is_even(lines[0]) and bool((lines == lines[:1]).all())
        if in_order and torch.equal(of_image[table], torch.arange(images)[:, None].expand(images, frames).float()):
            return Frames((*frame.grid[:axis], frames, *frame.grid[axis:]), frame, axis, frames_first)
    return None


def _of_rows(one: Coordinate) -> Tensor | None:
    """(rows,), a coordinate that changes with the rows, averaged over the channels; None if it changes elsewhere."""
    values = one.values.flatten(1)
    spread = values.amax(1) - values.amin(1)
    return values.mean(1) if bool((spread <= one.pitch).all()) else None


def _layout(coordinates: Sequence[Coordinate], shape: Size) -> ChannelsFirst | ChannelsLast | Transposed | Tokens | str:
    """The layout of rows that are images, or frames of them."""
    varies = {axis for one in coordinates for axis in one.varies}
    if len(shape) == 3 and (len(coordinates) > 1 or 2 not in varies):
        return _tokens(coordinates, shape)
    if len(shape) != 2 + len(coordinates):
        return f"it has {len(shape) - 2} axes besides rows and channels, and the images {len(coordinates)}"
    return _grid(coordinates, shape)


def _tokens(coordinates: Sequence[Coordinate], shape: Size) -> Tokens | str:
    """The layout of tokens (N, T, C)."""
    if any(not set(one.varies) <= {1} for one in coordinates):
        return "its channels come from different places"
    lines = [one.values.expand(1, shape[1], 1).flatten() for one in coordinates]
    patches = ~torch.stack(lines).isnan().any(0)
    prefix, count = int(patches.int().argmax()), int(patches.sum())
    if not bool(patches[prefix : prefix + count].all()):
        return "some of its cells do not come from the images"
    grid: list[int] = []
    place = torch.zeros(count, dtype=torch.long)
    for line in lines:
        levels, number = _levels(line[patches])
        if not _is_even(levels):
            return f"its {count} cells are not spaced evenly"
        grid.append(len(levels))
        place = place * len(levels) + number
    cells = " x ".join(map(str, grid))
    if not torch.equal(place.sort().values, torch.arange(math.prod(grid))):
        return f"its {count} cells are not a whole {cells} grid"
    in_order = torch.equal(place, torch.arange(count))
    return Tokens(tuple(grid), prefix, None if in_order else tuple(place.argsort().tolist()))


def _grid(coordinates: Sequence[Coordinate], shape: Size) -> ChannelsFirst | ChannelsLast | Transposed | str:
    """The layout of a tensor with an axis for each spatial axis of the images."""
    own: list[int | None] = []
    for one in coordinates:
        if len(one.varies) > 1:
            return "its cells change along several axes at once"
        own.append(one.varies[0] if one.varies else None)
    varying = [axis for axis in own if axis is not None]
    if len(set(varying)) < len(varying):
        return "one of its axes is several axes of the images"
    axes: list[int | None] = own
    for channels in (1, len(shape) - 1):
        others = [axis for axis in range(1, len(shape)) if axis not in varying and axis != channels]
        if channels not in varying and all(shape[axis] == 1 for axis in others):
            axes = [others.pop(0) if axis is None and others else axis for axis in own]
            break
    if None in axes:
        return "its cells do not change along one of its axes"
    for axis, one in zip(axes, coordinates, strict=True):
        assert axis is not None
        line = one.values.flatten()
        if bool(line.isnan().any()):
            return "some of its cells do not come from the images"
        if not _is_even(line):
            return "its cells do not progress evenly along the images"
    grid = tuple(shape[axis] for axis in axes if axis is not None)
    if axes == list(range(2, len(shape))):
        return ChannelsFirst(grid)
    if axes == list(range(1, len(shape) - 1)):
        return ChannelsLast(grid)
    return Transposed(grid, tuple(axis - len(shape) for axis in axes if axis is not None))


def covered_part(place: Place, grid: Size, inputs: Inputs, axes: ImageAxes) -> Covered | None:
    """Return which part of the images a grid covers, if its cells would be drawn elsewhere over the whole images.

    This happens after a crop, a padding, or convolutions without padding. A grid that is shifted by up to one cell, as
    strides and paddings shift it in every network, is taken to cover the whole images.

    Args:
        place: the positions of the grid.
        grid: its size.
        inputs: the inputs of the pass.
        axes: where the images are among them.
    """
    origin, extent, apart = [], [], 0.0
    for axis, cells in zip(() if inputs.is_list else axes.spatial, grid, strict=False):
        side = inputs.tensors[axes.tensor].shape[axis]
        one = place[axes.tensor, axis]
        known = one.values[~one.values.isnan()]
        first, last = float(known.amin()), float(known.amax())
        step = (last - first) / (cells - 1) if cells > 1 else side
        origin.append(first - step / 2 + 0.5 if cells > 1 else 0.0)
        extent.append(step * cells)
        drawn = side / cells
        ends = abs(first + 0.5 - drawn / 2), abs(last + 0.5 - (side - drawn / 2))
        apart = apart if cells == 1 else max(apart, *(end / max(drawn, one.pitch) for end in ends))
    return Covered(tuple(origin), tuple(extent)) if apart > APART and max(grid) > 1 else None


def _levels(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, ascending, and the number of each element's value; those that almost agree are one."""
    ordered, by = values.sort()
    gaps = ordered.diff()
    number = torch.cat([torch.zeros(1), (gaps > gaps.max() / 3).cumsum(0)]) if len(gaps) else torch.zeros(1)
    number = number.long()
    total = ordered.new_zeros(int(number[-1]) + 1).index_add(0, number, ordered)
    return total / number.bincount(), torch.empty_like(number).scatter(0, by, number)


def _is_even(line: Tensor) -> bool:
    """Whether coordinates grow in about equal steps; a last window that is partly padding has its centre earlier."""
    steps = line.diff()
    return not len(steps) or (bool((steps > 0).all()) and float(steps.amax() - steps.amin()) <= float(steps.mean()) / 2)
