"""The call of a method as a function of tensors: images, and perhaps classes, to outputs and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.exporting.preprocessing import Preprocessing
from camlib.exporting.resizing import resized_by_products
from camlib.imaging.extent import Covered, cells_of_input, laid_over
from camlib.imaging.normalization import is_constant, normalized
from camlib.imaging.resizing import checked_grid
from camlib.inputs import Inputs
from camlib.layers.layouts import Frames, Layout
from camlib.methods.base import ActivationMethod, GradientMethod, LayerMethod, Method, one_pass
from camlib.methods.cam import CAM, cam
from camlib.methods.finer_cam import FinerCAM
from camlib.methods.fusion import fuse
from camlib.passes.balancing import PlainGradients
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.hooks import Cut, Watch, hooked
from camlib.passes.numbers import single_or_double
from camlib.passes.precision import full_precision
from camlib.targets import TopK
from camlib.targets.classes import all_logits
from camlib.targets.indices import class_indices

CLASS_INDEX = "class_index"
"""The target that is a second input of the graph."""
Target = None | int | TopK | str
"""The predicted class, a class, the K classes with the highest outputs, or :data:`CLASS_INDEX`."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a method for images of one kind.

    Args:
        method: the method.
        layers: the layers that it reads, by name.
        layouts: their layouts; without the layers behind ``reshape=``.
        covered: which part of the images the maps cover; None for the whole.
        spatial: the spatial axes of the images.
        input_size: the size of the images, for which the layouts and ``covered`` hold.
        target: what is explained.
        classes: the number of classes; 0 if the outputs hold none.
        heatmap_size: the size of the heatmaps; None for that of the images.
        normalize: whether heatmaps are in [0, 1], or maps that are only resized.
        preprocessing: what is done with the pictures first.
    """

    method: Method
    layers: Mapping[str, nn.Module]
    layouts: Mapping[str, Layout]
    covered: Covered | None
    spatial: tuple[int, ...]
    input_size: tuple[int, ...]
    target: Target
    classes: int
    heatmap_size: tuple[int, ...] | None
    normalize: bool
    preprocessing: Preprocessing | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        images = "images" if self.preprocessing is None else "pictures"
        return (images, CLASS_INDEX) if self.target == CLASS_INDEX else (images,)

    def images(self, given: Tensor) -> Tensor:
        """Return the images of what the graph is given."""
        if self.preprocessing is None:
            return given
        dtype = next((one.dtype for one in self.method.model.parameters() if one.is_floating_point()), torch.float32)
        return self.preprocessing(given, dtype)

    def __call__(self, given: Tensor, class_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs and the heatmaps (N, H, W), or (N, K, H, W) for K classes.

        The model must be in eval mode, and autograd off.
        """
        network, images = self.method.network, self.images(given)
        needs_gradients = self.method.needs_gradients or isinstance(self.method, CAM)
        watch = Cut(self.layers) if needs_gradients else Watch(self.layers)
        with hooked(watch.hooks()):
            outputs = network.scored(Inputs(images))
        with full_precision(images.device):
            features = watch.activations()
            if isinstance(watch, Cut):
                maps = self._of_classes(features, watch, outputs, class_index)
            else:
                maps = self._fused({name: self._maps(name, one, None) for name, one in features.items()})
            heatmaps = self._heatmaps(maps, tuple(images.shape[axis] for axis in self.spatial))
        table = outputs if isinstance(outputs, Tensor) else all_logits(outputs)
        return table.detach(), heatmaps

    def _of_classes(self, features: Mapping[str, Tensor], cut: Cut, outputs: Any, class_index: Tensor | None) -> Tensor:
        with torch.enable_grad():
            table = all_logits(outputs)
            classes = class_indices(self.target, table.detach()) if class_index is None else class_index
            scores = table.gather(1, classes if classes.dim() == 2 else classes[:, None]).unbind(1)
        found = []
        for number, score in enumerate(scores, 1):
            gradients = cut.gradients(score, retain_graph=number < len(scores))
            pairs = zip(features.items(), gradients, strict=True)
            found.append(self._fused({name: self._maps(name, one, own) for (name, one), own in pairs}))
        return torch.stack(found, 1) if classes.dim() == 2 else found[0]

    def _maps(self, layer: str, features: Tensor, gradient: Tensor | None) -> Tensor:
        """The maps of a layer, as :meth:`camlib.methods.Method.explanation` makes them."""
        activations = self._grid(layer, features)
        if gradient is None:
            assert isinstance(self.method, ActivationMethod)
            maps = self.method.maps(activations)
        elif isinstance(self.method, GradientMethod):
            maps = self.method.maps(activations, self._grid(layer, gradient))
        else:  # the gradient of a logit that is linear in the mean sums to the weights
            maps = cam(activations, self._grid(layer, gradient).flatten(2).sum(2))
        layout = self.layouts.get(layer)
        if isinstance(layout, Frames):
            maps = layout.by_image(maps)
        return maps.relu() if self.method.relu else maps

    def _grid(self, layer: str, features: Tensor) -> Tensor:
        reshape = self.method.network.reshape
        grid = self.layouts[layer].to_grid(features) if reshape is None else reshape(features)
        return single_or_double(grid.detach())

    def _fused(self, maps: Mapping[str, Tensor]) -> Tensor:
        scale = "minmax" if self.method.relu else "signed"
        return fuse(list(maps.values()), self.method.fuse, scale, len(self.spatial))

    def _heatmaps(self, maps: Tensor, input_size: tuple[int, ...]) -> Tensor:
        """As :meth:`camlib.Explanation.heatmaps`."""
        dims = len(self.spatial)
        size = self.heatmap_size or input_size
        extent = origin = None
        if self.covered is not None:
            extent, origin = self.covered.extent, self.covered.origin if any(self.covered.origin) else None
        resized = laid_over(maps, size, extent, input_size, origin, resized_by_products)
        if not self.normalize:
            return resized
        cells = cells_of_input(maps, extent, input_size, origin)
        degenerate = is_constant(cells, dims) | (cells.flatten(-dims).amax(-1) <= 0)
        heatmaps = normalized(resized.flatten(-dims), "minmax").masked_fill(degenerate[..., None], 0)
        return heatmaps.reshape(resized.shape)


