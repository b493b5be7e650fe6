"""What evaluates a batch: a network, explainers that work on it, and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError
from camlib.evaluation.batches import Batch
from camlib.evaluation.plan import AnyMetric, Columns, row_of
from camlib.evaluation.run_log import as_json, attributes_of, digest_of, environment
from camlib.evaluation.table import Failure, TableRow, or_none, row_in
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.methods import Method
from camlib.methods.base import explain_together, shares_pass
from camlib.metrics import Explained, HeatmapCase, Scorer
from camlib.metrics.readings import LocatedHeatmaps, called
from camlib.passes.calling import UnbatchedError
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.hooks import pre_hooked
from camlib.passes.network import Network
from camlib.passes.tail import is_fake
from camlib.smoothing import bound_target

Result = Tensor | CamlibError
"""A value for each image, or why there is none."""
NO_VALUE = "the score of the image, or of a changed copy of it, is 0 or not finite"
"""Why a metric has no value for an image."""
NOT_OPTIONS = ("network", "layers", "_found", "_direct")
"""Attributes of a method that are not its options."""


class Evaluator:
    """Explains batches with every method, and evaluates the heatmaps with every metric.

    Args:
        network: the network of all methods.
        columns: the metrics with their options.
        score: as for :func:`camlib.evaluate`.
        link: as for :func:`camlib.evaluate`.
        chunk_size: as for :func:`camlib.evaluate`.
        max_passes: as for :func:`camlib.evaluate`.
    """

    def __init__(
        self,
        network: Network,
        columns: Columns,
        *,
        score: Callable[[Any], targets.Target],
        link: targets.Link = None,
        chunk_size: ChunkSize,
        max_passes: int,
    ) -> None:
        if not callable(score):
            raise CamlibTypeError(f"score must make a target of classes, as camlib.targets.Classes, got {score!r}")
        Chunks(chunk_size)
        self._network = network
        self._columns = columns
        self._score = score
        self._link = link
        self._chunk_size = chunk_size
        self._max_passes = max_passes
        self._attributes = attributes_of(network.module)
        self._passes: dict[Method, float] = {}
        """Forward passes of an image for each method that works."""
        self._left_out: dict[TableRow, str] = {}
        """The reasons why the other rows are left out."""

    def description(self, explainers: Sequence[Method]) -> dict[str, Any]:
        """Return as JSON what must be the same to resume, except for the target."""
        return {
            "methods": [[*row_of(one), as_json(type(one)), _options(one)] for one in explainers],
            "metrics": [
                [metric.name, [as_json(part) for part in metric.parts], as_json(set_)]
                for metric, set_ in self._columns.items()
            ],
            "score": as_json(self._score),
            "link": self._link,
            "max_passes": self._max_passes,
            "model": digest_of(self._network.module),
            "attributes": self._attributes,
            **environment(),
        }

    def resume(self, explainers: Sequence[Method], line: Mapping[str, Any]) -> None:
        """Keep the explainers that worked when a line was recorded."""
        self._left_out = {row_in(entry): entry["why"] for entry in line["left_out"]}
        passes = {row_in(entry): entry["passes"] for entry in line["rows"]}
        self._passes = {one: passes[row] for one in explainers if (row := row_of(one)) in passes}

    def choose(self, explainers: Sequence[Method], batch: Batch) -> None:
        """Keep the explainers that explain the first image, whose numbers are finite, in no more passes than allowed.

        Raises:
            CamlibRuntimeError: none of them does.
            CamlibValueError: the images lack an axis.
        """
        for explainer in explainers:
            try:
                self._passes[explainer] = self._counted(explainer, batch)
            except UnbatchedError:
                raise
            except _TooManyPassesError:
                self._left_out[row_of(explainer)] = f"more than {self._max_passes} forward passes an image"
            except CamlibError as error:
                self._left_out[row_of(explainer)] = str(error)
        if not self._passes:
            why = "; ".join(f"{row}: {reason}" for row, reason in self._left_out.items())
            raise CamlibRuntimeError(f"no method could explain the first image: {why}")

    def _counted(self, explainer: Method, first: Batch) -> float:
        """Return the passes that explaining one image takes."""
        declared = explainer.forward_passes
        if declared is not None and declared > self._max_passes:
            raise _TooManyPassesError
        with _counting(self._network.module, self._max_passes) as counted:
            called(explainer, first.inputs, first.target)
        as_declared = declared is not None and counted[0] <= declared + 1  # one may be to find the layer
        return declared if declared is not None and as_declared else counted[0]

    def evaluated(self, batch: Batch) -> dict[str, Any]:
        """Return the values of a batch as JSON.

        If a number is not finite for one image, because it holds NaN for example, the images are evaluated one by one,
        so that the others have their values.

        Raises:
            CamlibRuntimeError: a metric fails for every method on the first batch, which is the caller's mistake.
        """
        results, failures = self._results_of_each(batch)
        for metric in self._columns if batch.start == 0 and results else ():
            errors = [found[metric.name] for found in results.values()]
            if all(map(_is_of_caller, errors)):
                raise CamlibRuntimeError(f"{metric.name} failed for every method; {errors[0]}")
        rows = []
        masked = {metric.name for metric in self._columns if metric.reads is LocatedHeatmaps}
        for explainer, passes in self._passes.items():
            row, found = row_of(explainer), results.get(explainer, {})
            known = {(one.metric, image) for one in failures if one.row == row for image in one.images}
            failures += _failures(row, found, batch.images, known, masked)
            numbers = {metric.name: _or_none(found.get(metric.name), batch.images) for metric in self._columns}
            rows.append({**row._asdict(), "passes": passes, "values": numbers})
        return {
            "images": len(batch.images),
            "rows": rows,
            "left_out": [{**row._asdict(), "why": why} for row, why in self._left_out.items()],
            "failures": [failure.as_record() for failure in failures],
            "changed": self._changed(),
        }

    def _changed(self) -> list[str]:
        """Return the names of the model's attributes that its own forward passes change, such as a counter."""
        now = attributes_of(self._network.module)
        return sorted(name for name in now | self._attributes if now.get(name) != self._attributes.get(name))

    def _results_of_each(self, batch: Batch) -> tuple[dict[Method, dict[str, Result]], list[Failure]]:
        """Return the results of each method by metric, and the methods that failed.

        If something fails for a batch, its images are evaluated one by one, so that an image costs only itself.
        """
        failures: list[Failure] = []
        results: dict[Method, dict[str, Result]] = {}
        unscored: CamlibError | None = None
        try:
            results = dict(self._results(batch, failures))
        except CamlibError as error:
            unscored = error
        failed = any(isinstance(one, CamlibError) for found in results.values() for one in found.values())
        if not (failures or failed or unscored):
            return results, failures
        parts: list[dict[Method, dict[str, Result]]] = []
        alone: list[Failure] = []
        for one in batch.singles:
            try:
                parts.append(dict(self._results(one, alone)))
            except CamlibError as error:
                parts.append({})
                failing = {failure.row for failure in alone if failure.images == tuple(one.images)}
                rows = [row for row in map(row_of, self._passes) if row not in failing]
                alone += [Failure(row, None, tuple(one.images), str(error)) for row in rows]
        if unscored is not None and batch.start == 0 and not any(parts) and _is_of_caller(unscored):
            raise unscored
        joined = {}
        for method in {method: None for part in parts for method in part}:
            of_images = [part.get(method, {}) for part in parts]
            joined[method] = {
                name: self._joined(row_of(method), name, [one.get(name) for one in of_images], batch.images, alone)
                for name in (metric.name for metric in self._columns)
            }
            for name, whole in results.get(method, {}).items():
                if isinstance(whole, CamlibError) and isinstance(joined[method][name], CamlibError):
                    joined[method][name] = whole  # which names the images
        return joined, _grouped(alone)

    @staticmethod
    def _joined(
        row: TableRow, metric: str, results: Sequence[Result | None], images: range, failures: list[Failure]
    ) -> Result:
        """Join the results of single images; an error if all have one, otherwise errors become NaN and failures.

        None stands for an image that the method did not explain.
        """
        errors = {image: one for image, one in zip(images, results, strict=True) if isinstance(one, CamlibError)}
        if len(errors) == len(results):
            return next(iter(errors.values()))
        failures += [Failure(row, metric, (image,), str(error)) for image, error in errors.items()]
        missing = torch.full((1,), torch.nan, dtype=torch.float64)
        return torch.cat([one.cpu() if isinstance(one, Tensor) else missing for one in results])

    def _results(self, batch: Batch, failures: list[Failure]) -> Iterator[tuple[Method, dict[str, Result]]]:
        """Yield the results of each method that explains the batch, by metric; methods that fail are appended.

        Raises:
            CamlibError: the images cannot be scored.
        """
        explanations, target = self._explained(batch, failures)
        if not explanations:
            return
        scorer = self._scorer(batch, explanations, target)
        for explainer in self._passes:
            if explainer in explanations:
                explained = Explained(explainer, scorer.inputs, target)
                explained.explanation = explanations[explainer]
                case = HeatmapCase(scorer, explained, batch.masks, batch.start)
                yield explainer, {metric.name: _result(metric, case, set_) for metric, set_ in self._columns.items()}

    def _scorer(self, batch: Batch, explanations: Mapping[Method, Explanation], target: Any) -> Scorer:
        """Return the scorer of a batch, of the classes that were explained."""
        first = next(explanations[one] for one in self._passes if one in explanations)
        return Scorer(
            self._network.module,
            batch.inputs,
            first.target if isinstance(first.target, Tensor) else target,
            score=self._score,
            link=self._link,
            forward=self._network.forward,
            chunk_size=self._chunk_size,
            outputs=first.outputs if isinstance(first.outputs, Tensor) else None,
        )

    def _explained(self, batch: Batch, failures: list[Failure]) -> tuple[dict[Method, Explanation], Any]:
        """Return the explanations, from one pass where possible, and the target that they share."""
        network = next(iter(self._passes)).network
        sharing = [
            one
            for one in self._passes
            if shares_pass(one) and one.forward_passes == 1 and one.network.is_called_as(network)
        ]
        inputs, target = batch.inputs, batch.target
        found: dict[Method, Explanation] = {}
        if sharing:
            with contextlib.suppress(CamlibError):  # failures are reported when methods run one by one below
                found = dict(zip(sharing, explain_together(sharing, inputs, target), strict=True))
                target = bound_target(found[sharing[0]], target)
        for explainer in self._passes:
            if explainer not in found:
                try:
                    found[explainer] = called(explainer, inputs, target)
                    target = bound_target(found[explainer], target)
                except CamlibError as error:
                    failures.append(Failure(row_of(explainer), None, tuple(batch.images), str(error)))
        return found, target


