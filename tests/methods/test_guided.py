"""Guided backpropagation: the paper's rule at every ReLU however it is called, and nowhere else."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camlib
from camlib.methods.guided import GuidedBackprop, GuidedGradCAM, guided_gradients
from tests import equations
from tests.networks import RELUS, Drawn, Network, cnns, signal_cnn, small_cnn, volume_cnn


class Call(nn.Module):
    """An activation called as a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(activation: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Two convolutions, each with the activation, whose values cross 0 and 6."""
    torch.manual_seed(1)
    act = Call(activation)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), act, nn.Conv2d(5, 4, 3), act, nn.Flatten(), nn.Linear(64, 3))
    model[0].weight.data *= 8
    return model.double()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@given(cnns(activations=RELUS))
def test_the_gradient_and_the_map_are_the_papers(drawn: Drawn) -> None:
    if not any(isinstance(module, nn.ReLU) for module in drawn.model):
        return
    gradient = guided_gradients(drawn.model, drawn.images, 1)
    expected = equations.guided_gradient(drawn.model, drawn.images, lambda outputs: outputs[:, 1])
    torch.testing.assert_close(gradient, expected)
    explanation = GuidedBackprop(drawn.model)(drawn.images, 1)
    torch.testing.assert_close(explanation.maps, expected.abs().sum(1))
    assert explanation.layer == ""
    assert explanation.layers == {}
    assert explanation.method == "guided_backprop"


RELU_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.relu(positional inplace)": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp_(0)": lambda x: x.clamp_(0),
    "torch.clamp": lambda x: torch.clamp(x, 0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: x.clip(0),
}


@pytest.mark.parametrize("call", RELU_CALLS.values(), ids=RELU_CALLS)
def test_every_way_to_call_a_relu_is_guided(call: Callable[[Tensor], Tensor]) -> None:
    inputs = images(2, 2, 8, 8)
    model = network(call)
    oracle = nn.Sequential(*(nn.ReLU() if isinstance(module, Call) else module for module in model))
    expected = equations.guided_gradient(oracle, inputs, lambda outputs: outputs[:, 1])
    plain = inputs.clone().requires_grad_()
    oracle(plain)[:, 1].sum().backward()
    assert not torch.allclose(plain.grad, expected)
    torch.testing.assert_close(guided_gradients(model, inputs, 1), expected)


RELU6_CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6(inplace)": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
}


@pytest.mark.parametrize("call", RELU6_CALLS.values(), ids=RELU6_CALLS)
def test_relu6_passes_positive_gradients_between_its_bounds(call: Callable[[Tensor], Tensor]) -> None:
    model, inputs = network(call), images(2, 2, 8, 8)
    first, _, second, _, _flatten, head = model
    a = first(inputs)
    b = second(a.clamp(0, 6))
    assert (a > 6).any()
    assert (a < 0).any()
    gradient = head.weight[1].expand(2, -1).view_as(b)
    gradient = gradient * ((b > 0) & (b < 6) & (gradient > 0))
    gradient = F.conv_transpose2d(gradient, second.weight)
    gradient = gradient * ((a > 0) & (a < 6) & (gradient > 0))
    expected = F.conv_transpose2d(gradient, first.weight)
    torch.testing.assert_close(guided_gradients(model, inputs, 1), expected.detach())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (F.hardswish, "hardswish"),
        (F.leaky_relu, "leaky_relu"),
        (F.elu, "elu"),
        (nn.PReLU(dtype=torch.float64), "prelu"),
        (F.mish, "mish"),
        (F.softplus, "softplus"),
        (lambda x: F.hardtanh(x, -1, 1), "hardtanh between -1 and 1"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x.sigmoid(), "sigmoid"),
        (lambda x: x.tanh_(), "tanh"),
        (lambda x: x * (1 + torch.erf(x)), "erf"),
        (lambda x: F.threshold(x, 0.1, 0), "threshold"),
    ],
)
def test_another_activation_is_refused_by_name(call: Callable[[Tensor], Tensor], name: str) -> None:
    model = nn.Sequential(*network(F.relu)[:3], Call(call), nn.Flatten())
    for method in (GuidedBackprop(model), GuidedGradCAM(model, "0")):
        with pytest.raises(camlib.CamlibRuntimeError, match=f"calls {name}, and.*GradCAM"):
            method(images(2, 2, 8, 8), 1)


class Rectifier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Rectifier())


OUT_OF_SIGHT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "scripted": (scripted(), "(Relu|DifferentiableGraph)"),
    "maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), "Maximum"),
    "where": (lambda z: torch.where(z > 0, z, 0), "Where"),
    "masked_fill": (lambda z: z.masked_fill(z < 0, 0), "MaskedFill"),
    "abs": (lambda z: (z + z.abs()) / 2, "Abs"),
    "clamp to a tensor": (lambda z: z.clamp(min=torch.zeros_like(z)), "clamp with a tensor"),
    "clamp_min to a tensor": (lambda z: z.clamp_min(torch.zeros_like(z)), "clamp with a tensor"),
    "swish written out": (lambda z: z / (1 + torch.exp(-z)), "Exp"),
    "sine": (torch.sin, "Sin"),
    "square": (lambda z: z**2, "Pow"),
}


@pytest.mark.parametrize(("call", "name"), OUT_OF_SIGHT.values(), ids=OUT_OF_SIGHT)
def test_an_activation_that_cannot_be_guided_is_found_in_the_graph(call: Callable[[Tensor], Tensor], name: str) -> None:
    first, _, second, *_ = network(F.relu)
    model = nn.Sequential(first, Call(call), second, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3).double())
    for method in (GuidedBackprop(model), GuidedGradCAM(model, "2")):
        for _ in range(3):  # what is scripted is another node once it is optimised
            with pytest.raises(camlib.CamlibRuntimeError, match=f"calls {name}.*GradCAM.*in Python"):
                method(images(2, 2, 8, 8), 1)


class Beside(nn.Module):
    """Has nonlinear functions where they are no activation, or not behind the score."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = small_cnn()
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.cnn(x)
        return {"logits": logits * self.temperature.exp(), "size": logits.exp(), "log": logits.abs().log()}


def test_what_does_not_lead_from_the_images_to_the_score_may_be_nonlinear() -> None:
    model, inputs = Beside().double(), images(2, 3, 8, 8)
    expected = guided_gradients(model.cnn, inputs, 1) * model.temperature.exp().item()
    found = guided_gradients(model, inputs, lambda outputs: outputs["logits"][:, 1])
    torch.testing.assert_close(found, expected)
    with pytest.raises(camlib.CamlibRuntimeError, match="calls Exp "):
        guided_gradients(model, inputs, lambda outputs: outputs["size"][:, 1])


def test_max_pooling_is_not_an_activation() -> None:
    model = nn.Sequential(small_cnn()[:2], nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert guided_gradients(model, torch.randn(2, 3, 8, 8), 1).abs().amax() > 0
    with_amax = nn.Sequential(small_cnn()[:2], Call(lambda z: z.amax((2, 3)) + z.flatten(2).max(2).values))
    assert guided_gradients(with_amax, torch.randn(2, 3, 8, 8), 1).abs().amax() > 0


class Checkpointed(nn.Module):
    """Computes its convolution again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.reentrant: bool | None = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.head(self.features(x).mean((2, 3)))
        return self.head(checkpoint(self.features, x, use_reentrant=self.reentrant).mean((2, 3)))


CHECKPOINTS: dict[str, Callable[[], nn.Module]] = {
    "checkpoint": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3, memory_efficient=True),
}


@pytest.mark.parametrize("build", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_activations_that_are_computed_again_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="activation checkpointing.*memory_efficient=False"):
        guided_gradients(build(), torch.randn(2, 3, 40, 40), 1)


def test_a_network_without_a_relu_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(camlib.CamlibRuntimeError, match="calls no ReLU.*GradCAM"):
        GuidedBackprop(model)(torch.randn(2, 3, 8, 8))


def test_the_target_may_use_any_function() -> None:
    explanation = GuidedBackprop(small_cnn())(torch.randn(2, 3, 8, 8), lambda outputs: outputs.sigmoid()[:, 1])
    assert explanation.maps.amax() > 0


def test_clamps_that_are_not_activations_keep_their_gradient() -> None:
    def clipped(model: nn.Module, x: Tensor) -> Tensor:
        index = torch.arange(-2, len(x) - 2).clamp(min=0)
        return -model((-x).clamp(-9, 9))[index].index_select(0, index)

    model, inputs = small_cnn().double(), images(4, 3, 8, 8)
    expected = -guided_gradients(model, -inputs[[0, 0]].double(), forward=lambda model, x: -model(x), target=1)
    found = guided_gradients(model, inputs, [1] * 4, forward=clipped)
    assert torch.equal(found[1:], torch.zeros_like(found[1:]))
    torch.testing.assert_close(found[0], 4 * expected[0])


def test_a_clamp_from_above_alone_keeps_its_gradient() -> None:
    model, inputs = small_cnn().double(), images(2, 3, 8, 8)
    expected = guided_gradients(model, inputs.clamp(max=0), 1) * (inputs < 0)
    assert expected.amin() < 0
    torch.testing.assert_close(guided_gradients(model, inputs, 1, lambda model, x: model(x.clamp(max=0))), expected)


class Aliased(nn.Module):
    """Relies on ReLU having worked in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        F.relu(maps[:, ::2], inplace=True)
        F.relu_(maps)
        return maps.sum((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        Aliased,
        lambda: torchvision.models.resnet18(num_classes=3),
        lambda: torchvision.models.vgg11_bn(num_classes=3),
        lambda: torchvision.models.densenet121(num_classes=3),
        lambda: torchvision.models.mobilenet_v2(num_classes=3),
    ],
    ids=["aliased", "resnet18", "vgg11_bn", "densenet121", "mobilenet_v2"],
)
def test_the_outputs_are_those_of_the_model(build: Callable[[], nn.Module]) -> None:
    model, inputs = build().eval(), torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = model(inputs.clone())
    explanation = GuidedBackprop(model)(inputs, 1)
    assert torch.equal(explanation.outputs, expected)
    assert explanation.maps.shape == (2, 40, 40)
    assert explanation.maps.amax() > 0


@given(cnns(activations=RELUS))
def test_guided_grad_cam_is_the_product_with_the_map_of_ordinary_gradients(drawn: Drawn) -> None:
    if not any(isinstance(module, nn.ReLU) for module in drawn.model):
        return
    layer = str(drawn.cut)
    explanation = GuidedGradCAM(drawn.model, layer)(drawn.images, 1)
    cam = camlib.GradCAM(drawn.model, layer, relu=False)(drawn.images, 1)
    maps = cam.maps
    placed = maps if cam.extent is None else cam.heatmaps(normalize="none")  # pooling that reaches beyond the images
    guided = equations.guided_gradient(drawn.model, drawn.images, lambda outputs: outputs[:, 1])
    equations.assert_close(explanation.maps, *equations.guided_grad_cam(guided, placed), 1e-12)
    torch.testing.assert_close(explanation.layers[layer], maps.relu())
    assert explanation.method == "guided_grad_cam"
    assert explanation.layer == layer
    assert explanation.heatmaps().shape == explanation.maps.shape


def test_guided_grad_cam_without_relu_multiplies_the_signed_map() -> None:
    model, inputs = small_cnn().double(), images(2, 3, 8, 8)
    signed = camlib.GradCAM(model, "2", relu=False)(inputs, 1).maps
    assert signed.amin() < 0 < signed.amax()
    expected = guided_gradients(model, inputs, 1).abs().sum(1) * signed
    torch.testing.assert_close(GuidedGradCAM(model, "2", relu=False)(inputs, 1).maps, expected)


def test_guided_grad_cam_finds_its_layer_and_fuses_several() -> None:
    model, inputs = Network().double(), images(2, 3, 8, 8)
    found = GuidedGradCAM(model)(inputs, 1)
    assert found.layer == camlib.GradCAM(model)(inputs, 1).layer
    layers = ["features.0", "features.3"]
    fused = camlib.GradCAM(model, layers)(inputs, 1).maps
    expected = guided_gradients(model, inputs, 1).abs().sum(1) * fused
    torch.testing.assert_close(GuidedGradCAM(model, layers)(inputs, 1).maps, expected)


def test_the_gradients_of_k_classes_are_those_of_one_at_a_time() -> None:
    model, inputs = Network().double().eval(), images(3, 3, 9, 11)
    gradients = guided_gradients(model, inputs, [[0, 2]] * 3)
    assert gradients.shape == (3, 2, 3, 9, 11)
    torch.testing.assert_close(gradients[:, 1], guided_gradients(model, inputs, 2))


@pytest.mark.parametrize("method", [GuidedBackprop, GuidedGradCAM])
@pytest.mark.parametrize(
    ("network", "shape"), [(signal_cnn, (2, 2, 30)), (volume_cnn, (2, 1, 6, 7, 8))], ids=["signal", "volume"]
)
def test_signals_and_volumes_have_maps_at_their_own_resolution(
    method: type[camlib.methods.Method], network: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    maps = method(network().double())(images(*shape), 1).maps
    assert maps.shape == (shape[0], *shape[2:])
    assert maps.amax() > 0


class Video(nn.Module):
    """Takes frames first, (N, T, 3, H, W), as Hugging Face's models do; its convolutions take (N, 3, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.transpose(1, 2)).mean((2, 3, 4)))


@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("method", [GuidedBackprop, GuidedGradCAM])
def test_a_video_with_the_frames_first_has_the_map_that_it_has_with_the_channels_first(
    method: type[camlib.methods.Method], frames: int
) -> None:
    model, inputs = Video().double(), images(2, frames, 3, 6, 7)
    layer = {} if method.layerless else {"layer": "features.1"}
    explanation = method(model, **layer)(inputs, 1)
    assert explanation.maps.shape == (2, frames, 6, 7) == (2, *explanation.input_size)
    assert explanation.maps.amax() > 0
    turned = method(model, **layer, forward=lambda model, x: model(x.transpose(1, 2)))(inputs.transpose(1, 2), 1)
    torch.testing.assert_close(explanation.maps, turned.maps)
    assert guided_gradients(model, inputs, 1).shape == (2, 3, frames, 6, 7)


@pytest.mark.parametrize("method", [GuidedBackprop, GuidedGradCAM])
def test_three_frames_of_three_channels_are_taken_as_channels_first(method: type[camlib.methods.Method]) -> None:
    """Nothing in the shape tells which it is; the map has the input's size either way."""
    layer = {} if method.layerless else {"layer": "features.1"}
    explanation = method(Video().double(), **layer)(images(2, 3, 3, 6, 7), 1)
    assert explanation.maps.shape == (2, 3, 6, 7) == (2, *explanation.input_size)


@pytest.mark.parametrize(("method", "passes"), [(GuidedBackprop, 1), (GuidedGradCAM, 2)])
def test_the_forward_passes_are_as_stated(method: type[camlib.methods.Method], passes: int) -> None:
    model = Network()
    cam = method(model, **({} if method.layerless else {"layer": "norm"}))
    cam(torch.randn(2, 3, 8, 8), [[0, 1]] * 2)
    assert model.passes == passes


def test_another_threads_relu_keeps_its_ordinary_gradient_meanwhile() -> None:
    found: list[Tensor] = []

    def elsewhere() -> None:
        leaf = torch.ones(3, requires_grad=True)
        found.extend(torch.autograd.grad(-torch.relu(leaf).sum(), leaf))

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return model(x)

    GuidedBackprop(small_cnn(), forward=forward)(torch.randn(2, 3, 8, 8), 1)
    assert torch.equal(found[0], -torch.ones(3))


def test_after_a_call_a_relu_is_itself_again() -> None:
    model = nn.Sequential(small_cnn(), nn.SiLU())
    with pytest.raises(camlib.CamlibRuntimeError):
        GuidedBackprop(model)(torch.randn(2, 3, 8, 8), 1)
    leaf = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(-torch.relu(leaf).sum(), leaf)
    assert torch.equal(gradient, -torch.ones(3))


@pytest.mark.parametrize("factor", [1e30, 1e18, 1e-15, 1e-20, 1e-30])
def test_guided_grad_cam_does_not_overflow_or_underflow_where_its_factors_do_not(factor: float) -> None:
    torch.manual_seed(0)
    model, images = small_cnn(), torch.rand(3, 3, 8, 8)
    wide = camlib.GuidedGradCAM(copy.deepcopy(model).double())(images.double(), camlib.TopK(3))
    found = camlib.GuidedGradCAM(model, forward=lambda model, x: model(x) * factor)(images, camlib.TopK(3))
    assert torch.equal(found.degenerate, wide.degenerate)
    assert not found.degenerate.all()
    torch.testing.assert_close(found.heatmaps().double(), wide.heatmaps(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.maps.double() / factor / factor, wide.maps, rtol=1e-3, atol=1e-5)
