"""Grad-CAM is what its paper says, on drawn networks.

Real architectures, signals and volumes: ``methods/test_methods.py``.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import camlib
from camlib.discovery import locating
from tests import oracles
from tests.networks import Drawn, Network, cnns, small_cnn


@settings(max_examples=60, deadline=None)
@given(drawn=cnns(), data=st.data())
def test_maps_equal_the_papers_equation_on_random_networks(drawn: Drawn, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, drawn.classes - 1))
    split = oracles.sequential_split(drawn.model, drawn.cut)
    activations, gradients = split.activations_and_gradients(drawn.images, lambda out: out[:, target])
    expected, scale = oracles.grad_cam(activations, gradients)

    signed = camlib.GradCAM(drawn.model, split.layer, relu=False)(drawn.images, target)
    oracles.assert_close(signed.maps, expected, scale, 1e-9)
    cut_off = camlib.GradCAM(drawn.model, split.layer)(drawn.images, target)
    oracles.assert_close(cut_off.maps, expected.clamp(min=0), scale, 1e-9)


@settings(max_examples=30, deadline=None)
@given(drawn=cnns())
def test_batch_equals_one_image_at_a_time(drawn: Drawn) -> None:
    cam = camlib.GradCAM(drawn.model, str(drawn.cut), relu=False)
    together = cam(drawn.images)
    for n, image in enumerate(drawn.images):
        alone = cam(image[None])
        assert alone.target.item() == together.target[n].item()
        torch.testing.assert_close(alone.maps[0], together.maps[n], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(drawn=cnns())
def test_many_classes_equal_one_class_at_a_time(drawn: Drawn) -> None:
    cam = camlib.GradCAM(drawn.model, str(drawn.cut), relu=False)
    classes = torch.arange(drawn.classes).expand(len(drawn.images), -1)
    together = cam(drawn.images, classes)
    assert together.has_class_axis
    for k in range(drawn.classes):
        alone = cam(drawn.images, k)
        torch.testing.assert_close(alone.maps, together.maps[:, k], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone.scores, together.scores[:, k])


@settings(max_examples=15, deadline=None)
@given(drawn=cnns())
def test_gradient_is_the_finite_difference(drawn: Drawn) -> None:
    layer, tail = str(drawn.cut), drawn.model[drawn.cut + 1 :]
    with torch.no_grad(), camlib.capture(drawn.model, layer) as captured:
        outputs = drawn.model(drawn.images)
    gradients = captured.gradients(outputs[:, 0])
    activations = captured.activations

    def slope(place: Tensor, along: Tensor) -> Tensor:
        leaf = place.clone().requires_grad_()
        (found,) = torch.autograd.grad(tail(leaf.clone())[:, 0].sum(), leaf)
        return (found * along).flatten(1).sum(1)

    step = 1e-6
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(activations.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead = tail((activations + step * direction).clone())[:, 0]
            behind = tail((activations - step * direction).clone())[:, 0]
        ends = [slope(activations + sign * step * direction, direction) for sign in (-1, 0, 1)]
        smooth = (ends[0] - ends[1]).abs() + (ends[2] - ends[1]).abs() <= 1e-6 + 1e-4 * ends[1].abs()  # no kink
        expected = (gradients * direction).flatten(1).sum(1)
        torch.testing.assert_close(expected[smooth], ((ahead - behind) / (2 * step))[smooth], rtol=1e-4, atol=1e-6)


def test_pooled_linear_heads_give_the_class_activation_map() -> None:
    """There the gradient is w / (h w), so that h w Grad-CAM = ReLU(CAM) of Zhou 2016."""
    model = small_cnn().double().eval()
    images = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        features = model[:4](images)
    weights = model[6].weight.detach()
    for c in range(3):
        cam = torch.einsum("k,nkij->nij", weights[c], features).relu()
        torch.testing.assert_close(camlib.GradCAM(model, "3")(images, c).maps * 7 * 9, cam)


def test_golden_case_published_with_captum() -> None:
    """captum's ``BasicModel_ConvNet_One_Conv`` rebuilt: input 0 to 15, target 0, layer ``conv1``."""

    class OneConv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 2, 3, 1)
            self.relu1 = nn.ReLU(inplace=True)
            self.fc1 = nn.Linear(8, 4)
            self.conv1.weight = nn.Parameter(torch.ones(2, 1, 3, 3))
            self.conv1.bias = nn.Parameter(torch.tensor([-50.0, -75.0]))
            self.fc1.weight = nn.Parameter(torch.tensor([1.0] * 5 + [-1.0] * 3).expand(4, 8).clone())
            self.fc1.bias = nn.Parameter(torch.zeros(4))
            self.relu2 = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu2(self.fc1(self.relu1(self.conv1(x)).view(-1, 8)))

    image = torch.arange(16.0).view(1, 1, 4, 4)
    maps = camlib.GradCAM(OneConv(), "conv1")(image, 0).maps
    torch.testing.assert_close(maps, torch.tensor([[[11.25, 13.5], [20.25, 22.5]]]))


def test_one_call_is_one_forward_pass_however_many_classes() -> None:
    model = Network().eval()
    images = torch.rand(2, 3, 8, 8)
    cam = camlib.GradCAM(model)
    cam(images)
    assert model.passes == 2, "the first call makes one more, to find the layer"
    for target in (None, 1, [0, 2], camlib.TopK(3), [[0, 1], [1, 2]], lambda out: out.sum(1)):
        before = model.passes
        cam(images, target)
        assert model.passes == before + 1


