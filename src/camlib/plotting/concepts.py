"""Concepts: each picture, and the same picture tinted where each concept is strongest."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging import as_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camlib.concepts import Concepts

CELL = 2.6
"""Width of a picture in the figure, in inches."""
WIDEST = 32
"""Characters in a line of the legend."""
FAINTEST = 0.3
"""Opacity of the tint follows the concept's strength; below this share of its maximum there is none."""


def plot_concepts(concepts: Concepts, images: Any, class_names: Sequence[str] | None) -> Figure:
    """Draw each picture and its concepts; see :meth:`camlib.Concepts.plot`."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    from camlib.plotting.figures import Figure

    if isinstance(class_names, str):
        raise CamlibTypeError("class_names must be a sequence of names, got a single string")
    count, dims = concepts.maps.shape[1], concepts.maps.dim() - 2
    if dims != 2:
        raise CamlibValueError(
            f"maps {tuple(concepts.maps.shape)} are not of pictures; draw concepts.heatmaps() yourself"
        )
    pictures = as_pictures(images)
    if len(pictures) != len(concepts.maps):
        raise CamlibValueError(f"{len(concepts.maps)} factored images need as many pictures, got {len(pictures)}")
    palette = np.array([colormaps["tab10" if count <= 10 else "tab20"](k % 20)[:3] for k in range(count)])
    resized = functools.cache(concepts.heatmaps)  # pictures of one size share them
    height, width = pictures[0].shape[:2]
    figure = Figure(
        figsize=(2 * CELL + 3.4, max(2.6, len(pictures) * (CELL * height / width + 0.2))), layout="constrained"
    )
    axes = figure.subplots(len(pictures), 2, squeeze=False)
    for n, (line, picture) in enumerate(zip(axes, pictures, strict=True)):
        heatmaps = resized(picture.shape[:2])[n].cpu().numpy()
        strongest = heatmaps.argmax(0)
        strength = heatmaps.max(0)
        opacity = (np.clip((strength - FAINTEST) / (1 - FAINTEST), 0, 1) * 0.7)[..., None]
        line[0].imshow(picture)
        line[1].imshow((1 - opacity) * picture / 255 + opacity * palette[strongest])
        for ax in line:
            ax.set_axis_off()
    axes[0][0].set_title("picture", fontsize=9)
    axes[0][1].set_title("its strongest concept", fontsize=9)
    handles = [Patch(color=palette[k], label=_label(concepts, k, class_names)) for k in range(count)]
    figure.legend(
        handles=handles,
        loc="outside right upper",
        fontsize=8,
        frameon=False,
        title=f"{concepts.layer}: scores of each alone",
        title_fontsize=9,
    )
    return figure


def _label(concepts: Concepts, k: int, class_names: Sequence[str] | None) -> str:
    """The concept's number and the class for which it alone gives the highest score, averaged over the images."""
    mean = concepts.scores[:, k].mean(0)
    best = int(mean.argmax())
    if class_names is not None and best >= len(class_names):
        raise CamlibValueError(f"class_names has {len(class_names)} names, but class {best} scored highest")
    name = f"class {best}" if class_names is None else class_names[best]
    return textwrap.fill(f"concept {k}: {name} ({float(mean[best]):.1f})", WIDEST)
