"""Maps at another size."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.imaging.normalization import as_maps, like

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Maps = TypeVar("Maps", Tensor, "NDArray[np.generic]")


SIZES = {1: "(length,)", 2: "(height, width)", 3: "(time, height, width)"}
"""What the size of maps holds, by their number of dimensions."""

_COUNTS = {1: "one positive integer", 2: "two positive integers", 3: "three positive integers"}

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(maps: Maps, size: tuple[int, ...]) -> Maps:
    """Resize maps linearly along each axis, with half-pixel centres: a cell covers the pixels it was computed from.

    Args:
        maps: (..., h, w), a tensor or an array; integers and halves become float32.
        size: (height, width) in pixels: bilinear. The length of the size says what the maps are: (length,) for maps
            of signals (..., l), linear; (time, height, width) for those of volumes and videos (..., t, h, w),
            trilinear.

    Returns:
        The same kind, (..., height, width); the last axes are those of ``size``.

    Raises:
        CamlibValueError: a wrong shape or size, or a value that is not finite.
        CamlibTypeError: not a tensor or array of real numbers.

    Example:
        >>> import torch
        >>> resize(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
        >>> resize(torch.rand(2, 3, 7, 7), (8, 56, 56)).shape
        torch.Size([2, 8, 56, 56])
    """
    size = _checked(size, tuple(SIZES))
    dims = len(size)
    tensor = as_maps(maps, dims=dims)
    result: Maps = like(interpolated(tensor, size), maps)
    return result


def interpolated(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return :func:`resize` of what is known to be right: nothing is checked, so no device is waited for."""
    dims = len(size)
    if tuple(maps.shape[-dims:]) == size:
        return maps
    batch = maps.reshape(-1, 1, *maps.shape[-dims:])
    resized = torch.nn.functional.interpolate(batch, size, mode=_MODES[dims], align_corners=False)
    cells = batch.flatten(1)
    # Clamped, since rounding would make 1.0000001 of ones, and no heatmap.
    resized = resized.flatten(1).clamp(cells.amin(1, keepdim=True), cells.amax(1, keepdim=True))
    return resized.reshape(*maps.shape[:-dims], *size)


def checked_size(size: object) -> tuple[int, int]:
    """Return a (height, width), checked.

    Raises:
        CamlibValueError: not two positive integers.
    """
    height, width = checked_grid(size, 2)
    return height, width


def checked_grid(size: object, dims: int) -> tuple[int, ...]:
    """Return a size of ``dims`` axes, checked.

    Raises:
        CamlibValueError: not that many positive integers.
    """
    return _checked(size, (dims,))


def _checked(size: object, known: tuple[int, ...]) -> tuple[int, ...]:
    if (
        not isinstance(size, (tuple, list, torch.Size))
        or len(size) not in known
        or not all(isinstance(side, numbers.Integral) and not isinstance(side, bool) and int(side) > 0 for side in size)
    ):
        wanted = "; or ".join(f"{SIZES[dims]}, {_COUNTS[dims]}" for dims in known)
        raise CamlibValueError(f"size must be {wanted}, got {size!r}")
    return tuple(int(side) for side in size)
