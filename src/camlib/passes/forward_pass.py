"""One forward pass, as methods read it: outputs, scores, and each layer's activations and gradients on a grid."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.explanation import Explanation
from camlib.imaging.extent import Covered, resized_to_input
from camlib.inputs import ImageAxes, Inputs, Outputs
from camlib.layers.layouts import Frames, Layout, Tokens, grid_error
from camlib.layers.names import module_of
from camlib.layers.texts import text_error
from camlib.passes.balancing import PlainGradients
from camlib.passes.chunks import Chunks
from camlib.passes.hooks import Cut, Watch, hooked
from camlib.passes.leaf import as_leaf, gradient
from camlib.passes.network import Network, Reshape, modules_of, state
from camlib.passes.norms import right_norms
from camlib.passes.numbers import Checks, single_or_double
from camlib.passes.padding import Padding
from camlib.passes.perturbed import PerturbedPasses
from camlib.passes.precision import Precision, restored
from camlib.passes.recurrent import differentiable
from camlib.passes.rows import check_rows
from camlib.passes.tail_gradients import of_each_class


class NoScore(targets.BoundTarget):
    """No score: the target of class-agnostic methods for a network whose outputs hold no classes."""

    explained = "features"
    quantity = "none"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return NaN for each row."""
        return torch.full((len(image_index),), torch.nan, device=image_index.device)


