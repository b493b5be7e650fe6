"""One forward pass, cut at the layers: their activations, and the gradient of a score with respect to them.

Everything below the first layer runs as plain inference. The hook on it detaches the output, makes it a leaf
and turns autograd on, so that only the tail is recorded and the gradient costs the tail alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.isolation import unwrap
from camlib.layers import resolve_layers

CLASSES_AT_ONCE = 16
"""Gradients of at most this many classes are in memory at a time; each is as large as the activations."""


def tap(output: Any, layer: str) -> tuple[Tensor, Any]:
    """Cut the graph at a module's output, or join it where an earlier layer has been cut already.

    Args:
        output: what the module returned: a floating tensor, or a tuple or list that begins with one.
        layer: the module's name, for errors.

    Returns:
        The tensor to differentiate with respect to, and what to hand on to the rest of the network: a clone,
        because the next layer may work in place.
    """
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = f"a {tensor.dtype} tensor" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise CamlibTypeError(
            f"layer {layer!r} returns {what}; a layer must return a floating-point tensor, or a tuple that "
            "begins with one. camlib.list_layers(model, inputs) shows what each layer returns"
        )
    if torch.is_inference_mode_enabled():
        raise CamlibRuntimeError(
            f"layer {layer!r} ran in torch.inference_mode(), where autograd is off for good; use torch.no_grad()"
        )
    point = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)
    handed_on = point.clone()
    if tensor is output:
        return point, handed_on
    rest = (handed_on, *output[1:])
    if isinstance(output, list):
        return point, list(rest)
    return point, type(output)(*rest) if hasattr(output, "_fields") else rest


@dataclass
class _Point:
    """Where one layer was cut."""

    tensor: Tensor
    version: int


class Cut:
    """The layers of one forward pass: filled by their hooks, read afterwards.

    Args:
        modules: the layers by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._points: dict[str, _Point] = {}
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Keep the hooks on the layers; the grad mode that they switch on is restored."""
        grad_mode = torch.is_grad_enabled()
        handles = []
        try:
            for name, module in self._modules.items():
                handles.append(module.register_forward_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            torch.set_grad_enabled(grad_mode)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:  # somebody else's forward pass
                return None
            if name in self._points:
                raise CamlibRuntimeError(
                    f"layer {name!r} ({type(module).__name__}) is called more than once in a forward pass, so "
                    "it has no one feature map; choose a layer that is called once, such as the block around it"
                )
            point, handed_on = tap(output, name)
            self._points[name] = _Point(point, point._version)
            return handed_on

        return hook

    def activations(self) -> list[Tensor]:
        """Return each layer's output, detached, in the order the layers were given.

        Raises:
            CamlibRuntimeError: a layer was not reached, or something changed its output in place.
        """
        tensors = []
        for name, module in self._modules.items():
            if name not in self._points:
                raise CamlibRuntimeError(f"layer {name!r} was not reached: {_why_not_reached(module)}")
            point = self._points[name]
            if point.tensor._version != point.version:
                raise CamlibRuntimeError(
                    f"the output of layer {name!r} was changed in place after the layer had returned it; "
                    "choose the layer before or after it"
                )
            tensors.append(point.tensor.detach())
        return tensors

    def gradients(self, scores: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
        """Differentiate the scores with respect to each layer's output.

        Args:
            scores: (N,), or (N, K) for K scores of each image.
            retain_graph: keep the graph for another call.

        Returns:
            Per layer a tensor like its activations, with a class axis after the first for scores (N, K).

        Raises:
            CamlibRuntimeError: the scores do not depend on one of the layers.
        """
        self.activations()  # every layer was reached
        names, points = list(self._points), [point.tensor for point in self._points.values()]
        if not scores.requires_grad:
            raise _does_not_lead(next(iter(self._modules)))
        if scores.dim() == 1:
            ones = torch.ones_like(scores)
            found: Sequence[Any] = torch.autograd.grad(
                scores, points, ones, retain_graph=retain_graph, allow_unused=True
            )
        else:
            found = _gradients_per_class(scores, points)
        by_name = dict(zip(names, found, strict=True))
        for name, gradient in by_name.items():
            if gradient is None:
                raise _does_not_lead(name)
        return [by_name[name] for name in self._modules]


def _gradients_per_class(scores: Tensor, points: list[Tensor]) -> list[Any]:
    """K gradients from one graph, in chunks of classes: each a batched backward pass."""
    rows, classes = scores.shape
    one_hot = torch.eye(classes, dtype=scores.dtype, device=scores.device)[:, None, :].expand(-1, rows, -1)
    chunks = [_vjps(scores, points, cotangents) for cotangents in torch.split(one_hot, CLASSES_AT_ONCE)]
    joined = [
        parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)
    ]
    return [gradient if gradient is None else gradient.transpose(0, 1) for gradient in joined]


def _vjps(scores: Tensor, points: list[Tensor], cotangents: Tensor) -> Sequence[Any]:
    """Vector-Jacobian products with each of ``cotangents`` (K, N, K): one batched pass where autograd can."""
    try:
        return torch.autograd.grad(
            scores, points, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation of the tail has no batching rule: one backward pass for each class
        each = [
            torch.autograd.grad(scores, points, cotangent, retain_graph=True, allow_unused=True)
            for cotangent in cotangents
        ]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]


def _does_not_lead(name: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"the output of layer {name!r} does not lead to the score: it lies on a branch that the score does not "
        "use, behind the score, or the model detaches it or runs the rest under no_grad; choose another layer "
        "or target"
    )


def _why_not_reached(module: nn.Module) -> str:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return f"a {type(module).__name__} only holds modules and is never called; choose one of its items"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule, whose inner modules call no hooks; explain the model before scripting"
    return (
        "the forward pass does not call it (a head that is used in training only, a module that is read "
        "instead of called, or one inside a compiled submodule); choose another layer"
    )


class Captured:
    """One layer of the forward pass that ran inside :func:`capture`."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    @property
    def activations(self) -> Tensor:
        """The layer's output, detached."""
        return self._cut.activations()[0]

    def gradients(self, scores: Tensor) -> Tensor:
        """Differentiate ``scores``, (N,) or (N, K), with respect to the layer's output.

        The graph is kept, so that a training step can still call ``backward``.

        Returns:
            A tensor like ``activations``; for scores (N, K), with a class axis after the first.
        """
        return self._cut.gradients(scores, retain_graph=True)[0]


