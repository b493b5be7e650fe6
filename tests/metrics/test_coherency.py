"""Coherency, and the harmonic means that it is a part of: ADCC and ARCC."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import (
    Explained,
    HeatmapCase,
    Scorer,
    adcc,
    arcc,
    average_drop,
    coherency,
    complexity,
    road_combined,
)
from camlib.metrics.coherency import harmonic_mean
from tests.networks import signal_cnn, small_cnn, volume_cnn

ROAD: dict[str, Any] = {"shares": (0.3, 0.6), "noise": 0.02}
few_shares = functools.partial(arcc, **ROAD)
each = pytest.mark.parametrize("metric", [coherency, adcc, few_shares], ids=["coherency", "adcc", "arcc"])
weighed = pytest.mark.parametrize("metric", [adcc, few_shares], ids=["adcc", "arcc"])


class Counting(nn.Module):
    """A small network that counts the images that pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.images = small_cnn().double(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.inside(x)


def explanation_of(maps: Tensor) -> camlib.Explanation:
    """An explanation that asks no network."""
    size = tuple(maps.shape[1:])
    return camlib.Explanation(maps, maps.new_full((len(maps),), math.nan), None, "pixels", "pixels", "", size)


def pixels(inputs: Tensor, target: Any = None) -> camlib.Explanation:
    """The first channel for a map."""
    return explanation_of(inputs[:, 0])


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 9, dtype=torch.float64)


def grad_cam(model: nn.Module | None = None) -> camlib.GradCAM:
    return camlib.GradCAM(small_cnn().double() if model is None else model, relu=False)


# Coherency ------------------------------------------------------------------------------------------------------------


def test_coherency_of_pixels_by_hand() -> None:
    x = images()
    found = coherency(pixels, x)
    for n in range(2):
        first = x[n, 0].numpy()
        heatmap = (first - first.min()) / (first.max() - first.min())
        expected = (1 + np.corrcoef(heatmap.ravel(), (first * heatmap).ravel())[0, 1]) / 2
        assert found[n].item() == pytest.approx(expected, rel=1e-12)


def test_an_explanation_that_stays_is_coherent_and_one_that_turns_round_is_not() -> None:
    x = images()
    stays = coherency(camlib.CenterGaussian(small_cnn().double()), x)
    torch.testing.assert_close(stays, torch.ones(2).double(), rtol=0, atol=1e-14)

    def turns(inputs: Tensor, target: Any = None) -> camlib.Explanation:
        maps = x[:, 0] - 0.5
        return explanation_of(maps if torch.equal(inputs, x) else -maps)

    torch.testing.assert_close(coherency(turns, x), torch.zeros(2).double(), rtol=0, atol=1e-14)


def test_a_constant_heatmap_is_half_coherent() -> None:
    assert coherency(lambda inputs, target: explanation_of(torch.ones_like(inputs[:, 0])), images()).tolist() == [
        0.5,
        0.5,
    ]


def test_every_channel_is_multiplied_by_the_heatmap_and_the_class_stays() -> None:
    model, x = small_cnn().double(), images(6)
    with torch.no_grad():
        model[6].bias += 0.001 - model(x).mean(0)  # close to the border between the classes
    cam, asked = grad_cam(model), list[Any]()

    def recorded(inputs: Tensor, target: Any = None) -> camlib.Explanation:
        asked.append((inputs, target))
        return cam(inputs, target)

    coherency(recorded, x)
    (_, _), (shown, target) = asked
    assert torch.equal(shown, x * cam(x).heatmaps()[:, None])
    assert not torch.equal(model(shown).argmax(1), model(x).argmax(1)), "the heatmap changes no class"
    assert torch.equal(target.explained, model(x).argmax(1))


def test_coherency_of_an_explanation_that_is_there_costs_one_more() -> None:
    model, x = Counting(), images()
    cam = camlib.GradCAM(model, "inside.3")
    explanation = cam(x, 1)
    model.images = 0
    explained = Explained(cam, x, 1)
    explained.explanation = explanation
    found = coherency.of(explained)
    assert model.images == 2
    assert torch.equal(found, coherency(cam, x, 1))


# Means ----------------------------------------------------------------------------------------------------------------


