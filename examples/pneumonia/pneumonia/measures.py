"""Measures of predictions, with intervals over patients: of all images, of subgroups, and of random subsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

Array = NDArray[Any]
T = TypeVar("T")
RESAMPLES = 1000
SUBGROUPS = ("bacteria", "virus")
"""Kinds of pneumonia that the Kaggle data set names in its file names."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Measures(Generic[T]):
    """The measures of predictions: plain numbers, or estimates with intervals. AUPRC is the average precision."""

    accuracy: T
    sensitivity: T
    specificity: T
    ppv: T
    npv: T
    auroc: T
    auprc: T

    def __getitem__(self, name: str) -> T:
        measure: T = getattr(self, name)
        return measure


MEASURES = tuple(field.name for field in fields(Measures))


@dataclass(frozen=True)
class Evaluation(Measures[Estimate]):
    """What was measured on a set of images."""

    images: int
    patients: int
    confusion: list[list[int]]
    """Rows are the truth, columns the prediction."""


@dataclass(frozen=True)
class Subset(Measures[float]):
    """What was measured on a random subset of the test images."""

    images: int


@dataclass(frozen=True)
class Subgroup:
    """What was measured on one kind of pneumonia."""

    images: int
    sensitivity: Estimate
    auroc: Estimate
    """Of this kind against all NORMAL images."""


def measure(labels: Array, probabilities: Array, threshold: float) -> Measures[float]:
    """Measure predictions; a measure that is undefined for these labels is NaN."""
    predicted, sick = probabilities >= threshold, labels == 1
    right = predicted == sick
    both = sick.any() and not sick.all()
    return Measures(
        accuracy=_share(right, np.ones_like(sick)),
        sensitivity=_share(right, sick),
        specificity=_share(right, ~sick),
        ppv=_share(right, predicted),
        npv=_share(right, ~predicted),
        auroc=float(roc_auc_score(labels, probabilities)) if both else float("nan"),
        auprc=float(average_precision_score(labels, probabilities)) if both else float("nan"),
    )


def _share(right: Array, among: Array) -> float:
    return float(right[among].mean()) if among.any() else float("nan")


def evaluate(labels: Array, probabilities: Array, patients: Sequence[str], threshold: float, seed: int) -> Evaluation:
    """Measure predictions with 95% intervals."""
    return Evaluation(
        images=len(labels),
        patients=len(set(patients)),
        confusion=confusion_matrix(labels, probabilities >= threshold, labels=[0, 1]).tolist(),
        **with_intervals(lambda at: vars(measure(labels[at], probabilities[at], threshold)), patients, seed),
    )


def with_intervals(
    measured: Callable[[Array], Mapping[str, float]], patients: Sequence[Any], seed: int
) -> dict[str, Estimate]:
    """Measure all images, with 95% percentile intervals over resamples of the patients.

    Args:
        measured: from the indices of images, some repeated in a resample, to numbers by name.
        patients: the patient of each image; a resample takes all images of a patient or none.
        seed: of the resamples.
    """
    generator = np.random.default_rng(seed)
    names, whose = np.unique(np.asarray(patients), return_inverse=True)
    images_of = np.split(np.argsort(whose, kind="stable"), np.cumsum(np.bincount(whose))[:-1])
    drawn = [
        measured(np.concatenate([images_of[i] for i in generator.integers(0, len(names), len(names))]))
        for _ in range(RESAMPLES)
    ]
    return {
        name: Estimate(value, _middle([row[name] for row in drawn]))
        for name, value in measured(np.arange(len(whose))).items()
    }


def means(columns: Mapping[str, torch.Tensor], patients: Sequence[Any], seed: int) -> dict[str, Estimate]:
    """Return means over the images (N,) with intervals over patients, leaving out NaN."""
    values: dict[str, Array] = {name: column.double().cpu().numpy() for name, column in columns.items()}
    return with_intervals(lambda at: {name: _mean(column[at]) for name, column in values.items()}, patients, seed)


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _middle(values: list[float]) -> tuple[float, float]:
    numbers = np.array(values)[~np.isnan(values)]
    low, high = np.percentile(numbers, [2.5, 97.5]) if len(numbers) else (np.nan, np.nan)
    return float(low), float(high)


def by_subgroup(
    labels: Array, probabilities: Array, patients: Sequence[str], names: Sequence[str], threshold: float, seed: int
) -> dict[str, Subgroup]:
    """Measure bacterial and viral pneumonia separately, recognised by the file names."""
    kinds = np.array([_kind(name) for name in names])
    found = {}
    for kind in SUBGROUPS:
        sick = kinds == kind
        if not (sick & (labels == 1)).any():
            continue
        among = np.flatnonzero(sick | (labels == 0)).tolist()
        of_kind = evaluate(labels[among], probabilities[among], [patients[i] for i in among], threshold, seed)
        found[kind] = Subgroup(int(sick.sum()), of_kind.sensitivity, of_kind.auroc)
    return found


def _kind(name: str) -> str:
    return next((kind for kind in SUBGROUPS if f"_{kind}_" in Path(name).name), "")


def random_subsets(
    labels: Array, probabilities: Array, threshold: float, size: int, count: int, seed: int
) -> list[Subset]:
    """Measure ``count`` random subsets of the test images, each drawn without replacement."""
    generator = np.random.default_rng(seed)
    subsets = []
    for _ in range(count):
        chosen = generator.choice(len(labels), min(size, len(labels)), replace=False)
        measured = measure(labels[chosen], probabilities[chosen], threshold)
        subsets.append(Subset(images=len(chosen), **vars(measured)))
    return subsets
