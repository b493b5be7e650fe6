"""Judging predictions: a threshold from validation, figures with intervals, and fresh random subsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

Array = NDArray[Any]
RESAMPLES = 1000


def choose_threshold(labels: Array, probabilities: Array) -> float:
    """Return the threshold for sensitivity + specificity (Youden), to be used on validation only.

    Near a perfect separation the very best threshold hangs on a handful of images. The thresholds around it whose
    Youden index is within one standard error of the best are as good, for all that validation can tell; the middle of
    them is taken.
    """
    curve = roc_curve(labels, probabilities, drop_intermediate=False)
    false_positive, true_positive, thresholds = (values[1:] for values in curve)  # the first threshold is infinite
    youden = true_positive - false_positive
    best = int(youden.argmax())
    positives = int((labels == 1).sum())
    variance = sum(
        rate * (1 - rate) / count
        for rate, count in ((true_positive[best], positives), (false_positive[best], len(labels) - positives))
    )
    worse = np.flatnonzero(youden < youden[best] - variance**0.5 - 1e-9)
    first, last = worse[worse < best].max(initial=-1) + 1, worse[worse > best].min(initial=len(youden)) - 1
    next_lower = probabilities[probabilities < thresholds[last]].max(initial=0)
    return float((thresholds[first] + next_lower) / 2)


def figures(labels: Array, probabilities: Array, threshold: float) -> dict[str, float]:
    """Accuracy, sensitivity, specificity and AUROC; NaN where a class is missing."""
    predicted = probabilities >= threshold
    positive, negative = labels == 1, labels == 0
    both = positive.any() and negative.any()
    return {
        "accuracy": float((predicted == positive).mean()),
        "sensitivity": float(predicted[positive].mean()) if positive.any() else float("nan"),
        "specificity": float((~predicted[negative]).mean()) if negative.any() else float("nan"),
        "auroc": float(roc_auc_score(labels, probabilities)) if both else float("nan"),
    }


def evaluate(
    labels: Array, probabilities: Array, patients: Sequence[str], threshold: float, seed: int
) -> dict[str, Any]:
    """Figures with 95% intervals, and the confusion matrix (rows: truth, columns: prediction)."""
    point = figures(labels, probabilities, threshold)
    intervals = bootstrap(labels, probabilities, patients, threshold, seed)
    matrix = confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
    return {
        "images": len(labels),
        "patients": len(set(patients)),
        **{name: {"value": value, "interval": intervals[name]} for name, value in point.items()},
        "confusion": matrix.tolist(),
    }


def bootstrap(
    labels: Array, probabilities: Array, patients: Sequence[str], threshold: float, seed: int
) -> dict[str, list[float]]:
    """95% percentile intervals over resamples of the patients, whose images belong together."""
    generator = np.random.default_rng(seed)
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    images_of = np.split(np.argsort(whose, kind="stable"), np.cumsum(np.bincount(whose))[:-1])
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([images_of[i] for i in generator.integers(0, len(names), len(names))])
        drawn.append(figures(labels[chosen], probabilities[chosen], threshold))
    return {
        name: [float(bound) for bound in np.nanpercentile([row[name] for row in drawn], [2.5, 97.5])]
        for name in drawn[0]
    }


def random_subsets(
    labels: Array, probabilities: Array, threshold: float, size: int, count: int, seed: int
) -> list[dict[str, float]]:
    """Figures on ``count`` fresh random subsets of the test set, each drawn without replacement."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        chosen = generator.choice(len(labels), min(size, len(labels)), replace=False)
        rows.append({"images": len(chosen), **figures(labels[chosen], probabilities[chosen], threshold)})
    return rows
