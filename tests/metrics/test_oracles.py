"""The metrics are what their papers say: each is compared with a naive float64 re-statement of its definition.

Whoever wrote this has not read :mod:`camlib.metrics`. Where the library draws random numbers, the pictures that the
network was shown are kept, and the definition is applied to these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import metrics
from camlib.metrics.box_accuracy import box_hits
from camlib.metrics.imputation import impute
from camlib.metrics.masks import box_masks
from camlib.metrics.similarity import SIMILARITIES
from tests import metric_equations as equations
from tests.metric_equations import Array
from tests.networks import Drawn, cnns, signal_cnn, small_cnn, volume_cnn

TOLERANCE = 1e-9
seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None)


def assert_close(result: Tensor, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert result.dtype == torch.float64
    wanted = torch.as_tensor(np.array(expected, dtype=np.float64))
    torch.testing.assert_close(result, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


class Recorder(nn.Module):
    """A network that keeps every picture it is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pictures: list[Array] = []

    def forward(self, images: Tensor) -> Tensor:
        self.pictures += list(images.detach().numpy().copy())
        return self.network(images)

    def changed(self, *known: Array) -> list[Array]:
        """The pictures other than these, each once shown."""
        return [picture for picture in self.pictures if not any(np.array_equal(picture, one) for one in known)]


def score_of(model: nn.Module, category: int) -> equations.Score:
    network = model.network if isinstance(model, Recorder) else model

    def score(picture: Array) -> float:
        with torch.no_grad():
            return equations.probability(network(torch.from_numpy(picture)[None])[0].numpy(), category)

    return score


def distinct(count: int, *size: int) -> Tensor:
    """Heatmaps in (0, 1), no two values of which are alike."""
    pixels = math.prod(size)
    return torch.stack([(torch.randperm(pixels).double() + 0.5).reshape(size) / pixels for _ in range(count)])


def classes_of(drawn: Drawn) -> list[int]:
    return torch.randint(drawn.classes, (len(drawn.images),)).tolist()


def each(
    equation: Callable[..., Any], model: nn.Module, images: Tensor, heatmaps: Tensor, target: Sequence[int], **kw: Any
) -> list[Any]:
    """A definition of every image, one after the other."""
    return [
        equation(image.numpy(), heatmap.numpy(), score_of(model, category), **kw)
        for image, heatmap, category in zip(images, heatmaps, target, strict=True)
    ]


def cnn(classes: int = 3) -> nn.Sequential:
    """A small network whose probabilities are far from 0 and 1, and from each other."""
    model = small_cnn(classes).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


# The score ------------------------------------------------------------------------------------------------------------


@few
@given(drawn=cnns(), seed=seeds)
def test_drop_and_increase_are_of_the_probability_of_the_class(drawn: Drawn, seed: int) -> None:
    torch.manual_seed(seed)
    images, heatmaps = drawn.images, torch.rand(len(drawn.images), *drawn.images.shape[2:]).double()
    target = classes_of(drawn)
    drop = metrics.average_drop(drawn.model, images, heatmaps, target)
    assert_close(drop, each(equations.average_drop, drawn.model, images, heatmaps, target))
    scores = each(lambda x, h, score: score(x) - score(x * h), drawn.model, images, heatmaps, target)
    assume(min(map(abs, scores)) > 1e-9)
    increase = metrics.average_increase(drawn.model, images, heatmaps, target)
    assert_close(increase, each(equations.average_increase, drawn.model, images, heatmaps, target))


@few
@given(drawn=cnns())
def test_without_a_target_the_class_is_the_predicted_one_of_the_whole_picture(drawn: Drawn) -> None:
    heatmaps = torch.rand(len(drawn.images), *drawn.images.shape[2:]).double()
    with torch.no_grad():
        outputs = torch.cat([drawn.model(image[None]) for image in drawn.images])
    first, second = outputs.topk(2).values.unbind(1)
    assume(bool((first - second > 1e-9).all()))
    drop = metrics.average_drop(drawn.model, drawn.images, heatmaps)
    expected = each(equations.average_drop, drawn.model, drawn.images, heatmaps, outputs.argmax(1).tolist())
    assert_close(drop, expected)


@pytest.mark.parametrize("category", [0, 1])
def test_one_logit_is_the_log_odds_of_class_1(category: int) -> None:
    model, images, heatmaps = cnn(1), torch.randn(4, 3, 8, 9).double(), distinct(4, 8, 9)
    drop = metrics.average_drop(model, images, heatmaps, category)
    assert_close(drop, each(equations.average_drop, model, images, heatmaps, [category] * 4))
    deletion = metrics.deletion(model, images, heatmaps, category, steps=3)

    def area(x: Array, h: Array, score: equations.Score) -> float:
        return equations.area(equations.deletion_curve(x, h, score, steps=3, baseline=np.zeros_like(x)), h.size)

    assert_close(deletion, each(area, model, images, heatmaps, [category] * 4))


# Deletion and insertion -----------------------------------------------------------------------------------------------

BASELINES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Array], Array]]] = {
    "zero": (lambda images: "zero", np.zeros_like),
    "blur": (lambda images: "blur", equations.blurred),
    "number": (lambda images: 0.3, lambda x: np.full_like(x, 0.3)),
    "channels": (
        lambda images: torch.arange(float(images.shape[1])).reshape(-1, *[1] * (images.dim() - 2)),
        lambda x: np.zeros_like(x) + np.arange(float(len(x))).reshape(-1, *[1] * (x.ndim - 1)),
    ),
    "picture": (
        lambda images: torch.linspace(-1, 1, images[0].numel(), dtype=torch.float64).reshape(images.shape[1:]),
        lambda x: np.linspace(-1, 1, x.size).reshape(x.shape),
    ),
}
"""What is given, and the picture of it."""


def assert_curves(
    model: nn.Module, images: Tensor, heatmaps: Tensor, target: list[int], steps: int, baseline: str
) -> None:
    given_baseline, picture = BASELINES[baseline]
    for name in ("deletion", "insertion"):
        equation = getattr(equations, f"{name}_curve")

        def of_one(x: Array, h: Array, score: equations.Score, equation: Callable[..., Array] = equation) -> Array:
            return equation(x, h, score, steps=steps, baseline=picture(x))

        curves = each(of_one, model, images, heatmaps, target)
        options = {"steps": steps, "baseline": given_baseline(images)}
        assert_close(getattr(metrics, f"{name}_curve")(model, images, heatmaps, target, **options), curves)
        areas = [equations.area(curve, heatmaps[0].numel()) for curve in curves]
        assert_close(getattr(metrics, name)(model, images, heatmaps, target, **options), areas)


@few
@given(drawn=cnns(), seed=seeds, steps=st.integers(1, 9), baseline=st.sampled_from([*BASELINES]))
def test_curves_replace_the_most_important_pixels_first(drawn: Drawn, seed: int, steps: int, baseline: str) -> None:
    torch.manual_seed(seed)
    heatmaps = distinct(len(drawn.images), *drawn.images.shape[2:])
    assert_curves(drawn.model, drawn.images, heatmaps, classes_of(drawn), steps, baseline)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(("network", "size"), [(signal_cnn, (2, 30)), (volume_cnn, (1, 4, 5, 6))])
