"""Pictures: original, heatmap and overlay side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from camlib.plotting.panels import Panels
from camlib.plotting.rows import LOWEST, PLAIN, FigureRow, Style, add_colorbar, colors, heading, laid, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 2.6
"""Width of a picture in the figure, in inches."""


NARROW = 36
"""The largest number of characters in a line of a title over one picture."""


def layout_of_pictures(rows: Sequence[FigureRow]) -> Panels:
    """Return the panels of :func:`draw_pictures`."""
    height, width = rows[0].heatmap.shape
    return Panels(len(rows), 3, (3 * CELL + 1.2, len(rows) * (CELL * height / width + 0.3) + 0.1))


def draw_pictures(rows: Sequence[FigureRow], style: Style, axes: Any) -> None:
    """Draw original, heatmap and overlay of each row in one line of axes (rows, 3)."""
    colormap = colors(style)
    for line, row in zip(axes, rows, strict=True):
        line[0].imshow(row.picture)
        line[1].imshow(row.heatmap, cmap=colormap, vmin=style.lowest, vmax=1)
        line[2].imshow(laid(row.picture, row.heatmap, style))
        line[0].set_title(shortened(row.title, NARROW), fontsize=9, loc="left", **PLAIN)
        line[1].set_title(row.remark or "heatmap", fontsize=9)
        line[2].set_title("overlay", fontsize=9)
        for ax in line:
            ax.set_axis_off()
    add_colorbar(axes.flat[0].figure, axes, colormap, style)


def draw_overlays(rows: Sequence[FigureRow], style: Style, axes: Any) -> None:
    """Draw the overlay of each row, one for each of the axes (rows, 1)."""
    for ax, row in zip(axes.flat, rows, strict=True):
        _draw_overlay(ax, row, style)
        ax.set_axis_off()
    add_colorbar(axes.flat[0].figure, axes, colors(style), style)


def _draw_overlay(ax: Axes, row: FigureRow, style: Style) -> None:
    ax.imshow(laid(row.picture, row.heatmap, style))
    ax.set_title(heading(row, NARROW), fontsize=9, loc="left", **PLAIN)


def draw_grid(rows: Sequence[FigureRow], style: Style, columns: int) -> Figure:
    """Draw each picture and then its overlays, in lines of so many columns.

    Rows of one picture hold the same object.
    """
    from camlib.plotting.figures import Figure

    blocks = [list(block) for _, block in itertools.groupby(rows, key=lambda row: id(row.picture))]
    lines = [math.ceil((len(block) + 1) / columns) for block in blocks]
    height, width = rows[0].heatmap.shape
    size = columns * CELL + 1.2, max(sum(lines) * (CELL * height / width + 0.3) + 0.1, LOWEST)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(sum(lines), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for start, block in zip(itertools.accumulate([0, *lines]), blocks, strict=False):
        cells = axes[start:].flat
        next(cells).imshow(block[0].picture)
        for ax, row in zip(cells, block, strict=False):
            _draw_overlay(ax, row, style)
    add_colorbar(figure, axes, colors(style), style)
    return figure
