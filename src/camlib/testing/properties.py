"""The properties that are checked, each a function of a :class:`Subject` that raises if the method lacks it.

Comparisons use double precision, and signed maps if the method has them, so that neither rounding nor the final ReLU
hides a difference.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camlib.discovery.finding import find_layer, list_layers
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.inputs.nested import tensors_in
from camlib.layers.layouts import layout_of
from camlib.methods import Method
from camlib.methods.registry import METHODS, create
from camlib.targets import BoundTarget, Score, Target, TopK
from camlib.targets.indices import class_outputs
from camlib.testing.asserts import (
    expect,
    expect_close,
    expect_refusal,
    expect_same,
    expect_same_state,
    expect_untouched,
    expect_valid,
)
from camlib.testing.networks import shifted_features
from camlib.testing.subject import Subject, snapshot

Run = Callable[[Subject], None]
Applies = Callable[[type[Method]], bool]

PATIENCE = 5.0
"""Seconds that a thread waits for another, so that a lock cannot block the check for ever."""

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernels of attention, a setting that all threads share."""

TAGS = ("class_agnostic", "layerless", "stochastic", "needs_gradients", "finds_one_layer")

PROPERTIES: list[tuple[Run, Applies]] = []
"""Every property, with the methods that must have it."""


def _of(applies: Applies) -> Callable[[Run], Run]:
    """Register a property of the methods for which ``applies`` is true."""

    def register(run: Run) -> Run:
        PROPERTIES.append((run, applies))
        return run

    return register


_every = _of(lambda kind: True)


@_every
def has_a_name_and_tags(on: Subject) -> None:
    """The method has a name, tags and a repr, and is built by its name if it is registered."""
    kind, explainer = on.kind, on.explainer()
    name = getattr(kind, "name", None)
    expect(isinstance(name, str) and bool(name), f"name is {name!r}; give the class a name, a string")
    for tag in TAGS:
        value = getattr(kind, tag)
        expect(isinstance(value, bool), f"{tag} is {value!r}; declare True or False")
    expect(kind.__name__ in repr(explainer), f"repr, {explainer!r}, does not name the class {kind.__name__}")
    if name in METHODS:
        built = create(kind.name, on.model())
        expect(type(built) is kind, f"its name {name!r} belongs to {type(built).__name__}; choose another name")


@_every
def needs_gradients_as_declared(on: Subject) -> None:
    """A model without gradients is explained, or refused if the method needs gradients."""
    if on.kind.needs_gradients:
        detached = on.explainer(layer=on.layer_names(), forward=_detached)
        what = "explaining a model without gradients, though needs_gradients is declared True,"
        expect_refusal(lambda: detached(on.inputs(), on.each), (CamlibRuntimeError, CamlibTypeError), what)
        return
    try:
        layers = on.layer_names()
        maps = on.explainer(layer=layers, forward=_detached)(on.inputs(), on.each).maps
    except Exception as error:
        problem = "needs_gradients is declared False, but without gradients it raised"
        raise AssertionError(f"{problem} {type(error).__name__}: {error}") from error
    expect_close(maps, on.explainer()(on.inputs(), on.each).maps, "a model without gradients gives another map")


@_every
def explanation_is_complete(on: Subject) -> None:
    """Maps are finite, detached, not negative, at the layer's or the input's resolution; outputs are the model's."""
    explainer, images = on.explainer(), on.inputs()
    explanation = explainer(images, on.each)
    expect(isinstance(explanation, Explanation), f"a call returned a {type(explanation).__name__}, not an Explanation")
    expect(explanation.method == explainer.name, f"method is {explanation.method!r}, not {explainer.name!r}")
    expect_valid(explanation, on)
    _expect_resolution(explanation, explainer, on)
    if explainer.relu:
        expect(bool((explanation.maps >= 0).all()), "maps have negative values despite relu=True")
    size = tuple(images.shape[2:])
    expect(explanation.input_size == size, f"input_size is {explanation.input_size}, not {size}")
    expect(explanation.scores.shape == (len(images),), f"scores have shape {tuple(explanation.scores.shape)}")
    outputs = class_outputs(explanation.outputs)
    expect_close(outputs, on.logits, "outputs are not those of the model in eval mode")
    expect(not outputs.requires_grad, "outputs still require gradients; detach them")
    signed = on.explain()
    expect_valid(signed, on)
    cells = signed.maps.flatten(1)
    varies = cells.amax(1) > cells.amin(1)  # the maps of a sound network may have no positive value
    expect(bool(varies.any()), "the maps of all images are constant")


