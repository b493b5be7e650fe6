"""Hooks on layers: in the passes of a thread or asynchronous task, they keep a layer's output and cut the graph there.

:class:`Cut` makes gradients cost only the tail: everything before the first layer runs as plain inference. The hook on
that layer detaches the output, makes it a leaf and turns autograd on, so autograd records only the tail.
:class:`Watch` reads only activations. It needs no autograd, so it also works for quantised networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.layers.names import call_of
from camlib.passes.checkpoints import checkpointed
from camlib.passes.tail_gradients import tail_gradients
from camlib.passes.undoing import undone

HALF_SCALE = 2.0**12
"""The factor by which gradients in float16 are scaled, since those of large maps would underflow."""
Hook = Callable[[nn.Module, Any, Any], Any]
"""``hook(module, args, output)``; its return value, unless None, replaces the output."""
CALL: ContextVar[object] = ContextVar("call", default=None)
"""The call of camlib that runs in this thread and task; None outside of all calls."""
_acting: ContextVar[tuple[object, ...]] = ContextVar("acting", default=())
"""The keys of the hooks that act in this thread and this asynchronous task."""
_ANY = object()


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Keep forward hooks on modules inside the block.

    A hook acts only in the thread and the asynchronous task that registered it, so that other forward passes are not
    affected. The grad mode, which a hook may change, is restored.

    Args:
        hooks: pairs of a module and its hook.

    Raises:
        CamlibTypeError: a module is scripted.

    Example:
        >>> import torch
        >>> from camlib.passes.hooks import hooked
        >>> layer = torch.nn.Linear(2, 3)
        >>> with hooked([(layer, lambda module, args, output: torch.zeros_like(output))]):
        ...     print(layer(torch.ones(1, 2)).any())
        tensor(False)
    """
    key, handles, grad_mode = object(), list[RemovableHandle](), torch.is_grad_enabled()

    def undo() -> None:
        _stop(key, handles)
        torch.set_grad_enabled(grad_mode)

    with undone(undo):
        _acting.set((*_acting.get(), key))
        for module, hook in hooks:
            if isinstance(module, torch.jit.ScriptModule):
                raise CamlibTypeError(
                    f"the model contains a ScriptModule, {module.original_name}, which takes no hooks; build it from "
                    "the original module, or give layer=, a layer outside the ScriptModule"
                )
            _place(module._forward_hooks, handles, _acting_here(key, hook, CALL.get()))
        yield


def _place(
    registry: dict[int, Callable[..., Any]],
    handles: list[RemovableHandle],
    hook: Callable[..., Any],
    flags: dict[int, bool] | None = None,
) -> None:
    """Add a hook to a module's registry. Its handle is kept before, so that an interruption loses no hook."""
    handle = RemovableHandle(registry, extra_dict=flags)
    handles.append(handle)
    if flags is not None:
        flags[handle.id] = True
    registry[handle.id] = hook


def _stop(key: object, handles: list[RemovableHandle]) -> None:
    """Remove hooks, which then no longer act."""
    while handles:
        handles[-1].remove()
        handles.pop()
    _acting.set(tuple(one for one in _acting.get() if one is not key))


def _acting_here(key: object, hook: Hook, call: object = _ANY) -> Hook:
    """Return a hook that acts in this thread and task alone, and not in calls of camlib that begin later."""

    def act(module: nn.Module, args: Any, more: Any) -> Any:
        acts = key in _acting.get() and (call is _ANY or call is CALL.get())
        return hook(module, args, more) if acts else None

    return act


