"""Insertion and deletion: which pixels go and come, what stands in their place, and the area under the score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

import camlib
from camlib.metrics import ScoredHeatmaps, Scorer, deletion, deletion_curve, insertion, insertion_curve, ranks
from camlib.metrics.fills import baseline_images
from tests.networks import signal_cnn, small_cnn, volume_cnn

CURVES = [deletion_curve, insertion_curve]
AREAS = [deletion, insertion]


class Means(nn.Module):
    """The mean of each channel; it keeps the pictures that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.extend(x.clone())
        return x.flatten(2).mean(2)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(images: int = 2, size: tuple[int, ...] = (5, 6), channels: int = 3) -> tuple[Tensor, Tensor]:
    """Pictures and heatmaps, which have many ties."""
    heatmaps = torch.randint(0, 4, (images, *size)).double() / 3
    return torch.randn(images, channels, *size, dtype=torch.float64), heatmaps


# By hand ------------------------------------------------------------------------------------------------------------

PICTURE = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], dtype=torch.float64)
HEATMAP = torch.tensor([[[0.1, 0.9], [0.4, 0.2]]], dtype=torch.float64)
"""The order of importance is 2, 4, 8, 1."""


def test_the_curves_of_a_mean_by_hand() -> None:
    taken = deletion_curve(Means(), PICTURE, HEATMAP, first, steps=4)
    assert (4 * taken).tolist() == [[15.0, 13.0, 9.0, 1.0, 0.0]]
    shown = insertion_curve(Means(), PICTURE, HEATMAP, first, steps=4, baseline="zero")
    assert (4 * shown).tolist() == [[0.0, 2.0, 6.0, 14.0, 15.0]]
    on_ones = insertion_curve(Means(), PICTURE, HEATMAP, first, steps=4, baseline=1)
    assert (4 * on_ones).tolist() == [[4.0, 5.0, 8.0, 15.0, 15.0]]


def test_the_areas_of_a_mean_by_hand() -> None:
    """A quarter of the score's mean over the five points, the ends counting half."""
    assert deletion(Means(), PICTURE, HEATMAP, first, steps=4).tolist() == [(7.5 + 13 + 9 + 1) / 16]
    assert insertion(Means(), PICTURE, HEATMAP, first, steps=4, baseline="zero").tolist() == [(2 + 6 + 14 + 7.5) / 16]


def test_steps_that_do_not_divide_the_pixels_are_rounded_and_weigh_what_they_are_wide() -> None:
    """Three steps over 4 pixels end at 0, 1, 3 and 4."""
    taken = deletion_curve(Means(), PICTURE, HEATMAP, first, steps=3)
    assert (4 * taken).tolist() == [[15.0, 13.0, 1.0, 0.0]]
    area = deletion(Means(), PICTURE, HEATMAP, first, steps=3)
    assert area.tolist() == [((15 + 13) / 2 * 1 + (13 + 1) / 2 * 2 + (1 + 0) / 2 * 1) / 16]


def test_one_step_is_the_mean_of_both_ends() -> None:
    assert deletion(Means(), PICTURE, HEATMAP, first, steps=1).tolist() == [15 / 8]


def test_more_steps_than_pixels_change_the_area_not() -> None:
    few, many = (deletion(Means(), PICTURE, HEATMAP, first, steps=steps) for steps in (4, 12))
    torch.testing.assert_close(many, few, rtol=1e-14, atol=0)


# What the model sees ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 9), images=st.integers(1, 3), seed=st.integers(0, 99), size=st.sampled_from([(7,), (3, 4)]))
def test_the_most_important_pixels_go_and_come_step_by_step(
    steps: int, images: int, seed: int, size: tuple[int, ...]
) -> None:
    pictures, heatmaps = drawn(images, size)
    order, pixels = ranks(heatmaps, seeded(seed)), heatmaps[0].numel()
    for curve, kept_first in ((deletion_curve, False), (insertion_curve, True)):
        model = Means()
        found = curve(model, pictures, heatmaps, first, steps=steps, baseline=0.25, generator=seeded(seed))
        assert len(model.seen) == images * (1 + steps), "the picture as it is runs once"
        expected = torch.empty_like(found)
        for n in range(images):
            for step in range(steps + 1):
                important = order[n] < round(step * pixels / steps)
                picture = torch.where(important == kept_first, pictures[n], 0.25)
                expected[n, step] = picture[0].mean()
                assert any(torch.equal(picture, seen) for seen in model.seen)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_score_of_the_picture_as_it_is_is_the_scorers() -> None:
    pictures, heatmaps = drawn()
    scored = ScoredHeatmaps(Scorer(small_cnn().double(), pictures, 1), heatmaps)
    model = scored.scorer.model
    assert torch.equal(deletion_curve(model, pictures, heatmaps, 1)[:, 0], scored.scorer.clean)
    assert torch.equal(insertion_curve(model, pictures, heatmaps, 1)[:, -1], scored.scorer.clean)


