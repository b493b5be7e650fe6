"""What every method shares: binding to a model, and from one forward pass to Explanations."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from camlib import targets
from camlib.discovery.finding import find_layer
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs.batches import picture_batch, picture_size
from camlib.inputs.outputs import row_count
from camlib.layers.names import resolve_layers
from camlib.methods.fusion import FUSIONS, fuse
from camlib.passes.capture import Cut, Watch
from camlib.passes.forward_pass import Features, ForwardPass, check_finite
from camlib.passes.model import call_eagerly, check_device, checked_inputs, undisturbed, unwrap
from camlib.passes.padding import Padding
from camlib.passes.precision import callers_precision, full_precision

Layer = str | nn.Module | Sequence[str | nn.Module] | None


class Method(ABC):
    """A method bound to a model. Each declares what it is: see the class attributes.

    Args:
        model: any module. Wrappers of ``torch.compile`` and ``DataParallel`` are taken off, with a warning.
        layer: a dotted name, a module, or a list of those for one fused map; None to have the layer found from
            the first input (:func:`camlib.find_layer`) and remembered.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``: the door for several
            inputs and for post-processing.
        reshape: ``reshape(tensor) -> (N, C, h, w)`` for layers whose layout is not inferred rightly. It is
            applied to activations and gradients alike, so it must only rearrange.
        relu: whether negative values are cut off, as most papers have it; False keeps the signed map.
        fuse: "mean", "max" or "product" of several layers' maps.

    Raises:
        CamlibTypeError: ``model`` is not a module.
        CamlibValueError: there is no such layer or fusion.
    """

    name: ClassVar[str]
    """Its key in :data:`camlib.METHODS`."""
    class_agnostic: ClassVar[bool] = False
    """Whether the map is the same for every target."""
    layerless: ClassVar[bool] = False
    """Whether the method itself knows what to read, the input or all of the model, and ``layer`` is refused."""
    stochastic: ClassVar[bool] = False
    """Whether it draws random numbers, from ``generator=`` and never from torch's global ones."""
    needs_gradients: ClassVar[bool] = True
    """Whether the model must be differentiable."""
    finds_one_layer: ClassVar[bool] = True
    """Whether it reads the one layer that :func:`camlib.find_layer` finds, if none is given."""

    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        relu: bool = True,
        fuse: str = "mean",
    ) -> None:
        if fuse not in FUSIONS:
            raise CamlibValueError(f"fuse must be one of {', '.join(FUSIONS)}, got {fuse!r}")
        if fuse == "product" and not relu:
            raise CamlibValueError('fuse="product" would make positive evidence of two negatives; it needs relu=True')
        if self.layerless and layer is not None:
            raise CamlibValueError(f"{type(self).__name__} reads no layer; leave layer={layer!r} out")
        self.model = unwrap(model)
        self.layers = {} if self.layerless else None if layer is None else resolve_layers(self.model, layer)
        self.forward = forward
        self.reshape = reshape
        self.relu = relu
        self.fuse = fuse

    @abstractmethod
    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain the model's outputs for ``inputs``.

        The model runs in eval mode; it is left as it was found, whatever happens. So are torch's random numbers,
        which all threads share: what another thread draws from them during the call, it may draw again after it.

        Args:
            inputs: what the model takes, usually images (N, C, H, W), on the model's device.
            target: None for the predicted class of each image; a class index, or one for each image; (N, K)
                indices or :class:`camlib.targets.TopK` for K maps from the one forward pass; a callable from the
                outputs to (N,) or (N, K) scores; a :class:`camlib.targets.Target`.

        Returns:
            Maps (N, h, w), or (N, K, h, w) for K classes; of signals (N, l), of videos and volumes (N, t, h, w).

        Raises:
            CamlibValueError, CamlibTypeError: inputs or target cannot be understood.
            CamlibRuntimeError: the layer is not reached, is called twice or does not lead to the score, or a
                score, activation, gradient or map is not finite.
        """

    @property
    def forward_passes(self) -> int | None:
        """How often each image runs through the network, however many classes; finding the layer takes once more.

        None where that depends on the inputs: the method's docstring says how.
        """
        return 1

    def __repr__(self) -> str:
        layer = "none" if self.layerless else "to be found" if self.layers is None else repr(" + ".join(self.layers))
        return f"{type(self).__name__}({type(self.model).__name__}, layer={layer})"

    def _prepare(self, inputs: Any) -> Any:
        """Check the inputs, and find the layer if none has been given."""
        if self.forward is None:
            check_device(self.model, inputs)
        inputs = checked_inputs(self.model, inputs)
        if self.layers is None:
            self.layers = resolve_layers(self.model, self._find(inputs))
        return inputs

    def _find(self, inputs: Any) -> str | list[str]:
        """The layers to read where the user gave none."""
        return find_layer(self.model, inputs, forward=self.forward)

    def _run(self, inputs: Any) -> Any:
        return (self.forward or call_eagerly)(self.model, inputs)


class PassMethod(Method):
    """A method that reads one forward pass; several of them can read the same pass.

    Subclasses say in :meth:`maps_of_layers` what they make of it.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Agreement(camlib.methods.PassMethod):  # where the channels of all layers agree
        ...     name = "agreement"
        ...     def maps_of_layers(self, evidence):
        ...         return {name: evidence.repeated(1 / evidence.activations(name).std(1)) for name in self.layers}
        >>> Agreement(torchvision.models.resnet18(num_classes=4), ["layer3", "layer4"])(torch.rand(2, 3, 64, 64)).layer
        'layer3 + layer4'
    """

    def __call__(self, inputs: Any, target: Any = None) -> Explanation:  # noqa: D102 - inherited
        return explain_together([self], inputs, target)[0]

    @abstractmethod
    def maps_of_layers(self, evidence: ForwardPass) -> dict[str, Tensor]:
        """Return each layer's maps before the final ReLU: (N, ...), or (N, K, ...) for K classes."""

    def about(self, evidence: ForwardPass) -> ForwardPass:
        """Return the evidence that the method reads: on the target itself, unless a method says otherwise."""
        return evidence

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the forward pass, for methods that need it made in a special way.

        What the context gives is found in the evidence's ``noted`` under the method's name.
        """
        return contextlib.nullcontext()

    def explanation(self, evidence: ForwardPass) -> Explanation:
        """Return what the method makes of the pass."""
        evidence = self.about(evidence)
        layers = {name: self._cut_off(maps, name, evidence) for name, maps in self.maps_of_layers(evidence).items()}
        dims = next(iter(layers.values())).dim() - evidence.scores.dim()
        maps = fuse(list(layers.values()), self.fuse, "minmax" if self.relu else "signed", dims)
        return evidence.explanation(self.name, maps, layers, self.class_agnostic)

    def _cut_off(self, maps: Tensor, layer: str, evidence: ForwardPass) -> Tensor:
        axes = len(evidence.size or (0, 0))
        if not isinstance(maps, Tensor) or maps.dim() != evidence.scores.dim() + axes:
            shape = tuple(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
            raise CamlibTypeError(
                f"{type(self).__name__} made {shape} of layer {layer!r}; maps must be tensors (N, ...) with "
                f"{axes} axes of the grid, the channels summed, or (N, K, ...) for K classes"
            )
        check_finite({f"map at layer {layer!r}": [maps]})
        return maps.relu() if self.relu else maps


class LayerMethod(PassMethod):
    """A method that makes of each layer a map of its own: subclasses say in :meth:`layer_maps` which.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Curvature(camlib.methods.LayerMethod):
        ...     name = "curvature"
        ...     def layer_maps(self, evidence, layer):
        ...         return evidence.stacked([product.sum(1) for _, product in evidence.second_order(layer)])
        >>> target = camlib.targets.Probability(1)
        >>> Curvature(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64), target).maps.shape
        torch.Size([2, 2, 2])
    """

    @abstractmethod
    def layer_maps(self, evidence: ForwardPass, layer: str) -> Tensor:
        """Return the maps of a layer before the final ReLU: (N, ...), or (N, K, ...) for K classes."""

    def maps_of_layers(self, evidence: ForwardPass) -> dict[str, Tensor]:
        """Return :meth:`layer_maps` of every layer."""
        return {name: self.layer_maps(evidence, name) for name in self.layers or {}}


class PictureMethod(PassMethod):
    """A method that reads no layer and makes maps at the input's resolution: subclasses say in :meth:`maps` which.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Brightness(camlib.methods.PictureMethod):
        ...     name = "brightness"
        ...     needs_gradients = False
        ...     def maps(self, evidence):
        ...         return evidence.repeated(evidence.inputs.mean(1))
        >>> Brightness(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    layerless: ClassVar[bool] = True

    @abstractmethod
    def maps(self, evidence: ForwardPass) -> Tensor:
        """Return the maps before the final ReLU: (N, ...), or (N, K, ...) for K classes."""

    def maps_of_layers(self, evidence: ForwardPass) -> dict[str, Tensor]:
        """Return :meth:`maps` as those of a nameless layer."""
        return {"": self.maps(evidence)}

    def explanation(self, evidence: ForwardPass) -> Explanation:
        """Return the maps, which are no layer's."""
        evidence = self.about(evidence)
        maps = self._cut_off(self.maps(evidence), "", evidence)
        return evidence.explanation(self.name, maps, {}, self.class_agnostic)


class ActivationMethod(LayerMethod):
    """A method whose map is a function of the activations alone, the same for every class.

    Subclasses say that function in :meth:`maps`. The model need not be differentiable.

    Example:
        >>> import camlib, torch, torchvision
        >>> class MeanActivation(camlib.methods.ActivationMethod):
        ...     name = "mean_activation"
        ...     def maps(self, activations):
        ...         return activations.mean(1)
        >>> MeanActivation(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    class_agnostic: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def maps(self, activations: Tensor) -> Tensor:
        """Return the maps (N, ...), before the final ReLU, from a tensor (N, C, ...)."""

    def layer_maps(self, evidence: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps`, repeated for each class."""
        return evidence.repeated(self.maps(evidence.activations(layer)))


class GradientMethod(LayerMethod):
    """A method whose map is a function of the activations and the gradients at a layer.

    Subclasses say that function in :meth:`maps`; the forward pass, the target, several layers and classes,
    the final ReLU and the checks are done for them.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Elementwise(camlib.methods.GradientMethod):
        ...     name = "elementwise"
        ...     def maps(self, activations, gradients):
        ...         return (activations * gradients).relu().sum(1)
        >>> Elementwise(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    @abstractmethod
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps (N, ...), before the final ReLU, from two tensors (N, C, ...)."""

    def layer_maps(self, evidence: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps` for each class."""
        activations = evidence.activations(layer)
        return evidence.stacked([self.maps(activations, gradient) for gradient in evidence.gradients(layer)])


def explain_together(methods: Sequence[PassMethod], inputs: Any, target: Any = None) -> list[Explanation]:
    """Explain with several methods from one forward pass, cut at the layers of them all.

    Args:
        methods: bound to one model, with one ``forward`` and one ``reshape``.
        inputs: as for :class:`Method`.
        target: as for :class:`Method`.

    Returns:
        An explanation for each method. One tail gradient serves all that explain the same scores.
    """
    first = methods[0]
    for method in methods:
        inputs = method._prepare(inputs)
    layers = {name: module for method in methods for name, module in (method.layers or {}).items()}
    differentiated = {name for method in methods if method.needs_gradients for name in method.layers or {}}
    watch = Cut(layers, watched=layers.keys() - differentiated) if differentiated else Watch(layers)
    with undisturbed(first.model), contextlib.ExitStack() as around:
        noted = {method.name: around.enter_context(method.around()) for method in methods}
        evidence = forward_pass(first, watch, inputs, target, all(method.class_agnostic for method in methods))
        evidence.noted = noted
        with full_precision(evidence.device):
            return [method.explanation(evidence) for method in methods]


def forward_pass(method: Method, watch: Watch, inputs: Any, target: Any, agnostic: bool = False) -> ForwardPass:
    """Run the method's model once, its layers watched or cut.

    Args:
        method: whose model, ``forward`` and ``reshape`` are used.
        watch: the layers.
        inputs: what the model takes.
        target: as for :class:`Method`.
        agnostic: whether outputs that hold no classes will do where there is no target.
    """
    size, padding = picture_size(inputs), Padding(method.model, inputs)
    with callers_precision(), watch.hooked(), padding.noted():
        outputs = method._run(inputs)
    evidence = ForwardPass(
        model=method.model,
        inputs=inputs,
        outputs=outputs,
        target=_resolved(target, outputs, agnostic),
        images=_images(inputs, outputs, watch),
        watch=watch,
        size=size,
        extent=padding.extent,
        reshape=method.reshape,
    )
    with callers_precision():
        _ = evidence.scores  # under the autocast that the outputs were made in
    return evidence


def _resolved(target: Any, outputs: Any, agnostic: bool) -> targets.Target:
    try:
        return targets.resolve(target, outputs)
    except CamlibTypeError:
        if target is None and agnostic:
            return Features()
        raise


def _images(inputs: Any, outputs: Any, watch: Watch) -> int:
    """The number of images: the rows of the outputs.

    Raises:
        CamlibRuntimeError: a layer's batch is not the images (windows or crops, say, are rows to it).
    """
    activations = dict(zip(watch.names, watch.activations(), strict=True))
    images = row_count(outputs)
    if images is None:
        images = len(next(iter(activations.values()))) if activations else len(picture_batch(inputs))
    for name, tensor in activations.items():
        if len(tensor) != images:
            raise CamlibRuntimeError(
                f"layer {name!r} returns shape {tuple(tensor.shape)}, a batch of {len(tensor)}, for {images} rows of "
                "outputs; choose a layer whose first axis is the images"
            )
    return images
