"""Faithfulness correlation and sensitivity-n: what sets of pixels are given, against what the score loses without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import camlib
from camlib.metrics import ScoredHeatmaps, Scorer, correlation, faithfulness_correlation, sensitivity_n
from tests.networks import signal_cnn, small_cnn, volume_cnn

few_sets = functools.partial(faithfulness_correlation, samples=12, share=0.3)
few_sizes = functools.partial(sensitivity_n, samples=6, shares=(0.2, 0.5))
both = pytest.mark.parametrize("metric", [few_sets, few_sizes], ids=["faithfulness_correlation", "sensitivity_n"])


class Linear(nn.Module):
    """The weighted sum of all values. It keeps the pictures that it has seen."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights, self.seen = weights, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.extend(x.clone())
        return (x * self.weights).flatten(1).sum(1, keepdim=True)


class Deaf(nn.Module):
    """The same score for every picture, but for what rounding makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 + 1e-16 * x.flatten(1).sum(1, keepdim=True).sign()


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: Tensor, expected: Tensor) -> None:
    """But for the rounding of the network, which depends on how many images it gets at once."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def drawn(images: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, 5, 6, dtype=torch.float64), torch.rand(images, 5, 6, dtype=torch.float64)


def gone(model: Linear, picture: Tensor, samples: int) -> Tensor:
    """The sets (samples, P) that were zero in the pictures that the model has seen last."""
    return (torch.stack(model.seen[-samples:]) == 0).all(1).flatten(1) & (picture != 0).all(0).flatten()


# By hand ------------------------------------------------------------------------------------------------------------


def test_the_correlation_by_hand_over_the_sets_that_were_taken_away() -> None:
    pictures, heatmaps = drawn(1)
    model = Linear(torch.randn(3, 5, 6, dtype=torch.float64).exp())
    found = faithfulness_correlation(model, pictures, heatmaps, first, samples=9, share=0.25)
    sets = gone(model, pictures[0], 9)
    given = [float(heatmaps[0].flatten()[one].sum()) for one in sets]
    contributions = (pictures[0] * model.weights).sum(0).flatten()
    lost = [float(contributions[one].sum()) for one in sets]
    assert found.item() == pytest.approx(np.corrcoef(given, lost)[0, 1], rel=1e-10)


def test_sets_are_of_different_pixels_as_many_as_the_share_and_the_same_for_every_image() -> None:
    pictures, heatmaps = drawn()
    model = Linear(torch.ones(3, 5, 6, dtype=torch.float64))
    faithfulness_correlation(model, pictures, heatmaps, first, samples=400, share=0.25)
    sets = gone(model, pictures[1], 400)
    assert (sets.sum(1) == round(0.25 * 30)).all()
    others = (torch.stack(model.seen[2:402]) == 0).all(1).flatten(1)
    assert torch.equal(sets, others)
    assert len(sets.unique(dim=0)) > 390
    often = sets.double().mean(0)  # each pixel as often as any other
    torch.testing.assert_close(often, torch.full((30,), 8 / 30, dtype=torch.float64), rtol=0, atol=0.11)


def test_pixels_that_stay_are_as_they_were_and_those_that_go_are_the_baselines() -> None:
    pictures, heatmaps = drawn(1)
    model = Linear(torch.ones(3, 5, 6, dtype=torch.float64))
    mean = torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1)
    few_sets(model, pictures, heatmaps, first, baseline=mean)
    for seen in model.seen[1:]:
        at_baseline = (seen == mean).all(0)
        assert at_baseline.sum() == 9
        assert torch.equal(seen[:, ~at_baseline], pictures[0][:, ~at_baseline])


def test_sensitivity_n_is_the_mean_over_sizes_whose_sets_are_drawn_one_after_another() -> None:
    pictures, heatmaps = drawn()
    model, generator = small_cnn().double(), seeded(5)
    sizes = [
        faithfulness_correlation(model, pictures, heatmaps, samples=8, share=share, generator=generator)
        for share in (0.2, 0.6, 0.4)
    ]
    found = sensitivity_n(model, pictures, heatmaps, samples=8, shares=(0.2, 0.6, 0.4), generator=seeded(5))
    close(found, torch.stack(sizes).mean(0))


# Properties -----------------------------------------------------------------------------------------------------------


