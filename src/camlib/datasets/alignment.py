"""Which part of a picture the network sees, found by transforming pictures whose values encode the position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.geometry import Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STRAIGHT = 2.5 / 255
"""How far, as a share of the picture, a position may be from a straight line: rounding to 8 bits, twice."""
SNAP = 0.25
"""Edges closer than this to the picture's, in pixels of the input, are taken for these."""
CLOSE = 0.25
"""Inputs that show less than this share of a side are measured twice, since a position has only 8 bits."""
TINY = 1e-4
"""Pixels of the picture for one of the input; with fewer, no position can be measured, as in a picture of one pixel."""
REPEATS = 6
"""How often a picture is transformed to see whether the transforms draw random numbers."""
REMEDY = (
    "overlays need transforms that only resize, crop, pad, mirror and normalise, the same each time; give such, or "
    'storage="parquet"'
)


def transformed(transforms: Any, picture: Any) -> Tensor:
    """Return the input (C, H, W) that transforms make of a picture.

    Args:
        transforms: what takes a PIL image.
        picture: (H, W, 3), uint8.

    Raises:
        CamlibTypeError: they return something else.
    """
    from PIL import Image

    found = transforms(Image.fromarray(picture))
    if not isinstance(found, Tensor) or found.dim() != 3 or not found.is_floating_point():
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise CamlibTypeError(f"transforms must return a tensor of floating-point numbers (C, H, W), got {what}")
    return found.detach()


def window_of(transforms: Any, size: tuple[int, int], *, repeated: bool = False) -> Window:
    """Return which part the network sees of pictures of a size.

    Gray pictures are transformed: a black and a white one, which give the normalisation and the padding, and two whose
    brightness is the position, along x and along y. Where these positions are straight lines in the input, the lines
    give the box.

    Args:
        transforms: as for :func:`transformed`.
        size: (H, W) of the pictures.
        repeated: whether to check that the transforms draw no random numbers.

    Raises:
        CamlibValueError: the transforms do something else, or something else each time.

    Example:
        >>> import torchvision
        >>> weights = torchvision.models.ResNet18_Weights.DEFAULT
        >>> [round(side) for side in window_of(weights.transforms(), (480, 640)).box]
        [29, 109, 451, 529]
    """
    import numpy as np

    height, width = size

    def shown(values: NDArray[Any]) -> NDArray[np.float64]:
        gray = np.broadcast_to(np.rint(values * 255).astype(np.uint8)[..., None], (height, width, 3))
        return transformed(transforms, np.ascontiguousarray(gray)).double().cpu().numpy()

    x = np.broadcast_to((np.arange(width) + 0.5) / width, size)
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, size)
    black, white, along_x, along_y = shown(np.zeros(size)), shown(np.ones(size)), shown(x), shown(y)
    if repeated and any(not np.array_equal(shown(x), along_x) for _ in range(REPEATS)):
        raise CamlibValueError(f"the transforms give a different input each time; {REMEDY}")
    range_ = (white - black).mean(0)
    if not (black.shape == white.shape == along_x.shape == along_y.shape) or not np.isfinite(range_).all():
        raise CamlibValueError(f"the inputs differ in shape, or are not finite, for pictures of one size; {REMEDY}")
    inside = np.abs(range_) > 0.5 * np.abs(range_).max()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows) < 2 or len(columns) < 2 or not inside[np.ix_(_inner(rows), _inner(columns))].all():
        raise CamlibValueError(f"the input shows no rectangle of the picture; {REMEDY}")
    inner = _inner(rows), _inner(columns)

    def ends(share: NDArray[Any], low: float, high: float, axis: int) -> tuple[float, float]:
        """Where the input begins and ends along an axis; shares are 0 at one place of the picture and 1 at another."""
        input_shares = (share - black).mean(0) / np.where(inside, range_, 1)
        across, along = inner if axis else inner[::-1]
        first, last = _line(input_shares if axis else input_shares.T, along, across)
        return low + first * (high - low), low + last * (high - low)

    def box(along: NDArray[Any], axis: int) -> tuple[float, float]:
        """The ends, measured once more where they are so close that 8 bits of the whole side are too few."""
        side = size[axis]
        first, last = ends(along, 0, side, axis)
        if abs(last - first) < CLOSE * side:
            margin = abs(last - first) / 2 + side / 100 + 2
            low, high = min(first, last) - margin, max(first, last) + margin
            places = np.arange(side) + 0.5
            ramp = np.clip((places - low) / (high - low), 0, 1)
            first, last = ends(shown(np.broadcast_to(ramp if axis else ramp[:, None], size)), low, high, axis)
        length = inside.shape[axis]
        if abs(last - first) < TINY * length:
            raise CamlibValueError(f"the picture is too small to show which part of it the input shows; {REMEDY}")
        pixel = abs(last - first) / length
        return _snapped(first, side, pixel), _snapped(last, side, pixel)

    (left, right), (top, bottom) = box(along_x, 1), box(along_y, 0)
    return Window(size, (range_.shape[0], range_.shape[1]), (top, left, bottom, right))


def _inner(places: NDArray[Any]) -> NDArray[Any]:
    """The places without the tenth at each end, where filters meet the border."""
    cut = len(places) // 10
    return places[cut : len(places) - cut]


def _line(shares: NDArray[Any], along: NDArray[Any], across: NDArray[Any]) -> tuple[float, float]:
    """What a straight line through shares has at the outer edges of the first and of the last pixel.

    Args:
        shares: (h, w), of each pixel of the input.
        along: the columns by which the line is fitted.
        across: the rows by which it is fitted.
    """
    import numpy as np

    values = shares[np.ix_(across, along)]
    slope, start = np.polyfit(along + 0.5, values.mean(0), 1)
    if np.abs(values - (slope * (along + 0.5) + start)).max() > STRAIGHT:
        raise CamlibValueError(f"the input is not an upright rectangle of the picture; {REMEDY}")
    return start, slope * shares.shape[1] + start


def _snapped(place: float, side: int, pixel: float) -> float:
    for edge in (0.0, float(side)):
        if abs(place - edge) < SNAP * pixel:
            return edge
    return float(place)
