"""What evaluates a batch: a network, explainers that work on it, and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
from camlib.metrics.readings import called
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.hooks import pre_hooked
from camlib.passes.network import Network
from camlib.passes.numbers import NotFiniteError
from camlib.smoothing import bound_target

Result = Tensor | CamlibError
"""A value for each image, or why there is none."""
NOT_OPTIONS = ("network", "layers", "_found")
"""Attributes of a method that are not its options."""


class Evaluator:
    """Explains batches with every method, and evaluates the heatmaps with every metric.

    Args:
        network: the network of all methods.
        columns: the metrics with their options.
        score: as for :func:`camlib.evaluate`.
        chunk_size: as for :func:`camlib.evaluate`.
        max_passes: as for :func:`camlib.evaluate`.
    """

    def __init__(
        self,
        network: Network,
        columns: Columns,
        *,
        score: Callable[[Any], targets.Target],
        chunk_size: ChunkSize,
        max_passes: int,
    ) -> None:
        if not callable(score):
            raise CamlibTypeError(f"score must make a target of classes, as camlib.targets.Classes, got {score!r}")
        Chunks(chunk_size)
        self._network = network
        self._columns = columns
        self._score = score
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
            "metrics": [[metric.name, as_json(metric.of), as_json(set_)] for metric, set_ in self._columns.items()],
            "score": as_json(self._score),
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
        """
        for explainer in explainers:
            try:
                self._passes[explainer] = self._counted(explainer, batch)
            except _TooManyPassesError:
                self._left_out[row_of(explainer)] = f"more than {self._max_passes} forward passes an image"
            except CamlibError as error:
                self._left_out[row_of(explainer)] = str(error)
        if not self._passes:
            why = "; ".join(f"{row}: {reason}" for row, reason in self._left_out.items())
            raise CamlibRuntimeError(f"no method could explain the first image: {why}")

    def _counted(self, explainer: Method, batch: Batch) -> float:
        """Return the passes that explaining one image takes."""
        for one in batch.each:
            try:
                return self._counted_for(explainer, one)
            except NotFiniteError as error:
                why = error
        raise why

    def _counted_for(self, explainer: Method, first: Batch) -> float:
        declared = explainer.forward_passes
        if declared is not None and declared > self._max_passes:
            raise _TooManyPassesError
        with _counting(self._network.module, self._max_passes) as counted:
            called(explainer, first.inputs, first.target)
        return counted[0] if declared is None else declared

    def evaluated(self, batch: Batch) -> dict[str, Any]:
        """Return the values of a batch as JSON.

        If a number is not finite for one image, because it holds NaN for example, the images are evaluated one by one,
        so that the others have their values.

        Raises:
            CamlibRuntimeError: a metric fails for every method on the first batch, which is the caller's mistake.
        """
        try:
            return self._together(batch)
        except NotFiniteError:
            return _joined([self._together(one) for one in batch.each])

    def _together(self, batch: Batch) -> dict[str, Any]:
        """Return :meth:`evaluated` of images that are evaluated together.

        Raises:
            NotFiniteError: a number is not finite for one of several images.
        """
        failures: list[Failure] = []
        results = dict(self._results(batch, failures))
        for metric in self._columns if batch.start == 0 and results else ():
            errors = [found[metric.name] for found in results.values()]
            if all(isinstance(error, CamlibError) for error in errors):
                raise CamlibRuntimeError(f"{metric.name} failed for every method; {errors[0]}")
        rows = []
        for explainer, passes in self._passes.items():
            row, found = row_of(explainer), results.get(explainer, {})
            failures += _failures(row, found, batch.images)
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

    def _results(self, batch: Batch, failures: list[Failure]) -> Iterator[tuple[Method, dict[str, Result]]]:
        """Yield the results of each method that explains the batch, by metric; methods that fail are appended."""
        explanations, target = self._explained(batch, failures)
        if not explanations:
            return
        try:
            scorer = self._scorer(batch, explanations, target)
        except NotFiniteError as error:
            failures += [_failure(row_of(one), None, batch, error) for one in explanations]
            return
        for explainer in self._passes:
            if explainer in explanations:
                explained = Explained(explainer, scorer.inputs, target)
                explained.explanation = explanations[explainer]
                case = HeatmapCase(scorer, explained, batch.masks)
                results = {metric.name: _result(metric, case, set_) for metric, set_ in self._columns.items()}
                for result in results.values():
                    _check_alone(batch, result)
                yield explainer, results

    def _scorer(self, batch: Batch, explanations: Mapping[Method, Explanation], target: Any) -> Scorer:
        """Return the scorer of a batch, of the classes that were explained."""
        first = next(explanations[one] for one in self._passes if one in explanations)
        return Scorer(
            self._network.module,
            batch.inputs,
            first.target if isinstance(first.target, Tensor) else target,
            score=self._score,
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
                    failures.append(_failure(row_of(explainer), None, batch, error))
        return found, target


def _check_alone(batch: Batch, result: Result) -> None:
    """Raise an error that may be due to another image of the batch."""
    if isinstance(result, NotFiniteError) and len(batch.images) > 1:
        raise result


def _failure(row: TableRow, metric: str | None, batch: Batch, error: CamlibError) -> Failure:
    """Return the failure of all images of a batch.

    Raises:
        NotFiniteError: it may be due to one of several images.
    """
    _check_alone(batch, error)
    return Failure(row, metric, tuple(batch.images), str(error))


def _joined(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the values of several batches as those of one; rows and metrics are the same in all."""
    first = lines[0]
    rows = []
    for place, row in enumerate(first["rows"]):
        values = {
            name: [one for line in lines for one in line["rows"][place]["values"][name]] for name in row["values"]
        }
        rows.append({**row, "values": values})
    failures = [failure for line in lines for failure in line["failures"]]
    return {**lines[-1], "images": sum(line["images"] for line in lines), "rows": rows, "failures": failures}


def _result(metric: AnyMetric, case: HeatmapCase, options: Mapping[str, Any]) -> Result:
    try:
        return (metric.evaluate(case, **options) if options else case.once(metric.evaluate)).double()
    except CamlibError as error:
        return error


def _failures(row: TableRow, results: Mapping[str, Result], images: range) -> Iterator[Failure]:
    """Yield what went wrong with the metrics of a row."""
    for name, result in results.items():
        if isinstance(result, CamlibError):
            yield Failure(row, name, tuple(images), str(result))
        elif infinite := result.isinf().nonzero().flatten().tolist():
            yield Failure(row, name, tuple(images[image] for image in infinite), "the value is infinite")


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
        counted[0] += next((len(tensor) for tensor in Inputs((args, kwargs)).tensors if tensor.dim()), 0)
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
