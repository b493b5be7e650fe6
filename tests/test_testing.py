"""Every method passes the checks for its tags, and every broken method fails its check."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import camlib
from camlib.testing import Check, check_method, checks, properties
from camlib.testing.networks import vision_transformer
from camlib.testing.properties import PROPERTIES
from camlib.testing.subject import differences, snapshot
from tests.few_passes import cheap
from tests.networks import signal_cnn

ONE_OF_EACH_KIND = {
    "grad_cam", "eigen_cam", "full_grad", "guided_backprop", "le_grad", "ablation_cam", "rise", "sobel",
}  # fmt: skip
"""What `make quick` checks: one of each of what a method may read, from gradients to the image alone."""

BATTERY = [
    pytest.param(check, id=f"{name}-{check}", marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow)
    for name in camlib.METHODS
    for check in checks(cheap(name))
]


@pytest.mark.parametrize("check", BATTERY)
def test_method_passes_its_checks(check: Check) -> None:
    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tail of layer")  # a block's first norm is parallel to a skip connection
@pytest.mark.parametrize("name", sorted(camlib.METHODS))
def test_method_passes_on_a_vision_transformer_or_refuses_it(name: str) -> None:
    """Tokens, a class token, and features whose mean over the channels is zero but for rounding."""
    method, network = cheap(name), vision_transformer()
    battery = {str(check): check for check in checks(method, model=network)}
    try:
        method(network)(battery["repeated_calls_agree"].subject.images)
    except camlib.CamlibRuntimeError:
        assert name in {"cam", "full_grad", "guided_backprop", "guided_grad_cam"}
    else:
        for what in ("explanation_is_complete", "a_batch_equals_its_images", "repeated_calls_agree"):
            battery[what]()


# Methods that are broken, each in one way


class Sound(camlib.methods.GradientMethod):
    """Not broken: what the others are made of."""

    name = "sound"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (activations * gradients).sum(1)


class SoundActivation(camlib.methods.ActivationMethod):
    """Not broken, and the same for every class."""

    name = "sound_activation"

    def maps(self, activations: Tensor) -> Tensor:
        return activations.mean(1)


class SoundBaseline(camlib.CenterGaussian):
    """Not broken, and reads no layer."""

    name = "sound_baseline"


class TakenName(Sound):
    name = "grad_cam"


class NoPasses(Sound):
    forward_passes = 0


class NeedlessGradients(SoundActivation):
    needs_gradients = True


class HiddenGradients(Sound):
    needs_gradients = False


class SaysAgnostic(Sound):
    class_agnostic = True


class IgnoresTheClass(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        return super().__call__(inputs, [[0] * 2] * len(inputs) if isinstance(target, camlib.TopK) else 0)


class AgnosticOfClassesOnly(SoundActivation):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        return super().__call__(inputs, 0 if target is None else target)


class DropsTheLayer(SoundBaseline):
    def __init__(self, model: nn.Module, layer: Any = None, **options: Any) -> None:
        super().__init__(model, **options)


class FindsAnotherLayer(Sound):
    def find_layers(self, inputs: Any) -> list[str]:
        return ["stem"]


class LeavesAHook(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        self.model.register_forward_hook(nothing)
        return super().__call__(inputs, target)


class LeavesAHookWhenItFails(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        handle = self.model.register_forward_hook(nothing)
        explanation = super().__call__(inputs, target)
        handle.remove()
        return explanation


class TrainsBatchNorm(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        if explanation.maps.dtype == torch.float32:
            self.model(inputs)  # in whatever mode it is
        return explanation


class Backward(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        with torch.inference_mode(False), torch.enable_grad():
            sum(parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad).backward()
        return explanation


class WritesIntoTheInputs(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        if not inputs.requires_grad and not inputs.is_inference():
            inputs.clamp_(-1, 1)
        return super().__call__(inputs, target)


class DrawsGlobally(Sound):
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super().maps(activations, gradients) * torch.rand(activations.shape[2:], dtype=activations.dtype)


class MindsTheGradMode(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        return explanation if torch.is_grad_enabled() else changed(explanation, lambda maps: 2 * maps)


class Transposed(Sound):
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super().maps(activations, gradients).mT


class Negative(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        return changed(super().__call__(inputs, target), torch.neg)


class Blank(Sound):
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super().maps(activations, gradients) * 0


class MixesTheBatch(Sound):
    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        maps = super().maps(activations, gradients)
        return maps - maps.mean(0)


class MixesTheClasses(Sound):
    def layer_maps(self, forward_pass: Any, layer: str) -> Tensor:
        maps = super().layer_maps(forward_pass, layer)
        return maps.flip(1) if forward_pass.scores.dim() == 2 else maps


class IgnoresCallables(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        return super().__call__(inputs, 0) if callable(target) else explanation


class HalfPrecision(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        return changed(explanation, lambda maps: maps.bfloat16() if inputs.dtype == torch.bfloat16 else maps)


class AnyDevice(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        if inputs.is_meta:
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__call__(inputs, target)


class MindsTheOtherLayers(Sound):
    def layer_maps(self, forward_pass: Any, layer: str) -> Tensor:
        return super().layer_maps(forward_pass, layer) * len(forward_pass.layers)


class LeavesAutocast(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        with torch.autocast("cpu", enabled=False):
            parameter = next(self.model.parameters())
            return super().__call__(inputs.to(parameter.device, parameter.dtype), target)


class NeedsTensorsMadeOutside(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        if inputs.is_inference() and torch.is_inference_mode_enabled():
            raise RuntimeError("inference tensors cannot be saved for backward")
        return super().__call__(inputs, target)


class BindsAgain(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        if isinstance(target, camlib.targets.Target):
            target.bind(explanation.outputs)
        return explanation


class BindsToOtherOutputs(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        return super().__call__(2 * inputs, target)


class KeepsItsWork(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        self.images = inputs
        return super().__call__(inputs, target)

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super().maps(activations, gradients) * self.images.abs().amax((1, 2, 3))[:, None, None]


class SwitchesKernels(Sound):
    def around(self) -> Any:
        return sdpa_kernel(SDPBackend.MATH)


class DividesByZero(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        return changed(explanation, lambda maps: maps / maps.flatten(-2).amax(-1)[..., None, None])


class HidesNaN(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        return super().__call__(inputs.nan_to_num(), target)


class OneMorePass(Sound):
    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        super().__call__(inputs, target)
        return super().__call__(inputs, target)


class Drifts(Sound):
    calls = 0

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        self.calls += 1
        return super().maps(activations, gradients) * (1 + 1e-12 * self.calls)


class SaysStochastic(Sound):
    stochastic = True

    def __init__(self, model: nn.Module, layer: Any = None, *, generator: Any = None, **options: Any) -> None:
        super().__init__(model, layer, **options)


class Unpicklable(Sound):
    def __init__(self, model: nn.Module, layer: Any = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.power = lambda maps: maps


class SharesItsModel(Sound):
    def __deepcopy__(self, memo: Any) -> SharesItsModel:
        return SharesItsModel(self.model, relu=self.relu)


def nothing(module: nn.Module, args: Any, output: Any) -> None:
    """A hook."""


def changed(explanation: camlib.Explanation, change: Any) -> camlib.Explanation:
    return dataclasses.replace(explanation, maps=change(explanation.maps))


BROKEN = {
    TakenName: "has_a_name_and_tags",
    NoPasses: "forward_passes_as_declared",
    NeedlessGradients: "needs_gradients_as_declared",
    HiddenGradients: "needs_gradients_as_declared",
    SaysAgnostic: "class_agnostic_as_declared",
    IgnoresTheClass: "class_agnostic_as_declared",
    AgnosticOfClassesOnly: "class_agnostic_needs_no_classes",
    DropsTheLayer: "layerless_refuses_a_layer",
    FindsAnotherLayer: "finds_the_layer",
    LeavesAHook: "leaves_no_trace",
    TrainsBatchNorm: "leaves_no_trace",
    Backward: "leaves_no_trace",
    WritesIntoTheInputs: "leaves_no_trace",
    LeavesAHookWhenItFails: "leaves_no_trace_after_failure",
    MindsTheGradMode: "any_mode_gives_the_same_maps",
    Transposed: "explanation_is_complete",
    Negative: "explanation_is_complete",
    Blank: "explanation_is_complete",
    MixesTheBatch: "a_batch_equals_its_images",
    MixesTheClasses: "many_classes_equal_each_class",
    IgnoresCallables: "targets_are_callables_or_refused",
    BindsAgain: "targets_are_bound_once",
    BindsToOtherOutputs: "targets_are_bound_once",
    LeavesAutocast: "autocast_reaches_every_pass",
    NeedsTensorsMadeOutside: "any_mode_gives_the_same_maps",
    KeepsItsWork: "threads_do_not_disturb_each_other",
    SwitchesKernels: "threads_do_not_disturb_each_other",
    HalfPrecision: "maps_are_in_single_precision_at_least",
    AnyDevice: "maps_are_on_the_models_device",
    MindsTheOtherLayers: "several_layers_keep_their_own_maps",
    DividesByZero: "constant_inputs_give_no_nan",
    HidesNaN: "non_finite_input_raises",
    OneMorePass: "forward_passes_as_declared",
    Drifts: "repeated_calls_agree",
    DrawsGlobally: "global_seed_has_no_influence",
    SaysStochastic: "generator_determines_the_map",
    Unpicklable: "copies_and_pickles_give_the_same_maps",
    SharesItsModel: "copies_and_pickles_give_the_same_maps",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", BROKEN)
def test_a_broken_method_fails_its_check(method: type[camlib.methods.Method]) -> None:
    assert BROKEN[method] in failing(method)


@pytest.mark.parametrize("method", [Sound, SoundActivation, SoundBaseline])
def test_the_bases_of_the_broken_methods_pass(method: type[camlib.methods.Method]) -> None:
    check_method(method)


class MeanActivation(camlib.methods.ActivationMethod):
    """Its maps are negative where all features are."""

    name = "mean_activation"

    def maps(self, activations: Tensor) -> Tensor:
        return activations.mean(1)


OF_CAMLIB = "features_are_shown_whatever_their_sign"
"""The check of camlib's own methods alone."""


