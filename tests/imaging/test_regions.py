"""Boxes and outlines enclose exactly the pixels at or above the threshold."""

from __future__ import annotations

from typing import Any

import cv2
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import camlib
from camlib import imaging
from camlib.imaging import HotRegion

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def heatmap(*rows: str) -> NDArray[np.float64]:
    """Digits are tenths; a dot is nothing."""
    return np.array([[0.0 if cell == "." else int(cell) / 10 for cell in row] for row in rows])


def flood(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Connected regions, diagonals included, by hand."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        region, frontier = set(), [left.pop()]
        while frontier:
            row, column = frontier.pop()
            region.add((row, column))
            near = {(row + down, column + aside) for down in (-1, 0, 1) for aside in (-1, 0, 1)} & left
            left -= near
            frontier.extend(near)
        regions.append(region)
    return regions


def test_box_is_left_top_right_bottom_with_the_end_outside() -> None:
    values = heatmap("......", "..888.", "..898.", "......", "......")
    assert imaging.boxes(values) == [HotRegion((2, 1, 5, 3), 6, 0.9)]
    left, top, right, bottom = imaging.boxes(values)[0].box
    assert (values[top:bottom, left:right] >= 0.5).all()


def test_highest_peak_comes_first() -> None:
    regions = imaging.boxes(heatmap("66..7..", "66.....", "....9.8"))
    assert [region.peak for region in regions] == [0.9, 0.8, 0.7, 0.6]
    assert [region.area for region in regions] == [1, 1, 1, 4]


def test_threshold_is_reached_by_equality() -> None:
    values = heatmap("5.4.6")
    assert [region.box for region in imaging.boxes(values, 0.5)] == [(4, 0, 5, 1), (0, 0, 1, 1)]
    assert [region.box for region in imaging.boxes(values, 0.51)] == [(4, 0, 5, 1)]


def test_small_regions_are_left_out() -> None:
    values = heatmap("9.66.", "..66.", "8....", "8....")
    assert [region.area for region in imaging.boxes(values, min_area=1)] == [1, 2, 4]
    assert [region.area for region in imaging.boxes(values, min_area=2)] == [2, 4]
    assert [region.area for region in imaging.boxes(values, min_area=4)] == [4]
    assert imaging.boxes(values, min_area=5) == []


def test_diagonal_neighbours_are_one_region() -> None:
    assert imaging.boxes(heatmap("9..", ".8.", "..7")) == [HotRegion((0, 0, 3, 3), 3, 0.9)]


def test_the_whole_picture_and_no_region() -> None:
    assert imaging.boxes(np.ones((4, 7))) == [HotRegion((0, 0, 7, 4), 28, 1.0)]
    assert imaging.boxes(np.zeros((4, 7))) == []
    assert imaging.boxes(np.ones((1, 1)), 1) == [HotRegion((0, 0, 1, 1), 1, 1.0)]
    assert imaging.contours(np.zeros((4, 7))) == []


@settings(max_examples=60, deadline=None)
@given(mask=masks, seed=st.integers(0, 100))
def test_boxes_equal_a_flood_fill(mask: NDArray[np.bool_], seed: int) -> None:
    values = np.where(mask, 0.5, 0.0) + np.random.default_rng(seed).random(mask.shape) * 0.49
    expected = []
    for region in flood(mask):
        rows, columns = zip(*region, strict=True)
        peak = max(values[place] for place in region)
        expected.append(HotRegion((min(columns), min(rows), max(columns) + 1, max(rows) + 1), len(region), peak))
    found = imaging.boxes(values)
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert [region.peak for region in found] == sorted((region.peak for region in found), reverse=True)


def test_tensors_are_accepted() -> None:
    values = heatmap(".8.", "...")
    assert imaging.boxes(torch.from_numpy(values)) == imaging.boxes(values)
    assert imaging.boxes(torch.from_numpy(values).half())[0].box == (1, 0, 2, 1)
    assert imaging.contours(torch.from_numpy(values))[0].tolist() == [[1, 0]]


@settings(max_examples=100, deadline=None)
@given(mask=masks)
def test_filling_the_outlines_again_gives_the_mask(mask: NDArray[np.bool_]) -> None:
    outlines = imaging.contours(mask.astype(float))
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    assert np.array_equal(filled, mask)


@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_outline_points_are_x_y_of_pixels_on_the_edge(mask: NDArray[np.bool_]) -> None:
    """On the edge: inside the region, with one of the eight neighbours outside it or outside the picture."""
    padded = np.pad(mask, 1)
    outlines = imaging.contours(mask.astype(float))
    assert len(outlines) >= len(flood(mask))
    for outline in outlines:
        assert outline.dtype == np.int32
        assert outline.shape == (len(outline), 2)
        for x, y in outline:
            assert mask[y, x]
            assert not padded[y : y + 3, x : x + 3].all()


def test_outline_of_a_rectangle_is_its_rim() -> None:
    values = np.zeros((7, 9))
    values[1:5, 2:8] = 1
    (outline,) = imaging.contours(values)
    rim = {(x, y) for x in range(2, 8) for y in range(1, 5) if x in (2, 7) or y in (1, 4)}
    assert {(int(x), int(y)) for x, y in outline} == rim


def test_a_hole_has_its_own_outline() -> None:
    values = np.ones((9, 9))
    values[4, 4] = 0
    outlines = [{(int(x), int(y)) for x, y in outline} for outline in imaging.contours(values)]
    assert len(outlines) == 2
    assert {(4, 3), (4, 5), (3, 4), (5, 4)} in outlines


@pytest.mark.parametrize("function", [imaging.boxes, imaging.contours])
@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_an_error(function: Any, threshold: float) -> None:
    with pytest.raises(camlib.CamlibValueError, match=rf"threshold must be a number in \(0, 1\], got {threshold}"):
        function(np.ones((2, 2)), threshold)
    with pytest.raises(camlib.CamlibTypeError, match="threshold must be a number"):
        function(np.ones((2, 2)), "0.5")


@pytest.mark.parametrize("function", [imaging.boxes, imaging.contours])
def test_only_a_single_heatmap_in_range_is_accepted(function: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"a single one, \(H, W\), got \(1, 2, 3\)"):
        function(np.ones((1, 2, 3)))
    with pytest.raises(camlib.CamlibValueError, match=r"\[0, 1\], got \[0, 2\]"):
        function(np.array([[0.0, 2.0]]))
    with pytest.raises(camlib.CamlibValueError, match="NaN"):
        function(np.array([[0.0, np.nan]]))


def test_boxes_are_drawn_on_their_rim_in_rgb() -> None:
    values = np.zeros((8, 10))
    values[2:6, 3:8] = 1
    drawn = imaging.draw_boxes(np.zeros((8, 10, 3), np.uint8), values, color=(255, 10, 0))
    rim = np.zeros((8, 10), bool)
    rim[2:6, 3:8] = True
    rim[3:5, 4:7] = False
    assert np.array_equal(drawn, np.where(rim[..., None], [255, 10, 0], 0))


def test_outlines_are_drawn_in_rgb() -> None:
    values = np.zeros((8, 10))
    values[2:6, 3:8] = 1
    drawn = imaging.draw_contours(np.full((8, 10, 3), 7, np.uint8), values, color=(1, 2, 200))
    rim = np.zeros((8, 10), bool)
    rim[2:6, 3:8] = True
    rim[3:5, 4:7] = False
    assert np.array_equal(drawn, np.where(rim[..., None], [1, 2, 200], 7))


@pytest.mark.parametrize("draw", [imaging.draw_boxes, imaging.draw_contours])
def test_drawing_leaves_the_picture_unchanged(draw: Any) -> None:
    image = np.zeros((6, 6, 3), np.uint8)
    assert draw(image, np.ones((6, 6))).any()
    assert not image.any()
    tensor = torch.zeros(3, 6, 6, dtype=torch.uint8)
    assert draw(tensor, np.ones((6, 6))).any()
    assert not tensor.any()


@pytest.mark.parametrize("draw", [imaging.draw_boxes, imaging.draw_contours])
def test_coarse_heatmaps_are_drawn_at_the_pictures_size(draw: Any) -> None:
    """Left half hot: cells of 4 pixels, so the linear ramp passes the threshold in the middle."""
    drawn = draw(np.zeros((8, 8, 3), np.uint8), np.array([[1.0, 0.0]]), 0.5)[..., 0] > 0
    assert drawn.shape == (8, 8)
    assert drawn[:, 0].all()
    assert drawn[:, 3].all()
    assert not drawn[:, 4:].any()


@pytest.mark.parametrize("draw", [imaging.draw_boxes, imaging.draw_contours])
def test_thick_lines_and_nothing_to_draw(draw: Any) -> None:
    values = np.zeros((20, 20))
    values[6:14, 6:14] = 1
    image = np.zeros((20, 20, 3), np.uint8)
    assert draw(image, values, thickness=3).sum() > 2 * draw(image, values, thickness=1).sum()
    assert not draw(image, np.zeros((20, 20))).any()
    with pytest.raises(camlib.CamlibValueError, match="a single one"):
        draw(image, values[None])


@pytest.mark.parametrize(
    "options", [{"thickness": 1.5}, {"thickness": 0}, {"color": "red"}, {"color": (1, 2)}, {"color": (0, 0, 256)}]
)
@pytest.mark.parametrize("draw", [camlib.imaging.draw_boxes, camlib.imaging.draw_contours])
def test_a_line_that_cannot_be_drawn_is_an_error(draw, options):
    with pytest.raises(camlib.CamlibError, match=r"(thickness|color) must be"):
        draw(np.zeros((8, 8, 3), np.uint8), np.ones((4, 4)), **options)
