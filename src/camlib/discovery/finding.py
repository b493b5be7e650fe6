"""Find the layer: run one image with every module tapped, and read the connections of the autograd graph.

The layer to find is the last feature map that can influence the score at every position, before its grid is
pooled, flattened or turned into class scores. Four questions are asked about each feature map, starting at the last:

1. Is it a grid of more than one cell, each of which comes from its own place in the images (see ``positions``)?
2. Is it a map of features, and neither the network's output, nor that of a pooling layer, nor class scores that are
   only pooled afterwards?
3. Does everything that reaches the score pass through it? A branch inside a residual block does not qualify. In
   networks where finer maps join later, such as feature pyramids, this condition would only hold far too early. There
   a later map qualifies if it contributes to every entry of the outputs, and if at least one path from it to the
   outputs is not mixed with anything that bypasses it.
4. Do its positions reach the score? A NaN is propagated back from the outputs. It survives multiplication by zero, so
   a zero-initialised head does not hide a connection; positions that it does not reach are not connected. After the
   last attention of a network that reads a class token, no patch is connected.

If question 4 fails for the last maps, the network reads a class token, and the answer is the last
normalisation whose patches still reach the score: the one before the last attention. If the outputs read the patches
of the last map and, apart from them, its class token, the answer is the last normalisation whose patches reach that
class token, since the class token's part of the score does not show in the last map.

No layer is found where branches without a common trunk lead side by side to the score, or where the last map is
returned by no module, and the last module's map is several layers ahead of it. The errors name the layers.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camlib.discovery.confirmation import covered_part, followed, is_followed, layout_by_positions
from camlib.discovery.graph import FAR, Graph, Records, Tapped
from camlib.discovery.perturbation import problem_by_perturbation
from camlib.discovery.positions import Positions
from camlib.discovery.scripted import Scripted
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibWarning
from camlib.inputs import ImageAxes, Inputs, Outputs
from camlib.inputs.nested import tensors_in
from camlib.layers.layouts import ChannelsFirst, Layout, Size, Tokens, layout_of, with_grid
from camlib.passes.checkpoints import no_checkpoints
from camlib.passes.hooks import Hook, hooked, tap
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Forward, Network
from camlib.passes.recurrent import differentiable

MOST_NAMED = 8
"""The most layers that an error names."""


class LayerInfo(NamedTuple):
    """A layer that the forward pass calls."""

    name: str
    """Dotted name, to pass as ``layer=``; "name#2" for the second of several calls."""
    type: str
    """Class name of the module."""
    shape: tuple[int, ...]
    """Shape of its (first) output."""


def list_layers(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> list[LayerInfo]:
    """List the layers that a forward pass calls and that return a tensor, in the order in which they finish.

    A module that is called several times is listed once for each call, as "name#1", "name#2" and so on.

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
    called, seen = Counter(info.name for info in listed), Counter[str]()
    for number, info in enumerate(listed):
        if called[info.name] > 1:
            seen[info.name] += 1
            listed[number] = info._replace(name=f"{info.name}#{seen[info.name]}")
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
        CamlibRuntimeError: no layer qualifies, and the message lists the last module outputs; or several branches lead
            side by side to the score, and it lists their last maps.

    Example:
        >>> import camlib, torch, torchvision
        >>> camlib.find_layer(torchvision.models.vgg11(), torch.rand(1, 3, 64, 64))
        'features.19'
    """
    network = Network.of(model, forward)
    return find_layer_in(network, network.ready(inputs))


def find_layer_in(network: Network, inputs: Inputs) -> str:
    """Return :func:`find_layer` for a network and its parsed inputs."""
    return _named(_find(network, inputs), [])[-1]


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
    return _named(found, found.stages())


def find_entry_in(network: Network, inputs: Inputs) -> str:
    """Return the last feature map before the network's first branch, which enters its first block.

    Without branches this is the layer of :func:`find_layer`.
    """
    found = _find(network, inputs)
    return found.name(found.entry())


def _named(found: _Found, records: list[Tapped]) -> list[str]:
    """The names of the maps, and of the one to explain."""
    return list(dict.fromkeys(map(found.name, [*records, found.last])))


Located = dict[Tapped, tuple[ImageAxes, Layout]]
"""Where the images are that each map belongs to, and the map's layout."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The result of a discovery pass."""

    last: Tapped
    """The map to explain."""
    candidates: list[Tapped]
    """All feature maps whose positions reach the score, in order of computation."""
    located: Located
    records: Records
    graph: Graph

    @property
    def axes(self) -> ImageAxes:
        """Where the images are that the map to explain belongs to."""
        return self.located[self.last][0]

    def grid(self, record: Tapped) -> Size:
        """The grid of a map."""
        return self.located[record][1].grid

    def name(self, record: Tapped) -> str:
        """The name of the outermost module that returns a map."""
        return self.graph.outermost(record, self.records)

    def stages(self) -> list[Tapped]:
        """The last map of each larger grid through which everything passes, then the map to explain.

        The output of a block is preferred to maps inside the next block.
        """
        stages: dict[Size, Tapped] = {}
        for record in self.candidates:
            larger = math.prod(self.grid(record)) > math.prod(self.grid(self.last))
            same_images = self.located[record][0] == self.axes
            if record.order < self.last.order and larger and same_images and self.graph.all_pass(record):
                best = stages.setdefault(self.grid(record), record)
                stages[self.grid(record)] = record if record.name.count(".") <= best.name.count(".") else best
        return [*sorted(stages.values(), key=lambda record: record.order), self.last]

    def entry(self) -> Tapped:
        """The last map before the first branch: what enters the first block of a transformer or residual network.

        Branches inside the stem, which end before the first map through which everything passes, do not count.
        """
        of_images = [record for record in self.candidates if self.located[record][0] == self.axes]
        behind_stem = itertools.dropwhile(lambda record: not self.graph.all_pass(record), of_images)
        return next(reversed(list(itertools.takewhile(self.graph.all_pass, behind_stem))), self.last)


