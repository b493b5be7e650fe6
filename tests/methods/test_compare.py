"""Comparing: many methods from one forward pass and one tail gradient, each as it is alone; and the figure of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from camlib import targets
from camlib.comparison import DEFAULT_METHODS
from tests import networks
from tests.few_passes import OF_ATTENTION, OPTIONS, cheap

ONE_PASS = [
    "grad_cam",
    "grad_cam_plus_plus",
    "x_grad_cam",
    "hires_cam",
    "grad_cam_element_wise",
    "layer_cam",
    "eigen_grad_cam",
    "seg_eigen_cam",
    "refine_cam",
    "eigen_cam",
    "kpca_cam",
    "fem",
    "random_cam",
    "sobel",
    "center_gaussian",
]
"""All that need no more than one forward pass, and one tail gradient at most."""


OF_TRANSFORMERS = (*sorted(OF_ATTENTION), "libra_grad")
"""Methods that read attention, or have no rule for a custom function such as Counted."""


class Counted(torch.autograd.Function):
    """The identity, which counts the gradients that pass through it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, counter: list[int]) -> Tensor:
        ctx.counter = counter
        return features.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counter[0] += 1
        return gradient, None


class Network(nn.Module):
    """Two stages and a head, which counts its forward passes, and the gradients that pass through its tail."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, classes)
        self.passes, self.counter = 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        features = self.stage2(self.stage1(x))
        return self.head(Counted.apply(features, self.counter).mean((2, 3)))


@pytest.fixture
def model() -> Network:
    return Network().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 12, 10)


def alone(name: str, model: nn.Module, images: Any, target: Any = None, layer: Any = "stage2") -> camlib.Explanation:
    cls = camlib.METHODS[name]
    return cheap(name)(model, layer if cls.finds_one_layer and not cls.layerless else None)(images, target)


# What it gives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 3, [1, 4], [[1, 4, 0], [2, 2, 3]], camlib.TopK(2)])
def test_every_method_gives_what_it_gives_alone(model, images, target):
    names = [name for name in camlib.METHODS if name not in OF_TRANSFORMERS]
    few = {name: cheap(name)(model, None if camlib.METHODS[name].layerless else "stage2") for name in OPTIONS}
    comparison = camlib.compare(model, images, [few.get(name, name) for name in names], target, layer="stage2")
    assert list(comparison) == names
    for name in names:
        expected = alone(name, model, images, target)
        torch.testing.assert_close(comparison[name].maps, expected.maps, rtol=1e-6, atol=1e-9)
        assert torch.equal(comparison[name].outputs, expected.outputs)
        assert torch.equal(comparison[name].target, expected.target)
        torch.testing.assert_close(comparison[name].scores, expected.scores)
        assert (comparison[name].method, comparison[name].layer) == (name, expected.layer)


def test_transformers_are_compared_too():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.rand(2, 3, 32, 32)
    names = ["grad_cam", "shapley_cam", "eigen_cam", *OF_TRANSFORMERS]
    comparison = camlib.compare(model, x, names)
    for name in names:  # ShapleyCAM has attention run in another form, which rounds otherwise
        torch.testing.assert_close(comparison[name].maps, camlib.create(name, model)(x).maps, rtol=1e-4, atol=1e-7)


def test_outputs_may_hold_more_than_the_logits(model, images):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": torch.zeros(()), "logits": self.inside(x)}

    comparison = camlib.compare(Wrapped(), images, ["grad_cam", "smooth_grad_cam_plus_plus"], layer="inside.stage2")
    for name, explanation in comparison.items():
        assert torch.equal(explanation.maps, alone(name, model, images).maps)


def test_forward_is_the_door_for_all(model, images):
    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model(inputs["x"]) * torch.tensor([1.0, -2.0, 1.0, 1.0, 3.0])

    names = ["grad_cam", "eigen_cam", "smooth_grad_cam_plus_plus"]
    comparison = camlib.compare(model, {"x": images}, names, forward=forward)
    for name, explanation in comparison.items():
        expected = camlib.create(name, model, "stage2", forward=forward)({"x": images})
        assert torch.equal(explanation.maps, expected.maps)
        assert torch.equal(explanation.target, expected.target)


def test_reshape_goes_to_all(model, images):
    def some_channels(features: Tensor) -> Tensor:
        return features[:, :3]

    comparison = camlib.compare(model, images, ["grad_cam", "eigen_cam"], layer="stage2", reshape=some_channels)
    for name, explanation in comparison.items():
        assert torch.equal(explanation.maps, camlib.create(name, model, "stage2", reshape=some_channels)(images).maps)
        assert not torch.equal(explanation.maps, camlib.create(name, model, "stage2")(images).maps)


def test_methods_may_be_names_classes_and_explainers_with_options_of_their_own(model, images):
    signed = camlib.GradCAM(model, ["stage1", "stage2"], relu=False)
    of_another_layer = camlib.HiResCAM(model, "stage1")
    scaled = camlib.LayerCAM(model, "stage2", forward=lambda model, x: -model(x))
    of_some_channels = camlib.XGradCAM(model, "stage2", reshape=lambda features: features[:, :3])
    given = [signed, of_another_layer, scaled, of_some_channels, camlib.FEM, "eigen_cam"]
    comparison = camlib.compare(model, images, given, 2, layer="stage2")
    assert list(comparison) == ["grad_cam", "hires_cam", "layer_cam", "x_grad_cam", "fem", "eigen_cam"]
    for method in given[:4]:
        torch.testing.assert_close(comparison[method.name].maps, method(images, 2).maps)
    assert comparison["fem"].layer == comparison["eigen_cam"].layer == "stage2"


def test_a_layer_given_is_not_that_of_an_explainer_which_has_none_yet(model, images):
    cam = camlib.GradCAM(model)
    comparison = camlib.compare(model, images, [cam, "layer_cam"], layer="stage1")
    assert comparison["layer_cam"].layer == "stage1"
    assert comparison["grad_cam"].layer == camlib.find_layer(model, images) == "stage2"
    assert cam(images).layer == "stage2"


def test_the_predicted_class_is_bound_once_for_all():
    class Fickle(Network):
        """Every other forward pass turns the logits round."""

        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits if self.passes % 2 else -logits

    model, x = Fickle().eval(), torch.rand(2, 3, 12, 10)
    methods = ["grad_cam", *(n for n in ("guided_backprop", "full_grad") if n in camlib.METHODS)]
    methods.append(camlib.LayerCAM(model, "stage2", forward=lambda model, x: model(x)))  # so that it shares no pass
    comparison = camlib.compare(model, x, methods, layer="stage2")
    assert model.passes == len(methods)
    assert not torch.equal(comparison["layer_cam"].outputs.argmax(1), comparison["grad_cam"].target)
    for explanation in comparison.values():
        assert torch.equal(explanation.target, comparison["grad_cam"].target)


def test_without_classes_methods_that_explain_none_can_be_compared(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    apart = camlib.KPCACAM(model, "1", forward=lambda model, x: model(x))
    comparison = camlib.compare(model, images, ["eigen_cam", "fem", "sobel", apart], layer="1")
    assert {explanation.target for explanation in comparison.values()} == {"features"}
    with pytest.raises(camlib.CamlibTypeError, match="class targets need"):
        camlib.compare(model, images, ["eigen_cam", "grad_cam"], layer="1")


def test_other_targets_are_compared(model, images):
    region = targets.Region(1)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    names = ["grad_cam", "smooth_grad_cam_plus_plus", "eigen_cam"]
    comparison = camlib.compare(dense, images, names, region, layer="1")
    for name, explanation in comparison.items():
        assert explanation.target == "region of category 1"
        assert torch.equal(explanation.maps, alone(name, dense, images, region, "1").maps)
    assert camlib.compare(model, images, ["grad_cam"], lambda y: y[:, 0] - y[:, 1])["grad_cam"].target == "<lambda>"


# What it costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "passes", "gradients"),
    [
        (DEFAULT_METHODS, 1, 1),
        (ONE_PASS, 1, 1),
        (["eigen_cam", "fem", "sobel"], 1, 0),
        (["grad_cam", "hires_cam", "finer_cam"], 1, 2),
        (["grad_cam", "hires_cam", "shapley_cam"], 1, 2),
        (["grad_cam", "finer_cam", "shapley_cam", "eigen_cam"], 1, 3),
        (["grad_cam", "smooth_grad_cam_plus_plus"], 3, 3),  # the first copy is measured, the other seven run together
    ],
    ids=str,
)
def test_forward_passes_and_tail_gradients_are_shared(model, images, names, passes, gradients):
    refined = camlib.RefineCAM(model, ["stage1", "stage2"])  # or it would look for its stages
    camlib.compare(model, images, [refined if name == "refine_cam" else name for name in names], [1, 2], layer="stage2")
    assert (model.passes, model.counter[0]) == (passes, gradients)


def test_the_layer_is_found_once(model, images):
    camlib.compare(model, images, ["grad_cam", camlib.LayerCAM, camlib.HiResCAM(model), "eigen_cam"])
    assert model.passes == 2


def test_nothing_is_looked_for_where_no_method_reads_a_layer(model, images):
    camlib.compare(model, images, ["sobel", "center_gaussian"])
    assert model.passes == 1


def test_the_model_and_the_random_numbers_of_torch_are_left_alone(images):
    model = networks.Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    camlib.compare(model, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# What it refuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ([], camlib.CamlibValueError, "methods is empty"),
        ("grad_cam", camlib.CamlibTypeError, "methods must be a list, got 'grad_cam'"),
        (camlib.GradCAM, camlib.CamlibTypeError, "methods must be a list"),
        (["gradcam"], camlib.CamlibValueError, "there is no method 'gradcam'; did you mean 'grad_cam'"),
        (["grad_cam", camlib.GradCAM], camlib.CamlibValueError, "compared once, got grad_cam, grad_cam"),
        ([7], camlib.CamlibTypeError, "a class or instance of camlib.methods.Method, got int: 7"),
        ([nn.ReLU], camlib.CamlibTypeError, "a class or instance of camlib.methods.Method, got type"),
        ([camlib.functional.grad_cam], camlib.CamlibTypeError, "instance of camlib.methods.Method, got function"),
    ],
)
def test_values_that_are_not_methods_are_refused(model, images, methods, error, message):
    with pytest.raises(error, match=message):
        camlib.compare(model, images, methods)
    assert model.passes == 0


def test_explainers_of_another_model_are_refused(model, images):
    with pytest.raises(camlib.CamlibValueError, match="explains another model than the one given to compare"):
        camlib.compare(model, images, ["fem", camlib.GradCAM(Network())])


def test_an_explainer_itself_is_no_list(model, images):
    with pytest.raises(camlib.CamlibTypeError, match=r"must be a list, got GradCAM\(Network"):
        camlib.compare(model, images, camlib.GradCAM(model))


def test_smoothings_have_no_name_to_be_compared_by(model, images):
    with pytest.raises(camlib.CamlibTypeError, match="instance of camlib.methods.Method, got NoiseAveraging"):
        camlib.compare(model, images, [camlib.NoiseAveraging(camlib.GradCAM(model))])


def test_an_unknown_layer_is_refused_even_where_no_method_reads_it(model, images):
    with pytest.raises(camlib.CamlibValueError, match="stage3"):
        camlib.compare(model, images, ["sobel"], layer="stage3")


def test_inputs_are_checked(model):
    with pytest.raises(camlib.CamlibValueError, match="inputs are empty"):
        camlib.compare(model, torch.rand(0, 3, 12, 10))


# The result and its figure -------------------------------------------------------------------------------------------


def test_a_comparison_is_a_mapping(model, images):
    comparison = camlib.compare(model, images, ["grad_cam", "fem"])
    assert isinstance(comparison, Mapping)
    assert isinstance(iter(comparison), Iterator)
    assert (list(comparison), len(comparison), "fem" in comparison) == (["grad_cam", "fem"], 2, True)
    assert repr(comparison) == "Comparison of grad_cam, fem"
    with pytest.raises(KeyError):
        comparison["eigen_cam"]


def drawn(figure: Any) -> list[Any]:
    """The axes that hold a picture, without the colour bar's."""
    return [ax for ax in figure.axes if ax.images]


