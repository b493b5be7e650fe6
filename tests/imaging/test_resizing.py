"""Linear with half-pixel centres: any size to any size along one, two or three axes, each map separately."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import camlib

sides = st.integers(1, 40)
sizes = st.tuples(sides, sides)


def naive(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel i of n covers [i, i + 1) / n of the picture; centres beyond the outermost take the outermost's value."""

    def along(length: int, wanted: int) -> list[tuple[int, int, float]]:
        taps = []
        for i in range(wanted):
            place = min(max((i + 0.5) / wanted * length - 0.5, 0.0), length - 1.0)
            taps.append((int(place), min(int(place) + 1, length - 1), place - int(place)))
        return taps

    result = np.zeros(size)
    for row, (top, bottom, down) in enumerate(along(values.shape[0], size[0])):
        for column, (left, right, aside) in enumerate(along(values.shape[1], size[1])):
            above = (1 - aside) * values[top, left] + aside * values[top, right]
            below = (1 - aside) * values[bottom, left] + aside * values[bottom, right]
            result[row, column] = (1 - down) * above + down * below
    return result


@settings(max_examples=60, deadline=None)
@given(old=sizes, new=sizes, seed=st.integers(0, 1000))
def test_any_size_to_any_size(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=old)
    np.testing.assert_allclose(camlib.resize(values, new), naive(values, new), rtol=0, atol=1e-11)
    single = camlib.resize(torch.from_numpy(values).float(), new)
    np.testing.assert_allclose(single.numpy(), naive(values, new), rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(st.integers(1, 15), st.integers(1, 15)), more=sizes, seed=st.integers(0, 1000))
def test_upsampling_equals_opencv(old: tuple[int, int], more: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).random(old, np.float32)
    height, width = old[0] + more[0], old[1] + more[1]
    expected = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(camlib.resize(values, (height, width)), expected, rtol=0, atol=2e-5)


def test_cells_cover_the_pixels_they_came_from() -> None:
    """With corners aligned instead, the step would not lie in the middle of each half."""
    assert camlib.resize(np.array([[0.0, 1.0]]), (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert camlib.resize(np.array([[0.0], [1.0]]), (4, 1)).tolist() == [[0.0], [0.25], [0.75], [1.0]]


def test_size_is_height_then_width() -> None:
    assert camlib.resize(torch.rand(2, 3), (5, 7)).shape == (5, 7)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3)])
def test_each_map_of_a_batch_is_resized_separately(batch: tuple[int, ...]) -> None:
    maps = torch.rand(*batch, 3, 5, dtype=torch.float64)
    result = camlib.resize(maps, (7, 4))
    assert result.shape == (*batch, 7, 4)
    for index in np.ndindex(batch):
        np.testing.assert_allclose(result[index].numpy(), naive(maps[index].numpy(), (7, 4)), atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(old=sizes, new=sizes, seed=st.integers(0, 1000))
def test_values_stay_between_lowest_and_highest(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, old).astype(np.float32)
    result = camlib.resize(np.stack([values, 1 - values]), new)
    for one, other in zip((values, 1 - values), result, strict=True):
        assert one.min() <= other.min()
        assert other.max() <= one.max()


def test_same_size_changes_nothing() -> None:
    maps = torch.rand(2, 3, 4)
    assert torch.equal(camlib.resize(maps, (3, 4)), maps)


def test_type_and_precision_are_kept() -> None:
    values = np.arange(6).reshape(2, 3)
    for given_dtype, dtype in [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), (">f8", "f8"), ("i4", "f4"), ("u1", "f4")]:
        result = camlib.resize(values.astype(given_dtype), (4, 6))
        assert isinstance(result, np.ndarray)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, naive(values, (4, 6)), atol=1e-6)
    for kind in (torch.float16, torch.bfloat16, torch.int64, torch.float32):
        tensor = camlib.resize(torch.from_numpy(values).to(kind), (4, 6))
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.numpy(), naive(values, (4, 6)), atol=1e-6)