def axes_of_images(network: Network, inputs: Inputs) -> ImageAxes | None:
    """Return the axes of the images that the network's last map belongs to, or None for the usual axes.

    Images (N, C, H, W) with one or three channels have the usual axes. The result is cached on the network.

    Example:
        >>> import torch
        >>> class Recurrent(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.convolution, self.head = nn.Conv1d(6, 4, 3, padding=1), nn.Linear(4, 2)
        ...     def forward(self, series):  # (N, L, 6)
        ...         return self.head(self.convolution(series.mT).relu().mean(2))
        >>> axes_of_images(Network.of(Recurrent()), Inputs(torch.rand(2, 20, 6)))
        ImageAxes(tensor=0, spatial=(1,))
    """
    usual = inputs.axes
    if inputs.is_list or (usual is not None and inputs.images.dim() > 3 and inputs.images.shape[1] in (1, 3)):
        return None
    known = network.located.of("", inputs)
    if known is None:
        try:
            axes = _find(network, inputs).axes
        except Exception as error:  # no layer was found, or the model fails, which the call itself will report
            axes = usual or ImageAxes(0, ())
            runs = isinstance(error, CamlibError) and error.__cause__ is None
            if runs and usual is not None and inputs.images.dim() == 3 and network.forward is None:
                warnings.warn(
                    f"inputs {tuple(inputs.images.shape)} are read as signals (N, C, L), since no layer shows which "
                    "axis is the length; for series (N, L, C), pass inputs.mT and forward=lambda model, x: model(x.mT)",
                    CamlibWarning,
                    stacklevel=6,
                )
        network.located.add("", inputs, axes)
        return axes
    return known.axes


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