def _is_of_caller(result: Result) -> bool:
    """Whether a result is an error that the caller made: not one of the model on these images."""
    return isinstance(result, CamlibError) and not isinstance(result, CamlibRuntimeError)


def _result(metric: AnyMetric, case: HeatmapCase, options: Mapping[str, Any]) -> Result:
    try:
        return (metric.evaluate(case, **options) if options else case.once(metric.evaluate)).double()
    except CamlibError as error:
        return error


def _failures(
    row: TableRow, results: Mapping[str, Result], images: range, known: set[tuple[str | None, int]], masked: set[str]
) -> Iterator[Failure]:
    """Yield what went wrong with the metrics of a row.

    Args:
        row: the row.
        results: by metric.
        images: the numbers of the images.
        known: the metrics and images of this row whose failures are listed already; None for all metrics.
        masked: metrics that have no value where a mask is empty, which is no failure.
    """
    for name, result in results.items():
        if isinstance(result, CamlibError):
            yield Failure(row, name, tuple(images), str(result))
            continue
        for which, why in ((result.isinf(), "the value is infinite"), (result.isnan(), NO_VALUE)):
            numbers = tuple(images[place] for place in which.nonzero().flatten().tolist())
            numbers = tuple(one for one in numbers if not known & {(name, one), (None, one)})
            if numbers and not (why == NO_VALUE and name in masked):
                yield Failure(row, name, numbers, why)


