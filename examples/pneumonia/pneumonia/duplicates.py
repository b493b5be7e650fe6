"""The same picture under several names: found by its content, kept on one side of a split, and reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pneumonia.data import CLASSES, Pictures


def copies(pictures: Pictures) -> list[list[int]]:
    """Return the indices of each picture that is there more than once."""
    places = defaultdict(list)
    for index, digest in enumerate(pictures.digests):
        places[digest].append(index)
    return [indices for indices in places.values() if len(indices) > 1]


def with_joined_patients(pictures: Pictures) -> Pictures:
    """Make one patient of those that share a picture, so that a split by patient keeps its copies together."""
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
    """Leave out what is in the test set as well: a picture that was trained on tests nothing."""
    known = set(test.digests)
    return pool.take([index for index in range(len(pool)) if not pool.digests or pool.digests[index] not in known])


def notes_of(pictures: Pictures, title: str) -> list[str]:
    """Say what is there more than once, and what of it under both labels; the first three are named."""
    found = copies(pictures)
    if not found:
        return [f"no picture is twice in {title}, by its content"]
    odd = [indices for indices in found if len({int(pictures.labels[index]) for index in indices}) == len(CLASSES)]
    notes = [f"{len(found)} pictures are more than once in {title}, by their content: {_named(pictures, found)}"]
    return notes + ([f"{len(odd)} of these under both labels: {_named(pictures, odd)}"] if odd else [])


def _named(pictures: Pictures, groups: Sequence[Sequence[int]]) -> str:
    shown = [" = ".join(Path(pictures.names[index]).name for index in group) for group in groups[:3]]
    return "; ".join(shown) + ("; ..." if len(groups) > 3 else "")
