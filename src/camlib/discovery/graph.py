"""The connections of a network: the autograd graph of one pass, from the first feature map to the outputs.

Operations are recognised by the names of their autograd nodes, independently of values and modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from camlib.discovery.positions import Place
from camlib.layers.layouts import Layout, Tokens

# Patterns for names of autograd nodes; re compiles and caches them at their first use, not on import.
_LAYOUT_OPS = r"Clone|View|Reshape|Permute|Transpose|[Ss]queeze|Alias|ToCopy|^TBackward|Movedim"
_POOLING_OPS = r"MaxPool|AvgPool|^Mean|^SumBackward|^Amax"
_PARAMETRIC_OPS = r"Convolution|Addmm|^Mm|Bmm|Linear|Baddbmm|^Mv|Addmv|^Dot|Einsum"
_ACTIVATION_OPS = (
    r"Relu|Hardtanh|Hardswish|Hardsigmoid|Sigmoid|Silu|Gelu|Elu|Tanh|Softplus|Clamp|Dropout|Mish|Threshold"
)
_LAYOUT_OR_ACTIVATION_OPS = f"{_LAYOUT_OPS}|{_ACTIVATION_OPS}"
_RESIZING_OPS = r"Upsample"
_ATTENTION_OPS = r"Bmm|.*ScaledDotProduct"
_NORM_OPS = r"BatchNorm|LayerNorm|GroupNorm"


@dataclass(frozen=True, eq=False)
class Tapped:
    """A module's output in the discovery pass."""

    order: int
    name: str
    module: nn.Module
    tensor: Tensor  # the tapped tensor
    node: Any  # the autograd node of its clone, which is unique to the record
    place: Place  # where its elements come from


class Records:
    """The outputs of all modules in the discovery pass.

    Args:
        records: in order of computation.
    """

    def __init__(self, records: Sequence[Tapped]) -> None:
        self.by_node = {record.node: record for record in records}
        """Each by the autograd node of its clone."""
        self.by_name: dict[str, list[Tapped]] = {}
        """Those of each module, one for each call."""
        for record in records:
            self.by_name.setdefault(record.name, []).append(record)


