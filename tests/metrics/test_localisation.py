"""A heatmap that is the mask is right, its reverse is wrong, and an empty mask is neither."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.metrics.localisation import (
    energy_pointing_game,
    iou,
    pointing_game,
    relevance_rank,
    roc_auc,
    top_k_intersection,
)
from camlib.metrics.masks import box_masks
from tests import metric_equations as equations

Metric = Callable[..., Tensor]

METRICS: dict[str, Metric] = {
    "pointing_game": functools.partial(pointing_game, tolerance=0),
    "energy_pointing_game": energy_pointing_game,
    "relevance_rank": relevance_rank,
    "top_k_intersection": functools.partial(top_k_intersection, k=3),
    "roc_auc": roc_auc,
    "iou": iou,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
DRAWING: dict[str, Metric] = {name: METRICS[name] for name in ("pointing_game", "relevance_rank", "top_k_intersection")}


def tenths(*rows: str) -> Tensor:
    """One heatmap: digits are tenths; a dot is nothing."""
    return torch.tensor([[[0 if cell == "." else int(cell) for cell in row] for row in rows]]).double() / 10


def mask(*rows: str) -> Tensor:
    return torch.tensor([[[cell == "#" for cell in row] for row in rows]])


@st.composite
def located(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Heatmaps without ties and masks that are neither empty nor full."""
    images, height, width = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heatmaps = torch.rand(images, height, width, generator=generator, dtype=torch.float64)
    pixels = height * width
    counts = torch.randint(1, pixels, (images, 1), generator=generator)
    masks = torch.rand(images, pixels, generator=generator).argsort(1) < counts
    return heatmaps, masks.reshape(heatmaps.shape)


# By hand -------------------------------------------------------------------------------------------------------------

HEATMAP = tenths("12...", "39...", "....8")
MASK = mask("##...", "#....", "....#")


def test_values_by_hand() -> None:
    assert pointing_game(HEATMAP, MASK, tolerance=0).tolist() == [0]
    assert pointing_game(HEATMAP, MASK, tolerance=1).tolist() == [1]
    assert energy_pointing_game(HEATMAP, MASK).item() == pytest.approx((1 + 2 + 3 + 8) / 23, abs=1e-15)
    assert relevance_rank(HEATMAP, MASK).tolist() == [3 / 4]  # 9, 8, 3, 2: all but the 9
    assert top_k_intersection(HEATMAP, MASK, k=1).tolist() == [0]
    assert top_k_intersection(HEATMAP, MASK, k=2).tolist() == [1 / 2]
    assert top_k_intersection(HEATMAP, MASK, k=5).tolist() == [4 / 5]
    assert iou(HEATMAP, MASK).tolist() == [1 / 5]  # 9 and 8 against four
    assert iou(HEATMAP, MASK, threshold=0.3).tolist() == [2 / 5]


def test_ties_count_half_for_the_area_under_the_curve() -> None:
    heatmaps = (torch.rand(20, 5, 6) * 4).round()
    masks = torch.rand(20, 5, 6) < 0.4
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    expected = [equations.roc_auc(h, m) for h, m in zip(heatmaps.numpy(), masks.numpy(), strict=True)]
    torch.testing.assert_close(roc_auc(heatmaps, masks).double(), torch.tensor(expected, dtype=torch.float64))
    assert roc_auc(torch.zeros(1, 5, 6), masks[:1]).tolist() == [0.5]


def test_threshold_is_reached_by_equality() -> None:
    assert iou(tenths("58"), mask("##")).tolist() == [1]
    assert iou(tenths("58"), mask("##"), threshold=0.5001).tolist() == [0.5]
    assert iou(torch.ones(1, 1, 2), mask("##"), threshold=1).tolist() == [1]


