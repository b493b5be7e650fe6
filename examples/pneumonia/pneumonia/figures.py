"""Figures of the training and of the evaluation on the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from pneumonia.data import CLASSES
from pneumonia.results import Results
from pneumonia.train import Epoch

BLUE, ORANGE = "#2166ac", "#d6604d"


def sheet(results: Results) -> Figure:
    """Draw all panels, and the measures at the threshold, in one figure."""
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    for ax, draw in zip(figure.subplots(2, 3).flat, (*PANELS.values(), _measures), strict=True):
        draw(ax, results)
    figure.suptitle(
        f"test set: {results.test.images} images of {results.test.patients} patients "
        "(research software, not a medical device)",
        fontsize=9,
    )
    return figure


def panel(draw: Callable[[Axes, Results], None], results: Results) -> Figure:
    """Draw one panel as a separate figure."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    draw(figure.subplots(), results)
    return figure


def training(history: Sequence[Epoch]) -> Figure:
    """Draw loss and validation AUROC by epoch."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    left.plot(epochs, [row.training_loss for row in history], "o-", color=BLUE, label="training (augmented, smoothed)")
    left.plot(epochs, [row.validation_loss for row in history], "o-", color=ORANGE, label="validation")
    left.set(title="cross-entropy", xlabel="epoch", ylabel="loss in nats", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    right.plot(epochs, [row.validation_auroc for row in history], "o-", color=ORANGE)
    right.set(title="validation AUROC", xlabel="epoch", ylim=(0.5, 1.005))
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_roc(ax: Axes, results: Results) -> None:
    """Draw sensitivity against 1 - specificity at every threshold."""
    false_positive, true_positive, _ = roc_curve(results.labels, results.probabilities)
    ax.plot(false_positive, true_positive, color=BLUE, label=f"AUROC {results.test.auroc}")
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="chance")
    _mark(ax, 1 - results.test.specificity.value, results.test.sensitivity.value)
    ax.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.grid(alpha=0.3)


def draw_precision_recall(ax: Axes, results: Results) -> None:
    """Draw precision against recall at every threshold."""
    precision, recall, _ = precision_recall_curve(results.labels, results.probabilities)
    share = results.labels.mean()
    ax.step(recall, precision, where="post", color=BLUE, label=f"AUPRC {results.test.auprc}")
    ax.axhline(share, color="gray", linewidth=0.8, label=f"chance: {share:.0%} are PNEUMONIA")
    _mark(ax, results.test.sensitivity.value, results.test.ppv.value)
    ax.set(title="precision and recall", xlabel="sensitivity (recall)", ylabel="PPV (precision)", ylim=(0, 1.03))
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    ax.grid(alpha=0.3)


def draw_reliability(ax: Axes, results: Results) -> None:
    """Draw the frequency of PNEUMONIA against its probability, before and after temperature scaling."""
    ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="perfect calibration")
    for calibration, color, title in (
        (results.calibration.uncalibrated, ORANGE, "before"),
        (results.calibration.calibrated, BLUE, "after temperature scaling"),
    ):
        probability = [bin.probability for bin in calibration.reliability]
        frequency = [bin.frequency for bin in calibration.reliability]
        sizes = [8 + 200 * bin.images / results.test.images for bin in calibration.reliability]
        label = f"{title}: ECE {calibration.ece:.3f}, Brier {calibration.brier:.3f}"
        ax.plot(probability, frequency, "-", color=color, label=label)
        ax.scatter(probability, frequency, s=sizes, color=color)
    ax.set(
        title="reliability (dot area: number of images)",
        xlabel="mean predicted probability of PNEUMONIA",
        ylabel="share that is PNEUMONIA",
        aspect="equal",
        xlim=(-0.05, 1.05),
        ylim=(-0.05, 1.05),
    )
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.grid(alpha=0.3)


def draw_confusion(ax: Axes, results: Results) -> None:
    """Draw the images of each true and predicted class, and their share of the true class."""
    matrix = np.array(results.test.confusion)
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
    """Draw a histogram of the probabilities of each class."""
    bins = [bound / 25 for bound in range(26)]
    for label, color in enumerate((BLUE, ORANGE)):
        chosen = results.probabilities[results.labels == label]
        ax.hist(chosen, bins=bins, color=color, alpha=0.65, label=f"truly {CLASSES[label]}")
    ax.axvline(results.threshold, color="black", linestyle="--", label="threshold, from validation")
    ax.set(title="predicted probability of PNEUMONIA", xlabel="probability", ylabel="test images")
    ax.legend(frameon=False, fontsize=8)


PANELS: dict[str, Callable[[Axes, Results], None]] = {
    "roc": draw_roc,
    "precision_recall": draw_precision_recall,
    "reliability": draw_reliability,
    "confusion": draw_confusion,
    "probabilities": draw_probabilities,
}


def _measures(ax: Axes, results: Results) -> None:
    """Draw the measures at the threshold as dots with intervals."""
    names = [name for name in ("npv", "ppv", "specificity", "sensitivity", "accuracy") if _is_known(results, name)]
    for place, name in enumerate(names):
        estimate = results.test[name]
        ax.plot(estimate.interval, [place, place], color=BLUE, linewidth=2)
        ax.plot(estimate.value, place, "o", color=BLUE)
        ax.text(estimate.value, place + 0.16, f"{estimate.value:.3f}", ha="center", fontsize=8)
    ax.set_yticks(range(len(names)), [name.upper() if len(name) == 3 else name for name in names])
    ax.set(title=f"at the threshold {results.threshold:.3f}, with 95% intervals", xlim=(None, 1.02))
    ax.set_ylim(-0.5, len(names) - 0.3)
    ax.grid(alpha=0.3, axis="x")


def _is_known(results: Results, name: str) -> bool:
    return not np.isnan(results.test[name].value)


def _mark(ax: Axes, x: float, y: float) -> None:
    ax.plot(x, y, "o", color="black", label="at the threshold")