def test_a_method_of_camlib_that_a_relu_blanks_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OF_CAMLIB not in [str(check) for check in checks(MeanActivation)]
    monkeypatch.setattr(properties, "METHODS", {"mean_activation": MeanActivation})
    assert OF_CAMLIB in failing(MeanActivation)


def test_every_check_catches_something() -> None:
    assert {run.__name__ for run, _ in PROPERTIES} == {*BROKEN.values(), OF_CAMLIB}


def failing(method: type[camlib.methods.Method]) -> list[str]:
    """The checks that the method fails; each error names them both."""
    return [str(check) for check in checks(method) if (seen := error_of(check)) and names(seen, method, check)]


def error_of(check: Check) -> str:
    try:
        check()
    except AssertionError as error:
        return str(error)
    return ""


def names(seen: str, method: type[camlib.methods.Method], check: Check) -> bool:
    return seen.startswith(f"{method.__name__} fails the check '{check}': ")


def test_the_first_failing_check_is_reported() -> None:
    seen = "FindsAnotherLayer fails the check 'finds_the_layer': it reads ['stem'], not ['body']"
    with pytest.raises(AssertionError, match=re.escape(seen)):
        check_method(FindsAnotherLayer)


def test_method_is_checked_on_the_first_network_that_it_accepts() -> None:
    for method, layers in ((camlib.GradCAM, 2), (camlib.CAM, 1)):
        network = checks(method)[0].subject.network
        assert sum(isinstance(module, nn.Linear) for module in network.modules()) == layers