def test_curves_of_signals_and_volumes(network: Callable[[], nn.Module], size: tuple[int, ...], baseline: str) -> None:
    model, images = network().double().eval(), torch.randn(2, *size).double()
    assert_curves(model, images, distinct(2, *size[1:]), [0, 2], 5, baseline)


def test_curves_by_default_take_28_steps_to_zero_and_from_blur() -> None:
    model, images, heatmaps, target = cnn(), torch.randn(2, 3, 9, 8).double(), distinct(2, 9, 8), [1, 2]
    for name, baseline in (("deletion", np.zeros_like), ("insertion", equations.blurred)):
        curve = getattr(equations, f"{name}_curve")
        expected = [
            curve(x.numpy(), h.numpy(), score_of(model, c), steps=28, baseline=baseline(x.numpy()))
            for x, h, c in zip(images, heatmaps, target, strict=True)
        ]
        assert_close(getattr(metrics, f"{name}_curve")(model, images, heatmaps, target), expected)


@few
@given(seed=seeds, levels=st.integers(1, 5))
def test_of_tied_pixels_any_go_first_and_all_before_less_important_ones(seed: int, levels: int) -> None:
    torch.manual_seed(seed)
    model, image = Recorder(cnn()), torch.randn(1, 3, 6, 7).double()
    heatmap = torch.randint(levels, (1, 6, 7)).double() / levels
    result = metrics.deletion(model, image, heatmap, 1, steps=6, baseline=7.0)
    sets = sorted(((picture == 7).all(0) for picture in model.changed(image[0].numpy())), key=np.sum)
    assert [deleted.sum() for deleted in sets] == [7, 14, 21, 28, 35, 42]
    importance = heatmap[0].numpy()
    for deleted, more in itertools.pairwise(sets):
        assert (deleted <= more).all()
        assert importance[deleted].min() >= importance[~deleted].max()
    score = score_of(model, 1)
    clean = image[0].numpy()
    curve = [score(clean), *(score(np.where(deleted, 7.0, clean)) for deleted in sets)]
    assert_close(result, [equations.area(np.array(curve), 42)])


def test_ties_are_broken_by_chance_and_not_by_the_order_of_pixels() -> None:
    model, image, first = Recorder(cnn()), torch.randn(1, 3, 4, 5).double(), np.zeros((4, 5))
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        metrics.deletion(model, image, torch.zeros(1, 4, 5), 1, steps=4, baseline=7.0, generator=generator)
        first += next(deleted for picture in model.pictures if (deleted := (picture == 7).all(0)).sum() == 5)
        model.pictures.clear()
    assert scipy.stats.chisquare(first.ravel()).pvalue > 1e-6


# ROAD -----------------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), share=st.floats(0, 1))
def test_imputed_pixels_are_the_weighted_means_of_their_neighbours(
    seed: int, size: tuple[int, int, int], share: float
) -> None:
    torch.manual_seed(seed)
    pictures, known = torch.randn(3, *size).double(), torch.rand(3, *size[1:]) < share
    known[:, 0, -1] = True
    result = impute(pictures, known, tolerance=1e-13)
    expected = np.stack([equations.imputed(p, k) for p, k in zip(pictures.numpy(), known.numpy(), strict=True)])
    assert_close(result, expected)
    kept = known[:, None].expand_as(pictures)
    assert torch.equal(result[kept], pictures[kept])


@few
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40)),
    share=st.floats(0, 0.5),
    tolerance=st.sampled_from([1e-2, 1e-4, 1e-6]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_imputation_is_as_exact_as_it_says(
    seed: int, size: tuple[int, int, int], share: float, tolerance: float, scale: float
) -> None:
    torch.manual_seed(seed)
    pictures, known = scale * (1 + torch.randn(2, *size).double()), torch.rand(2, *size[1:]) < share
    known[:, -1, 0] = True
    result = impute(pictures, known, tolerance=tolerance)
    for picture, filled, here in zip(pictures.numpy(), result.numpy(), known.numpy(), strict=True):
        assert equations.imputation_residual(filled, here) <= tolerance * np.ptp(picture) * (1 + 1e-9)


def test_imputation_leaves_known_pictures_and_spreads_a_single_pixel() -> None:
    pictures = torch.randn(2, 3, 6, 5).double()
    assert torch.equal(impute(pictures, torch.ones(2, 6, 5, dtype=torch.bool)), pictures)
    known = torch.zeros(2, 6, 5, dtype=torch.bool)
    known[:, 2, 4] = True
    assert_close(impute(pictures, known, tolerance=1e-13), pictures[:, :, 2:3, 4:].expand(2, 3, 6, 5).numpy())
    with pytest.raises(camlib.CamlibError, match="known"):
        impute(pictures, torch.zeros(2, 6, 5, dtype=torch.bool))


ROADS = {
    "road_most_relevant_first": equations.road,
    "road_least_relevant_first": lambda *args, **kw: equations.road(*args, least=True, **kw),
    "road_combined": equations.road_combined,
}


@settings(max_examples=5, deadline=None)
@given(drawn=cnns(), seed=seeds, shares=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3, unique=True))
def test_road_without_noise(drawn: Drawn, seed: int, shares: list[float]) -> None:
    torch.manual_seed(seed)
    heatmaps, target = distinct(len(drawn.images), *drawn.images.shape[2:]), classes_of(drawn)
    for name, equation in ROADS.items():
        result = getattr(metrics, name)(
            drawn.model, drawn.images, heatmaps, target, shares=tuple(shares), noise=0.0, tolerance=1e-13
        )
        assert_close(result, each(equation, drawn.model, drawn.images, heatmaps, target, shares=shares))


def test_road_takes_a_fifth_to_four_fifths_by_default() -> None:
    model, images, heatmaps = cnn(), torch.randn(2, 3, 9, 8).double(), distinct(2, 9, 8)
    for name, equation in ROADS.items():
        result = getattr(metrics, name)(model, images, heatmaps, [1, 2], noise=0.0, tolerance=1e-13)
        assert_close(result, each(equation, model, images, heatmaps, [1, 2], shares=(0.2, 0.4, 0.6, 0.8)))


@pytest.mark.parametrize("name", ["road_most_relevant_first", "road_least_relevant_first"])
def test_road_adds_the_same_gaussian_noise_to_what_is_imputed_of_every_picture(name: str) -> None:
    model, images, heatmap = Recorder(cnn()), torch.randn(2, 3, 12, 13).double(), distinct(1, 12, 13)
    shares, sigma, drawn = (0.25, 0.5, 0.7), 0.3, []
    options: dict[str, Any] = {"shares": shares, "noise": sigma, "tolerance": 1e-13}
    together = getattr(metrics, name)(model, images, heatmap.expand(2, -1, -1), 1, **options)
    for n, image in enumerate(images.numpy()):
        model.pictures.clear()
        result = getattr(metrics, name)(model, images[n : n + 1], heatmap, 1, **options)
        pictures = sorted(model.changed(image), key=lambda picture: (picture != image).sum())
        noises, scores = [], []
        for picture, share in zip(pictures, shares, strict=True):
            known = equations.road_known(heatmap[0].numpy(), share, least="least" in name)
            assert ((picture == image) == known).all(), "what is noisy is what is imputed"
            noises.append((picture - equations.imputed(image, known))[:, ~known])
            scores.append(score_of(model, 1)(picture))
        drawn.append(np.concatenate([noise.ravel() for noise in noises]))
        assert_close(result, [np.mean(scores) - score_of(model, 1)(image)])
        assert_close(together[n : n + 1], result.numpy())
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=0, atol=1e-9)
    assert scipy.stats.kstest(drawn[0] / sigma, "norm").pvalue > 1e-6