def test_tolerance_is_a_euclidean_distance_to_the_nearest_pixel_of_the_mask() -> None:
    heatmap = tenths("......", "...9..", "......", "......", "......", "......")
    masks = mask("#.....", "......", "......", "......", ".#....", "......")
    near = math.hypot(3, 1)
    assert pointing_game(heatmap, masks, tolerance=near).tolist() == [1]
    assert pointing_game(heatmap, masks, tolerance=near - 1e-6).tolist() == [0]
    assert pointing_game(heatmap, masks, tolerance=3).tolist() == [0]
    assert pointing_game(heatmap, masks).tolist() == [1]


def test_pointing_game_allows_fifteen_pixels() -> None:
    heatmap = torch.zeros(1, 1, 40)
    heatmap[0, 0, 20] = 1
    at = torch.arange(40).expand(1, 1, 40)
    assert pointing_game(heatmap, at == 35).tolist() == pointing_game(heatmap, at == 5).tolist() == [1]
    assert pointing_game(heatmap, at == 36).tolist() == pointing_game(heatmap, at == 4).tolist() == [0]


def test_root_of_three_reaches_the_next_corner_of_a_volume() -> None:
    heatmap, masks = torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.bool)
    heatmap[0, 1, 2, 3], masks[0, 2, 1, 4] = 1, True
    assert pointing_game(heatmap, masks, tolerance=math.sqrt(3)).tolist() == [1]
    assert pointing_game(heatmap, masks, tolerance=1.73).tolist() == [0]


def test_top_k_has_a_thousand_pixels_by_default() -> None:
    heatmap = torch.arange(1600.0).reshape(1, 40, 40)
    assert top_k_intersection(heatmap, heatmap >= 1100).tolist() == [0.5]


# What holds of all ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(given_=located())
def test_the_mask_itself_scores_perfectly_and_its_reverse_worst(given_: tuple[Tensor, Tensor]) -> None:
    _, masks = given_
    for name, metric in METRICS.items():
        best, worst = metric(masks.double(), masks), metric((~masks).double(), masks)
        counts, pixels = masks.flatten(1).sum(1), masks[0].numel()
        if name == "top_k_intersection":
            k = min(3, pixels)
            metric = functools.partial(top_k_intersection, k=k)
            assert metric(masks.double(), masks).tolist() == (counts.clamp(max=k).double() / k).tolist()
            least = (k - (pixels - counts)).clamp(min=0).double() / k
            assert metric((~masks).double(), masks).tolist() == least.tolist()
        elif name == "relevance_rank":
            assert best.tolist() == [1] * len(masks)
            assert worst.tolist() == ((2 * counts - pixels).clamp(min=0).double() / counts).tolist()
        else:
            assert best.tolist() == [1] * len(masks)
            assert worst.tolist() == [0] * len(masks)


@settings(max_examples=50, deadline=None)
@given(given_=located(), power=st.sampled_from([0.5, 2.0, 3.0]))
def test_rising_functions_of_the_heatmap_leave_what_looks_at_the_order(
    given_: tuple[Tensor, Tensor], power: float
) -> None:
    heatmaps, masks = given_
    for metric in DRAWING.values():
        assert torch.equal(metric(5 * heatmaps**power - 1, masks), metric(heatmaps, masks))


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 4e37])
def test_scale_of_the_heatmap_leaves_its_shares(factor: float) -> None:
    heatmaps, masks = torch.randint(0, 9, (3, 8, 8)).float(), torch.rand(3, 8, 8) < 0.5
    expected = energy_pointing_game(heatmaps, masks)
    torch.testing.assert_close(energy_pointing_game(factor * heatmaps, masks), expected, rtol=1e-4, atol=0)


@every_metric
def test_every_pixel_of_the_picture_is_right_where_the_object_fills_it(metric: Metric) -> None:
    heatmaps = torch.rand(2, 4, 5) / 2 + 0.5
    assert metric(heatmaps, torch.ones(2, 4, 5)).tolist() == [1, 1]


@every_metric
def test_images_of_one_pixel_can_be_evaluated(metric: Metric) -> None:
    metric = functools.partial(top_k_intersection, k=1) if metric is METRICS["top_k_intersection"] else metric
    assert metric(torch.ones(1, 1, 1), torch.ones(1, 1, 1)).tolist() == [1]