@pytest.mark.parametrize("options", [{}, {"steps": 5}, {"steps": 5, "baseline": 0.5}])
def test_areas_are_those_under_the_curves(options: dict[str, Any]) -> None:
    pictures, heatmaps = drawn(3)
    model = small_cnn().double()
    scored = ScoredHeatmaps(Scorer(model, pictures, 1), heatmaps)
    steps = options.get("steps", 28)
    at = torch.tensor([round(j * 30 / steps) / 30 for j in range(steps + 1)], dtype=torch.float64)
    pairs = ((deletion, deletion_curve, deletion.of), (insertion, insertion_curve, insertion.of))
    for area, curve, function in pairs:
        points = curve(model, pictures, heatmaps, 1, **options)
        assert points.shape == (3, steps + 1)
        by_hand = ((points[:, 1:] + points[:, :-1]) / 2 * at.diff()).sum(1)
        torch.testing.assert_close(area(model, pictures, heatmaps, 1, **options), by_hand, rtol=1e-12, atol=0)
        torch.testing.assert_close(function(scored, **options), by_hand, rtol=1e-12, atol=0)


def test_deletion_takes_zero_and_insertion_shows_on_a_blur_by_default() -> None:
    pictures, heatmaps = drawn()
    taken, shown = Means(), Means()
    deletion(taken, pictures, heatmaps, first, steps=1)
    insertion(shown, pictures, heatmaps, first, steps=1)
    assert torch.equal(torch.stack(taken.seen[2:]), torch.zeros_like(pictures))
    assert torch.equal(torch.stack(shown.seen[2:]), baseline_images(pictures, "blur"))


# Properties ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 30))
def test_the_perfect_map_is_best_and_the_reversed_worst(seed: int, steps: int) -> None:
    """The score is a mean of positive pixels, so each pixel's value is all that it counts."""
    torch.manual_seed(seed)
    pictures = torch.rand(3, 1, 5, 6, dtype=torch.float64)
    perfect, other = pictures[:, 0], torch.rand(3, 5, 6)

    def evaluated(metric: Any, heatmaps: Tensor) -> Tensor:
        return metric(Means(), pictures, heatmaps, first, steps=steps, baseline="zero")

    slack = 1e-12
    assert (evaluated(deletion, perfect) <= evaluated(deletion, other) + slack).all()
    assert (evaluated(deletion, other) <= evaluated(deletion, -perfect) + slack).all()
    assert (evaluated(insertion, perfect) >= evaluated(insertion, other) - slack).all()
    assert (evaluated(insertion, other) >= evaluated(insertion, -perfect) - slack).all()


@pytest.mark.parametrize("metric", AREAS)
def test_only_the_order_of_the_pixels_counts(metric) -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    rescaled = (3 * heatmaps).exp() - 7
    assert torch.equal(metric(model, pictures, rescaled, 1), metric(model, pictures, heatmaps, 1))
    assert not torch.equal(metric(model, pictures, -heatmaps, 1), metric(model, pictures, heatmaps, 1))


