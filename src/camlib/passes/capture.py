"""One forward pass: the activations of its layers, and the gradient of a score with respect to them.

To :class:`Cut` is to pay for the gradient of the tail alone: everything below the first layer runs as plain inference.
The hook on it detaches the output, makes it a leaf and turns autograd on, so that only the tail is recorded.
To :class:`Watch` is to look at activations only; no autograd is needed, and quantised networks can be watched too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.layers.names import resolve_layers
from camlib.passes.model import unwrap

CLASSES_AT_ONCE = 16
"""Gradients of at most this many classes are computed at a time: what a batched backward pass holds on the way."""
HALF_SCALE = 2.0**12
"""Gradients in float16 are computed this much larger, since those of large maps fall below its smallest number."""


def tap(output: Any, layer: str) -> tuple[Tensor, Any]:
    """Cut the graph at a module's output, or join it where an earlier layer has been cut already.

    Args:
        output: what the module returned: a floating tensor, or a tuple or list that begins with one.
        layer: the module's name, for errors.

    Returns:
        The tensor to differentiate with respect to, and what to hand on to the rest of the network: a clone,
        because the next layer may work in place.
    """
    tensor = first_tensor(output, layer)
    if not tensor.is_floating_point():
        raise CamlibTypeError(
            f"layer {layer!r} returns a {tensor.dtype} tensor, which has no gradient; explain the floating-point model "
            "that it was made from, or use a method that needs activations alone, such as camlib.EigenCAM"
        )
    if torch.is_inference_mode_enabled():
        raise CamlibRuntimeError(
            f"layer {layer!r} ran in torch.inference_mode(), where autograd is off for good; use torch.no_grad()"
        )
    point = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)
    return point, with_first(output, point.clone())


def first_tensor(output: Any, layer: str) -> Tensor:
    """The tensor that a module returned, alone or first of a sequence."""
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise CamlibTypeError(
            f"layer {layer!r} returns a {type(tensor).__name__}; a layer must return a tensor, or a tuple that "
            "begins with one. camlib.list_layers(model, inputs) shows what each layer returns"
        )
    return tensor


def with_first(output: Any, tensor: Tensor) -> Any:
    """What a module returned, with another (first) tensor."""
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
    """How often a tensor has been changed in place; inference tensors do not count, and what we keep is ours alone."""
    return 0 if tensor.is_inference() else tensor._version


class Watch:
    """The layers of one forward pass, looked at: filled by their hooks, read afterwards.

    Args:
        modules: the layers by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._points: dict[str, _Point] = {}
        self._thread = threading.get_ident()

    @property
    def names(self) -> list[str]:
        """The layers, in the order they were given."""
        return list(self._modules)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Keep the hooks on the layers; the grad mode that they may switch on is restored."""
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
            point, handed_on = self._take(output, name)
            self._points[name] = _Point(point, _version(point))
            return handed_on

        return hook

    def _take(self, output: Any, name: str) -> tuple[Tensor, Any]:
        """The tensor to keep of what a module returned, and what to hand on: a clone, against work in place."""
        tensor = first_tensor(output, name)
        return tensor.detach(), with_first(output, tensor.clone())

    def activations(self) -> list[Tensor]:
        """Return each layer's output, detached, in the order the layers were given; what is quantised, dequantised.

        Raises:
            CamlibRuntimeError: a layer was not reached, or something changed its output in place.
        """
        tensors = []
        for name, module in self._modules.items():
            if name not in self._points:
                raise CamlibRuntimeError(f"layer {name!r} was not reached: {_why_not_reached(module)}")
            point = self._points[name]
            if _version(point.tensor) != point.version:
                raise CamlibRuntimeError(
                    f"the output of layer {name!r} was changed in place after the layer had returned it; "
                    "choose the layer before or after it"
                )
            tensors.append(point.tensor.dequantize() if point.tensor.is_quantized else point.tensor.detach())
        return tensors


class Cut(Watch):
    """The layers of one forward pass, which is cut at them for the gradients of its tail.

    Args:
        modules: the layers by name.
        watched: those of them that are only looked at, and not cut.
    """

    def __init__(self, modules: Mapping[str, nn.Module], watched: Collection[str] = ()) -> None:
        super().__init__(modules)
        self.cut = [name for name in modules if name not in watched]
        """The layers that are cut, in the order they were given."""

    def _take(self, output: Any, name: str) -> tuple[Tensor, Any]:
        return tap(output, name) if name in self.cut else super()._take(output, name)

    def gradients(self, scores: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
        """Differentiate the scores with respect to the output of each layer that is cut.

        Args:
            scores: (N,), or (N, K) for K scores of each image; a single number, their sum, will do.
            retain_graph: keep the graph for another call.

        Returns:
            Per layer a tensor like its activations, with a class axis after the first for scores (N, K).

        Raises:
            CamlibRuntimeError: the scores do not depend on one of the layers.
        """
        self.activations()  # every layer was reached
        if not isinstance(scores, Tensor) or scores.dim() > 2:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CamlibValueError(f"scores must be (N,), (N, K) or a single number, got {shape}; pick a class first")
        points = [self._points[name].tensor for name in self.cut]
        if not scores.requires_grad:
            raise _does_not_lead(self.cut[0])
        half = any(point.dtype == torch.float16 for point in points)
        found = _tail_gradients(scores, points, HALF_SCALE if half else 1.0, retain_graph or half)
        if half and not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
            found = _tail_gradients(scores, points, 1.0, retain_graph)  # too large for that
        for name, gradient in zip(self.cut, found, strict=True):
            if gradient is None:
                raise _does_not_lead(name)
        return list(found)

    def second_order(self, scores: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Differentiate the scores twice: the gradient G, and the Hessian's product H A with the activations.

        Args:
            scores: (N,), each of its own image.

        Returns:
            Per layer (G, H A), each a tensor like its activations; H A is zero where the tail is piecewise linear.
        """
        self.activations()  # every layer was reached
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


def _tail_gradients(scores: Tensor, points: list[Tensor], scale: float, retain_graph: bool) -> Sequence[Any]:
    """Gradients of scores (N,) or (N, K), computed ``scale`` times as large; where that is not 1, in float32."""
    if scores.dim() < 2:
        start = torch.full_like(scores, scale)
        found: Sequence[Any] = torch.autograd.grad(scores, points, start, retain_graph=retain_graph, allow_unused=True)
    else:
        found = _gradients_per_class(scores, points, scale)
    return found if scale == 1 else [one if one is None else one.float() / scale for one in found]


def _gradients_per_class(scores: Tensor, points: list[Tensor], scale: float) -> list[Any]:
    """K gradients from one graph, in chunks of classes: each a batched backward pass."""
    rows, classes = scores.shape
    one_hot = scale * torch.eye(classes, dtype=scores.dtype, device=scores.device)[:, None, :].expand(-1, rows, -1)
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