@every_metric
def test_a_batch_gives_what_its_images_give(metric: Metric) -> None:
    heatmaps = torch.randint(0, 4, (5, 6, 7)).double() / 3  # many ties
    masks = torch.rand(5, 6, 7) < torch.linspace(0.1, 0.9, 5)[:, None, None]

    def drawn() -> dict[str, torch.Generator]:
        """A generator to break the ties of all images in turn, if the metric takes one."""
        return {"generator": torch.Generator().manual_seed(0)} if "generator" in signature(metric).parameters else {}

    together, options = metric(heatmaps, masks, **drawn()), drawn()
    alone = torch.cat([metric(heatmaps[i : i + 1], masks[i : i + 1], **options) for i in range(5)])
    assert len(together.unique()) > 1
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-15)


@every_metric
def test_masks_may_be_bools_numbers_or_arrays_and_are_left_alone(metric: Metric) -> None:
    heatmaps, masks = torch.rand(2, 5, 6).double(), torch.rand(2, 5, 6) < 0.4
    before = heatmaps.clone(), masks.clone()
    expected = metric(heatmaps, masks)
    assert expected.dtype == torch.float64
    assert metric(heatmaps.float(), masks).dtype == metric(heatmaps.half(), masks.double()).dtype == torch.float32
    for other in (masks.long(), masks.float(), masks.byte(), masks.numpy(), masks.numpy().astype(np.uint8)):
        assert torch.equal(metric(heatmaps, other), expected)
        assert torch.equal(metric(heatmaps.numpy(), other), expected)
    assert torch.equal(heatmaps, before[0])
    assert torch.equal(masks, before[1])


@every_metric
def test_signals_and_volumes_have_masks_too(metric: Metric) -> None:
    heatmaps, masks = torch.rand(3, 24).double(), torch.rand(3, 24) < 0.4
    expected = metric(heatmaps, masks)
    assert torch.equal(metric(heatmaps.reshape(3, 2, 3, 4), masks.reshape(3, 2, 3, 4)), expected)
    assert torch.equal(metric(heatmaps.reshape(3, 4, 6), masks.reshape(3, 4, 6)), expected)


def test_masks_of_signals_of_length_four_are_not_taken_for_boxes() -> None:
    masks = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]])
    assert relevance_rank(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2), masks).tolist() == [1, 0]


# Ties and zeros ------------------------------------------------------------------------------------------------------


def test_heatmap_of_zeros_is_no_evidence() -> None:
    nothing, masks = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    assert energy_pointing_game(nothing, masks).tolist() == [0]
    assert iou(nothing, masks).tolist() == [0]


def test_pointing_draws_among_the_highest_and_only_among_them() -> None:
    heatmap, masks = tenths("9.9", ".39"), mask("#..", "#..")
    hits = [
        pointing_game(heatmap, masks, tolerance=0, generator=torch.Generator().manual_seed(seed)).item()
        for seed in range(300)
    ]
    assert abs(np.mean(hits) - 1 / 3) < 4 * math.sqrt(1 / 3 * 2 / 3 / 300)
    only = mask("#.#", "..#")
    generator = torch.Generator().manual_seed(0)
    assert all(pointing_game(heatmap, only, tolerance=0, generator=generator).item() for _ in range(50))


def test_a_constant_heatmap_points_anywhere() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, :2] = 1  # the quarter that comes first
    for metric in DRAWING.values():
        shares = [
            metric(torch.zeros(1, 8, 8), masks, generator=torch.Generator().manual_seed(seed)).item()
            for seed in range(300)
        ]
        assert abs(np.mean(shares) - 1 / 4) < 4 * math.sqrt(1 / 4 * 3 / 4 / 300)