def test_of_tied_pixels_the_least_relevant_are_those_that_would_go_last() -> None:
    model, image = Recorder(cnn()), torch.randn(1, 3, 5, 8).double()
    metrics.road_combined(model, image, torch.zeros(1, 5, 8).double(), 1, shares=(0.5,), noise=0.3)
    first, last = ((picture != image[0].numpy()).any(0) for picture in model.changed(image[0].numpy()))
    assert first.sum() == 20
    assert np.array_equal(first, ~last)


# Correlation and infidelity -------------------------------------------------------------------------------------------

FAR = 7.0
"""A baseline that no picture has by itself."""


def subsets_shown(model: Recorder, image: Array) -> list[Array]:
    return [(picture == FAR).all(0) for picture in model.changed(image)]


@few
@given(drawn=cnns(), seed=seeds, share=st.floats(0.05, 0.95), samples=st.integers(3, 12))
def test_faithfulness_correlation_of_the_subsets_drawn(drawn: Drawn, seed: int, share: float, samples: int) -> None:
    torch.manual_seed(seed)
    model, images = Recorder(drawn.model), drawn.images
    heatmaps, target = torch.randn(len(images), *images.shape[2:]).double(), classes_of(drawn)
    options: dict[str, Any] = {"samples": samples, "share": share, "baseline": FAR}
    result = metrics.faithfulness_correlation(drawn.model, images, heatmaps, target, **options)
    first: list[Array] = []
    for n, image in enumerate(images.numpy()):
        model.pictures.clear()
        metrics.faithfulness_correlation(model, images[n : n + 1], heatmaps[n : n + 1], target[n], **options)
        subsets = subsets_shown(model, image)
        assert len(subsets) == samples
        assert {subset.sum() for subset in subsets} == {round(share * heatmaps[0].numel())}
        first = first or subsets
        assert np.array_equal(subsets, first), "the same of every picture"
        score = score_of(model, target[n])
        scores = [score(np.where(subset, FAR, image)) for subset in subsets]
        assume(np.ptp(scores) > 1e-6)
        expected = equations.faithfulness_correlation(heatmaps[n].numpy(), subsets, score(image), scores)
        assert_close(result[n : n + 1], [expected], 1e-8)


def test_subsets_are_drawn_evenly() -> None:
    model, image = Recorder(cnn()), torch.randn(1, 3, 6, 5).double()
    metrics.faithfulness_correlation(model, image, torch.rand(1, 6, 5), 1, samples=500, share=0.2, baseline=FAR)
    counts = sum(subset.astype(int) for subset in subsets_shown(model, image[0].numpy()))
    assert counts.sum() == 500 * 6
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-6


@few
@given(drawn=cnns(), seed=seeds)
def test_sensitivity_n_is_the_mean_over_shares_of_that_correlation(drawn: Drawn, seed: int) -> None:
    torch.manual_seed(seed)
    model, image = Recorder(drawn.model), drawn.images[:1]
    heatmap, shares = torch.randn(1, *image.shape[2:]).double(), (0.1, 0.3, 0.8)
    result = metrics.sensitivity_n(model, image, heatmap, 1, samples=5, shares=shares, baseline=FAR)
    subsets, score = subsets_shown(model, image[0].numpy()), score_of(model, 1)
    assert len(subsets) == 15
    correlations = []
    for share in shares:
        of_share = [subset for subset in subsets if subset.sum() == round(share * heatmap[0].numel())]
        assert len(of_share) == 5
        scores = [score(np.where(subset, FAR, image[0].numpy())) for subset in of_share]
        assume(np.ptp(scores) > 1e-6)
        clean = score(image[0].numpy())
        correlations.append(equations.faithfulness_correlation(heatmap[0].numpy(), of_share, clean, scores))
    assert_close(result, [np.mean(correlations)], 1e-8)


def test_sensitivity_n_has_five_shares_of_twenty_by_default() -> None:
    model, image = Recorder(cnn()), torch.randn(1, 3, 10, 10).double()
    metrics.sensitivity_n(model, image, torch.rand(1, 10, 10), 1, baseline=FAR)
    sizes = [subset.sum() for subset in subsets_shown(model, image[0].numpy())]
    assert sorted(sizes) == sorted([5, 10, 20, 40, 80] * 20)


def test_a_correlation_with_a_constant_is_nothing() -> None:
    model, images = cnn(), torch.randn(2, 3, 6, 5).double()
    assert_close(metrics.faithfulness_correlation(model, images, torch.zeros(2, 6, 5).double(), 1), [0, 0])
    assert_close(metrics.sensitivity_n(model, images, torch.full((2, 6, 5), 0.5).double(), 1), [0, 0])
    nn.init.zeros_(model[6].weight)
    assert_close(metrics.faithfulness_correlation(model, images, torch.rand(2, 6, 5).double(), 1), [0, 0])


@few
@given(drawn=cnns(), seed=seeds, normalize=st.booleans(), samples=st.integers(1, 5))
def test_infidelity_of_given_perturbations(drawn: Drawn, seed: int, normalize: bool, samples: int) -> None:
    torch.manual_seed(seed)
    images, target = drawn.images, classes_of(drawn)
    heatmaps = torch.randn(len(images), *images.shape[2:]).double()
    perturbations = 0.3 * torch.randn(samples, *images.shape[1:]).double()
    result = metrics.infidelity(drawn.model, images, heatmaps, target, perturbations=perturbations, normalize=normalize)

    def of_one(x: Array, h: Array, score: equations.Score) -> float:
        drawn_ones = perturbations.numpy()
        scores = [score(x - perturbation) for perturbation in drawn_ones]
        return equations.infidelity(h, drawn_ones, score(x), scores, normalize=normalize)

    assert_close(result, each(of_one, drawn.model, images, heatmaps, target))


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_draws_gaussian_noise_per_channel_and_pixel_the_same_for_every_picture(normalize: bool) -> None:
    model, images, heatmaps = Recorder(cnn()), torch.randn(2, 3, 8, 9).double(), torch.rand(2, 8, 9).double()
    options: dict[str, Any] = {"samples": 6, "sigma": 0.2, "normalize": normalize}
    together = metrics.infidelity(model, images, heatmaps, 1, **options)
    drawn = []
    for n, image in enumerate(images.numpy()):
        model.pictures.clear()
        metrics.infidelity(model, images[n : n + 1], heatmaps[n : n + 1], 1, **options)
        perturbations = [image - picture for picture in model.changed(image)]
        assert len(perturbations) == 6
        scores = [score_of(model, 1)(image - perturbation) for perturbation in perturbations]
        clean = score_of(model, 1)(image)
        expected = equations.infidelity(heatmaps[n].numpy(), perturbations, clean, scores, normalize=normalize)
        assert_close(together[n : n + 1], [expected])
        drawn.append(np.stack(perturbations))
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=0, atol=1e-12)
    assert scipy.stats.kstest(drawn[0].ravel() / 0.2, "norm").pvalue > 1e-6