def _expect_resolution(explanation: Explanation, explainer: Method, on: Subject) -> None:
    """Maps have the resolution of the input or of the finest layer; layerless maps may be coarser than the input."""
    images = on.inputs()
    size, shape = tuple(images.shape[2:]), tuple(explanation.maps.shape)
    expect(len(shape) == 1 + len(size) and shape[0] == len(images), f"maps have shape {shape}, not (N, ...)")
    if on.kind.layerless:
        finer = any(cells > side for cells, side in zip(shape[1:], size, strict=True))
        expect(not finer, f"maps have shape {shape}, finer than the input of {size}")
        return
    shapes = {info.name: info.shape for info in list_layers(explainer.model, images)}
    layers = explainer.layers_for(Inputs(images)).items()
    layouts = [layout_of(explainer.model, module, shapes[name], size) for name, module in layers if name in shapes]
    finest = max((layout.grid for layout in layouts if layout is not None), key=math.prod, default=size)
    problem = f"maps have shape {shape}; the finest layer has resolution {finest}, and the input {size}"
    expect(shape[1:] in (finest, size), problem)


@_every
def class_agnostic_as_declared(on: Subject) -> None:
    """The map depends on the class or not, as declared."""
    explanation, another = on.explain(0), on.explain(1).maps
    one, declared = explanation.maps, on.kind.class_agnostic
    problem = f"class_agnostic is declared {declared}, but the explanation's class_agnostic is {not declared}"
    expect(explanation.class_agnostic == declared, problem)
    if declared:
        expect_same(another, one, "class_agnostic is declared True, but the maps of two classes differ")
    else:
        problem = "class_agnostic is declared False, but the maps of two classes are the same"
        expect(not torch.equal(one, another), problem)


@_of(lambda kind: kind.class_agnostic)
def class_agnostic_needs_no_classes(on: Subject) -> None:
    """Outputs without classes are enough if no target is given."""
    layers = on.layer_names()
    maps = on.explainer(layer=layers, forward=_without_classes)(on.inputs()).maps
    expect_close(maps, on.explainer(layer=layers)(on.inputs()).maps, "outputs without classes give another map")


@_of(lambda kind: kind.class_agnostic and not kind.layerless and METHODS.get(kind.name) is kind)
def features_are_shown_whatever_their_sign(on: Subject) -> None:
    """A class-agnostic method of camlib is not blank where all features are negative, as ahead of an activation."""
    images = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale, shift in ((1.0, 0.0), (-1.0, 0.0), (1.0, -30.0), (1.0, 30.0)):
        layer = shifted_features(scale, shift)
        degenerate = on.explainer(layer.double(), "features")(images, 0).degenerate
        problem = f"maps of features {scale:g} x {shift:+g} are blank, though the features are not"
        expect(not bool(degenerate.any()), f"{problem}; choose the sign of the map, which a ReLU must not remove")


@_of(lambda kind: kind.layerless)
def layerless_refuses_a_layer(on: Subject) -> None:
    """A layer is an error for a method that reads none."""
    name = next(name for name, _ in on.network.named_modules() if name)
    expect_refusal(lambda: on.explainer(layer=name), (CamlibValueError,), f"layer={name!r} given to a layerless method")
    layers = on.explainer().layers
    expect(layers == {}, f"layerless is declared True, but it reads the layers {layers}")


@_of(lambda kind: kind.finds_one_layer and not kind.layerless)
def finds_the_layer(on: Subject) -> None:
    """Without a layer it reads the one that find_layer finds."""
    explainer, found = on.explainer(), find_layer(on.model(), on.inputs())
    read = list(explainer(on.inputs()).layers)
    expect(read == [found], f"it reads {read}, not [{found!r}]")


@_every
def leaves_no_trace(on: Subject) -> None:
    """A call leaves model, inputs and process unchanged."""
    for mode in (contextlib.nullcontext, torch.inference_mode):
        model, images = on.model_in_some_state(), on.inputs(torch.float32)
        with mode():
            explainer, before = on.explainer(model), snapshot(model, images)
            for target in (None, TopK(2)):
                explainer(images, target)
                expect_untouched(model, images, before, "a call")


