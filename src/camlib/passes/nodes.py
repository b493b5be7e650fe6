"""The nodes of autograd's graph between a score and what it is differentiated by."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from camlib.passes.checkpoints import checkpointed


class Paths:
    """The paths through which outputs depend on tensors.

    Args:
        scores: scores, in the graph.
        outputs: tensors. The paths end at those that the scores are computed from; if there are none, at the scores.
        points: tensors that require gradients. The paths start there.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> outputs = x.exp() + torch.ones(3, requires_grad=True).sin()
        >>> [operation(node) for node in Paths(outputs.log().sum(1), [outputs], [x]).nodes]
        ['AccumulateGrad', 'Exp', 'Add']
    """

    def __init__(self, scores: Tensor, outputs: Iterable[Tensor], points: Iterable[Tensor]) -> None:
        start = [] if scores.grad_fn is None else [scores.grad_fn]
        of_outputs = {one.grad_fn for one in outputs if one.grad_fn is not None}
        ends = [node for node in _nodes_behind(start, without=of_outputs) if node in of_outputs] or start
        behind = _nodes_behind(ends)
        users: dict[Node, list[Node]] = {}
        for node in behind:
            for below in _inputs(node):
                users.setdefault(below, []).append(node)
        starts = (get_gradient_edge(point).node for point in points)
        self.nodes = dict.fromkeys(node for node in starts if node in behind)
        """All nodes on the paths, from the starts on."""
        waiting = list(self.nodes)
        while waiting:
            new = [user for user in users.get(waiting.pop(), ()) if user not in self.nodes]
            self.nodes.update(dict.fromkeys(new))
            waiting += new
        self.ends = [node for node in ends if node in self.nodes]
        """The nodes of the outputs."""

    def inputs(self, node: Node) -> dict[int, Node]:
        """Return the inputs of a node that are on the paths, by their number."""
        below = enumerate(node.next_functions)
        return {number: one for number, (one, _) in below if one is not None and one in self.nodes}


def operation(node: Node) -> str:
    """Return the name of the operation that a node differentiates, such as Gelu.

    Raises:
        CamlibRuntimeError: it is a checkpoint, which hides its operations.
    """
    name = _without_ending(node.name())
    if name == "CheckpointFunction":
        raise checkpointed()
    return name


@functools.cache
def _without_ending(name: str) -> str:
    """The operation in the full name of a node, such as torch::autograd::CopySlices or GeluBackward0."""
    return re.sub(r"Backward\d*$", "", name.rpartition("::")[2])


def _nodes_behind(roots: Sequence[Node], without: Collection[Node] = ()) -> dict[Node, None]:
    """The nodes of the graph from the roots down to its leaves, or to some others."""
    found = dict.fromkeys(roots)
    waiting = list(found)
    while waiting:
        node = waiting.pop()
        new = [] if node in without else [below for below in _inputs(node) if below not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return found


def _inputs(node: Node) -> list[Node]:
    return [below for below, _ in node.next_functions if below is not None]
