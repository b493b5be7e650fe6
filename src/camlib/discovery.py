"""Finding the layer: one forward pass of one image, every module tapped, and the graph read by its connections.

The layer wanted is the last feature map that can influence the score at every position, before its grid is
pooled, flattened or turned into class scores. Four questions are put to each feature map, the last one first:

1. Is it a grid of more than one cell?
2. Is it a map of features? Not the output of a pooling layer, nor class scores that are only pooled afterwards.
3. Does everything that reaches the score pass through it? A branch inside a residual block does not qualify. Where
   finer maps join later, as in feature pyramids, that would be far too early: a later map will do that has a part in
   every entry of the outputs, and that reaches them by one path at least without anything mixed in that passed it by.
4. Do its positions reach the score? A NaN is sent back from the outputs: it survives multiplication by zero, so
   that a zero-initialised head does not mislead, and what it does not reach is not connected. Behind the last
   attention of a network that reads a class token, that is every patch.

Where question 4 fails on the last maps, the network reads a class token, and the answer is the last
normalisation whose patches still reach the score: the one in front of the last attention.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camlib.capture import tap
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.isolation import call_eagerly, check_device, checked_inputs, undisturbed, unwrap
from camlib.layouts import Layout, Size, Tokens, holds_pictures, layout_of, one_stride, picture_size
from camlib.nested import tensors_in
from camlib.outputs import is_detections, main_tensor

Forward = Callable[[nn.Module, Any], Any]

# Names of autograd nodes; re compiles and caches them when first used, not on import.
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


class LayerInfo(NamedTuple):
    """A layer that the forward pass calls."""

    name: str
    """Dotted name, to be given as ``layer=``."""
    type: str
    """Class name of the module."""
    shape: tuple[int, ...]
    """Shape of its (first) output."""


@dataclass(frozen=True, eq=False)
class _Record:
    """A module's output in the discovery pass."""

    order: int
    name: str
    module: nn.Module
    tensor: Tensor  # what was tapped
    node: Any  # the autograd node of its clone: unique to the record


