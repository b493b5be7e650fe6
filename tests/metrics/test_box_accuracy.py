"""Boxes of a heatmap's regions are swept over thresholds, and the best threshold of all images is taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from camlib import imaging
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.metrics.box_accuracy import box_hits, box_overlaps, max_box_acc, max_box_acc_v2

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "max_box_acc": max_box_acc,
    "max_box_acc_v2": max_box_acc_v2,
    "box_hits": box_hits,
    "box_overlaps": box_overlaps,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)

Box = tuple[int, int, int, int]


def tenths(*rows: str) -> Tensor:
    """One heatmap: digits are tenths; a dot is nothing."""
    return torch.tensor([[[0 if cell == "." else int(cell) for cell in row] for row in rows]]).double() / 10


def one(*box: float) -> Tensor:
    return torch.tensor([box])


# One heatmap ---------------------------------------------------------------------------------------------------------


def test_overlaps_by_hand() -> None:
    heatmap = tenths("......", ".384..", ".343..", "....5.")
    expected = [
        4 / 24,  # at 0: the picture
        4 / 12,  # to 0.3: the 5 touches at a corner, and the box is 4 x 3
        4 / 12,
        4 / 12,
        2 / 6,  # 0.4: the two 4s, the 8 and no 3; 2 x 2 pixels, one column beside the true box
        1 / 4,  # to 0.8: the 8, or of two single pixels the upper one
        1 / 4,
        1 / 4,
        1 / 4,
        0,  # 0.9: no pixel
    ]
    found = box_overlaps(heatmap, one(1, 1, 3, 3), thresholds=10)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-15)


def overlap(first: Box, second: Box) -> float:
    """Count the pixels."""
    pixels = [
        {(row, column) for row in range(top, bottom) for column in range(left, right)}
        for left, top, right, bottom in (first, second)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_at_threshold_zero_the_box_is_the_picture() -> None:
    assert box_overlaps(torch.zeros(1, 4, 6), one(0, 0, 6, 3), thresholds=3).tolist() == [[0.75, 0, 0]]


def test_thresholds_are_reached_by_equality_in_the_heatmaps_own_precision() -> None:
    for dtype in (torch.float32, torch.float64):
        heatmaps = torch.arange(10).to(dtype).div(10).reshape(10, 1, 1) * torch.tensor([[1, 0]])
        table = box_hits(heatmaps, one(0, 0, 1, 1).repeat(10, 1), iou=1, thresholds=10)
        expected = torch.ones(10, 10).tril().bool()
        expected[:, 0] = False  # there the box is the picture
        assert torch.equal(table, expected)


def test_thresholds_are_a_hundred_from_zero_by_default() -> None:
    heatmap, true = torch.tensor([[[0.995, 0.98995]]]), one(0, 0, 1, 1)  # told apart by 99/100, and not by 98/99
    assert box_overlaps(heatmap, true).tolist() == [[0.5] * 99 + [1]]
    assert box_hits(heatmap, true, iou=1).tolist() == [[False] * 99 + [True]]
    for function in (max_box_acc, max_box_acc_v2):
        assert function(heatmap, true).tolist() == [1]
    assert max_box_acc(heatmap, true, iou=1).tolist() == max_box_acc_v2(heatmap, true, ious=(1,)).tolist() == [1]
    assert max_box_acc(heatmap, true, iou=1, thresholds=99).tolist() == [0]
    assert max_box_acc_v2(heatmap, true, ious=(1,), thresholds=99).tolist() == [0]


def test_half_an_overlap_is_a_hit_by_default() -> None:
    heatmaps = torch.zeros(2, 1, 40)
    heatmaps[0, :, :4], heatmaps[1, :, :5] = 1, 1
    boxes = one(0, 0, 10, 1).repeat(2, 1)
    assert box_hits(heatmaps, boxes, thresholds=2)[:, 1].tolist() == [False, True]
    assert max_box_acc(heatmaps, boxes).tolist() == [0, 1]


def test_diagonals_connect() -> None:
    heatmap = tenths("9...", ".9..", "....")
    assert box_overlaps(heatmap, one(0, 0, 2, 2), thresholds=2).tolist() == [[4 / 12, 1]]


def test_largest_region_has_most_pixels_and_not_the_largest_box() -> None:
    heatmap = tenths("9....99", ".9...99", "..9..99", "...9...", "....9..")
    assert box_overlaps(heatmap, one(5, 0, 7, 3), thresholds=2)[0, 1] == 1
    assert box_overlaps(heatmap, one(0, 0, 5, 5), thresholds=2)[0, 1] == 0
    assert box_overlaps(heatmap, one(0, 0, 5, 5), thresholds=2, regions="all")[0, 1] == 1


@pytest.mark.parametrize(
    ("rows", "box"),
    [
        (("9..9", "...."), (0, 0, 1, 1)),
        (("...9", "9..."), (3, 0, 4, 1)),
        ((".9.9", "9..."), (0, 0, 2, 2)),
        (("9...", "..99", "9..."), (2, 1, 4, 2)),
        ((".99999.9", ".99999.9", ".......9", "9999999."), (0, 0, 8, 4)),
    ],
)
def test_of_equally_large_regions_the_upper_and_then_the_left_one_counts(rows: tuple[str, ...], box: Box) -> None:
    assert box_overlaps(tenths(*rows), one(*box), thresholds=2)[0, 1] == 1


def test_the_best_of_all_true_boxes_counts() -> None:
    heatmap = tenths("99....", "99....", "....9.")
    far, near = one(3, 0, 6, 2), one(0, 0, 2, 2)
    for boxes in ([torch.cat([far, near])], [torch.cat([near, far])], [near]):
        assert box_overlaps(heatmap, boxes, thresholds=2)[0, 1] == 1
    assert box_overlaps(heatmap, [far], thresholds=2)[0, 1] == 0


def test_the_best_of_all_regions_counts_if_all_are_asked() -> None:
    heatmap = tenths("99..9.", "99..9.", "......")
    true = one(4, 0, 5, 3)
    assert box_overlaps(heatmap, true, thresholds=2)[0, 1] == 0
    assert box_overlaps(heatmap, true, thresholds=2, regions="all")[0, 1] == pytest.approx(2 / 3, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tenth", range(1, 11))
def test_an_overlap_that_is_just_enough_is_a_hit(tenth: int, dtype: torch.dtype) -> None:
    heatmap = torch.zeros(1, 1, 12, dtype=dtype)
    heatmap[..., :tenth] = 1
    assert box_hits(heatmap, one(0, 0, 10, 1), iou=tenth / 10, thresholds=2)[0, 1]
    if tenth < 10:
        assert not box_hits(heatmap, one(0, 0, 10, 1), iou=tenth / 10 + 0.01, thresholds=2)[0, 1]


def test_boxes_may_end_within_a_pixel() -> None:
    heatmap = tenths("99..")
    assert box_overlaps(heatmap, one(0, 0, 2.5, 1), thresholds=2)[0, 1] == pytest.approx(2 / 2.5, abs=1e-15)


# Against plain Python ------------------------------------------------------------------------------------------------


def flood(above: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """Connected regions, diagonals included, by hand."""
    left = {(int(row), int(column)) for row, column in np.argwhere(above)}
    found = []
    while left:
        region, frontier = set(), [left.pop()]
        while frontier:
            row, column = frontier.pop()
            region.add((row, column))
            near = {(row + down, column + aside) for down in (-1, 0, 1) for aside in (-1, 0, 1)} & left
            left -= near
            frontier.extend(near)
        found.append(region)
    return found


def around(region: set[tuple[int, int]]) -> Box:
    rows, columns = zip(*region, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[Box]]:
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    values = draw(hnp.arrays(np.float64, (height, width), elements=st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.8, 1.0])))

    def box() -> Box:
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        return left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))

    return values, [box() for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_overlaps_are_those_of_flooded_regions(case: tuple[NDArray[np.float64], list[Box]]) -> None:
    values, true = case
    for regions in ("largest", "all"):
        expected = []
        for step in range(5):
            found = flood(values >= step / 5)
            boxes = [around(region) for region in found]
            if regions == "largest" and found:
                order = [
                    (-len(region), box[1], box[0], box[3], box[2]) for region, box in zip(found, boxes, strict=True)
                ]
                boxes = [boxes[order.index(min(order))]]
            expected.append(max((overlap(box, other) for box in boxes for other in true), default=0))
        got = box_overlaps(values[None], [torch.tensor(true)], thresholds=5, regions=regions)
        np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=1e-15)


def test_regions_are_those_that_are_drawn() -> None:
    heatmap = torch.rand(1, 12, 12).double()
    true = one(2, 3, 7, 9)
    for step in range(1, 10):
        drawn = imaging.boxes(heatmap[0], step / 10)
        expected = max((overlap(region.box, (2, 3, 7, 9)) for region in drawn), default=0)
        assert box_overlaps(heatmap, true, thresholds=10, regions="all")[0, step] == pytest.approx(expected, abs=1e-15)


# Many heatmaps -------------------------------------------------------------------------------------------------------


def squares(*levels: float) -> Tensor:
    """Heatmaps (N, 8, 8): 2 x 2 pixels of 1 within 4 x 4 of a level."""
    heatmaps = torch.zeros(len(levels), 8, 8)
    for heatmap, level in zip(heatmaps, levels, strict=True):
        heatmap[:4, :4] = level
        heatmap[:2, :2] = 1
    return heatmaps


def test_one_threshold_serves_all_images() -> None:
    """Large boxes hit up to the level, small ones above; two of three images agree."""
    heatmaps, large, small = squares(0.2, 0.6, 0.9), (0, 0, 4, 4), (0, 0, 2, 2)
    boxes = torch.tensor([small, large, large])
    assert max_box_acc(heatmaps, boxes).tolist() == [1, 1, 1]  # from 0.2 to 0.6
    boxes = torch.tensor([small, large, small])
    assert max_box_acc(heatmaps, boxes).tolist() == [1, 1, 0]
    boxes = torch.tensor([large, large, small])
    assert max_box_acc(heatmaps, boxes).tolist() == [1, 1, 0]
    assert max_box_acc(heatmaps[2:], boxes[2:]).tolist() == [1]


def test_of_several_best_thresholds_the_lowest_is_taken() -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 2, 2]])
    assert max_box_acc(squares(0.5, 0.5), boxes).tolist() == [1, 0]
    assert max_box_acc(squares(0.5, 0.5), boxes.flip(0)).tolist() == [0, 1]


def test_mean_is_the_best_column_of_the_table_of_hits() -> None:
    heatmaps = torch.rand(12, 10, 10) ** 3
    lefts = torch.randint(0, 5, (12, 2))
    boxes = torch.cat([lefts, lefts + torch.randint(3, 6, (12, 2))], 1)
    options: dict[str, Any] = {"iou": 0.2, "thresholds": 30}
    result = max_box_acc(heatmaps, boxes, **options)
    tables = [box_hits(heatmaps[rows], boxes[rows], **options) for rows in (slice(5), slice(5, 12))]
    table = torch.cat(tables)
    assert table.shape == (12, 30)
    assert table.dtype == torch.bool
    assert torch.equal(table, box_overlaps(heatmaps, boxes, thresholds=30) >= 0.2)
    assert 0 < result.mean() < 1
    assert result.mean() == table.float().mean(0).max()


def test_each_iou_has_its_own_best_threshold() -> None:
    heatmaps = torch.full((3, 1, 20), 0.5)
    heatmaps[0, :, 10:] = 0
    heatmaps[0, :, 19] = 0.9  # the first fits up to 0.5, and not at all above it
    heatmaps[1:, :, :2] = 0.9  # the others fit a little above 0.5, and less below
    boxes = torch.tensor([[0, 0, 10, 1], [0, 0, 5, 1], [0, 0, 5, 1]])
    overlaps = box_overlaps(heatmaps, boxes, thresholds=10, regions="all")
    torch.testing.assert_close(overlaps[:, 5], torch.tensor([1, 1 / 4, 1 / 4]))
    torch.testing.assert_close(overlaps[:, 6], torch.tensor([0, 2 / 5, 2 / 5]))
    assert max_box_acc_v2(heatmaps, boxes, ious=(0.3,)).tolist() == [0, 1, 1]
    assert max_box_acc_v2(heatmaps, boxes, ious=(0.7,)).tolist() == [1, 0, 0]
    assert max_box_acc_v2(heatmaps, boxes, ious=(0.3, 0.7)).tolist() == [0.5, 0.5, 0.5]


def test_all_regions_count_in_the_second_version_only() -> None:
    heatmap = tenths("99..9.", "99..9.", "99..9.")
    true = one(4, 0, 5, 3)
    assert max_box_acc(heatmap, true, iou=0.9).tolist() == [0]
    assert max_box_acc_v2(heatmap, true, ious=[0.9]).tolist() == [1]
    assert max_box_acc_v2(heatmap, true).tolist() == [1]


def test_ious_of_the_second_version_are_three_by_default() -> None:
    heatmaps = torch.zeros(5, 1, 40)
    for heatmap, length in zip(heatmaps, (2, 3, 5, 6, 7), strict=True):
        heatmap[..., :length] = 1
    result = max_box_acc_v2(heatmaps, one(0, 0, 10, 1).repeat(5, 1))
    torch.testing.assert_close(result, torch.tensor([0, 1, 2, 2, 3]) / 3)


@pytest.mark.parametrize("function", [max_box_acc, max_box_acc_v2])
def test_the_object_itself_is_found_and_its_reverse_is_not(function: Callable[..., Tensor]) -> None:
    boxes = torch.tensor([[1, 2, 4, 5], [3, 0, 8, 2]])
    heatmaps = torch.zeros(2, 8, 8)
    for heatmap, (left, top, right, bottom) in zip(heatmaps, boxes.tolist(), strict=True):
        heatmap[top:bottom, left:right] = 0.4
    assert function(heatmaps, boxes).tolist() == [1, 1]
    assert function(1 - heatmaps, boxes).tolist() == [0, 0]


@pytest.mark.parametrize("function", [max_box_acc, max_box_acc_v2])
def test_a_box_as_large_as_the_picture_is_found_by_any_heatmap(function: Callable[..., Tensor]) -> None:
    """At the threshold 0, as in the paper's protocol."""
    assert function(torch.rand(2, 6, 8) / 2, one(0, 0, 8, 6).repeat(2, 1)).tolist() == [1, 1]
    assert function(torch.ones(1, 1, 1), one(0, 0, 1, 1)).tolist() == [1]


