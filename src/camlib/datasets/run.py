"""What a run has made: its rows, read when they are needed, and the images that failed."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from camlib.datasets.files import places, rows_of_files
from camlib.datasets.manifest import head_of, record_at
from camlib.datasets.page import page
from camlib.datasets.rows import Row
from camlib.datasets.shards import rows_of_shard
from camlib.datasets.views import Cluster, clusters, least_certain, mean_heatmap, most_degenerate
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.files import path_of
from camlib.reporting import Report


def open_run(out: str | PathLike[str]) -> Run:
    """Open a run, finished or not, to read what it has made so far.

    Args:
        out: the folder that :func:`camlib.explain_dataset` wrote.

    Raises:
        CamlibTypeError: ``out`` is not a path.
        CamlibValueError: there is no run, or its manifest was changed.

    Example:
        >>> import camlib, tempfile, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> images = torch.utils.data.StackDataset(torch.rand(3, 3, 64, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = camlib.explain_dataset(cam, images, folder, storage="webdataset", progress=False)
        ...     run = camlib.open_run(folder)
        ...     len(run), run[2].map.shape, run.errors
        (3, torch.Size([2, 2]), [])
    """
    return Run(path_of(out))


class Run(Sequence[Row]):
    """The rows of a run, in the order of its images, and its errors.

    Iteration reads one shard after the other, so that the memory does not grow with the number of images; ``len`` is
    the number of rows. Images that failed have no row, they are :attr:`errors`.

    Args:
        out: its folder.

    Raises:
        CamlibValueError: there is no run, or its manifest was changed.
    """

    def __init__(self, out: Path) -> None:
        head = head_of(out) if out.is_dir() else None
        if head is None:
            raise CamlibValueError(f"{out} holds no run; give the folder that camlib.explain_dataset wrote")
        self.out = out
        """Its folder."""
        self.settings: Mapping[str, Any] = head["settings"]
        """What must be the same to resume it, as JSON."""
        self._places = places(out)
        counts = [record_at(*place)["count"] for place in self._places]
        self._ends = list(itertools.accumulate(counts))

    @property
    def rows(self) -> Iterator[Row]:
        """The rows, as by iteration."""
        return iter(self)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The path of each image that failed, and why."""
        records = (record_at(*place) for place in self._places)
        return [(path, why) for record in records for _, path, why in record["errors"]]

    def mean_heatmap(self, by: str | None = None, size: tuple[int, int] = (56, 56)) -> Any:
        """Return the mean heatmap, on what the network saw; rows without evidence do not count.

        Args:
            by: "class" for one of each class that is explained, in a dict; None for one of all rows.
            size: (h, w).

        Raises:
            CamlibValueError: another ``by``, or no row counts.
        """
        return mean_heatmap(self, by, size)

    def most_degenerate(self, count: int = 16) -> list[Row]:
        """Return the rows whose first maps have the lowest contrast: constant and nowhere positive ones first."""
        return most_degenerate(self, count)

    def least_certain(self, count: int = 16) -> list[Row]:
        """Return the rows of which the model is least certain: whose predicted class has the lowest probability."""
        return least_certain(self, count)

    def clusters(self, count: int = 8) -> list[Cluster]:
        """Return groups of maps that are alike, as :func:`camlib.datasets.views.clusters` finds them."""
        return clusters(self, count)

    def report(self, count: int = 4, class_names: Any = None, title: str = "A whole run") -> Report:
        """Return a page of these: mean heatmaps, the rows to look at first, groups, and the images that failed.

        It needs the extras ``report`` and ``views``; the pictures are read from their paths.

        Args:
            count: how many rows of each kind, and how many groups.
            class_names: names of the classes.
            title: the page's title.

        Raises:
            CamlibValueError: the run has no rows, or none whose picture can be read.
            CamlibRuntimeError: jinja2 or scikit-learn is not installed.
        """
        return page(self, self.errors, count, class_names, title)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Row]:
        for place in self._places:
            yield from self._rows_at(place)

    def __getitem__(self, index: Any) -> Any:
        """Return a row by its place among the rows; a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not isinstance(index, int):
            raise CamlibTypeError(f"index must be an int or a slice, got {type(index).__name__}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        part = bisect.bisect_right(self._ends, index)
        before = self._ends[part - 1] if part else 0
        return next(itertools.islice(self._rows_at(self._places[part]), index - before, None))

    def _rows_at(self, place: tuple[Path, int]) -> Iterator[Row]:
        record = record_at(*place)
        return rows_of_shard(record, self.out) if "shard" in record else rows_of_files(record, self.out)

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}: {len(self)} rows, {len(self.errors)} errors)"
