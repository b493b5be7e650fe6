"""The result, methods by metrics with a value for each image: means, intervals, ranks, files and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, number
from camlib.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES, PARTS = 2000, 20
"""Resamples of the images for an interval, and the number of parts in which they are drawn."""
BASELINES = ("random_cam", "center_gaussian", "sobel")
"""Methods in italics: a method that does not beat these is uninformative."""
COLORMAP = "cividis"
"""Perceptually uniform, and readable for colour-blind people."""
CELL = (1.35, 0.34)
"""Width and height of a cell, in inches."""


class TableRow(NamedTuple):
    """A method at a layer: one line of the table.

    Example:
        >>> print(TableRow("grad_cam", "layer4"), TableRow("sobel", ""), sep="; ")
        grad_cam, layer4; sobel
    """

    method: str
    """Its name."""
    layer: str
    """Empty where the method reads none."""

    def __str__(self) -> str:
        return f"{self.method}, {self.layer}" if self.layer else self.method


def row_in(record: Mapping[str, Any]) -> TableRow:
    """Return the row that a JSON record is about."""
    return TableRow(record["method"], record["layer"])


@dataclass(frozen=True)
class Failure:
    """Images that have no value, and why.

    Example:
        >>> print(Failure(TableRow("grad_cam", "layer4"), "average_drop", (2, 3), "the score is 0"))
        images 2 to 3: grad_cam, layer4, average_drop: the score is 0
    """

    row: TableRow
    """The row of the table."""
    metric: str | None
    """The metric that failed; None if the method did."""
    images: tuple[int, ...]
    """Numbers of the images."""
    why: str
    """The error."""

    def __str__(self) -> str:
        first, last = self.images[0], self.images[-1]
        listed = f"{first} to {last}" if last - first == len(self.images) - 1 else ", ".join(map(str, self.images))
        images = f"images {listed}" if len(self.images) > 1 else f"image {first}"
        return f"{images}: {self.row}{f', {self.metric}' if self.metric else ''}: {self.why}"

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**self.row._asdict(), "metric": self.metric, "images": list(self.images), "why": self.why}

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Failure:
        """Return the failure that :meth:`as_record` describes."""
        return Failure(row_in(record), record["metric"], tuple(record["images"]), record["why"])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Methods by metrics, with a value for each image.

    Intervals are percentiles of the mean over resamples of the images: they show how much another sample of images
    would change, and nothing about other models or data.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(4, 3, 64, 64)
        >>> evaluation = camlib.evaluate(model, images, ["grad_cam"], metrics=["average_drop", "sparseness"])
        >>> [row.method for row in evaluation.rows], evaluation.metrics
        (['grad_cam', 'random_cam', 'center_gaussian'], ['average_drop', 'sparseness'])
        >>> low, high = evaluation.interval(evaluation.rows[0], "average_drop")
        >>> low <= evaluation.mean(evaluation.rows[0], "average_drop") <= high
        True
    """

    values: Mapping[TableRow, Mapping[str, Tensor]]
    """Values (N,) by row and metric, float64 on the CPU; NaN for images that could not be evaluated."""
    better: Mapping[str, str]
    """Which values of each metric are better, "higher" or "lower"."""
    passes: Mapping[TableRow, float]
    """Forward passes of an image for its explanation alone; passes of a tail do not count."""
    left_out: Mapping[TableRow, str] = field(default_factory=dict)
    """Rows that are not in the table, and why."""
    failures: Sequence[Failure] = ()
    """Values that are NaN because something failed."""
    judged: str = "probability"
    """The score by which metrics that run the network judged the heatmaps, such as "probability" or "logit"."""

    @property
    def rows(self) -> list[TableRow]:
        """The lines, in the order of the methods."""
        return list(self.values)

    @property
    def metrics(self) -> list[str]:
        """The columns."""
        return list(self.better)

    @property
    def images(self) -> int:
        """N."""
        return len(self.values[self.rows[0]][self.metrics[0]])

    def mean(self, row: TableRow, metric: str) -> float:
        """Return the mean over the images that could be evaluated; NaN if there is none."""
        return float(self._cell(row, metric).nanmean())

    def interval(self, row: TableRow, metric: str, confidence: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of the mean, over the same resamples for every cell.

        Raises:
            CamlibTypeError, CamlibValueError: ``confidence`` is not a number between 0 and 1.
        """
        return _interval(self._cell(row, metric), confidence)

    def difference(
        self, row: TableRow, other: TableRow, metric: str, confidence: float = 0.95
    ) -> tuple[float, tuple[float, float]]:
        """Return by how much a row is better than another: the mean over images, and its bootstrap interval.

        Positive is better, for any metric. Differences are taken image by image, so that what makes an image hard for
        both cancels.
        """
        better, worse = self._cell(row, metric), self._cell(other, metric)
        differences = self._sign(metric) * (better - worse)
        return float(differences.nanmean()), _interval(differences, confidence)

    def mean_ranks(self) -> dict[TableRow, float]:
        """Return each row's rank by :meth:`comparable_means`, 1 the best, averaged over the metrics; ties share a rank.

        Metrics measure different things, and a mean of ranks weighs them equally: a summary, not a verdict. Rows
        without a value share the last ranks.
        """
        ranks: dict[TableRow, list[float]] = {row: [] for row in self.rows}
        for metric in self.metrics:
            means = self.comparable_means(metric)
            costs = [math.inf if math.isnan(mean) else -self._sign(metric) * mean for mean in means.values()]
            for row, cost in zip(means, costs, strict=True):
                ranks[row].append(sum(one < cost for one in costs) + (costs.count(cost) + 1) / 2)
        return {row: sum(found) / len(found) for row, found in ranks.items()}

    def comparable_means(self, metric: str) -> dict[TableRow, float]:
        """Return each row's mean over the images that all rows have a value for, so that rows are comparable.

        Rows without any value are ignored, and are NaN.
        """
        values = {row: self._cell(row, metric) for row in self.rows}
        evaluated = [numbers for numbers in values.values() if not numbers.isnan().all()]
        common = (
            torch.stack([~numbers.isnan() for numbers in evaluated]).all(0)
            if evaluated
            else torch.zeros(self.images).bool()
        )
        return {row: float(numbers[common].mean()) for row, numbers in values.items()}

    def ranked(self) -> list[TableRow]:
        """Return the rows, the best mean rank first."""
        ranks = self.mean_ranks()
        return sorted(self.rows, key=lambda row: ranks[row])

    def records(self) -> list[dict[str, Any]]:
        """Return a mapping for each row, the best mean rank first.

        It holds method, layer, passes and mean_rank, and for each METRIC its mean, METRIC_low and METRIC_high, and in
        METRIC_images how many images could be evaluated.
        """
        ranks = self.mean_ranks()
        found = []
        for row in self.ranked():
            record: dict[str, Any] = {**row._asdict(), "passes": self.passes[row], "mean_rank": ranks[row]}
            for metric in self.metrics:
                low, high = self.interval(row, metric)
                record |= {metric: self.mean(row, metric), f"{metric}_low": low, f"{metric}_high": high}
                record[f"{metric}_images"] = int((~self.values[row][metric].isnan()).sum())
            found.append(record)
        return found

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write :meth:`records`, a line for each row; if that fails, an older file stays as it was."""
        records, lines = self.records(), io.StringIO()
        writer = csv.DictWriter(lines, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        with replacing(path) as file:
            file.write(lines.getvalue().encode())

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write everything, with the value of each image; NaN is null. If that fails, an older file stays as it was."""
        content = {
            "images": self.images,
            "judged": self.judged,
            "better": dict(self.better),
            "table": [{key: or_none(value) for key, value in record.items()} for record in self.records()],
            "values": [
                {**row._asdict(), **{metric: list(map(or_none, of.tolist())) for metric, of in found.items()}}
                for row, found in self.values.items()
            ],
            "left_out": [{**row._asdict(), "why": why} for row, why in self.left_out.items()],
            "failures": [failure.as_record() for failure in self.failures],
        }
        with replacing(path) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")

    def plot(self) -> Figure:
        """Draw the table: means and intervals, each column coloured by rank from its worst to its best.

        Returns:
            A matplotlib figure, not shown.
        """
        return plot_evaluation(self)

    def __str__(self) -> str:
        heads = [f"{metric} {'+' if self._sign(metric) > 0 else '-'}" for metric in self.metrics]
        lines = [["method", "passes", "rank", *heads]]
        for record in self.records():
            cells = [
                f"{record[m]:.3f} ({record[f'{m}_low']:.3f} to {record[f'{m}_high']:.3f})"
                + (f" of {record[f'{m}_images']}" if record[f"{m}_images"] < self.images else "")
                for m in self.metrics
            ]
            row = TableRow(record["method"], record["layer"])
            lines.append([str(row), f"{record['passes']:.4g}", f"{record['mean_rank']:.1f}", *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        notes = [f"left out: {row}: {why}" for row, why in self.left_out.items()]
        head = f"{self.images} images; means with 95% intervals over images; + higher, - lower is better"
        return "\n".join([head, *(line.rstrip() for line in table), *notes, *map(str, self.failures)])

    def _cell(self, row: Any, metric: Any) -> Tensor:
        """Return the values of a row and a metric.

        Raises:
            CamlibValueError: there is no such row or metric.
        """
        if not isinstance(row, tuple) or row not in self.rows:
            rows = "; ".join(map(str, self.rows))
            raise CamlibValueError(f"there is no row {row!r}; evaluation.rows has TableRow(method, layer) of: {rows}")
        if not isinstance(metric, str) or metric not in self.metrics:
            raise CamlibValueError(f"there is no metric {metric!r}; the table has {', '.join(self.metrics)}")
        return self.values[row][metric]

    def _sign(self, metric: str) -> int:
        return 1 if self.better[metric] == "higher" else -1


def plot_evaluation(evaluation: Evaluation) -> Figure:
    """Draw a line for each row, the best mean rank first; see :meth:`camlib.evaluation.Evaluation.plot`."""
    from camlib.plotting.figures import Figure

    rows, metrics = evaluation.ranked(), evaluation.metrics
    ranks = evaluation.mean_ranks()
    shares = [[_place(evaluation, row, metric) for metric in metrics] for row in rows]
    widest = 0.085 * max(len(str(row)) for row in rows)
    figure = Figure(
        figsize=(widest + CELL[0] * (len(metrics) + 1) + 1.6, CELL[1] * len(rows) + 1.9), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=COLORMAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    heads = [f"{metric.replace('_', ' ')}\n{evaluation.better[metric]} is better" for metric in metrics]
    axes.set_xticks(range(len(metrics)), heads, fontsize=8, rotation=30, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    labels = [f"{row}   (mean rank {ranks[row]:.1f}; passes {evaluation.passes[row]:.4g})" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontstyle("italic" if row.method in BASELINES else "normal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, row in enumerate(rows):
        for x, metric in enumerate(metrics):
            light = math.isnan(shares[y][x]) or shares[y][x] > 0.55
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": "black" if light else "white",
            }
            axes.text(x, y, _cell(evaluation, row, metric), **style)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=min(1.0, 3 / (CELL[1] * len(rows))), ticks=[0, 1])
    bar.ax.set_yticklabels(["worst of\nthe column", "best of\nthe column"], fontsize=8)
    axes.set_xlabel(
        f"means over {evaluation.images} images, with 95% bootstrap intervals over images; baselines in italics",
        fontsize=8,
    )
    return figure


def _place(evaluation: Evaluation, row: TableRow, metric: str) -> float:
    """Return the place of a cell in its column by rank, from 0, the worst, to 1, the best."""
    sign = 1 if evaluation.better[metric] == "higher" else -1
    means = {other: sign * mean for other, mean in evaluation.comparable_means(metric).items()}
    own, known = means[row], [value for value in means.values() if not math.isnan(value)]
    if math.isnan(own):
        return math.nan
    if len(known) == 1:
        return 1.0
    return (sum(value < own for value in known) + (known.count(own) - 1) / 2) / (len(known) - 1)


def _cell(evaluation: Evaluation, row: TableRow, metric: str) -> Any:
    mean = evaluation.mean(row, metric)
    if math.isnan(mean):
        return "none"
    low, high = evaluation.interval(row, metric)
    return f"{mean:.3g}\n{low:.3g} to {high:.3g}"


def or_none(value: Any) -> Any:
    """Return a value as JSON: None for what is not a finite number.

    Example:
        >>> or_none(float("nan")), or_none(0.5)
        (None, 0.5)
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interval(values: Tensor, confidence: float) -> tuple[float, float]:
    number("confidence", confidence, above=0, below=1)
    generator = torch.Generator().manual_seed(0)  # the same resamples for every cell, in parts to save memory
    shape = (RESAMPLES // PARTS, len(values))
    means = torch.cat([values[torch.randint(len(values), shape, generator=generator)].nanmean(1) for _ in range(PARTS)])
    tail = (1 - confidence) / 2
    low, high = torch.nanquantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
