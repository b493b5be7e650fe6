"""Figures of rows, each with an input, its heatmap and a title.

Signals, pictures and clips (volumes and videos) are read and drawn differently, each in its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.imaging import as_pictures
from camlib.plotting.clips import as_clips, draw_clips
from camlib.plotting.pictures import draw_pictures
from camlib.plotting.rows import FigureRow, Style, laid
from camlib.plotting.signals import as_signals, draw_signals

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Kind:
    """A kind of input: its name, how it is read, and how rows of it are drawn."""

    name: str
    read: Callable[[Any, int, tuple[int, ...] | None], list[NDArray[Any]]]
    """From ``(images, count, size)`` to arrays (*grid, channels)."""
    draw: Callable[[Sequence[FigureRow], Style], Figure]


_KINDS = {
    1: _Kind("signals", lambda images, count, size: as_signals(images, count), draw_signals),
    2: _Kind("pictures", lambda images, count, size: as_pictures(images), draw_pictures),
    3: _Kind("clips", lambda images, count, size: as_clips(images, count, size), draw_clips),
}
"""By the number of grid axes."""


def read(dims: int, images: Any, count: int, size: tuple[int, ...] | None = None) -> list[NDArray[Any]]:
    """Return ``count`` signals, pictures or clips as arrays (*grid, channels), by the number of grid axes.

    Args:
        dims: the number of grid axes.
        images: the signals, pictures or clips.
        count: how many were explained.
        size: their size, if known.

    Raises:
        CamlibTypeError, CamlibValueError: the images are of another type or shape, or not ``count`` of them.
    """
    kind = _KINDS[dims]
    found = kind.read(images, count, size)
    if len(found) != count:
        raise CamlibValueError(f"{count} explained images need as many {kind.name}, got {len(found)}")
    if not found:
        raise CamlibValueError("nothing to draw: the explanation has no images")
    return found


def common_size(pictures: Sequence[NDArray[Any]]) -> tuple[int, ...]:
    """Return the size of pictures or clips, which must all have the same.

    Raises:
        CamlibValueError: the sizes differ.
    """
    sizes = {picture.shape[:-1] for picture in pictures}
    if len(sizes) > 1:
        raise CamlibValueError(
            f"images have different sizes {sorted(sizes)}, and their overlays do not fit into one array; overlay them "
            "one by one: [e.overlays(image) for e, image in zip(explanation, images)]"
        )
    return sizes.pop()


def overlaid(pictures: Sequence[NDArray[Any]], heatmaps: Tensor, style: Style) -> NDArray[np.uint8]:
    """Overlay heatmaps (N, K, *grid) on N pictures or clips; return (N K, *grid, 3)."""
    import numpy as np

    pairs = ((picture, heatmap) for picture, own in zip(pictures, heatmaps, strict=True) for heatmap in own)
    return np.stack([laid(picture, heatmap, style) for picture, heatmap in pairs])


def draw(dims: int, rows: Sequence[FigureRow], style: Style) -> Figure:
    """Draw rows of signals, pictures or clips, by the number of grid axes."""
    return _KINDS[dims].draw(rows, style)
