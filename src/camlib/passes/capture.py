"""Capture layers of a forward pass that the user runs: their activations, and gradients with respect to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError
from camlib.layers.names import resolve_layers
from camlib.passes.hooks import Cut, hooked
from camlib.passes.network import modules_of, unwrap
from camlib.passes.recurrent import differentiable


class Captured:
    """One layer of the forward pass that ran inside :func:`camlib.capture`."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    @property
    def activations(self) -> Tensor:
        """The layer's output, detached."""
        return next(iter(self._cut.activations().values()))

    def gradients(self, scores: Tensor) -> Tensor:
        """Differentiate ``scores``, (N,) or (N, K), with respect to the layer's output.

        The graph is kept, so a training step can still call ``backward``.

        Returns:
            A tensor like ``activations``; for scores (N, K), with a class axis after the first.
        """
        return _gradients(self._cut, scores)[0]

    def in_graph(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations and gradients that are still attached to the graph, for a loss on the map itself.

        The forward pass must have run with autograd on. The graph is kept. The loss's backward pass runs through the
        tail twice.

        Args:
            scores: (N,), one per image; or their sum.

        Example:
            >>> import camlib, torch, torchvision
            >>> model = torchvision.models.resnet18(num_classes=4)
            >>> with camlib.capture(model, "layer4") as captured:
            ...     outputs = model(torch.rand(2, 3, 64, 64))
            >>> maps = camlib.functional.grad_cam(*captured.in_graph(outputs[:, 1])).relu()
            >>> maps.mean().backward()  # add it to the loss, to keep maps small
        """
        return self._cut.in_graph(scores)[0]


class CapturedLayers:
    """Several layers of the forward pass that ran inside :func:`camlib.capture`, in the order they were given."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    @property
    def activations(self) -> list[Tensor]:
        """Each layer's output, detached."""
        return list(self._cut.activations().values())

    def gradients(self, scores: Tensor) -> list[Tensor]:
        """Differentiate ``scores`` with respect to each layer's output, like :meth:`Captured.gradients`."""
        return _gradients(self._cut, scores)

    def in_graph(self, scores: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's activations and gradients, still attached to the graph: see :meth:`Captured.in_graph`."""
        return self._cut.in_graph(scores)


def _gradients(cut: Cut, scores: Tensor) -> list[Tensor]:
    """Return the gradient at each layer, as tensors that share no memory.

    Raises:
        CamlibRuntimeError: the scores were taken from the outputs without autograd.
    """
    if isinstance(scores, Tensor) and scores.grad_fn is None and not torch.is_grad_enabled():
        raise CamlibRuntimeError(
            "the scores have no graph, since they were taken from the outputs under torch.no_grad(); take them under "
            "torch.enable_grad(), or behind the no_grad block"
        )
    return [gradient.contiguous() for gradient in cut.gradients(scores, retain_graph=True)]


@overload
def capture(model: nn.Module, layer: list[str | nn.Module]) -> contextlib.AbstractContextManager[CapturedLayers]: ...
@overload
def capture(model: nn.Module, layer: str | nn.Module) -> contextlib.AbstractContextManager[Captured]: ...
def capture(model: nn.Module, layer: Any) -> contextlib.AbstractContextManager[Captured | CapturedLayers]:
    """Capture layers of your own forward pass: in training loops, servers, or custom methods.

    Under ``torch.no_grad()`` the graph is cut at the first of the layers, so the pass costs as much as inference.
    With autograd on, the layer stays in your graph and a training step works as usual. The model's training mode does
    not change.

    Args:
        model: the model whose forward pass will run inside the ``with`` block, in this thread and asynchronous task.
            Calls of camlib inside the block do not count.
        layer: a dotted name or a module; or a list of those.

    Returns:
        A context whose value has ``activations`` and ``gradients(scores)``: tensors for one layer, lists for several.

    Raises:
        CamlibValueError: the model has no such layer.
        CamlibRuntimeError: when read, if the layer was not reached or does not lead to the scores.

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
    module = unwrap(model)
    cut = Cut(resolve_layers(module, layer))
    recurrent = () if module.training else modules_of(module)
    return _hooked(cut, recurrent, CapturedLayers(cut) if isinstance(layer, (list, tuple)) else Captured(cut))


@contextlib.contextmanager
def _hooked(
    cut: Cut, modules: Iterable[nn.Module], captured: Captured | CapturedLayers
) -> Iterator[Captured | CapturedLayers]:
    with differentiable(modules), hooked(cut.hooks()):
        yield captured
