"""Pixels in the order of their importance: ties are shuffled, and the shuffle is one's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import camlib
from camlib import metrics
from camlib.metrics import as_torchmetrics, ranked, ranks

GRIDS = [(7,), (3, 4), (2, 3, 2)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def maps_with_ties(draw: st.DrawFn) -> Tensor:
    size = draw(st.sampled_from(GRIDS))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(0, draw(st.sampled_from([1, 2, 5, 100])), (draw(st.integers(1, 3)), *size)).double()


@settings(max_examples=50, deadline=None)
@given(heatmaps=maps_with_ties(), seed=st.integers(0, 9))
def test_the_order_holds_every_pixel_once_and_importance_never_rises_along_it(heatmaps: Tensor, seed: int) -> None:
    order = ranked(heatmaps, seeded(seed))
    assert torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand_as(order))
    assert (heatmaps.flatten(1).gather(1, order).diff(dim=1) <= 0).all()


@settings(max_examples=50, deadline=None)
@given(heatmaps=maps_with_ties(), seed=st.integers(0, 9))
def test_a_rank_is_the_place_in_the_order(heatmaps: Tensor, seed: int) -> None:
    order, of_pixels = ranked(heatmaps, seeded(seed)), ranks(heatmaps, seeded(seed))
    assert of_pixels.shape == heatmaps.shape
    places = torch.arange(order.shape[1]).expand_as(order)
    assert torch.equal(of_pixels.flatten(1).gather(1, order), places)


@settings(max_examples=30, deadline=None)
@given(heatmaps=maps_with_ties(), seed=st.integers(0, 9))
def test_each_image_of_a_batch_is_ranked_as_if_alone(heatmaps: Tensor, seed: int) -> None:
    together = ranks(heatmaps, seeded(seed))
    for heatmap, rank in zip(heatmaps, together, strict=True):
        assert torch.equal(ranks(heatmap[None], seeded(seed))[0], rank)


@settings(max_examples=30, deadline=None)
@given(heatmaps=maps_with_ties(), seed=st.integers(0, 9))
def test_a_rising_function_of_the_heatmap_changes_nothing(heatmaps: Tensor, seed: int) -> None:
    assert torch.equal(ranks(heatmaps.exp() * 3 - 7, seeded(seed)), ranks(heatmaps, seeded(seed)))


def test_ranks_of_a_heatmap_without_ties_are_those_of_a_sort() -> None:
    assert ranks(torch.tensor([[[0.3, -1.0], [2.0, 0.5]]])).tolist() == [[[2, 3], [0, 1]]]
    assert ranked(torch.tensor([[[0.3, -1.0], [2.0, 0.5]]])).tolist() == [[2, 3, 0, 1]]


def test_every_order_of_tied_pixels_is_equally_likely() -> None:
    """Of 3 tied pixels behind a higher one, each comes at each of the places 1 to 3 in a third of the draws."""
    generator = seeded(0)
    tied = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
    drawn = torch.cat([ranks(tied, generator) for _ in range(3000)])
    assert (drawn[:, 1] == 0).all()
    for pixel in (0, 2, 3):
        counts = drawn[:, pixel].bincount(minlength=4)
        assert counts[0] == 0
        assert (counts[1:] - 1000).abs().max() < 130  # five standard deviations


def test_negative_zeros_are_tied_with_zeros() -> None:
    zeros = torch.zeros(1, 50)
    assert torch.equal(ranks(zeros * torch.tensor([1.0, -1.0]).repeat(25)), ranks(zeros))


def test_a_given_generator_advances_and_without_one_every_call_draws_the_same() -> None:
    flat = torch.zeros(1, 8, 8)
    assert torch.equal(ranks(flat), ranks(flat))
    assert torch.equal(ranks(flat, seeded(3)), ranks(flat, seeded(3)))
    assert not torch.equal(ranks(flat, seeded(3)), ranks(flat, seeded(4)))
    generator = seeded(3)
    assert not torch.equal(ranks(flat, generator), ranks(flat, generator))


def test_torchs_own_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    ranks(torch.zeros(1, 8, 8))
    ranked(torch.zeros(1, 8, 8), seeded(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_type_than_a_generator_is_refused() -> None:
    with pytest.raises(camlib.CamlibTypeError, match="generator must be a torch.Generator, got int"):
        ranks(torch.zeros(1, 8, 8), 3)


class TestConstantHeatmaps:
    """A method that shows nothing points anywhere: over a data set, such heatmaps score at chance level."""

    images = 400
    masks = torch.zeros(images, 16, 16, dtype=torch.bool)
    masks[:, 6:10, 6:10] = True  # the object covers 16 of 256 pixels
    chance = 16 / 256
    deviation = (chance * (1 - chance) / images) ** 0.5

    def test_in_one_batch(self) -> None:
        hits = metrics.pointing_game(torch.zeros(self.images, 16, 16), self.masks, tolerance=0)
        assert abs(float(hits.mean()) - self.chance) < 4 * self.deviation

    @pytest.mark.parametrize("batch", [1, 7])
    def test_in_batches_of_torchmetrics(self, batch: int) -> None:
        metric = as_torchmetrics.PointingGame({"tolerance": 0})
        for masks in self.masks.split(batch):
            metric.update(torch.zeros(masks.shape), masks)
        assert abs(float(metric.compute()) - self.chance) < 4 * self.deviation

    @pytest.mark.parametrize("batch", [1, 7])
    def test_in_an_evaluation(self, batch: int) -> None:
        class Even(camlib.methods.ActivationMethod):
            name = "even"

            def maps(self, activations: Tensor) -> Tensor:
                return torch.ones_like(activations[:, 0])

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        images = torch.rand(self.images, 3, 16, 16)
        found = camlib.evaluate(
            model,
            DataLoader(TensorDataset(images), batch),
            [Even(model, "1")],
            metrics={"pointing_game": {"tolerance": 0}, "relevance_rank": {}},
            masks=self.masks,
        )
        for metric in found.metrics:
            assert abs(found.mean(found.rows[0], metric) - self.chance) < 4 * self.deviation

    def test_whatever_the_batches_of_an_evaluation(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        images = torch.rand(6, 3, 16, 16)
        images[1] = torch.nan
        found = [
            camlib.evaluate(
                model,
                DataLoader(TensorDataset(images), batch),
                ["sobel"],
                metrics=["relevance_rank"],
                masks=self.masks[:6],
            )
            for batch in (1, 2, 6)
        ]
        for other in found[1:]:
            for row in other.rows:
                of_row = found[0].values[row]["relevance_rank"], other.values[row]["relevance_rank"]
                torch.testing.assert_close(*of_row, rtol=0, atol=0, equal_nan=True)

    def test_forward_of_torchmetrics_breaks_ties_differently_in_each_batch(self) -> None:
        metric = as_torchmetrics.RelevanceRank()
        drawn = [float(metric(torch.zeros(masks.shape), masks)) for masks in self.masks[:40].split(1)]
        assert len(set(drawn)) > 1