def _find_in(network: Network, inputs: Inputs) -> _Found:
    """Run some images with every module tapped, and read the graph."""
    records: list[Tapped] = []
    called = Counter[str]()

    def record(name: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            called[name] += 1
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor) or not first.is_floating_point():
                return None
            point, passed_on = tap(output, name)
            clone = passed_on if isinstance(passed_on, Tensor) else passed_on[0]
            place = positions.of(first)
            records.append(Tapped(len(records), name, called[name], module, point, clone.grad_fn, place))
            return passed_on

        return hook

    scripted = Scripted(network.module, lambda: len(records))
    tapped = [(module, record(name)) for name, module in _submodules(network) if module not in network.text_modules]
    with undisturbed(network.module) as modules, differentiable(modules):
        with torch.enable_grad():
            ready = inputs.map(_with_gradient)
        positions = followed(ready)
        # the hooks are gone before the backward pass, in which a checkpointed network calls its modules again
        with torch.enable_grad(), scripted.watching(), positions, hooked(tapped):
            outputs = network.run(ready)
        with torch.enable_grad():
            score = _score(Outputs(outputs))
        if score.grad_fn is None or not records:
            raise CamlibRuntimeError(
                "no layer leads to the model's outputs: they are detached, not differentiable (such as an argmax), or "
                f"computed without submodules; {_seen(records)}"
            )
        starts = [tensor.grad_fn for tensor in ready.tensors]
        choose = partial(_choose, network, records, starts=starts, outputs=score, inputs=inputs)
    try:
        found = _chosen(network, records, inputs, choose, followed_all=not positions.not_followed)
    except CamlibRuntimeError:
        scripted.refuse_after(-1)
        raise
    scripted.refuse_after(found.last.order)
    _remember(network, inputs, found, positions)
    return found


def _remember(network: Network, inputs: Inputs, found: _Found, positions: Positions) -> None:
    """Store where the cells of the map to explain lie, so that the next pass does not follow positions again."""
    axes, layout = found.located[found.last]
    place = found.last.place
    if network.reshape is not None or not is_followed(place, axes):
        return
    network.located.note_norms(positions.met_norms_of_maps and positions.met_transpositions)
    covered = covered_part(place, layout.grid, inputs, axes)
    network.located.add(found.name(found.last), inputs, axes, layout, tuple(found.last.tensor.shape), covered)


def _chosen(
    network: Network,
    records: list[Tapped],
    inputs: Inputs,
    choose: Callable[[Located], _Found],
    *,
    followed_all: bool,
) -> _Found:
    """Choose among the maps whose places are proved; then, if operations are unknown, among others that pass a test."""
    with undisturbed(network.module):
        located = {one: place for one in records if (place := _located(one, inputs)) is not None}
        inferred = {} if followed_all else _inferred(network.module, records, inputs)
        if not inferred:
            return choose(located)
        proved = _or_error(partial(choose, located))
        if isinstance(proved, _Found) and not any(
            one.order > proved.last.order and proved.graph.is_map(one) for one in inferred
        ):
            return proved
        all_maps = located | inferred
        found = _or_error(partial(choose, {one: all_maps[one] for one in records if one in all_maps}))
    if isinstance(found, _Found):
        name, layout, tokens = found.name(found.last), found.located[found.last][1], found.last.tensor.dim() == 3
        if found.last in located:
            return found
        problem = problem_by_perturbation(network, inputs, name, layout.to_grid, tokens)
        if problem is None:
            return found
        if found.last.tensor.dim() > 3 and found.graph.all_pass(found.last):
            raise _comes_later(name, found.last, problem)
    if isinstance(proved, _Found):
        return proved
    raise proved


def _or_error(function: Callable[[], _Found]) -> _Found | CamlibRuntimeError:
    """The function's result, or the reason why there is none."""
    try:
        return function()
    except CamlibRuntimeError as error:
        return error


def _with_gradient(tensor: Tensor) -> Tensor:
    """What may be images, in the graph: the flow to the outputs starts there."""
    return tensor.detach().requires_grad_().clone() if tensor.is_floating_point() and tensor.dim() > 1 else tensor


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