def test_maps_stay_unchanged() -> None:
    maps = np.random.default_rng(0).random((3, 4))
    before = maps.copy()
    camlib.resize(maps, (3, 4))[:] = 9
    camlib.resize(maps, (6, 8))[:] = 9
    assert np.array_equal(maps, before)


@pytest.mark.parametrize(
    "size",
    [None, 5, (), (0,), (5, 6, 7, 8), (5, 6, 0), (0, 5), (5, -1), (2.5, 3), (True, 3), "ab", (None, 3), ("3", "4")],
)
def test_wrong_sizes_are_errors(size: object) -> None:
    with pytest.raises(camlib.CamlibValueError, match="two positive integers") as error:
        camlib.resize(torch.rand(2, 2), size)
    assert repr(size) in str(error.value)


def naive_3d(values: NDArray[Any], size: tuple[int, int, int]) -> NDArray[np.float64]:
    """Time first, each pixel's series on its own; then each frame."""
    frames, (time, height, width) = values.reshape(len(values), -1), size
    moved = np.stack([naive(series[:, None], (time, 1))[:, 0] for series in frames.T], 1).reshape(
        time, *values.shape[1:]
    )
    return np.stack([naive(frame, (height, width)) for frame in moved])


@settings(max_examples=60, deadline=None)
@given(old=sides, new=sides, seed=st.integers(0, 1000))
def test_signals_of_any_length_to_any_length(old: int, new: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, 3, old))
    result = camlib.resize(values, (new,))
    assert result.shape == (2, 3, new)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(result[index], naive(values[index][None], (1, new))[0], rtol=0, atol=1e-11)


short = st.integers(1, 9)
volumes = st.tuples(short, short, short)


@settings(max_examples=40, deadline=None)
@given(old=volumes, new=volumes, seed=st.integers(0, 1000))
def test_volumes_of_any_size_to_any_size(old: tuple[int, int, int], new: tuple[int, int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(2, *old))
    result = camlib.resize(torch.from_numpy(values), new)
    assert result.shape == (2, *new)
    for one, given_map in zip(result, values, strict=True):
        np.testing.assert_allclose(one.numpy(), naive_3d(given_map, new), rtol=0, atol=1e-11)


def test_time_is_resized_independently_of_space() -> None:
    maps = torch.tensor([[[0.0]], [[1.0]]])
    assert camlib.resize(maps, (4, 1, 1)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    assert torch.equal(camlib.resize(maps, (2, 3, 5)), maps.expand(2, 3, 5))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(old=volumes, new=volumes, seed=st.integers(0, 1000))
def test_volumes_stay_between_lowest_and_highest(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 2, old).astype(np.float32)
    result = camlib.resize(np.stack([values, 1 - values]), new)
    for one, other in zip((values, 1 - values), result, strict=True):
        assert one.min() <= other.min()
        assert other.max() <= one.max()


@pytest.mark.parametrize(
    ("shape", "size", "wanted"), [((3, 4), (5, 6, 7), r"\(..., t, h, w\)"), ((), (5,), r"\(..., l\)")]
)
def test_maps_have_as_many_axes_as_the_size(shape: tuple[int, ...], size: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=rf"maps must have shape {wanted}.*got \({str(shape)[1:-1]}\)"):
        camlib.resize(torch.rand(shape), size)


@pytest.mark.parametrize("size", [[5, 6], torch.Size([5, 6]), (5, 6)])
def test_sizes_of_every_type(size: Any) -> None:
    assert camlib.resize(torch.rand(2, 2), size).shape == (5, 6)


def test_other_types_and_shapes_of_maps_are_errors() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"got \(3,\)"):
        camlib.resize(torch.rand(3), (2, 2))
    with pytest.raises(camlib.CamlibValueError, match="NaN or infinity"):
        camlib.resize(np.array([[0.0, np.inf]]), (2, 2))
    with pytest.raises(camlib.CamlibTypeError, match="got list"):
        camlib.resize([[0.0]], (2, 2))
    with pytest.raises(camlib.CamlibTypeError, match="dtype complex128"):
        camlib.resize(np.ones((2, 2), complex), (2, 2))
