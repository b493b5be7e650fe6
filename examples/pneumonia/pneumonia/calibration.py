"""Calibration: one temperature fitted on validation images, and the calibration error on the test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

Array = NDArray[Any]
BINS = 10
LEAST, MOST = 0.05, 20.0
"""Temperatures beyond these mean that the network itself has failed."""


@dataclass(frozen=True)
class Bin:
    """The images whose probability lies in one tenth of [0, 1]."""

    images: int
    probability: float
    """Their mean probability of PNEUMONIA."""
    frequency: float
    """The share of them that is PNEUMONIA."""


@dataclass(frozen=True)
class Calibration:
    """How well probabilities agree with frequencies; lower is better for each of the three numbers."""

    brier: float
    """Mean squared error of the probabilities."""
    ece: float
    """Expected calibration error: mean gap between probability and frequency over the bins."""
    cross_entropy: float
    """In nats."""
    reliability: list[Bin]


def probabilities_of(margins: Array, temperature: float) -> Array:
    """Turn margins of the logits (N, views) into probabilities (N,), the mean over the views of an image."""
    means: Array = expit(margins / temperature).mean(1)
    return means


def fit_temperature(labels: Array, margins: Array) -> float:
    """Return the temperature T for which sigmoid(margin / T) has the lowest cross-entropy (Guo et al. 2017).

    Use validation images only. The temperature does not change the ranking of single views, and hardly changes AUROC.
    """

    def loss(logarithm: float) -> float:
        return float(log_loss(labels, probabilities_of(margins, float(np.exp(logarithm))), labels=[0, 1]))

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def reliability(labels: Array, probabilities: Array) -> list[Bin]:
    """Compare probability and frequency in each tenth of [0, 1] that holds images."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return [
        Bin(int((place == bin).sum()), float(probabilities[place == bin].mean()), float(labels[place == bin].mean()))
        for bin in np.unique(place)
    ]


def calibration(labels: Array, probabilities: Array) -> Calibration:
    """Measure the calibration of probabilities (N,)."""
    bins = reliability(labels, probabilities)
    return Calibration(
        brier=float(brier_score_loss(labels, probabilities)),
        ece=sum(bin.images * abs(bin.probability - bin.frequency) for bin in bins) / len(labels),
        cross_entropy=float(log_loss(labels, probabilities, labels=[0, 1])),
        reliability=bins,
    )
