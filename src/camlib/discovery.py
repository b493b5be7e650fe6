"""Finding the layer: one forward pass of one image, every module tapped, and the graph read by its connections.

The layer wanted is the last feature map that can influence the score at every position, before its grid is
pooled, flattened or turned into class scores. Four questions are put to each feature map, the last one first:

1. Is it a grid of more than one cell?
2. Is it a map of features? Not the output of a pooling layer, nor class scores that are only pooled afterwards.
3. Does everything that reaches the score pass through it? A branch inside a residual block does not qualify.
4. Do its positions reach the score? A NaN is sent back from the outputs: it survives multiplication by zero, so
   that a zero-initialised head does not mislead, and what it does not reach is not connected. Behind the last
   attention of a network that reads a class token, that is every patch.

Where question 4 fails on the last maps, the network reads a class token, and the answer is the last
normalisation whose patches still reach the score: the one in front of the last attention.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camlib.capture import tap
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.isolation import call_eagerly, check_device, checked_inputs, undisturbed, unwrap
from camlib.layouts import Tokens, infer_layout, picture_size
from camlib.nested import tensors_in

Forward = Callable[[nn.Module, Any], Any]

# Names of autograd nodes; re compiles and caches them when first used, not on import.
_LAYOUT_OPS = r"Clone|View|Reshape|Permute|Transpose|[Ss]queeze|Alias|ToCopy|^TBackward|Movedim"
_POOLING_OPS = r"MaxPool|AvgPool|^Mean|^SumBackward|^Amax"
_PARAMETRIC_OPS = r"Convolution|Addmm|^Mm|Bmm|Linear|Baddbmm|^Mv|Addmv|^Dot|Einsum"
_ACTIVATION_OPS = (
    r"Relu|Hardtanh|Hardswish|Hardsigmoid|Sigmoid|Silu|Gelu|Elu|Tanh|Softplus|Clamp|Dropout|Mish|Threshold"
)
_LAYOUT_OR_ACTIVATION_OPS = f"{_LAYOUT_OPS}|{_ACTIVATION_OPS}"


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
        inputs: what the model takes; of a tensor, only the first image is run.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        The layer's dotted name. Costs one forward pass and one backward pass.

    Raises:
        CamlibRuntimeError: no layer qualifies; the message names the last maps seen.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_layer(torchvision.models.vgg11(), torch.rand(1, 3, 64, 64))
        'features.19'
    """
    model = unwrap(model)
    inputs = _ready(model, inputs, forward)
    if isinstance(inputs, Tensor):
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
        outputs = (forward or call_eagerly)(model, inputs)
        if not isinstance(outputs, Tensor):
            raise CamlibTypeError(
                f"the model returns a {type(outputs).__name__}; to find its layer, pass forward=lambda model, "
                "inputs: ... that picks the tensor to be explained, or give layer="
            )
        if outputs.grad_fn is None:
            raise CamlibRuntimeError(
                "no layer leads to the model's outputs: they are detached, not differentiable (an argmax, say), or "
                f"made without submodules; {_seen(records)}"
            )
        return _choose(records, outputs, picture_size(inputs))


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


def _choose(records: list[_Record], outputs: Tensor, size: tuple[int, int] | None) -> str:
    """Put the four questions of the module docstring to the records, the last one first."""
    graph = _Graph(records, outputs)
    maps = [record for record in records if _is_grid(record, size) and record.node in graph.ancestors]
    features = [record for record in maps if graph.is_feature_map(record, outputs)]
    if not features:
        raise CamlibRuntimeError(f"no layer returns a feature map that leads to the score; {_seen(records)}")
    connected = _connected(features, outputs, size)
    candidates = [record for record in features if record.node in connected]
    through = graph.bottleneck(candidates)
    if through is None:
        if not candidates:
            raise CamlibRuntimeError(f"no position of any feature map reaches the score; {_seen(records)}")
        through = candidates[-1]
    if any(later.order > through.order and later.node not in connected for later in features):
        norms = [later for later in candidates if later.order > through.order and _is_norm(later.module)]
        through = norms[-1] if norms else through
    return graph.outermost(through, records)


