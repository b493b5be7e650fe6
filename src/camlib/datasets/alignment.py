"""Which part of a picture its input shows, found by transforming pictures whose values are their positions."""

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
    """Return which part of pictures of a size their input shows.

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
        raise CamlibValueError(f"the transforms give another input each time; {REMEDY}")
    range_ = (white - black).mean(0)
    if not (black.shape == white.shape == along_x.shape == along_y.shape) or not np.isfinite(range_).all():
        raise CamlibValueError(f"the input depends on the picture in another way than by its pixels; {REMEDY}")
    inside = np.abs(range_) > 0.5 * np.abs(range_).max()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows) < 2 or len(columns) < 2 or not inside[np.ix_(_inner(rows), _inner(columns))].all():
        raise CamlibValueError(f"the input shows no rectangle of the picture; {REMEDY}")
    shares = [(one - black).mean(0) / np.where(inside, range_, 1) for one in (along_x, along_y)]
    left, right = _ends(shares[0], _inner(columns), _inner(rows), width)
    top, bottom = _ends(shares[1].T, _inner(rows), _inner(columns), height)
    return Window(size, (range_.shape[0], range_.shape[1]), (top, left, bottom, right))


def _inner(places: NDArray[Any]) -> NDArray[Any]:
    """The places without the tenth at each end, where filters meet the border."""
    cut = len(places) // 10
    return places[cut : len(places) - cut]


def _ends(shares: NDArray[Any], along: NDArray[Any], across: NDArray[Any], side: int) -> tuple[float, float]:
    """Where the first and the last pixel's outer edges of the input lie in the picture, in pixels.

    Args:
        shares: (h, w), the position of each pixel of the input as a share of the picture's side.
        along: the columns by which the line is fitted.
        across: the rows by which it is fitted.
        side: of the picture.
    """
    import numpy as np

    values = shares[np.ix_(across, along)]
    line = values.mean(0)
    slope, start = np.polyfit(along + 0.5, line, 1)
    if np.abs(values - (slope * (along + 0.5) + start)).max() > STRAIGHT or slope == 0:
        raise CamlibValueError(f"the input is not an upright rectangle of the picture; {REMEDY}")
    ends = start, slope * shares.shape[1] + start
    first, last = (_snapped(one, abs(slope)) * side for one in ends)
    return first, last


def _snapped(share: float, pixel: float) -> float:
    for edge in (0.0, 1.0):
        if abs(share - edge) < SNAP * pixel:
            return edge
    return float(share)
