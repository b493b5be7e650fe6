"""What every method shares: binding to a model, and from one forward pass to Explanations."""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from camlib.discovery.finding import find_layer_in
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs import Inputs, Size
from camlib.layers.names import resolve_layers
from camlib.methods.fusion import FUSIONS, fuse
from camlib.passes.forward_pass import ForwardPass, run
from camlib.passes.isolation import undisturbed
from camlib.passes.leaf import as_leaf
from camlib.passes.network import Forward, Network, Reshape
from camlib.passes.numbers import check_finite
from camlib.passes.precision import full_precision

Layer = str | nn.Module | Sequence[str | nn.Module] | None
Reads = Literal["layers", "attention", "input gradient", "inputs"]
"""What a method reads: layers, all attention, the input's gradient through the whole network, or the inputs alone."""


class Method(ABC):
    """A method bound to a model: a function from one forward pass to maps, :meth:`maps_by_layer`.

    Args:
        model: any module. Wrappers of ``torch.compile`` and ``DataParallel`` are removed, with a warning.
        layer: a dotted name, a module, or a list of those for one fused map; None to have the layer found
            (:func:`camlib.find_layer`) from the first input of each size, and remembered.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``: use it for several inputs or
            post-processing.
        reshape: ``reshape(tensor) -> (N, C, h, w)`` for layers whose layout is not inferred correctly. It is
            applied to activations and gradients alike, so it must only rearrange.
        relu: whether negative values are set to zero, as in most papers; False keeps the signed map.
        fuse: "mean" (the default), "max" or "product" of several layers' maps.

    Raises:
        CamlibTypeError: ``model`` is not a module.
        CamlibValueError: there is no such layer or fusion, or the method does not use an option that is given.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Agreement(camlib.methods.Method):  # where the channels of all layers agree
        ...     name = "agreement"
        ...     def maps_by_layer(self, forward_pass):
        ...         spread = {name: forward_pass.activations(name).std(1) for name in forward_pass.layers}
        ...         return {name: forward_pass.repeated(1 / one) for name, one in spread.items()}
        >>> Agreement(torchvision.models.resnet18(num_classes=4), ["layer3", "layer4"])(torch.rand(2, 3, 64, 64)).layer
        'layer3 + layer4'
        >>> class Brightness(camlib.methods.Method):
        ...     name = "brightness"
        ...     reads = "inputs"
        ...     needs_gradients = False
        ...     def maps_by_layer(self, forward_pass):
        ...         return {"": forward_pass.repeated(forward_pass.inputs.images.mean(1))}
        >>> Brightness(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str]
    """Its key in :data:`camlib.METHODS`."""
    reads: ClassVar[Reads] = "layers"
    """What it reads."""
    layerless: ClassVar[bool] = False
    """Whether it reads something else than layers, so that ``layer`` is refused; follows from :attr:`reads`."""
    class_agnostic: ClassVar[bool] = False
    """Whether the map is the same for every target."""
    stochastic: ClassVar[bool] = False
    """Whether it draws random numbers, from ``generator=`` and never from torch's global one."""
    needs_gradients: ClassVar[bool] = True
    """Whether the model must be differentiable."""
    finds_one_layer: ClassVar[bool] = True
    """Whether it reads the one layer that :func:`camlib.find_layer` finds, if none is given."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.layerless = cls.reads != "layers"

    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        forward: Forward | None = None,
        reshape: Reshape | None = None,
        relu: bool = True,
        fuse: str | None = None,
    ) -> None:
        if fuse is not None and fuse not in FUSIONS:
            raise CamlibValueError(f"fuse must be one of {', '.join(FUSIONS)}, got {fuse!r}")
        if fuse == "product" and not relu:
            raise CamlibValueError('fuse="product" would make positive evidence of two negatives; it needs relu=True')
        if self.layerless:
            unused = {"layer": layer, "fuse": fuse, "reshape": None if self.reads == "attention" else reshape}
            for option, value in unused.items():
                if value is not None:
                    raise CamlibValueError(f"{type(self).__name__} reads no layer; leave {option}={value!r} out")
        self.network = Network.of(model, forward, reshape)
        """The model, and the way it is called."""
        self.layers = {} if self.layerless else None if layer is None else resolve_layers(self.model, layer)
        """The layers that were given, by name; None if they are to be found."""
        self.relu = relu
        self.fuse = fuse or "mean"
        self._found: dict[Size | None, dict[str, nn.Module]] = {}

    @property
    def model(self) -> nn.Module:
        """The model, without wrappers."""
        return self.network.module

    def on(self, model: nn.Module) -> Self:
        """Return the method with the same options on another model; layers that were given are read by name there."""
        other = copy.copy(self)
        other.network = Network.of(model, self.network.forward, self.network.reshape)
        other.layers = self.layers and resolve_layers(other.model, list(self.layers))
        other._found = {size: resolve_layers(other.model, list(found)) for size, found in self._found.items()}
        return other

    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain the model's outputs for ``inputs``.

        The model runs in eval mode and is left as it was found, whatever happens. So are torch's random numbers,
        which all threads share: what another thread draws from them during the call, it may draw again after it.

        Args:
            inputs: what the model takes, usually images (N, C, H, W), on the model's device.
            target: None for the predicted class of each image; a class index, or one for each image; (N, K)
                indices or :class:`camlib.TopK` for K maps from the one forward pass; a callable from the
                outputs to (N,) or (N, K) scores; a :class:`camlib.targets.Target`.

        Returns:
            Maps (N, h, w), or (N, K, h, w) for K classes; of signals (N, l), of videos and volumes (N, t, h, w).

        Raises:
            CamlibValueError, CamlibTypeError: inputs or target cannot be understood.
            CamlibRuntimeError: the layer is not reached, is called twice or does not lead to the score, or a
                score, activation, gradient or map is not finite.
        """
        return explain_together([self], inputs, target)[0]

    @property
    def forward_passes(self) -> int | None:
        """How often each image runs through the network, for any number of classes; one more to find the layer.

        None where that depends on the inputs: the method's docstring says how.
        """
        return 1

    @abstractmethod
    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return the maps of each layer before the final ReLU: (N, ...), or (N, K, ...) for K classes.

        Args:
            forward_pass: of the images; :attr:`~camlib.passes.forward_pass.ForwardPass.layers` are those to read. A
                method that reads no layer returns its maps under the name "".
        """

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass with the target that the method explains: the one given, unless a method says otherwise."""
        return forward_pass

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the run of the network, for methods that must observe or change it.

        The forward pass keeps what the context returns in ``noted``, under the method's name.
        """
        return contextlib.nullcontext()

    def find_layers(self, inputs: Inputs) -> Sequence[str]:
        """Return the names of the layers to read where none were given."""
        return [find_layer_in(self.network, inputs)]

    def layers_for(self, inputs: Inputs, found: dict[Any, Sequence[str]] | None = None) -> Mapping[str, nn.Module]:
        """Return the layers to read: those given, or those found for inputs of this size.

        Args:
            inputs: what the model takes.
            found: what other methods on the same network have just found, by the function that looks for it.
        """
        if self.layers is not None:
            return self.layers
        size = None if inputs.is_list else inputs.size
        if size not in self._found:
            found = {} if found is None else found
            finder = type(self).find_layers
            if finder not in found:
                found[finder] = self.find_layers(inputs)
            self._found[size] = resolve_layers(self.model, list(found[finder]))
        return self._found[size]

    def located(self, inputs: Inputs, found: dict[Any, Sequence[str]] | None = None) -> Self:
        """Return the method with the layers that it reads for inputs of this size, whatever it is given later.

        Args:
            inputs: as for :meth:`layers_for`.
            found: as for :meth:`layers_for`.
        """
        other = copy.copy(self)
        other.layers = dict(self.layers_for(inputs, found))
        return other

    def explanation(self, forward_pass: ForwardPass) -> Explanation:
        """Return what the method makes of a pass."""
        forward_pass = self.about(forward_pass)
        by_layer = self.maps_by_layer(forward_pass)
        axes = forward_pass.scores.dim() + len(forward_pass.size or (0, 0))
        for layer, maps in by_layer.items():
            if not isinstance(maps, Tensor) or maps.dim() != axes:
                shape = tuple(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
                of_layer = f" of layer {layer!r}" if layer else ""
                raise CamlibTypeError(
                    f"{type(self).__name__} made {shape}{of_layer}; maps must be tensors (N, ...) with "
                    f"{axes - forward_pass.scores.dim()} axes of the grid, the channels summed, or (N, K, ...) for K "
                    "classes"
                )
        check_finite({f"map{_at(layer)}": [maps] for layer, maps in by_layer.items()})
        layers = {}
        for layer, maps in by_layer.items():
            layers[layer] = maps.relu() if self.relu else maps
        fused, *others = layers.values()
        if others:
            dims = axes - forward_pass.scores.dim()
            fused = fuse(list(layers.values()), self.fuse, "minmax" if self.relu else "signed", dims)
        return forward_pass.explanation(self.name, fused, {} if self.layerless else layers, self.class_agnostic)

    def __repr__(self) -> str:
        layer = "none" if self.layerless else "to be found" if self.layers is None else repr(" + ".join(self.layers))
        return f"{type(self).__name__}({type(self.model).__name__}, layer={layer})"


def _at(layer: str) -> str:
    return f" at layer {layer!r}" if layer else ""


class LayerMethod(Method):
    """A method that makes a map of each layer by itself: a subclass defines :meth:`layer_maps`.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Curvature(camlib.methods.LayerMethod):
        ...     name = "curvature"
        ...     def layer_maps(self, forward_pass, layer):
        ...         return forward_pass.stacked([product.sum(1) for _, product in forward_pass.second_order(layer)])
        >>> target = camlib.targets.Probability(1)
        >>> Curvature(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64), target).maps.shape
        torch.Size([2, 2, 2])
    """

    @abstractmethod
    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return the maps of a layer before the final ReLU: (N, ...), or (N, K, ...) for K classes."""

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :meth:`layer_maps` of every layer."""
        return {name: self.layer_maps(forward_pass, name) for name in forward_pass.layers}


class ActivationMethod(LayerMethod):
    """A method whose map is a function of the activations alone, the same for every class: :meth:`maps`.

    The model need not be differentiable.

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

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps`, repeated for each class."""
        return forward_pass.repeated(self.maps(forward_pass.activations(layer)))


class GradientMethod(LayerMethod):
    """A method whose map is a function of the activations and the gradients at a layer: :meth:`maps`.

    The forward pass, the target, several layers and classes, the final ReLU and the checks are shared.

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

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps` for each class."""
        return forward_pass.of_each_class(layer, self.maps)


def explain_together(methods: Sequence[Method], inputs: Any, target: Any = None) -> list[Explanation]:
    """Explain with several methods from one forward pass, cut at the layers of them all.

    Args:
        methods: on one network; a method that does not share its pass (:func:`shares_pass`) must be alone.
        inputs: as for :class:`Method`.
        target: as for :class:`Method`.

    Returns:
        An explanation for each method. One tail gradient serves all that explain the same scores.
    """
    with one_pass(methods, inputs, target) as passes:
        return [method.explanation(one) for method, one in zip(methods, passes, strict=True)]


def shares_pass(method: Method) -> bool:
    """Whether several methods can read one pass: attention and the input's gradient take a pass of their own."""
    return method.reads in ("layers", "inputs")