def _choose(
    network: Network,
    records: list[Tapped],
    located: Located,
    starts: Sequence[Any],
    outputs: Tensor,
    inputs: Inputs,
) -> _Found:
    """Ask the four questions of the module docstring about the located maps, starting at the last one."""
    layouts = {record: layout for record, (_, layout) in located.items()}
    pictured = {axes.tensor for axes, _ in located.values()}
    graph = Graph(outputs, layouts, [start for number, start in enumerate(starts) if number in pictured])
    maps = [record for record in located if graph.is_map(record)]
    modules = network.module.named_modules()
    pooling = tuple(f"{name}." for name, module in modules if name and _pools(module))

    def is_feature(record: Tapped) -> bool:
        return graph.is_feature_map(record, outputs) and not f"{record.name}.".startswith(pooling)

    features = list(filter(is_feature, maps))
    if not features:
        raise CamlibRuntimeError(
            "no layer returns a feature map that leads to the score; "
            f"{'; '.join([*_passed_over(records, located, inputs), _seen(records)])}"
        )
    connected = _connected(features, outputs, layouts, graph)
    reaching = [record for record in features if record.node in connected]
    if not reaching:
        raise CamlibRuntimeError(f"no position of any feature map reaches the score; {_seen(records)}")
    by_module = Records(records)
    through = graph.last_bottleneck(reaching) or reaching[-1]
    branches = graph.side_by_side(reaching, through) or graph.as_good_as(through, reaching)
    of_images = _of_most_axes(branches, located)
    if branches and (len(of_images) > 1 or len(branches) == 1):
        raise _several_branches(of_images, located, graph, by_module)
    through = of_images[0] if branches else through
    for record in filter(is_feature, reversed(records[through.order + 1 :])):
        problem = _why_not_shown(record, through, located, graph, inputs)
        if problem:
            raise _comes_later(graph.outermost(record, by_module), record, problem)
    tokens = [record for record in features if record.order > through.order and isinstance(layouts[record], Tokens)]
    if any(later.node not in connected for later in tokens):
        norms = [
            later
            for later in tokens
            if later.node in connected and _is_norm(later.module) and layouts[later].grid == layouts[through].grid
        ]
        through = norms[-1] if norms else through
    else:
        of_detections = outputs.dim() == 0  # whose heads read several levels, one of them for each box
        _refuse_if_far(through, [] if of_detections else reaching, located, graph, by_module)
        if not tokens:
            through = _read_by_class_token(through, features, outputs, layouts, graph) or through
    return _Found(through, reaching, located, by_module, graph)


def _class_token_is_read_apart(record: Tapped, outputs: Tensor, layout: Layout, graph: Graph) -> bool:
    """Whether the outputs read both the patches of the last map and, in another operation, only its class token."""
    if not isinstance(layout, Tokens) or not layout.prefix:
        return False
    reads_patches: list[bool] = []

    def note(node: Any) -> Callable[..., None]:
        def hook(gradients: Sequence[Tensor | None], _: Any) -> None:
            for (used, _number), gradient in zip(node.next_functions, gradients, strict=True):
                if used is record.node and gradient is not None and bool(gradient.ne(0).any()):
                    reads_patches.append(bool(layout.to_grid(gradient).ne(0).any()))

        return hook

    handles = [node.register_hook(note(node)) for node in graph.uses(record)]
    try:
        _reached([record], outputs, {record: layout})
    finally:
        for handle in handles:
            handle.remove()
    return any(reads_patches) and not all(reads_patches)


def _read_by_class_token(
    through: Tapped, features: list[Tapped], outputs: Tensor, layouts: dict[Tapped, Layout], graph: Graph
) -> Tapped | None:
    """The last normalisation whose patches reach the class token, if that is read apart from the patches."""
    alike = [one for one in features if one.order <= through.order and layouts[one] == layouts[through]]
    last = next(filter(graph.all_pass, reversed(alike)), None)
    if last is None or not _class_token_is_read_apart(last, outputs, layouts[last], graph):
        return None
    norms = [one for one in alike if one.order < last.order and _is_norm(one.module)]
    nan = torch.full_like(last.tensor, torch.nan)
    of_class_token = with_grid(layouts[last], nan, torch.zeros_like(layouts[last].to_grid(nan)))
    reached = _reached(norms, last.tensor, layouts, of_class_token)
    return next((one for one in reversed(norms) if one.node in reached), None)