@every_function
def test_arrays_and_lists_are_taken_and_left_alone(function: Callable[..., Tensor]) -> None:
    heatmaps, boxes = torch.rand(3, 6, 7).double(), torch.tensor([[0, 0, 3, 6], [2, 1, 7, 4], [1, 1, 2, 6]])
    before = heatmaps.clone()
    expected = function(heatmaps, boxes)
    for other in (
        boxes.numpy(),
        boxes.double(),
        list(boxes[:, None]),
        [of_image.numpy() for of_image in boxes[:, None]],
    ):
        assert torch.equal(function(heatmaps.numpy(), other), expected)
    assert torch.equal(function(heatmaps.mT.contiguous().mT.requires_grad_(), boxes), expected)
    assert torch.equal(heatmaps, before)
    if function is not box_hits:
        assert expected.dtype == torch.float64
        assert function(heatmaps.float(), boxes).dtype == torch.float32


@pytest.mark.parametrize("function", [box_hits, box_overlaps])
def test_a_batch_gives_what_its_images_give(function: Callable[..., Tensor]) -> None:
    heatmaps = torch.rand(4, 6, 7)
    boxes = [one(0, 0, 3, 6), torch.tensor([[2, 1, 7, 4], [0, 0, 1, 1]]), one(1, 1, 2, 6), one(0, 0, 7, 6)]
    alone = [function(heatmaps[i : i + 1], boxes[i : i + 1]) for i in range(4)]
    assert torch.equal(function(heatmaps, boxes), torch.cat(alone))


