"""The proof of an exported graph: on images that it never saw, it is as exact as eager calls are.

Both the graph and eager calls are compared with eager calls of a copy of the model in float64. The graph is accepted if
its largest error is at most :data:`STRICT`, or at most :data:`FACTOR` times that of eager calls and :data:`MOST`. The
second bound is for networks whose float32 gradients are further off: they jump where an activation changes its sign.
"""

from __future__ import annotations

import copy
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from camlib.errors import CamlibError, CamlibRuntimeError, CamlibWarning
from camlib.exporting.call import CLASS_INDEX, Call, Target
from camlib.methods.base import Method
from camlib.targets.indices import class_outputs

STRICT = 1e-5
"""The error that is always accepted: of heatmaps in [0, 1], and of outputs and maps by their largest magnitude."""
FACTOR = 4
"""How many times the error of eager calls is accepted."""
MOST = 0.1
"""The error that is never accepted: the heatmaps of the model's precision mean nothing then."""
BATCHES = (1, 2, 5)
"""The lengths of the batches that are compared."""
MORE = 6
"""How many more batches eager calls explain, before a graph is refused, to find their largest error."""

Graph = Callable[..., Sequence[Tensor]]
"""From the inputs of a graph to outputs and heatmaps."""
Numbers = tuple[Tensor, ...]
"""Outputs and heatmaps."""


@dataclass(frozen=True)
class Proof:
    """What the comparison of a graph gave."""

    error: float
    """The largest error of the graph's outputs and heatmaps."""
    eager_error: float
    """That of eager calls of the model as it is."""
    reference: str
    """What both were compared with."""

    @property
    def metadata(self) -> dict[str, str]:
        """The same in words."""
        return {"error": f"{self.error:.1e}", "eager_error": f"{self.eager_error:.1e}", "reference": self.reference}


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of a graph, and what eager calls give for them."""

    given: tuple[Tensor, ...]
    eager: Numbers
    exact: Numbers | None
    """In float64; None where the model cannot be made float64."""

    @property
    def reference(self) -> Numbers:
        """What the graph is compared with."""
        return self.eager if self.exact is None else self.exact

    @property
    def eager_errors(self) -> list[float]:
        """The errors of the eager call."""
        return errors(self.eager, self.reference)


@dataclass(eq=False)
class Trials:
    """Random inputs with what eager calls give for them; made by :func:`trials_of`.

    Args:
        call: what graphs were recorded of.
        inputs: the images, or pictures, that were given as an example.
        all: the trials.
        why: why there is no eager call in float64; empty if there is.
    """

    call: Call
    inputs: Tensor
    all: list[Trial]
    why: str = ""
    _eager: list[float] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """What graphs are compared with."""
        return f"eager calls, {self.why}" if self.why else "eager calls in float64"

    def prove(self, graph: Graph, name: str) -> Proof:
        """Compare a graph with eager calls.

        Args:
            graph: the graph.
            name: what runs it, for errors.

        Raises:
            CamlibRuntimeError: the graph gives something else, or fails.
        """
        found = [(_errors_of(graph, one, name), tuple(one.given[0].shape)) for one in self.all]
        if not self._eager:
            self._eager = _largest(one.eager_errors for one in self.all)
        for k, what in enumerate(("outputs", "heatmaps")):
            error, shape = max((of_trial[k], shape) for of_trial, shape in found)
            if not _accepted(error, self._eager[k]) and not self.why:
                self._more()
            if not _accepted(error, self._eager[k]):
                raise CamlibRuntimeError(
                    f"{name} gives other {what} than the model for inputs {shape}: its error against "
                    f"{self.reference} is {error:.2g}, that of eager calls {self._eager[k]:.2g}. Accepted is "
                    f"{STRICT:g}, or {FACTOR} times the error of eager calls up to {MOST:g}. The model may depend on "
                    "numbers or shapes in a way that no graph shows; explain it eagerly, or export it in float64"
                )
        return Proof(max(_largest(of_trial for of_trial, _ in found)), max(self._eager), self.reference)

    def _more(self) -> None:
        """Measure the errors of eager calls on more images: gradients that jump are off only for some of them."""
        exact = _in_double(self.call.method)
        for seed in range(100, 100 + MORE):
            given = random_inputs(self.call, self.inputs, len(self.inputs), self.inputs.shape[1:], seed)
            trial = _trial(self.call, exact, given)
            self._eager = _largest([self._eager, trial.eager_errors])


def trials_of(call: Call, inputs: Tensor, dynamic_batch: bool, dynamic_size: bool) -> Trials:
    """Explain random images eagerly, in the model's precision and in float64.

    Args:
        call: what graphs are recorded of.
        inputs: the images, or pictures, that were given as an example.
        dynamic_batch: whether to explain batches of several lengths.
        dynamic_size: whether to explain images of several sizes.

    Raises:
        CamlibRuntimeError: the method cannot explain random images, or none of another size.
    """
    exact, why = None, ""
    try:
        exact = _in_double(call.method)
    except Exception as error:  # what a model's own code raises
        why = _no_double(error)
    found: list[Trial] = []
    sizes = set()
    for seed, (rows, shape) in enumerate(_shapes(call, inputs, dynamic_batch, dynamic_size), 1):
        given = random_inputs(call, inputs, rows, shape, seed)
        try:
            trial = _trial(call, None, given)
        except CamlibError as error:
            if tuple(shape) == tuple(inputs.shape[1:]):
                raise CamlibRuntimeError(
                    f"the graph cannot be compared with calls on random images: {error}"
                ) from error
            continue  # the model does not take images of this size
        if exact is not None:
            try:
                trial = _trial(call, exact, given)
            except Exception as error:  # what a model's own code raises
                exact, why = None, _no_double(error)
        sizes.add(tuple(shape))
        found.append(trial)
    if dynamic_size and sizes <= {tuple(inputs.shape[1:])}:
        raise CamlibRuntimeError(
            "the graph cannot be compared with eager calls for images of another size, which the model does not take; "
            "leave dynamic_size out"
        )
    if why:
        found = [Trial(one.given, one.eager, None) for one in found]
    return Trials(call, inputs, found, why)


def _accepted(error: float, eager_error: float) -> bool:
    return error <= STRICT or error <= min(FACTOR * eager_error, MOST)


def _in_double(method: Method) -> Method:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamlibWarning)
        return method.on(copy.deepcopy(method.model).double())


def _no_double(error: Exception) -> str:
    short = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
    return f"as the model cannot be made float64 ({short})"


def _trial(call: Call, exact: Method | None, given: tuple[Tensor, ...]) -> Trial:
    """Explain inputs eagerly; in float64 for the classes that the model itself predicts."""
    images, *classes = given
    images = call.images(images)
    eager, target = _explained(call, call.method, images, classes[0] if classes else call.target)
    if exact is None:
        return Trial(given, eager, None)
    of = images.double() if images.is_floating_point() else images
    return Trial(given, eager, _explained(call, exact, of, target)[0])


def _explained(call: Call, method: Method, images: Tensor, target: Target | Tensor) -> tuple[Numbers, Target | Tensor]:
    """The outputs and heatmaps of an eager call, and the classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamlibWarning)
        explanation = method(images, target)
    outputs = explanation.outputs
    heatmaps = explanation.heatmaps(call.heatmap_size, "minmax" if call.normalize else "none")
    found = outputs if isinstance(outputs, Tensor) else class_outputs(outputs), heatmaps
    return found, explanation.target if isinstance(explanation.target, Tensor) else target


