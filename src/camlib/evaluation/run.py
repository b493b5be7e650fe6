"""Explain with every method, judge by every metric, batch by batch."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.comparison import bound_to, located
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibValueError, positive_int
from camlib.evaluation.record import Record, described, digest_of
from camlib.evaluation.table import Evaluation, TableRow, or_none
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.inputs.nested import tensors_in
from camlib.methods import Method
from camlib.methods.base import explain_together, shares_pass
from camlib.methods.registry import METHODS
from camlib.metrics import METRICS, Explained, HeatmapCase, Metric, Scorer
from camlib.metrics.readings import LocatedHeatmaps
from camlib.passes.chunks import ChunkSize
from camlib.passes.network import Network, Reshape, unwrap
from camlib.smoothing import bound_target
from camlib.targets.indices import integers

BASELINES = ("random_cam", "center_gaussian")
"""Always among the methods: what does not beat them says nothing."""
FAITHFULNESS = ("average_drop", "average_increase", "insertion", "deletion", "road_combined")
LOCALISATION = ("pointing_game", "energy_pointing_game")
BATCH = 16
"""Images at a time, of a tensor of images."""

Columns = dict[str, tuple[Metric[Any, ...], Mapping[str, Any]]]
"""By name the metrics, with their options."""


def evaluate(
    model: nn.Module,
    loader: Any,
    methods: str | Sequence[str | type[Method] | Method] = "all",
    layers: Sequence[str] | None = None,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    masks: Any = None,
    *,
    target: Any = None,
    score: Callable[[Any], targets.Target] = targets.Confidence,
    max_images: int | None = None,
    max_passes: int = 600,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    reshape: Reshape | None = None,
    chunk_size: ChunkSize = "auto",
    progress: bool = False,
    path: str | PathLike[str] | None = None,
) -> Evaluation:
    """Judge methods, at one or several layers, by metrics: which of them to trust for this model and these images.

    The baselines ``random_cam`` and ``center_gaussian`` are always among the methods. All methods that need no more
    than one forward pass share it, and its gradient; all metrics of a batch share the scores of the images as they are,
    and those of a method the scores of its masked images. Every method explains the same class of an image, and all are
    judged by the same quantity.

    Forward passes of an image: one for all methods that share it, those that each other method takes, and for each
    method those of each metric, see there. Beforehand each method is tried on the first image.

    Args:
        model: as for :class:`camlib.methods.Method`.
        loader: batches: inputs, or tuples that begin with them, as a DataLoader gives; or a tensor of images.
        methods: "all" of :data:`camlib.METHODS`, or names, classes and explainers of this model. What the model does
            not allow (LeGrad without attention, say) is left out, and said so.
        layers: names: a method that reads one layer is judged at each of them. None for the one that is found.
        metrics: names in :data:`camlib.metrics.METRICS`, or a mapping from these to options, such as
            ``{"insertion": {"steps": 10}}``. By default average drop and increase, insertion, deletion, ROAD combined,
            and with masks the pointing game and its energy.
        masks: (M, H, W) of bools, where the truth lies in each image, in their order; an image whose mask is empty is
            not judged by metrics that need one.
        target: None for the predicted class of each image; a class, or one for each image in their order; or, the same
            for every batch, a callable or a :class:`camlib.targets.Target`.
        score: what heatmaps are judged by: as for :class:`camlib.metrics.Scorer`.
        max_images: of the loader; the rest is not looked at.
        max_passes: what a method may take to explain an image; one that needs more is stopped, and left out.
        forward: as for :class:`camlib.methods.Method`.
        reshape: as for :class:`camlib.methods.Method`.
        chunk_size: :attr:`camlib.passes.chunks.Chunks.size`, for the metrics' passes.
        progress: whether to show a progress bar over the images.
        path: a file to which each batch's figures are appended when it is done. Batches that it holds already are not
            done again: an evaluation that was stopped goes on.

    Raises:
        CamlibValueError: an unknown method, metric or layer, no images, masks of another number or size, or a ``path``
            of another evaluation.
        CamlibTypeError: something that is no method.
        CamlibRuntimeError: no method could be run, or a metric failed for all of them.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> evaluation = camlib.evaluate(model, images, ["grad_cam"], ["layer3", "layer4"], {"deletion": {"steps": 4}})
        >>> [str(row) for row in evaluation.rows]
        ['grad_cam, layer3', 'grad_cam, layer4', 'random_cam, layer3', 'random_cam, layer4', 'center_gaussian']
    """
    from tqdm import tqdm

    if max_images is not None:
        positive_int("max_images", max_images)
    bench = _Bench(
        unwrap(model),
        _columns(metrics, masks is not None),
        target=target,
        score=score,
        chunk_size=chunk_size,
        max_passes=positive_int("max_passes", max_passes),
    )
    explainers = _bound(methods, Network(bench.model, forward, reshape), layers)
    record: Record | None = None
    lines: list[dict[str, Any]] = []
    total = max_images if masks is None else min(len(masks), max_images or len(masks))
    with tqdm(total=total, desc="evaluate", unit=" images", disable=not progress) as bar:
        for number, (start, inputs) in enumerate(_batches(loader, max_images)):
            images = Inputs(inputs).count
            masks_here = _masks_of(masks, start, inputs)
            if number == 0:
                explainers = bench.located(explainers, inputs)
                record = None if path is None else Record(path, bench.asked(explainers))
            digest = digest_of([inputs, masks_here]) if record else ""
            line = record.batch(number, digest) if record else None
            if number == 0:
                bench.choose(explainers, inputs, line)
            if line is None:
                line = bench.judged(inputs, start, masks_here) | {"digest": digest}
                if record:
                    record.append(line)
            lines.append(line)
            bar.update(images)
    if not lines:
        raise CamlibValueError("the loader gave no images; give at least one batch")
    seen = sum(line["images"] for line in lines)
    given = {"masks": masks, "target": bench.target if isinstance(bench.target, Tensor) else None}
    for name, of_images in given.items():
        if of_images is not None and max_images is None and len(of_images) != seen:
            raise CamlibValueError(
                f"{name} is of {len(of_images)} images, and the loader gave {seen}; give one for each"
            )
    return _evaluation(lines, {name: metric.better for name, (metric, _) in bench.columns.items()})


NOT_OPTIONS = ("network", "layers", "_found")
"""Attributes of a method that are not options of its own."""


class _TooManyPassesError(CamlibRuntimeError):
    """A method has taken more forward passes than it may."""


class _Bench:
    """What judges a batch: the model, the explainers that work on it, and the metrics."""

    def __init__(
        self,
        model: nn.Module,
        columns: Columns,
        *,
        target: Any,
        score: Callable[[Any], targets.Target],
        chunk_size: ChunkSize,
        max_passes: int,
    ) -> None:
        self.model = model
        self.columns = columns
        self.left_out: dict[str, str] = {}
        """Why methods are not here."""
        self.target = _checked_target(target)
        """What is explained, of all images."""
        self._score = score
        self._chunk_size = chunk_size
        self._max_passes = max_passes
        self._passes: dict[Method, float] = {}  # of the explainers that are here

    def asked(self, explainers: Sequence[Method]) -> dict[str, Any]:
        """What must be the same for a stopped evaluation to go on."""
        return {
            "methods": [
                [
                    *_row(one),
                    {
                        "forward": described(one.network.forward),
                        "reshape": described(one.network.reshape),
                        **{key: described(value) for key, value in vars(one).items() if key not in NOT_OPTIONS},
                    },
                ]
                for one in explainers
            ],
            "metrics": described({name: options for name, (_, options) in self.columns.items()}),
            "target": described(self.target),
            "score": described(self._score),
            "max_passes": self._max_passes,
            "model": digest_of(self.model),
        }

    def located(self, explainers: Sequence[Method], inputs: Any) -> list[Method]:
        """Return the explainers with the layers that they read.

        Raises:
            CamlibValueError: two of them are the same method at the same layer.
        """
        explainers = located(explainers, _first(inputs))
        rows = list(map(_row, explainers))
        twice = next((row for row in rows if rows.count(row) > 1), None)
        if twice:
            raise CamlibValueError(f"{twice} is among the methods twice; each is judged once")
        return explainers

    def choose(self, explainers: Sequence[Method], inputs: Any, before: Mapping[str, Any] | None) -> None:
        """Keep the explainers that explain the first image in no more passes than they may take.

        Args:
            explainers: all of them.
            inputs: the first batch.
            before: what was recorded of that batch, where that tells.
        """
        if before is not None:
            self.left_out = before["left_out"]
            known = {TableRow(row["method"], row["layer"]): row["passes"] for row in before["rows"]}
            self._passes = {one: known[row] for one in explainers if (row := _row(one)) in known}
            return
        one = _first(inputs)
        for explainer in explainers:
            try:
                self._passes[explainer] = self._counted(explainer, one)
            except _TooManyPassesError:
                self.left_out[str(_row(explainer))] = f"more than {self._max_passes} forward passes an image"
            except CamlibError as error:
                self.left_out[str(_row(explainer))] = str(error)
        if not self._passes:
            raise CamlibRuntimeError(f"no method could explain the first image: {self.left_out}")

    def _counted(self, explainer: Method, one: Any) -> float:
        """The passes that explaining one image takes."""
        declared = explainer.forward_passes
        if declared is not None and declared > self._max_passes:
            raise _TooManyPassesError
        with _counting(self.model, self._max_passes) as counted:
            explainer(one, _target_of(self.target, 0, one))
        return counted[0] if declared is None else declared

    def judged(self, inputs: Any, start: int, masks: Tensor | None) -> dict[str, Any]:
        """Return what is to be recorded of a batch whose first image has a number among all."""
        failures: list[str] = []
        explanations, target = self._explained(inputs, failures, start)
        found = []
        scorer: Scorer | None = None
        for explainer, passes in self._passes.items():
            row, explanation = _row(explainer), explanations.get(explainer)
            values: dict[str, list[float | None]] = {name: [None] * Inputs(inputs).count for name in self.columns}
            if explanation is not None:
                scorer = scorer or self._scorer(inputs, explanation, target)
                explained = Explained(explainer, scorer.inputs, target)
                explained.explanation = explanation
                case = HeatmapCase(scorer, explained, masks)
                values = {name: self._values(name, case, f"{row}, {name}", failures, start) for name in self.columns}
            found.append({**row._asdict(), "passes": passes, "values": values})
        if start == 0:
            self._check_metrics(len(explanations), failures)
        images = Inputs(inputs).count
        return {"images": images, "rows": found, "left_out": self.left_out, "failures": failures}

    def _explained(self, inputs: Any, failures: list[str], start: int) -> tuple[dict[Method, Explanation], Any]:
        """Each explainer's explanation, and the target they share; those that need one pass share it."""
        network = next(iter(self._passes)).network
        sharing = [
            one
            for one in self._passes
            if shares_pass(one) and one.forward_passes == 1 and one.network.is_called_as(network)
        ]
        found: dict[Method, Explanation] = {}
        target = _target_of(self.target, start, inputs)
        if sharing:
            with contextlib.suppress(CamlibError):  # who failed is told when they are asked one by one
                found = dict(zip(sharing, explain_together(sharing, inputs, target), strict=True))
                target = bound_target(found[sharing[0]], target)
        for explainer in self._passes:
            if explainer not in found:
                try:
                    found[explainer] = explainer(inputs, target)
                    target = bound_target(found[explainer], target)
                except CamlibError as error:
                    failures.append(f"images from {start}: {_row(explainer)}: {error}")
        return found, target

    def _scorer(self, inputs: Any, explanation: Explanation, target: Any) -> Scorer:
        scored = explanation.target if isinstance(explanation.target, Tensor) else target
        forward = next(iter(self._passes)).network.forward
        outputs = explanation.outputs if isinstance(explanation.outputs, Tensor) else None
        return Scorer(
            self.model,
            inputs,
            scored,
            score=self._score,
            forward=forward,
            chunk_size=self._chunk_size,
            outputs=outputs,
        )

    def _values(self, name: str, case: HeatmapCase, what: str, failures: list[str], start: int) -> list[float | None]:
        metric, options = self.columns[name]
        try:
            numbers = (metric.evaluate(case, **options) if options else case.once(metric.evaluate)).double()
        except CamlibError as error:
            failures.append(f"images from {start}: {what}: {error}")
            return [None] * len(case.scored.values)
        if bool(numbers.isinf().any()):
            failures.append(f"images from {start}: {what}: infinite for {int(numbers.isinf().sum())} images, left out")
        return list(map(or_none, numbers.tolist()))

    def _check_metrics(self, judged: int, failures: Sequence[str]) -> None:
        """A metric that fails at once for every method is the caller's mistake, and better told."""
        for name in self.columns:
            why = [failure for failure in failures if f", {name}: " in failure and "infinite for" not in failure]
            if len(why) >= judged:
                raise CamlibRuntimeError(f"{name} failed for every method; {why[0]}")