def test_the_best_scale_of_a_map_of_zeros_is_one() -> None:
    model, image = cnn(), torch.randn(1, 3, 6, 5).double()
    perturbations = torch.randn(4, 3, 6, 5).double()
    results = [
        metrics.infidelity(
            model, image, torch.zeros(1, 6, 5).double(), 1, perturbations=perturbations, normalize=normalize
        )
        for normalize in (True, False)
    ]
    assert results[0] > 0
    assert_close(results[0], results[1].numpy())


# A network of which everything is known -------------------------------------------------------------------------------


class Linear(nn.Module):
    """The probability is 1/2 + sum_p w_p sum_c x_cp: what each pixel is worth is known."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(height, width).double() / (400 * height * width) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return torch.logit(0.5 + (self.weight * images.sum(1)).sum((1, 2)))[:, None]

    def worth(self, images: Tensor) -> Tensor:
        """(N, H, W): how far the probability falls when a pixel is zeroed."""
        return self.weight * images.sum(1)


def ranked(worth: Tensor) -> Tensor:
    """Ranks in (0, 1), heatmaps of the same order."""
    flat = worth.flatten(1)
    return ((flat.argsort(1).argsort(1) + 0.5) / flat.shape[1]).reshape(worth.shape)


@few
@given(seed=seeds, steps=st.integers(2, 12))
def test_no_map_beats_the_perfect_one_nor_loses_to_its_reverse(seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    model, images = Linear(6, 7), torch.rand(3, 3, 6, 7).double()
    perfect, other = ranked(model.worth(images)).double(), distinct(3, 6, 7)
    for name, sign in (("deletion", 1), ("insertion", -1)):
        best, middle, worst = (
            sign * getattr(metrics, name)(model, images, heatmaps, 1, steps=steps, baseline="zero")
            for heatmaps in (perfect, other, 1 - perfect)
        )
        assert (best <= middle + 1e-12).all()
        assert (middle <= worst + 1e-12).all()
        assert (best < worst).all()


@few
@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-1, 1))
def test_correlations_of_the_perfect_map_are_1_and_of_its_reverse_minus_1(
    seed: int, scale: float, shift: float
) -> None:
    torch.manual_seed(seed)
    model, images = Linear(6, 7), torch.rand(2, 3, 6, 7).double()
    perfect = scale * model.worth(images) + shift
    for name in ("faithfulness_correlation", "sensitivity_n"):
        assert_close(getattr(metrics, name)(model, images, perfect, 1, samples=8), [1, 1])
        assert_close(getattr(metrics, name)(model, images, -perfect, 1, samples=8), [-1, -1])


@few
@given(seed=seeds, scale=st.sampled_from([-3.0, 0.1, 1.0, 50.0]))
def test_the_weights_are_of_no_infidelity_and_when_normalized_neither_are_their_multiples(
    seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    model, images = Linear(6, 7), torch.rand(2, 3, 6, 7).double()
    weights = model.weight.expand(2, 6, 7)
    exact = metrics.infidelity(model, images, weights, 1)
    assert (exact < 1e-25).all()
    assert (metrics.infidelity(model, images, scale * weights, 1, normalize=True) < 1e-25).all()
    assert scale == 1 or (metrics.infidelity(model, images, scale * weights, 1) > 1e-6).all()


def test_road_ranks_a_map_of_the_object_over_its_reverse() -> None:
    """A square of worth on an even ground: imputed from around it is gone, and the ground without it is the same."""
    model, images = Linear(10, 10), torch.zeros(1, 3, 10, 10).double()
    images[:, :, 3:6, 4:8] = 1
    model.weight.fill_(0.01)
    inside = torch.zeros(1, 10, 10).double()
    inside[:, 3:6, 4:8] = 1
    options: dict[str, Any] = {"shares": (0.12,), "noise": 0.0, "tolerance": 1e-12}
    assert_close(metrics.road_most_relevant_first(model, images, inside, 1, **options), [-0.36])
    assert_close(metrics.road_least_relevant_first(model, images, 1 - inside, 1, **options), [-0.36])
    assert metrics.road_least_relevant_first(model, images, inside, 1, **options) > -1e-9
    assert metrics.road_combined(model, images, inside, 1, **options) > 0.15
    assert metrics.road_combined(model, images, 1 - inside, 1, **options) < -0.15


@settings(max_examples=5, deadline=None)
@given(drawn=cnns(), seed=seeds)
def test_only_the_order_counts_for_curves_and_road(drawn: Drawn, seed: int) -> None:
    torch.manual_seed(seed)
    heatmaps = distinct(len(drawn.images), *drawn.images.shape[2:])
    for name in ("deletion", "insertion", "road_combined"):
        metric = getattr(metrics, name)
        before = metric(drawn.model, drawn.images, heatmaps, 0)
        for alike in (heatmaps**3, (1 + heatmaps) / 2):
            assert torch.equal(metric(drawn.model, drawn.images, alike, 0), before), name


def test_a_map_of_ones_drops_nothing_and_one_of_zeros_shows_the_network_zeros() -> None:
    model, images = cnn(), torch.randn(3, 3, 8, 9).double()
    ones, zeros = torch.ones(3, 8, 9).double(), torch.zeros(3, 8, 9).double()
    for name in ("average_drop", "average_increase"):
        assert_close(getattr(metrics, name)(model, images, ones, 1), [0, 0, 0])
        expected = each(getattr(equations, name), model, images, zeros, [1, 1, 1])
        assert_close(getattr(metrics, name)(model, images, zeros, 1), expected)


# Similarity -----------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, size=st.tuples(st.integers(3, 20), st.integers(3, 20)), levels=st.sampled_from([2, 3, 1000]))
def test_correlations_and_ssim_are_scipys_and_scikit_images(seed: int, size: tuple[int, int], levels: int) -> None:
    torch.manual_seed(seed)
    a, b = (torch.randint(levels, (3, *size)).double() / (levels - 1) for _ in range(2))
    b[2] = (a[2] + b[2]) / 2
    for name in ("pearson", "spearman", "ssim"):
        expected = [getattr(equations, name)(x, y) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        result = getattr(camlib.metrics.similarity, name)(a, b)
        assert_close(result, expected)
        assert_close(getattr(camlib.metrics.similarity, name)(b, a), expected)


@few
@given(seed=seeds, size=st.tuples(st.integers(6, 40), st.integers(6, 40)))
def test_hog_is_of_cells_an_eighth_of_the_sides_and_scikit_images_to_single_precision(
    seed: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(seed)
    a, b = torch.rand(2, *size).double(), torch.rand(2, *size).double()
    pairs = list(zip(a.numpy(), b.numpy(), strict=True))
    result = camlib.metrics.similarity.hog(a, b)
    assert_close(result, [equations.hog(x, y) for x, y in pairs])
    descriptors = [[equations.scikit_image_hog_descriptor(x) for x in pair] for pair in pairs]
    assert_close(result, [equations.pearson(x, y) for x, y in descriptors], 1e-6)


def test_similarities_know_the_same_and_the_constant() -> None:
    maps = torch.rand(3, 16, 16).double()
    constant = torch.full((3, 16, 16), 0.25).double()
    assert {"ssim", "spearman", "hog"} <= set(SIMILARITIES)
    for name, similarity in SIMILARITIES.items():
        assert_close(similarity(maps, maps), [1, 1, 1])
        if name != "ssim":
            assert_close(similarity(maps, constant), [0, 0, 0])
    for name in ("pearson", "spearman"):
        assert_close(getattr(camlib.metrics.similarity, name)(maps, 1 - maps), [-1, -1, -1])
    assert_close(camlib.metrics.similarity.spearman(maps, maps**5), [1, 1, 1])
    expected = [equations.ssim(a, b) for a, b in zip(maps.numpy(), constant.numpy(), strict=True)]
    assert_close(camlib.metrics.similarity.ssim(maps, constant), expected)


# Localisation ---------------------------------------------------------------------------------------------------------


@few
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    share=st.floats(0, 1),
    tolerance=st.sampled_from([0, 1, 2, 5, 15]),
    threshold=st.sampled_from([0.25, 0.5, 0.9]),
)
def test_localisation_against_masks(
    seed: int, size: tuple[int, int], share: float, tolerance: int, threshold: float
) -> None:
    torch.manual_seed(seed)
    heatmaps, masks = distinct(4, *size), torch.rand(4, *size) < share
    masks[:, -1, 0] = True
    k = 1 + heatmaps[0].numel() // 3
    checks: dict[str, dict[str, Any]] = {
        "pointing_game": {"tolerance": tolerance},
        "energy_pointing_game": {},
        "relevance_rank": {},
        "top_k_intersection": {"k": k},
        "roc_auc": {},
        "iou": {"threshold": threshold},
    }
    for name, options in checks.items():
        equation = getattr(equations, name)
        expected = [equation(h, m, **options) for h, m in zip(heatmaps.numpy(), masks.numpy(), strict=True)]
        for given_masks in (masks, masks.numpy(), masks.int(), masks.double()):
            assert_close(getattr(metrics, name)(heatmaps, given_masks, **options), expected)


@few
@given(seed=seeds, size=st.tuples(st.integers(4, 12), st.integers(4, 12)))
def test_boxes_are_masks(seed: int, size: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    height, width = size
    boxes = []
    for count in (1, 3, 2):
        left, top = torch.randint(width - 1, (count,)), torch.randint(height - 1, (count,))
        right = left + 1 + (torch.rand(count) * (width - left)).long()
        bottom = top + 1 + (torch.rand(count) * (height - top)).long()
        boxes.append(torch.stack([left, top, right, bottom], 1))
    masks = np.stack([equations.box_mask(of_one.tolist(), size) for of_one in boxes])
    assert np.array_equal(box_masks(boxes, size).numpy(), masks)
    heatmaps = distinct(3, *size)
    for name in ("pointing_game", "energy_pointing_game", "relevance_rank", "iou"):
        result = getattr(metrics, name)(heatmaps, boxes)
        assert_close(result, getattr(metrics, name)(heatmaps, masks).numpy())
        one_each = torch.stack([of_one[0] for of_one in boxes])
        first = np.stack([equations.box_mask([box], size) for box in one_each.tolist()])
        assert_close(getattr(metrics, name)(heatmaps, one_each), getattr(metrics, name)(heatmaps, first).numpy())


@few
@given(seed=seeds, count=st.integers(1, 56))
def test_a_map_of_the_mask_localises_perfectly_and_its_reverse_not_at_all(seed: int, count: int) -> None:
    """Masks of one pixel and of all 56 among them."""
    torch.manual_seed(seed)
    masks = (distinct(2, 7, 8) * 56 < count).double()
    few_pixels = count <= 28
    checks: dict[str, tuple[dict[str, Any], bool]] = {
        "pointing_game": ({"tolerance": 0}, count < 56),
        "energy_pointing_game": ({}, count < 56),
        "relevance_rank": ({}, few_pixels),
        "top_k_intersection": ({"k": min(count, 56 - count) or count}, count < 56),
        "iou": ({}, count < 56),
    }
    for name, (options, worst) in checks.items():
        assert_close(getattr(metrics, name)(masks, masks, **options), [1, 1])
        if worst:
            assert_close(getattr(metrics, name)(1 - masks, masks, **options), [0, 0])


def test_everything_lies_in_a_mask_of_all_pixels() -> None:
    heatmaps, masks = distinct(3, 5, 6), torch.ones(3, 5, 6, dtype=torch.bool)
    for name in ("pointing_game", "energy_pointing_game", "relevance_rank"):
        assert_close(getattr(metrics, name)(heatmaps, masks), [1, 1, 1])
    assert_close(metrics.top_k_intersection(heatmaps, masks, k=30), [1, 1, 1])
    assert_close(metrics.iou(heatmaps, masks, threshold=1e-9), [1, 1, 1])


@few
@given(seed=seeds)
def test_only_the_order_counts_for_ranks_and_only_shares_for_the_energy(seed: int) -> None:
    torch.manual_seed(seed)
    heatmaps, masks = distinct(3, 8, 7), torch.rand(3, 8, 7) < 0.4
    masks[:, 0, 0] = True
    for name, options in (
        ("pointing_game", {"tolerance": 2}),
        ("relevance_rank", {}),
        ("top_k_intersection", {"k": 9}),
    ):
        before = getattr(metrics, name)(heatmaps, masks, **options)
        assert torch.equal(getattr(metrics, name)(heatmaps**4, masks, **options), before)
        assert torch.equal(getattr(metrics, name)(heatmaps / 3 + 0.5, masks, **options), before)
    energy = metrics.energy_pointing_game(heatmaps, masks)
    assert_close(metrics.energy_pointing_game(1e-30 * heatmaps, masks), energy.numpy())
    assert_close(metrics.energy_pointing_game(1e30 * heatmaps, masks), energy.numpy())


LOCALISATION = ["pointing_game", "energy_pointing_game", "relevance_rank", "top_k_intersection", "iou"]


@pytest.mark.parametrize("name", LOCALISATION)
def test_an_empty_mask_is_an_error_or_nan_and_never_a_hit(name: str) -> None:
    heatmaps, masks = distinct(3, 5, 6), torch.ones(3, 5, 6, dtype=torch.bool)
    masks[1] = False
    options = {"k": 4} if name == "top_k_intersection" else {}
    with pytest.raises(camlib.CamlibError, match="empty"):
        getattr(metrics, name)(heatmaps, masks, **options)
    result = getattr(metrics, name)(heatmaps, masks, empty="nan", **options)
    assert result.isnan().tolist() == [False, True, False]
    flat = torch.zeros(3, 5, 6).double()
    assert getattr(metrics, name)(flat, masks, empty="nan", **options).isnan().tolist() == [False, True, False]


def test_no_energy_is_none_inside_and_negative_energy_an_error() -> None:
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    assert_close(metrics.energy_pointing_game(torch.zeros(2, 4, 4).double(), masks), [0, 0])
    with pytest.raises(camlib.CamlibError, match="at least 0"):
        metrics.energy_pointing_game(torch.linspace(-1, 1, 32).reshape(2, 4, 4), masks)


def test_more_pixels_than_there_are_cannot_be_the_highest() -> None:
    with pytest.raises(camlib.CamlibError, match="1000"):
        metrics.top_k_intersection(distinct(1, 5, 6), torch.ones(1, 5, 6, dtype=torch.bool))


def test_the_maximum_of_a_constant_map_lies_anywhere() -> None:
    masks = torch.zeros(1, 6, 6, dtype=torch.bool)
    masks[:, :2] = True
    hits = [
        metrics.pointing_game(
            torch.full((1, 6, 6), 0.5), masks, tolerance=0, generator=torch.Generator().manual_seed(seed)
        ).item()
        for seed in range(300)
    ]
    assert scipy.stats.binomtest(int(sum(hits)), 300, 1 / 3).pvalue > 1e-6
    near = metrics.pointing_game(torch.full((1, 6, 6), 0.5), masks, tolerance=4)
    assert near.item() == 1


def test_the_tolerance_is_a_euclidean_distance_in_pixels() -> None:
    heatmap, mask = torch.zeros(1, 20, 20), torch.zeros(1, 20, 20, dtype=torch.bool)
    heatmap[0, 3, 4], mask[0, 0, 0] = 1, True
    assert metrics.pointing_game(heatmap, mask, tolerance=5).item() == 1
    assert metrics.pointing_game(heatmap, mask, tolerance=4).item() == 0
    heatmap[0, 3, 4], heatmap[0, 12, 9] = 0, 1
    assert metrics.pointing_game(heatmap, mask).item() == 1, "15 by default"
    heatmap[0, 12, 9], heatmap[0, 12, 10] = 0, 1
    assert metrics.pointing_game(heatmap, mask).item() == 0


# Boxes ----------------------------------------------------------------------------------------------------------------


def blobs(count: int, height: int, width: int) -> Tensor:
    """Smooth maps of a few hills each, min-maxed."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    maps = torch.zeros(count, height, width).double()
    for n in range(count):
        for _ in range(3):
            row, column, spread = height * torch.rand(()), width * torch.rand(()), 1 + 2 * torch.rand(())
            maps[n] += torch.rand(()) * torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * spread**2))
    return camlib.normalize(maps)


