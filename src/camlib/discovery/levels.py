"""Find the levels of a detector: the maps of several sizes that its head reads together.

A detection head predicts small objects from a fine map and large ones from coarse maps. No single map leads to all of
its scores, so the search for one layer goes back to where the levels part, in front of the neck. The layers to explain
are the levels themselves, all of them: the last maps before the head.

One image is run with every module watched. A set of levels is what one call takes or returns together: at least two
maps (N, C, h, w) of different sizes, in one list, tuple or mapping. Of those that lead to the scores through further
weights, the last set counts, unless all of it flows into a single map again, as in a decoder for segmentation.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError
from camlib.inputs import Inputs, Outputs, detections_in
from camlib.inputs.nested import tensors_in
from camlib.passes.hooks import hooked, pre_hooked
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Forward, Network

_WEIGHTS = r"Convolution|Addmm|^Mm|Bmm|Linear|Baddbmm|^Mv|Addmv|^Dot|Einsum"
"""Names of the autograd nodes of convolutions and matrix products."""


def find_levels(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[str]:
    """Find the levels of a detector, the maps of several sizes that its head reads together.

    Explain all of them, fused by ``fuse="max"``.

    Args:
        model: a detector.
        inputs: what the model takes; for a tensor or a list of images, only the first image is run.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        The layers' dotted names, in the order of the head. Costs one forward pass with autograd.

    Raises:
        CamlibRuntimeError: the network reads no several maps together, or they flow into a single map again; or nothing
            was detected.

    Example:
        >>> import camlib, torch, torchvision
        >>> detector = torchvision.models.detection.fcos_resnet50_fpn(
        ...     weights=None, weights_backbone=None, score_thresh=0.0, min_size=96, max_size=128
        ... )
        >>> find_levels(detector, [torch.rand(3, 60, 80)])[:2]
        ['backbone.fpn.layer_blocks.0', 'backbone.fpn.layer_blocks.1']
    """
    network = Network.of(model, forward)
    found = head_inputs(network, network.ready(inputs))
    if found is None:
        raise CamlibRuntimeError(
            f"no head of {type(network.module).__name__} reads maps of several sizes together, or nothing was detected "
            "in the first image; camlib.find_layer finds a single layer"
        )
    return found


def head_inputs(network: Network, inputs: Inputs) -> list[str] | None:
    """Return the names of the layers whose outputs a detection head reads together, in the order of the head.

    Args:
        network: a detector.
        inputs: its parsed inputs; for a tensor or a list of images, only the first image is run.

    Returns:
        The outermost modules, called once, that return the levels. Where a level is no module's output but computed
        from one of the same size, such as a normalised map, it is that module. None if no several maps are read
        together, if they flow into a single map again, if nothing was detected, or if a level belongs to no module.
        Costs one forward pass with autograd.

    Example:
        >>> import torch, torchvision
        >>> detector = torchvision.models.detection.fcos_resnet50_fpn(
        ...     weights=None, weights_backbone=None, score_thresh=0.0, min_size=96, max_size=128
        ... )
        >>> head_inputs(Network.of(detector), Inputs([torch.rand(3, 60, 80)]))[:2]
        ['backbone.fpn.layer_blocks.0', 'backbone.fpn.layer_blocks.1']
    """
    watched = _Watched()
    with undisturbed(network.module), torch.enable_grad(), watched.hooks(network.module):
        scores = _scores(network.run(_traced(inputs.first())))
        if scores is None or scores.grad_fn is None:
            return None
        return watched.levels(scores.grad_fn)


def _traced(inputs: Inputs) -> Inputs:
    """The inputs, in the autograd graph, so that also a network of frozen weights leaves one."""

    def traced(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() else tensor

    return inputs.map(traced)


def _scores(raw: Any) -> Tensor | None:
    """The scores of all detections in one tensor, or the main tensor of other outputs; None if there are none."""
    found = detections_in(raw)
    if found is None:
        return Outputs(raw).main
    scores = torch.cat([of_image.scores.flatten() for of_image in found])
    return scores if scores.numel() else None


@dataclass(frozen=True, eq=False)
class _Level:
    """A map (N, C, h, w) that is read together with others."""

    node: Any
    """The autograd node that computed it."""
    images: int
    grid: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> _Level:
        return _Level(tensor.grad_fn, len(tensor), tuple(tensor.shape[2:]))


@dataclass(frozen=True, eq=False)
class _Set:
    """The levels that one call takes or returns together."""

    levels: list[_Level]
    after: int
    """How many modules had returned before."""


class _Watched:
    """What the modules of one pass take and return."""

    def __init__(self) -> None:
        self._sets: list[_Set] = []
        self._returned: list[tuple[str, _Level]] = []
        self._calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Watch every module of a model inside the block, in this thread."""
        modules = [
            (name, module)
            for name, module in model.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)
        ]
        with (
            pre_hooked((module, self._before(name)) for name, module in modules),
            hooked((module, self._after(name)) for name, module in modules),
        ):
            yield

    def _before(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> Any:
            self._calls[name] += 1
            for given in (*args, *kwargs.values()):
                self._note(given)  # before the call: some heads overwrite the list that they are given

        return note

    def _after(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if _is_map(first):
                self._returned.append((name, _Level.of(first)))
            floats = [one for one in tensors_in(output) if one.is_floating_point()]
            if all(map(_is_map, floats)):
                self._note(output)  # a neck; a head also returns predictions

        return note

    def _note(self, value: Any) -> None:
        """Record a container of levels."""
        if not isinstance(value, (list, tuple, Mapping)) and not hasattr(value, "__dataclass_fields__"):
            return
        levels = [_Level.of(one) for one in tensors_in(value) if _is_map(one)]
        if len({level.grid for level in levels}) > 1:
            self._sets.append(_Set(levels, len(self._returned)))

    def levels(self, root: Any) -> list[str] | None:
        """Return the names of the last levels that lead to the node of the scores."""
        graph = _Graph(root)
        for found in reversed(self._sets):
            levels = list({level.node: level for level in found.levels if level.node in graph.before_weights}.values())
            if len({level.grid for level in levels}) < 2:
                continue
            later = [level for _, level in self._returned[found.after :]]
            if any(graph.all_pass(level, levels) for level in later):
                return None
            return self._names(levels)
        return None

    def _names(self, levels: Sequence[_Level]) -> list[str] | None:
        """The outermost module, called once, that returns each level; None if one has none."""
        named = defaultdict(list)
        for name, level in self._returned:
            if self._calls[name] == 1:
                named[level.node].append((name, level.grid))
        names = []
        for level in levels:
            sources = _first_of(level.node, named.keys())
            if len(sources) != 1:
                return None
            same = [name for name, grid in named[sources.pop()] if grid == level.grid]
            if not same:
                return None
            names.append(min(same, key=len))
        return names


def _is_map(value: Any) -> bool:
    """Whether it is a map (N, C, h, w) in the graph."""
    return isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point() and value.grad_fn is not None


class _Graph:
    """The autograd graph, from its start to the node of the scores."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._users: dict[Any, list[Any]] = {root: []}
        self.before_weights: set[Any] = set()
        """The nodes from which a path to the scores passes a convolution or a matrix product."""
        stack = [root]
        while stack:
            node = stack.pop()
            for used, _ in node.next_functions:
                if used is None:
                    continue
                if used not in self._users:
                    self._users[used] = []
                    stack.append(used)
                self._users[used].append(node)
        stack = [used for node in self._users if re.search(_WEIGHTS, node.name()) for used, _ in node.next_functions]
        while stack:
            node = stack.pop()
            if node is not None and node not in self.before_weights:
                self.before_weights.add(node)
                stack.extend(used for used, _ in node.next_functions)

    def all_pass(self, later: _Level, levels: Sequence[_Level]) -> bool:
        """Whether all levels lead to the scores only through one later map, which further weights read."""
        if later.node not in self.before_weights or later.images != levels[0].images:
            return False
        if any(later.node is level.node for level in levels):
            return False
        seen, stack = {later.node}, [level.node for level in levels]
        while stack:
            node = stack.pop()
            if node is self._root:
                return False
            if node not in seen:
                seen.add(node)
                stack.extend(self._users[node])
        return True


def _first_of(start: Any, nodes: Collection[Any]) -> set[Any]:
    """Return those of ``nodes`` that are met first on the ways from ``start`` back to the inputs."""
    found, seen, stack = set(), set(), [start]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(node)
        else:
            stack.extend(used for used, _ in node.next_functions)
    return found