@dataclass
class Grid:
    """How many of the first METHODS on how many images, of so many classes each."""

    methods: int
    images: int
    classes: int


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(8, 2, 1), Grid(18, 1, 1), Grid(8, 2, 2)], ids=str)
def test_figure_has_for_each_image_and_class_the_picture_and_every_method(model, grid):
    images = torch.rand(grid.images, 3, 12, 10)
    names = ["layer_cam", *(name for name in ONE_PASS if name != "layer_cam"), "finer_cam", "shapley_cam", "cam"]
    target = [[1, 4]] * grid.images if grid.classes == 2 else 1
    comparison = camlib.compare(model, images, names[: grid.methods], target, layer="stage2")
    figure = comparison.plot(images, class_names=["ant", "bee", "cow", "dog", "elk"])
    pictures = drawn(figure)
    assert len(pictures) == grid.images * grid.classes * (grid.methods + 1)
    titles = [ax.get_title() for ax in pictures]
    block = titles[: grid.methods + 1]
    assert block[0] == f"bee: score {float(comparison['layer_cam'].scores.flatten()[0]):.2f}"
    assert [title.split("\n")[0] for title in block[1:]] == names[: grid.methods]
    if grid.classes == 2:
        assert [title.split(":")[0] for title in titles[:: grid.methods + 1]] == ["bee", "elk"] * grid.images
    first = pictures[1].images[0].get_array()
    assert (first == comparison["layer_cam"].overlays(images)[(0,) * grid.classes]).all()
    assert len(figure.axes) - 1 >= len(pictures)  # the colour bar, and what room is left in the last line
    assert not any(ax.axison for ax in figure.axes if ax.get_label() != "<colorbar>")


