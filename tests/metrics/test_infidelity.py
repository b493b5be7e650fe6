"""Infidelity: what a heatmap foretells of noise, against what noise does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import ScoredHeatmaps, Scorer, infidelity
from tests.networks import signal_cnn, small_cnn, volume_cnn


class Linear(nn.Module):
    """The sum of all values, each pixel with its own weight, whatever the channel. It keeps what it has seen."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights, self.seen = weights, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.extend(x.clone())
        return (x.sum(1) * self.weights).flatten(1).sum(1, keepdim=True)


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1, keepdim=True)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: Tensor, expected: Tensor) -> None:
    """But for the rounding of the network, which depends on how many images it gets at once."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def drawn(images: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, 5, 6, dtype=torch.float64), torch.rand(images, 5, 6, dtype=torch.float64)


# By hand ------------------------------------------------------------------------------------------------------------

PICTURE = torch.tensor([[[[1.0]], [[2.0]]]], dtype=torch.float64)
HEATMAP = torch.tensor([[[2.0]]], dtype=torch.float64)
CHANGES = torch.tensor([[[[0.5]], [[1.0]]], [[[0.0]], [[-1.0]]]], dtype=torch.float64)
"""Of one pixel in two channels. The squares lose 5 - 1.25 and 5 - 10; foretold are 2 (0.5 + 1) and 2 (0 - 1)."""


def test_squares_of_a_pixel_by_hand() -> None:
    plain = infidelity(Squares(), PICTURE, HEATMAP, first, perturbations=CHANGES)
    assert plain.tolist() == [((3 - 3.75) ** 2 + (-2 + 5) ** 2) / 2]


def test_the_best_scale_of_squares_of_a_pixel_by_hand() -> None:
    best = (3 * 3.75 + 2 * 5) / (3**2 + 2**2)
    expected = ((3 * best - 3.75) ** 2 + (-2 * best + 5) ** 2) / 2
    scaled = infidelity(Squares(), PICTURE, HEATMAP, first, perturbations=CHANGES, normalize=True)
    torch.testing.assert_close(scaled, torch.tensor([expected], dtype=torch.float64), rtol=1e-14, atol=0)


def test_each_image_has_its_own_best_scale() -> None:
    pictures, heatmaps = torch.cat([PICTURE, 3 * PICTURE]), torch.cat([HEATMAP, -HEATMAP])
    together = infidelity(Squares(), pictures, heatmaps, first, perturbations=CHANGES, normalize=True)
    alone = [
        infidelity(Squares(), picture[None], heatmap[None], first, perturbations=CHANGES, normalize=True)
        for picture, heatmap in zip(pictures, heatmaps, strict=True)
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together[0] != together[1]


# Properties -----------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_linear_network_is_perfect_and_its_opposite_is_worse_than_nothing() -> None:
    pictures, _ = drawn()
    weights = torch.randn(5, 6, dtype=torch.float64)
    perfect, nothing, reversed_ = (
        infidelity(Linear(weights), pictures, factor * weights.expand(2, 5, 6), first) for factor in (1, 0, -1)
    )
    assert (perfect < 1e-25).all()
    torch.testing.assert_close(reversed_, 4 * nothing, rtol=1e-10, atol=0)
    assert (nothing > 1e-3).all()


def test_noise_is_normal_in_every_channel_and_pixel_and_taken_away() -> None:
    """A heatmap of zeros foretells nothing, so that what is left is the variance of the score."""
    pictures, heatmaps = drawn(1)
    model = Linear(torch.ones(5, 6, dtype=torch.float64))
    found = infidelity(model, pictures, 0 * heatmaps, first, samples=4000, sigma=0.3)
    torch.testing.assert_close(found, torch.tensor([0.3**2 * 3 * 5 * 6], dtype=torch.float64), rtol=0.1, atol=0)
    noise = (pictures - torch.stack(model.seen[1:])) / 0.3
    assert noise.shape == (4000, 3, 5, 6)
    torch.testing.assert_close(noise.mean(0), torch.zeros(3, 5, 6).double(), rtol=0, atol=0.08)  # five deviations
    torch.testing.assert_close(noise.var(0), torch.ones(3, 5, 6).double(), rtol=0, atol=0.12)
    channels = noise.flatten(2).movedim(1, 0).flatten(1)
    torch.testing.assert_close(torch.corrcoef(channels), torch.eye(3).double(), rtol=0, atol=0.02)


def test_what_was_drawn_can_be_given() -> None:
    pictures, heatmaps = drawn()
    model = Linear(torch.randn(5, 6, dtype=torch.float64))
    found = infidelity(model, pictures, heatmaps, first, samples=7)
    noise = pictures[0] - torch.stack(model.seen[2:9])
    close(infidelity(model, pictures, heatmaps, first, perturbations=noise), found)
    close(infidelity(model, pictures, heatmaps, first, perturbations=noise.numpy()), found)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-300, 1e-3, 1.0, 1e6, 1e300]))
def test_at_its_best_scale_a_heatmap_of_any_scale_is_as_good_and_better_than_as_it_is_or_than_zeros(
    seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    plain, zeros = infidelity(model, pictures, heatmaps), infidelity(model, pictures, 0 * heatmaps)
    best = infidelity(model, pictures, heatmaps, normalize=True)
    assert (best <= torch.minimum(plain, zeros) * (1 + 1e-10)).all()
    scaled = infidelity(model, pictures, -scale * heatmaps, normalize=True)
    torch.testing.assert_close(scaled, best, rtol=1e-8, atol=0)


def test_a_heatmap_of_zeros_has_no_best_scale_and_stays() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    plain = infidelity(model, pictures, 0 * heatmaps)
    close(infidelity(model, pictures, 0 * heatmaps, normalize=True), plain)
    assert (plain > 0).all()


def test_the_probability_is_scored_by_default() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    plain = infidelity(model, pictures, heatmaps, 1)
    close(plain, infidelity(model, pictures, heatmaps, lambda outputs: outputs.softmax(1)[:, 1]))
    logits = infidelity(model, pictures, heatmaps, 1, score=camlib.targets.Classes)
    close(logits, infidelity(model, pictures, heatmaps, lambda outputs: outputs[:, 1]))
    assert not torch.allclose(plain, logits)


# What every metric keeps to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_a_batch_gives_what_its_images_give_in_chunks_of_any_size(normalize: bool) -> None:
    pictures, heatmaps = drawn(3)
    model, options = small_cnn().double(), {"samples": 5, "normalize": normalize}
    together = infidelity(model, pictures, heatmaps, **options)
    alone = [infidelity(model, pictures[n : n + 1], heatmaps[n : n + 1], **options) for n in range(3)]
    close(together, torch.cat(alone))
    for size in (1, 4, 100):
        close(infidelity(model, pictures, heatmaps, chunk_size=size, **options), together)


def test_every_image_runs_once_as_it_is_and_once_for_each_sample() -> None:
    pictures, heatmaps = drawn(2)
    model = Linear(torch.ones(5, 6, dtype=torch.float64))
    infidelity(model, pictures, heatmaps, first, samples=5)
    assert len(model.seen) == 2 * (1 + 5)
    model.seen.clear()
    infidelity(model, pictures, heatmaps, first, samples=5, perturbations=torch.rand(3, 3, 5, 6))
    assert len(model.seen) == 2 * (1 + 3)


def test_a_trial_gives_the_same() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double()
    options: dict[str, Any] = {"samples": 4, "sigma": 0.2, "normalize": True, "generator": seeded(3)}
    found = infidelity.of(ScoredHeatmaps(Scorer(model, pictures, 1), heatmaps), **options)
    options["generator"] = seeded(3)
    close(infidelity(model, pictures, heatmaps, 1, **options), found)


def test_draws_are_repeatable_and_leave_the_random_numbers_of_torch_and_the_model_alone() -> None:
    pictures, heatmaps = drawn()
    model = small_cnn().double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = infidelity(model, pictures, heatmaps)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    close(infidelity(model, pictures, heatmaps), found)
    one, same, other = (infidelity(model, pictures, heatmaps, generator=seeded(n)) for n in (1, 1, 2))
    close(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        (signal_cnn(), torch.rand(2, 2, 9)),
        (volume_cnn(), torch.rand(2, 1, 4, 5, 6)),
        (small_cnn(), torch.rand(2, 3, 5, 6)),
    ],
)
def test_signals_pictures_and_volumes_in_single_precision(model: nn.Module, pictures: Tensor) -> None:
    found = infidelity(model, pictures, torch.rand_like(pictures[:, 0]), samples=3)
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert (found > 0).all()
    assert infidelity(model, pictures, torch.rand_like(pictures[:, 0]).double(), samples=3).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be an int of at least 1, got 0"),
        ({"sigma": 0.0}, ValueError, "sigma must be a positive number, got 0.0"),
        ({"perturbations": torch.rand(2, 5, 6)}, ValueError, r"shape \(2, 5, 6\); they must be \(S, 3, 5, 6\)"),
        ({"perturbations": torch.rand(2, 3, 6, 5)}, ValueError, r"shape \(2, 3, 6, 5\); they must be \(S, 3, 5, 6\)"),
        ({"perturbations": np.full((2, 3, 5, 6), np.nan)}, ValueError, "perturbations hold NaN"),
        ({"perturbations": 0.1}, TypeError, "perturbations must be a tensor or an array, got float"),
        ({"generator": 7}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_errors_name_what_was_given_and_wanted(options: dict[str, Any], error: type[Exception], message: str) -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(error, match=message) as raised:
        infidelity(small_cnn().double(), pictures, heatmaps, **options)
    assert isinstance(raised.value, camlib.CamlibError)


def test_heatmaps_of_another_resolution_are_refused() -> None:
    pictures, heatmaps = drawn()
    with pytest.raises(camlib.CamlibValueError, match=r"they must be \(2, 5, 6\)"):
        infidelity(small_cnn().double(), pictures, heatmaps[:, :4])
