"""Figures of the tests of the heatmaps, one for each part of :class:`pneumonia.quality.Quality`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pneumonia.data import CLASSES
from pneumonia.figures import BLUE, ORANGE
from pneumonia.measures import Estimate
from pneumonia.quality import Agreement, Faithfulness, Randomisation, Region, Shortcuts

GRAY = "0.45"
TITLES = {"ssim": "structural similarity (SSIM)", "spearman": "rank correlation (Spearman)"}
METHODS = {
    "grad_cam": "Grad-CAM", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM", "grad_cam_plus_plus": "Grad-CAM++",
    "x_grad_cam": "XGrad-CAM", "eigen_cam": "EigenCAM", "random": "random maps", "center_gaussian": "centre Gaussian",
}  # fmt: skip
LINES = {"grad_cam": (BLUE, "o-"), "random": (GRAY, "s--"), "center_gaussian": (ORANGE, "^-.")}
REGIONS = {"corners": "corner squares", "border": "border", "middle": "middle, as a reference"}
CALLED = {"NORMAL": (BLUE, -0.12), "PNEUMONIA": (ORANGE, 0.12)}
PANELS: tuple[tuple[str, str, float, Callable[[Region], Estimate]], ...] = (
    ("heatmap: energy by area", "share of energy / share of area", 1, lambda region: region.energy_by_area),
    ("covered: change of the probability", "mean absolute change", 0, lambda region: region.change),
    ("covered: changed decisions", "share of the images", 0, lambda region: region.flips),
)
"""Title, unit, the value that means nothing, and what is drawn."""
ANSWERS = {"yes": "yes", "in part": "in part", "no": "NO, or hardly", "unknown": "unknown, too few heatmaps"}
DARK = 0.6
"""Correlations further from 0 have a dark background and are written in white."""


def draw_randomisation(randomisation: Randomisation) -> Figure:
    """Draw the similarity to the original heatmap during the randomisation, and similarities due to chance."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    stages = ["trained", *randomisation.stages]
    for ax, (name, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True):
        similarity = randomisation.similarities[name]
        values, low, high = _columns(similarity.stages)
        others = similarity.different_images
        places = np.arange(len(stages))
        ax.fill_between(places, [1, *low], [1, *high], color=BLUE, alpha=0.25, linewidth=0)
        ax.plot(places, [1, *values], "o-", color=BLUE, label="same image, trained and randomised network")
        ax.axhspan(*others.interval, color=ORANGE, alpha=0.25, linewidth=0)
        ax.axhline(others.value, color=ORANGE, linestyle="--", label="different images, trained network")
        ax.axhline(similarity.random_pair, color=GRAY, linestyle=":", label="two random maps")
        ax.set_xticks(places, stages, rotation=35, ha="right", rotation_mode="anchor")
        ax.set_title(f"{title}: {ANSWERS[similarity.verdict]}", fontsize=10)
        ax.set_xlabel("randomised up to this layer, from the head down")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("similarity to the trained network's\nheatmap (1: identical)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"Does the heatmap depend on the network? {ANSWERS[randomisation.verdict]} "
        f"(means over images and {randomisation.draws} random networks; bands: 95% intervals)",
        fontsize=10.5,
    )
    return figure


def draw_faithfulness(faithfulness: Faithfulness) -> Figure:
    """Draw insertion and deletion curves, and the paired differences of the areas under them."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(1.7, 1), sharey="row")
    share = 100 * np.array(faithfulness.shares)
    for column, (name, done, found) in enumerate(
        (("insertion", "inserted", faithfulness.insertion), ("deletion", "deleted", faithfulness.deletion))
    ):
        ax, below = axes[0, column], axes[1, column]
        for method, curve in found.curves.items():
            color, line = LINES[method]
            ax.plot(share, curve, line, color=color, label=f"{METHODS[method]}, area {found.area[method].value:.3f}")
        ax.set(title=f"{name} ({found.better} is better)", xlabel=f"pixels {done}, %", ylim=(0, 1))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
        rivals = list(found.difference)
        _dots(
            below,
            list(found.difference.values()),
            [METHODS[name] for name in rivals],
            [LINES[name][0] for name in rivals],
        )
        for place, difference in enumerate(found.difference.values()):
            below.annotate(
                difference.verdict, (difference.value, place), (0, 8), textcoords="offset points", ha="center"
            )
        below.axvline(0, color="black", linewidth=1)
        below.set(title="Grad-CAM's area minus that of", ylim=(len(rivals) - 0.5, -0.7))
        side = "right" if found.better == "higher" else "left"
        below.set_xlabel(f"difference (better {side} of 0)")
    axes[0, 0].set_ylabel("mean probability of PNEUMONIA")
    figure.suptitle(
        "Does the heatmap name the pixels that the network needs? (differences with 95% intervals)", fontsize=12
    )
    return figure


def draw_shortcuts(shortcuts: Shortcuts) -> Figure:
    """Draw the energy by area in each region, and what covering it does to the probability and the decision."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    classes = {name: shortcuts.called[name] for name in CLASSES if name in shortcuts.called}
    areas = next(iter(classes.values())).regions
    names = [f"{title}\n({areas[region].area:.0%} of the area)" for region, title in REGIONS.items()]
    for ax, (title, unit, nothing, drawn) in zip(axes, PANELS, strict=True):
        for name, use in classes.items():
            color, shift = CALLED[name]
            _dots(ax, [drawn(use.regions[region]) for region in REGIONS], names, [color] * len(names), shift)
        ax.axvline(nothing, color="black", linewidth=1)
        ax.set(xlabel=unit, ylim=(len(names) - 0.5, -0.5))
        ax.set_title(title, fontsize=10)
        ax.set_xlim(-0.03 * ax.get_xlim()[1], max(1.05 * ax.get_xlim()[1], nothing + 0.05))
    figure.legend(
        handles=[
            Line2D([], [], color=CALLED[name][0], marker="o", label=f"{use.images} images called {name}")
            for name, use in classes.items()
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.suptitle(
        "Does the network rely on the border, or on the corners, where markers are? (95% intervals)", fontsize=12
    )
    return figure


def draw_agreement(agreement: Agreement) -> Figure:
    """Draw the matrix of rank correlations between methods."""
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    ax = figure.subplots()
    matrix = np.array(agreement.matrix)
    names = [METHODS[name] for name in agreement.methods]
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > DARK else "black")
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set_title("Do the methods agree? Mean rank correlation of their heatmaps")
    figure.colorbar(image, label="Spearman's rank correlation", shrink=0.9)
    return figure


def _columns(estimates: Sequence[Estimate]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Values, lower and upper bounds."""
    low, high = np.array([estimate.interval for estimate in estimates]).T
    return np.array([estimate.value for estimate in estimates]), low, high


def _dots(
    ax: Axes, estimates: Sequence[Estimate], names: Sequence[str], colors: Sequence[str], shift: float = 0
) -> None:
    """Draw dots with intervals, a line for each estimate."""
    for place, (value, low, high, color) in enumerate(zip(*_columns(estimates), colors, strict=True)):
        ax.plot([low, high], [place + shift] * 2, color=color, linewidth=2)
        ax.plot(value, place + shift, "o", color=color)
    ax.set_yticks(range(len(names)), names)
    ax.locator_params(axis="x", nbins=5)
    ax.grid(alpha=0.3, axis="x")