def test_figure_says_which_maps_are_empty(model, images):
    model.head.weight.data[1] = -1.0
    figure = camlib.compare(model, images[:1], ["grad_cam", "center_gaussian"], 1, layer="stage2").plot(images[:1])
    titles = [ax.get_title() for ax in drawn(figure)]
    assert titles[0].startswith("class 1: score ")
    assert titles[1:] == ["grad_cam\nnothing stands out", "center_gaussian\nno particular class"]


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (["eigen_cam", "grad_cam"], ["bee: score ", "eigen_cam\nno particular class", "grad_cam"]),
        (["loudest", "grad_cam"], ["bee: score ", "loudest\nno particular class", "grad_cam"]),
        (["eigen_cam", "loudest"], ["no particular class", "eigen_cam", "loudest"]),
    ],
)
def test_figure_says_which_maps_explain_no_particular_class(model, images, names, titles):
    class Loudest(camlib.methods.ActivationMethod):
        name = "loudest"

        def maps(self, activations: Tensor) -> Tensor:
            return activations.amax(1)

    methods = [Loudest if name == "loudest" else name for name in names]
    comparison = camlib.compare(model, images[:1], methods, 1, layer="stage2")
    shown = [ax.get_title() for ax in drawn(comparison.plot(images[:1], ["ant", "bee", "cow", "dog", "elk"]))]
    assert [title.rstrip("-.0123456789") for title in shown] == titles


