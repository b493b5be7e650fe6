"""Photographs explained by a pretrained network. ``tests/benchmarks`` holds the published table of every method."""

from __future__ import annotations

import pytest

from benchmarks import photographs

pytestmark = pytest.mark.slow

ON_THE_SUBJECT = ("grad_cam", "layer_cam", "refine_cam", "guided_grad_cam", "eigen_cam")
AS_GRAD_CAM = ("x_grad_cam", "hires_cam", "cam", "shapley_cam")


@pytest.fixture(scope="module")
def comparison():
    return photographs.explained([*ON_THE_SUBJECT, *AS_GRAD_CAM, "finer_cam", "center_gaussian"])


def test_network_sees_the_cat_and_the_espresso(comparison):
    assert comparison["grad_cam"].outputs.argmax(1)[:2].tolist() == [285, 967]


@pytest.mark.parametrize("name", AS_GRAD_CAM)
def test_methods_coincide_behind_global_pooling(comparison, name):
    ours, theirs = comparison["grad_cam"].heatmaps(), comparison[name].heatmaps()
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("name", ON_THE_SUBJECT)
def test_heatmaps_lie_on_the_subject_more_than_chance_and_the_middle_of_the_picture(comparison, name):
    shares = photographs.shares_inside(comparison)
    for photograph, share, middle in zip(photographs.PHOTOGRAPHS, shares[name], shares["center_gaussian"], strict=True):
        x0, y0, x1, y1 = photograph.box
        height, width = photograph.picture().shape[:2]
        assert share > (x1 - x0) * (y1 - y0) / (height * width)
        assert share > middle


def test_finer_cam_changes_the_map(comparison):
    assert (comparison["finer_cam"].heatmaps() - comparison["grad_cam"].heatmaps()).abs().max() > 0.05