class CapturedLayers:
    """Several layers of the forward pass that ran inside :func:`capture`, in the order they were given."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    @property
    def activations(self) -> list[Tensor]:
        """Each layer's output, detached."""
        return self._cut.activations()

    def gradients(self, scores: Tensor) -> list[Tensor]:
        """Differentiate ``scores`` with respect to each layer's output, as in :meth:`Captured.gradients`."""
        return self._cut.gradients(scores, retain_graph=True)


@overload
def capture(model: nn.Module, layer: list[str | nn.Module]) -> contextlib.AbstractContextManager[CapturedLayers]: ...
@overload
def capture(model: nn.Module, layer: str | nn.Module) -> contextlib.AbstractContextManager[Captured]: ...
def capture(model: nn.Module, layer: Any) -> contextlib.AbstractContextManager[Captured | CapturedLayers]:
    """Capture layers of your own forward pass: in training loops, in serving, in methods of your own.

    Under ``torch.no_grad()`` the graph is cut at the first of the layers, and the pass costs what inference
    costs. With autograd on, the layer stays in your graph and a training step works as ever. The model's
    training mode is yours: nothing is switched.

    Args:
        model: the model whose forward pass will run inside the ``with`` block, in this thread.
        layer: a dotted name or a module; or a list of those.

    Returns:
        A context that gives an object with ``activations`` and ``gradients(scores)``: tensors for one layer,
        lists for several.

    Raises:
        CamlibValueError: the model has no such layer.
        CamlibRuntimeError: on reading, if the layer was not reached or does not lead to the scores.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> with torch.no_grad(), camlib.capture(model, "layer4") as captured:
        ...     outputs = model(torch.rand(2, 3, 64, 64))
        >>> captured.activations.shape
        torch.Size([2, 512, 2, 2])
        >>> captured.gradients(outputs[:, 1]).shape
        torch.Size([2, 512, 2, 2])
    """
    cut = Cut(resolve_layers(unwrap(model), layer))
    return _hooked(cut, CapturedLayers(cut) if isinstance(layer, (list, tuple)) else Captured(cut))


@contextlib.contextmanager
def _hooked(cut: Cut, captured: Captured | CapturedLayers) -> Iterator[Captured | CapturedLayers]:
    with cut.hooked():
        yield captured
