"""Judging predictions: figures with intervals over patients, subgroups, and fresh random subsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

Array = NDArray[Any]
RESAMPLES = 1000
FIGURES = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "auroc", "auprc")
SUBGROUPS = ("bacteria", "virus")
"""Kinds of pneumonia that the file names of the Kaggle data set tell."""


def figures(labels: Array, probabilities: Array, threshold: float) -> dict[str, float]:
    """Accuracy, sensitivity, specificity, PPV, NPV, AUROC and AUPRC (average precision); NaN where there is none."""
    predicted, sick = probabilities >= threshold, labels == 1
    right = predicted == sick
    both = sick.any() and not sick.all()
    return {
        "accuracy": _share(right, np.ones_like(sick)),
        "sensitivity": _share(right, sick),
        "specificity": _share(right, ~sick),
        "ppv": _share(right, predicted),
        "npv": _share(right, ~predicted),
        "auroc": float(roc_auc_score(labels, probabilities)) if both else float("nan"),
        "auprc": float(average_precision_score(labels, probabilities)) if both else float("nan"),
    }


def _share(right: Array, among: Array) -> float:
    return float(right[among].mean()) if among.any() else float("nan")


def evaluate(
    labels: Array, probabilities: Array, patients: Sequence[str], threshold: float, seed: int
) -> dict[str, Any]:
    """Figures with 95% intervals, and the confusion matrix (rows: truth, columns: prediction)."""
    return {
        "images": len(labels),
        "patients": len(set(patients)),
        **with_intervals(lambda at: figures(labels[at], probabilities[at], threshold), patients, seed),
        "confusion": confusion_matrix(labels, probabilities >= threshold, labels=[0, 1]).tolist(),
    }


def with_intervals(
    measure: Callable[[Array], dict[str, float]], patients: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Measure all images, with 95% percentile intervals over resamples of the patients, whose images belong together.

    Args:
        measure: from the indices of the images (a resample holds some several times) to figures.
        patients: whom each image shows.
        seed: of the resamples.
    """
    generator = np.random.default_rng(seed)
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    images_of = np.split(np.argsort(whose, kind="stable"), np.cumsum(np.bincount(whose))[:-1])
    drawn = [
        measure(np.concatenate([images_of[i] for i in generator.integers(0, len(names), len(names))]))
        for _ in range(RESAMPLES)
    ]
    return {
        name: {"value": value, "interval": _middle([row[name] for row in drawn])}
        for name, value in measure(np.arange(len(whose))).items()
    }


def _middle(values: list[float]) -> list[float]:
    numbers = np.array(values)[~np.isnan(values)]
    return [float(bound) for bound in np.percentile(numbers, [2.5, 97.5])] if len(numbers) else [float("nan")] * 2


def by_subgroup(
    labels: Array, probabilities: Array, patients: Sequence[str], names: Sequence[str], threshold: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Sensitivity to bacterial and to viral pneumonia, and AUROC of each against all NORMAL; by the file names."""
    kinds = np.array([_kind(name) for name in names])
    found = {}
    for kind in SUBGROUPS:
        sick = kinds == kind
        if not (sick & (labels == 1)).any():
            continue
        among = np.flatnonzero(sick | (labels == 0)).tolist()
        of_kind = evaluate(labels[among], probabilities[among], [patients[i] for i in among], threshold, seed)
        found[kind] = {"images": int(sick.sum()), "sensitivity": of_kind["sensitivity"], "auroc": of_kind["auroc"]}
    return found


def _kind(name: str) -> str:
    return next((kind for kind in SUBGROUPS if f"_{kind}_" in Path(name).name), "")


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