def random_boxes(height: int, width: int, count: int) -> Tensor:
    left, top = torch.randint(width - 3, (count,)), torch.randint(height - 3, (count,))
    right = left + 3 + (torch.rand(count) * (width - left - 3)).long()
    bottom = top + 3 + (torch.rand(count) * (height - top - 3)).long()
    return torch.stack([left, top, right, bottom], 1)


@few
@given(seed=seeds, iou=st.sampled_from([0.1, 0.3, 0.5]), thresholds=st.integers(1, 30))
def test_box_accuracy_takes_the_largest_component_at_the_best_threshold(seed: int, iou: float, thresholds: int) -> None:
    torch.manual_seed(seed)
    heatmaps, boxes = blobs(5, 14, 12), [random_boxes(14, 12, count) for count in (1, 2, 1, 3, 1)]
    answers = [
        [equations.largest_component_hits(h, of_one.tolist(), t / thresholds, iou) for t in range(thresholds)]
        for h, of_one in zip(heatmaps.numpy(), boxes, strict=True)
    ]
    table = box_hits(heatmaps, boxes, iou=iou, thresholds=thresholds)
    assert table.shape == (5, thresholds)
    for row, of_one in zip(table.tolist(), answers, strict=True):
        for hit, allowed in zip(row, of_one, strict=True):
            assert hit in allowed
    result = metrics.max_box_acc(heatmaps, boxes, iou=iou, thresholds=thresholds)
    accuracies = table.double().mean(0)
    assert result.mean() == accuracies.max()
    assert any(torch.equal(result.bool(), table[:, t]) for t in range(thresholds))
    first = torch.stack([of_one[0] for of_one in boxes])
    one_each = metrics.max_box_acc(heatmaps, first, iou=iou, thresholds=thresholds)
    assert torch.equal(one_each, metrics.max_box_acc(heatmaps, list(first[:, None]), iou=iou, thresholds=thresholds))


