"""Copies of a picture under several names: found by content, kept on one side of a split, and reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pneumonia.data import CLASSES, Pictures


def copies(pictures: Pictures) -> list[list[int]]:
    """Return the indices of the copies of each picture that occurs more than once."""
    places = defaultdict(list)
    for index, digest in enumerate(pictures.digests):
        places[digest].append(index)
    return [indices for indices in places.values() if len(indices) > 1]


def with_joined_patients(pictures: Pictures) -> Pictures:
    """Merge patients who share a picture, so that a split by patient keeps its copies together."""
    same: dict[str, str] = {}

    def first(patient: str) -> str:
        while patient in same:
            patient = same[patient]
        return patient

    for indices in copies(pictures):
        names = {first(pictures.patients[index]) for index in indices}
        same |= {name: min(names) for name in names - {min(names)}}
    return replace(pictures, patients=[first(patient) for patient in pictures.patients])


def without_copies_of(pool: Pictures, test: Pictures) -> Pictures:
    """Return ``pool`` without the pictures that are also in the test set."""
    known = set(test.digests)
    return pool.take([index for index in range(len(pool)) if not pool.digests or pool.digests[index] not in known])


def notes_of(pictures: Pictures, title: str) -> list[str]:
    """Report the pictures that occur more than once, and those with both labels; the first three are named."""
    found = copies(pictures)
    if not found:
        return [f"no picture occurs twice in {title}"]
    mixed = [indices for indices in found if len({int(pictures.labels[index]) for index in indices}) == len(CLASSES)]
    notes = [f"pictures that occur more than once in {title}: {len(found)} ({_named(pictures, found)})"]
    return notes + ([f"of these, pictures with both labels: {len(mixed)} ({_named(pictures, mixed)})"] if mixed else [])


def _named(pictures: Pictures, groups: Sequence[Sequence[int]]) -> str:
    shown = [" = ".join(Path(pictures.names[index]).name for index in group) for group in groups[:3]]
    return "; ".join(shown) + ("; ..." if len(groups) > 3 else "")