def test_the_harmonic_mean_by_hand() -> None:
    parts = [
        torch.tensor([1.0, 0.5, 0.0, 0.0]),
        torch.tensor([1.0, 0.25, 1.0, 0.0]),
        torch.tensor([1.0, 1.0, 1.0, 0.3]),
    ]
    assert harmonic_mean(parts).tolist() == [1, pytest.approx(3 / 7), 0, 0]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=5))
def test_the_harmonic_mean_lies_between_the_least_and_the_arithmetic_mean(parts: list[float]) -> None:
    mean = harmonic_mean([torch.tensor([part], dtype=torch.float64) for part in parts]).item()
    assert min(parts) * (1 - 1e-12) <= mean <= sum(parts) / len(parts) * (1 + 1e-12)


def test_negative_parts_have_no_harmonic_mean() -> None:
    with pytest.raises(camlib.CamlibValueError, match="must not be negative, got -0.5; an average drop above 1"):
        harmonic_mean([torch.tensor([1.0]), torch.tensor([-0.5])])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), target=st.sampled_from([None, 1, [2, 0]]))
def test_adcc_is_the_harmonic_mean_of_its_parts(seed: int, target: Any) -> None:
    torch.manual_seed(seed)
    model, x = small_cnn().double(), images()
    cam = grad_cam(model)
    heatmaps = cam(x, target).heatmaps()
    c, k, d = coherency(cam, x, target), complexity(heatmaps), average_drop(model, x, heatmaps, target)
    found = adcc(cam, x, target)
    torch.testing.assert_close(found, 3 / (1 / c + 1 / (1 - k) + 1 / (1 - d)), rtol=1e-12, atol=0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), target=st.sampled_from([None, 1, [2, 0]]))
def test_arcc_is_the_harmonic_mean_of_its_parts(seed: int, target: Any) -> None:
    torch.manual_seed(seed)
    model, x = small_cnn().double(), images(4)
    target = [*target, 1, 1] if isinstance(target, list) else target
    with torch.no_grad():
        model[6].weight *= 20  # or the score hardly moves
    cam = grad_cam(model)
    heatmaps = cam(x, target).heatmaps()
    c, k, r = coherency(cam, x, target), complexity(heatmaps), road_combined(model, x, heatmaps, target, **ROAD)
    found = few_shares(cam, x, target)
    expected = torch.where(r > 0, 3 / (1 / c + 1 / (1 - k) + 1 / (2 * r.clamp(min=1e-300))), 0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_arcc_is_nothing_where_the_least_relevant_pixels_matter_more() -> None:
    model, x = small_cnn().double(), images(12)
    cam = grad_cam(model)
    road = road_combined(model, x, cam(x).heatmaps(), **ROAD)
    assert (road < 0).any(), "no image to look at"
    assert (road > 0).any(), "no image to look at"
    assert ((few_shares(cam, x) == 0) == (road <= 0)).all()


@weighed
def test_a_case_gives_the_same_and_computes_what_metrics_share_once(metric: Callable[..., Tensor]) -> None:
    model, x = Counting(), images()
    cam = camlib.GradCAM(model, "inside.3")
    case = HeatmapCase(Scorer(model, x, 1), Explained(cam, x, 1))
    evaluated = adcc.evaluate(case) if metric is adcc else arcc.evaluate(case, **ROAD)
    torch.testing.assert_close(metric(cam, x, 1), evaluated, rtol=1e-8, atol=0)
    shared = coherency.of(case.explained)
    model.images = 0
    assert torch.equal(case.once(coherency.evaluate), shared)
    assert model.images == 0


def test_explanations_and_passes_are_as_few_as_promised() -> None:
    model, x = Counting(), images()
    cam = camlib.GradCAM(model, "inside.3")
    for metric, passes in [(coherency, 2), (adcc, 2 + 1), (few_shares, 2 + 2 * 2)]:
        model.images = 0
        metric(cam, x)
        assert model.images == 2 * passes
    model.images = 0
    adcc(cam, x, forward=lambda net, pictures: net(pictures))
    assert model.images == 2 * (2 + 2)


@weighed
def test_scores_come_by_the_explainers_own_forward_or_by_that_of_the_options(metric: Callable[..., Tensor]) -> None:
    model, x = small_cnn().double(), images()

    def sharper(net: nn.Module, pictures: Tensor) -> Any:
        return {"logits": 30 * net(pictures)}

    def wrapped(net: nn.Module, pictures: Tensor) -> Any:
        return {"logits": net(pictures)}

    torch.testing.assert_close(
        metric(camlib.GradCAM(model, "3", forward=wrapped), x), metric(camlib.GradCAM(model, "3"), x)
    )
    own = metric(camlib.GradCAM(model, "3", forward=sharper), x)
    given_ = metric(camlib.GradCAM(model, "3"), x, forward=sharper)
    torch.testing.assert_close(own, given_, rtol=1e-10, atol=0)
    assert not torch.equal(own, metric(camlib.GradCAM(model, "3"), x))


@weighed
def test_another_score_can_be_asked_for(metric: Callable[..., Tensor]) -> None:
    model, x = small_cnn().double(), images()
    with torch.no_grad():
        model[6].bias += 10
    cam = camlib.GradCAM(model, "3")
    assert not torch.equal(metric(cam, x, 1, score=camlib.targets.Classes), metric(cam, x, 1))


# What every metric keeps to -------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("smoothed", [False, True])
def test_a_batch_gives_what_its_images_give(metric: Callable[..., Tensor], smoothed: bool) -> None:
    cam: Any = grad_cam()
    cam, x = camlib.NoiseAveraging(cam, samples=2) if smoothed else cam, images(3)
    together = metric(cam, x, [2, 0, 1])
    alone = [metric(cam, x[n : n + 1], [2, 0, 1][n]) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=0)


@weighed
def test_the_size_of_chunks_does_not_matter(metric: Callable[..., Tensor]) -> None:
    cam, x = grad_cam(), images(3)
    whole = metric(cam, x)
    for size in (1, 2, 100):
        torch.testing.assert_close(metric(cam, x, chunk_size=size), whole, rtol=1e-8, atol=0)


@each
def test_the_random_numbers_of_torch_the_model_and_the_images_are_left_alone(metric: Callable[..., Tensor]) -> None:
    model, x = small_cnn().double().train(), images().requires_grad_()
    given_ = x.detach().clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = metric(grad_cam(model), x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, given_)
    assert x.grad is None
    assert not found.requires_grad
    torch.testing.assert_close(metric(grad_cam(model), x), found, rtol=1e-8, atol=0)


def test_roads_noise_comes_from_the_generator() -> None:
    cam, x = grad_cam(), images(12)
    one, same, other = (few_shares(cam, x, generator=torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=1e-8, atol=0)
    assert (one > 0).any(), "no image to look at"
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (signal_cnn(), torch.rand(2, 2, 9)),
        (volume_cnn(), torch.rand(2, 1, 4, 5, 6)),
        (small_cnn(), torch.rand(2, 3, 8, 8)),
    ],
)
def test_signals_pictures_and_volumes_in_single_precision(model: nn.Module, inputs: Tensor) -> None:
    cam = camlib.GradCAM(model, "3", relu=False)
    for metric in (coherency, adcc):
        found = metric(cam, inputs)
        assert found.shape == (2,)
        assert found.dtype == torch.float32
        assert (found > 0).all()