def _row(explainer: Method) -> TableRow:
    return TableRow(explainer.name, " + ".join(explainer.layers or ()))


def _metric(given: Any) -> Metric[Any, ...]:
    if isinstance(given, Metric):
        return given
    if given not in METRICS:
        close = difflib.get_close_matches(str(given), METRICS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no metric {given!r}; {hint}METRICS has {', '.join(sorted(METRICS))}")
    return METRICS[given]


def _columns(metrics: Any, with_masks: bool) -> Columns:
    if metrics is None:
        metrics = (*FAITHFULNESS, *(LOCALISATION if with_masks else ()))
    if isinstance(metrics, str):
        raise CamlibTypeError(f"metrics must be a list of names or a mapping, got a single string; give [{metrics!r}]")
    options = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    if not options:
        raise CamlibValueError("metrics is empty; give at least one, such as 'average_drop'")
    columns = {
        metric.name: (metric, set_) for metric, set_ in ((_metric(given), set_) for given, set_ in options.items())
    }
    needing = [name for name, (metric, _) in columns.items() if metric.reads is LocatedHeatmaps]
    if needing and not with_masks:
        raise CamlibValueError(f"{', '.join(needing)} compare heatmaps with the truth; give masks=, or leave them out")
    return columns


def _bound(methods: Any, network: Network, layers: Any) -> list[Method]:
    """Each method bound to the model, once for each layer that it is to read."""
    if isinstance(methods, str) and methods != "all":
        raise CamlibTypeError(f'methods must be "all" or a list of them, got {methods!r}')
    if isinstance(layers, str):
        raise CamlibTypeError(f"layers must be a list of names, got a single string; give [{layers!r}]")
    given = list(METHODS) if isinstance(methods, str) else list(methods)
    named = {getattr(method, "name", method) for method in given}
    found: list[Method] = []
    for method in (*given, *(name for name in BASELINES if name not in named)):
        explainer = bound_to(method, network, None)
        each = layers if layers and explainer.layers is None and explainer.finds_one_layer else [None]
        found += [explainer if layer is None else bound_to(method, network, [layer]) for layer in each]
    for explainer in found:
        if explainer.network.forward is not network.forward:
            raise CamlibValueError(
                f"{explainer!r} calls the model by another forward, and all are evaluated on the same outputs; give "
                "evaluate(..., forward=...), and the method by name"
            )
    return found


def _first(inputs: Any) -> Any:
    """The first image of a batch."""
    pictures = Inputs(inputs).images
    return Inputs(inputs).pick(torch.zeros(1, dtype=torch.long, device=pictures.device), len(pictures)).raw


def _batches(loader: Any, max_images: int | None) -> Iterator[tuple[int, Any]]:
    """The number of each batch's first image, and its inputs, up to so many images."""
    left = None if max_images is None else positive_int("max_images", max_images)
    start = 0
    for batch in loader.split(BATCH) if isinstance(loader, Tensor) else loader:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and not Inputs(batch).is_list else batch
        pictures = Inputs(inputs).images
        count = len(pictures) if left is None else min(len(pictures), left - start)
        if count < len(pictures):
            inputs = Inputs(inputs).pick(torch.arange(count, device=pictures.device), len(pictures)).raw
        yield start, inputs
        start += count
        if start == left:
            return


def _checked_target(target: Any) -> Any:
    """The target; classes of all images, of whatever kind they were given, as a tensor (M,)."""
    if target is None or callable(target) or isinstance(target, (targets.Target, int, targets.TopK)):
        return target
    classes = integers(target)
    if classes.dim() == 0:
        return int(classes)
    if classes.dim() != 1:
        raise CamlibValueError(
            f"target has shape {tuple(classes.shape)}; a metric judges one heatmap of each image: give one class for "
            "each, or for all"
        )
    return classes


def _target_of(target: Any, start: int, inputs: Any) -> Any:
    """The target of a batch."""
    if not isinstance(target, Tensor):
        return target
    images = Inputs(inputs).count
    if len(target) < start + images:
        raise CamlibValueError(
            f"target has classes of {len(target)} images, and there are more; give one for each image"
        )
    return target[start : start + images]


def _masks_of(masks: Any, start: int, inputs: Any) -> Tensor | None:
    """The masks of a batch."""
    if masks is None:
        return None
    pictures = Inputs(inputs).images
    found = torch.as_tensor(masks[start : start + len(pictures)])
    if tuple(found.shape) != (len(pictures), *pictures.shape[2:]):
        raise CamlibValueError(
            f"masks of images {start} to {start + len(pictures) - 1} have shape {tuple(found.shape)}, and the inputs "
            f"{tuple(pictures.shape)}; give a mask for each image, of the inputs' size"
        )
    return found


@contextlib.contextmanager
def _counting(model: nn.Module, limit: int) -> Iterator[list[int]]:
    """Count the images that run through a model; more than the limit raise _TooManyPassesError."""
    counted = [0]

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        counted[0] += len(next((tensor for tensor in tensors_in((args, kwargs)) if tensor.dim()), ()))
        if counted[0] > limit:
            raise _TooManyPassesError

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()


def _evaluation(lines: Sequence[Mapping[str, Any]], better: Mapping[str, str]) -> Evaluation:
    """The table of all batches."""
    values: dict[TableRow, dict[str, list[float]]] = {}
    passes: dict[TableRow, float] = {}
    for line in lines:
        for found in line["rows"]:
            row = TableRow(found["method"], found["layer"])
            passes[row] = found["passes"]
            of_row = values.setdefault(row, {name: [] for name in better})
            for name, numbers in found["values"].items():
                of_row[name] += [float("nan") if number is None else number for number in numbers]
    return Evaluation(
        values={
            row: {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in found.items()}
            for row, found in values.items()
        },
        better=dict(better),
        passes=passes,
        left_out=lines[0]["left_out"],
        failures=[failure for line in lines for failure in line["failures"]],
    )
