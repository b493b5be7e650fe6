"""Inputs have the same pixels as torchvision's, and restored heatmaps are in the right place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms._presets import ImageClassification

import camlib
from camlib import imaging
from camlib.imaging import CenterCrop, Geometry, Letterbox, Resize, resize_center_crop

sides = st.integers(2, 40)
sizes = st.tuples(sides, sides)


def spot(size: tuple[int, int], row: int, column: int) -> Tensor:
    picture = torch.zeros(size)
    picture[row, column] = 1
    return picture


def brightest(picture: Tensor) -> tuple[int, int]:
    return divmod(int(picture.argmax()), picture.shape[-1])


def assert_returns(geometry: Geometry, size: tuple[int, int], row: int, column: int, scale: float) -> None:
    """A network that looks where its input is bright. An input pixel covers ``scale`` original ones, so that the spot
    lies within half of them from the nearest one's centre, and a pixel of the picture within another half; enlarging
    brings the spot back exactly. At the rim the filter is cut off, its weights grow by 8 / 7, and the rim's pixel wins
    spots up to 8 / 15 of ``scale`` away; between it and the border the heat is flat."""
    picture = spot(size, row, column)
    restored = geometry.restore(geometry.apply(picture))
    assert restored.shape == size
    hottest = (restored >= 0.9999 * restored.max()).nonzero()
    distance = (hottest - torch.tensor([row, column])).abs().amax(1)
    assert distance.min() <= (8 / 15 * scale + 1 if scale > 1 else 0)
    assert distance.max() <= (8 / 15 + 1 / 2) * scale + 1
    assert restored.max() > 0


@settings(max_examples=50, deadline=None)
@given(old=sizes, new=sizes, seed=st.integers(0, 1000))
def test_resize_equals_torchvision(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    pictures = torch.rand(2, 3, *old, generator=torch.Generator().manual_seed(seed))
    expected = tvf.resize(pictures, list(new), antialias=True)
    torch.testing.assert_close(Resize(old, new).apply(pictures), expected, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(old=sizes, new=sizes)
def test_center_crop_equals_torchvision(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Odd differences, and pictures smaller than the crop, are rounded the same way."""
    pictures = torch.arange(1.0, 1 + 2 * old[0] * old[1]).reshape(2, *old)
    assert torch.equal(CenterCrop(old, new).apply(pictures), tvf.center_crop(pictures, list(new)))


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(st.integers(3, 90), st.integers(3, 90)), short=st.integers(4, 40), crop=st.integers(4, 40))
def test_resize_center_crop_is_torchvisions_preset(old: tuple[int, int], short: int, crop: int) -> None:
    """Heights and widths far from square, crops larger than the resized picture."""
    picture = torch.rand(3, *old, generator=torch.Generator().manual_seed(old[0]))
    preset = ImageClassification(crop_size=crop, resize_size=short, mean=(0, 0, 0), std=(1, 1, 1), antialias=True)
    geometry = resize_center_crop(old, short, crop)
    assert geometry.result == (crop, crop)
    torch.testing.assert_close(geometry.apply(picture), preset(picture), rtol=0, atol=1e-6)


def test_resize_center_crop_defaults_to_256_and_224() -> None:
    picture = torch.rand(1, 100, 131)
    preset = ImageClassification(crop_size=224, mean=(0,), std=(1,))
    torch.testing.assert_close(resize_center_crop((100, 131)).apply(picture), preset(picture), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(old=sizes, new=sizes, data=st.data())
def test_resize_restores_a_spot(old: tuple[int, int], new: tuple[int, int], data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, old[0] - 1)), data.draw(st.integers(0, old[1] - 1))
    assert_returns(Resize(old, new), old, row, column, max(old[0] / new[0], old[1] / new[1]))


@settings(max_examples=60, deadline=None)
@given(old=sizes, new=sizes, data=st.data())
def test_center_crop_restores_a_spot_exactly(old: tuple[int, int], new: tuple[int, int], data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, old[0] - 1)), data.draw(st.integers(0, old[1] - 1))
    geometry = CenterCrop(old, new)
    picture = spot(old, row, column)
    seen = geometry.apply(picture)
    assert torch.equal(geometry.restore(seen), picture if seen.any() else torch.zeros(old))


@settings(max_examples=60, deadline=None)
@given(old=sizes, new=sizes, data=st.data())
def test_letterbox_restores_a_spot(old: tuple[int, int], new: tuple[int, int], data: st.DataObject) -> None:
    """Rounding the inner picture to whole pixels stretches it by a quarter at most (2.5 pixels to 2)."""
    scale = max(old[0] / new[0], old[1] / new[1])
    assume(min(old) / scale > 1.5)  # torch's antialiasing is wrong where the result is a single column
    row, column = data.draw(st.integers(0, old[0] - 1)), data.draw(st.integers(0, old[1] - 1))
    assert_returns(Letterbox(old, new), old, row, column, 1.25 * scale)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(old=st.tuples(st.integers(20, 90), st.integers(20, 90)), data=st.data())