@_every
def leaves_no_trace_after_failure(on: Subject) -> None:
    """A failed call leaves everything unchanged, too, and errors of the user's code are not hidden."""
    layers = on.layer_names()
    expected = (_Deliberate, CamlibError)
    for what, options, target in (
        ("a target that raises", {}, _raising),
        ("a target out of range", {}, on.classes),
        ("a forward that raises", {"forward": _raises_afterwards}, None),
    ):
        for layer in [None, layers] if layers else [None]:
            model, images = on.model_in_some_state(), on.inputs(torch.float32)
            explainer, before = on.explainer(model, layer, **options), snapshot(model, images)
            expect_refusal(functools.partial(explainer, images, target), expected, what)
            expect_untouched(model, images, before, what)
    model, images = on.model_in_some_state(), _with_nan(on.inputs(torch.float32))
    explainer, before = on.explainer(model), snapshot(model, images)
    with contextlib.suppress(CamlibError):
        explainer(images)
    expect_untouched(model, images, before, "a non-finite input")


@_every
def any_mode_gives_the_same_maps(on: Subject) -> None:
    """Grad and inference mode, frozen parameters, training mode and the origin of the inputs do not matter."""
    expected = on.explainer()(on.inputs(), on.each).maps

    def same(what: str, model: nn.Module, images: Tensor, mode: Any = contextlib.nullcontext) -> None:
        with mode():
            maps = on.explainer(model)(images, on.each).maps
        expect_close(maps, expected, f"other maps {what}", 1e-9)

    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        same(f"inside torch.{mode.__name__}()", on.model(), on.inputs(), mode)
    with torch.inference_mode():
        made_there = on.inputs()
    same("from inputs made in inference mode", on.model(), made_there)
    same("from inputs made in inference mode, inside it", on.model(), made_there, torch.inference_mode)
    same("with frozen parameters", on.model().requires_grad_(False), on.inputs())
    same("of a model in training mode", on.model().train(), on.inputs())
    images = on.inputs().requires_grad_()
    same("from inputs that require gradients", on.model(), images)
    expect(images.requires_grad and images.grad is None, "the call left requires_grad or grad of the inputs changed")


@_every
def a_batch_equals_its_images(on: Subject) -> None:
    """A batch gives the maps of its single images; random numbers are the same for every image."""
    together, images = on.explain(), on.inputs()
    for index, target in enumerate(on.each):
        alone = on.signed()(images[index : index + 1], target)
        expect_close(together.maps[index], alone.maps[0], f"image {index} has another map in the batch than alone")
        expect_close(together.scores[index], alone.scores[0], f"image {index} has another score in a batch than alone")
    backwards = on.signed()(images.flip(0), on.each[::-1]).maps.flip(0)
    expect_close(backwards, together.maps, "the order of the images matters")


@_every
def many_classes_equal_each_class(on: Subject) -> None:
    """(N, K) classes and TopK(K) give the maps of each single class."""
    highest = on.logits.topk(2).indices
    together, several = on.explain(TopK(2)), on.explain(highest)
    for explanation, what in ((together, "TopK(2)"), (several, "(N, 2) classes")):
        expect_valid(explanation, on)
        shape = tuple(explanation.maps.shape[:2])
        expect(explanation.has_class_axis and shape == (len(on.images), 2), f"{what} do not give maps (N, 2, ...)")
        for k in range(2):
            alone = on.explain(highest[:, k]).maps
            expect_close(explanation.maps[:, k], alone, f"class {k} of {what} has another map than the class alone")
    best = on.explain(None if on.kind.class_agnostic else highest[:, 0]).maps
    expect_close(on.signed()(on.inputs()).maps, best, "without a target the map is not that of the predicted class")


@_every
def targets_are_callables_or_refused(on: Subject) -> None:
    """A callable that returns a class's score gives its map or a type error; impossible classes are errors."""
    try:
        maps = on.explain(_second_class).maps
    except CamlibTypeError:  # a method that explains classes only
        pass
    else:
        expect_close(maps, on.explain(1).maps, "a callable that returns the score of class 1 gives another map")
    images = len(on.images)
    for target, error in (
        (on.classes, CamlibValueError),
        (-1, CamlibValueError),
        ([0] * (images + 1), CamlibValueError),
        (0.5, CamlibTypeError),
        (True, CamlibTypeError),
    ):
        expect_refusal(functools.partial(on.explain, target), (error,), f"target {target!r} of {images} images")


