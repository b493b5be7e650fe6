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
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from camlib import targets
from camlib.errors import CamlibError, CamlibValueError, CamlibWarning
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.inputs.nested import map_tensors, tensors_in
from camlib.inputs.outputs import SHARED, is_shared
from camlib.passes.network import modules_of, state
from camlib.targets.classes import BoundLogits, all_logits
from camlib.targets.indices import class_indices

Eager = Callable[[Inputs, Any], Explanation]
"""From inputs and a target to the explanation."""
Unchecked = Callable[[Inputs, Any], tuple[Explanation, Tensor]]
"""The same without checks of the numbers, and a bool for each check, on the device."""

MAX_GRAPHS = 16
"""The most graphs that are kept, for different kinds of inputs."""
_NO_SEQUENCE = "it is not a fixed sequence of tensor operations: {}"
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
            found = [one.detach() for one in self.run(*tensors)]
            if tensors[0].is_cuda:
                found = [one.clone() for one in found]  # the next run of a CUDA graph overwrites them
        maps, scores, classes, passed, *others = found
        if not bool(passed.all()):
            return None
        of_outputs = iter(others[len(self.like.layers) :])
        named = {
            **vars(self.like),
            "maps": maps,
            "scores": scores,
            "layers": dict(zip(self.like.layers, others, strict=False)),
            "outputs": map_tensors(lambda like: _noted(next(of_outputs), like), self.like.outputs),
        }
        if isinstance(self.like.target, Tensor):
            named["target"] = classes
        return Explanation(**named)


def record(
    unchecked: Unchecked, eager: Eager, model: nn.Module, inputs: Inputs, classes: Any, explanation: Explanation
) -> Graph:
    """Record a call of a method as a graph, and compare the graph with eager calls, also of other images.

    Args:
        unchecked: the method's call.
        eager: the same with checks.
        model: the model, whose state a graph must not change.
        inputs: inputs that the method has explained before.
        classes: None, :class:`camlib.TopK`, class indices (N,) or (N, K), or another target.
        explanation: the explanation of these inputs.

    Raises:
        CannotCompileError: the call is not a fixed sequence of tensor operations, or the graph gives something else.
    """
    map_tensors(lambda tensor: tensor, explanation.outputs, _refuse_output)

    def call(*tensors: Tensor) -> list[Tensor]:
        parts = iter(tensors)
        own = inputs.map(lambda _: next(parts))
        is_other = _is_other_target(classes)
        of = classes if is_other else None if explanation.quantity == "none" else _Known(next(parts, classes))
        with _no_scalars():
            found, passed = unchecked(own, of)
        explained = found.target if isinstance(found.target, Tensor) else found.scores
        return [found.maps, found.scores, explained, passed, *found.layers.values(), *tensors_in(found.outputs)]

    with _unchanged(model):
        recorded = _recorded(call, _given_to_graph(inputs, classes), explanation)
        others = inputs.map(_changed)
        try:
            expected = eager(others, classes)
        except CamlibError as error:
            raise CannotCompileError(f"it cannot be verified on other inputs: {_short(error)}") from error
        _refuse_difference(recorded.explanation(*_given_to_graph(others, classes)), expected)
    return recorded