@pytest.mark.parametrize("metric", DRAWING.values(), ids=DRAWING)
def test_draws_are_repeatable_and_ones_own(metric: Metric) -> None:
    heatmaps, masks = torch.zeros(1, 9, 9), (torch.arange(81) % 2 == 0).reshape(1, 9, 9)
    state = torch.get_rng_state()
    assert torch.equal(metric(heatmaps, masks), metric(heatmaps, masks))
    seeded = [
        [metric(heatmaps, masks, generator=generator).item() for _ in range(20)]
        for generator in (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    ]
    assert seeded[0] == seeded[1]
    assert len(set(seeded[0])) > 1
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(CamlibTypeError, match=r"generator must be a torch.Generator"):
        metric(heatmaps, masks, generator=7)


# Boxes ---------------------------------------------------------------------------------------------------------------


def test_boxes_start_within_and_end_outside() -> None:
    assert torch.equal(box_masks(torch.tensor([[1, 0, 4, 2]]), (3, 5)), mask(".###.", ".###.", "....."))
    assert box_masks(torch.tensor([[0, 0, 5, 3]]), (3, 5)).all()


def test_a_pixel_belongs_to_the_box_that_holds_its_centre() -> None:
    boxes = torch.tensor([[0.5, 0, 3.4, 1], [0.6, 0, 3.5, 1], [1.4, 0, 3.6, 1]])
    assert torch.equal(box_masks(boxes, (1, 5)), torch.cat([mask("###.."), mask(".##.."), mask(".###.")]))
    standing = box_masks(boxes[:, [1, 0, 3, 2]], (5, 1))
    assert torch.equal(standing, box_masks(boxes, (1, 5)).mT)


def test_all_boxes_of_an_image_make_its_mask() -> None:
    boxes = [torch.tensor([[0, 0, 1, 1], [2, 1, 4, 2]]), torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 3.0, 2.0]])]
    expected = torch.cat([mask("#...", "..##"), mask("....", "...."), mask("###.", "###.")])
    masks = box_masks(boxes, (2, 4))
    assert masks.dtype == torch.bool
    assert torch.equal(masks, expected)
    assert torch.equal(box_masks(tuple(of_image.numpy() for of_image in boxes), (2, 4)), expected)
    assert not box_masks([torch.zeros(0, 4)] * 2, (2, 4)).any()
    overlapping = [torch.tensor([[0, 0, 3, 2], [1, 0, 4, 1]])]
    assert torch.equal(box_masks(overlapping, (2, 4)), mask("####", "###."))


@every_metric
def test_boxes_stand_for_their_masks(metric: Metric) -> None:
    heatmaps = torch.rand(3, 6, 7)
    boxes = torch.tensor([[0, 0, 3, 6], [2, 1, 7, 4], [1, 1, 2, 6]])
    expected = metric(heatmaps, box_masks(boxes, (6, 7)))
    for other in (boxes, boxes.numpy(), boxes.double(), list(boxes[:, None]), tuple(boxes[:, None].numpy())):
        assert torch.equal(metric(heatmaps, other), expected)


@pytest.mark.parametrize(
    "box",
    [
        [-1, 0, 3, 2],
        [0, -0.1, 3, 2],
        [0, 0, 6, 2],
        [0, 0, 3, 4],
        [3, 0, 3, 2],
        [0, 2, 3, 2],
        [4, 0, 2, 2],
        [0, 3, 2, 1],
    ],
)
def test_boxes_lie_within_the_picture_and_are_not_empty(box: list[float]) -> None:
    boxes = torch.tensor([[0, 0, 5, 3], box])
    with pytest.raises(CamlibValueError, match=r"images of 3 x 5 pixels .* 0 <= left < right <= 5 and 0 <= top"):
        box_masks(boxes, (3, 5))
    with pytest.raises(CamlibValueError) as error:
        pointing_game(torch.rand(2, 3, 5), boxes)
    assert str(tuple(map(float, box)))[:-1].split(",")[0] in str(error.value)


