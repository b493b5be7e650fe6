"""Calls of a method as graphs of tensor operations, which ``torch.compile`` compiles.

A graph holds the forward pass, the gradient of its tail, and the maps. It is recorded once for each kind of inputs, and
again after a change of the model or of the method.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from camlib import targets
from camlib.errors import CamlibError, CamlibValueError, CamlibWarning
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.inputs.nested import map_tensors, tensors_in
from camlib.inputs.outputs import SHARED, is_shared
from camlib.passes.network import modules_of
from camlib.targets.classes import BoundLogits, all_logits
from camlib.targets.indices import class_indices

Eager = Callable[[Inputs, Any], Explanation]
"""From inputs and a target to the explanation."""
Unchecked = Callable[[Inputs, Any], tuple[Explanation, Tensor]]
"""The same without checks of the numbers, and a bool for each check, on the device."""

MAX_GRAPHS = 16
"""The most graphs that are kept, for different kinds of inputs."""
_PLAIN = (bool, int, float, str, type(None))


class CannotCompileError(Exception):
    """Why a call cannot be compiled."""


@dataclass(frozen=True, eq=False)
class _Known(targets.Target):
    """The logits of classes that are known to fit the outputs, so that nothing is checked."""

    classes: Any
    """None for the predicted class of each image, :class:`camlib.TopK`, or indices (N,) or (N, K)."""

    def bind(self, outputs: Any) -> targets.BoundTarget:
        """Return the logits of the classes."""
        if isinstance(self.classes, Tensor):
            return BoundLogits(self.classes)
        return BoundLogits(class_indices(self.classes, all_logits(outputs).detach()))


@dataclass(frozen=True, eq=False)
class Graph:
    """A call of a method as one graph."""

    run: Callable[..., Any]
    """From the tensors of the inputs, and class indices where they are given, to maps, scores, classes, checks, the
    maps of each layer, and the tensors of the outputs."""
    like: Explanation
    """An explanation of such inputs, without its numbers."""

    def explanation(self, *tensors: Tensor) -> Explanation | None:
        """Run the graph on the tensors of the inputs and the class indices; None if a number is not finite."""
        with torch.inference_mode(False), torch.no_grad(), _without_autocast(tensors[0].device):
            if tensors[0].is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            found = list(self.run(*tensors))
            if tensors[0].is_cuda:
                found = [one.clone() for one in found]  # the next run of a CUDA graph overwrites them
        maps, scores, classes, passed, *others = found
        if not bool(passed.all()):
            return None
        of_outputs = iter(others[len(self.like.layers) :])
        fields = {
            **vars(self.like),
            "maps": maps,
            "scores": scores,
            "layers": dict(zip(self.like.layers, others, strict=False)),
            "outputs": map_tensors(lambda like: _noted(next(of_outputs), like), self.like.outputs),
        }
        if isinstance(self.like.target, Tensor):
            fields["target"] = classes
        return Explanation(**fields)


def record(unchecked: Unchecked, inputs: Inputs, classes: Any, explanation: Explanation) -> Graph:
    """Record a call of a method as a graph.

    Args:
        unchecked: the method's call.
        inputs: its inputs, which the method has explained before.
        classes: None, :class:`camlib.TopK`, or class indices (N,) or (N, K).
        explanation: the explanation of these inputs.

    Raises:
        CannotCompileError: the call is not a fixed sequence of tensor operations, or the graph gives other maps.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    given = (*inputs.tensors, classes) if isinstance(classes, Tensor) else inputs.tensors

    def call(*tensors: Tensor) -> list[Tensor]:
        parts = iter(tensors)
        own = inputs.map(lambda _: next(parts))
        found, passed = unchecked(own, None if explanation.quantity == "none" else _Known(next(parts, classes)))
        explained = found.target if isinstance(found.target, Tensor) else found.scores
        return [found.maps, found.scores, explained, passed, *found.layers.values(), *tensors_in(found.outputs)]

    try:
        with torch.inference_mode(False), torch.no_grad():
            graph = make_fx(call)(*given)
    except CamlibError:
        raise
    except Exception as error:  # what a model does in Python can fail in any way
        raise CannotCompileError(f"it is not a fixed sequence of tensor operations: {_short(error)}") from error
    _refuse_state(graph)
    recorded = Graph(graph, Explanation(**map_tensors(_without_numbers, vars(explanation))))
    again = recorded.explanation(*given)
    if again is None or not _agree(again.maps, explanation.maps):
        raise CannotCompileError("the recorded graph gives other maps: the model does not do the same in every call")
    return recorded