# Errors --------------------------------------------------------------------------------------------------------------


@every_function
def test_heatmaps_are_those_of_pictures_in_the_unit_range(function: Callable[..., Tensor]) -> None:
    boxes = one(0, 0, 2, 2)
    for wrong in (-torch.rand(1, 4, 4), 2 + torch.rand(1, 4, 4)):
        with pytest.raises(CamlibValueError, match=r"must be in \[0, 1\]: camlib.normalize"):
            function(wrong, boxes)
    for shape in [(1, 4), (1, 4, 4, 4)]:
        with pytest.raises(CamlibValueError, match=r"shape \(1, 4.*; boxes need heatmaps of images \(N, H, W\)"):
            function(torch.rand(shape), boxes)
    with pytest.raises(CamlibTypeError, match="got str"):
        function("heatmaps", boxes)


@every_function
def test_boxes_are_checked(function: Callable[..., Tensor]) -> None:
    heatmaps = torch.rand(2, 4, 5)
    with pytest.raises(CamlibValueError, match="boxes are given for 1 images, expected 2"):
        function(heatmaps, one(0, 0, 2, 2))
    with pytest.raises(CamlibValueError, match="images of 4 x 5 pixels"):
        function(heatmaps, one(0, 0, 2, 5).repeat(2, 1))
    for boxes, images in (([one(0, 0, 2, 2), torch.zeros(0, 4)], r"\[1\]"), ([torch.zeros(0, 4)] * 2, r"\[0, 1\]")):
        with pytest.raises(CamlibValueError, match=f"images {images} have no box.*leave these images out"):
            function(heatmaps, boxes)
    with pytest.raises(CamlibTypeError, match="boxes must be a tensor or an array, got NoneType"):
        function(heatmaps, None)


