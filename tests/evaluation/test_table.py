"""The table says what its numbers say: means, intervals, differences, ranks, and the same in its files and figure."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from camlib.evaluation import Evaluation, Failure, TableRow

A, B, C = TableRow("grad_cam", "layer4"), TableRow("random_cam", "layer4"), TableRow("center_gaussian", "")
NAN = math.nan


def table(values, better=None):
    """An evaluation of rows to metrics to numbers."""
    tensors = {
        row: {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in found.items()}
        for row, found in values.items()
    }
    return Evaluation(
        values=tensors,
        better=better or {"insertion": "higher", "deletion": "lower"},
        passes=dict.fromkeys(values, 1.0),
        left_out={TableRow("le_grad", ""): "there is no attention"},
        failures=[Failure(TableRow("fem", "layer4"), "deletion", (0, 2), "it failed")],
    )


@pytest.fixture
def three():
    return table(
        {
            A: {"insertion": [0.9, 0.7, 0.8], "deletion": [0.1, 0.2, NAN]},
            B: {"insertion": [0.4, 0.5, 0.6], "deletion": [0.1, 0.3, 0.2]},
            C: {"insertion": [0.4, 0.5, 0.6], "deletion": [NAN, NAN, NAN]},
        }
    )


def test_means_leave_out_images_that_could_not_be_evaluated(three):
    assert three.mean(A, "insertion") == pytest.approx(0.8)
    assert three.mean(A, "deletion") == pytest.approx(0.15)
    assert math.isnan(three.mean(C, "deletion"))
    assert (three.rows, three.metrics, three.images) == ([A, B, C], ["insertion", "deletion"], 3)


def test_intervals_agree_with_scipys_bootstrap():
    numbers = np.random.default_rng(0).exponential(size=60)
    ours = table({A: {"insertion": numbers.tolist()}}, {"insertion": "higher"}).interval(A, "insertion")
    theirs = stats.bootstrap((numbers,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    spread = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06 * spread)


def test_wider_confidence_gives_wider_intervals(three):
    narrow, wide = (three.interval(A, "insertion", confidence) for confidence in (0.5, 0.99))
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]


def test_interval_of_equal_numbers_has_no_width():
    assert table({A: {"insertion": [0.5] * 4}}, {"insertion": "higher"}).interval(A, "insertion") == (0.5, 0.5)


def test_differences_are_taken_image_by_image_and_positive_is_better():
    hard_and_easy = torch.linspace(0, 1, 20).tolist()
    better = [value - 0.01 for value in hard_and_easy]
    found = table({A: {"deletion": better}, B: {"deletion": hard_and_easy}}, {"deletion": "lower"})
    mean, (low, high) = found.difference(A, B, "deletion")
    assert mean == pytest.approx(0.01)
    assert (low, high) == pytest.approx((0.01, 0.01))  # though their own intervals overlap by far
    assert found.interval(A, "deletion")[1] > found.interval(B, "deletion")[0]
    assert found.difference(B, A, "deletion")[0] == pytest.approx(-0.01)


def test_ranks_share_ties_and_what_has_no_value_comes_last(three):
    assert three.mean_ranks() == {A: (1 + 1) / 2, B: (2.5 + 2) / 2, C: (2.5 + 3) / 2}
    assert three.ranked() == [A, B, C]


def test_a_row_without_any_value_comes_last():
    found = table({A: {"insertion": [NAN]}, B: {"insertion": [0.1]}}, {"insertion": "higher"})
    assert found.mean_ranks() == {A: 2, B: 1}
    assert found.ranked() == [B, A]


def test_ranks_compare_the_images_that_all_rows_have():
    hard_ones_spared = table(
        {A: {"deletion": [NAN, NAN, 0.1]}, B: {"deletion": [0.9, 0.9, 0.05]}}, {"deletion": "lower"}
    )
    assert hard_ones_spared.mean_ranks() == {A: 2, B: 1}
    assert hard_ones_spared.records()[1]["deletion_images"] == 1
    assert "0.100 (0.100 to 0.100) of 1" in str(hard_ones_spared)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.sampled_from(["higher", "lower"]))
def test_ranks_are_scipys(means, better):
    rows = [TableRow(f"method {index}", "") for index in range(len(means))]
    found = table({row: {"iou": [mean]} for row, mean in zip(rows, means, strict=True)}, {"iou": better})
    expected = stats.rankdata(-np.array(means) if better == "higher" else means)
    assert list(found.mean_ranks().values()) == expected.tolist()


def test_csv_holds_the_records(three, tmp_path):
    three.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["grad_cam", "random_cam", "center_gaussian"]
    assert float(lines[0]["insertion"]) == pytest.approx(0.8)
    assert float(lines[0]["insertion_low"]) <= 0.8 <= float(lines[0]["insertion_high"])


def test_json_is_strict_and_holds_every_number(three, tmp_path):
    three.to_json(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
    assert content["values"][0]["deletion"] == [0.1, 0.2, None]
    assert content["table"][2]["deletion"] is None
    assert content["left_out"] == [{"method": "le_grad", "layer": "", "why": "there is no attention"}]
    (failure,) = content["failures"]
    assert Failure.of_record(failure) == three.failures[0]


def test_printed_table_names_the_best_first_and_what_is_missing(three):
    lines = str(three).splitlines()
    assert lines[0].startswith("3 images; means with 95% intervals")
    assert lines[1].split()[:3] == ["method", "passes", "rank"]
    assert lines[2].split()[:5] == ["grad_cam,", "layer4", "1", "1.0", "0.800"]
    assert lines[-2] == "left out: le_grad: there is no attention"
    assert lines[-1] == "images 0, 2: fem, layer4, deletion: it failed"


def test_figure_shows_every_cell_and_colours_columns_by_rank(three):
    figure = three.plot()
    axes = figure.axes[0]
    shares = np.asarray(axes.get_images()[0].get_array(), float)
    assert shares[:, 0].tolist() == [1, 0.25, 0.25]
    assert shares[:2, 1].tolist() == [1, 0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 6
    assert texts[0].startswith("0.8\n")
    assert texts[-1] == "none"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "grad_cam, layer4   (mean rank 1.0; passes 1)"
    assert [label.get_style() for label in axes.get_yticklabels()] == ["normal", "italic", "italic"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "insertion\nhigher is better",
        "deletion\nlower is better",
    ]