def _recorded(call: Callable[..., list[Tensor]], given: tuple[Tensor, ...], explanation: Explanation) -> Graph:
    """The graph of a call, which gives the explanation again."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with torch.inference_mode(False), torch.no_grad(), _NoNumbers():
            graph = make_fx(call)(*(tensor.clone() for tensor in given))  # no two of them are the same tensor
    except (CamlibError, CannotCompileError):
        raise
    except Exception as error:  # what a model does in Python can fail in any way
        raise CannotCompileError(_NO_SEQUENCE.format(_short(error))) from error
    _refuse_operations(graph)
    like = Explanation(**map_tensors(_without_numbers, vars(explanation)))
    recorded = Graph(graph.forward, like)  # a call of the graph itself would run the hooks on all modules
    _refuse_difference(recorded.explanation(*given), explanation)
    return recorded


def _changed(tensor: Tensor) -> Tensor:
    """Other numbers, such as those of another image."""
    return 0.6 * tensor + 0.3 * tensor.roll(1, -1) if tensor.is_floating_point() else tensor


def _given_to_graph(inputs: Inputs, classes: Any) -> tuple[Tensor, ...]:
    """Return what a graph is called with: the tensors of the inputs, and class indices where they are given."""
    tensors = (*inputs.tensors, classes) if isinstance(classes, Tensor) else inputs.tensors
    return tuple(
        tensor.detach() if type(tensor) is Tensor else tensor.detach().as_subclass(Tensor) for tensor in tensors
    )


class _NoNumbers(TorchFunctionMode):
    """Refuses functions that hand numbers of tensors to Python, which a recorded graph would repeat."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _TO_PYTHON:
            raise CannotCompileError(f"numbers of tensors are read into Python, by {function.__name__}")
        return function(*args, **(kwargs or {}))


_TO_PYTHON = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__})


class _NoScalars(TorchDispatchMode):
    """Refuses to read single numbers, also those of tensors that are no inputs, and those that index another tensor."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise CannotCompileError(_NO_SEQUENCE.format("a number of a tensor is read into Python"))
        return function(*args, **(kwargs or {}))


_no_scalars: Callable[[], contextlib.AbstractContextManager[Any]] = _NoScalars


def _refuse_output(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    raise CannotCompileError(f"the outputs hold not only tensors, but also a value of type {type(value).__name__}")


def _refuse_difference(
    found: Explanation | None,
    expected: Explanation,
    why: str = "the graph gives other {}: the model does not do the same in every call",
) -> None:
    """Refuse a graph whose explanation is not that of the eager call."""
    if found is None or not _agree(found.maps, expected.maps):
        raise CannotCompileError(why.format("maps"))
    pairs = zip(tensors_in(found.outputs), tensors_in(expected.outputs), strict=True)
    if not all(_agree(one, other) for one, other in [(found.scores, expected.scores), *pairs]):
        raise CannotCompileError(why.format("outputs"))


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse a graph that changes parameters or buffers inside the block, and restore these."""
    before = [(tensor, tensor.detach().clone()) for tensor in state(model)]
    changed = []
    try:
        yield
    finally:
        changed = [(one, copy) for one, copy in before if not torch.equal(one.nan_to_num(), copy.nan_to_num())]
        with torch.no_grad():
            for tensor, copy in changed:
                tensor.copy_(copy)
    if changed:
        raise CannotCompileError("the model changes its own state")


