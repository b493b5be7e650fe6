"""Region perturbation and IROF: the score while regions are removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib.metrics import METRICS, ScoredHeatmaps, Scorer, irof, region_perturbation
from tests import metric_equations as equations
from tests.metrics.test_oracles import Recorder, assert_close, cnn, distinct, score_of
from tests.networks import signal_cnn, volume_cnn

BOTH = {"region_perturbation": (region_perturbation, equations.region_perturbation), "irof": (irof, equations.irof)}
every = pytest.mark.parametrize("name", BOTH)


def channel_means(image: Tensor) -> np.ndarray:
    return np.stack([np.full(channel.shape, channel.mean()) for channel in image.numpy()])


@every
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), several=st.integers(1, 9), side=st.integers(4, 7))
def test_of_any_regions_they_are_the_equations(name: str, seed: int, several: int, side: int) -> None:
    torch.manual_seed(seed)
    metric, equation = BOTH[name]
    model, images, heatmaps = cnn(), torch.randn(3, 3, side, 6).double(), torch.rand(3, side, 6, dtype=torch.float64)
    labels = torch.randint(several, (3, side, 6)) * 5 - 3
    labels[0] = 7  # one region alone
    found = metric(model, images, heatmaps, [0, 1, 2], regions=labels)
    expected = [
        equation(x.numpy(), h.numpy(), score_of(model, c), labels=each.numpy(), by=channel_means(x))
        for x, h, c, each in zip(images, heatmaps, range(3), labels, strict=True)
    ]
    assert_close(found, expected)


@every
@pytest.mark.parametrize("baseline", ["zero", 0.3])
def test_of_squares_and_other_baselines_they_are_the_equations(name: str, baseline: Any) -> None:
    metric, equation = BOTH[name]
    model, images, heatmaps = cnn(), torch.randn(2, 3, 7, 9).double(), distinct(2, 7, 9)
    labels = np.fromfunction(lambda row, column: row // 4 * 100 + column // 4, (7, 9))
    filled = np.full((3, 7, 9), 0.0 if baseline == "zero" else baseline)
    expected = [
        equation(x.numpy(), h.numpy(), score_of(model, 1), labels=labels, by=filled)
        for x, h in zip(images, heatmaps, strict=True)
    ]
    assert_close(metric(model, images, heatmaps, 1, regions=4, baseline=baseline), expected)
    together = torch.from_numpy(labels).long()
    assert_close(metric(model, images, heatmaps, 1, regions=together, baseline=baseline), expected)


@every
def test_squares_of_one_pixel_are_deletion_pixel_by_pixel(name: str) -> None:
    model, images, heatmaps = cnn(), torch.randn(2, 3, 5, 6).double(), distinct(2, 5, 6)
    curve = camlib.metrics.deletion_curve(model, images, heatmaps, 1, steps=30)
    found = BOTH[name][0](model, images, heatmaps, 1, regions=1, baseline="zero")
    clean, area = curve[:, 0], torch.trapezoid(curve, dx=1 / 30)
    torch.testing.assert_close(found, 1 - area / clean if name == "irof" else clean - curve.mean(1))


@every
def test_an_image_takes_a_pass_for_each_of_its_own_regions(name: str) -> None:
    model, images, heatmaps = Recorder(cnn()), torch.randn(2, 3, 6, 6).double(), distinct(2, 6, 6)
    labels = torch.stack([torch.arange(36).reshape(6, 6) // 18, torch.arange(36).reshape(6, 6) // 6])
    scored = ScoredHeatmaps(Scorer(model, images, 1), heatmaps)
    model.pictures.clear()
    METRICS[name].of(scored, regions=labels)
    assert len(model.pictures) == 2 + 6


@every
def test_a_batch_gives_the_values_of_its_images_alone_and_in_chunks(name: str) -> None:
    model, images, heatmaps = cnn(), torch.randn(3, 3, 6, 8).double(), distinct(3, 6, 8)
    labels = torch.randint(5, (3, 6, 8))
    together = BOTH[name][0](model, images, heatmaps, [0, 1, 2], regions=labels)
    for chunk in (1, 4):
        found = BOTH[name][0](model, images, heatmaps, [0, 1, 2], regions=labels, chunk_size=chunk)
        torch.testing.assert_close(found, together)
    for n in range(3):
        alone = BOTH[name][0](model, images[n : n + 1], heatmaps[n : n + 1], n, regions=labels[n])
        torch.testing.assert_close(alone, together[n : n + 1])


@every
def test_signals_and_volumes_have_regions_too(name: str) -> None:
    metric = BOTH[name][0]
    assert metric(signal_cnn(), torch.randn(2, 2, 20), torch.rand(2, 20), regions=6).shape == (2,)
    assert metric(volume_cnn(), torch.randn(2, 1, 6, 8, 8), torch.rand(2, 6, 8, 8), regions=4).shape == (2,)


def test_irof_of_an_image_of_probability_zero_is_nan_and_of_a_negative_score_an_error() -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)) * 1e4, 0 * x.mean((1, 2, 3))], 1)

    images = torch.stack([torch.full((3, 4, 4), -1.0), torch.rand(3, 4, 4) / 1e4])
    found = irof(Flat(), images, torch.rand(2, 4, 4), 0, regions=2)
    assert found.isnan().tolist() == [True, False]
    with pytest.raises(camlib.CamlibValueError, match="the relative score is undefined for scores <= 0"):
        irof(Flat(), images, torch.rand(2, 4, 4), 0, regions=2, score=camlib.targets.Classes)


@every
@pytest.mark.parametrize(
    ("regions", "error", "match"),
    [
        (0, camlib.CamlibValueError, "regions must be an int of at least 1"),
        (2.5, camlib.CamlibTypeError, "integers"),
        ("slic", camlib.CamlibTypeError, "regions must be a side in pixels or integers"),
        (torch.zeros(2, 6, 8), camlib.CamlibTypeError, "got torch.float32"),
        (torch.zeros(6, 6, dtype=torch.long), camlib.CamlibValueError, r"regions have shape \(6, 6\)"),
        (torch.zeros(1, 6, 8, dtype=torch.long), camlib.CamlibValueError, r"they must be the same, or one"),
    ],
)
def test_other_regions_are_refused(name: str, regions: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        BOTH[name][0](cnn(), torch.randn(2, 3, 6, 8).double(), distinct(2, 6, 8), regions=regions)
