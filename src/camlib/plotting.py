"""Explanations as pictures: overlays, and a figure of original, heatmap and overlay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging import as_pictures, overlay

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from camlib.explanation import Explanation

CELL = 2.6
"""Side of a picture in the figure, in inches."""


def overlays(explanation: Explanation, images: Any, colormap: Any, alpha: float | str) -> NDArray[np.uint8]:
    """Lay every heatmap over its image; see :meth:`camlib.Explanation.overlays`."""
    import numpy as np

    pictures = _pictures(explanation, images)
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise CamlibValueError(
            f"images have different sizes {sorted(sizes)}, so that their overlays are no array; overlay them one by "
            "one: [e.overlays(image) for e, image in zip(explanation, images)]"
        )
    heatmaps = explanation.heatmaps(sizes.pop())
    if not explanation.has_class_axis:
        return overlay(pictures, heatmaps, colormap, alpha)
    return np.stack(
        [
            overlay([picture] * len(maps), maps, colormap, alpha)
            for picture, maps in zip(pictures, heatmaps, strict=True)
        ]
    )


def plot(
    explanation: Explanation, images: Any, class_names: Sequence[str] | None, colormap: Any, alpha: float | str
) -> Figure:
    """Draw original, heatmap and overlay in a row for each image and class; see :meth:`camlib.Explanation.plot`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    from camlib.imaging.colors import lookup_table

    rows = [
        (picture, one.heatmaps(picture.shape[:2]).reshape(-1, *picture.shape[:2])[k], one, k)
        for picture, one in zip(_pictures(explanation, images), explanation, strict=True)
        for k in range(one.scores.numel())
    ]
    height, width = rows[0][0].shape[:2]
    figure = Figure(figsize=(3 * CELL + 1.2, len(rows) * (CELL * height / width + 0.3) + 0.1), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    colors = ListedColormap(lookup_table(colormap) / 255)
    for line, (picture, heatmap, one, k) in zip(axes, rows, strict=True):
        line[0].imshow(picture)
        line[1].imshow(heatmap.cpu().numpy(), cmap=colors, vmin=0, vmax=1)
        line[2].imshow(overlay(picture, heatmap, colormap, alpha))
        line[0].set_title(_title(one, k, class_names), fontsize=9, loc="left")
        line[1].set_title("no positive evidence" if one.degenerate.flatten()[k] else "heatmap", fontsize=9)
        line[2].set_title("overlay", fontsize=9)
        for ax in line:
            ax.set_axis_off()
    bar = figure.colorbar(ScalarMappable(cmap=colors), ax=axes, shrink=min(1.0, 3 / len(rows)), pad=0.01)
    bar.set_label(f"importance, each map scaled to [0, 1]\n{explanation.method} at {explanation.layer}", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _pictures(explanation: Explanation, images: Any) -> list[NDArray[np.uint8]]:
    pictures = as_pictures(images)
    if len(pictures) != len(explanation):
        raise CamlibValueError(f"{len(explanation)} explained images need as many pictures, got {len(pictures)}")
    if not pictures:
        raise CamlibValueError("nothing to draw: the explanation holds no image")
    return pictures


def _title(one: Explanation, k: int, class_names: Sequence[str] | None) -> str:
    score = float(one.scores.flatten()[k])
    if not isinstance(one.target, Tensor):
        return f"{one.target}: {score:.2f}"
    index = int(one.target.flatten()[k])
    if class_names is None:
        return f"class {index}: score {score:.2f}"
    if isinstance(class_names, str):
        raise CamlibTypeError("class_names must be a sequence of names, got a single string")
    if index >= len(class_names):
        raise CamlibValueError(f"class_names has {len(class_names)} names, but class {index} was explained")
    return f"{class_names[index]}: score {score:.2f}"
