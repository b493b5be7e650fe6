"""Locate the cells of layers in the images, using the positions that were followed in a forward pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from itertools import permutations

import torch
from torch import Tensor

from camlib.discovery.confirmation import covered_part, is_followed, layout_by_positions
from camlib.discovery.coordinates import Coordinate, Place
from camlib.discovery.perturbation import problem_by_perturbation
from camlib.discovery.positions import Positions
from camlib.errors import CamlibValueError, CamlibWarning
from camlib.inputs import ImageAxes, Inputs
from camlib.layers.layouts import ChannelsFirst, Layout, Size, grid_error, layout_of
from camlib.layers.names import module_of
from camlib.passes.forward_pass import reshaped
from camlib.passes.located import count
from camlib.passes.network import Network

KEYS = "attention"
"""What stands for the keys of attention among the layers."""


def is_located(network: Network, inputs: Inputs, layers: Iterable[str]) -> bool:
    """Whether layers were located before, for inputs of this kind and as many images."""
    known = [network.located.of(layer, inputs) for layer in layers]
    return all(one is not None and one.holds_for(inputs) for one in known)


def has_layouts(network: Network, inputs: Inputs, features: Mapping[str, Tensor]) -> bool:
    """Whether the layouts of all layers are known, with the number of tokens that they have returned now."""
    return network.reshape is not None or all(
        network.located.layout(layer, tuple(tensor.shape), inputs) is not None for layer, tensor in features.items()
    )


def locate(network: Network, inputs: Inputs, features: Mapping[str, Tensor], positions: Positions) -> None:
    """Find the layouts of layers, and the images that they are maps of; the network keeps both.

    Args:
        network: the network.
        inputs: its inputs in the pass.
        features: each layer's output in the pass, by name, as the layer returned it.
        positions: the positions that were followed in the pass.

    Raises:
        CamlibValueError: a layer's cells do not come from a grid of the images.
    """
    for layer, tensor in features.items():
        if module_of(network.module, layer) in network.text_modules:
            continue  # refused when its layout is read
        place, shape = positions.of(tensor), tuple(tensor.shape)
        unknown = bool(positions.not_followed)
        layout: Layout | None = None
        if network.reshape is not None:
            axes, grid, place = _axes_of_reshaped(network, inputs, layer, tensor, place, unknown)
        else:
            axes, layout = _layout(network, inputs, layer, tensor, place, unknown)
            grid = layout.grid
        covered = covered_part(place, grid, inputs, axes) if is_followed(place, axes) else None
        network.located.add(layer, inputs, axes, layout, shape, covered)


def keys_layout(network: Network, inputs: Inputs, attention: Tensor, positions: Positions | None) -> Layout | None:
    """Return the layout of the keys (N, keys, 1) of an attention, which the network keeps; None if they are no grid.

    Args:
        network: the network.
        inputs: its inputs in the pass.
        attention: (N, heads, queries, keys), from the pass.
        positions: the positions that were followed in the pass; None if it was not followed.
    """
    shape = len(attention), attention.shape[-1], 1
    if positions is None:
        return network.located.layout(KEYS, shape, inputs)
    place = positions.of(attention)
    for axes in inputs.possible_axes():
        of_keys: Place = {}
        for axis in axes.spatial:
            one = place.get((axes.tensor, ~axis), place.get((axes.tensor, axis)))
            if one is not None and set(one.compact().varies) <= {attention.dim() - 1}:
                of_keys[axes.tensor, axis] = Coordinate(one.compact().values.reshape(1, -1, 1), one.pitch)
        layout = layout_by_positions(of_keys, shape, inputs, axes)
        if not isinstance(layout, str):
            network.located.add(KEYS, inputs, axes, layout, shape)
            return layout
    return None


def queries_are_keys(inputs: Inputs, attention: Tensor, positions: Positions) -> bool:
    """Whether the queries of an attention (N, heads, tokens, tokens) were seen to lie where its keys lie.

    Args:
        inputs: the network's inputs in the pass.
        attention: from the pass.
        positions: the positions that were followed in the pass.
    """
    place = positions.of(attention)
    for axes in inputs.possible_axes():
        pairs = [(place.get((axes.tensor, axis)), place.get((axes.tensor, ~axis))) for axis in axes.spatial]
        if all(
            queries is not None
            and keys is not None
            and torch.equal(queries.compact().values.mT.nan_to_num(-1), keys.compact().values.nan_to_num(-1))
            for queries, keys in pairs
        ):
            return True
    return False


def image_axes(network: Network, inputs: Inputs, layers: Iterable[str]) -> ImageAxes | None:
    """Return where the images are that some located layers are maps of.

    Raises:
        CamlibValueError: they are maps of different inputs.
    """
    known = {layer: network.located.of(layer, inputs) for layer in layers}
    axes = {layer: one.axes for layer, one in known.items() if one is not None}
    if len(set(axes.values())) > 1:
        of_inputs = ", ".join(f"{layer!r} of input {one.tensor}, axes {one.spatial}" for layer, one in axes.items())
        raise CamlibValueError(
            f"the layers are maps of different inputs ({of_inputs}), so their maps cannot be laid on one image; "
            "explain them in separate calls"
        )
    found = next(iter(axes.values()), None)
    return found if found and found.spatial else None


def _layout(
    network: Network, inputs: Inputs, layer: str, tensor: Tensor, place: Place, unknown: bool
) -> tuple[ImageAxes, Layout]:
    """Where the images are that a layer is a map of, and its layout."""
    shape = tuple(tensor.shape)
    problems = []
    possible = inputs.possible_axes()
    if not inputs.tensors and len(shape) in (4, 5):  # nothing is seen of the inputs, on which a map could be laid
        return ImageAxes(0, ()), ChannelsFirst(shape[2:])
    for axes in possible:
        found = layout_by_positions(place, shape, inputs, axes)
        if not isinstance(found, str):
            return axes, found
        problems.append(found)
    for axes in possible:
        cells = shape[2:]
        if len(cells) == len(axes.spatial) and math.prod(cells) == 1 and not is_followed(place, axes):
            return axes, ChannelsFirst(cells)  # one cell, which is the whole image
    if unknown and inputs.axes is not None and not is_followed(place, inputs.axes):
        module, size = module_of(network.module, layer), None if inputs.is_list else inputs.size
        layout = layout_of(network.module, module, shape, size)
        if layout is not None:
            problem = problem_by_perturbation(network, inputs, layer, layout.to_grid, len(shape) == 3)
            if problem is None:
                return inputs.axes, layout
            problems.insert(0, problem)
    usual = inputs.axes or next(iter(possible), None)
    raise grid_error(shape, inputs.along(usual).size, layer, *problems[:1])


def _axes_of_reshaped(
    network: Network, inputs: Inputs, layer: str, tensor: Tensor, place: Place, unknown: bool
) -> tuple[ImageAxes, Size, Place]:
    """Where the images are that the grid made by the user's ``reshape`` is a map of, its size, and its positions."""
    reshape = network.reshape
    assert reshape is not None
    own, possible = inputs.axes, inputs.possible_axes()
    usual = possible[0] if own is None and len(possible) == 1 else own
    images = None if usual is None else count(inputs, usual)
    values = tensor.dequantize() if tensor.is_quantized else tensor
    shape = tuple(reshaped(reshape, values, layer, images=images).shape)
    moved: Place = {}
    for axis, one in place.items():
        like = one.values.expand(tensor.shape).to(tensor.device, torch.promote_types(torch.float32, tensor.dtype))
        try:
            grid = reshaped(reshape, like.contiguous(), layer, images=images).to("cpu", torch.float32)
        except Exception as error:
            raise CamlibValueError(
                f"reshape must only rearrange the output of layer {layer!r}; on the positions of its elements, "
                f"{tuple(like.shape)} {like.dtype}, it raised {type(error).__name__}: {error}"
            ) from error
        moved[axis] = Coordinate(grid, one.pitch).compact()
    possible = [axes for axes in possible if len(axes.spatial) == len(shape) - 2]
    if math.prod(shape[2:]) == 1 and (own is None or own in possible):
        return own or ImageAxes(0, ()), shape[2:], {}  # one cell, which is the whole image
    if own is None and not possible:
        warnings.warn(
            f"the inputs hold no images, so it is not checked where the cells are that reshape makes of layer {layer!r}"
            "; heatmaps need size=",
            CamlibWarning,
            stacklevel=8,
        )
        return ImageAxes(0, ()), shape[2:], {}
    if own is not None and not possible:
        reshaped(reshape, values, layer, len(own.spatial), images)  # raises
    problems = []
    for axes in possible:
        without_channels = inputs.tensors[axes.tensor].dim() == 1 + len(axes.spatial)
        for spatial in permutations(axes.spatial) if without_channels else (axes.spatial,):
            found = layout_by_positions(moved, shape, inputs, ImageAxes(axes.tensor, spatial))
            if isinstance(found, ChannelsFirst):
                return ImageAxes(axes.tensor, spatial), shape[2:], moved
            problems.append(found if isinstance(found, str) else "its axes are in another order")
    if unknown and usual in possible and usual is not None and not is_followed(place, usual):
        problem = problem_by_perturbation(network, inputs.along(usual), layer, reshape, tensor.dim() == 3)
        if problem is None:
            return usual, shape[2:], {}
        problems.insert(0, problem)
    of_size = " x ".join(map(str, inputs.along(usual).size or ("unknown size",)))
    raise CamlibValueError(
        f"reshape turned {tuple(tensor.shape)} of layer {layer!r} into {shape}, which is not a grid over inputs of "
        f"{of_size}: {next(iter(problems), 'it has another number of axes')}; it must return (N, C, ...) with the "
        "cells in the order of the images"
    )