def _refuse_if_far(through: Tapped, reaching: list[Tapped], located: Located, graph: Graph, records: Records) -> None:
    """Refuse a map that is several layers ahead of the last one, or is followed by branches with coarser maps."""
    name, shape = graph.outermost(through, records), tuple(through.tensor.shape)
    later = graph.map_behind(through)
    if later is not None and later[1] >= FAR:
        raise CamlibRuntimeError(
            f"the last feature map {later[0]} that leads to the score is returned by no module; the last one before "
            f"it, {name!r} {shape}, is several layers ahead. Put the end of the network's trunk into a separate "
            f"module, or give layer={name!r} to explain that map"
        )
    ends = graph.ends_behind(through, reaching)
    grid = located[through][1].grid
    far = any(layers >= FAR for _, layers in ends)
    if len(ends) > 1 and later is None and (far or any(located[end][1].grid != grid for end, _ in ends)):
        raise _several_branches([end for end, _ in ends], located, graph, records)
    if far:
        last = graph.outermost(ends[-1][0], records)
        raise CamlibRuntimeError(
            f"the last feature map that everything passes through, {name!r} {shape}, is several layers ahead of the "
            f"last one, {last!r} {tuple(ends[-1][0].tensor.shape)}, around which other values lead to the score. Put "
            f"the end of the network's trunk into a separate module, or give layer={name!r} or layer={last!r} to "
            "explain that map"
        )


def _why_not_shown(record: Tapped, through: Tapped, located: Located, graph: Graph, inputs: Inputs) -> str | None:
    """Why a later map of the same images is not shown; None if it is, or if it is no such map."""
    shape, axes = tuple(record.tensor.shape), located[through][0]
    if len(shape) != through.tensor.dim() or (len(shape) == 3 and shape != tuple(through.tensor.shape)):
        return None
    followed_there = bool(axes.spatial) and is_followed(record.place, axes)
    if record in located or len(shape) < 3 or not followed_there:
        return None
    if not graph.is_map(record) or not graph.all_pass(record):
        return None
    problem = layout_by_positions(record.place, shape, inputs, axes)
    return problem if isinstance(problem, str) else None


def _comes_later(name: str, record: Tapped, problem: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"the last feature map, {name!r} {tuple(record.tensor.shape)}, cannot be laid on the images: {problem}; give "
        "layer=, a layer before it, or a layer and reshape=, a function from its output to (N, C, h, w)"
    )


def _of_most_axes(branches: list[Tapped], located: Located) -> list[Tapped]:
    """The branches of the inputs with the most spatial axes: of an image, and not of a series that comes with it."""
    axes = [len(located[branch][0].spatial) for branch in branches]
    return [branch for branch, own in zip(branches, axes, strict=True) if own == max(axes)]


def _several_branches(branches: list[Tapped], located: Located, graph: Graph, records: Records) -> CamlibRuntimeError:
    names = [graph.outermost(branch, records) for branch in branches]
    if len(branches) == 1:
        return CamlibRuntimeError(
            f"the last feature map that leads to the score, {names[0]!r}, is only one of several branches, and the "
            f"others have no feature map with one row for each image; layer={names[0]!r} explains this branch alone"
        )
    numbers = [located[branch][0].tensor for branch in branches]
    several = len(set(numbers)) > 1
    listed = [f"{n!r} of input {number}" if several else repr(n) for n, number in zip(names, numbers, strict=True)]
    together = ", ".join(listed) if len(listed) <= MOST_NAMED else f"{', '.join(listed[:MOST_NAMED])}, ..."
    way_out = "the others in separate calls" if several else f"or all in one map: layer=[{together}]"
    return CamlibRuntimeError(
        f"several branches lead side by side from the inputs to the score. Their last feature maps are "
        f"those of {together}. Explain one of them, such as layer={names[-1]!r}, {way_out}"
    )


