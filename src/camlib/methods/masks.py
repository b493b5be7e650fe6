"""Masks over images: a layer's channels, random masks, and sliding windows.

A method needs many masks of the image's size, so they are made a few at a time: :class:`RandomMasks` and
:class:`SlidingWindows` are indexed like a tensor (M, ...) of masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.extent import Covered, resized_to_input
from camlib.imaging.normalization import normalized
from camlib.imaging.resizing import interpolated
from camlib.methods.arithmetic import divided
from camlib.passes.perturbed import PerturbedPasses

MASKS_AT_ONCE = 64
"""How many masks :func:`mean_under` adds at a time."""


class Masks(Protocol):
    """M masks, computed when indexed; a tensor (M, ...) also satisfies this protocol."""

    def __len__(self) -> int:
        """M."""

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """Return the masks (rows, ...) for an index (rows,) or a slice."""


def channel_masks(channels: Tensor, size: tuple[int, ...], covered: Covered | None = None) -> Tensor:
    """Turn channels into masks in [0, 1]: upsampled linearly with half-pixel centres, then each min-max normalised.

    Args:
        channels: (rows, ...) on a layer's grid.
        size: the size of the masks, which is that of the image.
        covered: which part of the image the layer covers; None for the whole: see :attr:`camlib.Explanation.extent`.

    Returns:
        (rows, ...) of that size. The mask of a constant channel is zero.

    Example:
        >>> import torch
        >>> channel_masks(torch.tensor([[[1.0, 3.0]]]), (1, 4))
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    upsampled = (
        interpolated(channels, size)
        if covered is None
        else resized_to_input(channels, size, covered.extent, size, covered.origin)
    )
    return normalized(upsampled.flatten(1), "minmax").reshape(upsampled.shape)


class RandomMasks:
    """RISE's masks: random grids of zeros and ones, upsampled linearly to one cell more than the image, and shifted.

    Args:
        size: the size of the masks.
        samples: M, the number of masks.
        cells: the number of grid cells along each side.
        probability: the probability that a cell is one.
        generator: draws grids and shifts.
        like: a tensor that gives the masks' device and type.

    Example:
        >>> import torch
        >>> masks = RandomMasks((32, 48), 100, 4, 0.5, torch.Generator().manual_seed(0), torch.empty(0))
        >>> len(masks), masks[10:14].shape, masks[torch.tensor([7])].shape
        (100, torch.Size([4, 32, 48]), torch.Size([1, 32, 48]))
    """

    def __init__(
        self,
        size: tuple[int, ...],
        samples: int,
        cells: int,
        probability: float,
        generator: torch.Generator,
        like: Tensor,
    ) -> None:
        device = generator.device
        self._size = size
        self._steps = [math.ceil(side / cells) for side in size]
        drawn = torch.rand((samples, *[cells] * len(size)), generator=generator, device=device, dtype=torch.float64)
        self._grids = (drawn < probability).to(like)
        shifts = [torch.randint(step, (samples,), generator=generator, device=device) for step in self._steps]
        self._shifts = torch.stack(shifts, 1).to(like.device)

    def __len__(self) -> int:
        return len(self._grids)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        grids, shifts = self._grids[index], self._shifts[index]
        masks = interpolated(grids, tuple((n + 1) * step for n, step in zip(grids.shape[1:], self._steps, strict=True)))
        for axis, side in enumerate(self._size, 1):
            shifted = shifts[:, axis - 1, None] + torch.arange(side, device=shifts.device)
            shape = [len(masks), *[1] * len(self._size)]
            shape[axis] = side
            masks = masks.take_along_dim(shifted.reshape(shape), axis)
        return masks


class SlidingWindows:
    """Occlusion's masks: true inside a window, which slides over the image until it touches the far border.

    Args:
        size: the size of the masks.
        window: the size of the window.
        stride: how far the window moves at a time; the last step may be shorter.
        device: the device of the masks.

    Example:
        >>> import torch
        >>> SlidingWindows((5,), (3,), (3,), torch.device("cpu"))[:].int()
        tensor([[1, 1, 1, 0, 0],
                [0, 0, 1, 1, 1]], dtype=torch.int32)
    """

    def __init__(
        self, size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], device: torch.device
    ) -> None:
        self._size = size
        self._window = window
        sides = zip(size, window, stride, strict=True)
        starts = [torch.tensor([*range(0, side - width, step), side - width]) for side, width, step in sides]
        self._starts = torch.cartesian_prod(*starts).reshape(-1, len(size)).to(device)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        starts = self._starts[index]
        masks = torch.ones((), dtype=torch.bool, device=starts.device)
        for axis, (side, width) in enumerate(zip(self._size, self._window, strict=True)):
            beyond = torch.arange(side, device=starts.device) - starts[:, axis, None]
            shape = [len(starts), *[1] * len(self._size)]
            shape[axis + 1] = side
            masks = masks & ((beyond >= 0) & (beyond < width)).reshape(shape)
        return masks


def scores_under(passes: PerturbedPasses, masks: Masks, under: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Return the scores (N, M) of each class with the same M masks for every image.

    Args:
        passes: runs the perturbed images.
        masks: M masks.
        under: from images and masks (rows, 1, ...) to perturbed images.
    """
    number, count = passes.count, len(masks)
    image = torch.arange(number, device=passes.device).repeat_interleave(count)
    mask = torch.arange(count, device=passes.device).repeat(number)
    scores = passes.of_images(image, lambda images, rows: under(images, masks[mask[rows]][:, None]))
    scores = scores.reshape(number, count, *scores.shape[1:])
    return list(scores.unbind(2)) if scores.dim() == 3 else [scores]


def check_masked(masks: Masks, scores: Tensor) -> None:
    """Check masks, and the scores (N, M) of the masked images.

    Raises:
        CamlibTypeError: other types.
        CamlibValueError: not a score for each mask, or on another device.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        given = str(scores.dtype) if isinstance(scores, Tensor) else type(scores).__name__
        raise CamlibTypeError(f"scores must be a floating-point tensor (N, M), got {given}")
    of_tensor = isinstance(masks, Tensor) and masks.dim() > 1 and not masks.is_complex()
    if not of_tensor and not isinstance(masks, (RandomMasks, SlidingWindows)):
        given = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise CamlibTypeError(f"masks must be a tensor (M, ...), or masks of camlib.methods.masks, got {given}")
    if scores.dim() != 2 or scores.shape[1] != len(masks):
        raise CamlibValueError(f"scores must be (N, M), for the {len(masks)} masks, got {tuple(scores.shape)}")
    if isinstance(masks, Tensor) and masks.device != scores.device:
        raise CamlibValueError(f"masks are on {masks.device} and scores on {scores.device}; they must be on one device")


def mean_under(masks: Masks, values: Tensor) -> Tensor:
    """Return the mean (N, ...) of values (N, M) at each pixel, weighted by the masks at that pixel."""
    total = covered = torch.zeros((), dtype=values.dtype, device=values.device)
    for start in range(0, len(masks), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        weights = masks[some].to(values)
        total = total + torch.tensordot(values[:, some], weights, 1)
        covered = covered + weights.sum(0)
    return divided(total, covered)