class ForwardPass:
    """One forward pass of N images. Everything is computed at most once, when it is first needed.

    Args:
        network: the network that ran.
        inputs: its inputs.
        outputs: its outputs.
        target: the target, bound to the outputs.
        scores: the target's scores, (N,) or (N, K), in the autograd graph.
        watch: the layers of the pass; a ``Cut`` if there are gradients.
        features: each layer's output by name, in its own layout and precision.
        extent: the size that the layers saw, in the input's pixels, if it is larger: a detector pads its images.
        noted: by method name, the value of the context from :meth:`camlib.methods.Method.around`.
        leaf: the images (N, C, ...) for gradients with respect to the input; None without such gradients.
        image_index: (N,), the number of each row's image, by which the target knows it.
        gradients: the gradients of the pass, which prepare the graph of each target's scores.
    """

    def __init__(
        self,
        network: Network,
        inputs: Inputs,
        outputs: Outputs,
        target: targets.BoundTarget,
        scores: Tensor,
        watch: Watch,
        features: Mapping[str, Tensor],
        extent: tuple[float, ...] | None,
        noted: Mapping[str, Any],
        leaf: Tensor | None,
        image_index: Tensor,
        gradients: PlainGradients,
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.outputs = outputs
        self.target = target
        self.explained = target.explained
        self.scores = scores
        self.watch = watch
        self.features = features
        self.extent = extent
        self.noted = noted
        self.leaf = leaf
        self.image_index = image_index
        """(N,), the number of each image; of copies of images, that of the image."""
        self._prepared = gradients
        gradients.prepare(scores, outputs.tensors)
        self.checks = Checks()
        """The checks of all numbers, which are evaluated together, once for all methods that share the pass."""
        self.layers: Sequence[str] = tuple(features)
        """The layers that the current method reads."""
        self.count = len(scores)
        """N, the number of images."""
        self.device = outputs.device
        self.size = inputs.size
        """The input's spatial size, (L,), (H, W) or (T, H, W); None if it held no images."""
        self.precision = Precision.current(self.device)
        self._layouts: dict[str, Layout] = {}
        self._activations: dict[str, Tensor] = {}
        self._derivatives: dict[str, Any] = {}  # of the scores, so they depend on the target

    def reading(self, layers: Iterable[str]) -> ForwardPass:
        """Return the same pass for a method that reads some of its layers."""
        other = copy.copy(self)
        other.layers = tuple(layers)
        return other

    def along(self, axes: ImageAxes | None) -> ForwardPass:
        """Return the same pass, with the images where the layers show them to be."""
        other = copy.copy(self)
        other.inputs = self.inputs.along(axes)
        other.size = other.inputs.size
        return other

    def about(self, target: targets.BoundTarget) -> ForwardPass:
        """Return the same pass with another target, with shared activations and new scores and gradients."""
        other = copy.copy(self)
        other.target, other.explained = target, target.explained
        with torch.enable_grad(), restored(self.precision):
            other.scores = targets.score(target, self.outputs.raw, self.image_index)
        other._prepared.prepare(other.scores, self.outputs.tensors)
        other._derivatives = {}
        return other

    def again(self, inputs: Inputs, image_index: Tensor) -> ForwardPass:
        """Run the network on rows, which are changed images, cut at the same layers, in the precision of this pass.

        The target stays bound to the outputs of this pass.

        Args:
            inputs: the inputs of the rows.
            image_index: (rows,), the number of each row's image.

        Raises:
            CamlibRuntimeError: the outputs have another number of rows.
        """
        modules = {name: module_of(self.network.module, name) for name in self.layers}
        with restored(self.precision):
            rows = run(self.network, inputs, modules, modules, self.target, image_index=image_index.to(self.device))
        rows.checks = Checks(rows.image_index)
        return rows

    def input_gradients(self, inputs: Inputs, image_index: Tensor) -> list[Tensor]:
        """Run the network on rows, which are changed images, and differentiate each class's score at their images.

        The target stays bound to the outputs of this pass.

        Args:
            inputs: the inputs of the rows.
            image_index: (rows,), the number of each row's image.

        Returns:
            (rows, C, ...) for each class, in single or double precision.

        Raises:
            CamlibRuntimeError: the scores do not depend on the images, or the outputs have another number of rows.
            NotFiniteError: a score or a gradient is not finite.
        """
        leaf, ready = as_leaf(inputs)
        with restored(self.precision), torch.enable_grad():
            rows = run(self.network, ready, {}, (), self.target, leaf=leaf, image_index=image_index.to(self.device))
        rows.checks = Checks(rows.image_index)
        gradients = [single_or_double(gradient(one, leaf)) for one in rows.score_of_each_class]
        rows.checks.finite("score", rows.scores)
        for one in gradients:
            rows.checks.finite("gradient at the images", one)
        rows.checks.evaluate()
        return gradients

    @property
    def score_of_each_class(self) -> tuple[Tensor, ...]:
        """The scores (N,) of each of the K classes, in the graph; a single one if there is no class axis."""
        with torch.enable_grad():
            return self.scores.unbind(1) if self.scores.dim() == 2 else (self.scores,)

    def stacked(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the maps (N, ...) of all classes as one tensor, with a class axis if the scores have one."""
        return torch.stack(list(maps), 1) if self.scores.dim() == 2 else maps[0]

    def repeated(self, maps: Tensor) -> Tensor:
        """Return maps (N, ...) that are the same for every class, with a class axis if the scores have one."""
        return self.stacked([maps] * (self.scores.shape[1] if self.scores.dim() == 2 else 1))

    def of_each_class(self, layer: str, maps: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply a function of a layer's activations and gradients to each class; return the maps, :meth:`stacked`."""
        gradients = self._gradients(layer)
        return of_each_class(maps, self.activations(layer), gradients, self.scores.dim() == 2)

    def activations(self, layer: str) -> Tensor:
        """Return a layer's activations (N, C, ...), in single or double precision."""
        if layer not in self._activations:
            features = single_or_double(self.features[layer])
            grid = self._activations[layer] = self.to_grid(layer, features)
            of_rows = self.network.reshape is None or len(grid) == self.count
            checked = features if self.network.reshape is None else grid if of_rows else grid.abs().amax()
            self.checks.finite(f"activation at layer {layer!r}", checked, self._images_of_rows(layer))
        return self._activations[layer]

    def gradients(self, layer: str) -> Sequence[Tensor]:
        """Return the gradient of each class's scores, as grids like the activations.

        All layers share one tail gradient (K for K classes), which is computed when it is first needed.
        """
        found = self._gradients(layer)
        return [one.contiguous() for one in found.unbind(1)] if self.scores.dim() == 2 else (found,)

    def _gradients(self, layer: str) -> Tensor:
        """The gradient of the scores as a grid, with a class axis after the first if the scores have one."""
        if "first" not in self._derivatives:
            activations, gradients, cut = [], [], self.cut
            for name, gradient in zip(cut.cut, cut.gradients(self.scores, retain_graph=True), strict=True):
                features, grid = self._grids(name, self.features[name], gradient)
                activations.append(features)
                gradients.append(grid)
            activations, gradients = list(map(single_or_double, activations)), list(map(single_or_double, gradients))
            score = self.scores.detach()
            for name, activation, gradient in zip(cut.cut, activations, gradients, strict=True):
                layout = self._layouts.get(name)
                images = torch.arange(len(activation)) // layout.count if isinstance(layout, Frames) else None
                self.checks.finite(f"activation at layer {name!r}", activation, images)
                self.checks.finite(f"gradient at layer {name!r}", gradient, images)
            self.checks.finite("score", score)
            self._activations.update(zip(cut.cut, activations, strict=True))
            self._derivatives["first"] = dict(zip(cut.cut, gradients, strict=True))
        found: Tensor = self._derivatives["first"][layer]
        return found

    def _images_of_rows(self, layer: str) -> Tensor | None:
        """(rows,), the image of each row of a layer's output; None if the rows are the images."""
        layout = None if self.network.reshape is not None else self.layout(layer)
        if not isinstance(layout, Frames):
            return None
        rows = torch.arange(self.count * layout.count)
        return rows % self.count if layout.frames_first else rows // layout.count

    def second_order(self, layer: str) -> list[tuple[Tensor, Tensor]]:
        """Return (G, H A) for each class: the gradient, and the product of Hessian and activations, as grids."""
        if "second" not in self._derivatives:
            self._prepared.allow_second_derivatives()
            cut = self.cut
            of_classes = [cut.second_order(one) for one in self.score_of_each_class]
            self._derivatives["second"] = {
                name: [
                    tuple(map(single_or_double, self._grids(name, self.features[name], *pair)[1:])) for pair in pairs
                ]
                for name, pairs in zip(cut.cut, zip(*of_classes, strict=True), strict=True)
            }
            for name, grids in self._derivatives["second"].items():
                for one in itertools.chain(*grids):
                    self.checks.finite(f"second derivative at layer {name!r}", one)
        pairs: list[tuple[Tensor, Tensor]] = self._derivatives["second"][layer]
        return pairs

    def _grids(self, layer: str, features: Tensor, gradient: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """A layer's features, their gradient (N, [K,] ...) and other derivatives as grids.

        If the score reads only the class token, the pass raises an error when its checks are evaluated.
        """
        tensors = features, gradient, *others
        if self.network.reshape is not None:
            return tuple(self.to_grid(layer, tensor) for tensor in tensors)
        layout = self.layout(layer)
        grids = tuple(map(layout.to_grid, tensors))
        if isinstance(layout, Tokens) and layout.prefix:
            several = gradient.dim() > features.dim()
            pairs = zip(grids[1].unbind(1), gradient.unbind(1), strict=True) if several else [(grids[1], gradient)]
            for patches, tokens in pairs:
                self.checks.never(~patches.any() & tokens.any(), lambda: _class_token_only(layer))
        return grids

    def by_image(self, layer: str, maps: Tensor) -> Tensor:
        """Return a layer's maps by image: (N, T, h, w) if its rows are frames, else as they are, (N, ...)."""
        if self.network.reshape is not None or not isinstance(layout := self.layout(layer), Frames):
            return maps
        return layout.by_image(maps)

    def layout(self, layer: str) -> Layout:
        """Return the layout of a layer's output: where its channels and its grid are.

        Raises:
            CamlibValueError: its output has no reading as a grid.
        """
        if layer not in self._layouts:
            shape = tuple(self.features[layer].shape)
            module = module_of(self.network.module, layer)
            if module in self.network.text_modules:
                raise text_error(layer, shape)
            layout = self.network.located.layout(layer, shape, self.inputs)
            if layout is None:
                raise grid_error(shape, self.size, layer)
            frames = layout.count if isinstance(layout, Frames) else 1
            rows = shape[1] if isinstance(layout, Tokens) and layout.batch_second else shape[0]
            if rows != frames * self.count:
                raise CamlibRuntimeError(
                    f"layer {layer!r} returns shape {shape}, for {rows // frames} images, but the outputs have "
                    f"{self.count} rows; pass forward= that returns one row for each image, or explain "
                    "the images that the rows belong to"
                )
            self._layouts[layer] = layout
        return self._layouts[layer]

    def to_grid(self, layer: str, features: Tensor) -> Tensor:
        """Turn a layer's features (N, ...) into (N, C, ...); features with a class axis, (N, K, ...), keep it."""
        reshape = self.network.reshape
        if reshape is None:
            grid: Tensor = self.layout(layer).to_grid(features)
            return grid
        axes = None if self.size is None else len(self.size)
        if features.dim() == self.features[layer].dim():
            return reshaped(reshape, features, layer, axes, self.count)
        return torch.stack([reshaped(reshape, one, layer, axes, self.count) for one in features.unbind(1)], 1)

    @property
    def cut(self) -> Cut:
        """The layers, cut for gradients.

        Raises:
            CamlibRuntimeError: the method does not declare that it needs gradients.
        """
        if not isinstance(self.watch, Cut):
            raise CamlibRuntimeError(
                "the pass has no gradients, because the method declares needs_gradients = False; set it to True"
            )
        return self.watch

    @property
    def whole_leaf(self) -> Tensor:
        """The images (N, C, ...), for gradients with respect to the input.

        Raises:
            CamlibRuntimeError: the method does not declare that it reads the input's gradient.
        """
        if self.leaf is None:
            raise CamlibRuntimeError('the input has no gradient in this pass; declare reads = "input gradient"')
        return self.leaf

    def perturbed(self, what: str, chunks: Chunks) -> PerturbedPasses:
        """Return passes of perturbed copies of the images, with the same precision and target.

        Args:
            what: the title of the progress bar.
            chunks: how many rows run at a time.
        """
        return PerturbedPasses(
            network=self.network,
            inputs=self.inputs,
            count=self.count,
            target=self.target,
            device=self.device,
            precision=self.precision,
            chunks=chunks,
            what=what,
            checks=self.checks,
        )

    def _picture_size(self, layers: Iterable[str]) -> tuple[int, ...] | None:
        """The input's spatial size, with the number of frames where several channels of the input are one frame."""
        layouts = [self.layout(layer) for layer in layers] if self.network.reshape is None else []
        frames = next((layout for layout in layouts if isinstance(layout, Frames)), None)
        if self.size is None or frames is None:
            return self.size
        return (*self.size[: frames.axis], frames.count, *self.size[frames.axis + 1 :])

    def _outputs(self) -> Any:
        """The outputs, detached; tensors that are the model's own or shared among the inputs are noted as such."""
        if isinstance(self.outputs.raw, Tensor):
            return self.outputs.detached()
        return self.outputs.detached([*state(self.network.module), *(self.inputs.shared or ())])

    def covered(self, layer: str) -> Covered | None:
        """Return which part of the images a layer's maps cover; None for the whole images."""
        if self.extent is not None:
            return Covered((0.0,) * len(self.extent), self.extent)
        return self.network.located.covered(layer, self.inputs)

    def placed(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the maps of several layers for fusion: over the whole images, if a layer covers another part."""
        parts = {layer: self.network.located.covered(layer, self.inputs) for layer in maps}
        size = self._picture_size(maps)
        if size is None or not any(parts.values()):
            return maps
        whole = Covered((0.0,) * len(size), tuple(map(float, size)))
        return {
            layer: resized_to_input(own, size, (parts[layer] or whole).extent, size, (parts[layer] or whole).origin)
            for layer, own in maps.items()
        }

    def explanation(
        self, method: str, maps: Tensor, layers: Mapping[str, Tensor], class_agnostic: bool = False, relu: bool = True
    ) -> Explanation:
        """Return a method's maps as an explanation of this pass."""
        covered = self.covered(next(iter(layers))) if len(layers) == 1 else None
        return Explanation(
            maps=maps,
            scores=self.scores.detach(),
            outputs=self._outputs(),
            target=self.explained,
            method=method,
            layer=" + ".join(layers),
            input_size=self._picture_size(layers),
            layers=layers,
            extent=covered.extent if covered else self.extent if layers else None,
            origin=covered.origin if covered and any(covered.origin) else None,
            class_agnostic=class_agnostic,
            quantity=self.target.quantity,
            relu=relu,
        )


def _class_token_only(layer: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"after layer {layer!r} the score reads only the class token: the gradient of every patch is zero; choose a "
        "layer before the last attention, such as the last block's first norm, or leave layer= out"
    )


def run(
    network: Network,
    inputs: Inputs,
    layers: Mapping[str, nn.Module],
    differentiated: Collection[str],
    target: Any,
    *,
    agnostic: bool = False,
    around: Mapping[str, contextlib.AbstractContextManager[Any]] | None = None,
    leaf: Tensor | None = None,
    modules: Sequence[nn.Module] | None = None,
    image_index: Tensor | None = None,
) -> ForwardPass:
    """Run a network once, with its layers watched or cut, and bind the target to its outputs.

    Args:
        network: the network.
        inputs: its inputs.
        layers: the layers by name.
        differentiated: the names of the layers that are cut for gradients.
        target: as for :class:`camlib.methods.Method`.
        agnostic: whether to accept outputs without classes if no target is given.
        around: contexts for the run, by method name; their values become :attr:`ForwardPass.noted`.
        leaf: :attr:`ForwardPass.leaf`.
        modules: all modules of the network, if they are known.
        image_index: (rows,), the number of each row's image, for the target that is bound to the images already; None
            if the rows are the images.

    Raises:
        CamlibTypeError, CamlibValueError: the target does not fit the outputs.
        CamlibRuntimeError: a layer is not reached, or the outputs have another number of rows.
    """
    modules = modules_of(network.module) if modules is None else modules
    padding = Padding()
    padding_hooks = padding.hooks(modules, inputs.size)
    watch = Cut(layers, watched=layers.keys() - differentiated) if differentiated else Watch(layers)
    noted = {}
    with contextlib.ExitStack() as stack:
        for name, context in (around or {}).items():
            noted[name] = stack.enter_context(context)
        with right_norms(network, inputs), differentiable(modules), hooked([*watch.hooks(), *padding_hooks]):
            raw = network.scored(inputs)
    features = watch.activations()
    points = [one for one in (leaf, *watch.tensors().values()) if one is not None and one.requires_grad]
    outputs = Outputs(raw)
    if image_index is not None:
        check_rows(outputs, len(image_index))
        bound = target
    else:
        images = outputs.rows
        if images is None:
            images = len(next(iter(features.values()))) if features else inputs.count
        image_index = torch.arange(images, device=outputs.device)
        try:
            bound = targets.bind(target, raw)
        except CamlibTypeError:
            if target is not None or not agnostic:
                raise
            bound = NoScore()
    with torch.enable_grad():
        scores = targets.score(bound, raw, image_index)
    gradients = network.gradients(points)
    return ForwardPass(
        network, inputs, outputs, bound, scores, watch, features, padding.extent, noted, leaf, image_index, gradients
    )


def reshaped(
    reshape: Reshape, features: Tensor, layer: str, axes: int | None = None, images: int | None = None
) -> Tensor:
    """Apply the user's ``reshape`` to a layer's features.

    Args:
        reshape: the function.
        features: the layer's output.
        layer: its name, for errors.
        axes: how many spatial axes the result must have; None for one to three.
        images: N, if known.

    Returns:
        (N, C, ...), with a row for each image; or for each row of the features, if these are not the images.

    Raises:
        CamlibTypeError: the result has another shape or type.
    """
    grid = reshape(features)
    possible = (3, 4, 5) if axes is None else (2 + axes,)
    rows = {features.shape[0], images}
    if not isinstance(grid, Tensor) or grid.dim() not in possible or grid.shape[0] not in rows:
        shape = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        spatial = {1: "l", 2: "h, w", 3: "t, h, w"}[axes or 2]
        raise CamlibTypeError(
            f"reshape turned {tuple(features.shape)} of layer {layer!r} into {shape}; it must return a tensor "
            f"({features.shape[0] if images is None else images}, C, {spatial})"
        )
    return grid