def _is_grid(record: _Record, size: tuple[int, int] | None) -> bool:
    layout = infer_layout(tuple(record.tensor.shape), size)
    return layout is not None and layout.grid[0] * layout.grid[1] > 1


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _connected(records: list[_Record], outputs: Tensor, size: tuple[int, int] | None) -> set[Any]:
    """The nodes of the maps that a NaN sent back from the outputs reaches, beyond any prefix tokens."""
    nan = torch.full_like(outputs, torch.nan)
    with torch.autograd.set_detect_anomaly(False):
        gradients = torch.autograd.grad(outputs, [r.tensor for r in records], nan, allow_unused=True)
    reached = set()
    for record, gradient in zip(records, gradients, strict=True):
        layout = infer_layout(tuple(record.tensor.shape), size)
        if gradient is not None and isinstance(layout, Tokens):
            gradient = gradient[:, layout.prefix :]
        if gradient is not None and bool((gradient != 0).any()):
            reached.add(record.node)
    return reached


def _seen(records: list[_Record]) -> str:
    shapes = [f"{record.name} {tuple(record.tensor.shape)}" for record in records[-5:]]
    return f"the last outputs seen: {', '.join(shapes) or 'none'}. Give layer="


class _Graph:
    """The autograd graph of the discovery pass, from the outputs back to the first tapped tensors."""

    def __init__(self, records: list[_Record], outputs: Tensor) -> None:
        self._root = outputs.grad_fn
        # A leaf's source is the node that accumulates into it, the parent of its clone.
        self._sources = {record.node.next_functions[0][0] for record in records if record.tensor.is_leaf}
        self.ancestors = self._walk(self._root)

    @staticmethod
    def _walk(start: Any, without: Any = None) -> set[Any]:
        seen, stack = {start}, [start]
        while stack:
            for parent, _ in stack.pop().next_functions:
                if parent is not None and parent is not without and parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return seen

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
        """Whether a map is neither pooled from another nor class scores that are only pooled afterwards."""
        if re.search(_POOLING_OPS, self._maker(record, _LAYOUT_OPS)) or _pools(record.module):
            return False
        made_by_projection = re.search(_PARAMETRIC_OPS, self._maker(record, _LAYOUT_OR_ACTIVATION_OPS))
        one_map_per_class = outputs.dim() >= 2 and outputs.shape[1] in record.tensor.shape[1:]
        return not (made_by_projection and one_map_per_class and not self._parametric_after(record))

    def _parametric_after(self, record: _Record) -> bool:
        """Whether a convolution or matrix product lies between a record and the outputs."""
        behind = self._walk(record.node)
        after = self.ancestors - behind
        return any(re.search(_PARAMETRIC_OPS, node.name()) and record.node in self._walk(node) for node in after)

    def bottleneck(self, records: list[_Record]) -> _Record | None:
        """The last record that everything from the first grid to the outputs passes through."""
        for record in reversed(records):
            if not self._sources & self._walk(self._root, without=record.node):
                return record
        return None

    def outermost(self, record: _Record, records: list[_Record]) -> str:
        """The name of the outermost module around the record's maker that returns the same values."""
        by_node = {other.node: other for other in records}
        maker = record
        for node in self._rearranged(record.node):  # back to whoever returned these values first
            maker = by_node.get(node, maker)
        around = [  # and on to the containers that hand them on
            other.name
            for other in records[maker.order + 1 :]
            if maker.name.startswith(f"{other.name}.") and maker.node in self._rearranged(other.node)
        ]
        called = [other.name for other in records]
        once = [name for name in (maker.name, *around) if called.count(name) == 1]
        if not once:
            raise CamlibRuntimeError(
                f"the last feature map is made by {maker.name!r}, which is called more than once; give layer="
            )
        return min(once, key=len)


def _pools(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()
