"""Maps scaled to a range that can be drawn, each separately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Maps = TypeVar("Maps", Tensor, "NDArray[np.generic]")

NORMALIZATIONS = ("minmax", "max", "percentile", "signed", "none")
"""Values of ``method`` for :func:`normalize`."""

GRIDS = {1: "(..., l)", 2: "(..., h, w)", 3: "(..., t, h, w)"}
"""The shape of maps of signals, of pictures, and of volumes or videos, by their number of dimensions."""


def as_maps(maps: Any, name: str = "maps", dims: int = 2) -> Tensor:
    """Return maps as a finite tensor of float32, or of float64 if they are that; the last ``dims`` axes are the grid.

    Raises:
        CamlibTypeError: not a tensor or array of numbers.
        CamlibValueError: fewer than ``dims`` axes, an empty one, or a value that is not finite.
    """
    import numpy as np

    if not isinstance(maps, (Tensor, np.ndarray)):
        raise CamlibTypeError(f"{name} must be a tensor or an array, got {type(maps).__name__}")
    tensor = maps if isinstance(maps, Tensor) else _from_array(maps, name)
    if tensor.is_complex():
        raise CamlibTypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.dim() < dims or not tensor.numel():
        raise CamlibValueError(f"{name} must have shape {GRIDS[dims]} without empty axes, got {tuple(tensor.shape)}")
    if tensor.is_meta:
        raise CamlibValueError(f"{name} are on the meta device and have no values")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not bool(tensor.isfinite().all()):
        bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
        which = f" at {', '.join(map(str, bad))} of {len(tensor)}" if tensor.dim() > dims and len(tensor) > 1 else ""
        raise CamlibValueError(
            f"{name} hold NaN or infinity{which}; find where they come from, or leave out the images that are "
            "explanation.missing"
        )
    return tensor


def _from_array(array: NDArray[Any], name: str) -> Tensor:
    import numpy as np

    if array.dtype.kind not in "fiub":
        raise CamlibTypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(np.float32).itemsize
    # A copy: torch takes neither another byte order, nor negative strides, nor read-only memory.
    return torch.from_numpy(np.array(array, np.float64 if wide else np.float32, order="C"))


def shown(value: float) -> str:
    """Return a number for an error, with more digits if three would make a whole number of it.

    Example:
        >>> shown(0.12345), shown(1.0001)
        ('0.123', '1.0001')
    """
    short = f"{value:.3g}"
    return short if float(short) == value or not float(short).is_integer() else f"{value:.8g}"


def like(result: Tensor, given: Any) -> Any:
    """Return the result as a tensor or an array, as ``given`` is."""
    return result if isinstance(given, Tensor) else result.numpy()


def is_constant(maps: Tensor, dims: int = 2) -> Tensor:
    """Whether each map is constant up to rounding: its range is at most 16 eps of its largest magnitude.

    Args:
        maps: (..., h, w), floating point; eps is that of its dtype.
        dims: how many of the last axes are one map's grid: 1 for signals, 2 for pictures, 3 for volumes and videos.

    Returns:
        (...) bool. A map of zeros is constant.

    Raises:
        CamlibTypeError: not a tensor.
        CamlibValueError: not floating-point numbers, too few axes, or ``dims`` is neither 1, 2 nor 3.

    Example:
        >>> import torch
        >>> is_constant(torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]]))
        tensor([ True, False])
    """
    if not isinstance(maps, Tensor):
        raise CamlibTypeError(f"maps must be a tensor, got {type(maps).__name__}")
    if not maps.is_floating_point() or maps.dim() < checked_dims(dims) or 0 in maps.shape[-dims:]:
        raise CamlibValueError(
            f"maps must be floating-point numbers {GRIDS[checked_dims(dims)]}, got {maps.dtype} {tuple(maps.shape)}"
        )
    cells = maps.flatten(-dims)
    return _are_equal(cells.amin(-1), cells.amax(-1))


def _are_equal(low: Tensor, high: Tensor) -> Tensor:
    """Whether the extremes of maps are equal up to rounding."""
    largest = torch.maximum(low.abs(), high.abs())
    return high - low <= 16 * torch.finfo(low.dtype).eps * largest  # an overflowing range is not constant


def checked_dims(dims: object) -> int:
    """Return a number of dimensions that maps can have, checked.

    Raises:
        CamlibTypeError: not an int.
        CamlibValueError: neither 1, 2 nor 3.
    """
    found = positive_int("dims", dims)
    if found not in GRIDS:
        raise CamlibValueError(f"dims must be 1 (signals), 2 (pictures) or 3 (volumes and videos), got {found}")
    return found


def normalize(maps: Maps, method: str = "minmax", dims: int = 2) -> Maps:
    """Scale each map to a range that can be drawn.

    Args:
        maps: (..., h, w), a tensor or an array; integers and halves become float32.
        method: "minmax" maps the lowest value to 0 and the highest to 1. "max" sets negative values to 0 and divides
            by the highest. "percentile" first clips to the 1st and 99th percentile, so that single hot pixels do not
            set the scale, unless a constant would remain. "signed" divides by the largest magnitude, so that values
            lie in [-1, 1] and 0 stays 0. "none" only checks the maps.
        dims: how many of the last axes are the grid of one map: 1 for signals (..., l), 2 for pictures, 3 for volumes
            and videos (..., t, h, w), all frames of which are scaled together.

    Returns:
        The same type and shape, in [0, 1], or [-1, 1] for "signed". A constant map becomes zeros, except with "none";
        with "max" a map without a positive value does too.

    Raises:
        CamlibValueError: an unknown method or number of dimensions, a wrong shape, or a value that is not finite.
        CamlibTypeError: not a tensor or array of real numbers.

    Example:
        >>> import torch
        >>> normalize(torch.tensor([[2.0, 4.0], [6.0, 10.0]]))
        tensor([[0.0000, 0.2500],
                [0.5000, 1.0000]])
    """
    if not isinstance(method, str) or method not in NORMALIZATIONS:
        raise CamlibValueError(f"method must be one of {', '.join(NORMALIZATIONS)}, got {method!r}")
    tensor = as_maps(maps, dims=checked_dims(dims))
    if method != "none":
        tensor = normalized(tensor.flatten(-dims), method).reshape(tensor.shape)
    result: Maps = like(tensor, maps)
    return result


def normalized(cells: Tensor, method: str) -> Tensor:
    """Return :func:`normalize` of maps whose cells lie along the last axis, without checks that wait for the device."""
    if method == "minmax":
        return _minmax(cells)
    constant = is_constant(cells, 1)[..., None]
    if method == "signed":
        scaled = _by_magnitude(cells)
    elif method == "max":
        scaled = _by_magnitude(cells.clamp(min=0))
    else:
        scaled = _by_magnitude(cells)  # or lerp overflows
        clipped = scaled.clamp(*_percentiles(scaled, 0.01, 0.99))
        scaled = _minmax(torch.where(is_constant(clipped, 1)[..., None], scaled, clipped))
    return scaled.masked_fill(constant, 0)


def _minmax(cells: Tensor) -> Tensor:
    low, high = cells.amin(-1, keepdim=True), cells.amax(-1, keepdim=True)
    constant = _are_equal(low, high)
    magnitude = torch.maximum(low.abs(), high.abs()).masked_fill(constant, 1)
    cells, low, high = cells / magnitude, low / magnitude, high / magnitude  # or the range of huge values overflows
    return ((cells - low) / (high - low).masked_fill(constant, 1)).masked_fill(constant, 0)


def _by_magnitude(cells: Tensor) -> Tensor:
    return _divided(cells, cells.abs().amax(-1, keepdim=True))


def _divided(tensor: Tensor, by: Tensor) -> Tensor:
    """Divide, with 0 where the divisor is 0."""
    return torch.where(by > 0, tensor / torch.where(by > 0, by, 1), 0)


def _percentiles(cells: Tensor, *shares: float) -> list[Tensor]:
    """Quantiles of each map, interpolated linearly; torch.quantile limits the size of its input."""
    ordered = cells.sort(-1).values
    last = ordered.shape[-1] - 1
    found = []
    for share in shares:
        below = int(share * last)
        above = min(below + 1, last)
        found.append(torch.lerp(ordered[..., below], ordered[..., above], share * last - below)[..., None])
    return found