def random_inputs(call: Call, inputs: Tensor, rows: int, shape: Sequence[int], seed: int) -> tuple[Tensor, ...]:
    """Return random inputs of a graph, which have the mean and the spread of the given ones.

    Args:
        call: what the graph was recorded of.
        inputs: the given images or pictures.
        rows: the length of the batch.
        shape: the shape of each image.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    if inputs.is_floating_point():
        mean, std = inputs.mean().cpu(), inputs.std().cpu()
        images = (mean + std * torch.randn(rows, *shape, generator=generator)).to(inputs)
    else:
        images = torch.randint(0, 256, (rows, *shape), generator=generator).to(inputs)
    if call.target != CLASS_INDEX:
        return (images,)
    return images, torch.randint(0, call.classes, (rows,), generator=generator).to(inputs.device)


def _shapes(
    call: Call, inputs: Tensor, dynamic_batch: bool, dynamic_size: bool
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield lengths of batches and shapes of images."""
    own = tuple(inputs.shape[1:])
    for rows in BATCHES if dynamic_batch else (len(inputs),) * 2:
        yield rows, own
    if dynamic_size:
        spatial = call.spatial if call.preprocessing is None else (1, 2)
        for number, more in enumerate((32, 64, 13), 2):
            shape = list(own)
            for place, axis in enumerate(spatial):
                shape[axis - 1] += more * (1 + place)
            yield number if dynamic_batch else len(inputs), tuple(shape)


def _errors_of(graph: Graph, trial: Trial, name: str) -> list[float]:
    """The errors of a graph."""
    try:
        found = graph(*trial.given)
    except Exception as error:  # whatever a runtime raises
        raise CamlibRuntimeError(f"{name} fails for inputs {tuple(trial.given[0].shape)}: {error}") from error
    return errors(found, trial.reference)


def errors(found: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    """Return the largest difference of outputs and of heatmaps, each divided by the largest magnitude."""
    return [_error(one, other) for one, other in zip(found, reference, strict=True)]


def _error(found: Tensor, reference: Tensor) -> float:
    found = torch.as_tensor(found).to(reference.device)
    if found.shape != reference.shape or not bool(found.isfinite().all()):
        return float("inf")
    scale = float(reference.abs().max()) or 1.0
    return float((found.double() - reference.double()).abs().max()) / scale


def _largest(pairs: Iterator[list[float]] | Sequence[list[float]]) -> list[float]:
    return [max(one) for one in zip(*pairs, strict=True)]
