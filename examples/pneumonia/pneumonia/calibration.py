"""Does a probability of 0.8 mean four in five? One temperature from validation, and how far off the test set is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

Array = NDArray[Any]
BINS = 10
LEAST, MOST = 0.05, 20.0
"""Temperatures beyond these say that something is wrong with the network, not with its temperature."""


def probabilities_of(margins: Array, temperature: float) -> Array:
    """Turn the margins of the logits (N, views) into probabilities (N,), the mean over the views of a picture."""
    means: Array = expit(margins / temperature).mean(1)
    return means


def fit_temperature(labels: Array, margins: Array) -> float:
    """Return the temperature T for which sigmoid(margin / T) has the least cross-entropy (Guo et al. 2017).

    To be used on validation only. It changes no ranking of single views, and leaves AUROC all but untouched.
    """

    def loss(logarithm: float) -> float:
        return float(log_loss(labels, probabilities_of(margins, float(np.exp(logarithm))), labels=[0, 1]))

    found = minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def reliability(labels: Array, probabilities: Array) -> list[dict[str, float]]:
    """How often PNEUMONIA is true where about so much probability was given: a row for each tenth that has images."""
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return [
        {
            "images": int((place == bin).sum()),
            "probability": float(probabilities[place == bin].mean()),
            "frequency": float(labels[place == bin].mean()),
        }
        for bin in np.unique(place)
    ]


def expected_calibration_error(labels: Array, probabilities: Array) -> float:
    """Mean gap between probability and frequency over the bins of :func:`reliability`, weighed by their images."""
    rows = reliability(labels, probabilities)
    return sum(row["images"] * abs(row["probability"] - row["frequency"]) for row in rows) / len(labels)


def calibration(labels: Array, probabilities: Array) -> dict[str, float]:
    """Brier score (mean squared error), expected calibration error and cross-entropy (nats); lower is better."""
    return {
        "brier": float(brier_score_loss(labels, probabilities)),
        "ece": expected_calibration_error(labels, probabilities),
        "cross_entropy": float(log_loss(labels, probabilities, labels=[0, 1])),
    }
