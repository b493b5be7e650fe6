"""Find the layer: run one image with every module tapped, and read the connections of the autograd graph.

The layer to find is the last feature map that can influence the score at every position, before its grid is
pooled, flattened or turned into class scores. Four questions are asked about each feature map, starting at the last:

1. Is it a grid of more than one cell, each of which comes from its own place in the images (see ``positions``)?
2. Is it a map of features, and neither the output of a pooling layer nor class scores that are only pooled afterwards?
3. Does everything that reaches the score pass through it? A branch inside a residual block does not qualify. In
   networks where finer maps join later, such as feature pyramids, this condition would only hold far too early. There
   a later map qualifies if it contributes to every entry of the outputs, and if at least one path from it to the
   outputs is not mixed with anything that bypasses it.
4. Do its positions reach the score? A NaN is propagated back from the outputs. It survives multiplication by zero, so
   a zero-initialised head does not hide a connection; positions that it does not reach are not connected. After the
   last attention of a network that reads a class token, no patch is connected.

If question 4 fails for the last maps, the network reads a class token, and the answer is the last
normalisation whose patches still reach the score: the one before the last attention.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camlib.discovery.confirmation import contradiction, followed, is_followed, token_layout
from camlib.discovery.graph import Graph, Records, Tapped
from camlib.discovery.positions import Place
from camlib.discovery.scripted import Scripted
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.inputs import Inputs, Outputs
from camlib.inputs.nested import tensors_in
from camlib.layers.layouts import Layout, Size, Tokens, layout_of, one_stride
from camlib.passes.hooks import Hook, hooked, tap
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Forward, Network


class LayerInfo(NamedTuple):
    """A layer that the forward pass calls."""

    name: str
    """Dotted name, to pass as ``layer=``."""
    type: str
    """Class name of the module."""
    shape: tuple[int, ...]
    """Shape of its (first) output."""


def list_layers(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[LayerInfo]:
    """List the layers that a forward pass calls and that return a tensor, in the order in which they finish.

    A module that is called more than once is listed once per call; such a module cannot be explained.

    Args:
        model: any module.
        inputs: what the model takes.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        Name, type and output shape of each layer. Costs one forward pass.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> camlib.list_layers(model, torch.rand(1, 3, 64, 64))[-3]
        LayerInfo(name='layer4', type='Sequential', shape=(1, 512, 2, 2))
    """
    network = Network.of(model, forward)
    listed: list[LayerInfo] = []

    def note(name: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = next(tensors_in(output), None)
            if first is not None:
                listed.append(LayerInfo(name, type(module).__name__, tuple(first.shape)))

        return hook

    ready = network.ready(inputs)
    with undisturbed(network.module), hooked((module, note(name)) for name, module in _submodules(network)):
        network.run(ready)
    return listed


def _submodules(network: Network) -> list[tuple[str, nn.Module]]:
    """The modules that can be layers; scripted ones take no hooks."""
    modules = network.module.named_modules()
    return [(name, module) for name, module in modules if name and not isinstance(module, torch.jit.ScriptModule)]


def find_layer(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> str:
    """Find the layer to explain: the last feature map that can influence the score at every position.

    The result is the outermost module that returns this map. Pooling layers, classifiers, auxiliary heads, patch
    embeddings and maps of a single cell are never chosen. Only the connections of the graph matter, not values, so
    untrained networks and zero-initialised heads work.

    Args:
        model: any module.
        inputs: what the model takes; of a tensor or a list of images, only the first image is run, or all where the
            model does not take one alone.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``. The outputs must be a tensor,
            detections (the layer leads to all their scores), or have a tensor named "logits", "out",
            "logits_per_image", "pooler_output", "image_embeds" or "last_hidden_state".

    Returns:
        The layer's dotted name. Costs one forward pass and one backward pass.

    Raises:
        CamlibRuntimeError: no layer qualifies; the message lists the last module outputs.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_layer(torchvision.models.vgg11(), torch.rand(1, 3, 64, 64))
        'features.19'
    """
    network = Network.of(model, forward)
    return find_layer_in(network, network.ready(inputs))


def find_layer_in(network: Network, inputs: Inputs) -> str:
    """Return :func:`find_layer` for a network and its parsed inputs."""
    return _named(network, _find(network, inputs), [])[-1]


def find_stages(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[str]:
    """Find the layer to explain, and the last feature map of each larger grid before it.

    Args:
        model: any module.
        inputs: what the model takes; of a tensor or a list of images, only the first image is run, or all where the
            model does not take one alone.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``.

    Returns:
        The layers' dotted names, in the order in which they are computed; the last is that of :func:`find_layer`. Maps
        that other maps bypass, as in a U-Net, are left out. Costs one forward pass and one backward pass.

    Raises:
        CamlibRuntimeError: no layer qualifies; the message lists the last module outputs.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_stages(torchvision.models.resnet18(), torch.rand(1, 3, 64, 64))
        ['relu', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    network = Network.of(model, forward)
    return find_stages_in(network, network.ready(inputs))


def find_stages_in(network: Network, inputs: Inputs) -> list[str]:
    """Return :func:`find_stages` for a network and its parsed inputs."""
    found = _find(network, inputs)
    return _named(network, found, found.stages())


def _named(network: Network, found: _Found, records: list[Tapped]) -> list[str]:
    """The names of the maps, and of the one to explain; the network keeps their layouts."""
    names = list(dict.fromkeys(map(found.name, [*records, found.last])))
    for record, layout in found.layouts.items():
        if record.name in names:
            network.layouts[record.name, tuple(record.tensor.shape[1:]), found.size] = layout
    return names


def locate_tokens(network: Network, inputs: Inputs, layer: str, shape: Size) -> None:
    """Find the layout of a layer that returns tokens, by their positions in a pass; the network keeps it.

    Costs one forward pass of the first image, or nothing if the layout is known. Where no position can be followed,
    the layout is inferred from the shape as before.

    Args:
        network: the network.
        inputs: its inputs.
        layer: the layer's name.
        shape: the shape of its output.

    Raises:
        CamlibValueError: the tokens are not a grid of the images, row by row.
    """
    text = network.module.get_submodule(layer) in network.text_modules  # which is refused when its layout is read
    if text or (layer, shape[1:], inputs.size) in network.layouts:
        return
    first = inputs.first()
    positions = followed(first)
    seen: list[tuple[str, Size, Place]] = []

    def note(name: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = next(tensors_in(output), None)
            if tensor is not None:
                seen.append((name, tuple(tensor.shape), positions.of(tensor)))

        return hook

    tapped = [(module, note(name)) for name, module in _submodules(network)]
    with undisturbed(network.module), positions, hooked(tapped):
        network.run(first)
    if not any(is_followed(place, first) for _, _, place in seen):
        return
    problem: str | None = "its cells do not come from the images"
    for name, own, place in seen:  # the other layers of tokens are known from now on, too
        layout = token_layout(place, own, first)
        if layout is None:
            continue
        against = contradiction(place, layout, own, first)
        if against is None:
            network.layouts[name, own[1:], inputs.size] = layout
        if name == layer:
            problem = against
    if problem:
        raise CamlibValueError(
            f"layer {layer!r} returns shape {shape}, whose tokens are not the patches of the images row by row: "
            f"{problem}; choose another layer, leave layer= out, or pass reshape=, a function from that tensor to "
            "(N, C, h, w)"
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """The result of a discovery pass."""

    last: Tapped
    """The map to explain."""
    candidates: list[Tapped]
    """All feature maps whose positions reach the score, in order of computation."""
    layouts: dict[Tapped, Layout]
    records: Records
    graph: Graph
    size: Size | None
    """The spatial size of the inputs."""

    def name(self, record: Tapped) -> str:
        """The name of the outermost module that returns a map."""
        name = self.graph.outermost(record, self.records)
        assert name, "candidates have names"
        return name

    def stages(self) -> list[Tapped]:
        """The last map of each larger grid through which everything passes, then the map to explain.

        The output of a block is preferred to maps inside the next block.
        """
        stages: dict[Size, Tapped] = {}
        last = self.layouts[self.last].grid
        for record in self.candidates:
            grid = self.layouts[record].grid
            if record.order > self.last.order or math.prod(grid) <= math.prod(last) or not self.graph.all_pass(record):
                continue
            if self.size is None or one_stride(grid, self.size):  # not windows or heads
                best = stages.setdefault(grid, record)
                stages[grid] = record if record.name.count(".") <= best.name.count(".") else best
        return [*sorted(stages.values(), key=lambda record: record.order), self.last]


def _find(network: Network, inputs: Inputs) -> _Found:
    """Run the first image, or all images if the model does not take one alone, and read the graph."""
    first = inputs.first()
    try:
        return _find_in(network, first)
    except (CamlibRuntimeError, torch.OutOfMemoryError):
        raise
    except Exception:
        if first is inputs or len(first.raw) == len(inputs.raw):
            raise
    return _find_in(network, inputs)


def _find_in(network: Network, first: Inputs) -> _Found:
    """Run some images with every module tapped, and read the graph."""
    records: list[Tapped] = []

    def record(name: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor) or not first.is_floating_point():
                return None
            point, passed_on = tap(output, name)
            clone = passed_on if isinstance(passed_on, Tensor) else passed_on[0]
            records.append(Tapped(len(records), name, module, point, clone.grad_fn, positions.of(first)))
            return passed_on

        return hook

    positions, scripted = followed(first), Scripted(network.module, lambda: len(records))
    tapped = [(module, record(name)) for name, module in _submodules(network) if module not in network.text_modules]
    with undisturbed(network.module):
        # the hooks are gone before the backward pass, in which a checkpointed network calls its modules again
        with scripted.watching(), positions, hooked(tapped):
            outputs = network.run(first)
        with torch.enable_grad():
            score = _score(Outputs(outputs))
        if score.grad_fn is None:
            raise CamlibRuntimeError(
                "no layer leads to the model's outputs: they are detached, not differentiable (such as an argmax), or "
                f"computed without submodules; {_seen(records)}"
            )
        found = _choose(network.module, records, score, first)
    scripted.refuse_after(found.last.order)
    return found


def _score(outputs: Outputs) -> Tensor:
    """The tensor that the layer must lead to: the main tensor of the outputs, or the sum of all detection scores."""
    if outputs.is_detections:
        scores = torch.cat([detected["scores"] for detected in outputs.raw])
        if not scores.numel():
            raise CamlibRuntimeError(
                "nothing was detected in the first image, so there is no score to trace back to a layer; give layer=, "
                "use an image with something to detect, or lower the model's score threshold"
            )
        return scores.sum()
    if outputs.main is None:
        raise CamlibTypeError(
            f"the model returns a {type(outputs.raw).__name__}; to find its layer, pass forward=lambda model, "
            "inputs: ... that picks the tensor to explain, or give layer="
        )
    return outputs.main


def _choose(model: nn.Module, records: list[Tapped], outputs: Tensor, inputs: Inputs) -> _Found:
    """Ask the four questions of the module docstring about the records, starting at the last one."""
    size = None if inputs.is_list else inputs.size  # detectors resize images
    inferred = _grids(model, records, size)
    layouts = _confirmed(records, inferred, inputs)
    graph = Graph(outputs, layouts)
    maps = [record for record, layout in layouts.items() if graph.is_map(record, layout)]
    pooling = tuple(f"{name}." for name, module in model.named_modules() if name and _pools(module))
    features = [
        record for record in maps if graph.is_feature_map(record, outputs) and not f"{record.name}.".startswith(pooling)
    ]
    if not features:
        passed_over = [
            _passed_over(record, inferred, inputs) for record in records if record in inferred.keys() - layouts
        ]
        raise CamlibRuntimeError(
            f"no layer returns a feature map that leads to the score; {'; '.join([*passed_over[-1:], _seen(records)])}"
        )
    connected = _connected(features, outputs, layouts)
    reaching = [record for record in features if record.node in connected]
    if not reaching:
        raise CamlibRuntimeError(f"no position of any feature map reaches the score; {_seen(records)}")
    outputs_by_module = Records(records)
    candidates = [record for record in reaching if graph.outermost(record, outputs_by_module)]
    if not candidates:
        raise CamlibRuntimeError(
            f"every feature map that leads to the score comes from a module that is called more than once, the last "
            f"from {reaching[-1].name!r}; {_seen(records)}"
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
    return _Found(through, candidates, layouts, outputs_by_module, graph, size)


def _grids(model: nn.Module, records: list[Tapped], size: Size | None) -> dict[Tapped, Layout]:
    """The layouts of the records that are grids of more than one cell and whose first axis is the images.

    The first map's batch size is assumed to be the number of images. Windows, crops and regions of interest have more
    or fewer rows.
    """
    layouts: dict[Tapped, Layout] = {}
    for record in records:
        layout = layout_of(model, record.module, tuple(record.tensor.shape), size)
        if layout is not None and math.prod(layout.grid) > 1:
            first = next(iter(layouts), record)
            if len(record.tensor) == len(first.tensor):
                layouts[record] = layout
    return layouts


def _confirmed(records: list[Tapped], layouts: dict[Tapped, Layout], inputs: Inputs) -> dict[Tapped, Layout]:
    """The layouts that the positions of the pass confirm; all of them if no position could be followed.

    The layout of tokens follows from their positions.
    """
    if not any(is_followed(record.place, inputs) for record in records):
        return layouts
    confirmed = {}
    for record in records:
        shape = tuple(record.tensor.shape)
        layout = token_layout(record.place, shape, inputs) or layouts.get(record)
        if layout is None or math.prod(layout.grid) == 1 or not is_followed(record.place, inputs):
            continue
        if len(record.tensor) == inputs.count and contradiction(record.place, layout, shape, inputs) is None:
            confirmed[record] = layout
    return confirmed


def _passed_over(record: Tapped, inferred: dict[Tapped, Layout], inputs: Inputs) -> str:
    """Why a record that has the shape of a map is none."""
    shape = tuple(record.tensor.shape)
    problem = contradiction(record.place, inferred[record], shape, inputs) or "its cells do not come from the images"
    return f"{record.name!r} {shape} is not a map of the images: {problem}"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _connected(records: list[Tapped], outputs: Tensor, layouts: dict[Tapped, Layout]) -> set[Any]:
    """The nodes of the maps that a NaN propagated back from the outputs reaches, apart from prefix tokens."""
    nan = torch.full_like(outputs, torch.nan)
    with torch.autograd.set_detect_anomaly(False):
        gradients = torch.autograd.grad(outputs, [r.tensor for r in records], nan, allow_unused=True)
    reached = set()
    for record, gradient in zip(records, gradients, strict=True):
        layout = layouts[record]
        if gradient is not None and isinstance(layout, Tokens):
            gradient = gradient[:, layout.prefix : layout.prefix + math.prod(layout.grid)]
        if gradient is not None and bool((gradient != 0).any()):
            reached.add(record.node)
    return reached


def _seen(records: list[Tapped]) -> str:
    shapes = [f"{record.name} {tuple(record.tensor.shape)}" for record in records[-5:]]
    return f"the last module outputs: {', '.join(shapes) or 'none'}. Give layer="


def _pools(module: nn.Module) -> bool:
    return bool(re.search("[Pp]ool(?!Former)", type(module).__name__))
