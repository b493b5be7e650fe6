"""Figures of what was asked of the heatmaps: each takes one part of :func:`pneumonia.quality.quality`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pneumonia.data import CLASSES

Results = dict[str, Any]

BLUE, ORANGE, GRAY = "#2166ac", "#d6604d", "0.45"
SIMILARITIES = {"ssim": "structural similarity (SSIM)", "spearman": "rank correlation (Spearman)"}
METHODS = {
    "grad_cam": "Grad-CAM", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM", "grad_cam_plus_plus": "Grad-CAM++",
    "x_grad_cam": "XGrad-CAM", "eigen_cam": "EigenCAM", "random": "random maps", "center_gaussian": "centre Gaussian",
}  # fmt: skip
LINES = {"grad_cam": (BLUE, "o-"), "random": (GRAY, "s--"), "center_gaussian": (ORANGE, "^-.")}
REGIONS = {"corners": "corner squares", "border": "border", "middle": "middle, for scale"}
CALLED = {"NORMAL": (BLUE, -0.12), "PNEUMONIA": (ORANGE, 0.12)}
LOOKS = {
    "energy_by_area": ("heatmap: energy by area", "share of energy / share of area", 1),
    "change": ("covered: the probability changes", "mean absolute change", 0),
    "flips": ("covered: the decision flips", "share of the images", 0),
}
ANSWERS = {
    "yes": "yes",
    "in part": "in part",
    "no": "NO, or hardly",
    "unknown": "unknown, too few heatmaps",
}
DARK = 0.6
"""Correlations further from 0 have a dark colour behind them, and are written in white."""


def draw_randomisation(randomisation: Results) -> Figure:
    """Draw how alike heatmaps stay while the network is randomised, beside maps that are alike by chance."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    stages = ["trained", *randomisation["stages"]]
    for ax, (name, title) in zip(figure.subplots(1, 2, sharey=True), SIMILARITIES.items(), strict=True):
        values, low, high = _columns(randomisation["similarities"][name])
        others, random_pair = randomisation["different_images"][name], randomisation["random_pair"][name]
        places = np.arange(len(stages))
        ax.fill_between(places, [1, *low], [1, *high], color=BLUE, alpha=0.25, linewidth=0)
        ax.plot(places, [1, *values], "o-", color=BLUE, label="same image, trained and randomised network")
        ax.axhspan(*others["interval"], color=ORANGE, alpha=0.25, linewidth=0)
        ax.axhline(others["value"], color=ORANGE, linestyle="--", label="different images, trained network")
        ax.axhline(random_pair, color=GRAY, linestyle=":", label="two random maps")
        ax.set_xticks(places, stages, rotation=35, ha="right", rotation_mode="anchor")
        ax.set_title(f"{title}: {ANSWERS[randomisation['verdicts'][name]]}", fontsize=10)
        ax.set_xlabel("randomised up to here, from the head down")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("similarity to the trained network's\nheatmap (1: the same)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"Is the heatmap tied to the network? {ANSWERS[randomisation['verdict']]} "
        f"(means over images and {randomisation['draws']} random networks; bands: 95% intervals)",
        fontsize=10.5,
    )
    return figure


def draw_faithfulness(faithfulness: Results) -> Figure:
    """Draw insertion and deletion curves, and the paired differences of the areas under them."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(1.7, 1), sharey="row")
    share = 100 * np.array(faithfulness["shares"])
    for column, (name, done) in enumerate((("insertion", "shown"), ("deletion", "taken away"))):
        part, ax, below = faithfulness[name], axes[0, column], axes[1, column]
        for who, curve in part["curves"].items():
            color, line = LINES[who]
            ax.plot(share, curve, line, color=color, label=f"{METHODS[who]}, area {part['area'][who]['value']:.3f}")
        ax.set(title=f"{name} ({part['better']} is better)", xlabel=f"pixels {done}, %", ylim=(0, 1))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
        rivals = part["difference"]
        _dots(below, list(rivals.values()), [METHODS[who] for who in rivals], [LINES[who][0] for who in rivals])
        for place, rival in enumerate(rivals.values()):
            below.annotate(rival["evidence"], (rival["value"], place), (0, 8), textcoords="offset points", ha="center")
        below.axvline(0, color="black", linewidth=1)
        below.set(title="Grad-CAM's area less that of", ylim=(len(rivals) - 0.5, -0.7))
        side = "right" if part["better"] == "higher" else "left"
        below.set_xlabel(f"difference (better {side} of 0)")
    axes[0, 0].set_ylabel("mean probability of PNEUMONIA")
    figure.suptitle(
        "Does the heatmap name the pixels that the network needs? (differences with 95% intervals)", fontsize=12
    )
    return figure


def draw_shortcuts(shortcuts: Results) -> Figure:
    """Draw energy by area in corners and border, and what covering them does to the probability and the decision."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, len(LOOKS), sharey=True)
    classes = [name for name in CLASSES if name in shortcuts]
    names = [f"{title}\n({shortcuts[classes[0]][region]['area']:.0%} of the area)" for region, title in REGIONS.items()]
    for ax, (key, (title, unit, nothing)) in zip(axes, LOOKS.items(), strict=True):
        for name in classes:
            color, shift = CALLED[name]
            _dots(ax, [shortcuts[name][region][key] for region in REGIONS], names, [color] * len(names), shift)
        ax.axvline(nothing, color="black", linewidth=1)
        ax.set(xlabel=unit, ylim=(len(names) - 0.5, -0.5))
        ax.set_title(title, fontsize=10)
        ax.set_xlim(-0.03 * ax.get_xlim()[1], max(1.05 * ax.get_xlim()[1], nothing + 0.05))
    figure.legend(
        handles=[
            Line2D([], [], color=CALLED[name][0], marker="o", label=f"{shortcuts[name]['images']} images called {name}")
            for name in classes
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.suptitle(
        "Does the network lean on corners, where markers stand, or on the border? (95% intervals)", fontsize=12
    )
    return figure


def draw_agreement(agreement: Results) -> Figure:
    """Draw the matrix of rank correlations between methods."""
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    ax = figure.subplots()
    matrix = np.array(agreement["matrix"], dtype=float)
    names = [METHODS[name] for name in agreement["methods"]]
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        value = matrix[row, column]
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > DARK else "black")
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.set_title("Do methods agree on where? Mean rank correlation of heatmaps")
    figure.colorbar(image, label="Spearman's rank correlation", shrink=0.9)
    return figure


def _columns(rows: Sequence[Results]) -> tuple[Any, Any, Any]:
    """Values, lower and upper bounds; null is NaN again."""
    intervals = np.array([row["interval"] for row in rows], dtype=float)
    return np.array([row["value"] for row in rows], dtype=float), intervals[:, 0], intervals[:, 1]


def _dots(ax: Axes, rows: Sequence[Results], names: Sequence[str], colors: Sequence[str], shift: float = 0) -> None:
    """Draw dots with intervals, a row for each."""
    for place, (value, low, high, color) in enumerate(zip(*_columns(rows), colors, strict=True)):
        ax.plot([low, high], [place + shift] * 2, color=color, linewidth=2)
        ax.plot(value, place + shift, "o", color=color)
    ax.set_yticks(range(len(names)), names)
    ax.locator_params(axis="x", nbins=5)
    ax.grid(alpha=0.3, axis="x")
