"""Max and average sensitivity and the Lipschitz estimate: what a little noise does to an explanation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import average_sensitivity, lipschitz_estimate, max_sensitivity
from camlib.metrics.readings import explain, method_of
from tests.networks import Network, signal_cnn, small_cnn, volume_cnn

ALL = [max_sensitivity, average_sensitivity, lipschitz_estimate]
each = pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)


class Recorded:
    """An explainer that keeps what it was asked and what it answered."""

    def __init__(self, explainer: Callable[..., camlib.Explanation]) -> None:
        self.explainer = explainer
        self.inputs, self.targets, self.heatmaps = list[Any](), list[Any](), list[Tensor]()

    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        explanation = self.explainer(inputs, target)
        self.inputs.append(inputs)
        self.targets.append(target)
        self.heatmaps.append(explanation.heatmaps())
        return explanation


def explanation_of(maps: Tensor) -> camlib.Explanation:
    """An explanation that asks no network."""
    size = tuple(maps.shape[1:])
    return camlib.Explanation(maps, maps.new_full((len(maps),), math.nan), None, "pixels", "pixels", "", size)


def pixels(inputs: Tensor, target: Any = None) -> camlib.Explanation:
    """The first channel for a map."""
    return explanation_of(inputs[:, 0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 9, dtype=torch.float64)


def norm(heatmap: Tensor) -> float:
    return math.sqrt(sum(value**2 for value in heatmap.flatten().tolist()))


# By hand ------------------------------------------------------------------------------------------------------------


def test_the_largest_the_mean_and_the_steepest_change_by_hand() -> None:
    x = images()
    recorded = Recorded(camlib.GradCAM(small_cnn().double(), "3"))
    found = [metric(recorded, x, samples=4, radius=0.3) for metric in ALL]
    clean, noisy, seen = recorded.heatmaps[0], recorded.heatmaps[1:5], recorded.inputs[1:5]
    for n in range(2):
        changes = [norm(heatmap[n] - clean[n]) for heatmap in noisy]
        relative = [change / norm(clean[n]) for change in changes]
        steep = [change / norm(y[n] - x[n]) for change, y in zip(changes, seen, strict=True)]
        assert len(set(changes)) == 4
        assert found[0][n].item() == pytest.approx(max(relative), rel=1e-12)
        assert found[1][n].item() == pytest.approx(sum(relative) / 4, rel=1e-12)
        assert found[2][n].item() == pytest.approx(max(steep), rel=1e-10)


def test_noise_is_even_between_minus_and_plus_the_radius_and_the_same_for_every_image() -> None:
    x, recorded = images(), Recorded(pixels)
    max_sensitivity(recorded, x, radius=0.25, samples=60)
    noise = torch.stack(recorded.inputs[1:]) - x
    torch.testing.assert_close(noise[:, 0], noise[:, 1], rtol=0, atol=1e-15)
    shares = (noise[:, 0].flatten() / 0.25 + 1) / 2
    assert shares.min() > -1e-12
    assert shares.max() < 1 + 1e-12
    counts = torch.histc(shares, 10, 0, 1) / len(shares)  # of 12960 numbers
    torch.testing.assert_close(counts, torch.full((10,), 0.1, dtype=torch.float64), rtol=0, atol=0.012)
    assert len(shares.unique()) > 0.99 * len(shares)


def test_where_the_heatmap_is_all_zeros_its_norm_counts_as_one() -> None:
    x = images()

    def appears(inputs: Tensor, target: Any = None) -> camlib.Explanation:
        return pixels(inputs) if not torch.equal(inputs, x) else explanation_of(torch.zeros_like(inputs[:, 0]))

    recorded = Recorded(appears)
    found = max_sensitivity(recorded, x, samples=3)
    for n in range(2):
        assert found[n].item() == pytest.approx(max(norm(heatmap[n]) for heatmap in recorded.heatmaps[1:]), rel=1e-12)


# Perturbations of one's own -------------------------------------------------------------------------------------------


def dimmed(given: Tensor, generator: torch.Generator) -> Tensor:
    """Each image by its own factor; the second one never changes."""
    factors = torch.rand(len(given), 1, 1, 1, generator=generator, dtype=given.dtype)
    factors[1] = 1
    return given.mul_(factors)  # in place, on what it was given


def test_a_perturbation_of_ones_own_takes_the_place_of_the_noise() -> None:
    x = images(3)
    before = x.clone()
    recorded = Recorded(camlib.GradCAM(small_cnn().double(), "3"))
    found = [metric(recorded, x, samples=4, perturb=dimmed) for metric in ALL]
    assert torch.equal(x, before)
    clean, changed, seen = recorded.heatmaps[0], recorded.heatmaps[1:5], recorded.inputs[1:5]
    generator = seeded(0)
    assert all(torch.equal(one, dimmed(x.clone(), generator)) for one in seen)
    for n in (0, 2):
        changes = [norm(heatmap[n] - clean[n]) for heatmap in changed]
        steep = [change / norm(y[n] - x[n]) for change, y in zip(changes, seen, strict=True)]
        assert min(changes) > 0
        assert found[0][n].item() == pytest.approx(max(changes) / norm(clean[n]), rel=1e-12)
        assert found[1][n].item() == pytest.approx(sum(changes) / 4 / norm(clean[n]), rel=1e-12)
        assert found[2][n].item() == pytest.approx(max(steep), rel=1e-10)
    assert [found[0][1].item(), found[1][1].item()] == [0, 0]
    assert math.isnan(found[2][1])  # no copy differs


@each
@pytest.mark.parametrize(
    ("perturb", "error", "message"),
    [
        ("noise", camlib.CamlibTypeError, "perturb must be a function of images and a generator, got str: 'noise'"),
        (lambda given, _: given.numpy(), camlib.CamlibTypeError, "perturb returned ndarray"),
        (lambda given, _: given > 0, camlib.CamlibTypeError, "perturb returned torch.bool"),
        (lambda given, _: given[..., :-1], camlib.CamlibValueError, r"shape \(2, 3, 8, 8\); they must keep"),
        (lambda given, _: given / 0, camlib.CamlibValueError, "perturb returned NaN or infinity"),
    ],
    ids=["text", "array", "bools", "shape", "infinite"],
)
def test_perturbations_that_give_no_images_are_refused(
    metric: Callable[..., Tensor], perturb: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metric(camlib.GradCAM(small_cnn().double()), images(), perturb=perturb)


# Properties -----------------------------------------------------------------------------------------------------------


@each
def test_an_explanation_that_does_not_look_at_the_picture_never_changes(metric: Callable[..., Tensor]) -> None:
    assert metric(camlib.CenterGaussian(small_cnn().double()), images(), samples=3).tolist() == [0, 0]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), radius=st.sampled_from([1e-3, 0.1, 1.0]))
def test_the_mean_is_not_above_the_maximum_and_more_samples_raise_only_the_maximum(seed: int, radius: float) -> None:
    torch.manual_seed(seed)
    cam, x = camlib.GradCAM(small_cnn().double(), "3", relu=False), images()
    options = {"radius": radius, "samples": 4}
    largest, mean = max_sensitivity(cam, x, **options), average_sensitivity(cam, x, **options)
    assert (mean <= largest * (1 + 1e-12)).all()
    for metric in (max_sensitivity, lipschitz_estimate):
        assert (metric(cam, x, radius=radius, samples=6) >= metric(cam, x, **options) * (1 - 1e-12)).all()


def test_one_sample_has_the_same_mean_and_maximum() -> None:
    cam, x = camlib.GradCAM(small_cnn().double(), "3"), images()
    assert torch.equal(max_sensitivity(cam, x, samples=1), average_sensitivity(cam, x, samples=1))


@each
def test_the_class_of_the_images_as_they_are_is_asked_about_on_all_copies(metric: Callable[..., Tensor]) -> None:
    model, x = small_cnn().double(), images(4)
    with torch.no_grad():
        model[6].bias += 0.01 - model(x).mean(0)  # close to the border between the classes
    recorded = Recorded(camlib.GradCAM(model, "3"))
    metric(recorded, x, radius=2.0, samples=6)
    predicted = model(x).argmax(1)
    assert any(not torch.equal(model(y).argmax(1), predicted) for y in recorded.inputs[1:]), "noise changes no class"
    assert all(torch.equal(target.explained, predicted) for target in recorded.targets[1:])


# What every metric keeps to -------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_batch_gives_what_its_images_give(metric: Callable[..., Tensor], smoothed: bool) -> None:
    cam: Any = camlib.GradCAM(small_cnn().double(), "3")
    cam, x = camlib.NoiseAveraging(cam, samples=2) if smoothed else cam, images(3)
    together = metric(cam, x, [2, 0, 1], samples=3)
    alone = [metric(cam, x[n : n + 1], [2, 0, 1][n], samples=3) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=0)


@each
def test_it_takes_one_explanation_and_one_for_each_sample(metric: Callable[..., Tensor]) -> None:
    model = Network().eval()
    metric(camlib.GradCAM(model, "features"), torch.rand(2, 3, 8, 9), samples=5)
    assert model.passes == 1 + 5


@each
def test_draws_are_repeatable_and_leave_the_random_numbers_of_torch_the_model_and_the_images_alone(
    metric: Callable[..., Tensor],
) -> None:
    model, x = small_cnn().double().train(), images().requires_grad_()
    cam, given = camlib.GradCAM(model, "3"), x.detach().clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = metric(cam, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, given)
    assert x.grad is None
    assert not found.requires_grad
    assert torch.equal(metric(cam, x), found)
    one, same, other = (metric(cam, x, generator=seeded(n)) for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@each
@pytest.mark.parametrize(
    ("network", "size"),
    [(signal_cnn, (2, 2, 9)), (volume_cnn, (2, 1, 4, 5, 6)), (small_cnn, (2, 3, 8, 8))],
)
def test_signals_pictures_and_volumes_in_single_precision(
    metric: Callable[..., Tensor], network: Callable[..., nn.Module], size: tuple[int, ...]
) -> None:
    cam = camlib.EigenCAM(network(channels=16), "3")  # has positive values, where Grad-CAM may have none for a class
    found = metric(cam, torch.rand(size), samples=2, radius=0.2)
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert (found > 0).all()


def test_only_the_pictures_among_the_inputs_change() -> None:
    model = small_cnn().double()

    def forward(net: nn.Module, inputs: Any) -> Tensor:
        return net(inputs["pictures"]) + inputs["age"]

    inputs = {"pictures": images(), "age": torch.rand(2, 3, dtype=torch.float64)}
    recorded = Recorded(camlib.GradCAM(model, "3", forward=forward))
    max_sensitivity(recorded, inputs, samples=1)
    assert torch.equal(recorded.inputs[1]["age"], inputs["age"])
    assert not torch.equal(recorded.inputs[1]["pictures"], inputs["pictures"])


# Errors ---------------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be a positive number, got 0"),
        ({"radius": math.inf}, "radius must be a positive number, got inf"),
        ({"samples": 0}, "samples must be an int of at least 1, got 0"),
    ],
)
def test_errors_name_what_was_given_and_wanted(
    metric: Callable[..., Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(camlib.CamlibValueError, match=message):
        metric(camlib.GradCAM(small_cnn().double()), images(), **options)


@each
def test_pictures_of_integers_cannot_change_by_a_little(metric: Callable[..., Tensor]) -> None:
    cam = camlib.CenterGaussian(small_cnn(), forward=lambda model, x: model(x.float()))
    with pytest.raises(camlib.CamlibTypeError, match=r"images are torch.uint8"):
        metric(cam, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@each
def test_several_classes_of_each_image_are_refused(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"names 2 classes of each; evaluate one at a time: target"):
        metric(camlib.GradCAM(small_cnn().double()), images(), camlib.TopK(2))


@each
@pytest.mark.parametrize("given", [small_cnn(), camlib.GradCAM, None], ids=["model", "class", "nothing"])
def test_what_explains_nothing_is_refused(metric: Callable[..., Tensor], given: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"explainer must be an explainer such as camlib.GradCAM\(model\)"):
        metric(given, images())


def test_an_explainer_must_return_an_explanation() -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"explainer returned a Tensor; it must return a camlib.Explan"):
        explain(lambda inputs, target: inputs, images())


def test_the_method_inside_smoothings_is_found() -> None:
    cam = camlib.GradCAM(small_cnn())
    assert method_of(cam) is cam
    assert method_of(camlib.MultiScale(camlib.NoiseAveraging(cam))) is cam
    with pytest.raises(camlib.CamlibTypeError, match=r"needs the explainer's model, and a function is neither"):
        method_of(camlib.NoiseAveraging(pixels))
