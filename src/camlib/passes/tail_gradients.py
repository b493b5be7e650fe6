"""Gradients of scores in the tail of a network; for K classes in batched backward passes, not in K of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

CLASSES_AT_ONCE = 16
"""The most classes in one batched backward pass, which limits its memory; of pooled features, per cell of the grid."""


def tail_gradients(scores: Tensor, points: list[Tensor], scale: float, retain_graph: bool) -> Sequence[Any]:
    """Differentiate scores with respect to the layers where the graph was cut.

    Args:
        scores: (N,) or (N, K).
        points: the layers' outputs, with N rows each.
        scale: a factor of the gradients while they are computed, which are then returned without it, in float32.
        retain_graph: whether to keep the graph of scores (N,); that of scores (N, K) is kept.

    Returns:
        For each point a tensor like it, with a class axis after the first for scores (N, K); None where the scores do
        not depend on it. A gradient that is constant over the grid is a view of one cell, which takes no more memory.
    """
    if scores.dim() < 2:
        start = torch.full_like(scores, scale)
        found: Sequence[Any] = torch.autograd.grad(scores, points, start, retain_graph=retain_graph, allow_unused=True)
    else:
        found = _gradients_per_class(scores, points, scale)
    return found if scale == 1 else [one if one is None else one.float() / scale for one in found]


def of_each_class(
    maps: Callable[[Tensor, Tensor], Tensor], activations: Tensor, gradients: Tensor, several: bool
) -> Tensor:
    """Apply a function of activations and gradients, to each class if there are several.

    camlib's own functions are applied to several classes at once, by ``torch.vmap``; others to one by one.

    Args:
        maps: the function, to maps (N, ...).
        activations: (N, C, ...).
        gradients: (N, C, ...), or (N, K, C, ...).
        several: whether there is a class axis.

    Returns:
        (N, ...), or (N, K, ...).
    """
    if not several:
        return maps(activations, gradients)
    if getattr(maps, "__module__", "").startswith("camlib."):
        return torch.vmap(lambda one: maps(activations, one), 1, 1, chunk_size=CLASSES_AT_ONCE)(gradients)
    return torch.stack([maps(activations, one.contiguous()) for one in gradients.unbind(1)], 1)


def _gradients_per_class(scores: Tensor, points: list[Tensor], scale: float) -> list[Any]:
    """K gradients from one graph."""
    rows, classes = scores.shape
    one_hot = scale * torch.eye(classes, dtype=scores.dtype, device=scores.device)[:, None, :].expand(-1, rows, -1)
    pooling = _pooling(scores, points[0]) if len(points) == 1 else None
    found = _vjps(scores, points, one_hot) if pooling is None else [pooling.gradient(scores, points[0], one_hot)]
    return [gradient if gradient is None else gradient.transpose(0, 1) for gradient in found]


def _vjps(outputs: Any, inputs: Sequence[Any], cotangents: Tensor, at_once: int = CLASSES_AT_ONCE) -> list[Any]:
    """Vector-Jacobian products with each of ``cotangents`` (K, ...), in batched passes of ``at_once`` of them."""
    chunks = [_batched_vjps(outputs, inputs, part) for part in cotangents.split(at_once)]
    if len(chunks) == 1:
        return list(chunks[0])
    return [None if parts[0] is None else torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _batched_vjps(outputs: Any, inputs: Sequence[Any], cotangents: Tensor) -> Sequence[Any]:
    """Vector-Jacobian products with each of ``cotangents``, in one batched pass if autograd supports it."""
    try:
        return torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation of the tail has no batching rule: one backward pass per class
        each = [
            torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True)
            for cotangent in cotangents
        ]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]


class _Pooling(NamedTuple):
    """A mean over the whole grid, through which all paths from the scores to the layer go."""

    node: Node
    """The mean, in the graph."""
    dims: tuple[int, ...]
    """The axes of its input that it averages."""
    sizes: tuple[int, ...]
    """The shape of its input."""
    keeps_dims: bool

    @property
    def cells(self) -> int:
        """The number of cells that it averages."""
        return math.prod(self.sizes[axis] for axis in self.dims)

    def gradient(self, scores: Tensor, point: Tensor, cotangents: Tensor) -> Tensor | None:
        """Return the gradients (K, N, ...) with respect to the layer, for cotangents (K, N, K) of the scores.

        Only the head is differentiated for each class. The mean hands the same gradient to every cell.
        """
        pooled: Tensor | None
        (pooled,) = _vjps(scores, [GradientEdge(self.node, 0)], cotangents, CLASSES_AT_ONCE * self.cells)
        if pooled is None:
            return None
        if not self.keeps_dims:
            for axis in sorted(self.dims):
                pooled = pooled.unsqueeze(axis + 1)
        before, number = self.node.next_functions[0]
        assert before is not None  # or no path would lead to the layer
        one_cell = (pooled / self.cells).to(before._input_metadata[number].dtype)  # the mean may have another one
        spread = one_cell.expand(len(cotangents), *self.sizes)
        if _is_copy_of(before, point):
            return spread
        found: Tensor | None
        (found,) = _vjps(GradientEdge(before, number), [point], spread)
        return found


def _pooling(scores: Tensor, point: Tensor) -> _Pooling | None:
    """Find the mean over the grid that the scores read the layer through; None if there is another path, or no mean."""
    if scores.grad_fn is None or not point.is_leaf:
        return None
    means = [node for node in _nodes(scores.grad_fn) if node.name() == "MeanBackward1"]
    for node in means:
        sizes = tuple(getattr(node, "_saved_self_sym_sizes", ()))
        dims = tuple(sorted(_signed(dim) % len(sizes) for dim in getattr(node, "_saved_dim", None) or () if sizes))
        whole_grid = len(dims) == point.dim() - 2 == len(sizes) - 2
        if whole_grid and not any(_leads_to(one, point) for one in _nodes(scores.grad_fn, without=node)):
            return _Pooling(node, dims, sizes, bool(getattr(node, "_saved_keepdim", False)))
    return None


def _signed(dim: int) -> int:
    """An axis as torch was given it; the graph shows it as an unsigned number."""
    return dim - 2**64 if dim >= 2**63 else dim


def _nodes(start: Node, without: Node | None = None) -> Iterator[Node]:
    """Yield each node of the graph once, except one and what is only reached through it."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following is not without and following not in seen:
                seen.add(following)
                waiting.append(following)


def _leads_to(node: Node, leaf: Tensor) -> bool:
    """Whether a node hands its gradient to a leaf."""
    return getattr(node, "variable", None) is leaf


def _is_copy_of(node: Node, leaf: Tensor) -> bool:
    """Whether a node is the copy of a leaf that the rest of the network got."""
    source = node.next_functions[0][0] if node.name() == "CloneBackward0" else None
    return source is not None and _leads_to(source, leaf)
