"""A metric is one declaration: its function, its entry in METRICS and its torchmetrics class come from it.

It is a function of what it reads and of its own options. What it reads brings the public arguments, their checks and
their documentation:

>>> import torch
>>> from camlib.metrics.declaration import metric
>>> from camlib.metrics.readings import Heatmaps
>>> @metric(Heatmaps, "lower")
... def peak(heatmaps: Heatmaps) -> torch.Tensor:
...     return heatmaps.values.flatten(1).amax(1)
>>> peak(torch.tensor([[[0.0, 0.5]]])), peak.name, peak.better
(tensor([0.5000]), 'peak', 'lower')

``camlib.evaluate(..., metrics=[peak])`` takes it as it is.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from torch import Tensor, nn

from camlib import targets
from camlib.metrics.readings import (
    Explained,
    HeatmapCase,
    HeatmapPair,
    Heatmaps,
    LocatedHeatmaps,
    Reading,
    ScoredHeatmaps,
)
from camlib.passes.chunks import ChunkSize
from camlib.passes.network import Forward
from camlib.smoothing import Explainer

R = TypeVar("R", bound=Reading)
S = TypeVar("S")
P = ParamSpec("P")
Better = Literal["higher", "lower"]
Scored = Callable[[Any], targets.Target]
"""From classes to the target that is scored."""


class Measure(Generic[R, P]):
    """A function of what it reads, called with the public arguments that this is made from."""

    __signature__: inspect.Signature

    def __init__(
        self,
        of: Callable[Concatenate[R, P], Tensor],
        reads: type[R],
        values: str = "",
        like: Callable[..., Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, of)
        self.of = of
        """The declared function, from what it reads and its own options to a tensor."""
        step = getattr(of, "step", None)
        self.parts: tuple[Callable[..., Any], ...] = (of,) if step is None else (step, inspect.unwrap(of))
        """The functions that it consists of, by which a record of an evaluation recognises it."""
        self.reads = reads
        self.values = values
        """Which values there are, in words."""
        self.name = of.__name__
        _, *own = inspect.signature(of).parameters.values()
        self._own = [option.name for option in own]
        self._given: Callable[..., R] = getattr(reads, "given", reads)
        shared = list(inspect.signature(self._given).parameters.values())
        asked = [one for one in shared if one.kind is one.POSITIONAL_OR_KEYWORD]
        self.__signature__ = inspect.Signature([*asked, *own, *shared[len(asked) :]], return_annotation="Tensor")
        self.__doc__ = self._documentation(like or step)

    # What type checkers see: the public arguments, then the options.
    # fmt: off
    @overload
    def __call__(self: Measure[Heatmaps, P], heatmaps: Any, *args: P.args, **options: P.kwargs) -> Tensor: ...
    @overload
    def __call__(
        self: Measure[HeatmapPair, P], first: Any, second: Any, *args: P.args, **options: P.kwargs
    ) -> Tensor: ...
    @overload
    def __call__(
        self: Measure[LocatedHeatmaps, P], heatmaps: Any, masks: Any, empty: str = ...,
        *args: P.args, **options: P.kwargs,
    ) -> Tensor: ...
    @overload
    def __call__(
        self: Measure[ScoredHeatmaps, P], model: nn.Module, inputs: Any, heatmaps: Any, target: Any = ...,
        score: Scored = ..., link: targets.Link = ..., forward: Forward | None = ...,
        chunk_size: ChunkSize = ..., progress: bool = ..., outputs: Any = ..., *args: P.args, **options: P.kwargs,
    ) -> Tensor: ...
    @overload
    def __call__(
        self: Measure[Explained, P], explainer: Explainer, inputs: Any, target: Any = ...,
        *args: P.args, **options: P.kwargs,
    ) -> Tensor: ...
    @overload
    def __call__(
        self: Measure[HeatmapCase, P], explainer: Explainer, inputs: Any, target: Any = ...,
        score: Scored = ..., link: targets.Link = ..., forward: Forward | None = ...,
        chunk_size: ChunkSize = ..., progress: bool = ..., outputs: Any = ..., *args: P.args, **options: P.kwargs,
    ) -> Tensor: ...
    # fmt: on
    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """Make what the metric reads from the public arguments, and measure it."""
        own = {name: options.pop(name) for name in self._own if name in options}
        return self._measured(self._given(*args, **options), own)

    def _measured(self, read: R, options: Mapping[str, Any]) -> Tensor:
        function: Callable[..., Tensor] = self.of
        return read.nan_where_unknown(function(read, **options))

    def _documentation(self, like: Callable[..., Any] | None) -> str:
        """Return a docstring with the arguments and errors of all that made the signature, in its order."""
        own, shared, others = (_sections(one) for one in (self.of, self._given, like))
        entries = _entries(shared) | _entries(others) | _entries(own)
        own["Args"] = "\n".join(entries[name] for name in self.__signature__.parameters if name in entries)
        errors = [own["Raises"], shared["Raises"]] if "Raises" in own else [others.get("Raises", shared["Raises"])]
        own["Raises"] = "\n".join(errors)
        own.setdefault("Returns", f"    (N,), {self.values}." if self.values else "    (N,).")
        if self.reads.example and "Example" not in own:
            example = inspect.cleandoc(self.reads.example.replace("NAME", self.name))
            own["Example"] = textwrap.indent(example, "    ")
        titles = ("Args", "Returns", "Raises", "Example")
        return "\n\n".join([own[""], *(f"{title}:\n{own[title]}" for title in titles if own.get(title))]) + "\n"

    # Like a function, a measure is pickled by its name, and is a routine for help(), Sphinx and inspect.

    def __reduce__(self) -> str:
        return self.name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)


class Metric(Measure[R, P]):
    """A measure that gives one number per image, with what :func:`camlib.evaluate` needs to know about it.

    Example:
        >>> from camlib.metrics import METRICS, deletion
        >>> METRICS["deletion"] is deletion, deletion.name, deletion.better
        (True, 'deletion', 'lower')
    """

    def __init__(
        self,
        of: Callable[Concatenate[R, P], Tensor],
        reads: type[R],
        better: Better,
        values: str,
        like: Callable[..., Any] | None,
        in_evaluation: Mapping[str, Any],
    ) -> None:
        super().__init__(of, reads, values, like)
        self.better: Better = better
        """Which values are better, as far as its paper says so."""
        self.in_evaluation = in_evaluation
        """Options that :meth:`evaluate` sets unless they are given."""

    def evaluate(self, case: HeatmapCase, **options: Any) -> Tensor:
        """Return (N,) for the heatmaps of a case; what the case knows already is not computed again."""
        return self._measured(case.read(self.reads), {**self.in_evaluation, **options})


def measure(
    reads: type[R], values: str = "", *, like: Callable[..., Any] | None = None
) -> Callable[[Callable[Concatenate[R, P], Tensor]], Measure[R, P]]:
    """Declare a measure, in place of the function.

    Args:
        reads: what the function takes first.
        values: which values there are, in words, for the documentation: "in [0, 1]".
        like: another function, whose documentation of options and errors stands for what is left out.
    """
    return lambda of: Measure(of, reads, values, like)


def metric(
    reads: type[R], better: Better, values: str = "", *, like: Callable[..., Any] | None = None, **in_evaluation: Any
) -> Callable[[Callable[Concatenate[R, P], Tensor]], Metric[R, P]]:
    """Declare a metric, in place of the function.

    Args:
        reads: what the function takes first.
        better: which values are better.
        values: which values there are, in words, for the documentation: "in [0, 1]".
        like: another function, whose documentation of options and errors stands for what is left out.
        **in_evaluation: options that :func:`camlib.evaluate` sets unless they are given.
    """
    return lambda of: Metric(of, reads, better, values, like, in_evaluation)


def after(
    step: Callable[Concatenate[R, P], S],
) -> Callable[[Callable[[S], Tensor]], Callable[Concatenate[R, P], Tensor]]:
    """Run a step first: the decorated function gets what the step returns.

    The result takes what the step reads and the step's options. Several metrics can share a step, with its options and
    their documentation. Put this decorator below :func:`metric`.

    Args:
        step: the shared computation, a function of what the metrics read and of options.
    """

    def decorated(of: Callable[[S], Tensor]) -> Callable[Concatenate[R, P], Tensor]:
        def composed(read: R, /, *args: P.args, **options: P.kwargs) -> Tensor:
            return of(step(read, *args, **options))

        vars(composed).update(__signature__=inspect.signature(step), step=step)
        functools.update_wrapper(composed, of)
        return composed

    return decorated


def _sections(function: Callable[..., Any] | None) -> dict[str, str]:
    """Return the sections of a Google docstring by name; the text before them has no name."""
    parts = re.split(r"^(Args|Returns|Raises|Example):\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return {name: text.rstrip() for name, text in zip(["", *parts[1::2]], parts[::2], strict=True)}


def _entries(sections: Mapping[str, str]) -> dict[str, str]:
    """Return the documentation of each argument by name."""
    entries = re.split(r"\n(?=    [\w*])", sections.get("Args", ""))
    return {entry.split(":")[0].strip(" *"): entry for entry in entries}
