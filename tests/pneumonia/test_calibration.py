"""A known temperature is recovered, and the measures match their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia.calibration import calibration, fit_temperature, probabilities_of


def drawn(temperature, count=4000):
    """Labels drawn with the probabilities of the margins, which are then made too confident or too timid."""
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, (count, 1))
    labels = (random.random(count) < 1 / (1 + np.exp(-margins[:, 0]))).astype(int)
    return labels, margins * temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_recovered(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.1)


def test_temperature_is_the_best_of_a_grid():
    labels, margins = drawn(2.5, 300)

    def loss(temperature):
        p = 1 / (1 + np.exp(-margins[:, 0] / temperature))
        return -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))

    best = min(np.geomspace(1, 10, 2000), key=loss)
    assert fit_temperature(labels, margins) == pytest.approx(best, rel=5e-3)


def test_temperature_improves_the_calibration_and_keeps_the_ranking():
    labels, margins = drawn(5.0)
    before, after = probabilities_of(margins, 1.0), probabilities_of(margins, fit_temperature(labels, margins))
    assert calibration(labels, after).ece < calibration(labels, before).ece / 3
    assert (np.argsort(before, kind="stable") == np.argsort(after, kind="stable")).all()


def test_separable_validation_gives_a_finite_temperature():
    labels, margins = np.array([0, 0, 1, 1]), np.array([[-9.0], [-8.0], [8.0], [9.0]])
    assert 0.04 < fit_temperature(labels, margins) < 21
    assert 0.04 < fit_temperature(1 - labels, margins) < 21


def test_views_of_a_picture_are_averaged_as_probabilities():
    found = probabilities_of(np.array([[0.0, 100.0], [-2.0, 2.0]]), 2.0)
    assert found == pytest.approx([0.75, 0.5])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), min_size=2, max_size=60))
def test_expected_calibration_error_is_the_sum_over_its_bins(rows):
    labels, probabilities = np.array([row[0] for row in rows]), np.array([row[1] for row in rows]) / 40
    error = 0.0
    for tenth in range(10):
        inside = [
            i for i, p in enumerate(probabilities) if tenth / 10 <= p < (tenth + 1) / 10 or (p == 1 and tenth == 9)
        ]
        if inside:
            error += abs(sum(probabilities[i] for i in inside) - sum(labels[i] for i in inside)) / len(rows)
    found = calibration(labels, probabilities)
    assert found.ece == pytest.approx(error, abs=1e-12)
    assert sum(bin.images for bin in found.reliability) == len(rows)


def test_brier_score_and_cross_entropy_of_a_case_worked_by_hand():
    found = calibration(np.array([1, 0]), np.array([0.8, 0.4]))
    assert found.brier == pytest.approx((0.04 + 0.16) / 2)
    assert found.cross_entropy == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
