"""Thresholds follow their rule, and do not depend on a single image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia import InputError
from pneumonia.measures import measure
from pneumonia.thresholds import Fixed, Sensitivity, Youden, rule_of


@st.composite
def predictions(draw):
    count = draw(st.integers(4, 60))
    probabilities = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))) / 20
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=count - 2, max_size=count - 2))])
    return labels, probabilities


def test_separable_classes_get_the_threshold_in_the_middle():
    labels = np.array([0, 0, 0, 1, 1])
    assert Youden().choose(labels, np.array([0.1, 0.2, 0.3, 0.7, 0.9])) == pytest.approx(0.5)


def test_one_outlier_does_not_move_the_threshold():
    probabilities = np.concatenate([np.linspace(0.05, 0.35, 200), np.linspace(0.65, 0.95, 200)])
    labels = np.repeat([0, 1], 200)
    undisturbed = Youden().choose(labels, probabilities)
    odd = Youden().choose(np.append(labels, 1), np.append(probabilities, 0.3485))
    assert undisturbed == pytest.approx(0.5)
    assert odd == pytest.approx(0.5, abs=0.02)  # the very best threshold is still in the gap, and so is the middle
    many = Youden().choose(np.append(labels, [1] * 300), np.append(probabilities, [0.2] * 300))
    assert many < 0.25  # but evidence moves it


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_threshold_is_as_good_as_any_within_one_standard_error_of_chance(case):
    labels, probabilities = case
    threshold = Youden().choose(labels, probabilities)

    def youden(at):
        found = measure(labels, probabilities, at)
        return found["sensitivity"] + found["specificity"] - 1

    def error(at):
        found = measure(labels, probabilities, at)
        sick, healthy = (labels == 1).sum(), (labels == 0).sum()
        return (
            found["sensitivity"] * (1 - found["sensitivity"]) / sick
            + found["specificity"] * (1 - found["specificity"]) / healthy
        ) ** 0.5

    grid = np.arange(0, 1.051, 0.05) - 0.025  # between all probabilities there are
    best = max(map(youden, grid))
    margin = max(error(at) for at in grid if youden(at) >= best - 1e-9)
    assert best - margin - 1e-9 <= youden(threshold) <= best + 1e-9


@settings(max_examples=60, deadline=None)
@given(predictions(), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_given_sensitivity_is_reached_and_no_higher_threshold_reaches_it(case, share):
    labels, probabilities = case
    threshold = Sensitivity(share).choose(labels, probabilities)
    assert measure(labels, probabilities, threshold)["sensitivity"] >= share - 1e-9
    lowest_called = probabilities[probabilities >= threshold].min()
    assert measure(labels, probabilities, lowest_called + 1e-9)["sensitivity"] < share


def test_fixed_threshold_ignores_the_images():
    assert Fixed(0.3).choose(np.array([0, 1]), np.array([0.9, 0.1])) == 0.3


@pytest.mark.parametrize(
    ("text", "rule"),
    [("youden", Youden()), ("sensitivity:0.95", Sensitivity(0.95)), ("0.5", Fixed(0.5)), (".25", Fixed(0.25))],
)
def test_rules_are_read(text, rule):
    assert rule_of(text) == rule
    assert str(rule)


@pytest.mark.parametrize(
    "text", ["best", "sensitivity", "sensitivity:", "sensitivity:1.5", "0", "1", "-0.5", "nan", ""]
)
def test_an_unknown_rule_is_refused_with_the_known_ones(text):
    with pytest.raises(InputError, match="youden, sensitivity:S or a number"):
        rule_of(text)
