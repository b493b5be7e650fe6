"""A table of methods by metrics as a picture: numbers to read, colours to find the best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camlib.evaluation.table import Evaluation, Row

BASELINES = ("random_cam", "center_gaussian", "sobel")
"""In italics: what does not beat them says nothing."""
COLORMAP = "cividis"
"""Perceptually even, and the same to colour-blind eyes."""
CELL = (1.35, 0.34)
"""Width and height in inches."""


def plot_evaluation(evaluation: Evaluation) -> Figure:
    """Draw a line for each row, the best mean rank first; see :meth:`camlib.Evaluation.plot`."""
    from camlib.plotting.figures import Figure

    rows, metrics = evaluation.ranked(), evaluation.metrics
    ranks = evaluation.mean_ranks()
    shares = [[_place(evaluation, row, metric) for metric in metrics] for row in rows]
    widest = 0.085 * max(len(str(row)) for row in rows)
    figure = Figure(
        figsize=(widest + CELL[0] * (len(metrics) + 1) + 1.6, CELL[1] * len(rows) + 1.9), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=COLORMAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    heads = [f"{metric.replace('_', ' ')}\n{evaluation.better[metric]} is better" for metric in metrics]
    axes.set_xticks(range(len(metrics)), heads, fontsize=8, rotation=30, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    labels = [f"{row}   (mean rank {ranks[row]:.1f}; passes {evaluation.passes[row]:.4g})" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontstyle("italic" if row.method in BASELINES else "normal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, row in enumerate(rows):
        for x, metric in enumerate(metrics):
            light = math.isnan(shares[y][x]) or shares[y][x] > 0.55
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": "black" if light else "white",
            }
            axes.text(x, y, _cell(evaluation, row, metric), **style)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=min(1.0, 3 / (CELL[1] * len(rows))), ticks=[0, 1])
    bar.ax.set_yticklabels(["worst of\nthe column", "best of\nthe column"], fontsize=8)
    axes.set_xlabel(
        f"means over {evaluation.images} images, with 95% bootstrap intervals over images; baselines in italics",
        fontsize=8,
    )
    return figure


def _place(evaluation: Evaluation, row: Row, metric: str) -> float:
    """Where a cell stands among those of its column by rank, 0 the worst, 1 the best."""
    sign = 1 if evaluation.better[metric] == "higher" else -1
    means = {other: sign * mean for other, mean in evaluation.comparable_means(metric).items()}
    own, known = means[row], [value for value in means.values() if not math.isnan(value)]
    if math.isnan(own):
        return math.nan
    if len(known) == 1:
        return 1.0
    return (sum(value < own for value in known) + (known.count(own) - 1) / 2) / (len(known) - 1)


def _cell(evaluation: Evaluation, row: Row, metric: str) -> Any:
    mean = evaluation.mean(row, metric)
    if math.isnan(mean):
        return "none"
    low, high = evaluation.interval(row, metric)
    return f"{mean:.3g}\n{low:.3g} to {high:.3g}"
