"""Which test images the report shows: chosen by fixed rules, never by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GROUPS = {
    "true_positive": "correct PNEUMONIA, most confident",
    "true_negative": "correct NORMAL, most confident",
    "false_positive": "wrong PNEUMONIA, most confident",
    "false_negative": "wrong NORMAL, most confident",
    "undecided": "closest to the threshold of the remaining images",
    "random": "drawn at random from the remaining images, with the seed of the run",
}
"""The groups in the order in which they choose, and the rule of each."""


def choose_examples(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, per_group: int = 4, seed: int = 0
) -> dict[str, list[int]]:
    """Choose examples of every kind by the rules of :data:`GROUPS`.

    Args:
        labels: (N,), 0 NORMAL or 1 PNEUMONIA.
        probabilities: (N,), of PNEUMONIA.
        threshold: probability at or above which an image is called PNEUMONIA.
        per_group: largest number of images in each group.
        seed: of the random group.

    Returns:
        Indices by group, the most confident or the closest first, the random ones in ascending order. No index is in
        two groups. If probabilities are equal, the lower index comes first.

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
    """Draw up to ``count`` of the images for which ``among`` (N,) is true, in random order.

    Example:
        >>> sorted(drawn(np.array([True, False, True]), 5, seed=0))
        [0, 2]
    """
    there = np.flatnonzero(among)
    return [int(index) for index in np.random.default_rng(seed).permutation(there)[:count]]


def _first(among: NDArray[Any], key: NDArray[Any], count: int) -> list[int]:
    """The images with the smallest keys; if keys are equal, the lower index comes first."""
    there = np.flatnonzero(among)
    return [int(index) for index in there[np.argsort(key[there], kind="stable")][:count]]


def _others(images: NDArray[Any], chosen: dict[str, list[int]]) -> NDArray[Any]:
    """True for the images that are in no group yet."""
    return ~np.isin(np.arange(len(images)), [index for group in chosen.values() for index in group])