def test_method_that_refuses_every_network_fails() -> None:
    class Refuses(Sound):
        def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
            raise camlib.CamlibRuntimeError("no")

    with pytest.raises(AssertionError, match="CamlibRuntimeError: no"):
        check_method(Refuses)


@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.EigenCAM, camlib.Sobel])
def test_model_and_inputs_can_be_given(method: type[camlib.methods.Method]) -> None:
    model, signals = signal_cnn(), torch.randn(2, 2, 20)
    before = snapshot(model, signals)
    check_method(method, model=model, inputs=signals)
    assert not list(differences(before, snapshot(model, signals)))


@pytest.mark.slow
def test_a_function_that_makes_a_method_is_checked_like_its_class() -> None:
    few = functools.partial(camlib.SmoothGradCAMPlusPlus, samples=2)
    assert list(map(str, checks(few))) == list(map(str, checks(camlib.SmoothGradCAMPlusPlus)))
    check_method(few)


@pytest.mark.parametrize(
    ("error", "message", "method", "options"),
    [
        (camlib.CamlibTypeError, "method must be", "grad_cam", {}),
        (camlib.CamlibTypeError, "method must be .* got Linear", lambda model, layer=None: nn.Linear(1, 1), {}),
        (camlib.CamlibTypeError, "model must be", camlib.GradCAM, {"model": "resnet18"}),
        (
            camlib.CamlibTypeError,
            "inputs must be .* torch.uint8",
            camlib.GradCAM,
            {"inputs": torch.ones(2, 3, 12, 10).byte()},
        ),
        (camlib.CamlibValueError, "1 images", camlib.GradCAM, {"inputs": torch.ones(1, 3, 12, 10)}),
        (camlib.CamlibValueError, "1 classes", camlib.GradCAM, {"model": signal_cnn(1), "inputs": torch.ones(2, 2, 9)}),
    ],
)
def test_wrong_arguments_are_refused(error: type[Exception], message: str, method: Any, options: Any) -> None:
    with pytest.raises(error, match=message):
        checks(method, **options)


