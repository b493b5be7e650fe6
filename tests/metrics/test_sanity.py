"""Randomised networks and random logits: an explanation should change when what it explains does."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import (
    SIMILARITIES,
    Randomization,
    cascading_randomization,
    efficient_randomization,
    independent_randomization,
    random_logit,
    randomization,
)
from camlib.metrics.sanity import PAIRS, default_stages
from tests import metric_equations as equations
from tests.few_passes import OF_ATTENTION, cheap
from tests.networks import Network, signal_cnn, small_cnn, volume_cnn

STAGES = ("6", "2", "0")
"""Of a small network, from the output to the input."""

each = pytest.mark.parametrize(
    "metric",
    [cascading_randomization, independent_randomization, random_logit],
    ids=lambda metric: metric.__name__,
)
every = pytest.mark.parametrize(
    "metric",
    [cascading_randomization, independent_randomization, random_logit, efficient_randomization],
    ids=lambda metric: metric.__name__,
)
orders = pytest.mark.parametrize("order", ["cascading", "independent"])


class Spy(camlib.methods.Method):
    reads = "inputs"
    """It explains nothing, and notes the state of the model that it is bound to."""

    name = "spy"
    needs_gradients = False
    seen: ClassVar[list[dict[str, Tensor]]] = []

    def maps_by_layer(self, forward_pass: Any) -> dict[str, Tensor]:
        self.seen.append({name: tensor.clone() for name, tensor in forward_pass.network.module.state_dict().items()})
        return {"": forward_pass.repeated(forward_pass.inputs.images.mean(1))}


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    Spy.seen.clear()


def images(count: int = 2, size: tuple[int, int] = (12, 14)) -> Tensor:
    return torch.rand(count, 3, *size, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grad_cam(model: nn.Module | None = None) -> camlib.GradCAM:
    return camlib.GradCAM(small_cnn().double() if model is None else model, "3", relu=False)


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are the same, NaN included: a heatmap of zeros has no complexity that could rise."""
    return torch.equal(one.nan_to_num(-9), other.nan_to_num(-9))


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


# Which stages ---------------------------------------------------------------------------------------------------------


