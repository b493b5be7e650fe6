"""The figures are those of the textbook, the threshold is robust, and the intervals know of patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia.evaluate import bootstrap, choose_threshold, evaluate, figures, random_subsets


@st.composite
def predictions(draw):
    count = draw(st.integers(4, 60))
    probabilities = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))) / 20
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=count - 2, max_size=count - 2))])
    return labels, probabilities


def test_figures_of_a_case_worked_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([0.1, 0.4, 0.8, 0.5, 0.9])
    assert figures(labels, probabilities, 0.5) == pytest.approx(
        {"accuracy": 4 / 5, "sensitivity": 1.0, "specificity": 2 / 3, "auroc": 5 / 6}
    )


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(0, 20))
def test_figures_are_the_textbooks(case, step):
    labels, probabilities = case
    threshold = step / 20
    sick, healthy = probabilities[labels == 1], probabilities[labels == 0]
    found = figures(labels, probabilities, threshold)
    assert found["sensitivity"] == pytest.approx(sum(p >= threshold for p in sick) / len(sick))
    assert found["specificity"] == pytest.approx(sum(p < threshold for p in healthy) / len(healthy))
    wins = [(s > h) + 0.5 * (s == h) for s in sick for h in healthy]  # Mann and Whitney
    assert found["auroc"] == pytest.approx(np.mean(wins))


def test_missing_class_gives_no_number_and_no_warning():
    found = figures(np.array([1, 1]), np.array([0.2, 0.9]), 0.5)
    assert found["sensitivity"] == 0.5
    assert np.isnan([found["specificity"], found["auroc"]]).all()


def test_confusion_matrix_has_the_truth_in_its_rows():
    labels, probabilities = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.8, 0.8])
    found = evaluate(labels, probabilities, [str(index) for index in range(7)], 0.5, 0)
    assert found["confusion"] == [[2, 1], [1, 3]]
    assert (found["images"], found["patients"]) == (7, 7)
    for name in ("accuracy", "sensitivity", "specificity", "auroc"):
        low, high = found[name]["interval"]
        assert 0 <= low <= found[name]["value"] <= high <= 1


def test_interval_of_an_accuracy_is_the_binomials():
    labels = np.arange(400) % 2
    probabilities = np.where(np.arange(400) % 10 < 8, labels, 1 - labels).astype(float)  # four of five are right
    low, high = bootstrap(labels, probabilities, [str(i) for i in range(400)], 0.5, 0)["accuracy"]
    error = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.8 - error, 0.8 + error), abs=0.01)


def test_more_images_of_the_same_patients_do_not_narrow_the_interval():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    probabilities = np.clip(0.5 + 0.2 * (labels * 2 - 1) + random.normal(0, 0.3, 60), 0, 1)
    patients = [str(index) for index in range(60)]
    once = bootstrap(labels, probabilities, patients, 0.5, 0)["accuracy"]
    nine_times = bootstrap(labels.repeat(9), probabilities.repeat(9), list(np.repeat(patients, 9)), 0.5, 0)["accuracy"]
    as_strangers = bootstrap(labels.repeat(9), probabilities.repeat(9), [str(i) for i in range(540)], 0.5, 0)[
        "accuracy"
    ]
    assert np.diff(nine_times) == pytest.approx(np.diff(once), rel=0.1)
    assert np.diff(as_strangers) < np.diff(once) / 2


def test_random_subsets_are_fresh_repeatable_and_without_replacement():
    labels = np.arange(200) % 2
    probabilities = np.linspace(0, 1, 200)
    rows = random_subsets(labels, probabilities, 0.5, 63, 4, 7)
    assert [row["images"] for row in rows] == [63] * 4
    assert len({row["auroc"] for row in rows}) > 1
    assert rows == random_subsets(labels, probabilities, 0.5, 63, 4, 7)
    assert rows != random_subsets(labels, probabilities, 0.5, 63, 4, 8)
    (whole,) = random_subsets(labels, probabilities, 0.5, 1000, 1, 0)
    assert whole == pytest.approx({"images": 200, **figures(labels, probabilities, 0.5)})


def test_separated_classes_are_parted_in_the_middle():
    labels = np.array([0, 0, 0, 1, 1])
    assert choose_threshold(labels, np.array([0.1, 0.2, 0.3, 0.7, 0.9])) == pytest.approx(0.5)


def test_one_odd_image_does_not_drag_the_threshold_along():
    probabilities = np.concatenate([np.linspace(0.05, 0.35, 200), np.linspace(0.65, 0.95, 200)])
    labels = np.repeat([0, 1], 200)
    undisturbed = choose_threshold(labels, probabilities)
    odd = choose_threshold(np.append(labels, 1), np.append(probabilities, 0.3485))
    assert undisturbed == pytest.approx(0.5)
    assert odd == pytest.approx(0.5, abs=0.02)  # the very best threshold is still in the gap, and so is the middle
    many = choose_threshold(np.append(labels, [1] * 300), np.append(probabilities, [0.2] * 300))
    assert many < 0.25  # but evidence moves it


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_threshold_is_as_good_as_any_within_one_standard_error_of_chance(case):
    labels, probabilities = case
    threshold = choose_threshold(labels, probabilities)

    def youden(at):
        found = figures(labels, probabilities, at)
        return found["sensitivity"] + found["specificity"] - 1

    def error(at):
        found = figures(labels, probabilities, at)
        sick, healthy = (labels == 1).sum(), (labels == 0).sum()
        return (
            found["sensitivity"] * (1 - found["sensitivity"]) / sick
            + found["specificity"] * (1 - found["specificity"]) / healthy
        ) ** 0.5

    grid = np.arange(0, 1.051, 0.05) - 0.025  # between all probabilities there are
    best = max(map(youden, grid))
    margin = max(error(at) for at in grid if youden(at) >= best - 1e-9)
    assert best - margin - 1e-9 <= youden(threshold) <= best + 1e-9
