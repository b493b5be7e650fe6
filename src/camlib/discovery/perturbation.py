"""Test a layout by perturbation, for networks whose operations cannot be followed, such as quantised ones.

A few places of the image are perturbed, one after the other. Each cell at one of these places must change most when its
own place is perturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from camlib.inputs import Inputs
from camlib.layers.layouts import Size
from camlib.layers.names import module_of
from camlib.passes.hooks import Watch, hooked
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network


def problem_by_perturbation(
    network: Network, inputs: Inputs, layer: str, to_grid: Callable[[Tensor], Tensor], neighbours: bool
) -> str | None:
    """Return why a grid is not where its cells come from; None if every perturbed place is found on the grid.

    Costs at most two forward passes for each spatial axis, and two more.

    Args:
        network: the network.
        inputs: its inputs.
        layer: the layer's name.
        to_grid: from the layer's features to the grid (N, C, ...).
        neighbours: whether to tell neighbours apart, too, as for tokens. A convolution does not shift its cells, and
            in a deep network neighbours change almost equally.
    """
    if inputs.size is None or not inputs.images.is_floating_point():
        return "where its cells come from cannot be followed"
    first = inputs.first()
    clean = to_grid(_features(network, first, layer))[:1].double()
    grid = tuple(clean.shape[2:])
    if len(grid) != len(inputs.size):
        return f"it has {len(grid)} axes, and the images {len(inputs.size)}"
    cells = _cells(grid, neighbours)
    generator = torch.Generator(inputs.images.device).manual_seed(0)
    low, high = first.images[0].amin(), first.images[0].amax()
    noise = torch.rand(first.images[0].shape, generator=generator, device=low.device, dtype=low.dtype)
    noise = low + (high - low if bool(high > low) else 1.0) * noise
    changes = []
    for cell in cells:
        images = first.images.clone()
        box: Any = (slice(None), *_pixels(cell, grid, inputs.size))
        images[0][box] = noise[box]
        features = to_grid(_features(network, first.with_images(images), layer))[:1]
        changes.append((features.double() - clean).abs().mean(1)[0])
    by_place = torch.stack(changes)
    if not bool(by_place.flatten(1).any(1).all()):
        return "its cells do not come from the images"
    for cell in cells:
        of_cell: Any = (slice(None), *cell)
        strongest = cells[int(by_place[of_cell].argmax())]
        if strongest != cell:
            return f"cell {cell} of its grid {grid} changes most with the image at the place of cell {strongest}"
    return None


def _features(network: Network, inputs: Inputs, layer: str) -> Tensor:
    """The output of a layer for some inputs."""
    watch = Watch({layer: module_of(network.module, layer)})
    with undisturbed(network.module), torch.no_grad(), hooked(watch.hooks()):
        network.run(inputs)
    return watch.activations()[layer]


def _cells(grid: Size, neighbours: bool) -> list[Size]:
    """A cell near the first corner, the one near the far end of each axis, and its neighbours if they are wanted."""
    near = tuple(side // 4 for side in grid)
    cells = [near]
    for axis, side in enumerate(grid):
        others = [side - 1 - near[axis], *([near[axis] + 1] if neighbours and side > near[axis] + 1 else [])]
        cells += [(*near[:axis], other, *near[axis + 1 :]) for other in others]
    return list(dict.fromkeys(cells))


def _pixels(cell: Size, grid: Size, size: Size) -> list[slice]:
    """The pixels of the image at the place of a cell."""
    return [
        slice(at * side // cells, max((at + 1) * side // cells, at * side // cells + 1))
        for at, cells, side in zip(cell, grid, size, strict=True)
    ]