@both
def test_each_pixels_share_in_a_linear_score_is_perfect_and_its_opposite_the_worst(
    metric: Callable[..., Tensor],
) -> None:
    pictures, _ = drawn()
    model = Linear(torch.randn(3, 5, 6, dtype=torch.float64))
    contributions = (pictures * model.weights).sum(1)
    torch.testing.assert_close(
        metric(model, pictures, contributions, first), torch.ones(2).double(), rtol=0, atol=1e-12
    )
    worst = metric(model, pictures, -contributions, first)
    torch.testing.assert_close(worst, -torch.ones(2).double(), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    factor=st.sampled_from([1e-200, 0.1, 3.0, 1e307]),
    offset=st.sampled_from([-2.0, 0.0, 10.0]),
    metric=st.sampled_from([few_sets, few_sizes]),
)
def test_an_offset_and_a_positive_factor_of_the_heatmap_change_nothing(
    seed: int, factor: float, offset: float, metric: Callable[..., Tensor]
) -> None:
    torch.manual_seed(seed)
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    expected = metric(model, pictures, heatmaps)
    assert (expected.abs() <= 1).all()
    found = metric(model, pictures, factor * (heatmaps + offset))
    close(found, expected)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_constant_heatmap_is_worth_nothing(metric: Callable[..., Tensor], dtype: torch.dtype) -> None:
    pictures, _ = drawn()
    for constant in (0.0, 0.1, 1.0):
        heatmaps = torch.full((2, 5, 6), constant, dtype=dtype)
        assert metric(small_cnn().double(), pictures, heatmaps).tolist() == [0, 0]


@both
def test_a_score_that_loses_nothing_but_rounding_correlates_with_no_heatmap(metric: Callable[..., Tensor]) -> None:
    pictures, heatmaps = drawn()
    scores = Deaf()(torch.randn(50, 3, 5, 6, dtype=torch.float64))
    assert len(scores.unique()) > 1, "no rounding to look at"
    assert metric(Deaf(), pictures, heatmaps, first).tolist() == [0, 0]


@both
def test_a_baseline_that_is_the_picture_itself_takes_nothing_away(metric: Callable[..., Tensor]) -> None:
    pictures, heatmaps = drawn(1)
    assert metric(small_cnn().double(), pictures, heatmaps, baseline=pictures[0]).tolist() == [0]


@both
@pytest.mark.parametrize("baseline", ["blur", 0.5, torch.tensor(0.5)])
def test_every_baseline_will_do(metric: Callable[..., Tensor], baseline: Any) -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    found = metric(model, pictures, heatmaps, baseline=baseline)
    assert not torch.allclose(found, metric(model, pictures, heatmaps))
    alone = [metric(model, pictures[n : n + 1], heatmaps[n : n + 1], baseline=baseline) for n in range(2)]
    close(found, torch.cat(alone))


# What every metric keeps to -------------------------------------------------------------------------------------------


@both
def test_a_batch_gives_what_its_images_give_in_chunks_of_any_size(metric: Callable[..., Tensor]) -> None:
    pictures, heatmaps = drawn(3)
    model = small_cnn().double()
    together = metric(model, pictures, heatmaps)
    alone = [metric(model, pictures[n : n + 1], heatmaps[n : n + 1]) for n in range(3)]
    close(together, torch.cat(alone))
    for size in (1, 5, 100):
        close(metric(model, pictures, heatmaps, chunk_size=size), together)


def test_every_image_runs_once_as_it_is_and_once_for_each_set() -> None:
    pictures, heatmaps = drawn()
    model = Linear(torch.ones(3, 5, 6, dtype=torch.float64))
    few_sets(model, pictures, heatmaps, first)
    assert len(model.seen) == 2 * (1 + 12)
    model.seen.clear()
    few_sizes(model, pictures, heatmaps, first)
    assert len(model.seen) == 2 * (1 + 6 * 2)


def test_a_trial_gives_the_same() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    scored = ScoredHeatmaps(Scorer(model, pictures, 1), heatmaps)
    one: dict[str, Any] = {"samples": 9, "share": 0.4, "baseline": 0.5}
    found = faithfulness_correlation.of(scored, generator=seeded(3), **one)
    close(faithfulness_correlation(model, pictures, heatmaps, 1, generator=seeded(3), **one), found)
    several: dict[str, Any] = {"samples": 9, "shares": (0.4, 0.1), "baseline": 0.5}
    found = sensitivity_n.of(scored, generator=seeded(3), **several)
    close(sensitivity_n(model, pictures, heatmaps, 1, generator=seeded(3), **several), found)


@both
def test_draws_are_repeatable_and_leave_the_random_numbers_of_torch_and_the_model_alone(
    metric: Callable[..., Tensor],
) -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = metric(model, pictures, heatmaps)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    close(metric(model, pictures, heatmaps), found)
    one, same, other = (metric(model, pictures, heatmaps, generator=seeded(n)) for n in (1, 1, 2))
    close(one, same)
    assert not torch.allclose(one, other)