def _grouped(failures: Sequence[Failure]) -> list[Failure]:
    """Return failures that differ only in their images as one."""
    images: dict[tuple[TableRow, str | None, str], tuple[int, ...]] = {}
    for one in failures:
        kind = one.row, one.metric, one.why
        images[kind] = (*images.get(kind, ()), *one.images)
    return [Failure(row, metric, found, why) for (row, metric, why), found in images.items()]


def _or_none(result: Result | None, images: range) -> list[float | None]:
    """Return the values of the images as JSON, None where there is none."""
    return list(map(or_none, result.tolist())) if isinstance(result, Tensor) else [None] * len(images)


class _TooManyPassesError(CamlibRuntimeError):
    """A method has taken more forward passes than allowed."""


@contextlib.contextmanager
def _counting(model: nn.Module, limit: int) -> Iterator[list[int]]:
    """Count the images that run through a model in this thread; more than the limit raise _TooManyPassesError."""
    counted = [0]

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next((tensor for tensor in Inputs((args, kwargs)).tensors if tensor.dim()), None)
        counted[0] += 0 if first is None or is_fake(first) else len(first)
        if counted[0] > limit:
            raise _TooManyPassesError

    with pre_hooked([(model, count)]):
        yield counted


def _options(explainer: Method) -> dict[str, Any]:
    own = {key: value for key, value in vars(explainer).items() if key not in NOT_OPTIONS}
    network = explainer.network
    return {
        key: as_json(value) for key, value in (own | {"forward": network.forward, "reshape": network.reshape}).items()
    }