def call_of(
    method: Any,
    inputs: Any,
    target: Any,
    heatmap_size: Any,
    normalize: bool,
    preprocessing: Preprocessing | None,
) -> Call:
    """Return the call of a method for images like ``inputs``, after one pass that finds layers and layouts.

    Raises:
        CamlibTypeError, CamlibValueError: an argument is invalid, or the method or target cannot be exported.
    """
    check_method(method)
    if not isinstance(inputs, Tensor):
        raise CamlibTypeError(
            f"inputs must be a tensor of images, (N, C, H, W), got {type(inputs).__name__}; for a model that takes "
            "more, build the method with forward=, a function from the images alone"
        )
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise CamlibTypeError(
            f"preprocessing must be a camlib.exporting.Preprocessing, got {type(preprocessing).__name__}"
        )
    check_target(method, target)
    draft = Call(method, {}, {}, None, (), (), target, 0, None, normalize, preprocessing)
    images = draft.images(inputs)
    classes = None if target == CLASS_INDEX or target is None else target
    with one_pass([method], images, classes) as (forward_pass,):
        explanation = method.explanation(forward_pass)
        found = _found(method, forward_pass)
        count = 0 if forward_pass.target.quantity == "none" else all_logits(forward_pass.outputs.raw).shape[1]
    if (
        explanation.input_size is None
        or forward_pass.inputs.axes is None
        or forward_pass.size != explanation.input_size
    ):
        raise CamlibTypeError(
            f"inputs {tuple(inputs.shape)} are no images of a known size; give images (N, C, H, W), signals (N, C, L), "
            "or volumes (N, C, T, H, W)"
        )
    extent, origin = explanation.extent, explanation.origin
    covered = None if extent is None else Covered(origin or (0.0,) * len(extent), extent)
    spatial = forward_pass.inputs.axes.spatial
    size = None if heatmap_size is None else checked_grid(heatmap_size, len(spatial))
    return Call(method, *found, covered, spatial, explanation.input_size, target, count, size, normalize, preprocessing)


def _found(method: Method, forward_pass: ForwardPass) -> tuple[dict[str, nn.Module], dict[str, Layout]]:
    """The layers of a pass, and their layouts."""
    layers = dict(method.layers_for(forward_pass.inputs))
    if method.network.reshape is not None:
        return layers, {}
    return layers, {name: forward_pass.layout(name) for name in layers}


def check_method(method: Any) -> None:
    """Refuse a method whose map is no function of activations and gradients alone.

    Raises:
        CamlibTypeError: not a method, or such a method.
    """
    if not isinstance(method, Method):
        raise CamlibTypeError(f"explainer must be a method, such as camlib.GradCAM(model), got {type(method).__name__}")
    name = type(method).__name__
    instead = "export camlib.GradCAM or camlib.LayerCAM instead, or explain with PyTorch"
    if method.stochastic:
        raise CamlibTypeError(f"{name} draws random numbers, which a graph would repeat; {instead}")
    of_maps = isinstance(method, CAM) or (
        isinstance(method, (ActivationMethod, GradientMethod))
        and type(method).layer_maps in (ActivationMethod.layer_maps, GradientMethod.layer_maps)
        and type(method).maps_by_layer is LayerMethod.maps_by_layer
        and method.compiles
    )
    if not of_maps:
        raise CamlibTypeError(
            f"{name} cannot be exported: its map is not a function of one layer's activations and gradients alone; "
            f"{instead}"
        )
    if isinstance(method, FinerCAM) or type(method).about is not Method.about:
        raise CamlibTypeError(
            f"{name} cannot be exported: it explains a contrast of classes; put the contrast into the model by "
            "forward=, and export camlib.GradCAM of that output"
        )
    if getattr(method, "upsample", False):
        raise CamlibTypeError(f"{name} with upsample=True cannot be exported; leave upsample out")
    if method.network.gradients is not PlainGradients:
        raise CamlibTypeError(
            f"{name} with balanced gradients cannot be exported: they change the graph of each pass; {instead}"
        )


def check_target(method: Method, target: Any) -> None:
    """Refuse a target that is no class.

    Raises:
        CamlibTypeError: a target of another kind.
        CamlibValueError: a class of a method that is the same for every class.
    """
    if target is not None and method.class_agnostic:
        raise CamlibValueError(
            f"{type(method).__name__} gives the same map for every class; leave target={target!r} out"
        )
    is_index = isinstance(target, str) and target == CLASS_INDEX
    if isinstance(target, bool) or not (target is None or isinstance(target, (int, TopK)) or is_index):
        raise CamlibTypeError(
            f'target must be None for the predicted class, a class index, camlib.TopK, or "{CLASS_INDEX}" for a second '
            f"input with a class for each image, got {target!r}; for another score build the method with forward= that "
            "returns it as outputs (N, 1), and export target=1"
        )
