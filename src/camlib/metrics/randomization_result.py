"""The result of randomising a network: how similar the heatmaps stay, stage by stage, with its figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Order = Literal["cascading", "independent"]

STAGE, HEIGHT = 0.55, 4.2
"""Width of a stage and height of the figure, in inches."""
NARROWEST = 4.5
"""Least width of the axes, in inches: what the title needs."""
APART = 0.12
"""Distance of the marks of two similarities at one stage, as a share of a stage."""
MARKERS = "osD^vP"
"""Distinguish the similarities without colour."""

AXES = {
    "cascading": "randomised up to this stage, from the output to the input",
    "independent": "randomised stage, all others as they were",
}
"""Label of the axis of stages, by the order of randomisation."""


@dataclass(frozen=True, eq=False)
class Randomization:
    """Similarity of heatmaps to those of the same network with random parameters; see :func:`randomization`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import randomization
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> result = randomization(cam, torch.rand(2, 3, 64, 64), stages=["fc", "layer4"], similarities=["spearman"])
        >>> result.stages, result.similarities["spearman"].shape, list(result.random_pair)
        (('fc', 'layer4'), torch.Size([2, 2]), ['spearman'])
        >>> figure = result.plot()
    """

    stages: tuple[str, ...]
    """What was randomised, in this order, from the output to the input."""
    similarities: Mapping[str, Tensor]
    """Tensors (stages, N) by name, of each image's heatmap before and after; lower is better."""
    random_pair: Mapping[str, float]
    """Similarity of two unrelated random heatmaps by name, the mean over pairs."""
    order: Order
    """Whether stages were randomised one after another (and stayed random), or each alone."""
    method: str
    """The name of the method, :attr:`camlib.Explanation.method`."""

    def plot(self) -> Figure:
        """Draw the similarities stage by stage, with those of random pairs as dotted lines.

        Returns:
            A matplotlib figure, not shown.
        """
        return _plotted(self)


def _plotted(randomization: Randomization) -> Figure:
    """Draw means over images with their interquartile range."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    from camlib.plotting.figures import Figure

    stages, count = len(randomization.stages), len(randomization.similarities)
    figure = Figure(figsize=(max(NARROWEST, stages * STAGE) + 2.4, HEIGHT), layout="constrained")
    ax = figure.subplots()
    ax.axhline(1, color="0.8", linewidth=1, zorder=0)
    line = "-" if randomization.order == "cascading" else "none"  # stages that are randomised alone make no curve
    for k, (name, similarity) in enumerate(randomization.similarities.items()):
        values = similarity.detach().double().cpu().numpy()
        places = np.arange(stages) + (k - (count - 1) / 2) * APART
        color = colormaps["tab10"](k % 10)
        low, high = np.percentile(values, [25, 75], axis=1)
        ax.vlines(places, low, high, color=color, alpha=0.45, linewidth=3)
        ax.plot(
            places,
            values.mean(1),
            linestyle=line,
            marker=MARKERS[k % len(MARKERS)],
            color=color,
            markersize=5,
            label=name,
        )
        ax.axhline(randomization.random_pair[name], color=color, linestyle=":", linewidth=1.2)
    ax.set_xticks(range(stages), randomization.stages, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_xlim(-0.5, stages - 0.5)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_xlabel(AXES[randomization.order], fontsize=9)
    ax.set_ylabel("similarity to the network's own heatmap", fontsize=9)
    images = values.shape[1]
    counted = "1 image" if images == 1 else f"mean and middle half of {images} images"
    ax.set_title(f"{randomization.method}: {counted}", fontsize=10, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    same = Line2D([], [], color="0.8", linewidth=1, label="the same heatmap")
    dotted = Line2D([], [], color="0.4", linestyle=":", label="two random maps")
    handles = [*ax.get_legend_handles_labels()[0], same, dotted]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure
