"""Explanations as pictures: overlays, and a figure of original, heatmap and overlay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camlib.imaging import overlay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from camlib.explanation import Explanation


def overlays(explanation: Explanation, images: Any, colormap: Any, alpha: float | str) -> NDArray[np.uint8]:
    """Lay every heatmap over its image; see :meth:`camlib.Explanation.overlays`."""
    import numpy as np

    rows = [
        [overlay(picture, heatmap, colormap, alpha) for heatmap in heatmaps]
        for picture, heatmaps in _pairs(explanation, images)
    ]
    stacked = np.stack([np.stack(row) for row in rows])
    return stacked if explanation.has_class_axis else stacked[:, 0]
