"""Layouts and the positions of a pass: each cell of a grid must come from the place where the grid shows it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camlib.discovery.positions import Place, Positions
from camlib.inputs import Inputs
from camlib.layers.layouts import Layout, Size, Tokens


def followed(inputs: Inputs) -> Positions:
    """Return a context that follows the positions of the inputs' elements."""
    return Positions(inputs.tensors)


def contradiction(place: Place, layout: Layout, shape: Size, inputs: Inputs) -> str | None:
    """Return why a layout is not where its cells come from; None if it is, or if nothing is known of them.

    Args:
        place: the positions of a layer's output.
        layout: its layout.
        shape: its shape.
        inputs: the inputs of the pass.

    Example:
        >>> import torch
        >>> from camlib.layers.layouts import Tokens
        >>> images = torch.rand(1, 3, 32, 48)
        >>> with torch.no_grad(), followed(Inputs(images)) as positions:
        ...     tokens = torch.nn.functional.avg_pool2d(images, 16).flatten(2).mT
        >>> contradiction(positions.of(tokens), Tokens((2, 3), 0), (1, 6, 3), Inputs(images))
        >>> contradiction(positions.of(tokens), Tokens((2, 2), 2), (1, 6, 3), Inputs(images))
        'its cells are not in the order of a 2 x 2 grid'
    """
    axes = _spatial_axes(inputs)
    if axes is None or len(axes) != len(layout.grid):
        return None
    if not any(one.varies for one in place.values()):
        return None
    cells = " x ".join(map(str, layout.grid))
    for spatial, axis in enumerate(axes):
        coordinate = place.get(axis)
        if coordinate is None:
            return f"its cells do not follow axis {axis[1]} of the input"
        grid = layout.to_grid(coordinate.values.expand(shape))
        if bool(grid.isnan().any()):
            return f"some cells of a {cells} grid do not come from the images"
        if not _progresses(grid, 2 + spatial, coordinate.pitch):
            return f"its cells are not in the order of a {cells} grid"
    return None


def token_layout(place: Place, shape: Size, inputs: Inputs) -> Tokens | None:
    """Return the layout of tokens (N, T, C) by their positions; None if they are not one run of a whole grid.

    Args:
        place: the positions of a layer's output.
        shape: its shape.
        inputs: the inputs of the pass.

    Example:
        >>> import torch
        >>> images = torch.rand(1, 3, 32, 48)
        >>> with torch.no_grad(), followed(Inputs(images)) as positions:
        ...     patches = torch.nn.functional.avg_pool2d(images, 16).flatten(2).mT
        ...     tokens = torch.cat([torch.zeros(1, 1, 3), patches], 1)
        >>> token_layout(positions.of(tokens), (1, 7, 3), Inputs(images))
        Tokens(grid=(2, 3), prefix=1)
    """
    axes = _spatial_axes(inputs)
    if len(shape) != 3 or axes is None or not all(axis in place for axis in axes):
        return None
    coordinates = [place[axis] for axis in axes]
    if any(not set(one.varies) <= {1} for one in coordinates):
        return None
    lines = [one.values.expand(1, shape[1], 1).flatten() for one in coordinates]
    patches = ~torch.stack(lines).isnan().any(0)
    prefix, count = int(patches.int().argmax()), int(patches.sum())
    grid = tuple(
        len((line[patches] / (one.pitch / 4)).round().unique()) for line, one in zip(lines, coordinates, strict=True)
    )
    run = bool(patches[prefix : prefix + count].all())
    return Tokens(grid, prefix) if run and count == math.prod(grid) else None


def is_followed(place: Place, inputs: Inputs) -> bool:
    """Whether the positions of a layer's output along all spatial axes of the images are known."""
    axes = _spatial_axes(inputs)
    return axes is not None and all(axis in place for axis in axes)


def _spatial_axes(inputs: Inputs) -> list[tuple[int, int]] | None:
    """The spatial axes of the images, by the number of the tensor; None if the inputs hold no images."""
    found = inputs.location
    return None if found is None else [(found[0], axis) for axis in found[1]]


def _progresses(grid: Tensor, axis: int, pitch: float) -> bool:
    """Whether coordinates (N, C, ...) grow evenly along one axis, and change along no other, apart from the rows."""
    lines = grid.movedim(axis, -1)
    line = lines[0].reshape(-1, lines.shape[-1])[0]
    if bool(((lines - line).abs() > pitch / 4).any()):
        return False
    steps = line.diff()
    return not len(steps) or (bool((steps > 0).all()) and float(steps.amax() - steps.amin()) <= pitch / 4)
