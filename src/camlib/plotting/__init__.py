"""Figures of rows: what the network saw, where it looked, and a title.

How they look depends on the input: signals, pictures, or clips, which are volumes and videos. Each of the three has a
module, which says how it is read and how it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.imaging import as_pictures, overlay
from camlib.plotting.clips import as_clips, draw_clips
from camlib.plotting.pictures import draw_pictures
from camlib.plotting.rows import FigureRow, Style
from camlib.plotting.signals import as_signals, draw_signals

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Kind:
    """One kind of input: what it is called, how it is read, and how rows of it are drawn."""

    name: str
    read: Callable[[Any, int], list[NDArray[Any]]]
    """``(images, count)`` to arrays whose grid comes first, and whose channels come last."""
    draw: Callable[[Sequence[FigureRow], Style], Figure]


_KINDS = {
    1: _Kind("signals", as_signals, draw_signals),
    2: _Kind("pictures", lambda images, count: as_pictures(images), draw_pictures),
    3: _Kind("clips", lambda images, count: as_clips(images), draw_clips),
}
"""By the number of the maps' dimensions."""


def read(dims: int, images: Any, count: int) -> list[NDArray[Any]]:
    """Return ``count`` signals, pictures or clips as arrays (*grid, channels), by the number of grid axes.

    Raises:
        CamlibTypeError, CamlibValueError: they are something else, or not as many.
    """
    kind = _KINDS[dims]
    found = kind.read(images, count)
    if len(found) != count:
        raise CamlibValueError(f"{count} explained images need as many {kind.name}, got {len(found)}")
    if not found:
        raise CamlibValueError("nothing to draw: the explanation holds no image")
    return found


def common_size(pictures: Sequence[NDArray[Any]]) -> tuple[int, ...]:
    """Return the size of pictures or clips that all have the same.

    Raises:
        CamlibValueError: they differ, or are signals, over which no heatmap can be laid.
    """
    sizes = {picture.shape[:-1] for picture in pictures}
    if len(sizes) > 1:
        raise CamlibValueError(
            f"images have different sizes {sorted(sizes)}, so that their overlays are no array; overlay them one by "
            "one: [e.overlays(image) for e, image in zip(explanation, images)]"
        )
    return sizes.pop()


def lay(pictures: Sequence[NDArray[Any]], heatmaps: Tensor, colormap: Any, alpha: float | str) -> NDArray[np.uint8]:
    """Lay heatmaps (N, K, *grid) over N pictures or clips: (N K, *grid, 3)."""
    import numpy as np

    pairs = ((picture, heatmap) for picture, own in zip(pictures, heatmaps, strict=True) for heatmap in own)
    return np.stack([overlay(picture, heatmap, colormap, alpha) for picture, heatmap in pairs])


def draw(dims: int, rows: Sequence[FigureRow], style: Style) -> Figure:
    """Draw rows of signals, pictures or clips, by the number of grid axes."""
    return _KINDS[dims].draw(rows, style)