def _located(record: Tapped, inputs: Inputs) -> tuple[ImageAxes, Layout] | None:
    """Where the images are that a record is a map of, and its layout, by the positions of its cells."""
    shape = tuple(record.tensor.shape)
    if not inputs.tensors and len(shape) in (4, 5) and math.prod(shape[2:]) > 1:
        return ImageAxes(0, ()), ChannelsFirst(shape[2:])  # the inputs hold no images on which a map could be laid
    for axes in inputs.possible_axes():
        layout = layout_by_positions(record.place, shape, inputs, axes)
        if not isinstance(layout, str) and math.prod(layout.grid) > 1:
            return axes, layout
    return None


def _inferred(model: nn.Module, records: list[Tapped], inputs: Inputs) -> Located:
    """The same by the shapes alone, for records that could not be followed: one of them must be tested if chosen."""
    axes, size = inputs.axes, None if inputs.is_list else inputs.size
    if axes is None:
        return {}
    inferred = {}
    for record in records:
        shape = tuple(record.tensor.shape)
        layout = layout_of(model, record.module, shape, size)
        if (
            layout is not None
            and min(layout.grid) > 1
            and shape[0] == inputs.count
            and not is_followed(record.place, axes)
        ):
            inferred[record] = axes, layout
    return inferred


def _passed_over(records: list[Tapped], located: Located, inputs: Inputs) -> list[str]:
    """Why the last record that has the shape of a map is none; nothing if there is no such record."""
    for record in reversed(records):
        shape = tuple(record.tensor.shape)
        axes = next(iter(inputs.possible_axes()), None)
        if record not in located and len(shape) > 2 and math.prod(shape[2:]) > 1 and axes is not None:
            problem = layout_by_positions(record.place, shape, inputs, axes)
            return [f"{record.name!r} {shape} is not a map of the images: {problem}"]
    return []


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _connected(records: list[Tapped], outputs: Tensor, layouts: dict[Tapped, Layout], graph: Graph) -> set[Any]:
    """The nodes of the maps that a NaN propagated back from the outputs reaches, apart from prefix tokens.

    It stops at the last map on every path that it reaches; all earlier maps lead to that one.
    """
    passed_by_all = [number for number, record in enumerate(records) if graph.all_pass(record)]
    for first in [*(passed_by_all[-(2**step)] for step in range(len(passed_by_all).bit_length())), 0]:
        reached = _reached(records[first:], outputs, layouts)
        if any(records[number].node in reached for number in passed_by_all if number >= first):
            return reached | {record.node for record in records[:first]}
    return reached


def _reached(
    records: list[Tapped], outputs: Tensor, layouts: dict[Tapped, Layout], begin: Tensor | None = None
) -> set[Any]:
    """Return the nodes of the maps that a NaN reaches, from all outputs or from where ``begin`` is NaN."""
    nan = torch.full_like(outputs, torch.nan) if begin is None else begin
    with torch.autograd.set_detect_anomaly(False):
        points = [record.tensor for record in records]
        with no_checkpoints():
            gradients = torch.autograd.grad(outputs, points, nan, allow_unused=True, retain_graph=True)
    reached = set()
    for record, gradient in zip(records, gradients, strict=True):
        layout = layouts[record]
        if gradient is not None and isinstance(layout, Tokens):
            gradient = layout.to_grid(gradient)
        if gradient is not None and bool((gradient != 0).any()):
            reached.add(record.node)
    return reached


def _seen(records: list[Tapped]) -> str:
    shapes = [f"{record.name} {tuple(record.tensor.shape)}" for record in records[-5:]]
    return f"the last module outputs: {', '.join(shapes) or 'none'}. Give layer="


def _pools(module: nn.Module) -> bool:
    return bool(re.search("[Pp]ool(?!Former)", type(module).__name__))
