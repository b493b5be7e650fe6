"""What the documents recommend is in the top group of its subject, in the results of ``benchmarks/truth.py``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import camlib
from benchmarks import results, tables, tetris, truth, truth_tables
from benchmarks.advice import ADVICE
from benchmarks.subjects import scene
from camlib.methods.recommended import RECOMMENDED

ROOT = Path(__file__).parents[2]
SUBJECTS = results.load("truth")["subjects"]
GUIDE = (ROOT / "docs" / "guides" / "methods.rst").read_text()


def group_of(subject):
    """The methods that are not significantly worse than the best, by energy or by the pointing game."""
    return {name for metric in ("energy", "pointing") for name in truth_tables.top_group(SUBJECTS[subject], metric)}


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.explained)
def test_what_is_advised_is_in_the_top_group_of_its_subject(advice):
    assert set(advice.methods) <= group_of(advice.subject)


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.explained)
def test_the_table_says_where_the_first_method_is_above_every_baseline(advice):
    above = [truth_tables.above_baselines(SUBJECTS[advice.subject], metric) for metric in ("energy", "pointing")]
    assert all(advice.methods[0] in names for names in above) is advice.proved


@pytest.mark.parametrize(
    ("kind", "subject"), [("box", "box"), ("placed", "region"), ("function", "line"), ("transformer", "transformer")]
)
def test_auto_chooses_a_method_of_the_top_group(kind, subject):
    assert RECOMMENDED[kind].method.name in group_of(subject)


def test_for_a_class_of_a_convolutional_network_auto_is_above_every_baseline():
    """The probability as target is better, but saturates; auto keeps the logit."""
    name = RECOMMENDED["convolutional"].method.name
    assert all(name in truth_tables.above_baselines(SUBJECTS["mosaic"], metric) for metric in ("energy", "pointing"))


def test_the_readme_has_the_table_of_advice():
    assert tables.markdown(truth_tables.for_readme()) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.explained)
def test_the_guide_recommends_the_same_first(advice):
    """In the line of the table for it, the methods are named first, and in the same order."""
    (cell,) = re.findall(rf"\* - {re.escape(advice.guide)}.*?\n +- (.*?)\n +\* - ", GUIDE, re.DOTALL)
    named = re.findall(r"~camlib\.(\w+)`", cell)
    wanted = [part for name in advice.methods for part in re.findall(r"~camlib\.(\w+)`", truth_tables.role(name))]
    assert named[: len(wanted)] == wanted


def explainers_with(target):
    """The class that explains each target of a kind, in the code of README and guides."""
    found = []
    for path in [
        ROOT / "README.md",
        *(ROOT / "docs" / "guides").glob("*.rst"),
        *(ROOT / "docs" / "start").glob("*.rst"),
    ]:
        known = {}
        for line in path.read_text().splitlines():
            if made := re.search(r"(\w+) = camlib\.(\w+)\((?!.*targets\.)", line):
                known[made[1]] = made[2]
            if re.match(r" *(>>>|\.\.\.) ", line) and f"targets.{target}(" in line:
                direct = re.search(r"camlib\.([A-Z]\w+)\(\w+", line)
                called = re.search(rf"(\w+)\([^=]*targets\.{target}\(", line)
                name = direct[1] if direct else known.get(called[1]) if called else None
                found.append((path.name, line.strip(), name))
    return found


@pytest.mark.parametrize(("target", "subject"), [("Box", "box"), ("Region", "region")])
def test_the_code_of_the_guides_explains_a_target_with_a_method_that_beats_every_baseline(target, subject):
    above = [set(truth_tables.above_baselines(SUBJECTS[subject], metric)) for metric in ("energy", "pointing")]
    names = {camlib.METHODS[name].__name__ for name in camlib.METHODS if name in set.intersection(*above)}
    assert "GradCAM" not in names
    found = explainers_with(target)
    assert len(found) > 2
    for path, line, name in found:
        assert name in names, f"{path}: {line}"


def test_the_results_are_of_the_subjects_and_in_their_order():
    assert list(SUBJECTS) == [subject.name for subject in truth.SUBJECTS]


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_best_method_is_in_the_top_group_and_its_difference_is_zero(name):
    methods = SUBJECTS[name]["methods"]
    for metric in truth.METRICS:
        best = max(methods, key=lambda method: methods[method][metric]["mean"])
        assert methods[best][metric]["behind the best"]["interval"] == [0, 0]
        assert truth_tables.top_group(SUBJECTS[name], metric)[0] == best


@pytest.mark.parametrize("name", SUBJECTS)
def test_intervals_hold_their_means(name):
    for of_method in SUBJECTS[name]["methods"].values():
        for metric in truth.METRICS:
            low, high = of_method[metric]["interval"]
            assert low - 1e-9 <= of_method[metric]["mean"] <= high + 1e-9


def test_a_resample_draws_groups_whole():
    groups = [[0, 0, 1, 1, 1], [0, 1]]
    first, second = truth.resamples(groups, 500, np.random.default_rng(0))
    assert (first[:, 0] == first[:, 1]).all()
    assert (first[:, 2] == first[:, 4]).all()
    assert not (first[:, 0] == first[:, 2]).all()
    # two trials are drawn, each as often as it has groups in all
    drawn = (first[:, 0] + first[:, 2]) / 2 + second.sum(1) / 2
    assert (drawn == 2).all()


def test_the_interval_of_independent_values_is_that_of_the_normal_distribution():
    values = [np.random.default_rng(0).normal(3, 1, 400)]
    draws = truth.resamples([range(400)], 4000, np.random.default_rng(1))
    low, high = truth.interval(values, draws)
    deviation = values[0].std() / 20
    assert low == pytest.approx(values[0].mean() - 1.96 * deviation, abs=0.2 * deviation)
    assert high == pytest.approx(values[0].mean() + 1.96 * deviation, abs=0.2 * deviation)


def test_a_scene_has_the_pixels_that_its_masks_say():
    picture, masks, boxes = scene(np.random.default_rng(0), 64, [0, 1, 2], (6, 10))
    background = picture[:, ~masks.any(0)]
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        inside = picture[:, mask].mean(1)
        assert (inside - background.mean(1)).abs().max() > 3 * background.std(1).max()
        rows, columns = mask.nonzero(as_tuple=True)
        assert left - 1 <= columns.min() <= columns.max() <= right + 1
        assert top - 1 <= rows.min() <= rows.max() <= bottom + 1
    assert int(masks.sum(0).max()) == 1


@pytest.mark.parametrize("scenario", tetris.STRENGTHS)
def test_tetrominoes_have_four_pixels_and_decide_the_class(scenario):
    signals, labels = tetris.patterns(scenario, np.random.default_rng(0))
    sizes = np.abs(signals).sum((1, 2))
    assert set(sizes) == ({8.0} if scenario == "XOR" else {4.0})
    if scenario == "XOR":
        signs = np.sign(signals[:, :4].sum((1, 2)) * signals[:, 4:].sum((1, 2)))
        assert ((signs < 0) == (labels == 1)).all()
    else:
        upper = (np.abs(signals[:, 1:4, 1:3]).sum((1, 2)) == 4) & (scenario != "translations and rotations")
        assert scenario == "translations and rotations" or (upper == (labels == 0)).all()


def test_the_made_up_reader_scores_the_step_and_class_that_it_is_given():
    from benchmarks.pretrained import Characters

    outputs = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    places = torch.tensor([[[0, 1], [2, 3]], [[1, 0], [1, 2]]])
    scores = Characters(places).scores(outputs, torch.tensor([1, 0]))
    assert scores.tolist() == [[4.0, 6.0], [13.0, 23.0]]
