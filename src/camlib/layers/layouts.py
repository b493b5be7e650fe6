"""The layout of a feature map (channels first, channels last, or tokens), and its conversion to a channels-first grid.

A grid has as many axes as the input has spatial axes: (l,) for a signal, (h, w) for an image, (t, h, w) for a video or
a volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError

MAX_PREFIX_TOKENS = 5
"""The most tokens that are taken for class, distillation and register tokens where the patches cannot be followed."""

Size = tuple[int, ...]
"""(l,), (h, w) or (t, h, w), in cells of a grid, or in samples, pixels or voxels of the input."""


@dataclass(frozen=True)
class ChannelsFirst:
    """(N, C, h, w), the layout of convolutions; (N, C, l) for signals and (N, C, t, h, w) for videos."""

    grid: Size

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, ...)."""
        return features


@dataclass(frozen=True)
class ChannelsLast:
    """(N, h, w, C), the layout of Swin and similar networks; (N, l, C) for signals and (N, t, h, w, C) for videos."""

    grid: Size

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, ...)."""
        return features.movedim(-1, -1 - len(self.grid))


@dataclass(frozen=True)
class Transposed:
    """Any other order of the axes, such as (N, C, w, h) behind a transposition."""

    grid: Size
    axes: Size
    """The axes of the features that are the axes of the grid, counted from the last one: -1, -2, ..."""

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, ...)."""
        return features.movedim(self.axes, tuple(range(-len(self.axes), 0)))


