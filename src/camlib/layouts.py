"""The layout of a feature map: channels first, channels last, or tokens; and back to a channels-first grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.nested import tensors_in

MAX_PREFIX_TOKENS = 16
"""A class token, a distillation token, registers: no network known has more."""


@dataclass(frozen=True)
class ChannelsFirst:
    """(N, C, h, w), the layout of convolutions."""

    grid: tuple[int, int]

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, h, w)."""
        return features


@dataclass(frozen=True)
class ChannelsLast:
    """(N, h, w, C), the layout of Swin and its relatives."""

    grid: tuple[int, int]

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, h, w)."""
        return features.movedim(-1, -3)


@dataclass(frozen=True)
class Tokens:
    """(N, prefix + h * w, C): class and register tokens, then the patches row by row."""

    grid: tuple[int, int]
    prefix: int

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, h, w), without the prefix tokens."""
        patches = features[..., self.prefix :, :].movedim(-1, -2)
        return patches.reshape(*patches.shape[:-1], *self.grid)


Layout = ChannelsFirst | ChannelsLast | Tokens
ChannelAxis = Literal["first", "last"] | None

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.LayerNorm, nn.Linear, nn.MultiheadAttention)


def channel_axis(model: nn.Module, layer: nn.Module) -> ChannelAxis:
    """Tell from its kinds of parametric modules which axis a layer takes for channels; None if it has both kinds.

    A layer without parameters, such as an activation, hands on what the modules defined before it made.
    """
    parametric = [module for module in layer.modules() if isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST)]
    if not parametric and not any(True for _ in layer.parameters()):
        for module in model.modules():
            if module is layer:
                break
            if isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST):
                parametric = [module]
    first = any(isinstance(module, _CHANNELS_FIRST) for module in parametric)
    last = any(isinstance(module, _CHANNELS_LAST) for module in parametric)
    return None if first == last else "first" if first else "last"


def infer_layout(
    shape: tuple[int, ...], input_size: tuple[int, int] | None, channels: ChannelAxis = None
) -> Layout | None:
    """Tell the layout of features from their shape and the size of the picture they were computed from.

    A grid fits a picture if one stride explains both of its sides. A 4-D map is channels-first unless only the
    channels-last reading fits; what is known of the layer decides where both are possible. Tokens are the grid of
    square patches that tiles the picture exactly, or else nearly, and leaves the fewest prefix tokens.

    Args:
        shape: of the layer's output, with the batch.
        input_size: (H, W) of the input, or None if it is not known.
        channels: the axis that :func:`channel_axis` tells.

    Returns:
        The layout, or None where no reading makes sense.
    """
    if len(shape) == 4:
        first, last = (shape[2], shape[3]), (shape[1], shape[2])
        if input_size is None or not _one_stride(last, input_size):
            return ChannelsFirst(first)
        possible = all(cells <= side for cells, side in zip(first, input_size, strict=True))
        if channels == "last" or not (possible and (channels == "first" or _one_stride(first, input_size))):
            return ChannelsLast(last)
        return ChannelsFirst(first)
    if len(shape) == 3 and input_size:
        for exact in (True, False):
            for prefix in range(min(MAX_PREFIX_TOKENS, shape[1] - 1) + 1):
                grid = _patch_grid(shape[1] - prefix, input_size, exact)
                if grid:
                    return Tokens(grid, prefix)
    return None


def _one_stride(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether some stride s gives |h - H / s| < 1 and |w - W / s| < 1."""
    lowest = max(side / (cells + 1) for cells, side in zip(grid, size, strict=True))
    highest = min(side / (cells - 1) if cells > 1 else math.inf for cells, side in zip(grid, size, strict=True))
    return lowest < highest and all(cells <= side for cells, side in zip(grid, size, strict=True))


def _patch_grid(tokens: int, size: tuple[int, int], exact: bool) -> tuple[int, int] | None:
    """The grid of ``tokens`` square patches that tiles the picture, exactly or with a last row cut off."""
    height, width = size
    for patch in range(1, max(size) + 1):
        if not exact or height % patch == width % patch == 0:
            for rows, columns in ((height // patch, width // patch), (-(-height // patch), -(-width // patch))):
                if rows * columns == tokens:
                    return rows, columns
        if -(-height // patch) * -(-width // patch) < tokens:
            return None
    return None


def grid_layout(
    shape: tuple[int, ...], input_size: tuple[int, int] | None, layer: str, channels: ChannelAxis
) -> Layout:
    """Return the layout of a layer's output, as :func:`infer_layout`.

    Raises:
        CamlibValueError: the shape has no reading as a grid; ``reshape=`` is the way out.
    """
    layout = infer_layout(shape, input_size, channels)
    if layout is None:
        picture = f"inputs of {input_size[0]} x {input_size[1]}" if input_size else "inputs of unknown size"
        raise CamlibValueError(
            f"layer {layer!r} returns shape {shape}, which is no grid over {picture}; choose "
            "another layer, or pass reshape=, a function from that tensor to (N, C, h, w)"
        )
    return layout


def picture_size(inputs: object) -> tuple[int, int] | None:
    """Return (H, W) of the first 4-D tensor among the inputs, or None."""
    for tensor in tensors_in(inputs):
        if tensor.dim() == 4:
            return tensor.shape[2], tensor.shape[3]
    return None
