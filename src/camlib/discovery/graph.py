"""The connections of a network: the autograd graph of one pass, from the images to the outputs.

Operations are recognised by the names of their autograd nodes, independently of values and modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from camlib.discovery.coordinates import Place
from camlib.layers.layouts import Layout

# Patterns for names of autograd nodes; re compiles and caches them at their first use, not on import.
_LAYOUT_OPS = r"Clone|View|Reshape|Permute|Transpose|[Ss]queeze|Alias|ToCopy|^TBackward|Movedim"
_POOLING_OPS = r"MaxPool|AvgPool"
_REDUCTION_OPS = r"^Mean|^Sum|^Amax|^Amin|^Logsumexp|^Max(?!Pool)|^LinalgVectorNorm"
_PARAMETRIC_OPS = r"Convolution|Addmm|^Mm|Bmm|Linear|Baddbmm|^Mv|Addmv|^Dot|Einsum"
_ACTIVATION_OPS = (
    r"Relu|Hardtanh|Hardswish|Hardsigmoid|Sigmoid|Silu|Gelu|Elu|Tanh|Softplus|Clamp|Dropout|Mish|Threshold"
)
_LAYOUT_OR_ACTIVATION_OPS = f"{_LAYOUT_OPS}|{_ACTIVATION_OPS}"
_RESIZING_OPS = r"Upsample"
_NORM_OPS = r"BatchNorm|LayerNorm|GroupNorm"
_PRIME = 2**61 - 1
FAR = 3
"""How many layers with parameters separate a map from one that is far behind it."""
_ELEMENTWISE_OPS = r"(Add|Sub|Mul|Div|Where|MaskedFill)Backward"
_FACTOR_OPS = r"(Mul|Div)Backward"
_COMPUTING_OPS = f"{_POOLING_OPS}|{_REDUCTION_OPS}|{_PARAMETRIC_OPS}|{_NORM_OPS}"


@dataclass(frozen=True, eq=False)
class Tapped:
    """A module's output in the discovery pass."""

    order: int
    name: str
    call: int  # which call of the module it is, from 1
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
    """The autograd graph of the discovery pass, from the images to the outputs.

    Args:
        outputs: the tensor of scores.
        maps: all maps of the images with their layouts, in order of computation.
        starts: the nodes of the images, or None for images without a gradient; the flow then starts at the first map.
    """

    def __init__(self, outputs: Tensor, maps: Mapping[Tapped, Layout], starts: Collection[Any]) -> None:
        self._root = outputs.grad_fn
        self._maps = maps
        self._inputs = _inputs_first(self._root)
        self._starts = [node for node in starts if node in self._inputs] or [
            *(one.node for one in maps if one.node in self._inputs)
        ][:1]
        self._flow = self._marked(self._starts, self._uses)  # what depends on the images: no parameters, no constants
        self._outputs = self._same_as_outputs()
        self._before_projection: set[Any] = set()
        for node, inputs in reversed(self._inputs.items()):
            if node in self._before_projection or re.search(_PARAMETRIC_OPS, node.name()):
                self._before_projection.update(inputs)

    def is_map(self, record: Tapped) -> bool:
        """Whether a map of the images leads to the outputs."""
        return record.node in self._flow

    def _marked(self, start: Collection[Any], rule: Callable[[Any, set[Any]], bool]) -> set[Any]:
        """``start``, and all nodes for which ``rule(node, marked)`` holds, evaluated for each node after its inputs."""
        marked = set(start)
        for node in self._inputs:
            if node not in marked and rule(node, marked):
                marked.add(node)
        return marked

    def _uses(self, node: Any, nodes: set[Any]) -> bool:
        return any(used in nodes for used in self._inputs[node])

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
        """Whether a map is neither the outputs, nor pooled from another map, nor class scores that are pooled later."""
        if record.node in self._outputs or self._is_pooled(record):
            return False
        one_map_per_class = outputs.dim() == 0 or (outputs.dim() > 1 and outputs.shape[1] in record.tensor.shape[1:])
        return not (
            one_map_per_class and record.node in self._projections and record.node not in self._before_projection
        )

    def _is_pooled(self, record: Tapped) -> bool:
        """Whether a map is pooled from a larger one; a sum over branches or channels is not."""
        *_, made = self._rearranged(record.node)
        if re.search(_REDUCTION_OPS, made.name()):
            if record not in self._maps:
                return True
            grid = self._maps[record].grid
            return any(self._maps[source].grid != grid for source in self._sources(made))
        return bool(re.search(_POOLING_OPS, made.name()))

    def _sources(self, node: Any) -> list[Tapped]:
        """The last maps before a node, on all ways to it, apart from those to a smaller factor, such as a gate."""
        by_node = {other.node: other for other in self._maps}
        found, stack, seen = [], self._terms(node), set()
        while stack:
            node = stack.pop()
            if node in by_node:
                found.append(by_node[node])
            elif node not in seen:
                seen.add(node)
                stack.extend(self._terms(node))
        return found

    def _terms(self, node: Any) -> list[Any]:
        """The inputs of a node; for an element-wise operation, those with the shape of its result, if there are any."""
        inputs = self._inputs[node]
        if not re.match(_ELEMENTWISE_OPS, node.name()):
            return list(inputs)
        shape = node._input_metadata[0].shape
        return [used for used in inputs if used._input_metadata[0].shape == shape] or list(inputs)

    def _same_as_outputs(self) -> set[Any]:
        """The nodes of tensors that hold the outputs, apart from their layout, a scale, or the choice of a part."""
        node: Any = self._root
        same = set()
        while True:
            same.add(node)
            used = self._inputs[node]
            if len(used) != 1 or re.search(_COMPUTING_OPS, node.name()):
                return same
            (node,) = used

    @cached_property
    def _projections(self) -> set[Any]:
        """The nodes whose values are a convolution or matrix product of a map, activated, scaled, masked or summed.

        Each node is decided once, after its inputs: chains of sums have more paths than can be followed.
        """
        found: set[Any] = set()
        kept = f"{_LAYOUT_OR_ACTIVATION_OPS}|{_RESIZING_OPS}"
        for node, inputs in self._inputs.items():
            first = node.next_functions[0][0] if node.next_functions else None
            if first is not None and re.search(kept, node.name()):
                is_projection = first in found
            elif re.match(_ELEMENTWISE_OPS, node.name()):
                is_projection = all(term in found for term in self._terms(node))
            else:
                of_a_map = any(used in self._made for used in inputs)
                is_projection = of_a_map and bool(re.search(_PARAMETRIC_OPS, node.name()))
            if is_projection:
                found.add(node)
        return found

    def last_bottleneck(self, records: list[Tapped]) -> Tapped | None:
        """The last record through which everything passes on its way to the outputs; see question 3."""
        return next((one for one in reversed(records) if self.all_pass(one) or self._leads_purely(one)), None)

    def _leads_purely(self, record: Tapped) -> bool:
        """Whether a map contributes to all outputs, and reaches them on a path where nothing else is mixed in."""
        return not self._is_lateral(record) and self._stays_pure(record.node) and self._has_part_in_all(record.node)

    def all_pass(self, record: Tapped) -> bool:
        """Whether the images reach the outputs only through this map."""
        return self._is_passed_by_all(record.node)

    def _is_passed_by_all(self, node: Any) -> bool:
        """Whether all ways from the images to the outputs lead through a node: as many as lead to it and on from it."""
        to, on = self._ways
        return node in self._flow and to[node] * on[node] % _PRIME == to[self._root]

    @cached_property
    def _ways(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """The number of ways from the images to each node, and from each node to the outputs, modulo a prime."""
        to = {node: int(node in self._starts) for node in self._inputs}
        for node, used in self._inputs.items():
            to[node] = (to[node] + sum(to[one] for one in used)) % _PRIME
        on = dict.fromkeys(self._inputs, 0)
        on[self._root] = 1
        for node in reversed(self._inputs):
            for used in self._inputs[node]:
                on[used] = (on[used] + on[node]) % _PRIME
        return to, on

    def uses(self, record: Tapped) -> list[Any]:
        """The nodes that use a map."""
        return [node for node, used in self._inputs.items() if record.node in used]

    def map_behind(self, record: Tapped) -> tuple[tuple[int, ...], int] | None:
        """The shape of the last feature map that everything passes through behind ``record``, and how far behind it is.

        None if there is none. No module returns such a map, or it would have been found.
        """
        layers = self._layers_behind(record)
        for node in reversed(self._inputs):
            shape = tuple(node._input_metadata[0].shape) if layers.get(node) else ()
            of_images = len(shape) == record.tensor.dim() > 3 and shape[0] == len(record.tensor)
            several = math.prod(shape[2:]) > 1 and math.prod(shape[1:-1]) > 1
            is_map = of_images and several and _is_scaled(shape, tuple(record.tensor.shape))
            if is_map and self._is_passed_by_all(node) and node not in self._outputs:
                return None if node in self._projections else (shape, layers[node])
        return None

    def _layers_behind(self, record: Tapped) -> dict[Any, int]:
        """The nodes that use a map, and how many layers with parameters lie between, at most."""
        layers = {record.node: 0}
        for node in self._inputs:
            before = [layers[one] for one in self._terms(node) if one in layers]
            if before:
                layers[node] = max(before) + bool(re.search(_PARAMETRIC_OPS, node.name()))
        return layers

    def ends_behind(self, record: Tapped, records: list[Tapped]) -> list[tuple[Tapped, int]]:
        """The last records that use a map through which everything passes, and how far behind it each is.

        They are the ends of branches, since nothing behind ``record`` is passed by all.
        """
        if not self.all_pass(record):
            return []
        layers = self._layers_behind(record)
        ends: list[tuple[Tapped, int]] = []
        before: set[Any] = set()
        for one in reversed(records):
            if one.order > record.order and one.node in layers and one.node not in before:
                ends.append((one, layers[one.node]))
                self._add_before(before, one.node)
        return ends[::-1]

    def as_good_as(self, record: Tapped, records: list[Tapped]) -> list[Tapped]:
        """The last records of branches that lead to all outputs just as a map does which others bypass.

        The map is the last of them; an empty list if there is no other.
        """
        if self.all_pass(record):
            return []
        last, behind = [record], self._marked([record.node], self._uses)
        before: set[Any] = set()
        self._add_before(before, record.node)
        for one in reversed(records):
            if one.node not in before and one.node not in behind and one.node in self._made and self._leads_purely(one):
                last.append(one)
                self._add_before(before, one.node)
        return last[::-1] if len(last) > 1 else []

    def side_by_side(self, records: list[Tapped], through: Tapped) -> list[Tapped]:
        """The last records of branches that lead side by side from the images to the outputs, ``through`` among them.

        Branches share no trunk: no map that a layer with parameters has made, and through which everything passes. An
        empty list if there is only one branch.
        """
        made = self._made
        if any(record.node in made and self.all_pass(record) for record in records):
            return []
        around = self._around([through.node])
        before: set[Any] = set()
        self._add_before(before, through.node)
        behind = self._marked([through.node], self._uses)
        if not any(node in made and node not in before and node not in behind for node in around):
            return []
        last = [through]
        for record in reversed(records):
            if record.node in made and record.node in around and record.node not in before:
                last.append(record)
                self._add_before(before, record.node)
        return last[::-1]

    @cached_property
    def _made(self) -> set[Any]:
        """The nodes that a layer with parameters has made from the images, and those that use them."""
        layers = [node for node in self._flow if re.search(_PARAMETRIC_OPS, node.name())]
        return self._marked(layers, self._uses)

    def _add_before(self, before: set[Any], node: Any) -> None:
        """Add a node, and all nodes that lead to it, to a set that holds such nodes of others."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node not in before:
                before.add(node)
                stack.extend(self._inputs[node])

    def _around(self, nodes: Collection[Any]) -> set[Any]:
        """The nodes on the ways from the images to the outputs that lead around some nodes."""
        free = self._marked(self._starts, lambda node, free: node not in nodes and self._uses(node, free))
        if self._root not in free:
            return set()
        leading = {self._root}
        for node in reversed(self._inputs):
            if node in leading:
                leading.update(used for used in self._inputs[node] if used in free)
        return leading

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

        Other entries of the outputs, and scores that are added to others, do not count as mixed; scores multiplied by
        others do.
        """
        pure, waiting = {node}, [node]
        behind: set[Any] = set()
        while waiting:
            for later in self._users[waiting.pop()]:
                if later in pure:
                    continue
                of_scores = later not in self._before_projection and not re.match(_FACTOR_OPS, later.name())
                if not of_scores and not self._side_by_side(later):
                    others = [used for used in self._inputs[later] if used in self._flow and used not in pure]
                    if any(self._number[used] < self._number[node] for used in others):
                        continue  # made before the map
                    if others and not behind:
                        behind = self._marked([node], self._uses)
                    if not behind.issuperset(others):
                        continue
                pure.add(later)
                waiting.append(later)
        return self._root in pure

    @cached_property
    def _number(self) -> dict[Any, int]:
        """The place of each node in the topological order."""
        return {node: number for number, node in enumerate(self._inputs)}

    @cached_property
    def _users(self) -> dict[Any, list[Any]]:
        """The nodes that use each node."""
        users: dict[Any, list[Any]] = {node: [] for node in self._inputs}
        for node, inputs in self._inputs.items():
            for used in inputs:
                users[used].append(node)
        return users

    def _side_by_side(self, node: Any) -> bool:
        """Whether an operation joins its inputs as rows or as entries of the outputs, not as channels of a map."""
        name = str(node.name())
        of_channels = name.startswith("Cat") and node in self._before_projection and node._saved_dim != 0
        return name.startswith(("Cat", "Stack", "IndexPut")) and not of_channels

    def _is_lateral(self, record: Tapped) -> bool:
        """Whether a map is only a projection of an earlier one, like the lateral connections of feature pyramids."""
        return bool(re.search(_PARAMETRIC_OPS, self._maker(record, f"{_LAYOUT_OPS}|{_NORM_OPS}")))

    def outermost(self, record: Tapped, records: Records) -> str:
        """The name of the outermost module that contains the values' source and returns the same values.

        Modules that return the values in another shape, which is not a map, do not count. If all such modules are
        called several times, the name of one call, such as "relu#2".
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
        once = [one.name for one in (maker, *around) if one in self._maps and len(records.by_name[one.name]) == 1]
        own = record.name if len(records.by_name[record.name]) == 1 else f"{record.name}#{record.call}"
        return min(once, key=len, default=own)


def _is_scaled(shape: tuple[int, ...], by: tuple[int, ...]) -> bool:
    """Whether a map may be another one scaled: all its sides are larger or smaller by about the same factor."""
    return any(
        max(factors := [side / other for side, other in zip(shape[sides], by[sides], strict=True)]) < 2 * min(factors)
        for sides in (slice(2, None), slice(1, -1))
    )


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