@dataclass(frozen=True)
class Tokens:
    """(N, T, C): class and register tokens, then the patches, then others."""

    grid: Size
    prefix: int
    order: Size | None = None
    """The number of the patch that belongs to each cell; None if they are row by row (in videos, frame by frame)."""
    batch_second: bool = False
    """Whether the features are (T, N, C)."""

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N, C, ...), with the patches alone."""
        if self.batch_second:
            features = features.transpose(0, -2)
        patches = features[..., self.prefix : self.prefix + math.prod(self.grid), :]
        if self.order is not None:
            patches = patches.index_select(-2, torch.tensor(self.order, device=features.device))
        patches = patches.movedim(-1, -2)
        return patches.reshape(*patches.shape[:-1], *self.grid)


@dataclass(frozen=True)
class Frames:
    """(N T, ...): a row for each frame of a clip, slice of a volume, or view of a subject."""

    grid: Size
    """(T, h, w), or (h, T, w) or (h, w, T) of slices along another axis."""
    frame: ChannelsFirst | ChannelsLast | Transposed | Tokens
    """The layout of each row."""
    axis: int
    """The axis of the grid along which the frames are."""
    frames_first: bool
    """Whether the first frames of all images come first, rather than all frames of the first image."""

    @property
    def count(self) -> int:
        """T, the number of frames."""
        return self.grid[self.axis]

    def to_grid(self, features: Tensor) -> Tensor:
        """Return (N T, C, h, w), all frames of the first image first."""
        if self.frames_first:
            features = features.unflatten(0, (self.count, -1)).transpose(0, 1).flatten(0, 1)
        return self.frame.to_grid(features)

    def by_image(self, maps: Tensor) -> Tensor:
        """Return the maps of all frames (N T, [K,] h, w) by image, (N, [K,] T, h, w), with the axes of the grid."""
        of_images: Tensor = maps.unflatten(0, (-1, self.count)).movedim(1, self.axis - len(self.grid))
        return of_images


Layout = ChannelsFirst | ChannelsLast | Transposed | Tokens | Frames
ChannelAxis = Literal["first", "last"] | None

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.LayerNorm, nn.Linear, nn.MultiheadAttention)


def with_grid(layout: Layout, features: Tensor, grid: Tensor) -> Tensor:
    """Return features with another grid (N, C, ...) in place of their own; tokens that are not on the grid stay."""
    places = layout.to_grid(torch.arange(features.numel(), device=features.device).view(features.shape))
    return features.flatten().index_copy(0, places.flatten(), grid.to(features.dtype).flatten()).view(features.shape)


def channel_axis(model: nn.Module, layer: nn.Module) -> ChannelAxis:
    """Infer a layer's channel axis from the types of its parametric modules; None if they disagree.

    A layer without parameters, such as an activation, has the channel axis of the modules defined before it.
    """
    axes = {_axis_of(module) for module in layer.modules()} - {None}
    if not axes and not any(True for _ in layer.parameters()):
        for module in model.modules():
            if module is layer:
                break
            axis = _axis_of(module)
            axes = {axis} if axis else axes
    return axes.pop() if len(axes) == 1 else None


def _axis_of(module: nn.Module) -> ChannelAxis:
    """The channel axis of a single module.

    Some layer norms, such as ConvNeXt's, move the channels to the end and back; their name or ``data_format`` shows it.
    """
    data_format = getattr(module, "data_format", None)
    if isinstance(module, _CHANNELS_FIRST) or data_format == "channels_first":
        return "first"
    if isinstance(module, nn.LayerNorm) and re.search("[123]d", type(module).__name__):
        return "first"
    return "last" if isinstance(module, _CHANNELS_LAST) or data_format == "channels_last" else None


def infer_layout(shape: Size, input_size: Size | None, channels: ChannelAxis = None) -> Layout | None:
    """Infer the layout of features from their shape and the size of the input.

    A grid fits an image if one stride explains both of its sides; time may have a different stride. A map with as many
    spatial axes as the input is channels-first unless only the channels-last reading fits; if both are possible,
    ``channels`` decides. Tokens are the grid of square patches that tiles the image exactly, and leaves the fewest
    prefix tokens.

    Args:
        shape: the shape of the layer's output, with the batch.
        input_size: (L,), (H, W) or (T, H, W) of the input, or None if it is unknown.
        channels: the channel axis from :func:`channel_axis`.

    Returns:
        The layout, or None if the shape has no reading as a grid.
    """
    if input_size is None:
        return ChannelsFirst(shape[2:]) if len(shape) in (4, 5) else None
    if len(shape) == len(input_size) + 2:
        first, last = shape[2:], shape[1:-1]
        if not one_stride(last, input_size):
            return ChannelsFirst(first)
        possible = all(cells <= side for cells, side in zip(first, input_size, strict=True))
        if channels == "last" or not (possible and (channels == "first" or one_stride(first, input_size))):
            return _sequence(last[0], input_size[0]) if len(last) == 1 else ChannelsLast(last)
        return ChannelsFirst(first)
    if len(shape) == 3:
        for prefix in range(min(MAX_PREFIX_TOKENS, shape[1] - 1) + 1):
            grid = next(_patch_grids(shape[1] - prefix, input_size), None)
            if grid:
                return Tokens(grid, prefix)
    return None


def layout_of(model: nn.Module, layer: nn.Module, shape: Size, input_size: Size | None) -> Layout | None:
    """Return :func:`infer_layout` of a layer's output; only if that is ambiguous, infer the layer's channel axis."""
    first, last = (infer_layout(shape, input_size, channels) for channels in ("first", "last"))
    return first if first == last else infer_layout(shape, input_size, channel_axis(model, layer))


def _sequence(tokens: int, length: int) -> Layout:
    """(N, tokens, C) for a signal: all tokens are patches, unless all but a class token tile the signal exactly."""
    if length % tokens and tokens > 2 and not length % (tokens - 1):
        return Tokens((tokens - 1,), 1)
    return ChannelsLast((tokens,))


def one_stride(grid: Size, size: Size) -> bool:
    """Whether some stride s gives |h - H / s| < 1 and |w - W / s| < 1; the time axis must only not be longer."""
    sides = list(zip(grid, size, strict=True))[-2:]
    lowest = max(side / (cells + 1) for cells, side in sides)
    highest = min(side / (cells - 1) if cells > 1 else math.inf for cells, side in sides)
    return lowest < highest and all(cells <= side for cells, side in zip(grid, size, strict=True))


def _patch_grids(tokens: int, size: Size) -> Iterator[Size]:
    """Yield the grids of ``tokens`` patches that tile the input exactly.

    Patches are square; in volumes, inputs at least half as deep as they are wide, they are cubes. Otherwise, and in
    videos, they are square within a frame and span as few frames as the number of tokens allows.
    """
    if len(size) < 3 or 2 * size[0] >= min(size[1:]):
        for patch in range(1, min(size) + 1):
            grid = tuple(side // patch for side in size)
            if math.prod(grid) == tokens and not any(side % patch for side in size):
                yield grid
    if len(size) == 3:
        for frames in (t for t in range(size[0], 0, -1) if size[0] % t == 0 and tokens % t == 0):
            yield from ((frames, *grid) for grid in _patch_grids(tokens // frames, size[1:]))


def grid_error(shape: Size, input_size: Size | None, layer: str, problem: str | None = None) -> CamlibValueError:
    """Return the error for an output that is not a grid of the images."""
    of_size = f"inputs of {' x '.join(map(str, input_size))}" if input_size else "inputs of unknown size"
    grid = ", ".join(("(N, C", *("l", "h, w", "t, h, w")[len(input_size or (0, 0)) - 1 :][:1])) + ")"
    averaged = list(range(2, len(shape) - 1))
    if input_size and len(input_size) == 1 and averaged:
        grid += f", such as the mean over the axes that the inputs do not have: reshape=lambda t: t.mean({averaged})"
    return CamlibValueError(
        f"layer {layer!r} returns shape {shape}, which is not a grid over {of_size}"
        f"{f': {problem}' if problem else ''}; choose another layer, leave layer= out, or pass reshape=, a function "
        f"from that tensor to {grid}"
    )
