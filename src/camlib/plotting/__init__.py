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
from camlib.plotting.clips import as_clips, draw_clips, layout_of_clips
from camlib.plotting.panels import Panels, checked_axes
from camlib.plotting.pictures import draw_overlays, draw_pictures, layout_of_pictures
from camlib.plotting.rows import FigureRow, Style, laid
from camlib.plotting.signals import as_signals, draw_signals, layout_of_signals

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
    layout: Callable[[Sequence[FigureRow]], Panels]
    draw: Callable[[Sequence[FigureRow], Style, Any], None]
    """Into axes (lines, columns) of that layout."""


_KINDS = {
    1: _Kind("signals", lambda images, count, size: as_signals(images, count), layout_of_signals, draw_signals),
    2: _Kind("pictures", lambda images, count, size: as_pictures(images), layout_of_pictures, draw_pictures),
    3: _Kind("clips", lambda images, count, size: as_clips(images, count, size), layout_of_clips, draw_clips),
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
    """Draw rows of signals, pictures or clips, by the number of grid axes, into a new figure."""
    from camlib.plotting.figures import Figure

    kind = _KINDS[dims]
    panels = kind.layout(rows)
    figure = Figure(figsize=panels.size, layout="constrained")
    kind.draw(rows, style, figure.subplots(panels.lines, panels.columns, squeeze=False))
    return figure


def draw_into(axes: Any, dims: int, rows: Sequence[FigureRow], style: Style) -> Figure:
    """Draw rows into the caller's axes: as :func:`draw` does, or the overlays of pictures alone.

    Args:
        axes: one Axes of matplotlib, or an array or a list of as many as there are panels, line by line.
        dims: the number of grid axes.
        rows: what is drawn.
        style: how.

    Returns:
        The figure of the axes.

    Raises:
        CamlibTypeError: something else than axes of matplotlib.
        CamlibValueError: another number of axes, or axes that do not belong together.
    """
    import numpy as np

    kind = _KINDS[dims]
    panels = kind.layout(rows)
    given = checked_axes(axes)
    whole = f"{panels.lines * panels.columns} axes, {panels.lines} lines of {panels.columns}"
    alone = f"{len(rows)} for the overlays alone, or {whole}" if dims == 2 else whole
    overlays = dims == 2 and len(given) == len(rows)
    if not overlays and len(given) != panels.lines * panels.columns:
        raise CamlibValueError(f"the figure of {len(rows)} maps of {kind.name} needs {alone}, got {len(given)}")
    arranged = np.array(given, dtype=object).reshape((-1, 1) if overlays else (panels.lines, panels.columns))
    (draw_overlays if overlays else kind.draw)(rows, style, arranged)
    figure: Figure = given[0].figure.figure  # of a subfigure, the figure that holds it
    return figure