@_every
def targets_are_bound_once(on: Subject) -> None:
    """A custom target is bound once, to the outputs for the images as they are."""
    target = _SecondClass()
    try:
        on.explain(target)
    except CamlibTypeError:  # a method that explains classes only
        return
    times = len(target.bound_to)
    expect(times == 1, f"the target's bind(outputs) was called {times} times for one explanation; call it once")
    expect_close(target.bound_to[0], on.logits, "the target was bound to other outputs than those of the images")


@_every
def maps_are_in_single_precision_at_least(on: Subject) -> None:
    """Half and single precision give float32 maps, double precision gives float64 maps."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        explanation = on.explainer(on.model(dtype))(on.inputs(dtype), on.each)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        expect(explanation.maps.dtype == wanted, f"maps of a {dtype} model are {explanation.maps.dtype}, not {wanted}")
        expect_valid(explanation, on)
    with torch.autocast("cpu", torch.bfloat16):
        explanation = on.explainer(on.model(torch.float32))(on.inputs(torch.float32), on.each)
    expect(explanation.maps.dtype == torch.float32, f"maps under autocast are {explanation.maps.dtype}, not float32")
    expect_valid(explanation, on)


@_every
def autocast_reaches_every_pass(on: Subject) -> None:
    """Under autocast, a float32 model explains inputs in half precision, and every pass runs under autocast."""
    model, under_autocast = on.model(torch.float32), []
    model.register_forward_pre_hook(lambda module, args: under_autocast.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        explanation = on.explainer(model)(on.inputs(torch.bfloat16), on.each)
    passes = f"{under_autocast.count(False)} of {len(under_autocast)} forward passes"
    expect(all(under_autocast), f"{passes} ran outside the caller's autocast")
    problem = f"maps of bfloat16 inputs under autocast are {explanation.maps.dtype}, not float32"
    expect(explanation.maps.dtype == torch.float32, problem)
    expect_valid(explanation, on)


@_every
def maps_are_on_the_models_device(on: Subject) -> None:
    """Maps, scores and layers are on the model's device; inputs on another device are an error."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        model, images = on.model(torch.float32).to(device), on.inputs(torch.float32).to(device)
        explanation = on.explainer(model)(images, TopK(2))
        for what, tensor in (("maps", explanation.maps), ("scores", explanation.scores), *explanation.layers.items()):
            expect(tensor.device == images.device, f"{what} of a model on {images.device} lie on {tensor.device}")
    elsewhere = on.inputs(torch.float32).to("meta")
    expect_refusal(lambda: on.explainer()(elsewhere), (CamlibValueError,), "inputs on another device than the model")


@_of(lambda kind: not kind.layerless)
def several_layers_keep_their_own_maps(on: Subject) -> None:
    """A list of layers gives one fused map on the finest grid, and the map of each layer."""
    accepted = [info.name for info in list_layers(on.model(), on.inputs()) if _accepts(on, info.name)]
    expect(bool(accepted), "it accepts none of the layers that camlib.list_layers lists")
    layers = list(dict.fromkeys((accepted[0], accepted[-1])))
    explainer = on.signed(layer=layers)
    explanation = explainer(on.inputs(), on.each)
    expect_valid(explanation, on)
    expect(list(explanation.layers) == layers, f"layers of {layers} are {list(explanation.layers)}")
    _expect_resolution(explanation, explainer, on)
    for name in layers:
        alone = on.signed(layer=name)(on.inputs(), on.each)
        own = explanation.layers[name]
        expect_close(own, alone.layers[name], f"layer {name!r} has another map among several layers than alone")


def _accepts(on: Subject, layer: str) -> bool:
    try:
        on.explainer(layer=layer)(on.inputs(), on.each)
    except CamlibError:
        return False
    return True


