"""Explanations as pictures: overlays, and figures of what the network saw and where it looked.

How they look depends on what was explained: signals, pictures, or clips, which are volumes and videos. Each of the
three has a module, which says how it is read and how it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging import as_pictures, overlay
from camlib.plotting.clips import as_clips, draw_clips
from camlib.plotting.comparisons import plot_comparison as plot_comparison
from camlib.plotting.pictures import draw_pictures
from camlib.plotting.rows import Row, Style, title
from camlib.plotting.signals import as_signals, draw_signals

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from camlib.explanation import Explanation


@dataclass(frozen=True)
class _Kind:
    """One kind of input: what it is called, how it is read, and how rows of it are drawn."""

    name: str
    read: Callable[[Any, int], list[NDArray[Any]]]
    """``(images, count)`` to arrays whose grid comes first, and whose channels come last."""
    draw: Callable[[Sequence[Row], Style], Figure]


_KINDS = {
    1: _Kind("signals", as_signals, draw_signals),
    2: _Kind("pictures", lambda images, count: as_pictures(images), draw_pictures),
    3: _Kind("clips", lambda images, count: as_clips(images), draw_clips),
}
"""By the number of the maps' dimensions."""


def overlays(explanation: Explanation, images: Any, colormap: Any, alpha: float | str) -> NDArray[np.uint8]:
    """Lay every heatmap over its picture or clip; see :meth:`camlib.Explanation.overlays`."""
    import numpy as np

    if explanation.dims == 1:
        raise CamlibValueError(
            f"maps {tuple(explanation.maps.shape)} are of signals, which are no pictures to lay a heatmap over; "
            "explanation.plot(signals) draws each before its heatmap"
        )
    pictures = _read(explanation, images)
    sizes = {picture.shape[:-1] for picture in pictures}
    if len(sizes) > 1:
        raise CamlibValueError(
            f"images have different sizes {sorted(sizes)}, so that their overlays are no array; overlay them one by "
            "one: [e.overlays(image) for e, image in zip(explanation, images)]"
        )
    size = sizes.pop()
    heatmaps = explanation.heatmaps(size).reshape(len(pictures), -1, *size)
    laid = [
        overlay(picture, heatmap, colormap, alpha)
        for picture, of_classes in zip(pictures, heatmaps, strict=True)
        for heatmap in of_classes
    ]
    return np.stack(laid).reshape(*explanation.scores.shape, *size, 3)


def plot(
    explanation: Explanation, images: Any, class_names: Sequence[str] | None, colormap: Any, alpha: float | str
) -> Figure:
    """Draw what the network saw and where it looked, for each image and class; see :meth:`camlib.Explanation.plot`."""
    if isinstance(class_names, str):
        raise CamlibTypeError("class_names must be a sequence of names, got a single string")
    rows = []
    for picture, one in zip(_read(explanation, images), explanation, strict=True):
        size = picture.shape[: one.dims]
        heatmaps = one.heatmaps(size).reshape(-1, *size).detach().cpu().numpy()
        rows += [
            Row(picture, heatmap, title(one, k, class_names), bool(one.degenerate.flatten()[k]))
            for k, heatmap in enumerate(heatmaps)
        ]
    return _KINDS[explanation.dims].draw(rows, Style(colormap, alpha, _source(explanation)))


def _source(explanation: Explanation) -> str:
    return f"{explanation.method} at {explanation.layer}" if explanation.layer else explanation.method


def _read(explanation: Explanation, images: Any) -> list[NDArray[Any]]:
    kind, count = _KINDS[explanation.dims], len(explanation)
    found = kind.read(images, count)
    if len(found) != count:
        raise CamlibValueError(f"{count} explained images need as many {kind.name}, got {len(found)}")
    if not found:
        raise CamlibValueError("nothing to draw: the explanation holds no image")
    return found
