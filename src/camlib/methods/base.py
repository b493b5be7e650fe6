"""The base classes of all methods: each is a method on a model, and turns one forward pass into explanations."""

from __future__ import annotations

import contextlib
import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from camlib.discovery.confirmation import followed
from camlib.discovery.finding import axes_of_images, find_layer_in
from camlib.discovery.locating import KEYS, has_layouts, image_axes, is_located, locate
from camlib.errors import (
    CamlibError,
    CamlibRuntimeError,
    CamlibTypeError,
    CamlibValueError,
    CamlibWarning,
    boolean,
)
from camlib.explanation import Explanation
from camlib.inputs import Inputs, Size
from camlib.layers.layouts import Frames, Tokens
from camlib.layers.names import resolve_layers
from camlib.methods.compiled import Compiled
from camlib.methods.direct import DirectCalls, Simple
from camlib.methods.fusion import FUSIONS, fuse
from camlib.methods.options import refuses_unknown_arguments, refuses_unknown_options
from camlib.methods.partial import explained_where_finite, forgotten_after_errors, without_frames
from camlib.passes.forward_pass import ForwardPass, run
from camlib.passes.isolation import undisturbed
from camlib.passes.leaf import as_leaf
from camlib.passes.network import Forward, Network, Reshape
from camlib.passes.precision import full_precision
from camlib.targets.base import image_list

Layer = str | nn.Module | Sequence[str | nn.Module] | None
Reads = Literal["layers", "attention", "input gradient", "inputs"]
"""What a method reads: layers, all attention, the gradient of the whole network at the input, or only the inputs."""

OnNonfinite = Literal["raise", "nan"]
"""What a call does with images for which a number is not finite."""


