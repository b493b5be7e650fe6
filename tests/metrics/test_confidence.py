"""Average drop and average increase: what is left of the score of a picture that only its heatmap shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib.metrics import ScoredHeatmaps, Scorer, average_drop, average_increase
from tests.networks import signal_cnn, small_cnn

METRICS = [average_drop, average_increase]


class Means(nn.Module):
    """The mean of each channel, and how many pictures have been seen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return x.flatten(2).mean(2)


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


PICTURES = torch.tensor([[[[1.0, 3.0], [-2.0, 6.0]]], [[[4.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
"""Means 2 and 1."""


@pytest.mark.parametrize(
    ("heatmap", "masked", "drop"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], 2.0, 0.0),  # all is shown
        ([[0.0, 0.0], [0.0, 0.0]], 0.0, 1.0),  # nothing is
        ([[1.0, 0.0], [0.0, 0.5]], 1.0, 0.5),
        ([[0.0, 1.0], [1.0, 0.0]], 0.25, 0.875),
        ([[1.0, 1.0], [0.0, 1.0]], 2.5, 0.0),  # the score rises: no negative drop
        ([[0.0, 0.0], [1.0, 0.0]], -0.5, 1.25),  # more than the score is lost
    ],
)
def test_drop_and_increase_of_a_mean_by_hand(heatmap: list[list[float]], masked: float, drop: float) -> None:
    heatmaps = torch.tensor([heatmap, [[0.25, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    scored = ScoredHeatmaps(Scorer(Means(), PICTURES, first), heatmaps)
    assert scored.masked_scores.tolist() == [masked, 0.25]
    assert average_drop(Means(), PICTURES, heatmaps, first).tolist() == [drop, 0.75]
    assert average_increase(Means(), PICTURES, heatmaps, first).tolist() == [float(masked > 2), 0.0]


def test_drop_and_increase_of_a_network_are_their_equations() -> None:
    model, images, heatmaps = small_cnn().double(), torch.randn(5, 3, 6, 7).double(), torch.rand(5, 6, 7).double()
    drops, increases = (metric(model, images, heatmaps, [0, 1, 2, 0, 1]) for metric in METRICS)
    assert drops.dtype == increases.dtype == torch.float64
    for n, c in enumerate([0, 1, 2, 0, 1]):
        with torch.no_grad():
            whole = float(model(images[n : n + 1]).softmax(1)[0, c])
            shown = float(model(images[n : n + 1] * heatmaps[n]).softmax(1)[0, c])
        assert float(drops[n]) == pytest.approx(max(0.0, whole - shown) / whole, rel=1e-12)
        assert float(increases[n]) == (shown > whole)
    assert len(set(increases.tolist())) == 2, "there should be a rise and a fall among them"


@pytest.mark.parametrize("metric", METRICS)
def test_two_passes_an_image_and_a_trial_pays_for_the_masked_ones_once(metric) -> None:
    model = Means()
    metric(model, PICTURES, torch.rand(2, 2, 2), first)
    assert model.rows == 4
    scored = ScoredHeatmaps(Scorer(model, PICTURES, first), torch.rand(2, 2, 2))
    assert model.rows == 6
    average_drop.of(scored), average_increase.of(scored)
    assert model.rows == 8


@pytest.mark.parametrize("metric", METRICS)
def test_neither_the_batch_nor_the_chunk_matters(metric) -> None:
    model, images, heatmaps = small_cnn().double(), torch.randn(5, 3, 6, 7).double(), torch.rand(5, 6, 7).double()
    together = metric(model, images, heatmaps, 1)
    alone = torch.cat([metric(model, images[n : n + 1], heatmaps[n : n + 1], 1) for n in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)
    torch.testing.assert_close(metric(model, images, heatmaps, 1, chunk_size=2), together, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_signals_can_be_evaluated(metric) -> None:
    assert metric(signal_cnn(), torch.randn(3, 2, 20), torch.rand(3, 20)).shape == (3,)


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_is_in_double_precision_where_heatmaps_or_scores_are(metric) -> None:
    def dtype(pictures: torch.dtype, heatmaps: torch.dtype) -> torch.dtype:
        return metric(Means(), PICTURES.to(pictures), torch.rand(2, 2, 2).to(heatmaps), first).dtype

    single, double = torch.float32, torch.float64
    assert dtype(single, single) == single
    assert dtype(double, single) == dtype(single, double) == dtype(double, double) == double


def test_no_share_can_be_lost_of_a_score_that_is_not_positive() -> None:
    for below in (0.0, -1.5):
        pictures = torch.cat([PICTURES, torch.full((1, 1, 2, 2), below)])
        with pytest.raises(camlib.CamlibValueError, match=rf"score of image 2 is {below:g}, .*leave score out"):
            average_drop(Means(), pictures, torch.rand(3, 2, 2), first)
        assert average_increase(Means(), pictures, torch.ones(3, 2, 2), first).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_heatmaps_outside_of_0_and_1_are_an_error(metric) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"in \[0, 1.5\]; they must be in \[0, 1\].*normalize"):
        metric(Means(), PICTURES, torch.tensor([[[0.0, 1.5], [1.0, 1.0]]]).repeat(2, 1, 1), first)
