"""Figures of the training and of the evaluation: panels, and the sheets that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from pneumonia.data import CLASSES

BLUE, ORANGE = "#2166ac", "#d6604d"
Results = dict[str, Any]
Array = NDArray[Any]


def sheet(results: Results) -> Figure:
    """Draw what there is to say of the test set on one sheet."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    for ax, draw in zip(figure.subplots(2, 3).flat, (*PANELS.values(), _counts), strict=True):
        draw(ax, results)
    figure.suptitle(
        f"test set, {results['test']['images']} images of {results['test']['patients']} patients "
        "(research software, not a medical device)",
        fontsize=9,
    )
    return figure


def panel(draw: Callable[[Axes, Results], None], results: Results) -> Figure:
    """Draw one panel as a figure of its own."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    draw(figure.subplots(), results)
    return figure


def training(history: list[dict[str, float]]) -> Figure:
    """Draw loss and validation AUROC by epoch."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(
        epochs, [row["training_loss"] for row in history], "o-", color=BLUE, label="training (augmented, smoothed)"
    )
    left.plot(epochs, [row["validation_loss"] for row in history], "o-", color=ORANGE, label="validation")
    left.set(title="cross-entropy", xlabel="epoch", ylabel="loss in nats", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    right.plot(epochs, [row["validation_auroc"] for row in history], "o-", color=ORANGE)
    right.set(title="validation AUROC", xlabel="epoch", ylim=(0.5, 1.005))
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_roc(ax: Axes, results: Results) -> None:
    """Sensitivity against false alarms, at every threshold."""
    labels, probabilities, test = _predictions(results)
    false_positive, true_positive, _ = roc_curve(labels, probabilities)
    ax.plot(false_positive, true_positive, color=BLUE, label=_with_interval("AUROC", test["auroc"]))
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="chance")
    _mark(ax, 1 - test["specificity"]["value"], test["sensitivity"]["value"])
    ax.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.grid(alpha=0.3)


def draw_precision_recall(ax: Axes, results: Results) -> None:
    """Positive predictive value against sensitivity, at every threshold."""
    labels, probabilities, test = _predictions(results)
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    ax.step(recall, precision, where="post", color=BLUE, label=_with_interval("AUPRC", test["auprc"]))
    ax.axhline(labels.mean(), color="gray", linewidth=0.8, label=f"chance: {labels.mean():.0%} are PNEUMONIA")
    _mark(ax, test["sensitivity"]["value"], test["ppv"]["value"])
    ax.set(title="precision and recall", xlabel="sensitivity (recall)", ylabel="PPV (precision)", ylim=(0, 1.03))
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    ax.grid(alpha=0.3)


def draw_reliability(ax: Axes, results: Results) -> None:
    """How often PNEUMONIA is true where about so much probability was given, before and after the temperature."""
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="as probable as said")
    for name, color, shown in (("uncalibrated", ORANGE, "before"), ("calibrated", BLUE, "after temperature scaling")):
        found = results["calibration"][name]
        bins = found["reliability"]
        ax.plot(
            [row["probability"] for row in bins],
            [row["frequency"] for row in bins],
            "-",
            color=color,
            label=f"{shown}: ECE {found['ece']:.3f}, Brier {found['brier']:.3f}",
        )
        ax.scatter(
            [row["probability"] for row in bins],
            [row["frequency"] for row in bins],
            s=[8 + 200 * row["images"] / results["test"]["images"] for row in bins],
            color=color,
        )
    ax.set(
        title="reliability (area of a dot: its images)",
        xlabel="mean probability of PNEUMONIA given",
        ylabel="share that is PNEUMONIA",
        aspect="equal",
        xlim=(-0.05, 1.05),
        ylim=(-0.05, 1.05),
    )
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.grid(alpha=0.3)


def draw_confusion(ax: Axes, results: Results) -> None:
    """Truth by prediction: images, and their share of the truth."""
    matrix = np.array(results["test"]["confusion"])
    shares = matrix / matrix.sum(1, keepdims=True)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for truth in range(2):
        for guess in range(2):
            ax.text(
                guess,
                truth,
                f"{matrix[truth, guess]}\n{shares[truth, guess]:.0%}",
                ha="center",
                va="center",
                color="white" if shares[truth, guess] > 0.5 else "black",
            )
    ax.set(title="confusion matrix", xlabel="predicted", ylabel="true", xticks=(0, 1), yticks=(0, 1))
    ax.set_xticklabels(CLASSES)
    ax.set_yticklabels(CLASSES, rotation=90, va="center")


def draw_probabilities(ax: Axes, results: Results) -> None:
    """How the probabilities of either class are spread."""
    labels, probabilities, _ = _predictions(results)
    bins = [bound / 25 for bound in range(26)]
    for label, color in enumerate((BLUE, ORANGE)):
        ax.hist(probabilities[labels == label], bins=bins, color=color, alpha=0.65, label=f"truly {CLASSES[label]}")
    ax.axvline(results["threshold"], color="black", linestyle="--", label="threshold, from validation")
    ax.set(title="predicted probability of PNEUMONIA", xlabel="probability", ylabel="test images")
    ax.legend(frameon=False, fontsize=8)


PANELS: dict[str, Callable[[Axes, Results], None]] = {
    "roc": draw_roc,
    "precision_recall": draw_precision_recall,
    "reliability": draw_reliability,
    "confusion": draw_confusion,
    "probabilities": draw_probabilities,
}


def _counts(ax: Axes, results: Results) -> None:
    """The figures at the threshold, as dots with intervals."""
    names = [name for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv") if _is_known(results, name)]
    for place, name in enumerate(reversed(names)):
        value, (low, high) = results["test"][name]["value"], results["test"][name]["interval"]
        ax.plot([low, high], [place, place], color=BLUE, linewidth=2)
        ax.plot(value, place, "o", color=BLUE)
        ax.text(value, place + 0.16, f"{value:.3f}", ha="center", fontsize=8)
    shown = [name.upper() if len(name) == 3 else name for name in reversed(names)]
    ax.set_yticks(range(len(names)), shown)
    ax.set(title=f"at the threshold {results['threshold']:.3f}, with 95% intervals", xlim=(None, 1.02))
    ax.set_ylim(-0.5, len(names) - 0.3)
    ax.grid(alpha=0.3, axis="x")


def _is_known(results: Results, name: str) -> bool:
    return not np.isnan(results["test"][name]["value"])


def _predictions(results: Results) -> tuple[Array, Array, Results]:
    rows = results["predictions"]
    return np.array([r["label"] for r in rows]), np.array([r["probability"] for r in rows]), results["test"]


def _with_interval(name: str, figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{name} {figure['value']:.3f} ({low:.3f} to {high:.3f})"


def _mark(ax: Axes, x: float, y: float) -> None:
    ax.plot(x, y, "o", color="black", label="at the threshold")
