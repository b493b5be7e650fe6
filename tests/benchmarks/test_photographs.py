"""The published table of the photographs is what the methods give, checked for those that take few passes."""

from __future__ import annotations

import pytest

from benchmarks import photographs, results

pytestmark = pytest.mark.slow

PUBLISHED = results.load("photographs")["energy inside the box"]
MANY_PASSES = {
    "ablation_cam", "is_cam", "occlusion", "recipro_cam", "rise", "score_cam", "smooth_grad_cam_plus_plus", "ss_cam",
}  # fmt: skip


def test_methods_of_few_passes_give_the_published_shares():
    found = photographs.shares_inside(photographs.explained(PUBLISHED.keys() - MANY_PASSES))
    assert found.keys() == PUBLISHED.keys() - MANY_PASSES
    for name, row in found.items():
        assert row == pytest.approx(PUBLISHED[name], abs=0.01), name
