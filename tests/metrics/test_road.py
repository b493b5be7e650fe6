"""ROAD: which pixels are imputed and under what noise, and how the score changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import (
    ScoredHeatmaps,
    Scorer,
    impute,
    ranks,
    road_combined,
    road_least_relevant_first,
    road_most_relevant_first,
)
from tests.networks import signal_cnn, small_cnn

SINGLE = [road_most_relevant_first, road_least_relevant_first]
METRICS = [*SINGLE, road_combined]


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


def drawn(images: int = 2, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor]:
    """Pictures and heatmaps, which have many ties."""
    heatmaps = torch.randint(0, 4, (images, *size)).double() / 3
    return torch.randn(images, 3, *size, dtype=torch.float64), heatmaps


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    images=st.integers(1, 2),
    shares=st.lists(st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95]), min_size=1, max_size=3),
    noise=st.sampled_from([0, 0.0, 0.3]),
)
def test_pixels_are_imputed_in_order_and_noise_is_added_to_them(
    seed: int, images: int, shares: list[float], noise: float
) -> None:
    """The generator shuffles ties, then draws the noise of each share, one for all images."""
    pictures, heatmaps = drawn(images)
    generator = seeded(seed)
    order = ranks(heatmaps, generator)
    draws = torch.randn(len(shares), 3, 6, 7, generator=generator, dtype=torch.float64)
    changes = {}
    for metric in SINGLE:
        model, expected = Means(), torch.zeros(images, dtype=torch.float64)
        options = {"shares": shares, "noise": noise, "tolerance": 1e-6, "chunk_size": 4}
        found = metric(model, pictures, heatmaps, first, generator=seeded(seed), **options)
        assert len(model.seen) == images * (1 + len(shares))
        seen = torch.stack(model.seen[images:]).reshape(images, len(shares), 3, 6, 7)
        for n in range(images):
            for k, share in enumerate(shares):
                count = round(share * 42)
                gone = order[n] < count if metric is road_most_relevant_first else order[n] >= 42 - count
                assert int(gone.sum()) == count
                picture = impute(pictures[[n]], ~gone[None], tolerance=1e-6)[0] + noise * draws[k] * gone
                torch.testing.assert_close(seen[n, k], picture, rtol=0, atol=1e-9)
                assert torch.equal(seen[n, k][:, ~gone], pictures[n][:, ~gone])
                expected[n] += (picture[0].mean() - pictures[n, 0].mean()) / len(shares)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        changes[metric] = found
    combined = road_combined(Means(), pictures, heatmaps, first, generator=seeded(seed), **options)
    half = (changes[road_least_relevant_first] - changes[road_most_relevant_first]) / 2
    torch.testing.assert_close(combined, half, rtol=0, atol=1e-12)


def test_four_shares_and_a_noise_of_a_hundredth_by_default() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    told = {"shares": (0.2, 0.4, 0.6, 0.8), "noise": 0.01, "tolerance": 1e-4}
    for metric in METRICS:
        plain = metric(model, pictures, heatmaps, 1)
        assert torch.equal(plain, metric(model, pictures, heatmaps, 1, **told))
        assert not torch.equal(plain, metric(model, pictures, heatmaps, 1, **{**told, "noise": 0.02}))


def test_passes_are_counted_and_the_picture_as_it_is_runs_once() -> None:
    pictures, heatmaps = drawn(3)
    for metric, passes in zip(METRICS, (3 * 5, 3 * 5, 3 * 9), strict=True):
        model = Means()
        metric(model, pictures, heatmaps, first)
        assert len(model.seen) == passes


def test_heatmaps_with_a_scorer_have_the_values_of_their_images() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    scored = ScoredHeatmaps(Scorer(model, pictures, 1), heatmaps)
    functions = [road_most_relevant_first.of, road_least_relevant_first.of, road_combined.of]
    for metric, function in zip(METRICS, functions, strict=True):
        options = {"shares": [0.3], "noise": 0.2, "tolerance": 1e-6}
        evaluated = function(scored, generator=seeded(4), **options)
        assert torch.equal(evaluated, metric(model, pictures, heatmaps, 1, generator=seeded(4), **options))


def test_pixels_that_can_be_imputed_exactly_make_no_difference() -> None:
    """A slope goes on through what is missing."""
    slope = torch.arange(9.0).double().expand(1, 3, 8, 9).contiguous()
    heatmaps = torch.zeros(1, 8, 9)
    heatmaps[:, 2:6, 3:6] = 1
    change = road_most_relevant_first(
        small_cnn().double(), slope, heatmaps, 1, shares=[12 / 72], noise=0, tolerance=1e-12
    )
    assert abs(float(change)) < 1e-9


def spot() -> tuple[Tensor, Tensor]:
    """A bright spot on random grey, and where it is."""
    where = torch.zeros(3, 8, 9)
    for n, (top, left) in enumerate([(1, 1), (4, 5), (2, 3)]):
        where[n, top : top + 3, left : left + 3] = 1
    return (0.1 * torch.rand(3, 1, 8, 9) + where[:, None]).double(), where.double()


def test_the_perfect_map_is_best_and_the_reversed_worst() -> None:
    """The score is the mean of the picture, which holds a bright spot."""
    pictures, perfect = spot()
    other = perfect.roll((4, 4), (1, 2))  # as compact, but elsewhere
    options = {"shares": [9 / 72], "noise": 0}
    best, some, worst = (
        {metric: metric(Means(), pictures, heatmaps, first, **options) for metric in METRICS}
        for heatmaps in (perfect, other, -perfect)
    )
    assert (best[road_most_relevant_first] < -0.08).all(), "the spot is gone"
    assert (some[road_most_relevant_first] > -0.01).all()
    assert (best[road_least_relevant_first] > -0.01).all()
    assert (worst[road_least_relevant_first] < -0.08).all(), "the spot is gone"
    assert (best[road_combined] > some[road_combined]).all()
    assert (some[road_combined] > worst[road_combined]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_order_of_the_pixels_counts(metric) -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    found = metric(model, pictures, heatmaps, 1)
    assert torch.equal(metric(model, pictures, (3 * heatmaps).exp() - 7, 1), found)
    assert not torch.equal(metric(model, pictures, -heatmaps, 1), found)


@pytest.mark.parametrize("metric", METRICS)
def test_neither_the_batch_nor_the_chunk_matters(metric) -> None:
    pictures, heatmaps = drawn(3)
    model = small_cnn().double()
    together = metric(model, pictures, heatmaps, [0, 2, 1])
    alone = [metric(model, pictures[[n]], heatmaps[[n]], c) for n, c in enumerate((0, 2, 1))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-12)
    for size in (1, 4):
        chunked = metric(model, pictures, heatmaps, [0, 2, 1], chunk_size=size)
        torch.testing.assert_close(chunked, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_call_is_repeatable_and_leaves_torchs_own_random_numbers_alone(metric) -> None:
    pictures, heatmaps = drawn()
    model, before = small_cnn().double(), torch.get_rng_state()
    assert torch.equal(metric(model, pictures, heatmaps), metric(model, pictures, heatmaps))
    given = [metric(model, pictures, heatmaps, generator=seeded(seed)) for seed in (5, 5, 6)]
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_is_in_double_precision_where_heatmaps_or_scores_are(metric) -> None:
    pictures, heatmaps = drawn()

    def dtype(of_pictures: torch.dtype, of_heatmaps: torch.dtype) -> torch.dtype:
        return metric(Means(), pictures.to(of_pictures), heatmaps.to(of_heatmaps), first).dtype

    single, double = torch.float32, torch.float64
    assert dtype(single, single) == single
    assert dtype(double, single) == dtype(single, double) == dtype(double, double) == double


@pytest.mark.parametrize("metric", METRICS)
def test_signals_cannot_be_imputed(metric) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"ROAD imputes images .* \(2, 2, 20\); .*deletion also takes"):
        metric(signal_cnn(), torch.randn(2, 2, 20), torch.rand(2, 20))


SHARE = r"each share must be a number in \(0, 1\)"
NOISE = "noise must be a number of at least 0, got"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[({"shares": [0.5, share]}, SHARE) for share in (0, 1, -0.2, 1.5)],
        ({"shares": []}, "shares is empty; give at least one number"),
        ({"shares": [0.01]}, "a share of 0.01 of 42 pixels comes to none of them; at least one"),
        ({"shares": [0.99]}, "a share of 0.99 of 42 pixels comes to all of them; at least one"),
        *[({"noise": noise}, NOISE) for noise in (-0.1, float("nan"), float("inf"))],
        ({"tolerance": 0}, "tolerance must be a positive number"),
        ({"tolerance": 1e-7}, "tolerance must be at least 4e-06 in torch.float32"),
    ],
    ids=str,
)
def test_values_that_cannot_work_are_refused(metric, options: dict[str, Any], match: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibValueError, match=match):
        metric(Means(), pictures.float(), heatmaps, first, **options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shares": 0.5}, r"shares must be a sequence of numbers .* got 0.5"),
        ({"shares": "0.5"}, r"shares must be a sequence of numbers .* got '0.5'"),
        ({"shares": [0.5, True]}, SHARE),
        ({"shares": [0.5, "half"]}, SHARE),
        ({"noise": "much"}, NOISE),
        ({"noise": False}, NOISE),
    ],
)
def test_values_that_are_not_numbers_are_refused(metric, options: dict[str, Any], match: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibTypeError, match=match):
        metric(Means(), pictures.float(), heatmaps, first, **options)


@pytest.mark.parametrize("metric", METRICS)
def test_another_type_than_a_generator_is_refused(metric) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibTypeError, match="generator must be a torch.Generator, got int"):
        metric(Means(), pictures, heatmaps, first, generator=3)
