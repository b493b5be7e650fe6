"""The measures match their definitions, and the intervals are over patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia.measures import MEASURES, Estimate, by_subgroup, evaluate, measure, random_subsets, with_intervals


@st.composite
def predictions(draw):
    count = draw(st.integers(4, 60))
    probabilities = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))) / 20
    labels = np.array([0, 1, *draw(st.lists(st.integers(0, 1), min_size=count - 2, max_size=count - 2))])
    return labels, probabilities


def accuracy_interval(labels, probabilities, patients):
    found = with_intervals(lambda at: vars(measure(labels[at], probabilities[at], 0.5)), patients, 0)
    return found["accuracy"].interval


def test_measures_of_a_case_worked_by_hand():
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([0.1, 0.4, 0.8, 0.5, 0.9])
    assert vars(measure(labels, probabilities, 0.5)) == pytest.approx(
        {
            "accuracy": 4 / 5, "sensitivity": 1.0, "specificity": 2 / 3, "ppv": 2 / 3, "npv": 1.0, "auroc": 5 / 6,
            "auprc": 1 / 2 * 1 + 1 / 2 * 2 / 3,
        }
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(0, 20))
def test_measures_match_their_definitions(case, step):
    labels, probabilities = case
    threshold = step / 20
    sick, healthy = probabilities[labels == 1], probabilities[labels == 0]
    found = measure(labels, probabilities, threshold)
    assert found["sensitivity"] == pytest.approx(sum(p >= threshold for p in sick) / len(sick))
    assert found["specificity"] == pytest.approx(sum(p < threshold for p in healthy) / len(healthy))
    wins = [(s > h) + 0.5 * (s == h) for s in sick for h in healthy]  # Mann and Whitney
    assert found["auroc"] == pytest.approx(np.mean(wins))
    called, cleared = labels[probabilities >= threshold], labels[probabilities < threshold]
    assert found["ppv"] == pytest.approx(np.mean(called == 1) if len(called) else float("nan"), nan_ok=True)
    assert found["npv"] == pytest.approx(np.mean(cleared == 0) if len(cleared) else float("nan"), nan_ok=True)
    steps = np.unique(probabilities[labels == 1])  # precision at every recall that is reached, weighed by its gain
    gains = [
        (labels[probabilities == s] == 1).sum() / len(sick) * np.mean(labels[probabilities >= s] == 1) for s in steps
    ]
    assert found["auprc"] == pytest.approx(sum(gains))


def test_without_a_class_its_measures_are_nan_without_a_warning():
    found = measure(np.array([1, 1]), np.array([0.2, 0.9]), 0.5)
    assert found["sensitivity"] == 0.5
    assert np.isnan([found[name] for name in ("specificity", "auroc", "auprc")]).all()
    assert np.isnan(measure(np.array([0, 1]), np.array([0.1, 0.2]), 0.5).ppv)


def test_confusion_matrix_has_the_truth_in_its_rows():
    labels, probabilities = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.8, 0.8])
    found = evaluate(labels, probabilities, [str(index) for index in range(7)], 0.5, 0)
    assert found.confusion == [[2, 1], [1, 3]]
    assert (found.images, found.patients) == (7, 7)
    for name in MEASURES:
        low, high = found[name].interval
        assert 0 <= low <= found[name].value <= high <= 1


def test_interval_of_an_accuracy_is_that_of_the_binomial():
    labels = np.arange(400) % 2
    probabilities = np.where(np.arange(400) % 10 < 8, labels, 1 - labels).astype(float)  # four of five are right
    low, high = accuracy_interval(labels, probabilities, [str(i) for i in range(400)])
    error = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.8 - error, 0.8 + error), abs=0.01)


def test_more_images_of_the_same_patients_do_not_narrow_the_interval():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    probabilities = np.clip(0.5 + 0.2 * (labels * 2 - 1) + random.normal(0, 0.3, 60), 0, 1)
    patients = [str(index) for index in range(60)]
    once = accuracy_interval(labels, probabilities, patients)
    nine_times = accuracy_interval(labels.repeat(9), probabilities.repeat(9), list(np.repeat(patients, 9)))
    as_strangers = accuracy_interval(labels.repeat(9), probabilities.repeat(9), [str(i) for i in range(540)])
    assert np.diff(nine_times) == pytest.approx(np.diff(once), rel=0.1)
    assert np.diff(as_strangers) < np.diff(once) / 2


def test_random_subsets_differ_are_repeatable_and_without_replacement():
    labels = np.arange(200) % 2
    probabilities = np.linspace(0, 1, 200)
    rows = random_subsets(labels, probabilities, 0.5, 63, 4, 7)
    assert [row.images for row in rows] == [63] * 4
    assert len({row.auroc for row in rows}) > 1
    assert rows == random_subsets(labels, probabilities, 0.5, 63, 4, 7)
    assert rows != random_subsets(labels, probabilities, 0.5, 63, 4, 8)
    (whole,) = random_subsets(labels, probabilities, 0.5, 1000, 1, 0)
    assert vars(whole) == pytest.approx({"images": 200, **vars(measure(labels, probabilities, 0.5))})


def test_subgroups_are_recognised_by_file_name_and_share_the_normal_images():
    names = ["IM-1-1.jpeg", "IM-2-1.jpeg", "person1_bacteria_1.jpeg", "person2_virus_2.jpeg", "person3_virus_3.jpeg"]
    labels, probabilities = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.6, 0.9, 0.2, 0.7])
    found = by_subgroup(labels, probabilities, names, names, 0.5, 0)
    assert found["bacteria"].images == 1
    assert found["virus"].images == 2
    assert found["bacteria"].sensitivity.value == 1
    assert found["virus"].sensitivity.value == 0.5
    assert found["bacteria"].auroc.value == 1
    assert found["virus"].auroc.value == pytest.approx(3 / 4)
    assert by_subgroup(labels, probabilities, names, list("abcde"), 0.5, 0) == {}


def test_an_estimate_reads_as_value_and_interval():
    assert str(Estimate(0.9751, (0.9, 1.0))) == "0.975 (0.900 to 1.000)"