@every_function
@pytest.mark.parametrize("thresholds", [0, -1, 2.5, True, None])
def test_thresholds_must_be_a_positive_int(function: Callable[..., Tensor], thresholds: Any) -> None:
    with pytest.raises((CamlibTypeError, CamlibValueError), match="thresholds must be an int of at least 1"):
        function(torch.rand(1, 4, 4), one(0, 0, 2, 2), thresholds=thresholds)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, math.nan, "0.5", True, None])
def test_an_iou_is_a_share(value: Any) -> None:
    heatmaps, boxes = torch.rand(1, 4, 4), one(0, 0, 2, 2)
    error = CamlibTypeError if value in ("0.5", True, None) else CamlibValueError
    for function in (max_box_acc, box_hits):
        with pytest.raises(error, match=r"iou must be a number in \(0, 1\], got"):
            function(heatmaps, boxes, iou=value)
    with pytest.raises(error, match=r"each of ious must be a number in \(0, 1\], got"):
        max_box_acc_v2(heatmaps, boxes, ious=(0.5, value))


def test_no_ious_are_an_error() -> None:
    with pytest.raises(CamlibValueError, match="ious are empty"):
        max_box_acc_v2(torch.rand(1, 4, 4), one(0, 0, 2, 2), ious=())


@pytest.mark.parametrize("function", [box_hits, box_overlaps])
def test_regions_are_known(function: Callable[..., Tensor]) -> None:
    with pytest.raises(CamlibValueError, match='regions must be "largest" or "all", got \'both\''):
        function(torch.rand(1, 4, 4), one(0, 0, 2, 2), regions="both")


def test_hits_of_all_regions_are_at_least_those_of_the_largest() -> None:
    heatmaps, boxes = torch.rand(5, 10, 10), one(2, 2, 4, 4).repeat(5, 1)  # with small islands
    table = functools.partial(box_hits, heatmaps, boxes, iou=0.2)
    assert (table(regions="all") >= table()).all()
    assert table(regions="all").sum() > table().sum()