@contextlib.contextmanager
def one_pass(methods: Sequence[Method], inputs: Any, target: Any) -> Iterator[list[ForwardPass]]:
    """Run the network once, in eval mode, and compute in full precision inside the block.

    Args:
        methods: as for :func:`explain_together`.
        inputs: as for :class:`Method`.
        target: as for :class:`Method`.

    Yields:
        The pass for each method, with the layers it reads.
    """
    network = methods[0].network
    ready = network.ready(inputs)
    found: dict[Any, Sequence[str]] = {}
    _ = ready.size  # images of different sizes are refused before the network runs
    layers = [method.layers_for(ready, found) for method in methods]
    together = {name: module for own in layers for name, module in own.items()}
    differentiated = {
        name for method, own in zip(methods, layers, strict=True) if method.needs_gradients for name in own
    }
    whole = any(method.reads == "input gradient" for method in methods)
    agnostic = all(method.class_agnostic for method in methods)
    around = {method.name: method.around() for method in methods}
    with undisturbed(network.module):
        leaf, ready = as_leaf(ready) if whole else (None, ready)
        with torch.set_grad_enabled(whole):
            forward_pass = run(
                network, ready, together, differentiated, target, agnostic=agnostic, around=around, leaf=leaf
            )
        with full_precision(forward_pass.device):
            yield [forward_pass] if len(methods) == 1 else [forward_pass.reading(own) for own in layers]
