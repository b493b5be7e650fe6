"""Signals: lines in front of their heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.plotting.panels import Panels
from camlib.plotting.rows import LOWEST, PLAIN, WIDEST, FigureRow, Style, add_colorbar, heading, laid

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

WIDTH, HEIGHT = 9.0, 1.9
"""Size of a signal's axes in the figure, in inches."""

LEGEND = 8
"""The largest number of channels that a legend names."""


def as_signals(images: Any, count: int) -> list[NDArray[Any]]:
    """Return a batch of signals, a sequence of signals or one signal as a list of arrays, channels last.

    Args:
        images: a list or tuple of signals (C, L) or (L,), which may differ in length; an array or a tensor
            (N, C, L) or (N, L); or, where ``count`` is 1, one signal.
        count: how many signals are expected, which decides whether two axes are (N, L) or (C, L).

    Returns:
        Signals (L, C), float64.

    Raises:
        CamlibTypeError: not a tensor or array of real numbers.
        CamlibValueError: another shape.
    """
    if isinstance(images, (list, tuple)):
        return [_as_signal(signal) for signal in images]
    axes = getattr(images, "ndim", 0)
    if axes == 3 or (axes == 2 and (count != 1 or len(images) == 1)):
        return [_as_signal(signal) for signal in images]
    return [_as_signal(images)]


def _as_signal(signal: Any) -> NDArray[Any]:
    import numpy as np

    if isinstance(signal, Tensor):
        signal = (signal.double() if signal.is_floating_point() else signal).detach().cpu().numpy()
    if not isinstance(signal, np.ndarray) or signal.dtype.kind not in "fiub":
        kind = signal.dtype if isinstance(signal, np.ndarray) else type(signal).__name__
        raise CamlibTypeError(f"a signal must be a tensor or an array (C, L) or (L,) of real numbers, got {kind}")
    if signal.ndim not in (1, 2) or not signal.size:
        raise CamlibValueError(f"a signal must have shape (C, L) or (L,) without empty axes, got {signal.shape}")
    return np.atleast_2d(signal).T.astype(np.float64)


def layout_of_signals(rows: Sequence[FigureRow]) -> Panels:
    """Return the panels of :func:`draw_signals`."""
    return Panels(len(rows), 1, (WIDTH + 1.2, max(len(rows) * HEIGHT + 0.4, LOWEST)))


def draw_signals(rows: Sequence[FigureRow], style: Style, axes: Any) -> None:
    """Draw the channels of each row as lines in front of its heatmap, in axes (rows, 1)."""
    colormap = _faded(style)
    for ax, row in zip(axes.flat, rows, strict=True):
        length, channels = row.picture.shape
        ax.set_prop_cycle(color=_line_colors(channels))
        lines = ax.plot(row.picture, linewidth=1)
        if 1 < channels <= LEGEND:
            names = [f"channel {channel}" for channel in range(channels)]
            above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.2, "frameon": False}
            ax.legend(lines, names, fontsize=7, ncols=channels, **above)  # not over the lines
        span = (-0.5, length - 0.5, *ax.get_ylim())  # the limits of the lines; the colour of a sample is centred on it
        ax.imshow(row.heatmap[None], cmap=colormap, vmin=style.lowest, vmax=1, extent=span, aspect="auto", zorder=-1)
        ax.set_ylabel("value", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.set_title(heading(row, 2 * WIDEST), fontsize=9, loc="left", **PLAIN)
    axes[-1, 0].set_xlabel("sample", fontsize=8)
    add_colorbar(axes.flat[0].figure, axes, colormap, style)


def _faded(style: Style) -> Colormap:
    """The heatmaps' colours at their opacity on white."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    paper, ramp = np.full((1, 256, 3), 255, np.uint8), np.linspace(style.lowest, 1, 256)[None]
    return ListedColormap(laid(paper, ramp, style)[0] / 255)


def _line_colors(channels: int) -> list[Any]:
    """Black for the first channel, then shades that differ from it and from the background."""
    import matplotlib

    shades = matplotlib.colormaps["Dark2"]
    return ["black", *(shades(channel % shades.N) for channel in range(channels - 1))]
