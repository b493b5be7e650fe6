"""The parts that all figures share: rows, their titles, and the colour bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from camlib.imaging.colors import lookup_table

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

EMPTY = "nothing stands out"
"""The label of a degenerate map, which is constant or nowhere positive."""

LOWEST = 2.6
"""Least height of a figure, in inches, for the colour bar's label."""


class FigureRow(NamedTuple):
    """One image with one of its heatmaps."""

    picture: NDArray[Any]
    """(*grid, channels)."""
    heatmap: NDArray[Any]
    """(*grid,), in [0, 1]."""
    title: str
    """What was explained, and its score."""
    empty: bool
    """Whether the map is degenerate."""


class Style(NamedTuple):
    """How heatmaps are coloured, and which method and layer they come from."""

    colormap: Any
    alpha: float | str
    source: str = ""


def colors(style: Style) -> Colormap:
    """Return the heatmaps' colours for matplotlib."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(lookup_table(style.colormap) / 255)


def add_colorbar(figure: Figure, axes: Any, colormap: Colormap, style: Style) -> None:
    """Add a colour bar, about three rows high."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=colormap), ax=axes, shrink=min(1.0, 3 / len(axes)), pad=0.01)
    bar.set_label(f"importance, each map scaled to [0, 1]\n{style.source}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
