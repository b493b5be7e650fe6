"""Figures of the training and of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from pneumonia.data import CLASSES

BLUE, ORANGE = "#2166ac", "#d6604d"


def draw_training(history: list[dict[str, float]], path: Path) -> None:
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
    figure.savefig(path, dpi=120)


def draw_evaluation(results: dict[str, Any], path: Path) -> None:
    """Draw the test set's ROC curve, confusion matrix and probabilities."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    roc, matrix, spread = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    labels = np.array([row["label"] for row in results["predictions"]])
    probabilities = np.array([row["probability"] for row in results["predictions"]])
    _draw_roc(roc, labels, probabilities, results["test"])
    _draw_confusion(matrix, np.array(results["test"]["confusion"]))
    bins = np.linspace(0, 1, 26)
    for label, color in enumerate((BLUE, ORANGE)):
        spread.hist(probabilities[labels == label], bins=bins, color=color, alpha=0.65, label=f"truly {CLASSES[label]}")
    spread.axvline(results["threshold"], color="black", linestyle="--", label="threshold, from validation")
    spread.set(title="predicted probability of PNEUMONIA", xlabel="probability", ylabel="test images")
    spread.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"test set, {results['test']['images']} images of {results['test']['patients']} patients "
        "(research software, not a medical device)",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)


def _draw_roc(ax: Axes, labels: Any, probabilities: Any, test: dict[str, Any]) -> None:
    false_positive, true_positive, _ = roc_curve(labels, probabilities)
    low, high = test["auroc"]["interval"]
    ax.plot(
        false_positive, true_positive, color=BLUE, label=f"AUROC {test['auroc']['value']:.3f} ({low:.3f} to {high:.3f})"
    )
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    ax.plot(
        1 - test["specificity"]["value"], test["sensitivity"]["value"], "o", color="black", label="at the threshold"
    )
    ax.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.grid(alpha=0.3)


def _draw_confusion(ax: Axes, matrix: Any) -> None:
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