def test_boxes_are_those_of_the_images() -> None:
    heatmaps = torch.rand(2, 3, 5)
    box = torch.tensor([[0, 0, 2, 2]])
    with pytest.raises(CamlibValueError, match="boxes are given for 1 images, expected 2"):
        pointing_game(heatmaps, box)
    with pytest.raises(CamlibValueError, match="boxes are given for 3 images, expected 2"):
        pointing_game(heatmaps, [box] * 3)
    with pytest.raises(CamlibValueError, match="boxes are given for 0 images, expected some"):
        box_masks([], (3, 5))
    with pytest.raises(CamlibValueError, match="boxes are given for 0 images, expected some"):
        box_masks(torch.zeros(0, 4), (3, 5))


def test_boxes_are_rows_of_four_numbers() -> None:
    heatmaps = torch.rand(2, 3, 5)
    with pytest.raises(CamlibValueError, match=r"boxes of image 1 have shape \(4,\); .* box\[None\] makes a row"):
        pointing_game(heatmaps, [torch.tensor([[0, 0, 2, 2]]), torch.tensor([0, 0, 2, 2])])
    with pytest.raises(CamlibValueError, match=r"boxes of image 0 have shape \(3, 5\); .* torch.stack\(masks\)"):
        pointing_game(heatmaps, [torch.ones(3, 5), torch.ones(3, 5)])
    with pytest.raises(CamlibValueError, match=r"boxes have shape \(2, 5\); .* 4 numbers"):
        box_masks(torch.rand(2, 5), (3, 5))
    with pytest.raises(CamlibTypeError, match="boxes of image 0 must be a tensor or an array, got list"):
        pointing_game(heatmaps, [[[0, 0, 2, 2]], [[0, 0, 2, 2]]])
    with pytest.raises(CamlibTypeError, match="boxes must be a tensor or an array, got int"):
        box_masks(3, (3, 5))
    with pytest.raises(CamlibValueError, match="NaN"):
        box_masks(torch.tensor([[0, 0, torch.nan, 2]]), (3, 5))
    with pytest.raises(CamlibValueError, match="two positive integers"):
        box_masks(torch.tensor([[0, 0, 2, 2]]), (3, 5, 5))


@pytest.mark.parametrize("heatmaps", [torch.rand(2, 9), torch.rand(2, 3, 4, 5)])
def test_boxes_are_for_pictures(heatmaps: Tensor) -> None:
    with pytest.raises(CamlibValueError, match=r"boxes need heatmaps of images .* these have shape \(2, "):
        pointing_game(heatmaps, [torch.tensor([[0, 0, 1, 1]])] * 2)


# Empty masks ---------------------------------------------------------------------------------------------------------


@every_metric
def test_an_empty_mask_is_an_error_or_nan_and_never_a_hit(metric: Metric) -> None:
    heatmaps, masks = torch.rand(3, 4, 4), torch.ones(3, 4, 4)
    masks[1:] = 0
    with pytest.raises(CamlibValueError, match=r'masks of images \[1, 2\] are empty.* empty="nan"'):
        metric(heatmaps, masks)
    for empties in (masks, [torch.tensor([[0, 0, 4, 4]]), torch.zeros(0, 4), torch.zeros(0, 4)]):
        results = metric(heatmaps, empties, empty="nan")
        assert results[0] == metric(heatmaps[:1], masks[:1]).item()
        assert results[1:].isnan().all()
    assert metric(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), empty="nan").isnan().all()


@every_metric
@pytest.mark.parametrize("empty", ["zero", None, True])
def test_what_an_empty_mask_is_must_be_known(metric: Metric, empty: Any) -> None:
    with pytest.raises(CamlibValueError, match='empty must be "error" or "nan", got'):
        metric(torch.rand(1, 4, 4), torch.ones(1, 4, 4), empty=empty)


# Errors --------------------------------------------------------------------------------------------------------------