@contextlib.contextmanager
def pre_hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Keep hooks, which act only in this thread and task, before the forward of modules inside the block.

    Args:
        hooks: pairs of a module and its ``hook(module, args, kwargs)``.

    Example:
        >>> import torch
        >>> from camlib.passes.hooks import pre_hooked
        >>> layer, shapes = torch.nn.Linear(2, 3), []
        >>> with pre_hooked([(layer, lambda module, args, kwargs: shapes.append(tuple(args[0].shape)))]):
        ...     _ = layer(torch.ones(1, 2))
        >>> shapes
        [(1, 2)]
    """
    key, handles = object(), list[RemovableHandle]()
    with undone(lambda: _stop(key, handles)):
        _acting.set((*_acting.get(), key))
        for module, hook in hooks:
            acting = _acting_here(key, hook)
            _place(module._forward_pre_hooks, handles, acting, module._forward_pre_hooks_with_kwargs)
        yield


def tap(output: Any, layer: str) -> tuple[Tensor, Any]:
    """Cut the graph at a module's output, or continue the graph if an earlier layer was already cut.

    Args:
        output: what the module returned: a floating-point tensor, or a tuple or list that begins with one.
        layer: the module's name, for errors.

    Returns:
        The tensor to differentiate with respect to, and what to pass to the rest of the network: a clone,
        because the next layer may work in place.
    """
    tensor = first_tensor(output, layer)
    if not tensor.is_floating_point():
        raise CamlibTypeError(
            f"layer {layer!r} returns a {tensor.dtype} tensor, which has no gradient; explain the original "
            "floating-point model, or use a method that needs only activations, such as camlib.EigenCAM"
        )
    if torch.is_inference_mode_enabled():
        raise CamlibRuntimeError(
            f"layer {layer!r} ran in torch.inference_mode(), which does not allow autograd; use torch.no_grad(). "
            "If the model itself switches inference_mode on, explain the network inside it, such as model.model"
        )
    point = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)
    return point, with_first(output, point.clone())


def first_tensor(output: Any, layer: str) -> Tensor:
    """The tensor that a module returned, or the first item of the sequence that it returned."""
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise CamlibTypeError(
            f"layer {layer!r} returns a {type(tensor).__name__}; a layer must return a tensor, or a tuple that "
            "begins with one. camlib.list_layers(model, inputs) shows what each layer returns"
        )
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """The output of a module with its (first) tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    rest = (tensor, *output[1:])
    if isinstance(output, list):
        return list(rest)
    return type(output)(*rest) if hasattr(output, "_fields") else rest


@dataclass
class _Point:
    """Where one layer was cut."""

    tensor: Tensor
    version: int


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, which do not count (we keep private copies)."""
    return 0 if tensor.is_inference() else tensor._version


class Watch:
    """The outputs of layers in one forward pass, recorded by hooks and read afterwards.

    Args:
        modules: the layers by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._points: dict[str, _Point] = {}

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return the layers with the hooks that record them, for :func:`camlib.passes.hooks.hooked`."""
        return [(module, self._hook(name)) for name, module in self._modules.items()]

    def _hook(self, name: str) -> Hook:
        calls, wanted = count(1), call_of(name)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            call = next(calls)
            if wanted not in (None, call):
                return None
            if name in self._points:
                raise CamlibRuntimeError(
                    f"layer {name!r} ({type(module).__name__}) is called more than once in a forward pass, so it has "
                    f"no single feature map; name a call, layer='{name}#1' or '{name}#2', or choose a layer that is "
                    "called once, such as the block that contains it"
                )
            point, passed_on = self._take(output, name)
            self._points[name] = _Point(point, _version(point))
            return passed_on

        return hook

    def _take(self, output: Any, name: str) -> tuple[Tensor, Any]:
        """The tensor to keep from a module's output, and the output to pass on, cloned against in-place operations."""
        tensor = first_tensor(output, name)
        return tensor.detach(), with_first(output, tensor.clone())

    def tensors(self) -> dict[str, Tensor]:
        """Return each layer's output by name, as the layer returned it, in the order in which the layers were given.

        Raises:
            CamlibRuntimeError: a layer was not reached, or something changed its output in place.
        """
        tensors = {}
        for name, module in self._modules.items():
            if name not in self._points:
                raise CamlibRuntimeError(f"layer {name!r} was not reached: {_why_not_reached(module, name)}")
            point = self._points[name]
            if _version(point.tensor) != point.version:
                raise CamlibRuntimeError(
                    f"the output of layer {name!r} was changed in place after the layer returned it; choose the layer "
                    "before or after it"
                )
            tensors[name] = point.tensor
        return tensors

    def activations(self) -> dict[str, Tensor]:
        """Return :meth:`tensors`, detached and dequantised."""
        return {name: _dequantised(tensor) for name, tensor in self.tensors().items()}