@pytest.mark.parametrize("metric", [*CURVES, *AREAS])
def test_neither_the_batch_nor_the_chunk_matters(metric) -> None:
    pictures, heatmaps = drawn(3)
    model = small_cnn().double()
    together = metric(model, pictures, heatmaps, [0, 2, 1], steps=5)
    alone = [metric(model, pictures[n : n + 1], heatmaps[n : n + 1], c, steps=5) for n, c in enumerate((0, 2, 1))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=0)
    for size in (1, 4, 100):
        chunked = metric(model, pictures, heatmaps, [0, 2, 1], steps=5, chunk_size=size)
        torch.testing.assert_close(chunked, together, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", AREAS)
def test_a_map_of_ties_depends_on_the_generator_alone(metric) -> None:
    pictures, model = drawn()[0], small_cnn().double()
    flat, before = torch.zeros(2, 5, 6), torch.get_rng_state()
    assert torch.equal(metric(model, pictures, flat), metric(model, pictures, flat))
    given = [metric(model, pictures, flat, generator=seeded(seed)) for seed in (5, 5, 6)]
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("metric", AREAS)
@pytest.mark.parametrize(("network", "shape"), [(signal_cnn, (2, 2, 20)), (volume_cnn, (2, 1, 4, 5, 6))])
def test_signals_and_volumes_can_be_evaluated(metric, network, shape: tuple[int, ...]) -> None:
    result = metric(network(), torch.randn(shape), torch.rand(shape[0], *shape[2:]), steps=4)
    assert result.shape == (2,)
    assert ((result > 0) & (result < 1)).all()


@pytest.mark.parametrize("metric", AREAS)
def test_the_result_is_in_double_precision_where_heatmaps_or_scores_are(metric) -> None:
    pictures, heatmaps = drawn()

    def dtype(of_pictures: torch.dtype, of_heatmaps: torch.dtype) -> torch.dtype:
        return metric(Means(), pictures.to(of_pictures), heatmaps.to(of_heatmaps), first, steps=3).dtype

    single, double = torch.float32, torch.float64
    assert dtype(single, single) == single
    assert dtype(double, single) == dtype(single, double) == dtype(double, double) == double
    coarse = metric(Means(), pictures, heatmaps.float(), first, steps=7)
    torch.testing.assert_close(coarse, metric(Means(), pictures, heatmaps, first, steps=7), rtol=1e-14, atol=0)


# Baselines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 14, 3), (1, 2, 12, 9, 1)], ids=str)
def test_blur_is_a_gaussian_along_each_side_with_replicated_borders(shape: tuple[int, ...]) -> None:
    pictures = torch.randn(shape, dtype=torch.float64)
    blurred = ndimage.gaussian_filter(pictures.numpy(), 5, axes=tuple(range(2, len(shape))), mode="nearest", radius=5)
    torch.testing.assert_close(baseline_images(pictures, "blur"), torch.from_numpy(blurred), rtol=1e-12, atol=1e-13)


def test_blur_of_half_precision_is_computed_in_single_whatever_autocast_says() -> None:
    pictures = torch.randn(2, 3, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        blurred = baseline_images(pictures, "blur")
    assert torch.equal(blurred, baseline_images(pictures.float(), "blur").bfloat16())


def test_baselines_are_numbers_or_what_is_broadcast_to_a_picture() -> None:
    pictures = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    colour, whole = torch.tensor([1, 2, 3]).view(3, 1, 1), torch.randn(3, 4, 5, dtype=torch.float64)
    assert torch.equal(baseline_images(pictures, "zero"), torch.zeros_like(pictures))
    assert torch.equal(baseline_images(pictures, -2), torch.full_like(pictures, -2))
    assert torch.equal(baseline_images(pictures, 0.1), torch.full_like(pictures, 0.1))
    assert torch.equal(baseline_images(pictures, colour), colour.double().expand_as(pictures))
    assert torch.equal(baseline_images(pictures, whole), torch.stack([whole, whole]))


@pytest.mark.parametrize("metric", AREAS)
def test_pixels_are_replaced_by_each_pictures_own_baseline(metric) -> None:
    pictures, heatmaps = drawn()
    together = metric(Means(), pictures, heatmaps, first, baseline="blur")
    alone = [metric(Means(), pictures[n : n + 1], heatmaps[n : n + 1], first, baseline="blur") for n in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("metric", [*CURVES, *AREAS])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[({"steps": steps}, "steps must be an int of at least 1") for steps in (0, -1)],
        *[({"baseline": value}, "baseline holds NaN or infinity as torch.float32") for value in (float("nan"), 1e300)],
        ({"baseline": torch.zeros(4)}, r"shape \(4,\) cannot be broadcast .* \(3, 5, 6\).*\(C, 1, 1\)"),
        ({"baseline": torch.zeros(2, 3, 5, 6)}, "cannot be broadcast"),
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused(metric, options: dict[str, Any], match: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibValueError, match=match):
        metric(Means(), pictures.float(), heatmaps, first, **options)


@pytest.mark.parametrize("metric", [*CURVES, *AREAS])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[({"steps": steps}, "steps must be an int of at least 1") for steps in (2.5, True)],
        ({"baseline": "grey"}, 'baseline must be "zero", "mean", "blur", a number or a tensor, got str: \'grey\''),
        ({"baseline": True}, "baseline must be .*, got bool: True"),
        ({"baseline": None}, "baseline must be .*, got NoneType"),
        ({"generator": 3}, "generator must be a torch.Generator, got int"),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused(metric, options: dict[str, Any], match: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibTypeError, match=match):
        metric(Means(), pictures, heatmaps, first, **options)