@every_metric
def test_masks_have_the_heatmaps_resolution(metric: Metric) -> None:
    for shape in [(2, 8, 9), (1, 4, 5), (4, 5), (2, 20)]:
        with pytest.raises(CamlibValueError, match=r"masks have shape .* heatmaps \(2, 4, 5\): .*heatmaps\(size\)"):
            metric(torch.rand(2, 4, 5), torch.ones(shape))


@every_metric
def test_masks_of_one_channel_are_told(metric: Metric) -> None:
    with pytest.raises(CamlibValueError, match=r"need masks\[:, 0\]"):
        metric(torch.rand(2, 4, 5), torch.ones(2, 1, 4, 5))


@every_metric
def test_masks_hold_yes_and_no(metric: Metric) -> None:
    heatmaps = torch.rand(2, 4, 5)
    for values in (torch.full((2, 4, 5), 0.5), torch.full((2, 4, 5), 255), -torch.ones(2, 4, 5)):
        with pytest.raises(CamlibValueError, match=r"masks are in \[.*must be bools, or 0 and 1"):
            metric(heatmaps, values)
    with pytest.raises(CamlibValueError, match="masks hold NaN"):
        metric(heatmaps, torch.full((2, 4, 5), torch.nan))
    for wrong in ("mask", 1, None):
        with pytest.raises(CamlibTypeError, match=f"masks must be .* boxes: .* got {type(wrong).__name__}"):
            metric(heatmaps, wrong)


@every_metric
def test_heatmaps_are_checked(metric: Metric) -> None:
    with pytest.raises(CamlibTypeError, match="heatmaps must be a tensor or an array"):
        metric("heatmaps", torch.ones(2, 4, 5))
    with pytest.raises(CamlibValueError, match=r"heatmaps have shape \(4,\)"):
        metric(torch.rand(4), torch.ones(4))
    with pytest.raises(CamlibValueError, match="NaN or infinity"):
        metric(torch.full((2, 4, 5), torch.nan), torch.ones(2, 4, 5))


@pytest.mark.parametrize("tolerance", [-1, math.inf, math.nan, "15", True, None])
def test_tolerance_is_a_distance(tolerance: Any) -> None:
    error = CamlibValueError if isinstance(tolerance, float) or tolerance == -1 else CamlibTypeError
    with pytest.raises(error, match="tolerance must be a number of at least 0, got"):
        pointing_game(torch.rand(1, 4, 4), torch.ones(1, 4, 4), tolerance=tolerance)


@pytest.mark.parametrize("k", [0, -3, 17, 1000, 2.0, True, None])
def test_k_is_a_number_of_pixels_that_there_are(k: Any) -> None:
    error = CamlibValueError if type(k) is int else CamlibTypeError
    told = "at most 16, the number of pixels of a heatmap" if k in (17, 1000) else "an int of at least 1"
    with pytest.raises(error, match=f"k must be {told}, got"):
        top_k_intersection(torch.rand(1, 4, 4), torch.ones(1, 4, 4), k=k)
    assert top_k_intersection(torch.rand(1, 4, 4), torch.ones(1, 4, 4), k=16).tolist() == [1]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, math.nan, "0.5", True])
def test_threshold_is_a_share(threshold: Any) -> None:
    error = CamlibTypeError if threshold in ("0.5", True) else CamlibValueError
    with pytest.raises(error, match=r"threshold must be a number in \(0, 1\], got"):
        iou(torch.rand(1, 4, 4), torch.ones(1, 4, 4), threshold=threshold)


def test_shares_of_a_sum_and_thresholds_need_heatmaps_in_their_range() -> None:
    heatmaps = torch.rand(2, 4, 4)
    heatmaps[1, 2, 3] = -0.25
    with pytest.raises(CamlibValueError, match=r"reach down to -0.25; .*clamp\(min=0\)"):
        energy_pointing_game(heatmaps, torch.ones(2, 4, 4))
    for wrong in (heatmaps, 5 * heatmaps.abs()):
        with pytest.raises(CamlibValueError, match=r"must be in \[0, 1\]: camlib.normalize"):
            iou(wrong, torch.ones(2, 4, 4))
