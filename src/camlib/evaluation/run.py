"""Explain with every method, evaluate with every metric, batch by batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.comparison import located
from camlib.errors import CamlibValueError, boolean, positive_int
from camlib.evaluation.batches import Batch, Batches
from camlib.evaluation.evaluator import Evaluator
from camlib.evaluation.plan import AnyMetric, columns_of, explainers_of, row_of
from camlib.evaluation.run_log import RunLog, as_json, digest_of
from camlib.evaluation.table import Evaluation, Failure, TableRow, row_in
from camlib.methods import Method
from camlib.passes.calling import UnbatchedError, unbatched
from camlib.passes.chunks import ChunkSize
from camlib.passes.network import Forward, Network, Reshape


def evaluate(
    model: nn.Module,
    loader: Any,
    methods: str | Sequence[str | type[Method] | Method] = "all",
    layers: Sequence[str] | None = None,
    metrics: Sequence[str | AnyMetric] | Mapping[Any, Mapping[str, Any]] | None = None,
    masks: Any = None,
    *,
    target: Any = None,
    score: Callable[[Any], targets.Target] = targets.Confidence,
    link: targets.Link = None,
    max_images: int | None = None,
    max_passes: int = 600,
    forward: Forward | None = None,
    reshape: Reshape | None = None,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
    path: str | PathLike[str] | None = None,
) -> Evaluation:
    """Evaluate methods, at one or several layers, by metrics, to see which to trust for this model and these images.

    The baselines ``random_cam`` and ``center_gaussian`` are always among the methods. All methods that need one forward
    pass share it, and its gradient. All metrics of a batch share the scores of the images as they are, and those of a
    method its explanation and the scores of its masked images. All methods explain the same class of an image, and the
    metrics of all read the same score.

    An image takes one forward pass for all methods that share it, those of each other method, and for each method those
    of each metric. Before that, each method is tried on the first image.

    Args:
        model: as for :class:`camlib.methods.Method`.
        loader: batches: inputs, or tuples that begin with them, as a DataLoader gives; or a tensor of images.
        methods: "all" of :data:`camlib.METHODS`, or names, classes and explainers of this model. Those that the model
            does not support (LeGrad without attention, say) are left out, and reported.
        layers: names of layers, at each of which the methods that read one layer are evaluated; None for the layer
            that :func:`camlib.find_layer` finds.
        metrics: names in :data:`camlib.metrics.METRICS` or metrics, or a mapping from these to options, such as
            ``{"insertion": {"steps": 10}}``. By default average drop and increase, insertion, deletion, ROAD combined,
            and with masks the pointing game and its energy.
        masks: (M, H, W) of bools, where the object is in each image, in their order; metrics that need a mask are NaN
            for an image whose mask is empty.
        target: None for the predicted class of each image; a class, or one for each image in their order; or, the same
            for every batch, a callable or a :class:`camlib.targets.Target`.
        score: the quantity that the metrics read, as for :class:`camlib.metrics.Scorer`.
        link: the function from logits to probabilities, as for :class:`camlib.metrics.Scorer`.
        max_images: the most images to evaluate; by default all.
        max_passes: the most forward passes for the explanation of an image; a method that needs more is left out.
        forward: as for :class:`camlib.methods.Method`.
        reshape: as for :class:`camlib.methods.Method`.
        chunk_size: :attr:`camlib.passes.chunks.Chunks.size`, for the metrics' passes.
        progress: whether to show a progress bar over the images.
        path: a file to which the values of each batch are appended. Batches that it already holds are not evaluated
            again, so that a stopped evaluation resumes. It refuses to resume what is not the same: methods, metrics,
            options, target, images, masks, the model's tensors and attributes, autocast, or the versions of camlib,
            torch and Python; a file that it did not write, or that was changed; and a file that another evaluation is
            writing. Functions among the options must be named functions, defined
            with def at the top of a module, without a decorator: no lambda, no ``functools.partial``. They are
            recognised by their code, the constants of their module that they read, and the functions of their module
            that they call; classes, and functions of other modules, only by their names.

    Raises:
        CamlibValueError: an unknown method, metric or layer, no images, masks of another number or size, or a ``path``
            of another evaluation or of one that cannot be recognised.
        CamlibTypeError: something that is not a method.
        CamlibRuntimeError: no method worked, or a metric failed for all of them.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> evaluation = camlib.evaluate(model, images, ["grad_cam"], ["layer3", "layer4"], {"deletion": {"steps": 4}})
        >>> [str(row) for row in evaluation.rows]
        ['grad_cam, layer3', 'grad_cam, layer4', 'random_cam, layer3', 'random_cam, layer4', 'center_gaussian']
    """
    from tqdm import tqdm

    columns = columns_of(metrics, with_masks=masks is not None)
    network = Network.of(model, forward, reshape)
    batches = Batches(loader, target, masks, max_images, network)
    evaluator = Evaluator(
        network,
        columns,
        score=score,
        link=link,
        chunk_size=chunk_size,
        max_passes=positive_int("max_passes", max_passes),
    )
    explainers = explainers_of(methods, network, layers)
    lines, hidden = [], not boolean("progress", progress)
    with tqdm(total=batches.total, desc="evaluate", unit=" images", disable=hidden) as bar:
        for line in _lines(evaluator, explainers, batches, path):
            lines.append(line)
            bar.update(line["images"])
    judged = target if callable(target) or isinstance(target, targets.Target) else score
    return _evaluation(lines, {metric.name: metric.better for metric in columns}, getattr(judged, "quantity", "score"))


def _lines(
    evaluator: Evaluator, explainers: Sequence[Method], batches: Batches, path: str | PathLike[str] | None
) -> Iterator[dict[str, Any]]:
    """Yield the values of each batch as JSON, from the file at the path if it holds them."""
    log: RunLog | None = None
    remaining = iter(batches)
    begin = []
    for batch in remaining:
        begin.append(batch)
        if batch.is_usable:
            break
    first = begin[-1].first
    with _as_given(batches.given(begin[-1])), contextlib.ExitStack() as stack:
        for number, batch in enumerate(itertools.chain(begin, remaining)):
            if number == 0:
                explainers = _located(explainers, first)
                if path is not None:
                    log = RunLog(path, evaluator.description(explainers) | {"target": as_json(batches.target)})
                    stack.callback(log.close)
            digest = digest_of([*batch.inputs.tensors, batch.masks]) if log else ""
            line = log.batch(number, digest) if log else None
            if number == 0 and line is None:
                evaluator.choose(explainers, first)
            elif number == 0 and line is not None:
                evaluator.resume(explainers, line)
            if line is None:
                line = evaluator.evaluated(batch) | {"digest": digest}
                if log:
                    log.append(line)
            yield line


@contextlib.contextmanager
def _as_given(images: Any) -> Iterator[None]:
    """Name the shape of the images as they were given, not that of the first of them, where they lack an axis."""
    try:
        yield
    except UnbatchedError as error:
        raise (unbatched(images, error.channels) if isinstance(images, Tensor) else error) from None


def _located(explainers: Sequence[Method], first: Batch) -> list[Method]:
    """Return the explainers with the layers that they read.

    Raises:
        CamlibValueError: two of them are the same method at the same layer.
    """
    found = located(explainers, first.inputs)
    rows = list(map(row_of, found))
    twice = next((row for row in rows if rows.count(row) > 1), None)
    if twice:
        raise CamlibValueError(f"{twice} is among the methods twice; each is evaluated once")
    return found


def _evaluation(lines: Sequence[Mapping[str, Any]], better: Mapping[str, str], judged: str) -> Evaluation:
    """Return the table of all batches."""
    values: dict[TableRow, dict[str, list[float]]] = {}
    passes: dict[TableRow, float] = {}
    for line in lines:
        for entry in line["rows"]:
            row = row_in(entry)
            passes[row] = entry["passes"]
            of_row = values.setdefault(row, {name: [] for name in better})
            for name, numbers in entry["values"].items():
                of_row[name] += [float("nan") if number is None else number for number in numbers]
    return Evaluation(
        values={
            row: {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in found.items()}
            for row, found in values.items()
        },
        better=dict(better),
        passes=passes,
        left_out={row_in(entry): entry["why"] for entry in lines[0]["left_out"]},
        failures=[Failure.of_record(entry) for line in lines for entry in line["failures"]],
        judged=judged,
    )
