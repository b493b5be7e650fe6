"""Test a layout by perturbation, for networks whose operations cannot be followed, such as quantised ones.

A few places of the image are perturbed, one after the other. The cells that change most must be those at these places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from camlib.inputs import Inputs
from camlib.layers.layouts import Size
from camlib.passes.hooks import Watch, hooked
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network


def problem_by_perturbation(
    network: Network, inputs: Inputs, layer: str, to_grid: Callable[[Tensor], Tensor]
) -> str | None:
    """Return why a grid is not where its cells come from; None if every perturbed place is found on the grid.

    Costs two forward passes for each spatial axis, and two more.

    Args:
        network: the network.
        inputs: its inputs.
        layer: the layer's name.
        to_grid: from the layer's features to the grid (N, C, ...).
    """
    if inputs.size is None or not inputs.images.is_floating_point():
        return "where its cells come from cannot be followed"
    first = inputs.first()
    clean = to_grid(_features(network, first, layer))[:1].double()
    grid = tuple(clean.shape[2:])
    if len(grid) != len(inputs.size):
        return f"it has {len(grid)} axes, and the images {len(inputs.size)}"
    generator = torch.Generator(inputs.images.device).manual_seed(0)
    for cell in _cells(grid):
        images = first.images.clone()
        box = images[0][(slice(None), *_pixels(cell, grid, inputs.size))]
        low, high = images[0].amin(), images[0].amax()
        noise = torch.rand(box.shape, generator=generator, device=box.device, dtype=box.dtype)
        box.copy_(low + (high - low if bool(high > low) else 1.0) * noise)
        change = (to_grid(_features(network, first.with_images(images), layer))[:1].double() - clean).abs().mean(1)
        if not bool(change.any()):
            return "its cells do not come from the images"
        found = torch.unravel_index(change.flatten().argmax(), grid)
        if any(abs(int(at) - own) > (side > 4) for at, own, side in zip(found, cell, grid, strict=True)):
            place = tuple(map(int, found))
            return f"a change of the image at the place of cell {cell} shows in cell {place} of the grid {grid}"
    return None


def _features(network: Network, inputs: Inputs, layer: str) -> Tensor:
    """The output of a layer for some inputs."""
    watch = Watch({layer: network.module.get_submodule(layer)})
    with undisturbed(network.module), torch.no_grad(), hooked(watch.hooks()):
        network.run(inputs)
    return watch.activations()[layer]


def _cells(grid: Size) -> Iterator[Size]:
    """Yield a cell near the first corner, and those that differ from it along one axis; none is its own mirror."""
    near, far = tuple(side // 4 for side in grid), tuple((3 * side) // 4 for side in grid)
    yield near
    for axis, side in enumerate(grid):
        if side > 1:
            yield (*near[:axis], far[axis], *near[axis + 1 :])


def _pixels(cell: Size, grid: Size, size: Size) -> tuple[slice, ...]:
    """The pixels of the image at the place of a cell."""
    return tuple(
        slice(at * side // cells, max((at + 1) * side // cells, at * side // cells + 1))
        for at, cells, side in zip(cell, grid, size, strict=True)
    )