# Errors ---------------------------------------------------------------------------------------------------------------


@each
def test_several_classes_of_each_image_are_refused(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"names 2 classes of each; evaluate one at a time"):
        metric(grad_cam(), images(), [[0, 1], [1, 2]])


@each
def test_what_explains_nothing_is_refused(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"explainer must be an explainer such as camlib.GradCAM\(model\)"):
        metric(small_cnn(), images())


@weighed
def test_an_explainer_that_knows_no_model_gives_no_scores(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"needs the explainer's model, and a function is neither"):
        metric(pixels, images())


def test_pictures_of_integers_cannot_be_multiplied_by_a_heatmap() -> None:
    cam = camlib.CenterGaussian(small_cnn(), forward=lambda model, x: model(x.float()))
    with pytest.raises(camlib.CamlibTypeError, match=r"images are torch.uint8"):
        coherency(cam, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_scores_that_turn_negative_are_refused() -> None:
    model, x = small_cnn().double(), images(1)
    cam = camlib.CenterGaussian(model)
    with torch.no_grad():
        model[6].bias[:] = 0
        clean, shown = model(x)[0, 0], model(x * cam(x).heatmaps()[:, None])[0, 0]
        border = (2 * shown + clean) / 3  # a third of the way, so that the drop is three halves

    def score(outputs: Tensor) -> Tensor:
        return (outputs[:, 0] - border) * (clean - border).sign()

    with pytest.raises(camlib.CamlibValueError, match="must not be negative, got -0.5"):
        adcc(cam, x, score)
