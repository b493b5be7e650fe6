"""Which test images are shown: by a rule that is fixed before anyone has looked, never by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GROUPS = {
    "true_positive": "called PNEUMONIA, rightly: the highest probabilities",
    "true_negative": "called NORMAL, rightly: the lowest probabilities",
    "false_positive": "called PNEUMONIA, wrongly: the highest probabilities",
    "false_negative": "called NORMAL, wrongly: the lowest probabilities",
    "undecided": "of the others, those whose probability is nearest to the threshold",
    "random": "drawn at random from the others, with the run's seed",
}
"""The groups in the order in which they choose, and the rule of each."""


def choose_examples(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, per_group: int = 4, seed: int = 0
) -> dict[str, list[int]]:
    """Choose examples of every kind, by the rules of :data:`GROUPS`.

    Args:
        labels: (N,), 0 NORMAL or 1 PNEUMONIA.
        probabilities: (N,), of PNEUMONIA, which is called at or above the threshold.
        threshold: of the decision.
        per_group: the most of each group; fewer where there are fewer.
        seed: of the group that is drawn.

    Returns:
        Indices by group, the most confident (or the nearest) first, those drawn in ascending order. No index comes
        twice; of equal probabilities the lower index comes first.

    Example:
        >>> chosen = choose_examples([0, 0, 1, 1, 1], [0.1, 0.7, 0.9, 0.9, 0.2], threshold=0.5, per_group=1)
        >>> [chosen[group] for group in ("true_positive", "true_negative", "false_positive", "false_negative")]
        [[2], [0], [1], [4]]
        >>> chosen["undecided"], chosen["random"]
        ([3], [])
    """
    sick, likely = np.asarray(labels) == 1, np.asarray(probabilities, dtype=float)
    called, unlikely = likely >= threshold, -likely
    kinds = {
        "true_positive": (sick & called, unlikely),
        "true_negative": (~sick & ~called, likely),
        "false_positive": (~sick & called, unlikely),
        "false_negative": (sick & ~called, likely),
    }
    chosen = {group: _first(among, key, per_group) for group, (among, key) in kinds.items()}
    chosen["undecided"] = _first(_others(sick, chosen), abs(likely - threshold), per_group)
    chosen["random"] = sorted(drawn(_others(sick, chosen), per_group, seed))
    return {group: chosen[group] for group in GROUPS}


def drawn(among: NDArray[Any], count: int, seed: int) -> list[int]:
    """Draw as many of the images ``among`` (N,) is true of as there are, ``count`` at most; in no order.

    Example:
        >>> sorted(drawn(np.array([True, False, True]), 5, seed=0))
        [0, 2]
    """
    there = np.flatnonzero(among)
    return [int(index) for index in np.random.default_rng(seed).permutation(there)[:count]]


def _first(among: NDArray[Any], key: NDArray[Any], count: int) -> list[int]:
    """Those of the least key; of equal keys the lower index."""
    there = np.flatnonzero(among)
    return [int(index) for index in there[np.argsort(key[there], kind="stable")][:count]]


def _others(images: NDArray[Any], chosen: dict[str, list[int]]) -> NDArray[Any]:
    """True of the images that are in no group yet."""
    return ~np.isin(np.arange(len(images)), [index for group in chosen.values() for index in group])