@_every
def constant_inputs_give_no_nan(on: Subject) -> None:
    """Constant images, logits and activations give finite maps, marked as degenerate if constant, or a clear error."""
    flat = torch.full_like(on.inputs(), 0.5)
    dead = on.model()
    for parameter in dead.parameters():
        nn.init.zeros_(parameter)
    layers = on.layer_names()
    for what, explainer, images in (
        ("constant images", on.explainer(), flat),
        ("images of zeros", on.explainer(), flat * 0),
        ("constant logits", on.explainer(layer=layers, forward=_constant), on.inputs()),
        ("a network of zeros", on.explainer(dead, layers), on.inputs()),
    ):
        try:
            explanation = explainer(images, TopK(2))
        except CamlibError:
            continue
        try:
            expect_valid(explanation, on)
        except AssertionError as problem:
            raise AssertionError(f"for {what}, {problem}") from problem
        if explainer.model is dead and layers:
            blank = bool(explanation.degenerate.all())
            expect(blank, "maps of a network of zeros are not constant")


@_every
def non_finite_input_raises(on: Subject) -> None:
    """A NaN in an image is an error, unless the map does not depend on the images."""
    for bad in (_with_nan(on.inputs()), on.inputs() / 0):
        try:
            maps = on.explainer()(bad, on.each).maps
        except CamlibRuntimeError:
            continue
        expected = on.explainer()(on.inputs(), on.each).maps
        problem = "an image that is not finite raised nothing and gave another map than the finite one"
        expect(torch.equal(maps, expected), f"{problem}; a CamlibRuntimeError should say that something is not finite")


@_every
def forward_passes_as_declared(on: Subject) -> None:
    """Each image runs through the network ``forward_passes`` times for any K, and once more to find layer or axes.

    If ``forward_passes`` depends on the inputs, it still does not depend on the classes.
    """
    model = on.model()
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(next(tensors_in(args)))))
    explainer = on.explainer(model)

    def passes(target: Any) -> float:
        rows.clear()
        explainer(on.inputs(), target)
        return sum(rows) / len(on.images)

    first, known = passes(on.each), explainer.forward_passes
    declared = passes(on.each) if known is None else known
    problem = f"the first call made {first:g} forward passes, but {declared:g} are declared"
    more = "finding the layer, or the axes of signals, may take one more"
    expect(declared <= first <= declared + 1, f"{problem}, and {more}; override forward_passes")
    for what, target in (("one class", on.each), ("two classes", TopK(2))):
        made = passes(target)
        problem = f"a call for {what} made {made:g} forward passes, but {declared:g} are declared"
        expect(made == declared, f"{problem}; override forward_passes")


@_every
def repeated_calls_agree(on: Subject) -> None:
    """Two calls of one explainer and a call of another explainer agree bit for bit."""
    explainer = on.signed()
    maps = explainer(on.inputs(), on.each).maps
    expect_same(explainer(on.inputs(), on.each).maps, maps, "a second call gives another map")
    expect_same(on.explain().maps, maps, "a second explainer gives another map")


@_every
def global_seed_has_no_influence(on: Subject) -> None:
    """Torch's global seed does not matter."""
    torch.manual_seed(1)
    maps = on.explain().maps
    torch.manual_seed(2)
    problem = "another torch.manual_seed gives another map; draw from the method's generator"
    expect_same(on.explain().maps, maps, problem)


@_every
def threads_do_not_disturb_each_other(on: Subject) -> None:
    """Two overlapping calls of one explainer, in two threads, give the maps of two separate calls."""
    first_within, second_within, first_done = threading.Event(), threading.Event(), threading.Event()
    of_thread = threading.local()

    def forward(model: nn.Module, inputs: Tensor) -> Any:
        for event in getattr(of_thread, "announced", ()):
            event.set()
        for event in getattr(of_thread, "awaited", ()):
            event.wait(PATIENCE)
        return model(inputs)

    explainer = on.signed(forward=forward)
    explainer.model.train()
    calls = [(on.inputs(), on.each), (on.inputs().flip(0), on.each)]
    alone = [explainer(*call).maps for call in calls]

    def first() -> Tensor:
        of_thread.announced, of_thread.awaited = [first_within], [second_within]
        try:
            return explainer(*calls[0]).maps
        finally:
            first_done.set()

    def second() -> Tensor:
        of_thread.announced, of_thread.awaited = [second_within], [first_done]
        first_within.wait(PATIENCE)
        return explainer(*calls[1]).maps

    with sdpa_kernel(KERNELS), ThreadPoolExecutor(2) as threads:  # all kernels, restored in any case
        before = snapshot(explainer.model, on.images)
        together = [future.result() for future in [threads.submit(first), threads.submit(second)]]
        after = snapshot(explainer.model, on.images)
    for which, maps, expected in zip(("first", "second"), together, alone, strict=True):
        expect_close(maps, expected, f"the {which} of two simultaneous calls gives another map than alone", 1e-9)
    expect_same_state(before, after, "two simultaneous calls")


