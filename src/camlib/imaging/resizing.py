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


def resize(maps: Maps, size: tuple[int, int]) -> Maps:
    """Resize maps bilinearly, with half-pixel centres: a cell of the map covers the pixels it was computed from.

    Args:
        maps: (..., h, w), a tensor or an array; integers and halves become float32.
        size: (height, width) in pixels.

    Returns:
        The same kind, (..., height, width).

    Raises:
        CamlibValueError: a wrong shape or size, or a value that is not finite.
        CamlibTypeError: not a tensor or array of real numbers.

    Example:
        >>> import torch
        >>> resize(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    tensor = as_maps(maps)
    height, width = checked_size(size)
    if tuple(tensor.shape[-2:]) != (height, width):
        batch = tensor.reshape(-1, 1, *tensor.shape[-2:])
        resized = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear", align_corners=False)
        low, high = batch.amin((-2, -1), keepdim=True), batch.amax((-2, -1), keepdim=True)
        resized = resized.clamp(low, high)  # rounding would make 1.0000001 of ones, and no heatmap
        tensor = resized.reshape(*tensor.shape[:-2], height, width)
    result: Maps = like(tensor, maps)
    return result


def checked_size(size: object) -> tuple[int, int]:
    """Return a (height, width), checked.

    Raises:
        CamlibValueError: not two positive integers.
    """
    if (
        not isinstance(size, (tuple, list, torch.Size))
        or len(size) != 2
        or not all(isinstance(side, numbers.Integral) and not isinstance(side, bool) and int(side) > 0 for side in size)
    ):
        raise CamlibValueError(f"size must be (height, width), two positive integers, got {size!r}")
    return int(size[0]), int(size[1])
