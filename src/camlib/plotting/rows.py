"""The parts that all figures share: rows, their titles, and the colour bar."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from camlib.imaging import overlay
from camlib.imaging.colors import DEFAULT_COLORMAP, DEFAULT_SIGNED_COLORMAP, lookup_table
from camlib.imaging.overlays import overlay_signed

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

EMPTY = "nothing stands out"
"""The label of a degenerate map, which is constant or nowhere positive."""

MISSING = "the map is not finite"
"""The label of an image without a map, because numbers of the network are not finite for it."""

PLAIN: dict[str, Any] = {"parse_math": False}
"""Options of matplotlib for text of the user's, in which a dollar sign begins no formula."""

WIDEST = 60
"""The largest number of characters in a line of a title."""

LOWEST = 2.6
"""Least height of a figure, in inches, for the colour bar's label."""


def shortened(text: str, width: int) -> str:
    """Return text in at most three lines of a limited width; what does not fit becomes an ellipsis in the middle.

    Example:
        >>> shortened("a cat on a mat", 8).split(chr(10))
        ['a cat on', 'a mat']
    """
    room = 3 * width - width // 3
    if len(text) > room:
        text = f"{text[: room - 21]} \N{HORIZONTAL ELLIPSIS} {text[-18:]}"
    return textwrap.fill(text, width)


def heading(row: FigureRow, width: int = WIDEST) -> str:
    """Return a row's title with its remark, :func:`shortened`."""
    return shortened(", ".join(filter(None, dict.fromkeys((row.title, row.remark)))), width)


class FigureRow(NamedTuple):
    """One image with one of its heatmaps."""

    picture: NDArray[Any]
    """(*grid, channels)."""
    heatmap: NDArray[Any]
    """(*grid,), in [0, 1]; in [-1, 1] where the style is signed. NaN if the map is missing."""
    title: str
    """What was explained, and its score."""
    remark: str
    """:data:`EMPTY`, :data:`MISSING`, or nothing."""


class Style(NamedTuple):
    """How heatmaps are coloured, and which method and layer they come from."""

    colormap: Any
    alpha: float | str
    source: str = ""
    signed: bool = False
    """Whether heatmaps are in [-1, 1], with zero in the middle of the colours."""
    together: bool = False
    """Whether all maps have one scale."""

    @property
    def colors(self) -> Any:
        """The colormap; that of signed heatmaps in place of the default, which has no middle."""
        default = isinstance(self.colormap, str) and self.colormap == DEFAULT_COLORMAP
        return DEFAULT_SIGNED_COLORMAP if self.signed and default else self.colormap

    @property
    def lowest(self) -> float:
        """The lowest value that a heatmap can have."""
        return -1 if self.signed else 0


def colors(style: Style) -> Colormap:
    """Return the heatmaps' colours for matplotlib."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(lookup_table(style.colors) / 255)


def laid(picture: Any, heatmap: Any, style: Style) -> NDArray[Any]:
    """Overlay a heatmap on a picture, or heatmaps on several. Heatmaps of NaN leave pictures as they are."""
    if bool(torch.as_tensor(heatmap).isnan().all()):
        unchanged: NDArray[Any] = picture
        return unchanged
    return (overlay_signed if style.signed else overlay)(picture, heatmap, style.colors, style.alpha)


def add_colorbar(figure: Any, axes: Any, colormap: Colormap, style: Style) -> None:
    """Add a colour bar, about three rows high, to a figure or subfigure, beside an array of axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colored = ScalarMappable(Normalize(style.lowest, 1), colormap)
    lines = len({round(ax.get_position().y1, 3) for ax in axes.flat})
    bar = figure.colorbar(colored, ax=axes, shrink=min(1.0, 3 / lines), pad=0.01)
    scaled = f"{'all maps' if style.together else 'each map'} scaled to [{style.lowest:.0f}, 1]"
    label = "against \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} for" if style.signed else "importance"
    bar.set_label(f"{label}, {scaled}\n{style.source}", fontsize=8, **PLAIN)
    bar.ax.tick_params(labelsize=8)


def on_one_scale(rows: Sequence[FigureRow], *, signed: bool) -> list[FigureRow]:
    """Return rows of maps that are not scaled, with heatmaps on one scale.

    Args:
        rows: with maps of any values as heatmaps.
        signed: whether to divide by the largest magnitude, into [-1, 1]; otherwise the lowest value becomes 0 and the
            highest 1.
    """
    there = [row for row in rows if row.remark != MISSING]
    low = min((float(row.heatmap.min()) for row in there), default=0.0)
    high = max((float(row.heatmap.max()) for row in there), default=1.0)
    shift, factor = (0.0, max(high, -low)) if signed else (low, high - low)
    lowest = -1 if signed else 0
    return [row._replace(heatmap=((row.heatmap - shift) / (factor or 1)).clip(lowest, 1)) for row in rows]