@_of(lambda kind: kind.stochastic)
def generator_determines_the_map(on: Subject) -> None:
    """The same seed of the generator gives the same map, another seed another map."""

    def seeded(seed: int) -> Tensor:
        return on.explain(generator=torch.Generator().manual_seed(seed)).maps

    maps = seeded(1)
    expect_same(seeded(1), maps, "two generators of one seed give different maps")
    problem = "stochastic is declared True, but two seeds give the same map"
    expect(not torch.equal(seeded(2), maps), problem)


@_every
def copies_and_pickles_give_the_same_maps(on: Subject) -> None:
    """Copies and pickles of an explainer, before and after its first call, give the same maps with their own model."""
    explainer = on.signed()
    expected = on.explain().maps
    for when in ("before its first call", "after a call"):
        copies = [("a deep copy", copy.deepcopy(explainer))]
        if _is_picklable(explainer.model):  # one that holds a lambda, for example, cannot be pickled with any explainer
            copies.append(("a pickle", _pickled(explainer)))
        for what, made in copies:
            expect_same(made(on.inputs(), on.each).maps, expected, f"{what} of an explainer {when} gives another map")
            expect(made.model is not explainer.model, f"{what} of an explainer {when} shares its model")
        explainer(on.inputs(), on.each)


class _Deliberate(Exception):  # noqa: N818 - it stands for an error of the user
    """An error raised on purpose."""


def _raising(outputs: Any) -> Tensor:
    """A target that raises."""
    raise _Deliberate


def _raises_afterwards(model: nn.Module, inputs: Tensor) -> Any:
    """A forward that raises after the pass."""
    model(inputs)
    raise _Deliberate


class _SecondClass(Target):
    """A custom target that notes what it is bound to."""

    def __init__(self) -> None:
        self.bound_to: list[Tensor] = []

    def bind(self, outputs: Any) -> BoundTarget:
        self.bound_to.append(class_outputs(outputs).detach())
        return Score(_second_class)


def _second_class(outputs: Any) -> Tensor:
    """A custom target."""
    return class_outputs(outputs)[:, 1]


def _detached(model: nn.Module, inputs: Tensor) -> Any:
    """Run the model as one without gradients."""
    return class_outputs(model(inputs)).detach()


def _constant(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run the model as one with constant logits."""
    return class_outputs(model(inputs)) * 0


def _without_classes(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run the model as one that returns no class scores."""
    return class_outputs(model(inputs))[:, :, None, None]


def _with_nan(images: Tensor) -> Tensor:
    """The images with a NaN in the middle of the first."""
    images = images.clone()
    images[(0, 0, *(side // 2 for side in images.shape[2:]))] = torch.nan
    return images


def _is_picklable(model: nn.Module) -> bool:
    try:
        _Pickler(io.BytesIO()).dump(model)
    except Exception:  # whatever a module's attributes raise
        return False
    return True


def _pickled(explainer: Method) -> Method:
    """The explainer, pickled and restored."""
    file = io.BytesIO()
    try:
        pickler = _Pickler(file)
        pickler.dump(explainer)
        file.seek(0)
        restored: Method = _Unpickler(file, pickler.classes).load()
    except Exception as error:
        problem = (
            f"it cannot be pickled ({error}); keep no lambdas, local functions, hooks or open files in the explainer"
        )
        raise AssertionError(problem) from error
    return restored


class _Pickler(pickle.Pickler):
    """Pickles classes by reference, since those of notebooks and doctests cannot be imported."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.classes: dict[int, type] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, type):
            return None
        self.classes[id(thing)] = thing
        return id(thing)


class _Unpickler(pickle.Unpickler):
    """Unpickles what :class:`_Pickler` wrote."""

    def __init__(self, file: io.BytesIO, classes: dict[int, type]) -> None:
        super().__init__(file)
        self._classes = classes

    def persistent_load(self, key: int) -> type:
        return self._classes[key]