@both
@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        (signal_cnn(), torch.rand(2, 2, 9)),
        (volume_cnn(), torch.rand(2, 1, 4, 5, 6)),
        (small_cnn(), torch.rand(2, 3, 5, 6)),
    ],
)
def test_signals_pictures_and_volumes_in_single_precision(
    metric: Callable[..., Tensor], model: nn.Module, pictures: Tensor
) -> None:
    heatmaps = torch.rand_like(pictures[:, 0])
    found = metric(model, pictures, heatmaps)
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert (found != 0).all()
    assert metric(model, pictures, heatmaps.double()).dtype == torch.float64


@both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be an int of at least 1, got 0"),
        ({"samples": 1}, ValueError, "samples must be at least 2, got 1"),
        ({"baseline": "grey"}, TypeError, "baseline must be"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_errors_name_what_was_given_and_wanted(
    metric: Callable[..., Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(error, match=message) as raised:
        metric(small_cnn().double(), pictures, heatmaps, **options)
    assert isinstance(raised.value, camlib.CamlibError)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.0, r"share must be a number in \(0, 1\), got 0.0"),
        (1.0, r"share must be a number in \(0, 1\), got 1.0"),
        (0.01, "a share of 0.01 of 30 pixels comes to none of them"),
        (0.99, "a share of 0.99 of 30 pixels comes to all of them"),
    ],
)
def test_a_share_is_of_some_pixels_but_not_of_all(share: float, message: str) -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    with pytest.raises(camlib.CamlibValueError, match=message):
        faithfulness_correlation(model, pictures, heatmaps, share=share)
    with pytest.raises(camlib.CamlibValueError, match=message):
        sensitivity_n(model, pictures, heatmaps, shares=[0.5, share])


@pytest.mark.parametrize(
    ("shares", "error", "message"),
    [
        ((), camlib.CamlibValueError, "shares is empty"),
        (0.5, camlib.CamlibTypeError, r"shares must be a sequence of numbers such as \(0.1, 0.5\), got 0.5"),
        ("0.5", camlib.CamlibTypeError, "shares must be a sequence of numbers"),
    ],
)
def test_shares_are_a_sequence(shares: Any, error: type[Exception], message: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(error, match=message):
        sensitivity_n(small_cnn().double(), pictures, heatmaps, shares=shares)


@pytest.mark.parametrize("metric", [faithfulness_correlation, sensitivity_n])
def test_sets_are_drawn_a_few_at_a_time_with_the_same_result(metric, monkeypatch):
    """A hundred sets of a volume of a million voxels at once took a gigabyte."""
    network, pictures = small_cnn().double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    heatmaps = torch.rand(2, 8, 8, dtype=torch.float64)
    together = metric(network, pictures, heatmaps, 1)
    drawn, original = [], correlation._random_sets

    def recording(pixels, size, samples, generator):
        drawn.append(samples)
        return original(pixels, size, samples, generator)

    monkeypatch.setattr(correlation, "_random_sets", recording)
    monkeypatch.setattr(correlation, "AT_ONCE", 7 * 64 + 3)
    torch.testing.assert_close(metric(network, pictures, heatmaps, 1), together)
    assert sum(drawn) == 100
    assert max(drawn) == 7


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        self.bytes = max([self.bytes, *(one.numel() * one.element_size() for one in tensors)])
        return found


class Mean(nn.Module):
    """The mean of all pixels. It notes its largest batch."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows = max(self.rows, len(x))
        return x.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize("metric", [faithfulness_correlation, functools.partial(sensitivity_n, shares=(0.1, 0.5))])
def test_memory_depends_neither_on_the_number_of_sets_nor_on_that_of_images(metric: Callable[..., Tensor]) -> None:
    """All sets of the last call together take 4 times as much as is allowed, and their images 8 times as much."""
    side = 128
    allowed = 8 * correlation.AT_ONCE  # the random numbers of the sets in memory, in float64
    at_once = correlation.AT_ONCE // side**2
    for images, samples in ((1, at_once), (1, 2 * at_once), (2, 4 * at_once)):
        model, largest = Mean(), Largest()
        pictures, heatmaps = torch.rand(images, 2, side, side), torch.rand(images, side, side)
        with largest:
            metric(model, pictures, heatmaps, 1, samples=samples, chunk_size=8)
        assert largest.bytes == allowed
        assert model.rows == 8
    assert samples * side**2 * 8 == 4 * allowed
    assert images * samples * pictures[0].numel() * 4 == 8 * allowed