class Method(ABC):
    """A method on a model. A subclass defines :meth:`maps_by_layer`, from one forward pass to maps.

    Args:
        model: any module. Wrappers of ``torch.compile`` and ``DataParallel`` are removed, with a warning.
        layer: a dotted name, "name#2" for a module's second call, a module, or a list of those for one fused map. None
            to find the layer (:func:`camlib.find_layer`) from the first input of each size, and remember it.
        forward: ``forward(model, inputs) -> outputs`` in place of ``model(inputs)``: use it for several inputs or
            post-processing.
        reshape: ``reshape(tensor) -> (N, C, h, w)`` for layers whose layout is not found. It is applied to activations
            and gradients alike, so it must only rearrange; the first pass checks where it puts the cells.
        relu: whether to set negative values to zero, as most papers do; False keeps the signed map.
        fuse: how to combine the maps of several layers: "mean" (the default), "max" or "product".
        on_nonfinite: what a call does if a number that the map depends on is NaN or infinite for some of the images.
            "raise" raises :class:`camlib.errors.NotFiniteError`. "nan" explains the other images without these, which
            takes another call; these get maps and scores of NaN (:attr:`camlib.Explanation.missing`), and a warning
            names them.

    Raises:
        CamlibTypeError: ``model`` is not a module, or there is no such option.
        CamlibValueError: the layer or fusion does not exist, or the method does not use an option that was given.

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
    """Whether it reads no layers, so that ``layer`` is refused; follows from :attr:`reads`."""
    class_agnostic: ClassVar[bool] = False
    """Whether the map is the same for every target."""
    stochastic: ClassVar[bool] = False
    """Whether it draws random numbers; they come from ``generator=``, never from torch's global generator."""
    needs_gradients: ClassVar[bool] = True
    """Whether the model must be differentiable."""
    of_each_row: ClassVar[bool] = False
    """Whether its map is made of each row of a layer alone, so that the rows may be frames of the images."""
    compiles: ClassVar[bool] = False
    """Whether a call is a fixed sequence of tensor operations, so that :meth:`compile` has an effect."""
    finds_one_layer: ClassVar[bool] = True
    """Whether it reads the layer that :func:`camlib.find_layer` finds when no layer is given."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.layerless = cls.reads != "layers"

    @refuses_unknown_options
    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        forward: Forward | None = None,
        reshape: Reshape | None = None,
        relu: bool = True,
        fuse: str | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> None:
        boolean("relu", relu)
        if not isinstance(on_nonfinite, str) or on_nonfinite not in get_args(OnNonfinite):
            raise CamlibValueError(f'on_nonfinite must be "raise" or "nan", got {on_nonfinite!r}')
        if fuse is not None and (not isinstance(fuse, str) or fuse not in FUSIONS):
            raise CamlibValueError(f"fuse must be one of {', '.join(FUSIONS)}, got {fuse!r}")
        if fuse == "product" and not relu:
            raise CamlibValueError('fuse="product" would turn two negative values into a positive; it needs relu=True')
        if self.layerless:
            unused = {"layer": layer, "fuse": fuse, "reshape": None if self.reads == "attention" else reshape}
            for option, value in unused.items():
                if value is not None:
                    raise CamlibValueError(f"{type(self).__name__} reads no layer; remove {option}={value!r}")
        self.network = Network.of(model, forward, reshape)
        """The model and how to call it."""
        self.layers = {} if self.layerless else None if layer is None else resolve_layers(self.model, layer)
        """The given layers, by name; None if they are still to be found."""
        self.relu = boolean("relu", relu)
        self.fuse = fuse or "mean"
        self.on_nonfinite = on_nonfinite
        self._found: dict[Size | None, dict[str, nn.Module]] = {}
        self._compiled: Compiled | None = None
        self._direct = DirectCalls()

    @property
    def model(self) -> nn.Module:
        """The model, without wrappers."""
        return self.network.module

    def on(self, model: nn.Module) -> Self:
        """Return the method with the same options on another model, where given layers are looked up by name."""
        other = copy.copy(self)
        other._compiled, other._direct = copy.copy(self._compiled), DirectCalls()
        other.network = self.network.on(model)
        other.layers = self.layers and resolve_layers(other.model, list(self.layers))
        other._found = {size: resolve_layers(other.model, list(found)) for size, found in self._found.items()}
        return other

    @refuses_unknown_arguments
    def __call__(self, inputs: Any, target: Any = None) -> Explanation:
        """Explain the model's outputs for ``inputs``.

        The model runs in eval mode, for all threads, so no other thread should train it meanwhile. Its state is
        restored afterwards, even after an error. The state of the global random number generators of torch, NumPy and
        Python is restored, too. All threads share them, so numbers that another thread draws during the call may be
        drawn again later.

        Args:
            inputs: what the model takes, usually images (N, C, H, W), on the model's device.
            target: None for the predicted class of each image; a class index, or one for each image; (N, K)
                indices or :class:`camlib.TopK` for K maps from a single forward pass; a callable from the
                outputs to (N,) or (N, K) scores; a :class:`camlib.targets.Target`.

        Returns:
            Maps (N, h, w), or (N, K, h, w) for K classes; (N, l) for signals, (N, t, h, w) for videos and volumes.

        Raises:
            CamlibValueError, CamlibTypeError: the inputs or the target are invalid.
            CamlibRuntimeError: the layer is not reached, is called twice or does not lead to the score.
            NotFiniteError: a score, activation, gradient or map is not finite; with ``on_nonfinite="nan"`` only if this
                holds for all images, or if the others cannot be explained without them.

        Warns:
            CamlibWarning: images have no map, with ``on_nonfinite="nan"``.
        """
        if self._compiled is None:
            direct = self._direct.explanation(cast(Simple, self), inputs, target)
            return explain_together([self], inputs, target)[0] if direct is None else direct
        return self._compiled(
            self,
            lambda given, of: explain_together([self], given, of)[0],
            self._unchecked if self.compiles else None,
            self.network.ready(inputs),
            target,
        )

    def compile(self, **options: Any) -> Self:
        """Compile the calls of this method with ``torch.compile``: forward pass, tail gradient and maps as one graph.

        The first call for inputs of a shape is slow, since it records and compiles the graph; later ones are fast.
        Ablation-CAM and Recipro-CAM, if the tail needs only the layer's output, and the subclasses of
        :class:`camlib.methods.GradientMethod` and :class:`camlib.methods.ActivationMethod`, except Guided Grad-CAM, are
        compiled. One graph serves all classes; every other target has its own graph. Other calls run eagerly, and a
        warning says why: in float16, and where the Python code of the model or of the target reads numbers, draws
        random numbers, changes the model's parameters or buffers, or returns more than tensors. Each graph is compared
        with eager calls, also of other images, before and after it is compiled.

        A graph is recorded again after modules, parameters, buffers or hooks of the model are replaced, or options of
        the method. Numbers that change in place, as in training, need no new graph. Call :meth:`compile` again after
        another change: of a module's other attributes, of an object that is an option or a target, or of what
        ``forward=`` reads. The Python code of the model and of its hooks runs only while a graph is recorded. A warning
        of a saturated probability appears only then, too.

        Args:
            **options: those of ``torch.compile``, such as ``mode="reduce-overhead"`` for CUDA graphs.

        Returns:
            The method itself.

        Raises:
            CamlibValueError: ``torch.compile`` does not take the options.

        Example:
            >>> import camlib, torch, torchvision
            >>> model = torchvision.models.resnet18(num_classes=4).eval()
            >>> cam = camlib.GradCAM(model).compile(backend="eager")  # leave the backend out for speed
            >>> cam(torch.rand(2, 3, 64, 64), target=1).maps.shape
            torch.Size([2, 2, 2])
        """
        self._compiled = Compiled(options)
        return self

    def _unchecked(self, inputs: Inputs, target: Any) -> tuple[Explanation, Tensor]:
        """The explanation, and whether each number that a call would check is finite."""
        with _unchecked_pass([self], inputs, target) as (forward_pass,):
            forward_pass.checks.recorded = True
            explanation = self.explanation(forward_pass)
            return explanation, forward_pass.checks.passed()

    @property
    def forward_passes(self) -> int | None:
        """Forward passes per image, for any number of classes; finding the layer takes one more.

        None if it depends on the inputs; the method's docstring then gives the number.
        """
        return 1

    @abstractmethod
    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return the maps of each layer before the final ReLU: (N, ...), or (N, K, ...) for K classes.

        Args:
            forward_pass: the pass of the images; its :attr:`~camlib.passes.forward_pass.ForwardPass.layers` are the
                layers to read. A method that reads no layer returns its maps under the name "".
        """

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass with the target that the method explains; by default the target that was given."""
        return forward_pass

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the network runs, for methods that must observe or change the run.

        The forward pass stores the context's value in ``noted``, under the method's name.
        """
        return contextlib.nullcontext()

    def find_layers(self, inputs: Inputs) -> Sequence[str]:
        """Return the names of the layers to read if none were given."""
        return [find_layer_in(self.network, inputs)]

    def layers_for(self, inputs: Inputs, found: dict[Any, Sequence[str]] | None = None) -> Mapping[str, nn.Module]:
        """Return the layers to read: the given ones, or those found for inputs of this size.

        Args:
            inputs: what the model takes.
            found: layers that other methods on the same network have just found, by the function that finds them.
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
        """Return the method fixed to the layers that it reads for inputs of this size.

        Args:
            inputs: as for :meth:`layers_for`.
            found: as for :meth:`layers_for`.
        """
        other = copy.copy(self)
        other._compiled, other._direct = copy.copy(self._compiled), DirectCalls()
        other.layers = dict(self.layers_for(inputs, found))
        return other

    def explanation(self, forward_pass: ForwardPass) -> Explanation:
        """Return the method's explanation of a pass."""
        forward_pass = self.about(forward_pass)
        by_layer = self.maps_by_layer(forward_pass)
        if self.of_each_row:
            by_layer = {layer: forward_pass.by_image(layer, maps) for layer, maps in by_layer.items()}
        axes = forward_pass.scores.dim() + len(forward_pass.size or (0, 0))
        for layer, maps in by_layer.items():
            if not isinstance(maps, Tensor) or maps.dim() != axes:
                shape = tuple(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
                of_layer = f" of layer {layer!r}" if layer else ""
                raise CamlibTypeError(
                    f"{type(self).__name__} returned {shape}{of_layer}; maps must be tensors (N, ...) with "
                    f"{axes - forward_pass.scores.dim()} grid axes and no channel axis, or (N, K, ...) for K classes"
                )
            forward_pass.checks.finite(f"map at layer {layer!r}" if layer else "map", maps)
        layers = {}
        for layer, maps in by_layer.items():
            layers[layer] = maps.relu() if self.relu else maps
        fused, *others = layers.values()
        if others:
            dims = axes - forward_pass.scores.dim()
            placed = forward_pass.placed(layers)
            fused = fuse(list(placed.values()), self.fuse, "minmax" if self.relu else "signed", dims)
        own = {} if self.layerless else layers
        return forward_pass.explanation(self.title, fused, own, self.class_agnostic, self.relu)

    @property
    def title(self) -> str:
        """Its name in results, which also says if its gradients are not the ordinary ones."""
        return f"{self.network.gradients.label}{self.name}"

    def __repr__(self) -> str:
        layer = "none" if self.layerless else "to be found" if self.layers is None else repr(" + ".join(self.layers))
        return f"{self.network.gradients.label}{type(self).__name__}({type(self.model).__name__}, layer={layer})"


class LayerMethod(Method):
    """A method that computes a map for each layer separately. A subclass defines :meth:`layer_maps`.

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
    """A method whose map depends only on the activations and is the same for every class.

    A subclass defines :meth:`maps`. The model does not have to be differentiable.

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
    of_each_row: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    @abstractmethod
    def maps(self, activations: Tensor) -> Tensor:
        """Return the maps (N, ...) before the final ReLU, from activations (N, C, ...)."""

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps`, repeated for each class."""
        return forward_pass.repeated(self.maps(forward_pass.activations(layer)))


class GradientMethod(LayerMethod):
    """A method whose map is a function of the activations and the gradients at a layer.

    A subclass defines :meth:`maps`. The base class handles the forward pass, the target, several layers and classes,
    the final ReLU and the checks.

    Example:
        >>> import camlib, torch, torchvision
        >>> class Elementwise(camlib.methods.GradientMethod):
        ...     name = "elementwise"
        ...     def maps(self, activations, gradients):
        ...         return (activations * gradients).relu().sum(1)
        >>> Elementwise(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    of_each_row: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    @abstractmethod
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps (N, ...) before the final ReLU, from activations and gradients (N, C, ...)."""

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :meth:`maps` for each class."""
        return forward_pass.of_each_class(layer, self.maps)


def explain_together(methods: Sequence[Method], inputs: Any, target: Any = None) -> list[Explanation]:
    """Explain with several methods from one forward pass, cut at all of their layers.

    Args:
        methods: methods on one network; a method that cannot share a pass (:func:`shares_pass`) must be the only one.
        inputs: as for :class:`Method`.
        target: as for :class:`Method`.

    Returns:
        An explanation for each method. Methods that explain the same scores share one tail gradient.
    """
    passes: list[ForwardPass] = []
    try:
        with forgotten_after_errors(methods), one_pass(methods, inputs, target) as passes:
            if any(method.needs_gradients for method in methods):
                passes[0].target.warn_if_flat()
            explanations = [method.explanation(one) for method, one in zip(methods, passes, strict=True)]
        if len(methods) == 1 and _is_simple(methods[0]):
            methods[0]._direct.learn(cast(Simple, methods[0]), passes[0], explanations[0])
        return explanations
    except CamlibError as error:
        if all(method.on_nonfinite == "raise" for method in methods):
            raise
        failure = without_frames(error)
    bound, count = (passes[0].target, passes[0].count) if passes else (None, None)
    passes.clear()
    if len(methods) > 1:  # an image costs only the methods whose numbers are not finite
        return [explain_together([method], inputs, target)[0] for method in methods]

    def explain(picked: Inputs, of_picked: Any) -> Explanation:
        with forgotten_after_errors(methods), one_pass(methods, picked, of_picked) as (one,):
            return methods[0].explanation(one)

    network = methods[0].network
    found = explained_where_finite(explain, network, network.ready(inputs), target, bound, count, failure)
    warnings.warn(f"no map for {image_list(found.missing)} of {len(found)}: {failure}", CamlibWarning, stacklevel=4)
    return [found]


def _is_simple(method: Method) -> bool:
    """Whether the map is only what ``maps`` makes of one layer's activations, or of these and the gradients."""
    kind = type(method)
    if method.stochastic or not isinstance(method, (ActivationMethod, GradientMethod)):
        return False
    base = GradientMethod if isinstance(method, GradientMethod) else ActivationMethod
    return all(
        getattr(kind, name) is getattr(base, name)
        for name in ("about", "around", "explanation", "maps_by_layer", "layer_maps", "title", "find_layers", "located")
    )


def shares_pass(method: Method) -> bool:
    """Whether the method can share a pass with others: attention and the input's gradient need a separate pass."""
    return method.reads in ("layers", "inputs")


@contextlib.contextmanager
def one_pass(methods: Sequence[Method], inputs: Any, target: Any) -> Iterator[list[ForwardPass]]:
    """Run the network once, in eval mode, and compute in full precision inside the block.

    Args:
        methods: as for :func:`explain_together`.
        inputs: as for :class:`Method`.
        target: as for :class:`Method`.

    Yields:
        The pass for each method, restricted to the layers that it reads.

    Raises:
        NotFiniteError: after the block, if a number is not finite.
    """
    with _unchecked_pass(methods, inputs, target) as passes:
        checks = passes[0].checks
        try:
            yield passes
        except Exception:
            checks.evaluate()  # a number that is not finite may be the cause
            raise
        checks.evaluate()


@contextlib.contextmanager
def _unchecked_pass(methods: Sequence[Method], inputs: Any, target: Any) -> Iterator[list[ForwardPass]]:
    """Yield the passes of :func:`one_pass`, but do not evaluate their checks, for which the host must wait."""
    network = methods[0].network
    ready = network.ready(inputs)
    found: dict[Any, Sequence[str]] = {}
    _ = ready.size  # images of different sizes are refused before the network runs
    layers = [method.layers_for(ready, found) for method in methods]
    for method in methods[1:]:
        network.located.learn(method.network.located)
    together = {name: module for own in layers for name, module in own.items()}
    differentiated = {
        name for method, own in zip(methods, layers, strict=True) if method.needs_gradients for name in own
    }
    with undisturbed(network.module) as modules:
        forward_pass = _pass(methods, network, ready, together, differentiated, target, modules)
        for method in methods[1:]:
            method.network.located.learn(network.located)
        for method, own in zip(methods, layers, strict=True):
            if not method.of_each_row and network.reshape is None:
                _refuse_other_rows(method, forward_pass, own)
        with full_precision(forward_pass.device):
            yield [forward_pass] if len(methods) == 1 else [forward_pass.reading(own) for own in layers]


def _refuse_other_rows(method: Method, forward_pass: ForwardPass, layers: Iterable[str]) -> None:
    for layer in layers:
        layout = forward_pass.layout(layer)
        if isinstance(layout, Tokens) and layout.batch_second:
            raise CamlibRuntimeError(
                f"layer {layer!r} has the images along its second axis, (tokens, N, C), which {type(method).__name__} "
                "cannot read; use a method of gradients, such as camlib.GradCAM or camlib.LayerCAM, or camlib.RISE"
            )
        if isinstance(layout, Frames):
            raise CamlibRuntimeError(
                f"layer {layer!r} has a row for each of {layout.count} frames, which {type(method).__name__} cannot "
                "read; use a method of gradients, such as camlib.GradCAM or camlib.LayerCAM, or one that reads no "
                "layer, such as camlib.RISE"
            )


def _pass(
    methods: Sequence[Method],
    network: Network,
    inputs: Inputs,
    layers: Mapping[str, nn.Module],
    differentiated: Collection[str],
    target: Any,
    modules: Sequence[nn.Module],
) -> ForwardPass:
    """Run the network once; in the first pass of inputs of a size, follow the positions to locate the layers."""
    whole = any(method.reads == "input gradient" for method in methods)
    agnostic = all(method.class_agnostic for method in methods)

    def attempt(follow: bool, whole_graph: bool) -> ForwardPass:
        leaf, ready = as_leaf(inputs) if whole else (None, inputs)
        around: dict[str, Any] = {method.name: method.around() for method in methods}
        if follow:
            around["positions"] = followed(ready)
        with torch.set_grad_enabled(whole_graph):
            return run(
                network,
                ready,
                layers,
                differentiated,
                target,
                agnostic=agnostic,
                around=around,
                leaf=leaf,
                modules=modules,
            )

    def once(follow: bool) -> ForwardPass:
        try:
            return attempt(follow, whole)
        except RuntimeError as error:
            if whole or "A view was created in no_grad mode" not in str(error):
                raise
        return attempt(follow, whole_graph=True)  # behind the layer, a view of what came before is changed in place

    read = [*layers, *([KEYS] if any(method.reads == "attention" for method in methods) else [])]
    if not read:
        inputs = inputs.along(axes_of_images(network, inputs))
    if is_located(network, inputs, read):
        inputs = inputs.along(image_axes(network, inputs, read))
        forward_pass = once(follow=False)
        if has_layouts(network, inputs, forward_pass.features):
            return forward_pass
    forward_pass = once(follow=True)
    positions = forward_pass.noted["positions"]
    network.located.note_norms(positions.met_norms_of_maps and positions.met_transpositions)
    locate(network, inputs, forward_pass.watch.tensors(), positions)
    axes = image_axes(network, inputs, layers)
    if whole and inputs.along(axes) is not inputs:  # the leaf has other axes
        inputs = inputs.along(axes)
        return once(follow=False)
    return forward_pass.along(axes)
