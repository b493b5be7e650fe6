"""Real photographs, a real pretrained network: the published table is what the methods give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import camlib
from benchmarks import photographs

pytestmark = pytest.mark.slow

TABLE = json.loads((Path(photographs.__file__).parent / "results" / "photographs.json").read_text())


@pytest.fixture(scope="module")
def explained():
    return photographs.explained()


def test_network_sees_the_cat_and_the_espresso(explained):
    _, comparison = explained
    assert comparison["grad_cam"].outputs.argmax(1)[:2].tolist() == [285, 967]


def test_the_methods_of_the_table_give_what_it_shows(explained):
    pictures, comparison = explained
    assert set(comparison) == set(camlib.METHODS) - {"le_grad"}  # which needs attention
    found = photographs.shares_inside(pictures, comparison)
    for name, row in TABLE["energy inside the box"].items():
        assert found[name] == pytest.approx(row, abs=0.01), name


@pytest.mark.parametrize("name", ["x_grad_cam", "hires_cam", "cam", "shapley_cam"])
def test_methods_coincide_behind_global_pooling(explained, name):
    _, comparison = explained
    ours, theirs = comparison["grad_cam"].heatmaps(), comparison[name].heatmaps()
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "refine_cam", "guided_grad_cam", "eigen_cam"])
def test_heatmaps_lie_on_the_thing_more_than_chance_and_the_middle_of_the_picture(explained, name):
    pictures, comparison = explained
    shares = photographs.shares_inside(pictures, comparison)
    for picture, photograph, share, middle in zip(
        pictures, photographs.PHOTOGRAPHS, shares[name], shares["center_gaussian"], strict=True
    ):
        assert share > photographs.area_share(picture, photograph.box)
        assert share > middle


def test_finer_cam_changes_the_map(explained):
    _, comparison = explained
    assert (comparison["finer_cam"].heatmaps() - comparison["grad_cam"].heatmaps()).abs().max() > 0.05