def _refuse_operations(graph: fx.GraphModule) -> None:
    """Refuse operations whose results are no function of their arguments, or whose shape depends on numbers."""
    for node in graph.graph.nodes:
        operation = node.target
        if not isinstance(operation, torch._ops.OpOverload):
            continue
        names = [one.name for one in operation._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if torch.Tag.dynamic_output_shape in operation.tags and not _is_index_of_integers(operation, given):
            raise CannotCompileError(f"the shape of a tensor depends on numbers ({operation})")
        is_attention_in_eval_mode = "dropout_p" in names and given.get("dropout_p", 0.0) == 0
        if torch.Tag.nondeterministic_seeded in operation.tags and not is_attention_in_eval_mode:
            raise CannotCompileError(f"it draws random numbers ({operation})")
        if operation._schema.is_mutable and node.args and getattr(node.args[0], "op", "") == "get_attr":
            raise CannotCompileError(f"the model changes its own state ({operation})")


def _is_index_of_integers(operation: Any, given: Mapping[str, Any]) -> bool:
    """Whether an operation indexes by integers: the shape of its result depends on numbers only for masks."""
    if operation is not torch.ops.aten.index.Tensor:
        return False
    found = [one.meta.get("val") for one in given["indices"] if one is not None]
    return all(isinstance(one, Tensor) and one.dtype not in (torch.bool, torch.uint8) for one in found)


def _without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes the memory of one number."""
    return _noted(torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), tensor)


def _noted(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, noted as shared by all images if another one is."""
    if is_shared(like):
        setattr(tensor, SHARED, True)
    return tensor


def _agree(maps: Tensor, expected: Tensor) -> bool:
    """Whether numbers are the same up to rounding."""
    if not expected.is_floating_point() or not expected.numel():
        return torch.equal(maps, expected)
    if bool(expected.isnan().all()):  # no score
        return bool(maps.isnan().all())
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
        self._graphs: dict[Hashable, Graph | str] = {}
        self._tables: dict[Hashable, Tensor | None] = {}
        self._state: list[Any] = []
        self._warned: set[str] = set()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the options alone: a copy of the method belongs to another model."""
        return Compiled, (self.options,)

    def __call__(
        self, method: Compilable, eager: Eager, unchecked: Unchecked | None, inputs: Inputs, target: Any
    ) -> Explanation:
        """Explain by a compiled graph; eagerly, with one warning for each reason, where there is none.

        Args:
            method: the method, on whose model and options a graph depends.
            eager: the method's call.
            unchecked: the same without checks; None for a method that cannot be compiled.
            inputs: its inputs.
            target: its target.
        """
        try:
            explanation = self._explanation(method, eager, unchecked, inputs, target)
        except CannotCompileError as error:
            self._warn(str(error))
            explanation = None
        return eager(inputs, target) if explanation is None else explanation

    def _warn(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"the call is not compiled, it runs eagerly: {why}", CamlibWarning, stacklevel=5)

    def _explanation(
        self, method: Compilable, eager: Eager, unchecked: Unchecked | None, inputs: Inputs, target: Any
    ) -> Explanation | None:
        if unchecked is None:
            raise CannotCompileError(
                f"{type(method).__name__} cannot be compiled; Ablation-CAM, Recipro-CAM and most subclasses of "
                "ActivationMethod and GradientMethod can"
            )
        classes = target.classes if type(target) in (targets.Classes, targets.BoundLogits) else target
        if not inputs.tensors:
            raise CannotCompileError("the inputs hold no tensors")
        if any(tensor.layout != torch.strided for tensor in inputs.tensors):
            raise CannotCompileError("the inputs hold sparse tensors")
        kind = _kind(inputs.raw), _autocast_of(inputs.tensors[0].device)
        with self._lock:
            state = list(_state_of(method))
            if len(state) != len(self._state) or any(map(operator.is_not, state, self._state)):
                self._graphs.clear()
                self._tables.clear()
                self._state = state
            explanation = None
            key: Hashable
            if _is_other_target(classes):
                key = kind, _named(classes)
                if key not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
                    raise CannotCompileError(f"there are {MAX_GRAPHS} graphs, of other targets or inputs")
            else:
                if kind not in self._tables:
                    explanation = eager(inputs, target)
                    self._tables[kind] = _table_like(explanation)
                table = self._tables[kind]
                if classes is not None and table is None:
                    raise CannotCompileError("the outputs hold no scores of classes")
                if table is not None and classes is not None and not isinstance(classes, targets.TopK):
                    classes = class_indices(classes, table)
                key = kind, tuple(classes.shape) if isinstance(classes, Tensor) else classes
            if key not in self._graphs:
                explanation = eager(inputs, target) if explanation is None else explanation
                try:
                    recorded = record(unchecked, eager, method.model, inputs, classes, explanation)
                    graph = Graph(torch.compile(recorded.run, **self.options), recorded.like)
                    found = _run(graph, inputs, classes)
                    _refuse_difference(found, explanation, "torch.compile gives other {} than an eager call")
                except CannotCompileError as error:
                    self._graphs[key] = str(error)
                    raise
                self._graphs[key] = graph
                while len(self._graphs) > MAX_GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                return found
            known = self._graphs[key]
        if isinstance(known, str):
            raise CannotCompileError(known)
        try:
            return _run(known, inputs, classes)
        except CannotCompileError as error:
            self._graphs[key] = str(error)
            raise


def _run(graph: Graph, inputs: Inputs, classes: Any) -> Explanation | None:
    try:
        return graph.explanation(*_given_to_graph(inputs, classes))
    except Exception as error:  # a compiler can fail in any way, such as for want of a C++ compiler
        raise CannotCompileError(f"torch.compile failed: {_short(error)}") from error


def _table_like(explanation: Explanation) -> Tensor | None:
    """A tensor (N, C) that has the shape and the device of the scores of all classes; None if there are no scores."""
    if explanation.quantity == "none":
        return None
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


@dataclass(frozen=True, eq=False)
class _Same:
    """An object that equals only itself."""

    it: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


def _is_other_target(target: Any) -> bool:
    """Whether a target is something else than class indices."""
    return isinstance(target, targets.Target) or callable(target)


def _named(value: Any, seen: tuple[Any, ...] = ()) -> Hashable:
    """What two targets must share to run the same graph; of a function, also the variables that it reads.

    Raises:
        CannotCompileError: a target reads an object whose changes would not be noticed.
    """
    if any(value is one for one in seen):  # a function that calls itself
        return None
    seen = (*seen, value)
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor) or _is_fixed(value):
        return _Same(value)
    if isinstance(value, (tuple, list, Mapping)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return type(value), *((key, _named(one, seen)) for key, one in pairs)
    if isinstance(value, FunctionType):
        read = (*_variables(value), value.__defaults__ or (), value.__kwdefaults__ or {}, value.__dict__)
        return value.__code__, *(_named(one, seen) for one in read)
    if isinstance(value, partial):
        return partial, *(_named(one, seen) for one in (value.func, value.args, value.keywords))
    if is_dataclass(value) and type(value).__module__.startswith("camlib."):  # methods of others may read anything
        return type(value), *(_named(getattr(value, one.name), seen) for one in fields(value))
    raise CannotCompileError(f"the target reads a {type(value).__name__}, whose changes would not be noticed")


def _is_fixed(value: Any) -> bool:
    """Whether a value is Python's or torch's own: a module, a class, a function, a data type."""
    owner = getattr(value, "__module__", None) or "builtins"
    if isinstance(value, ModuleType):
        owner = value.__name__
    elif isinstance(value, FunctionType):  # a wrapper takes over the __module__ of what it wraps
        owner = value.__globals__.get("__name__", "")
    is_code = isinstance(value, (ModuleType, type, FunctionType, BuiltinFunctionType))
    return isinstance(value, (torch.dtype, torch.device)) or (
        is_code and owner.partition(".")[0] in ("torch", "torchvision", "builtins", "math")
    )


def _variables(function: FunctionType) -> Iterator[Any]:
    """Yield what a function reads from outside."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    for name in sorted(names & function.__globals__.keys()):
        yield function.__globals__[name]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions inside it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _autocast_of(device: torch.device) -> Hashable:
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)


class Compilable(Protocol):
    """What a graph is recorded of."""

    @property
    def model(self) -> nn.Module:
        """The model."""


def _state_of(method: Compilable) -> Iterator[Any]:
    """Yield the objects that a graph depends on: the method's options, and the model's modules, tensors and hooks.

    A change of their numbers in place is no change of the graph.
    """
    yield from (value for name, value in vars(method).items() if name not in ("_found", "_compiled"))
    everywhere = vars(torch.nn.modules.module)
    for name, hooks in everywhere.items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield from hooks.values()
    for module in modules_of(method.model):
        yield module
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield from (tensor, tensor.dtype, sys.intern(str(tensor.device)))
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            yield from hooks.values()


def _short(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")