CHANGES: dict[str, Callable[[nn.Sequential, Tensor], Any]] = {
    "_forward_hooks": lambda model, images: model[0].register_forward_hook(nothing),
    "_backward_hooks": lambda model, images: model[0].register_full_backward_hook(nothing),
    "number of hooks": lambda model, images: model[0].weight.register_hook(lambda gradient: None),
    "training": lambda model, images: model[1].eval(),
    "requires_grad": lambda model, images: model[0].weight.requires_grad_(False),
    "grad": lambda model, images: model(images).sum().backward(),
    "values": lambda model, images: model[0].weight.data.mul_(2),
    "number of writes": lambda model, images: model[0].weight.detach().mul_(1),
    "object": lambda model, images: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().clone())),
    "forward": lambda model, images: setattr(model[0], "forward", nothing),
    "inplace": lambda model, images: setattr(model[1], "inplace", False),
    "_modules": lambda model, images: setattr(model, "1", nn.ReLU(inplace=True)),
    "the inputs": lambda model, images: images.zero_(),
    "torch's": lambda model, images: torch.rand(1),
    "NumPy's": lambda model, images: np.random.rand(),
    "Python's": lambda model, images: random.random(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_snapshot_shows_what_changed(what: str) -> None:
    model, images = signal_cnn().train(), torch.rand(2, 2, 12)
    before = snapshot(model, images)
    assert not list(differences(before, snapshot(model, images)))
    CHANGES[what](model, images)
    found = list(differences(before, snapshot(model, images)))
    assert any(what in path for path in found), found


@pytest.mark.slow
def test_the_checks_leave_random_numbers_unchanged() -> None:
    model, images = signal_cnn(), torch.rand(2, 2, 12)
    before = snapshot(model, images)
    check_method(Sound)
    assert not list(differences(before, snapshot(model, images)))