def test_pictures_may_be_larger_than_what_the_network_saw(model, images):
    import numpy as np

    photographs = [np.zeros((48, 40, 3), np.uint8), np.zeros((24, 60, 3), np.uint8)]
    figure = camlib.compare(model, images, ["grad_cam"]).plot(photographs)
    assert [ax.images[0].get_array().shape[:2] for ax in drawn(figure)] == [(48, 40)] * 2 + [(24, 60)] * 2


def test_figures_of_other_things_are_refused(model, images):
    comparison = camlib.compare(model, images, ["grad_cam"], 4)
    with pytest.raises(camlib.CamlibValueError, match="2 explained images need as many pictures, got 1"):
        comparison.plot(images[:1])
    with pytest.raises(camlib.CamlibTypeError, match="class_names must be a list of names"):
        comparison.plot(images, "ant")
    with pytest.raises(camlib.CamlibValueError, match="class_names has 1 names, but class 4 was explained"):
        comparison.plot(images, ["ant"])
    signals = camlib.compare(networks.signal_cnn().eval(), torch.rand(2, 2, 20), ["grad_cam"])
    with pytest.raises(camlib.CamlibValueError, match=r"are not of images .*; plot each method alone"):
        signals.plot(torch.rand(2, 2, 20))


def test_a_method_without_gradients_may_look_where_the_score_does_not_come_from() -> None:
    """Its layer is watched, not cut: an auxiliary branch, say, or a layer far ahead of the others'."""
    model = Network().eval()
    model.aside = nn.Conv2d(6, 2, 1)
    forward = model.forward

    def with_a_branch(x: Tensor) -> Tensor:
        model.aside(model.stage1(x))
        return forward(x)

    model.forward = with_a_branch
    images = torch.rand(2, 3, 8, 8)
    aside = camlib.EigenCAM(model, "aside")
    comparison = camlib.compare(model, images, [aside, "grad_cam"], layer="stage2")
    torch.testing.assert_close(comparison["eigen_cam"].maps, camlib.EigenCAM(model, "aside")(images).maps)
    torch.testing.assert_close(comparison["grad_cam"].maps, camlib.GradCAM(model, "stage2")(images).maps)
