"""A whole run at once: mean heatmaps, the maps to look at first, and groups of maps that are alike."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camlib.datasets.rows import Row
from camlib.errors import CamlibRuntimeError, CamlibValueError, positive_int
from camlib.imaging.resizing import checked_size, resize

SAMPLE = 2_000
"""The most maps that are clustered; of a larger run, evenly spaced ones."""
GRID = (14, 14)
"""The grid at which maps are compared."""


def shown(row: Row, size: tuple[int, int]) -> Tensor:
    """Return the first heatmap of a row on what the network saw, (h, w)."""
    explanation = row.explanation
    heatmap = explanation.heatmaps(normalize="signed" if explanation.signed else "minmax")[0]
    return resize(heatmap[0] if heatmap.dim() == 3 else heatmap, size)


def mean_heatmap(rows: Iterable[Row], by: str | None, size: tuple[int, int]) -> Tensor | dict[int | str, Tensor]:
    """Return the mean heatmap of rows, or one for each class.

    Args:
        rows: the rows; those that are degenerate do not count.
        by: None, or "class" for the first class that is explained.
        size: (h, w) of the mean.

    Raises:
        CamlibValueError: another ``by``, or no row counts.
    """
    if by not in (None, "class"):
        raise CamlibValueError(f'by must be None or "class", got {by!r}')
    size = checked_size(size)
    sums: dict[int | str, Tensor] = {}
    counts: dict[int | str, int] = {}
    for row in rows:
        if row.degenerate[0]:
            continue
        key: int | str = "" if by is None else row.classes[0] if row.classes else row.frame["target"]
        sums[key] = sums.get(key, torch.zeros(size, dtype=torch.float64)) + shown(row, size).double()
        counts[key] = counts.get(key, 0) + 1
    if not sums:
        raise CamlibValueError("the run has no row with evidence, of which there is a mean")
    means = {key: (sums[key] / counts[key]).float() for key in sorted(sums, key=str)}
    return means[""] if by is None else means


def contrast(row: Row) -> float:
    """Return how far the first map is from a constant: its range relative to its largest magnitude, 0 if degenerate."""
    values = row.map[0] if row.map.dim() == 3 else row.map
    largest = float(values.abs().max())
    return 0.0 if row.degenerate[0] or not largest else float(values.max() - values.min()) / largest


def most_degenerate(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the rows of the lowest :func:`contrast`, from the lowest."""
    return heapq.nsmallest(positive_int("count", count), rows, key=contrast)


def least_certain(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the rows of the lowest confidence, from the lowest; those without one are left out."""
    known = (row for row in rows if not math.isnan(row.confidence))
    return heapq.nsmallest(positive_int("count", count), known, key=lambda row: row.confidence)


@dataclass(frozen=True)
class Cluster:
    """Maps that are alike."""

    rows: Sequence[Row]
    """Its rows, from the one that is closest to the mean."""
    mean: Tensor
    """The mean heatmap, (h, w), on what the network saw."""
    classes: Mapping[int, int]
    """How many of its rows explain each class."""


def clusters(rows: Sequence[Row], count: int) -> list[Cluster]:
    """Group maps that are alike, by spectral clustering of their heatmaps.

    As in spectral relevance analysis (Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what
    machines really learn"): a group in which the network looks at one place, such as a corner with a watermark, is a
    shortcut that it may have learnt.

    Args:
        rows: the rows; of more than 2,000, evenly spaced ones are taken. Degenerate ones are left out.
        count: how many groups.

    Returns:
        The groups, from the largest.

    Raises:
        CamlibRuntimeError: scikit-learn is not installed.
        CamlibValueError: there are fewer rows than groups.
    """
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError as error:
        raise CamlibRuntimeError("clusters need the package scikit-learn: install the extra views") from error
    wanted = positive_int("count", count)
    taken = [row for row in _evenly_spaced(rows, SAMPLE) if not row.degenerate[0]]
    if len(taken) <= wanted:
        raise CamlibValueError(f"{wanted} clusters need more rows with evidence than {len(taken)}; give a lower count")
    heatmaps = torch.stack([shown(row, GRID) for row in taken])
    points = heatmaps.flatten(1).double()
    distances = torch.cdist(points, points)
    scale = distances[~torch.eye(len(points), dtype=torch.bool)].median().clamp(min=1e-12)
    likeness = torch.exp(-0.5 * (distances / scale) ** 2).numpy()
    labels = torch.from_numpy(
        SpectralClustering(wanted, affinity="precomputed", random_state=0, assign_labels="kmeans").fit_predict(likeness)
    )
    found = [_cluster(taken, heatmaps, (labels == label).nonzero().flatten()) for label in labels.unique()]
    return sorted(found, key=lambda one: -len(one.rows))


def _cluster(rows: Sequence[Row], heatmaps: Tensor, members: Tensor) -> Cluster:
    own = heatmaps[members]
    mean = own.mean(0)
    order = members[(own - mean).flatten(1).norm(dim=1).argsort(stable=True)].tolist()
    classes: dict[int, int] = {}
    for place in order:
        for index in rows[place].classes[:1]:
            classes[index] = classes.get(index, 0) + 1
    return Cluster([rows[place] for place in order], mean, dict(sorted(classes.items())))


def _evenly_spaced(rows: Sequence[Row], most: int) -> Iterator[Row]:
    step = max(1, -(-len(rows) // most))
    return (row for place, row in enumerate(rows) if place % step == 0)