@few
@given(seed=seeds, thresholds=st.integers(1, 20), noisy=st.booleans())
def test_box_accuracy_2_takes_any_component_and_averages_over_ious(seed: int, thresholds: int, noisy: bool) -> None:
    torch.manual_seed(seed)
    heatmaps, boxes = blobs(5, 14, 12), [random_boxes(14, 12, count) for count in (1, 2, 1, 3, 1)]
    if noisy:
        heatmaps = camlib.normalize(heatmaps + 0.3 * torch.rand_like(heatmaps))
    ious, best = (0.3, 0.5, 0.7), []
    for iou in ious:
        table = np.array(
            [
                [equations.any_component_hits(h, of_one.tolist(), t / thresholds, iou) for t in range(thresholds)]
                for h, of_one in zip(heatmaps.numpy(), boxes, strict=True)
            ]
        )
        best.append(table.mean(0).max())
    result = metrics.max_box_acc_v2(heatmaps, boxes, thresholds=thresholds, ious=ious)
    assert result.shape == (5,)
    torch.testing.assert_close(result.double().mean(), torch.tensor(np.mean(best)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_an_overlap_of_just_as_much_as_asked_is_a_hit(tenths: int) -> None:
    """The component has 10 pixels in a row, the true box the first of them."""
    heatmap = torch.zeros(1, 5, 16)
    heatmap[0, 2, 3:13] = 1
    box = torch.tensor([[3, 2, 3 + tenths, 3]])
    assert metrics.max_box_acc(heatmap, box, iou=tenths / 10).item() == 1
    assert metrics.max_box_acc_v2(heatmap, box, ious=(tenths / 10,)).item() == 1
    if tenths < 10:
        assert metrics.max_box_acc(heatmap, box, iou=tenths / 10 + 1e-6).item() == 0


def test_a_map_of_the_box_has_it_and_a_map_of_the_rest_has_not() -> None:
    boxes = torch.tensor([[2, 3, 6, 9], [0, 0, 1, 1], [0, 0, 12, 10]])
    masks = box_masks(boxes, (10, 12)).double()
    assert metrics.max_box_acc(masks, boxes).tolist() == [1, 1, 1]
    assert metrics.max_box_acc_v2(masks, boxes).tolist() == [1, 1, 1]
    assert metrics.max_box_acc(1 - masks[:2], boxes[:2], iou=0.5).tolist() == [0, 0]


def test_diagonal_neighbours_are_connected() -> None:
    heatmap = torch.zeros(1, 6, 6)
    heatmap[0, range(1, 5), range(1, 5)] = 1
    assert metrics.max_box_acc(heatmap, torch.tensor([[1, 1, 5, 5]]), iou=1.0).item() == 1


# Shape ----------------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, size=st.sampled_from([(7,), (9, 8), (1, 1), (3, 4, 5)]), zeros=st.sampled_from([0.0, 0.5, 0.9]))
def test_shape(seed: int, size: tuple[int, ...], zeros: float) -> None:
    torch.manual_seed(seed)
    heatmaps = torch.rand(3, *size).double() * (torch.rand(3, *size) >= zeros)
    for name in ("sparseness", "entropy", "complexity"):
        equation = getattr(equations, name)
        assert_close(getattr(metrics, name)(heatmaps), [equation(h) for h in heatmaps.numpy()])
        if name != "complexity":
            signed = heatmaps * torch.where(torch.rand_like(heatmaps) < 0.5, -1, 1)
            assert_close(getattr(metrics, name)(signed), [equation(h) for h in heatmaps.numpy()])
            for scale in (1e-30, 7.0, 1e30):
                assert_close(getattr(metrics, name)(scale * heatmaps), [equation(h) for h in heatmaps.numpy()])


def test_shape_of_nothing_of_one_pixel_and_of_all_pixels() -> None:
    heatmaps = torch.zeros(3, 8, 5).double()
    heatmaps[1, 2, 3], heatmaps[2] = 1, 1
    assert_close(metrics.sparseness(heatmaps), [0, 1 - 1 / 40, 0])
    assert_close(metrics.entropy(heatmaps), [math.log(40), 0, math.log(40)])
    assert_close(metrics.complexity(heatmaps), [0, 1 / 40, 1])


# Explainers -----------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    images: Tensor
    explanation: camlib.Explanation
    state: dict[str, Tensor]
    """The network's, at the time."""


def recording(
    model: nn.Module, layer: str = "2", method: type[Any] = camlib.GradCAM, **options: Any
) -> tuple[Any, list[Call]]:
    """An explainer that keeps what it was asked and what it answered; its copies do so, too."""
    calls: list[Call] = []

    class Recording(method):
        def __call__(self, inputs: Tensor, target: Any = None) -> camlib.Explanation:
            explanation = super().__call__(inputs, target)
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            calls.append(Call(inputs.clone(), explanation, state))
            return explanation

    return Recording(model, layer, **options), calls


def heatmaps_of(model: nn.Module, images: Tensor, target: Any, layer: str = "2") -> Array:
    """By an explainer of one's own; of un-ReLU'd maps, which are never of zeros."""
    return camlib.GradCAM(model, layer, relu=False)(images, target).heatmaps().numpy()


def asked(target: Any, model: nn.Module, images: Tensor) -> list[int]:
    with torch.no_grad():
        return model(images).argmax(1).tolist() if target is None else list(target)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, target=st.sampled_from([None, (0, 2, 1)]))
def test_coherency_is_with_the_map_of_the_masked_pictures_for_the_same_class(seed: int, target: Any) -> None:
    torch.manual_seed(seed)
    model, images = cnn(), torch.randn(3, 3, 12, 11).double()
    classes = asked(target, model, images)
    clean = heatmaps_of(model, images, classes)
    masked = heatmaps_of(model, images * torch.from_numpy(clean)[:, None], classes)
    expected = [equations.coherency(a, b) for a, b in zip(clean, masked, strict=True)]
    explainer = camlib.GradCAM(model, "2", relu=False)
    assert_close(metrics.coherency(explainer, images, target), expected)
    drops = each(equations.average_drop, model, images, torch.from_numpy(clean), classes)
    parts = zip(expected, [1 - equations.complexity(h) for h in clean], [1 - drop for drop in drops], strict=True)
    assert_close(metrics.adcc(explainer, images, target), [equations.harmonic_mean(part) for part in parts])


@settings(max_examples=5, deadline=None)
@given(seed=seeds, noise=st.sampled_from([0.0, 0.05]))
def test_arcc_is_of_coherency_complexity_and_road(seed: int, noise: float) -> None:
    torch.manual_seed(seed)
    model, image, shares = cnn(), torch.randn(1, 3, 12, 11).double(), (0.25, 0.5)
    (heatmap,) = heatmaps_of(model, image, 1)
    masked = image[0].numpy() * heatmap
    (of_masked,) = heatmaps_of(model, torch.from_numpy(masked)[None], 1)
    shown = Recorder(model)
    explainer = camlib.GradCAM(shown, "network.2", relu=False)
    result = metrics.arcc(explainer, image, 1, shares=shares, noise=noise)
    score, scores = score_of(model, 1), {}
    for picture in shown.changed(image[0].numpy(), masked):
        known = (picture == image[0].numpy()).all(0)
        for share, least in itertools.product(shares, (False, True)):
            if np.array_equal(known, equations.road_known(heatmap, share, least=least)):
                if noise == 0:
                    np.testing.assert_allclose(picture, equations.imputed(image[0].numpy(), known), rtol=0, atol=0.1)
                scores[share, least] = score(picture)
    assert len(scores) == 4
    combined = sum(scores[share, True] - scores[share, False] for share in shares) / len(shares) / 2
    parts = (
        equations.coherency(heatmap, of_masked),
        1 - equations.complexity(heatmap),
        min(max(2 * combined, 0.0), 1.0),
    )
    assert_close(result, [equations.harmonic_mean(parts)])


def test_coherency_is_of_smoothed_maps_too() -> None:
    model, images = cnn(), torch.randn(2, 3, 12, 11).double()
    explainer = camlib.NoiseAveraging(camlib.GradCAM(model, "2", relu=False), samples=2)
    clean = explainer(images, 1).heatmaps()
    masked = explainer(images * clean[:, None], 1).heatmaps()
    expected = [equations.coherency(a, b) for a, b in zip(clean.numpy(), masked.numpy(), strict=True)]
    assert_close(metrics.coherency(explainer, images, 1), expected)


def test_a_map_that_does_not_look_at_the_picture_is_coherent_and_robust() -> None:
    model, images = cnn(), torch.randn(2, 3, 12, 11).double()
    explainer = camlib.CenterGaussian(model)
    torch.testing.assert_close(metrics.coherency(explainer, images).double(), torch.ones(2).double())
    for name in ("max_sensitivity", "average_sensitivity", "lipschitz_estimate"):
        assert getattr(metrics, name)(explainer, images, samples=2).tolist() == [0, 0]


@settings(max_examples=4, deadline=None)
@given(seed=seeds, target=st.sampled_from([None, (0, 2, 1)]), radius=st.sampled_from([0.02, 0.3]))
def test_robustness_is_of_the_maps_of_copies_for_the_same_class(seed: int, target: Any, radius: float) -> None:
    torch.manual_seed(seed)
    model, images, samples = cnn(), torch.randn(3, 3, 9, 8).double(), 4
    classes = asked(target, model, images)
    clean = heatmaps_of(model, images, classes)
    for name in ("max_sensitivity", "average_sensitivity", "lipschitz_estimate"):
        explainer, calls = recording(model, relu=False)
        result = getattr(metrics, name)(explainer, images, target, radius=radius, samples=samples)
        assert torch.equal(calls[0].images, images)
        assert len(calls) == 1 + samples
        shifts = [(call.images - images).numpy() for call in calls[1:]]
        for shift in shifts:
            assert np.abs(shift).max() <= radius
            np.testing.assert_allclose(shift, shift[:1].repeat(3, 0), rtol=0, atol=1e-12)
        drawn = np.stack([shift[0] for shift in shifts]).ravel()
        assert scipy.stats.kstest(drawn, "uniform", (-radius, 2 * radius)).pvalue > 1e-6
        copies = [heatmaps_of(model, call.images, classes) for call in calls[1:]]
        expected = []
        for n in range(3):
            of_copies = [copy[n] for copy in copies]
            sensitivities = equations.sensitivities(clean[n], of_copies)
            expected.append(
                {
                    "max_sensitivity": max(sensitivities),
                    "average_sensitivity": sum(sensitivities) / samples,
                    "lipschitz_estimate": equations.lipschitz_estimate(clean[n], of_copies, [s[n] for s in shifts]),
                }[name]
            )
        assert_close(result, expected, 1e-8)


class OnceInTwo(camlib.CenterGaussian):
    """Of the first pictures it is asked about it finds nothing."""

    found = False

    def __call__(self, inputs: Tensor, target: Any = None) -> camlib.Explanation:
        explanation = super().__call__(inputs, target)
        self.found, blank = True, not self.found
        return dataclasses.replace(explanation, maps=torch.zeros_like(explanation.maps)) if blank else explanation


def test_the_norm_of_a_map_of_zeros_counts_as_one() -> None:
    model, images = cnn(), torch.randn(2, 3, 12, 11).double()
    size = camlib.CenterGaussian(model)(images).heatmaps().flatten(1).norm(dim=1)
    for name in ("max_sensitivity", "average_sensitivity"):
        torch.testing.assert_close(getattr(metrics, name)(OnceInTwo(model), images, samples=3), size)


# Sanity ---------------------------------------------------------------------------------------------------------------


def layers_changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The modules of which every parameter is another, when no parameter of the others is."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    modules = {name.rpartition(".")[0] for name in changed}
    assert changed == {name for name in before if name.rpartition(".")[0] in modules}
    return modules


@pytest.mark.parametrize("order", ["cascading", "independent"])
@pytest.mark.parametrize("target", [None, (0, 2, 1)])
def test_randomization_compares_with_maps_of_a_copy_whose_layers_are_random(order: str, target: Any) -> None:
    model, images = cnn(), torch.randn(3, 3, 18, 17).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = asked(target, model, images)
    explainer, calls = recording(model, relu=False)
    result = metrics.randomization(explainer, images, target, order=order)
    assert list(result.stages) == ["6", "2", "0"]
    assert set(result.similarities) == {"ssim", "spearman", "hog"} == set(result.random_pair)
    assert len(calls) == 4
    assert all(torch.equal(call.images, images) for call in calls)
    assert all(call.explanation.target.tolist() == classes for call in calls)
    for i, call in enumerate(calls[1:]):
        expected = {"6", "2", "0"} & (set(result.stages[: i + 1]) if order == "cascading" else {result.stages[i]})
        assert layers_changed(before, call.state) == expected
    if order == "cascading":
        for earlier, later in itertools.pairwise(calls[1:]):
            assert len(layers_changed(earlier.state, later.state)) == 1, "what has been drawn is kept"
    assert layers_changed(before, model.state_dict()) == set()
    clean, *stages = [call.explanation.heatmaps().numpy() for call in calls]
    for name, similarity in equations.SIMILARITIES.items():
        expected_rows = [[similarity(a, b) for a, b in zip(clean, stage, strict=True)] for stage in stages]
        assert_close(result.similarities[name], expected_rows)
        mean = getattr(metrics, f"{order}_randomization")(explainer, images, target, similarity=name)
        assert_close(mean, np.mean(expected_rows, 0))


class Scale(nn.Module):
    """A module without ``reset_parameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64).reshape(4, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight


def test_parameters_of_modules_that_cannot_be_reset_are_permuted() -> None:
    torch.manual_seed(3)
    model = cnn()
    model[3] = nn.Sequential(nn.ReLU(), Scale())
    explainer, calls = recording(model, relu=False)
    generator = torch.Generator().manual_seed(1)
    result = metrics.randomization(
        explainer, torch.randn(2, 3, 18, 17).double(), 1, order="independent", generator=generator
    )
    (at,) = (i for i, stage in enumerate(result.stages) if stage.startswith("3"))
    drawn = calls[1 + at].state["3.1.weight"]
    assert not torch.equal(drawn, model[3][1].weight)
    assert torch.equal(drawn.flatten().sort().values, torch.arange(1.0, 5.0, dtype=torch.float64))


def test_a_random_pair_is_of_uniform_maps_of_the_layers_resolution() -> None:
    model, images = cnn(), torch.randn(1, 3, 18, 17).double()
    explainer = camlib.GradCAM(model, "2", relu=False)
    found = metrics.randomization(explainer, images, 1).random_pair
    pairs = [[camlib.normalize(torch.rand(18, 17).double()).numpy() for _ in range(2)] for _ in range(200)]
    for name, similarity in equations.SIMILARITIES.items():
        values = [similarity(*pair) for pair in pairs]
        assert abs(found[name] - np.mean(values)) < 5 * np.std(values), name
        assert np.std(values) < 0.2


def test_a_map_that_does_not_look_at_the_network_is_insane() -> None:
    model, images = cnn(), torch.randn(2, 3, 18, 17).double()
    for name, similarity in itertools.product(("cascading", "independent"), equations.SIMILARITIES):
        metric = getattr(metrics, f"{name}_randomization")
        result = metric(camlib.CenterGaussian(model), images, 1, similarity=similarity)
        torch.testing.assert_close(result.double(), torch.ones(2).double(), rtol=0, atol=1e-5)
    result = metrics.random_logit(camlib.CenterGaussian(model), images, 1)
    torch.testing.assert_close(result.double(), torch.ones(2).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("similarity", equations.SIMILARITIES)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_random_logit_compares_with_the_map_of_another_class(classes: int, similarity: str) -> None:
    model, images = cnn(classes), torch.randn(4, 3, 18, 17).double()
    own = [1, 0, 1, 1] if classes < 5 else [3, 0, 1, 4]
    explainer, calls = recording(model, relu=False)
    result = metrics.random_logit(explainer, images, own, similarity=similarity)
    assert len(calls) == 2
    others = calls[1].explanation.target.tolist()
    assert calls[0].explanation.target.tolist() == own
    assert all(a != b and 0 <= b < max(2, classes) for a, b in zip(own, others, strict=True))
    pairs = zip(heatmaps_of(model, images, own), heatmaps_of(model, images, others), strict=True)
    assert_close(result, [equations.SIMILARITIES[similarity](a, b) for a, b in pairs])


def test_every_other_class_is_drawn() -> None:
    explainer, calls = recording(cnn(4), relu=False)
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        metrics.random_logit(explainer, torch.randn(1, 3, 18, 17).double(), 2, generator=generator)
    drawn = [call.explanation.target.item() for call in calls[1::2]]
    assert set(drawn) == {0, 1, 3}