def test_resize_center_crop_restores_a_spot(old: tuple[int, int], data: st.DataObject) -> None:
    geometry = resize_center_crop(old, 32, 28)
    row, column = data.draw(st.integers(0, old[0] - 1)), data.draw(st.integers(0, old[1] - 1))
    assume(geometry.restore(torch.ones(28, 28))[row, column] > 0.999)  # well inside the crop
    assert_returns(geometry, old, row, column, min(old) / 32 * 1.04)  # the longer side is cut to whole pixels


@pytest.mark.parametrize(("row", "column"), [(0, 0), (112, 100), (223, 223), (5, 200)])
def test_input_pixels_go_where_the_arithmetic_says(row: int, column: int) -> None:
    """480 x 640 becomes 256 x 341; the crop begins at row 16 and column 58 (58.5, rounded to even)."""
    restored = resize_center_crop((480, 640)).restore(spot((224, 224), row, column))
    found = brightest(restored)
    assert abs(found[0] - ((row + 16 + 0.5) * 480 / 256 - 0.5)) <= 0.5
    assert abs(found[1] - ((column + 58 + 0.5) * 640 / 341 - 0.5)) <= 0.5


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (6, 6), (1, 5)])
def test_coarse_heatmaps_are_restored_to_their_cells(row: int, column: int) -> None:
    """A 7 x 7 map over a 224 crop: the hot cell's centre, taken back through the crop and the resizing."""
    restored = resize_center_crop((480, 640)).restore(spot((7, 7), row, column))
    weights = (restored > 0.999 * restored.max()).double()
    rows, columns = (weights.sum(1 - axis) @ torch.arange(size).double() for axis, size in enumerate((480, 640)))
    total = weights.sum()
    plateau = 16 if 0 in (row, column) or 6 in (row, column) else 1  # the outermost half cell is flat
    assert abs(rows / total - ((row * 32 + 15.5 + 16.5) * 1.875 - 0.5)) <= plateau * 1.875 / 2 + 1
    assert abs(columns / total - ((column * 32 + 15.5 + 58.5) * 640 / 341 - 0.5)) <= plateau * 640 / 341 / 2 + 1


def test_heatmaps_are_zero_outside_the_crop() -> None:
    restored = CenterCrop((6, 9), (3, 4)).restore(torch.ones(2, 2))
    assert restored.sum() == 12
    assert restored[2:5, 2:6].all()  # round(1.5) and round(2.5), to even
    far = resize_center_crop((100, 300), 64, 56).restore(torch.ones(7, 7))
    assert not far[:, :100].any()
    assert not far[:, 200:].any()
    assert far[50, 150] == 1


def test_restoring_removes_the_padding() -> None:
    heatmap = torch.zeros(10, 10)
    heatmap[3:7, 2:8] = 0.5  # the picture; all else is padding
    heatmap[0] = 1
    assert torch.equal(CenterCrop((4, 6), (10, 10)).restore(heatmap), torch.full((4, 6), 0.5))
    boxed = Letterbox((20, 40), (10, 10)).restore(torch.cat([torch.ones(2, 10), torch.zeros(8, 10)]))
    assert not boxed.any()


@settings(max_examples=80, deadline=None)
@given(old=sizes, new=sizes)
def test_letterbox_keeps_the_aspect_ratio_and_is_centred(old: tuple[int, int], new: tuple[int, int]) -> None:
    result = Letterbox(old, new).apply(torch.ones(old)) > 0.5
    assert result.shape == new
    rows, columns = result.any(1).nonzero().flatten(), result.any(0).nonzero().flatten()
    height, width = len(rows), len(columns)
    assert result.sum() == height * width  # a rectangle
    scale = min(new[0] / old[0], new[1] / old[1])
    assert abs(height - old[0] * scale) <= max(0.5, 1 - old[0] * scale)
    assert abs(width - old[1] * scale) <= max(0.5, 1 - old[1] * scale)
    assert height == new[0] or width == new[1]
    for inside, outside in ((rows, new[0]), (columns, new[1])):
        before, after = int(inside[0]), outside - 1 - int(inside[-1])
        assert after - before in (0, 1)


def test_a_letterbox_is_the_resized_picture_between_bars() -> None:
    picture = torch.rand(2, 3, 30, 60)
    result = Letterbox((30, 60), (20, 20)).apply(picture)
    assert not result[..., :5, :].any()
    assert not result[..., 15:, :].any()
    torch.testing.assert_close(result[..., 5:15, :], tvf.resize(picture, [10, 20], antialias=True), rtol=0, atol=1e-6)


def test_same_size_changes_nothing() -> None:
    picture = torch.rand(3, 7, 9)
    for kind in (Resize, CenterCrop, Letterbox):
        geometry = kind((7, 9), (7, 9))
        torch.testing.assert_close(geometry.apply(picture), picture)
        torch.testing.assert_close(geometry.restore(picture), picture)