def list_layers(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[LayerInfo]:
    """List the layers that a forward pass calls and that return a tensor, in the order in which they finish.

    A module that is called more than once is listed once for each call; it cannot be explained.

    Args:
        model: any module.
        inputs: what the model takes.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        Name, type and output shape of each. Costs one forward pass.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> camlib.list_layers(model, torch.rand(1, 3, 64, 64))[-3]
        LayerInfo(name='layer4', type='Sequential', shape=(1, 512, 2, 2))
    """
    model = unwrap(model)
    listed: list[LayerInfo] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = next(tensors_in(output), None)
            if first is not None:
                listed.append(LayerInfo(name, type(module).__name__, tuple(first.shape)))

        return hook

    inputs = _ready(model, inputs, forward)
    with undisturbed(model), _hooks(model, note):
        (forward or call_eagerly)(model, inputs)
    return listed


def find_layer(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> str:
    """Find the layer to explain: the last feature map that can influence the score at every position.

    The outermost module that returns it is named. Pooling layers, classifiers, auxiliary heads and patch
    embeddings are never chosen, and a map of a single cell is not a map. Connections decide, not values, so
    that untrained networks and zero-initialised heads are understood.

    Args:
        model: any module.
        inputs: what the model takes; of a tensor, or a list of pictures, only the first image is run.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``. Outputs that are no tensor are
            understood if they are detections (the layer leads to all their scores), or if they name a tensor "logits",
            "out", "pooler_output", "image_embeds" or "last_hidden_state".

    Returns:
        The layer's dotted name. Costs one forward pass and one backward pass.

    Raises:
        CamlibRuntimeError: no layer qualifies; the message names the last maps seen.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_layer(torchvision.models.vgg11(), torch.rand(1, 3, 64, 64))
        'features.19'
    """
    found = _find(model, inputs, forward)
    return found.name(found.last)


def find_stages(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[str]:
    """Find the layer to explain, and with it the last feature map of every larger grid ahead of it.

    Args:
        model: any module.
        inputs: what the model takes; of a tensor, or a list of pictures, only the first image is run.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        The layers' dotted names, in the order in which they are computed; :func:`find_layer`'s is the last. Maps that
        other maps pass by, as in a U-Net, are left out. Costs one forward pass and one backward pass.

    Raises:
        CamlibRuntimeError: no layer qualifies; the message names the last maps seen.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_stages(torchvision.models.resnet18(), torch.rand(1, 3, 64, 64))
        ['relu', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    found = _find(model, inputs, forward)
    return list(dict.fromkeys(map(found.name, found.stages())))


@dataclass(frozen=True, eq=False)
class _Found:
    """What a discovery pass found."""

    last: _Record
    """The map to explain."""
    candidates: list[_Record]
    """All feature maps whose positions reach the score, in their order."""
    layouts: dict[_Record, Layout]
    records: list[_Record]
    graph: _Graph
    size: Size | None
    """The spatial size of the inputs."""

    def name(self, record: _Record) -> str:
        """The name of the outermost module that returns a map."""
        name = self.graph.outermost(record, self.records)
        assert name, "candidates have names"
        return name

    def stages(self) -> list[_Record]:
        """Of each larger grid the last map that everything passes through; then the map to explain.

        A block's own output is preferred to the maps inside the next one.
        """
        stages: dict[Size, _Record] = {}
        last = self.layouts[self.last].grid
        for record in self.candidates:
            grid = self.layouts[record].grid
            if record.order > self.last.order or math.prod(grid) <= math.prod(last) or not self.graph.all_pass(record):
                continue
            if self.size is None or one_stride(grid, self.size):  # not windows or heads
                best = stages.setdefault(grid, record)
                stages[grid] = record if record.name.count(".") <= best.name.count(".") else best
        return [*sorted(stages.values(), key=lambda record: record.order), self.last]


def _find(model: nn.Module, inputs: Any, forward: Forward | None) -> _Found:
    """Run the first image with every module tapped, and read the graph."""
    model = unwrap(model)
    inputs = _ready(model, inputs, forward)
    if isinstance(inputs, Tensor) or holds_pictures(inputs):
        inputs = inputs[:1]
    records: list[_Record] = []

    def record(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if module is model or not isinstance(first, Tensor) or not first.is_floating_point():
                return None
            point, handed_on = tap(output, name)
            clone = handed_on if isinstance(handed_on, Tensor) else handed_on[0]
            records.append(_Record(len(records), name, module, point, clone.grad_fn))
            return handed_on

        return hook

    with undisturbed(model), _hooks(model, record):
        score = _score((forward or call_eagerly)(model, inputs))
        if score.grad_fn is None:
            raise CamlibRuntimeError(
                "no layer leads to the model's outputs: they are detached, not differentiable (an argmax, say), or "
                f"made without submodules; {_seen(records)}"
            )
        size = None if holds_pictures(inputs) else picture_size(inputs)  # detectors give pictures sizes of their own
        return _choose(model, records, score, size)


def _score(outputs: Any) -> Tensor:
    """What the layer must lead to: the tensor that the outputs are about, or the sum of the detections' scores."""
    if is_detections(outputs):
        scores = torch.cat([detected["scores"] for detected in outputs])
        if not scores.numel():
            raise CamlibRuntimeError(
                "nothing was detected in the first picture, so that no score leads back to a layer; give layer=, a "
                "picture that shows something, or the model a lower score threshold"
            )
        return scores.sum()
    tensor = main_tensor(outputs)
    if tensor is None:
        raise CamlibTypeError(
            f"the model returns a {type(outputs).__name__}; to find its layer, pass forward=lambda model, "
            "inputs: ... that picks the tensor to be explained, or give layer="
        )
    return tensor


def _ready(model: nn.Module, inputs: Any, forward: Forward | None) -> Any:
    if forward is None:
        check_device(model, inputs)
    return checked_inputs(model, inputs)


@contextlib.contextmanager
def _hooks(model: nn.Module, make: Callable[[str], Any]) -> Iterator[None]:
    """Keep a hook on every submodule, for this thread's forward passes only."""
    thread = threading.get_ident()

    def mine(hook: Any) -> Any:
        return lambda *args: hook(*args) if threading.get_ident() == thread else None

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(mine(make(name))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _choose(model: nn.Module, records: list[_Record], outputs: Tensor, size: Size | None) -> _Found:
    """Put the four questions of the module docstring to the records, the last one first."""
    layouts = _grids(model, records, size)
    graph = _Graph(outputs, [record.node for record in layouts])
    maps = [record for record, layout in layouts.items() if graph.is_map(record, layout)]
    pooling = tuple(f"{name}." for name, module in model.named_modules() if name and _pools(module))
    features = [
        record for record in maps if graph.is_feature_map(record, outputs) and not f"{record.name}.".startswith(pooling)
    ]
    if not features:
        raise CamlibRuntimeError(f"no layer returns a feature map that leads to the score; {_seen(records)}")
    connected = _connected(features, outputs, layouts)
    reaching = [record for record in features if record.node in connected]
    if not reaching:
        raise CamlibRuntimeError(f"no position of any feature map reaches the score; {_seen(records)}")
    candidates = [record for record in reaching if graph.outermost(record, records)]
    if not candidates:
        raise CamlibRuntimeError(
            f"every feature map that leads to the score is made by a module that is called more than once, the last by "
            f"{reaching[-1].name!r}; {_seen(records)}"
        )
    through = graph.last_bottleneck(candidates)
    if through is None:
        through = candidates[-1]
    tokens = [record for record in features if record.order > through.order and isinstance(layouts[record], Tokens)]
    if any(later.node not in connected for later in tokens):
        norms = [
            later
            for later in tokens
            if later.node in connected and _is_norm(later.module) and layouts[later].grid == layouts[through].grid
        ]
        through = norms[-1] if norms else through
    return _Found(through, candidates, layouts, records, graph, size)


def _grids(model: nn.Module, records: list[_Record], size: Size | None) -> dict[_Record, Layout]:
    """The layouts of the records that are grids of more than one cell, with the images for their first axis.

    The first map's is taken for the images'. Windows, crops and regions of interest are more or fewer.
    """
    layouts: dict[_Record, Layout] = {}
    for record in records:
        layout = layout_of(model, record.module, tuple(record.tensor.shape), size)
        if layout is not None and math.prod(layout.grid) > 1:
            first = next(iter(layouts), record)
            if len(record.tensor) == len(first.tensor):
                layouts[record] = layout
    return layouts


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _connected(records: list[_Record], outputs: Tensor, layouts: dict[_Record, Layout]) -> set[Any]:
    """The nodes of the maps that a NaN sent back from the outputs reaches, beyond any prefix tokens."""
    nan = torch.full_like(outputs, torch.nan)
    with torch.autograd.set_detect_anomaly(False):
        gradients = torch.autograd.grad(outputs, [r.tensor for r in records], nan, allow_unused=True)
    reached = set()
    for record, gradient in zip(records, gradients, strict=True):
        layout = layouts[record]
        if gradient is not None and isinstance(layout, Tokens):
            gradient = gradient[:, layout.prefix :]
        if gradient is not None and bool((gradient != 0).any()):
            reached.add(record.node)
    return reached


def _seen(records: list[_Record]) -> str:
    shapes = [f"{record.name} {tuple(record.tensor.shape)}" for record in records[-5:]]
    return f"the last outputs seen: {', '.join(shapes) or 'none'}. Give layer="


class _Graph:
    """The autograd graph of the discovery pass, from the first feature map to the outputs.

    Args:
        outputs: the score's tensor.
        maps: the nodes of all feature maps, the first one first.
    """

    def __init__(self, outputs: Tensor, maps: Sequence[Any]) -> None:
        self._root = outputs.grad_fn
        self._inputs = _inputs_first(self._root)
        self._first = next((node for node in maps if node in self._inputs), None)
        self._flow = self._marked([self._first], self._uses)  # what comes from the picture: no parameters, no constants
        self._rows = self._marked([self._first], self._keeps_rows)
        self._before_projection: set[Any] = set()
        for node, inputs in reversed(self._inputs.items()):
            if node in self._before_projection or re.search(_PARAMETRIC_OPS, node.name()):
                self._before_projection.update(inputs)

    def is_map(self, record: _Record, layout: Layout) -> bool:
        """Whether a grid leads to the outputs, and whether tokens are the picture's patches.

        Object queries are tokens, too. They come from parameters, and meet the patches in attention alone.
        """
        return record.node in (self._rows if isinstance(layout, Tokens) else self._inputs)

    def _marked(self, start: Collection[Any], rule: Callable[[Any, set[Any]], bool]) -> set[Any]:
        """``start``, and what ``rule(node, marked)`` takes in of the nodes, each asked after its inputs."""
        marked = set(start)
        for node in self._inputs:
            if node not in marked and rule(node, marked):
                marked.add(node)
        return marked

    def _uses(self, node: Any, nodes: set[Any]) -> bool:
        return any(used in nodes for used in self._inputs[node])

    def _keeps_rows(self, node: Any, rows: set[Any]) -> bool:
        """Whether rows of the result belong to rows of ``rows``: those of an attention are its queries'."""
        attends = re.match(_ATTENTION_OPS, node.name())
        return any(used in rows for used in ([node.next_functions[0][0]] if attends else self._inputs[node]))

    def _uses_only(self, node: Any, nodes: set[Any]) -> bool:
        return all(used in nodes for used in self._inputs[node] if used in self._flow)

    @staticmethod
    def _rearranged(node: Any, by: str = _LAYOUT_OPS) -> Iterator[Any]:
        """Yield the nodes from ``node`` back to the one that made the values: all but it only rearrange them."""
        yield node
        while node.next_functions and re.search(by, node.name()):
            node = node.next_functions[0][0]
            if node is None:
                return
            yield node

    def _maker(self, record: _Record, past: str) -> str:
        """The name of the operation that made a record's values, past those that ``past`` matches."""
        *_, made = self._rearranged(record.node, past)
        return str(made.name())

    def is_feature_map(self, record: _Record, outputs: Tensor) -> bool:
        """Whether a map is neither pooled from another nor class scores that are only pooled or resized afterwards."""
        if re.search(_POOLING_OPS, self._maker(record, _LAYOUT_OPS)):
            return False
        one_map_per_class = outputs.dim() == 0 or (outputs.dim() > 1 and outputs.shape[1] in record.tensor.shape[1:])
        return not (
            one_map_per_class and self._is_projection(record.node) and record.node not in self._before_projection
        )

    def _is_projection(self, node: Any) -> bool:
        """Whether a map is a convolution or matrix product of another, or a sum of such."""
        *_, made = self._rearranged(node, f"{_LAYOUT_OR_ACTIVATION_OPS}|{_RESIZING_OPS}")
        if made.name().startswith("AddBackward"):
            return all(self._is_projection(term) for term, _ in made.next_functions if term is not None)
        return bool(re.search(_PARAMETRIC_OPS, made.name()))

    def last_bottleneck(self, records: list[_Record]) -> _Record | None:
        """The last record that everything passes through on its way to the outputs; see question 3."""
        for record in reversed(records):
            if self.all_pass(record) or (
                not self._is_lateral(record) and self._has_part_in_all(record.node) and self._stays_pure(record.node)
            ):
                return record
        return None

    def all_pass(self, record: _Record) -> bool:
        """Whether nothing of the first map reaches the outputs but through this one."""
        node = record.node
        by = self._marked([self._first], lambda later, by: later is not node and self._uses(later, by))
        return node is self._first or self._root not in by

    def _has_part_in_all(self, node: Any) -> bool:
        """Whether a map has a part in every entry of the outputs: in each of the things that are put side by side."""
        has_part = self._marked(
            [node],
            lambda later, has_part: (
                self._uses(later, has_part) and (not self._side_by_side(later) or self._uses_only(later, has_part))
            ),
        )
        return self._root in has_part

    def _stays_pure(self, node: Any) -> bool:
        """Whether the outputs can be reached from a map before anything is mixed in that does not come from it.

        Neither the other entries of the outputs nor scores that are added to others are mixed in.
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
        """Whether an operation makes rows or entries of outputs of its inputs, not channels of a map."""
        name = str(node.name())
        of_channels = name.startswith("Cat") and node in self._before_projection and node._saved_dim != 0
        return name.startswith(("Cat", "Stack", "IndexPut")) and not of_channels

    def _is_lateral(self, record: _Record) -> bool:
        """Whether a map is a mere projection of an earlier one, as pyramids begin with."""
        return bool(re.search(_PARAMETRIC_OPS, self._maker(record, f"{_LAYOUT_OPS}|{_NORM_OPS}")))

    def outermost(self, record: _Record, records: list[_Record]) -> str | None:
        """The name of the outermost module around the record's maker that returns the same values.

        None if there is none but modules that are called more than once, whose name would not tell which call is meant.
        """
        by_node = {other.node: other for other in records}
        maker = record
        for node in self._rearranged(record.node):  # back to whoever returned these values first
            maker = by_node.get(node, maker)
        around = [  # and on to the containers that hand them on
            other.name
            for other in records[maker.order + 1 :]
            if maker.name.startswith(f"{other.name}.") and maker.node in self._rearranged(other.node)
        ]
        called = Counter(other.name for other in records)
        return min((name for name in (maker.name, *around) if called[name] == 1), key=len, default=None)


def _inputs_first(root: Any) -> dict[Any, list[Any]]:
    """The nodes that lead to ``root`` with the nodes that each uses, all of these before it."""
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


def _pools(module: nn.Module) -> bool:
    return bool(re.search("[Pp]ool(?!Former)", type(module).__name__))
