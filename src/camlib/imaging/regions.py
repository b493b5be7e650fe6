"""Hot regions of a heatmap, where it reaches a threshold: their boxes and outlines, and how to draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError, number, positive_int
from camlib.imaging.colors import checked_heatmap
from camlib.imaging.resizing import resize
from camlib.imaging.rgb import as_rgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Color = tuple[int, int, int]


@dataclass(frozen=True)
class HotRegion:
    """A connected region of a heatmap where it reaches a threshold."""

    box: tuple[int, int, int, int]
    """(left, top, right, bottom) in pixels; right and bottom are the first column and row outside the region."""
    area: int
    """The number of pixels."""
    peak: float
    """The highest value of the heatmap in the region."""


def boxes(heatmap: Any, threshold: float = 0.5, min_area: int = 1) -> list[HotRegion]:
    """Find the connected regions, also by diagonals, where a heatmap reaches a threshold; the highest peak comes first.

    Args:
        heatmap: (H, W) in [0, 1].
        threshold: in (0, 1].
        min_area: least number of pixels of a region.

    Raises:
        CamlibValueError: wrong shape, range or threshold.

    Example:
        >>> import numpy as np
        >>> heatmap = np.zeros((5, 6)); heatmap[1:3, 2:5] = 0.8
        >>> boxes(heatmap)
        [HotRegion(box=(2, 1, 5, 3), area=6, peak=0.8)]
    """
    import cv2
    import numpy as np

    positive_int("min_area", min_area)
    values, above = _above(heatmap, threshold)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    found = []
    for label in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[label])
        if area >= min_area:
            peak = float(np.max(values, where=labels == label, initial=0))
            found.append(HotRegion((left, top, left + width, top + height), area, peak))
    return sorted(found, key=lambda region: (-region.peak, region.box))


def contours(heatmap: Any, threshold: float = 0.5) -> list[NDArray[np.int32]]:
    """Trace the outlines of the regions where a heatmap reaches a threshold, holes included.

    Args:
        heatmap: (H, W) in [0, 1].
        threshold: in (0, 1].

    Returns:
        A list with an array (n, 2) per outline, of the positions (x, y) of the pixels on the edge.

    Raises:
        CamlibValueError: wrong shape, range or threshold.
    """
    import cv2
    import numpy as np

    _, above = _above(heatmap, threshold)
    outlines, _ = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(outline, np.int32).reshape(-1, 2) for outline in outlines]


def draw_boxes(
    image: Any, heatmap: Any, threshold: float = 0.5, color: Color = (255, 255, 255), thickness: int = 1
) -> NDArray[np.uint8]:
    """Draw the boxes of a heatmap's hot regions on a picture.

    Args:
        image: one picture as for :func:`as_rgb`.
        heatmap: (h, w) in [0, 1], resized to the picture.
        threshold: in (0, 1].
        color: RGB.
        thickness: in pixels.

    Returns:
        (H, W, 3), RGB.
    """
    import cv2

    _check_line(color, thickness)
    picture = as_rgb(image).copy()
    for region in boxes(resize(checked_heatmap(heatmap, 0.0), picture.shape[:2]), threshold):
        left, top, right, bottom = region.box
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), color, thickness)
    return picture


def draw_contours(
    image: Any, heatmap: Any, threshold: float = 0.5, color: Color = (255, 255, 255), thickness: int = 1
) -> NDArray[np.uint8]:
    """Draw the outlines of a heatmap's hot regions on a picture; arguments as for :func:`draw_boxes`."""
    import cv2

    _check_line(color, thickness)
    picture = as_rgb(image).copy()
    outlines = contours(resize(checked_heatmap(heatmap, 0.0), picture.shape[:2]), threshold)
    cv2.drawContours(picture, outlines, -1, color, thickness)
    return picture


def _check_line(color: Any, thickness: Any) -> None:
    """Check how a line is drawn.

    Raises:
        CamlibTypeError, CamlibValueError: not a colour of three numbers in [0, 255], or not a thickness in pixels.
    """
    positive_int("thickness", thickness)
    if not isinstance(color, Sequence) or isinstance(color, (str, bytes)) or len(color) != 3:
        raise CamlibTypeError(f"color must be three numbers, (red, green, blue), got {color!r}")
    for one in color:
        number("each of color", one, at_least=0, at_most=255)


def _above(heatmap: Any, threshold: float) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    import numpy as np

    values = checked_heatmap(heatmap, 0.0)
    if values.ndim != 2:
        raise CamlibValueError(f"heatmap must be a single one, (H, W), got {tuple(values.shape)}")
    return values, (values >= number("threshold", threshold, above=0, at_most=1)).astype(np.uint8)