def test_stages_are_the_models_children_from_the_output_to_the_input() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    assert default_stages(model) == ("fc", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1")


def test_a_model_of_few_children_is_taken_apart() -> None:
    assert default_stages(Network()) == ("head", "norm", "features.3", "features.1", "features.0")


def test_layers_are_not_taken_apart_however_few_they_are() -> None:
    assert default_stages(small_cnn()) == STAGES
    assert default_stages(nn.Linear(2, 2)) == ("bias", "weight")
    assert default_stages(nn.ReLU()) == ()


def test_parameters_that_a_module_holds_itself_are_stages_behind_its_parts() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    assert default_stages(model) == ("heads", "encoder", "conv_proj", "class_token")
    assert default_stages(nn.Sequential(model.encoder, model.heads)) == (
        "1.head",
        "0.ln",
        "0.layers",
        "0.pos_embedding",
    )


@pytest.mark.parametrize(
    "name", ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "swin_t", "vit_b_16", "vgg11"]
)
def test_every_parameter_is_in_one_stage(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    stages = default_stages(model)
    for parameter, _ in model.named_parameters():
        assert sum(parameter == stage or parameter.startswith(f"{stage}.") for stage in stages) == 1


# What is randomised ---------------------------------------------------------------------------------------------------


def test_cascading_randomises_one_stage_after_another_and_independent_one_at_a_time() -> None:
    model, x = small_cnn().double(), images()
    before = copy.deepcopy(model.state_dict())
    for order in ("cascading", "independent"):
        Spy.seen.clear()
        randomization(Spy(model), x, order=order, similarities=["spearman"])
        clean, *seen = Spy.seen
        assert not differing(before, clean)
        assert len(seen) == len(STAGES)
        for k, state in enumerate(seen):
            stages = STAGES[: k + 1] if order == "cascading" else STAGES[k : k + 1]
            assert differing(before, state) == {f"{stage}.{name}" for stage in stages for name in ("weight", "bias")}


def test_a_stage_becomes_the_same_in_any_order_and_whatever_others_are_randomised() -> None:
    model, x = small_cnn().double(), images()
    runs: list[dict[str, Any]] = [{}, {"order": "independent"}, {"stages": ["0"]}, {"stages": ["0", "2"]}]
    for options in runs:
        randomization(Spy(model), x, similarities=["spearman"], **options)
    states = [state["0.weight"] for state in Spy.seen if not torch.equal(state["0.weight"], model[0].weight)]
    assert len(states) == 1 + 1 + 1 + 2
    assert all(torch.equal(state, states[0]) for state in states)


def test_a_random_layer_is_as_a_new_one_is() -> None:
    """A convolution's values are even within 1 / sqrt(fan in), a batch norm forgets what it has learned."""
    model = nn.Sequential(
        nn.Conv2d(3, 200, 3), nn.BatchNorm2d(200), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(200, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    model[1].running_mean.fill_(7.0)
    randomization(Spy(model), images().float(), stages=["1", "0"], similarities=["spearman"])
    clean, norm, last = Spy.seen
    assert differing(clean, norm) == {"1.weight", "1.bias", "1.running_mean"}
    assert norm["1.weight"].eq(1).all()
    assert norm["1.running_mean"].eq(0).all()
    bound = 1 / math.sqrt(27)
    assert last["0.weight"].abs().max() <= bound
    assert last["0.weight"].var().sqrt().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert last["4.weight"].eq(9).all()


class Scaled(nn.Linear):
    """A layer whose ``reset_parameters``, which is its parent's, leaves one of its parameters out."""

    def __init__(self, *channels: int) -> None:
        super().__init__(*channels)
        self.scale = nn.Parameter(torch.randn(channels[1]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Gained(nn.Module):
    """A module that cannot reset itself, one whose weight is computed from other parameters, and one that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3, 12, 14))
        self.body = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.head = Scaled(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x * self.gain).relu().mean((2, 3)))


def test_parameters_that_nothing_resets_are_shuffled() -> None:
    randomization(Spy(Gained()), images().float(), similarities=["spearman"])
    before, after = Spy.seen[0], Spy.seen[-1]
    assert differing(before, after) == set(before)
    weights = "body.parametrizations.weight.original0", "body.parametrizations.weight.original1"
    for name in ("gain", *weights, "head.scale"):
        assert torch.equal(before[name].flatten().sort().values, after[name].flatten().sort().values)
        assert before[name].shape == after[name].shape


def test_the_class_that_the_network_itself_predicts_is_asked_about() -> None:
    model, x = small_cnn().double(), images(4)
    with torch.no_grad():
        model[6].bias -= model(x).mean(0)  # images of several classes, which random networks take for one
    asked = list[Any]()

    class Asked(camlib.GradCAM):
        def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
            explanation = super().__call__(inputs, target)
            asked.append(explanation)
            return explanation

    randomization(Asked(model, "3"), x, similarities=["spearman"])
    predicted = model(x).argmax(1)
    assert len(asked) == 4
    assert any(not torch.equal(explanation.outputs.argmax(1), predicted) for explanation in asked), "no other class"
    assert all(torch.equal(explanation.target, predicted) for explanation in asked)


# What is compared -----------------------------------------------------------------------------------------------------


def by_hand(model: nn.Sequential, x: Tensor, order: str) -> list[Tensor]:
    """Heatmaps of copies of the model whose state a spy has noted."""
    Spy.seen.clear()
    randomization(Spy(model), x, order=order, similarities=["spearman"])
    heatmaps = []
    for state in Spy.seen:
        other = copy.deepcopy(model)
        other.load_state_dict(state)
        heatmaps.append(grad_cam(other)(x, model(x).argmax(1)).heatmaps())
    return heatmaps


@orders
def test_similarities_are_those_of_each_stages_heatmaps(order: Any) -> None:
    model, x = small_cnn().double(), images()
    clean, *random = by_hand(model, x, order)
    result = randomization(grad_cam(model), x, order=order, similarities=list(SIMILARITIES))
    assert result.stages == STAGES
    assert (result.order, result.method) == (order, "grad_cam")
    assert list(result.similarities) == list(SIMILARITIES)
    for name, found in result.similarities.items():
        expected = torch.stack([SIMILARITIES[name](clean, heatmaps) for heatmaps in random])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (found < 0.999).any(), "nothing has changed"


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_numbers_of_an_image_are_means_over_the_stages(similarity: str) -> None:
    cam, x = grad_cam(), images()
    for metric, order in [(cascading_randomization, "cascading"), (independent_randomization, "independent")]:
        result = randomization(cam, x, order=order, similarities=[similarity])
        assert torch.equal(metric(cam, x, similarity=similarity), result.similarities[similarity].mean(0))


@each
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_an_explanation_of_the_picture_alone_stays_the_same(metric: Callable[..., Tensor], similarity: str) -> None:
    for method in (camlib.Sobel, camlib.CenterGaussian):
        found = metric(method(small_cnn().double()), images(), similarity=similarity)
        torch.testing.assert_close(found, torch.ones(2).double(), rtol=0, atol=1e-10)


@orders
def test_the_images_a_smoothing_wraps_are_explained_by_copies_too(order: Any) -> None:
    model, x = small_cnn().double(), images()
    smoothed = camlib.NoiseAveraging(camlib.NoiseAveraging(grad_cam(model), samples=2), samples=2)
    result = randomization(smoothed, x, order=order, similarities=["spearman"])
    assert result.method == "grad_cam, noise averaging, noise averaging"
    assert (result.similarities["spearman"] < 0.999).any()
    assert smoothed.method.method.model is model


def test_random_pairs_are_of_the_explanations_own_resolution() -> None:
    """Heatmaps of few cells are smooth, and by chance their edges more alike than those of many cells."""
    model, x = small_cnn().double(), images(1, (32, 32))
    names = ["hog", "spearman"]
    fine = randomization(camlib.Sobel(model), x, similarities=names, stages=["6"]).random_pair
    model.insert(1, nn.AvgPool2d(16))
    coarse = randomization(camlib.GradCAM(model, "3"), x, similarities=names, stages=["7"]).random_pair
    for found, cells in [(fine, 32), (coarse, 2)]:
        maps = torch.rand(2, 200, cells, cells, dtype=torch.float64, generator=seeded(9))
        pairs = [camlib.normalize(camlib.resize(one, (32, 32))) for one in maps]
        assert list(found) == names
        for name in names:
            pair = SIMILARITIES[name](*pairs)
            deviation = pair.std().item() / math.sqrt(PAIRS)
            assert found[name] == pytest.approx(pair.mean().item(), abs=4 * deviation)
    assert coarse["hog"] > 5 * fine["hog"]


# Random logits --------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 6))
def test_another_class_is_drawn_by_the_same_step_for_every_image(seed: int, classes: int) -> None:
    cam, asked = grad_cam(small_cnn(classes).double()), list[Any]()

    def recorded(inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = cam(inputs, target)
        asked.append(explanation)
        return explanation

    x, target = images(3), [0, 1, classes - 1]
    found = random_logit(recorded, x, target, generator=seeded(seed))
    one, other = asked
    assert one.target.tolist() == target
    steps = (other.target - one.target) % classes
    assert (steps == steps[0]).all()
    assert steps[0] > 0
    assert torch.equal(found, SIMILARITIES["ssim"](one.heatmaps(), other.heatmaps()))


def test_a_bound_class_is_explained_as_the_class_is() -> None:
    model, x = small_cnn(4).double(), images(3)
    cam = grad_cam(model)
    bound = camlib.targets.bind([0, 1, 3], model(x))
    assert torch.equal(random_logit(cam, x, bound), random_logit(cam, x, [0, 1, 3]))


def test_every_other_class_is_drawn_some_time() -> None:
    cam, x = camlib.EigenCAM(small_cnn(4).double(), "3"), images(1)
    classes = set()

    def recorded(inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = cam(inputs, target)
        classes.add(int(explanation.target))
        return explanation

    for seed in range(12):
        random_logit(recorded, x, 1, generator=seeded(seed))
    assert classes == {0, 1, 2, 3}


@pytest.mark.parametrize("logits", [1, 2])
def test_of_two_classes_it_is_the_other(logits: int) -> None:
    model, x = small_cnn(logits, 8).double(), images()
    cam = camlib.GradCAM(model, "2", relu=False)
    heatmaps = cam(x, [0, 1]).heatmaps(), cam(x, [1, 0]).heatmaps()
    expected = SIMILARITIES["pearson"](*heatmaps)
    assert torch.equal(random_logit(cam, x, [0, 1], similarity="pearson"), expected)
    if logits == 1:  # whose evidence is the other's, turned round
        torch.testing.assert_close(expected, -torch.ones(2).double(), rtol=0, atol=1e-10)


def test_a_method_that_sees_no_class_gives_one() -> None:
    found = random_logit(camlib.EigenCAM(small_cnn().double(), "3"), images(), similarity="spearman")
    torch.testing.assert_close(found, torch.ones(2).double(), rtol=0, atol=1e-12)


def test_classes_can_be_given_as_a_target() -> None:
    cam, x = grad_cam(), images()
    assert torch.equal(random_logit(cam, x, camlib.targets.Classes([2, 0])), random_logit(cam, x, [2, 0]))


# Complexity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [7, 100])
def test_the_rise_of_complexity_is_that_of_the_randomised_networks_heatmap(bins: int) -> None:
    model, x = small_cnn().double(), images(4)
    clean, *_, random = by_hand(model, x, "cascading")
    before, after = ([equations.histogram_entropy(one.numpy(), bins) for one in those] for those in (clean, random))
    expected = [(b - a) / a if a else math.nan for a, b in zip(before, after, strict=True)]
    found = efficient_randomization(grad_cam(model), x, bins=bins)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, equal_nan=True)
    assert (found.abs() > 1e-3).any()


def test_the_complexity_of_a_picture_does_not_rise_and_that_of_one_bin_is_none() -> None:
    model, x = small_cnn().double(), images()
    assert efficient_randomization(camlib.Sobel(model), x).tolist() == [0, 0]
    assert efficient_randomization(camlib.Sobel(model), x, bins=1).isnan().all()
    with pytest.raises(camlib.CamlibValueError, match="bins must be an int of at least 1"):
        efficient_randomization(camlib.Sobel(model), x, bins=0)


# What every metric keeps to -------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_batch_gives_what_its_images_give(metric: Callable[..., Tensor], smoothed: bool) -> None:
    cam: Any = grad_cam()
    cam, x = camlib.NoiseAveraging(cam, samples=2) if smoothed else cam, images(3)
    together = metric(cam, x, [2, 0, 1])
    alone = [metric(cam, x[n : n + 1], [2, 0, 1][n]) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9, equal_nan=True)


class Spied(camlib.GradCAM):
    """Grad-CAM that counts its calls, on copies too."""

    calls: ClassVar[list[int]] = []

    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        self.calls.append(len(inputs))
        return super().__call__(inputs, target)


def test_explanations_are_as_few_as_promised() -> None:
    cam, x = Spied(small_cnn().double(), "3"), images()
    for metric, calls in [
        (cascading_randomization, 1 + 3),
        (independent_randomization, 1 + 3),
        (functools.partial(randomization, similarities=["ssim", "spearman"]), 1 + 3),
        (functools.partial(randomization, stages=["2"]), 1 + 1),
        (random_logit, 2),
        (efficient_randomization, 2),
    ]:
        Spied.calls.clear()
        metric(cam, x)
        assert Spied.calls == [2] * calls


@every
def test_the_explainer_its_model_and_the_random_numbers_of_torch_are_left_alone(metric: Callable[..., Tensor]) -> None:
    model, x = Network().double().train(), images()
    model.features.requires_grad_(False)
    cam = camlib.GradCAM(model, "features.3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes, layers = dict(vars(cam)), dict(cam.layers or {})
    state = torch.random.get_rng_state()
    found = metric(cam, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert vars(cam) == attributes
    assert cam.layers == layers
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in model.features.parameters()] == [False] * 6
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.requires_grad
    assert identical(metric(cam, x), found)


@every
def test_draws_come_from_the_generator(metric: Callable[..., Tensor]) -> None:
    cam, x = grad_cam(small_cnn(9).double()), images()
    one, same, *others = (metric(cam, x, generator=seeded(n)) for n in (1, 1, 2, 3, 4))
    assert identical(one, same)
    assert any(not identical(one, other) for other in others)


def test_random_pairs_come_from_the_generator() -> None:
    cam, x = grad_cam(), images()
    one, same, other = (randomization(cam, x, generator=seeded(n)).random_pair for n in (1, 1, 2))
    assert one == same
    assert one != other


@every
def test_a_layer_that_is_found_is_found_on_the_network_itself(metric: Callable[..., Tensor]) -> None:
    model, x = small_cnn().double(), images()
    cam = camlib.GradCAM(model)
    found = metric(cam, x)
    assert cam(x).layer == "3"
    assert identical(found, metric(camlib.GradCAM(model, "3"), x))


@every
def test_in_inference_mode_too(metric: Callable[..., Tensor]) -> None:
    cam, x = grad_cam(), images()
    expected = metric(cam, x)
    with torch.inference_mode():
        assert identical(metric(cam, x), expected)


@each
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (signal_cnn(), torch.rand(2, 2, 9)),
        (volume_cnn(), torch.rand(2, 1, 4, 5, 6)),
        (small_cnn(), torch.rand(2, 3, 8, 8)),
    ],
)
def test_signals_pictures_and_volumes_in_single_precision(
    metric: Callable[..., Tensor], model: nn.Module, inputs: Tensor
) -> None:
    found = metric(camlib.GradCAM(model, "3", relu=False), inputs, similarity="spearman")
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert (found < 1).all()


@pytest.mark.parametrize("name", sorted(set(camlib.METHODS) - OF_ATTENTION - {"sobel", "center_gaussian"}))
def test_every_method_can_be_put_on_a_copy(name: str) -> None:
    found = independent_randomization(cheap(name)(small_cnn()), images().float(), similarity="spearman", stages=["2"])
    assert found.shape == (2,)
    assert (found < 0.999).all()


def test_attention_too() -> None:
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(vit.heads.head.weight)
    result = randomization(camlib.LeGrad(vit), torch.rand(1, 3, 32, 32), similarities=["spearman"])
    assert result.stages == ("heads", "encoder", "conv_proj", "class_token")
    assert (result.similarities["spearman"] < 0.999).any()


# Errors ---------------------------------------------------------------------------------------------------------------


class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle this")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": "top-down"}, ValueError, 'order must be "cascading" or "independent", got \'top-down\''),
        (
            {"similarities": ["mse"]},
            ValueError,
            "there is no similarity 'mse'; choose from pearson, spearman, ssim, hog",
        ),
        ({"similarities": "ssim"}, TypeError, "similarities must be a list of names, got 'ssim'"),
        ({"similarities": []}, ValueError, "similarities is empty"),
        ({"stages": "6"}, TypeError, "stages must be a list of names, got '6'"),
        ({"stages": ()}, ValueError, "stages is empty"),
        ({"stages": ["7"]}, ValueError, "has no layer '7'"),
        ({"stages": ["1"]}, ValueError, "stage '1', a ReLU, has no parameters to randomise"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator"),
        ({"target": camlib.TopK(2)}, ValueError, "names 2 classes of each; evaluate one at a time"),
    ],
)
def test_errors_name_what_was_given_and_wanted(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        randomization(grad_cam(), images(), **options)
    assert isinstance(raised.value, camlib.CamlibError)


@each
def test_an_unknown_similarity_is_refused(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibValueError, match="there is no similarity 'mse'"):
        metric(grad_cam(), images(), similarity="mse")


@every
def test_what_explains_nothing_is_refused(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"camlib.GradCAM\(model\)"):
        metric(small_cnn(), images())


def test_an_explainer_that_knows_no_model_cannot_be_put_on_another() -> None:
    cam = grad_cam()
    with pytest.raises(camlib.CamlibTypeError, match="needs the explainer's model, and a function is neither"):
        randomization(lambda inputs, target=None: cam(inputs, target), images())


def test_a_model_without_parameters_cannot_be_randomised() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(camlib.CamlibValueError, match="the Sequential has no parameters to randomise"):
        randomization(camlib.Sobel(model), images())


def test_a_model_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="the Uncopied cannot be copied.*cannot pickle this"):
        randomization(camlib.Sobel(Uncopied(*small_cnn().double())), images())


@pytest.mark.parametrize(
    "target", [camlib.targets.Probability(1), lambda outputs: outputs[:, 1]], ids=["target", "callable"]
)
def test_random_logit_needs_a_class(target: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match="is not a class; give None, an int or one int per image"):
        random_logit(grad_cam(), images(), target)


# The figure -----------------------------------------------------------------------------------------------------------


@orders
@pytest.mark.parametrize("count", [1, 3])
def test_the_figure_shows_means_over_images_and_random_pairs(order: Any, count: int) -> None:
    names = ["ssim", "spearman"]
    result = randomization(grad_cam(), images(count), order=order, similarities=names)
    figure = result.plot()
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == list(STAGES)
    lines = {line.get_label(): line for line in ax.lines}
    for name in names:
        assert lines[name].get_ydata().tolist() == result.similarities[name].mean(1).tolist()
        assert (lines[name].get_linestyle() == "-") == (order == "cascading")
    dotted = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert dotted == [result.random_pair[name] for name in names]
    low, high = ax.get_ylim()
    assert low < min(dotted)
    assert high > 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names, "the same heatmap", "two random maps"]
    assert ("1 image" if count == 1 else "of 3 images") in ax.get_title(loc="left")
    assert ("up to this stage" in ax.get_xlabel()) == (order == "cascading")


def test_a_result_of_ones_own_can_be_drawn() -> None:
    similarity = {"hog": torch.tensor([[0.5, 0.7], [0.1, 0.2]], requires_grad=True)}
    figure = Randomization(("b", "a"), similarity, {"hog": 0.1}, "cascading", "mine").plot()
    assert figure.axes[0].lines[1].get_ydata().tolist() == pytest.approx([0.6, 0.15])
