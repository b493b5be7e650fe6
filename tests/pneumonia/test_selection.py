"""Examples are chosen by their rules alone: the most confident, the nearest to the threshold, and a seeded draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumonia.selection import GROUPS, choose_examples, drawn

CASES = st.tuples(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 10)), max_size=60
    ),  # few probabilities, so that many are equal
    st.integers(0, 10),
    st.integers(0, 6),
)


def chosen_of(case):
    rows, step, per_group = case
    labels, probabilities = [row[0] for row in rows], [row[1] / 10 for row in rows]
    return labels, probabilities, step / 10, per_group, choose_examples(labels, probabilities, step / 10, per_group)


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_no_image_is_in_two_groups_and_no_group_is_too_large(case):
    labels, _, _, per_group, chosen = chosen_of(case)
    indices = [index for group in chosen.values() for index in group]
    assert list(chosen) == list(GROUPS)
    assert len(set(indices)) == len(indices)
    assert all(0 <= index < len(labels) and isinstance(index, int) for index in indices)
    assert max(map(len, chosen.values())) <= per_group
    assert len(chosen["random"]) == min(per_group, len(labels) - len(indices) + len(chosen["random"]))


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_confident_groups_hold_the_most_confident_of_their_kind_and_ties_go_to_the_lower_index(case):
    labels, probabilities, threshold, per_group, chosen = chosen_of(case)
    kinds = {"true_positive": (1, True), "true_negative": (0, False), "false_positive": (0, True)}
    kinds["false_negative"] = (1, False)
    for group, (label, called) in kinds.items():
        there = [i for i in range(len(labels)) if labels[i] == label and (probabilities[i] >= threshold) == called]
        by_confidence = sorted(there, key=lambda i: (-probabilities[i] if called else probabilities[i], i))
        assert chosen[group] == by_confidence[:per_group]


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_undecided_are_the_closest_to_the_threshold_of_the_remaining(case):
    _, probabilities, threshold, per_group, chosen = chosen_of(case)
    confident = {i for group in list(GROUPS)[:4] for i in chosen[group]}
    left = [i for i in range(len(probabilities)) if i not in confident]
    assert chosen["undecided"] == sorted(left, key=lambda i: (abs(probabilities[i] - threshold), i))[:per_group]
    assert set(chosen["random"]) <= set(left) - set(chosen["undecided"])


def test_missing_groups_are_empty_lists():
    none = {group: [] for group in GROUPS}
    assert choose_examples([1, 1], [0.9, 0.8], 0.5) == {**none, "true_positive": [0, 1]}
    assert choose_examples([], [], 0.5) == none


def test_threshold_itself_calls_pneumonia():
    assert choose_examples([1], [0.5], 0.5)["true_positive"] == [0]


def test_the_draw_is_repeatable_and_depends_on_the_seed_alone():
    labels, probabilities = np.arange(200) % 2, np.linspace(0, 1, 200)
    first, again, other = (choose_examples(labels, probabilities, 0.5, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["random"] != other["random"]
    assert {**first, "random": []} == {**other, "random": []}


@pytest.mark.parametrize("count", [0, 3, 50, 99])
def test_drawing_takes_only_the_given_images_and_each_once(count):
    among = np.arange(100) % 2 == 1
    found = drawn(among, count, seed=0)
    assert len(found) == len(set(found)) == min(count, 50)
    assert all(among[index] for index in found)