def _dequantised(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor.detach()


class Cut(Watch):
    """The layers of one forward pass, which is cut there to compute gradients of its tail.

    Args:
        modules: the layers by name.
        watched: the names of layers that are only watched, not cut.
    """

    def __init__(self, modules: Mapping[str, nn.Module], watched: Collection[str] = ()) -> None:
        super().__init__(modules)
        self.cut = [name for name in modules if name not in watched]
        """The layers that are cut, in the order in which they were given."""

    def _take(self, output: Any, name: str) -> tuple[Tensor, Any]:
        return tap(output, name) if name in self.cut else super()._take(output, name)

    def gradients(self, scores: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
        """Differentiate the scores with respect to the output of each cut layer.

        Args:
            scores: (N,), or (N, K) for K scores per image; or their sum, a single number.
            retain_graph: whether to keep the graph for another call.

        Returns:
            For each layer a tensor like its activations, with a class axis after the first for scores (N, K).

        Raises:
            CamlibRuntimeError: the scores do not depend on one of the layers.
        """
        self.tensors()  # every layer was reached
        if not isinstance(scores, Tensor) or scores.dim() > 2:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CamlibValueError(f"scores must be (N,), (N, K) or a single number, got {shape}; pick a class first")
        points = [self._points[name].tensor for name in self.cut]
        if not scores.requires_grad:
            raise _does_not_lead(self.cut[0])
        half = any(point.dtype == torch.float16 for point in points)
        try:
            found = tail_gradients(scores, points, HALF_SCALE if half else 1.0, retain_graph or half)
        except RuntimeError as error:
            if "checkpoint" in str(error):
                raise checkpointed() from error
            raise
        if half and not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
            found = tail_gradients(scores, points, 1.0, retain_graph)  # the scaled gradients overflowed
        for name, gradient in zip(self.cut, found, strict=True):
            if gradient is None:
                raise _does_not_lead(name)
        return list(found)

    def in_graph(self, scores: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Differentiate the scores and keep the graph, so that the gradient can be differentiated too.

        Args:
            scores: (N,), one per image; or their sum.

        Returns:
            For each cut layer the activations A and the gradient G, both with their graph.

        Raises:
            CamlibRuntimeError: the scores do not depend on one of the layers, or the pass ran without autograd.
        """
        self.tensors()  # every layer was reached
        points = {name: self._points[name].tensor for name in self.cut}
        for name, point in points.items():
            if point.is_leaf:
                raise CamlibRuntimeError(
                    f"layer {name!r} has no graph: the forward pass ran without autograd, or nothing before the layer "
                    "can be trained; run it without torch.no_grad(), on inputs or parameters that require a gradient"
                )
        if not isinstance(scores, Tensor) or scores.dim() > 1:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CamlibValueError(f"scores must be (N,) or a single number, got {shape}; pick a class first")
        if not scores.requires_grad:
            raise _does_not_lead(self.cut[0])
        with torch.enable_grad():
            found = torch.autograd.grad(scores.sum(), list(points.values()), create_graph=True, allow_unused=True)
        for name, gradient in zip(points, found, strict=True):
            if gradient is None:
                raise _does_not_lead(name)
        return list(zip(points.values(), found, strict=True))

    def second_order(self, scores: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Differentiate the scores twice: the gradient G, and the product H A of the Hessian and the activations.

        Args:
            scores: (N,), one per image.

        Returns:
            For each layer (G, H A), both tensors like its activations; H A is zero if the tail is piecewise linear.
        """
        self.tensors()  # every layer was reached
        if not scores.requires_grad:
            raise _does_not_lead(self.cut[0])
        points = {name: self._points[name].tensor for name in self.cut}
        with torch.enable_grad():
            found = torch.autograd.grad(scores.sum(), list(points.values()), create_graph=True, allow_unused=True)
        pairs = []
        for (name, point), gradient in zip(points.items(), found, strict=True):
            if gradient is None:
                raise _does_not_lead(name)
            product = None
            if gradient.requires_grad:
                (product,) = torch.autograd.grad(gradient, point, point.detach(), retain_graph=True, allow_unused=True)
            pairs.append((gradient.detach(), torch.zeros_like(point) if product is None else product))
        return pairs


def _does_not_lead(name: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"the output of layer {name!r} does not lead to the score: it is on a branch that the score does not use, it "
        "comes after the score, or the model detaches it, runs the tail under no_grad, or runs the layer in a "
        "checkpoint with use_reentrant=True; choose another layer or target"
    )


def _why_not_reached(module: nn.Module, name: str) -> str:
    if (call_of(name) or 1) > 1:
        return f"the forward pass does not call {name.partition('#')[0]!r} so often"
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return f"a {type(module).__name__} only holds modules and is never called; choose one of its items"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, whose submodules call no hooks; explain the model before scripting"
    return (
        "the forward pass does not call it (it may be a head that is used only in training, a module whose weights are "
        "read without a call, or part of a compiled submodule); choose another layer"
    )
