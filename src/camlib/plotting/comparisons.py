"""Several methods side by side: the picture, then each method's overlay."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging import as_pictures, overlay
from camlib.plotting.rows import EMPTY, Style, add_colorbar, colors, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camlib.explanation import Explanation

CELL = 1.9
"""Width of a picture in the figure, in inches."""
COLUMNS = 7
"""Pictures in a line at most; more methods go on to the next line, as many to each."""
WIDEST = 28
"""Characters in a line of a title, which a picture is wide enough for."""


def plot_comparison(
    comparison: Mapping[str, Explanation],
    images: Any,
    class_names: Sequence[str] | None,
    colormap: Any,
    alpha: float | str,
) -> Figure:
    """Draw a block of lines for each image and class; see :meth:`camlib.Comparison.plot`."""
    from camlib.plotting.figures import Figure

    if isinstance(class_names, str):
        raise CamlibTypeError("class_names must be a sequence of names, got a single string")
    first = next(iter(comparison.values()))
    if first.dims != 2:
        raise CamlibValueError(
            f"maps {tuple(first.maps.shape)} are not of pictures; plot each method alone: comparison[name].plot(...)"
        )
    pictures = as_pictures(images)
    if len(pictures) != len(first):
        raise CamlibValueError(f"{len(first)} explained images need as many pictures, got {len(pictures)}")
    classes = first[0].scores.numel()
    lines = math.ceil((len(comparison) + 1) / COLUMNS)
    columns = math.ceil((len(comparison) + 1) / lines)
    height, width = pictures[0].shape[:2]
    figure = Figure(
        figsize=(columns * CELL + 1.2, max(2.6, len(pictures) * classes * lines * (CELL * height / width + 0.25))),
        layout="constrained",
    )
    axes = figure.subplots(len(pictures) * classes * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for n, picture in enumerate(pictures):
        heatmaps = {
            name: one[n].heatmaps(picture.shape[:2]).reshape(classes, *picture.shape[:2]).cpu().numpy()
            for name, one in comparison.items()
        }
        for k in range(classes):
            start = (n * classes + k) * lines
            cells = axes[start : start + lines].flat
            ax = next(cells)
            ax.imshow(picture)
            ax.set_title(textwrap.fill(title(first[n], k, class_names), WIDEST), fontsize=8)
            for (name, heatmap), ax in zip(heatmaps.items(), cells, strict=False):  # the last line may have room left
                ax.imshow(overlay(picture, heatmap[k], colormap, alpha))
                empty = bool(comparison[name][n].degenerate.flatten()[k])
                ax.set_title(f"{name}\n{EMPTY}" if empty else name, fontsize=8)
    style = Style(colormap, alpha, "")
    add_colorbar(figure, axes, colors(style), style)
    return figure
