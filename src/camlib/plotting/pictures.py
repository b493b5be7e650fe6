"""Pictures: original, heatmap and overlay side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from camlib.plotting.rows import EMPTY, PLAIN, FigureRow, Style, add_colorbar, colors, laid, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 2.6
"""Width of a picture in the figure, in inches."""


NARROW = 36
"""The largest number of characters in a line of a title over one picture."""


def draw_pictures(rows: Sequence[FigureRow], style: Style) -> Figure:
    """Draw original, heatmap and overlay of each row in one line."""
    from camlib.plotting.figures import Figure

    height, width = rows[0].heatmap.shape
    figure = Figure(figsize=(3 * CELL + 1.2, len(rows) * (CELL * height / width + 0.3) + 0.1), layout="constrained")
    axes, colormap = figure.subplots(len(rows), 3, squeeze=False), colors(style)
    for line, row in zip(axes, rows, strict=True):
        line[0].imshow(row.picture)
        line[1].imshow(row.heatmap, cmap=colormap, vmin=style.lowest, vmax=1)
        line[2].imshow(laid(row.picture, row.heatmap, style))
        line[0].set_title(shortened(row.title, NARROW), fontsize=9, loc="left", **PLAIN)
        line[1].set_title(EMPTY if row.empty else "heatmap", fontsize=9)
        line[2].set_title("overlay", fontsize=9)
        for ax in line:
            ax.set_axis_off()
    add_colorbar(figure, axes, colormap, style)
    return figure
