"""Rules that choose the decision threshold on validation images. The test set does not influence it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from pneumonia import InputError

Array = NDArray[Any]


class Rule(Protocol):
    """Chooses the threshold at or above which an image is called PNEUMONIA."""

    def choose(self, labels: Array, probabilities: Array) -> float:
        """Return the threshold for labels (N,), 0 or 1, and probabilities of PNEUMONIA (N,)."""


@dataclass(frozen=True)
class Youden:
    """The best sensitivity + specificity; of all thresholds that are as good, the middle one."""

    def __str__(self) -> str:
        return "middle of the thresholds within one standard error of the best Youden index on validation images"

    def choose(self, labels: Array, probabilities: Array) -> float:
        """Return the middle of the thresholds whose Youden index is within one standard error of the best.

        If the classes are almost separable, the best threshold depends on a handful of images, and validation cannot
        distinguish it from its neighbours.
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


@dataclass(frozen=True)
class Sensitivity:
    """The highest threshold with at least this sensitivity."""

    share: float

    def __str__(self) -> str:
        return f"highest threshold with a sensitivity of at least {self.share:g} on validation images"

    def choose(self, labels: Array, probabilities: Array) -> float:
        """Return the threshold, halfway to the next lower probability, so that rounding does not lose an image."""
        sick = np.sort(probabilities[labels == 1])[::-1]
        needed = max(1, int(np.ceil(self.share * len(sick) - 1e-9)))
        lowest = sick[needed - 1]
        return float((lowest + probabilities[probabilities < lowest].max(initial=0)) / 2)


@dataclass(frozen=True)
class Fixed:
    """A number given in advance."""

    threshold: float

    def __str__(self) -> str:
        return f"{self.threshold:g}, fixed in advance"

    def choose(self, labels: Array, probabilities: Array) -> float:
        """Return the number."""
        return self.threshold


def rule_of(text: str) -> Rule:
    """Read a rule: ``youden``, ``sensitivity:0.95`` or a number such as ``0.5``.

    Raises:
        InputError: it is none of these, or the number is not between 0 and 1.

    Example:
        >>> rule_of("sensitivity:0.95")
        Sensitivity(share=0.95)
    """
    if text == "youden":
        return Youden()
    found = re.fullmatch(r"(sensitivity:)?(\d*\.?\d+)", text)
    if not found or not 0 < float(found.group(2)) < 1:
        raise InputError(
            f"--threshold must be youden, sensitivity:S or a number, with S and the number between 0 and 1; got {text}"
        )
    number = float(found.group(2))
    return Sensitivity(number) if found.group(1) else Fixed(number)