def test_several_layers_cost_one_pass_and_keep_their_own_maps() -> None:
    model = Network().eval()
    images = torch.rand(2, 3, 8, 8)
    explanation = camlib.GradCAM(model, ["features.0", "norm"])(images, 1)
    assert model.passes == 1
    assert list(explanation.layers) == ["features.0", "norm"]
    for name, maps in explanation.layers.items():
        torch.testing.assert_close(maps, camlib.GradCAM(model, name)(images, 1).maps)


@pytest.mark.parametrize("fuse", ["mean", "max", "product"])
def test_fused_map_combines_minmaxed_maps_on_the_finest_grid(fuse: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    images = torch.rand(2, 3, 8, 8)
    explanation = camlib.GradCAM(model, ["0", "3"], fuse=fuse)(images, [[0, 1], [1, 2]])
    own = []
    for maps in explanation.layers.values():
        resized = nn.functional.interpolate(maps, (8, 8), mode="bilinear")
        low, high = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
        own.append(torch.where(high > low, (resized - low) / (high - low), 0.0))
    combine = {"mean": lambda a, b: (a + b) / 2, "max": torch.maximum, "product": torch.mul}[fuse]
    torch.testing.assert_close(explanation.maps, combine(*own), rtol=1e-5, atol=1e-6)


def test_tail_without_batching_rules_still_explains_many_classes() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * 2 * x * float(gradient.abs().max() >= 0)  # .item() cannot be batched

    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(x)

    custom = nn.Sequential(nn.Conv2d(3, 4, 3), Custom(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(2, 3, 6, 6)
    maps = camlib.GradCAM(custom, "0")(images, camlib.TopK(3))
    for k in range(3):
        alone = camlib.GradCAM(custom, "0")(images, maps.target[:, k])
        torch.testing.assert_close(alone.maps, maps.maps[:, k])


def test_more_classes_than_fit_in_one_batch_of_gradients() -> None:
    model = small_cnn(classes=40)
    images = torch.rand(2, 3, 6, 6)
    explanation = camlib.GradCAM(model, "2")(images, camlib.TopK(40))
    alone = camlib.GradCAM(model, "2")(images, explanation.target[:, 33])
    torch.testing.assert_close(explanation.maps[:, 33], alone.maps)


def test_custom_method_that_does_not_sum_the_channels_is_an_error() -> None:
    class Unsummed(camlib.methods.GradientMethod):
        name = "unsummed"

        def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return activations * gradients

    class Array(camlib.methods.GradientMethod):
        name = "array"

        def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return (activations * gradients).sum(1).numpy()

    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(TypeError, match=r"Unsummed returned \(2, 6, 8, 8\) of layer 'norm'; .* no channel axis"):
        Unsummed(Network().eval(), "norm")(images)
    with pytest.raises(TypeError, match="Array returned a ndarray"):
        Array(Network().eval(), "norm")(images)


@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.RISE])
def test_pictures_in_place_of_tensors_are_an_error_with_advice(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for picture, name in ((torch.zeros(1, 3, 16, 16).numpy(), "numpy.ndarray"), (Image.new("RGB", (16, 16)), "PIL")):
        with pytest.raises(camlib.CamlibTypeError, match=rf"Sequential cannot take {name}.*\(N, C, H, W\).*transforms"):
            method(model)(picture)


def test_the_layout_of_a_layer_is_found_once_for_any_number_of_classes(monkeypatch) -> None:
    asked = []
    found = locating.layout_by_positions
    monkeypatch.setattr(locating, "layout_by_positions", lambda *given: asked.append(given) or found(*given))
    model = torchvision.models.resnet18(num_classes=40).eval()
    for classes in (1, 40):
        asked.clear()
        cam = camlib.GradCAM(model, ["layer3", "layer4"])
        for _ in range(2):  # the second call finds the layouts of the first
            assert cam(torch.rand(2, 3, 64, 64), camlib.TopK(classes)).maps.shape == (2, classes, 4, 4)
            assert len(asked) == 2


def test_the_layer_found_belongs_to_the_size_of_the_input() -> None:
    model = torchvision.models.resnet18(num_classes=4).eval()
    small, large = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 96, 96)
    cam = camlib.GradCAM(model)
    for images, layer in ((small, "layer3"), (large, "layer4"), (small, "layer3")):
        seen, fresh = cam(images, 1), camlib.GradCAM(model)(images, 1)
        assert seen.layer == fresh.layer == layer
        assert torch.equal(seen.maps, fresh.maps)


@pytest.mark.parametrize("method", [method for method in camlib.METHODS.values() if method.layerless])
def test_options_that_a_method_would_not_use_are_refused(method) -> None:
    model = torchvision.models.resnet18(num_classes=4)
    for options in ({"layer": "layer4"}, {"fuse": "max"}, {"reshape": lambda features: features}):
        if method.reads == "attention" and "reshape" in options:
            continue  # it lays the tokens out
        expected = f"{method.__name__} reads no layer; remove {next(iter(options))}="
        with pytest.raises(camlib.CamlibValueError, match=expected):
            method(model, **options)