def _containers(name: str) -> Iterator[str]:
    """The names of the modules that contain a module, from the inside out."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


class Graph:
    """The autograd graph of the discovery pass, from the first feature map to the outputs.

    Args:
        outputs: the tensor of scores.
        maps: all feature maps, in order of computation.
    """

    def __init__(self, outputs: Tensor, maps: Collection[Tapped]) -> None:
        self._root = outputs.grad_fn
        self._maps = maps
        self._inputs = _inputs_first(self._root)
        self._first = next((one.node for one in maps if one.node in self._inputs), None)
        self._flow = self._marked([self._first], self._uses)  # what depends on the image: no parameters, no constants
        self._rows = self._marked([self._first], self._keeps_rows)
        self._before_projection: set[Any] = set()
        for node, inputs in reversed(self._inputs.items()):
            if node in self._before_projection or re.search(_PARAMETRIC_OPS, node.name()):
                self._before_projection.update(inputs)

    def is_map(self, record: Tapped, layout: Layout) -> bool:
        """Whether a grid leads to the outputs, and whether tokens are patches of the image.

        Object queries are tokens, too, but they come from parameters and interact with the patches only in attention.
        """
        return record.node in (self._rows if isinstance(layout, Tokens) else self._inputs)

    def _marked(self, start: Collection[Any], rule: Callable[[Any, set[Any]], bool]) -> set[Any]:
        """``start``, and all nodes for which ``rule(node, marked)`` holds, evaluated for each node after its inputs."""
        marked = set(start)
        for node in self._inputs:
            if node not in marked and rule(node, marked):
                marked.add(node)
        return marked

    def _uses(self, node: Any, nodes: set[Any]) -> bool:
        return any(used in nodes for used in self._inputs[node])

    def _keeps_rows(self, node: Any, rows: set[Any]) -> bool:
        """Whether the rows of the result belong to those of ``rows``; the rows of an attention are its queries."""
        attends = re.match(_ATTENTION_OPS, node.name())
        return any(used in rows for used in ([node.next_functions[0][0]] if attends else self._inputs[node]))

    def _uses_only(self, node: Any, nodes: set[Any]) -> bool:
        return all(used in nodes for used in self._inputs[node] if used in self._flow)

    @staticmethod
    def _rearranged(node: Any, by: str = _LAYOUT_OPS) -> Iterator[Any]:
        """Yield the nodes from ``node`` back to the one that computed its values; the others only rearrange them."""
        yield node
        while node.next_functions and re.search(by, node.name()):
            node = node.next_functions[0][0]
            if node is None:
                return
            yield node

    def _maker(self, record: Tapped, past: str) -> str:
        """The name of the operation that computed a record's values, skipping operations that ``past`` matches."""
        *_, made = self._rearranged(record.node, past)
        return str(made.name())

    def is_feature_map(self, record: Tapped, outputs: Tensor) -> bool:
        """Whether a map is neither pooled from another map nor class scores that are only pooled or resized later."""
        if re.search(_POOLING_OPS, self._maker(record, _LAYOUT_OPS)):
            return False
        one_map_per_class = outputs.dim() == 0 or (outputs.dim() > 1 and outputs.shape[1] in record.tensor.shape[1:])
        return not (
            one_map_per_class and record.node in self._projections and record.node not in self._before_projection
        )

    @cached_property
    def _projections(self) -> set[Any]:
        """The nodes whose values are a convolution or matrix product, or a sum of these, also rearranged or activated.

        Each node is decided once, after its inputs: chains of sums have more paths than can be followed.
        """
        found: set[Any] = set()
        kept = f"{_LAYOUT_OR_ACTIVATION_OPS}|{_RESIZING_OPS}"
        for node, inputs in self._inputs.items():
            first = node.next_functions[0][0] if node.next_functions else None
            if first is not None and re.search(kept, node.name()):
                is_projection = first in found
            elif node.name().startswith("AddBackward"):
                is_projection = all(term in found for term in inputs)
            else:
                is_projection = bool(re.search(_PARAMETRIC_OPS, node.name()))
            if is_projection:
                found.add(node)
        return found

    def last_bottleneck(self, records: list[Tapped]) -> Tapped | None:
        """The last record through which everything passes on its way to the outputs; see question 3."""
        for record in reversed(records):
            if self.all_pass(record) or (
                not self._is_lateral(record) and self._has_part_in_all(record.node) and self._stays_pure(record.node)
            ):
                return record
        return None

    def all_pass(self, record: Tapped) -> bool:
        """Whether the first map reaches the outputs only through this one."""
        return self._first is None or record.node in self._bottlenecks

    @cached_property
    def _bottlenecks(self) -> set[Any]:
        """The nodes through which every path from the first map to the outputs leads: no connection bypasses them."""
        order = {node: place for place, node in enumerate(node for node in self._inputs if node in self._flow)}
        furthest = list(range(len(order)))  # the last place that a node's values are used
        for node, place in order.items():
            for used in self._inputs[node]:
                if used in order:
                    furthest[order[used]] = max(furthest[order[used]], place)
        found, reached = set(), 0
        for node, place in order.items():
            if reached <= place:
                found.add(node)
            reached = max(reached, furthest[place])
        return found

    def _has_part_in_all(self, node: Any) -> bool:
        """Whether a map contributes to every entry of the outputs, that is, to each of the concatenated parts."""
        has_part = self._marked(
            [node],
            lambda later, has_part: (
                self._uses(later, has_part) and (not self._side_by_side(later) or self._uses_only(later, has_part))
            ),
        )
        return self._root in has_part

    def _stays_pure(self, node: Any) -> bool:
        """Whether some path from a map to the outputs is not mixed with anything that does not come from the map.

        Other entries of the outputs, and scores that are added to others, do not count as mixed.
        """
        behind = self._marked([node], self._uses)
        pure = self._marked(
            [node],
            lambda later, pure: (
                self._uses(later, pure)
                and (
                    later not in self._before_projection or self._side_by_side(later) or self._uses_only(later, behind)
                )
            ),
        )
        return self._root in pure

    def _side_by_side(self, node: Any) -> bool:
        """Whether an operation joins its inputs as rows or as entries of the outputs, not as channels of a map."""
        name = str(node.name())
        of_channels = name.startswith("Cat") and node in self._before_projection and node._saved_dim != 0
        return name.startswith(("Cat", "Stack", "IndexPut")) and not of_channels

    def _is_lateral(self, record: Tapped) -> bool:
        """Whether a map is only a projection of an earlier one, like the lateral connections of feature pyramids."""
        return bool(re.search(_PARAMETRIC_OPS, self._maker(record, f"{_LAYOUT_OPS}|{_NORM_OPS}")))

    def outermost(self, record: Tapped, records: Records) -> str | None:
        """The name of the outermost module that contains the values' source and returns the same values.

        Modules that return the values in another shape, which is not a map, do not count. None if all such modules are
        called more than once, because a name would not identify the call.
        """
        maker = record
        for node in self._rearranged(record.node):  # back to the module that returned these values first
            maker = records.by_node.get(node, maker)
        around = [  # and forward to the containers that return them unchanged
            other
            for name in _containers(maker.name)
            for other in records.by_name.get(name, ())
            if other.order > maker.order and maker.node in self._rearranged(other.node)
        ]
        names = [one.name for one in (maker, *around) if one in self._maps and len(records.by_name[one.name]) == 1]
        return min(names, key=len, default=None)


def _inputs_first(root: Any) -> dict[Any, list[Any]]:
    """The nodes that lead to ``root``, each with the nodes that it uses, in topological order."""
    inputs: dict[Any, list[Any]] = {}
    stack = [root]
    while stack:
        used = [node for node, _ in stack[-1].next_functions if node is not None]
        waiting = next((node for node in used if node not in inputs), None)
        if waiting is None:
            inputs[stack.pop()] = used
        else:
            stack.append(waiting)
    return inputs
