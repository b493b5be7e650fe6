"""Maps at another resolution."""

from __future__ import annotations

import math
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
"""The sides in the size of a map, by its number of dimensions."""

MAX_CELLS = 2**31
"""The most pixels of a resized map."""

_COUNTS = {1: "one positive integer", 2: "two positive integers", 3: "three positive integers"}

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize(maps: Maps, size: tuple[int, ...]) -> Maps:
    """Resize maps linearly with half-pixel centres, so that a cell covers the pixels it was computed from.

    Args:
        maps: (..., h, w), a tensor or an array; integers and halves become float32.
        size: (height, width) in pixels for bilinear interpolation; (length,) for maps (..., l) of signals; (time,
            height, width) for maps (..., t, h, w) of volumes and videos.

    Returns:
        The same type; the last axes have the lengths in ``size``.

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
    """Return :func:`resize` without checks, which would wait for the device."""
    dims = len(size)
    if tuple(maps.shape[-dims:]) == size:
        return maps
    batch = maps.reshape(-1, 1, *maps.shape[-dims:])
    resized = torch.nn.functional.interpolate(batch, size, mode=_MODES[dims], align_corners=False)
    cells = batch.flatten(1)
    # Rounding would turn ones into 1.0000001, which is out of a heatmap's range.
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
    if math.prod(map(int, size)) > MAX_CELLS:
        raise CamlibValueError(f"size must have at most {MAX_CELLS} pixels in all, got {size!r}")
    return tuple(int(side) for side in size)
