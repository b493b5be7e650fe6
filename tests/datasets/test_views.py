"""Views of a whole run: means, the rows to look at first, groups of maps, and their page."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camlib
from tests.datasets.small import Scaled, explained, pictures


class Brightest(nn.Module):
    """Its map is bright where the picture is, and its class is the channel that is brightest in all."""

    def __init__(self):
        super().__init__()
        self.layer = nn.AvgPool2d(4)

    def forward(self, images):
        return self.layer(images).mean((2, 3)) * 8


def spots(folder):
    """Pictures with a spot: red ones at the top left, green ones at the bottom right, and a black one."""
    folder.mkdir()
    places = []
    for number in range(24):
        picture = np.zeros((24, 24, 3), np.uint8)
        if number < 23:
            kind = number % 2
            start = 14 * kind
            picture[start : start + 8, start : start + 8, kind] = 100 + 5 * number
            places.append(kind)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return places


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    spots(folder / "in")
    return camlib.explain_dataset(
        camlib.GradCAM(Brightest(), "layer"),
        folder / "in",
        folder / "out",
        transforms=Scaled(),
        storage="webdataset",
        progress=False,
    )


def test_the_mean_heatmap_of_a_class_is_the_mean_of_its_rows(run):
    found = run.mean_heatmap(by="class", size=(24, 24))
    rows = [row for row in run if not row.degenerate[0]]
    assert set(found) == {row.classes[0] for row in rows} == {0, 1}
    for index, mean in found.items():
        expected = sum(row.heatmap() for row in rows if row.classes[0] == index) / sum(
            row.classes[0] == index for row in rows
        )
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-3)
    whole = run.mean_heatmap(size=(24, 24))
    torch.testing.assert_close(whole, sum(row.heatmap() for row in rows) / len(rows), rtol=1e-3, atol=1e-3)
    with pytest.raises(camlib.CamlibValueError, match='by must be None or "class"'):
        run.mean_heatmap(by="colour")


def test_rows_without_evidence_come_first_among_the_degenerate(run):
    first, *_ = run.most_degenerate(3)
    assert first.number == 23
    assert first.degenerate == (True,)
    assert float(first.heatmap().abs().max()) == 0


def test_the_least_certain_have_the_lowest_probability(run):
    found = run.least_certain(5)
    confidences = sorted(row.confidence for row in run)
    assert [row.confidence for row in found] == confidences[:5]
    for row in run:
        logits = Brightest()(Scaled()(Image.open(row.path).convert("RGB"))[None])
        assert math.isclose(row.confidence, float(logits.softmax(1).max()), rel_tol=1e-5)


def test_clusters_part_maps_by_place(run):
    first, second = run.clusters(2)
    assert {len(first.rows), len(second.rows)} == {11, 12}
    for cluster in (first, second):
        (only,) = {row.number % 2 for row in cluster.rows}
        assert cluster.classes == {only: len(cluster.rows)}
        brightest = divmod(int(cluster.mean.flatten().argmax()), 14)
        assert all((side > 7) == bool(only) for side in brightest)
    with pytest.raises(camlib.CamlibValueError, match="give a lower count"):
        run.clusters(100)


def test_the_page_shows_them_and_escapes_names(run, tmp_path):
    html = run.report(count=2, class_names=["<b>red</b>", "green", "blue"]).html
    assert "Mean heatmaps by class" in html
    assert "Groups of maps that are alike" in html
    assert html.count("<article") == len(
        {row.number for row in run.most_degenerate(2) + run.least_certain(2)}
        | {cluster.rows[0].number for cluster in run.clusters(2)}
    )
    assert "<b>red" not in html
    assert "&lt;b&gt;red" in html


def test_the_page_lists_images_that_failed_and_shows_crops(tmp_path):
    source = pictures(tmp_path / "in", 12)
    run = explained(source, tmp_path / "out", target=camlib.TopK(2))
    html = run.report(count=2).html
    assert "Images that failed" in html
    assert "0005.png" in html