def _refuse_state(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags and _dropout_of(node) != 0:
            raise CannotCompileError(f"it draws random numbers ({node.target})")
        if node.target._schema.is_mutable and node.args and getattr(node.args[0], "op", "") == "get_attr":
            raise CannotCompileError(f"the model changes its own state ({node.target})")


def _dropout_of(node: fx.Node) -> Any:
    """The share that an attention drops, which is 0 in eval mode; None of other operations."""
    names = [one.name for one in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("dropout_p", 0.0) if "dropout_p" in names else None


def _without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes the memory of one number."""
    return _noted(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), tensor)


def _noted(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, noted as shared by all images if another one is."""
    if is_shared(like):
        setattr(tensor, SHARED, True)
    return tensor


def _agree(maps: Tensor, expected: Tensor) -> bool:
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return bool(((maps - expected).abs() <= tolerance * expected.abs().max()).all())


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A graph that was recorded under autocast holds its conversions."""
    return torch.autocast(device.type, enabled=False)


class Compiled:
    """The compiled calls of one method.

    Args:
        options: those of ``torch.compile``; ``fullgraph`` and ``dynamic=False`` are the default.

    Raises:
        CamlibValueError: ``torch.compile`` does not take the options.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {"fullgraph": True, "dynamic": False, **options}
        try:
            torch.compile(nn.Identity(), **self.options)
        except Exception as error:  # what torch raises depends on the option
            raise CamlibValueError(f"torch.compile does not take the options {options}: {error}") from error
        self._graphs: dict[Hashable, Graph | CannotCompileError] = {}
        self._tables: dict[Hashable, Tensor] = {}
        self._state: list[Any] = []
        self._warned: set[str] = set()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the options alone: a copy of the method belongs to another model."""
        return Compiled, (self.options,)

    def __call__(
        self, state: list[Any], eager: Eager, unchecked: Unchecked | None, inputs: Inputs, target: Any
    ) -> Explanation:
        """Explain by a compiled graph; eagerly, with one warning for each reason, where there is none.

        Args:
            state: objects of the method that the graph depends on, besides the network's.
            eager: the method's call.
            unchecked: the same without checks; None for a method that cannot be compiled.
            inputs: its inputs.
            target: its target.
        """
        try:
            explanation = self._explanation(state, eager, unchecked, inputs, target)
        except CannotCompileError as error:
            self._warn(str(error))
            explanation = None
        return eager(inputs, target) if explanation is None else explanation

    def _warn(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"the call is not compiled, it runs eagerly: {why}", CamlibWarning, stacklevel=5)

    def _explanation(
        self, state: list[Any], eager: Eager, unchecked: Unchecked | None, inputs: Inputs, target: Any
    ) -> Explanation | None:
        if unchecked is None:
            raise CannotCompileError("only methods of gradients and activations are compiled")
        classes = target.classes if type(target) is targets.Classes else target
        if isinstance(classes, targets.Target) or callable(classes):
            raise CannotCompileError("the target is neither class indices nor None; only the logits of classes compile")
        if not inputs.tensors:
            raise CannotCompileError("the inputs hold no tensors")
        kind = _kind(inputs.raw), _autocast_of(inputs.tensors[0].device)
        with self._lock:
            if len(state) != len(self._state) or any(map(operator.is_not, state, self._state)):
                self._graphs.clear()
                self._tables.clear()
                self._state = state
            explanation = None
            if kind not in self._tables:
                explanation = eager(inputs, target)
                self._tables[kind] = _table_like(explanation)
            if classes is not None and not isinstance(classes, targets.TopK):
                classes = class_indices(classes, self._tables[kind])
            key = kind, tuple(classes.shape) if isinstance(classes, Tensor) else classes
            if key not in self._graphs:
                explanation = eager(inputs, target) if explanation is None else explanation
                self._graphs[key] = self._compiled(unchecked, inputs, classes, explanation)
                while len(self._graphs) > MAX_GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
            graph = self._graphs[key]
        if isinstance(graph, CannotCompileError):
            raise graph
        given = (*inputs.tensors, classes) if isinstance(classes, Tensor) else inputs.tensors
        try:
            return graph.explanation(*given)
        except Exception as error:  # a compiler can fail in any way, such as for want of a C++ compiler
            failed = CannotCompileError(f"torch.compile failed: {_short(error)}")
            self._graphs[key] = failed
            raise failed from error

    def _compiled(
        self, unchecked: Unchecked, inputs: Inputs, classes: Any, explanation: Explanation
    ) -> Graph | CannotCompileError:
        """The compiled graph of a call, or why there is none."""
        try:
            graph = record(unchecked, inputs, classes, explanation)
        except CannotCompileError as error:
            return error
        return Graph(torch.compile(graph.run, **self.options), graph.like)


def _table_like(explanation: Explanation) -> Tensor:
    """A tensor (N, C) that has the shape and the device of the scores of all classes, without memory."""
    if explanation.quantity == "none":
        return explanation.scores[:, None]
    try:
        table = all_logits(explanation.outputs)
    except CamlibError as error:
        raise CannotCompileError(f"the outputs are no logits of classes: {error}") from error
    return table.new_zeros(()).expand(table.shape)


def _kind(value: Any) -> Hashable:
    """What two inputs must share to run the same graph: containers, shapes, strides, types and devices."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    if isinstance(value, Mapping):
        return type(value), *((key, _kind(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), *map(_kind, value)
    if isinstance(value, _PLAIN):
        return type(value), value
    raise CannotCompileError(f"the inputs hold a {type(value).__name__}")


def _autocast_of(device: torch.device) -> Hashable:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)


def state_of(model: nn.Module) -> Iterator[Any]:
    """Yield the objects of a model that a graph depends on: its modules, parameters, buffers and hooks.

    A change of their numbers in place is no change of the graph.
    """
    for module in modules_of(model):
        yield module
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield from (tensor, tensor.dtype, sys.intern(str(tensor.device)))
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def _short(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")