def test_a_chain_applies_one_geometry_after_the_other() -> None:
    picture = torch.rand(3, 30, 50)
    chain = Resize((30, 50), (20, 33)).then(CenterCrop((20, 33), (16, 16))).then(Letterbox((16, 16), (12, 24)))
    assert (chain.original, chain.result) == ((30, 50), (12, 24))
    cropped = tvf.center_crop(tvf.resize(picture, [20, 33], antialias=True), [16, 16])
    result = chain.apply(picture)
    torch.testing.assert_close(result[..., 6:18], tvf.resize(cropped, [12, 12], antialias=True), rtol=0, atol=1e-6)
    assert not result[..., :6].any()
    restored = chain.restore(torch.ones(2, 3, 4))
    assert restored.shape == (2, 30, 50)
    assert not restored[..., :11].any()
    assert restored[:, 15, 25].tolist() == [1, 1]


def test_chains_can_be_chained() -> None:
    first = Resize((10, 12), (8, 8)).then(CenterCrop((8, 8), (6, 6)))
    second = Resize((6, 6), (9, 9)).then(CenterCrop((9, 9), (5, 5)))
    picture = torch.rand(10, 12)
    torch.testing.assert_close(first.then(second).apply(picture), second.apply(first.apply(picture)))
    heatmap = torch.rand(5, 5)
    torch.testing.assert_close(first.then(second).restore(heatmap), first.restore(second.restore(heatmap)))


def test_sizes_in_a_chain_must_match() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"ends at \(20, 33\), but the next takes \(33, 20\)"):
        Resize((30, 50), (20, 33)).then(CenterCrop((33, 20), (16, 16)))


@pytest.mark.parametrize("kind", [Resize, CenterCrop, Letterbox])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_every_batch_shape(kind: Any, batch: tuple[int, ...]) -> None:
    geometry = kind((10, 14), (8, 8))
    pictures = torch.rand(*batch, 10, 14)
    heatmaps = torch.rand(*batch, 3, 5)
    applied, restored = geometry.apply(pictures), geometry.restore(heatmaps)
    assert applied.shape == (*batch, 8, 8)
    assert restored.shape == (*batch, 10, 14)
    for index in np.ndindex(batch):
        torch.testing.assert_close(applied[index], geometry.apply(pictures[index]))
        torch.testing.assert_close(restored[index], geometry.restore(heatmaps[index]))


@pytest.mark.parametrize("kind", [Resize, CenterCrop, Letterbox])
def test_arrays_give_arrays(kind: Any) -> None:
    geometry = kind((10, 14), (8, 8))
    heatmaps, pictures = np.random.default_rng(0).random((2, 3, 5)), np.random.default_rng(1).random((2, 10, 14))
    restored, applied = geometry.restore(heatmaps), geometry.apply(pictures)
    assert isinstance(restored, np.ndarray)
    assert isinstance(applied, np.ndarray)
    assert np.array_equal(restored, geometry.restore(torch.from_numpy(heatmaps)).numpy())
    assert np.array_equal(applied, geometry.apply(torch.from_numpy(pictures)).numpy())


@pytest.mark.parametrize("kind", [Resize, CenterCrop, Letterbox])
def test_sizes_may_be_lists(kind: Any) -> None:
    geometry = kind([10, 14], torch.Size([8, 8]))
    assert geometry == kind((10, 14), (8, 8))
    assert geometry.apply(torch.ones(10, 14)).shape == (8, 8)


@pytest.mark.parametrize("kind", [Resize, CenterCrop, Letterbox])
def test_pictures_of_another_size_are_an_error(kind: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"takes pictures of \(10, 14\), got \(14, 10\)"):
        kind((10, 14), (8, 8)).apply(torch.ones(3, 14, 10))


@pytest.mark.parametrize("kind", [Resize, CenterCrop, Letterbox])
@pytest.mark.parametrize("bad", [(0, 3), (3,), 5, (2.5, 3), None])
def test_wrong_sizes_are_errors(kind: Any, bad: Any) -> None:
    for sizes_ in ((bad, (3, 3)), ((3, 3), bad)):
        with pytest.raises(camlib.CamlibValueError, match="two positive integers"):
            kind(*sizes_)


def test_heatmaps_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(camlib.CamlibValueError, match="heatmaps hold NaN"):
        imaging.Resize((4, 4), (2, 2)).restore(torch.full((2, 2), float("nan")))


def test_arguments_stay_unchanged() -> None:
    for kind in (Resize, CenterCrop, Letterbox):
        geometry = kind((4, 4), (4, 4))
        array = np.arange(16.0).reshape(4, 4)
        geometry.apply(array)[:] = 0
        geometry.restore(array)[:] = 0
        assert np.array_equal(array, np.arange(16.0).reshape(4, 4))
