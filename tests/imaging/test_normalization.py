"""Each map is scaled to its range separately, whatever its size, type and magnitude."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import camlib
from camlib import imaging

METHODS = ["minmax", "max", "percentile", "signed", "none"]
AWKWARD = [0.0, -0.0, 1.0, 1e-45, 1e-38, -1e-38, 1e38, -1e38, 3.4e38, -3.4e38, 1 + 2.0**-20]


def naive(values: NDArray[Any], method: str) -> NDArray[np.float64]:
    """One map in double precision, as the words have it."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if method == "max":
        return np.maximum(values, 0) / high if high > 0 else np.zeros_like(values)
    if method == "signed":
        return values / max(abs(low), abs(high))
    if method == "percentile":
        low, high = np.percentile(values, 1), np.percentile(values, 99)
        values = np.minimum(np.maximum(values, low), high)
    return values if method == "none" else (values - low) / (high - low)


def relative_range(values: NDArray[Any]) -> float:
    """Range over largest magnitude, in eps of float32; 0 for a map of zeros."""
    values = values.astype(np.float64)
    largest = np.abs(values).max()
    return float((values.max() - values.min()) / largest / np.finfo(np.float32).eps) if largest else 0.0


def in_single(value: float) -> float:
    """The nearest number of single precision, as NumPy 1 and 2 both compare it."""
    return float(np.float32(value))


def floats(infinities: bool = False) -> st.SearchStrategy[float]:
    values = st.floats(width=32, allow_nan=False, allow_infinity=infinities) | st.sampled_from(AWKWARD)
    return values.map(in_single)


def arrays(dims: int = 2) -> st.SearchStrategy[NDArray[np.float32]]:
    """Maps that vary, constant ones, and those of two values only."""
    shapes = hnp.array_shapes(min_dims=dims, max_dims=dims, min_side=1, max_side=7)
    varied = hnp.arrays(np.float32, shapes, elements=floats(), fill=st.nothing())
    few = hnp.arrays(np.float32, shapes, elements=st.sampled_from(AWKWARD).map(in_single))
    constant = st.builds(lambda shape, value: np.full(shape, value, np.float32), shapes, floats())
    return varied | few | constant


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (3, 2, 5, 8), (2, 1, 30, 40), (1, 1), (2, 1, 9), (2, 9, 1)])
def test_each_map_is_normalised_separately(method: str, shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(1).normal(size=shape) * 10.0 ** np.arange(shape[0])[:, None].reshape(
        -1, *[1] * (len(shape) - 1)
    )
    result = camlib.normalize(torch.from_numpy(maps), method)
    assert result.shape == shape
    for index in np.ndindex(shape[:-2]):
        single = maps[index]
        expected = np.zeros_like(single) if single.size == 1 and method != "none" else naive(single, method)
        np.testing.assert_allclose(result[index].numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dims", "grid"), [(1, (30,)), (1, (1,)), (3, (4, 5, 6)), (3, (1, 1, 7)), (3, (3, 1, 1))])
def test_signals_and_volumes_are_normalised_as_a_whole(method: str, dims: int, grid: tuple[int, ...]) -> None:
    maps = np.random.default_rng(2).normal(size=(2, 3, *grid)) * np.array([1e-6, 1, 1e6]).reshape(3, *[1] * dims)
    result = camlib.normalize(torch.from_numpy(maps), method, dims)
    assert result.shape == maps.shape
    for index in np.ndindex(2, 3):
        constant = maps[index].size == 1 and method != "none"
        expected = np.zeros(grid) if constant else naive(maps[index], method)
        np.testing.assert_allclose(result[index].numpy(), expected, rtol=1e-12, atol=1e-14)


def test_frames_of_a_video_share_a_range() -> None:
    maps = torch.tensor([[[[0.0, 1.0]], [[2.0, 4.0]]]])
    assert camlib.normalize(maps, dims=3).flatten().tolist() == [0, 0.25, 0.5, 1]
    assert camlib.normalize(maps).flatten().tolist() == [0, 1, 0, 1]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(values=arrays(), method=st.sampled_from(METHODS))
def test_equals_double_precision(values: NDArray[np.float32], method: str) -> None:
    ratio = relative_range(values)
    assume(abs(ratio - 16) > 1)  # the verdict itself is subject to rounding there
    result = camlib.normalize(values, method)
    if ratio < 16 and method != "none":
        assert not result.any()
        return
    if method == "percentile":
        low, high = np.percentile(values.astype(np.float64), [1, 99])
        assume(high - low > 100 * np.finfo(np.float32).eps * np.abs(values).max())
        ratio = (high - low) / (np.finfo(np.float32).eps * float(np.abs(values).max()))
    spread = {"minmax": 8, "percentile": 16}  # rounding errors, over the range
    tolerance = spread[method] / ratio if method in spread else 1e-6
    np.testing.assert_allclose(result, naive(values, method), rtol=0 if method != "none" else 1e-7, atol=tolerance)


@settings(max_examples=150, deadline=None)
@given(values=arrays(3), method=st.sampled_from(METHODS))
def test_result_is_finite_in_range_and_in_order(values: NDArray[np.float32], method: str) -> None:
    before = values.copy()
    result = camlib.normalize(torch.from_numpy(values), method).numpy()
    assert np.array_equal(values, before)
    assert np.isfinite(result).all()
    if method != "none":
        assert result.min() >= (-1 if method == "signed" else 0)
        assert result.max() <= 1
    for given_map, normalised in zip(before, result, strict=True):
        ordered = normalised.flatten()[given_map.flatten().argsort()]
        assert (ordered[1:] >= ordered[:-1]).all()


@settings(max_examples=60, deadline=None)
@given(values=arrays())
def test_minmax_reaches_both_ends_unless_constant(values: NDArray[np.float32]) -> None:
    assume(relative_range(values) > 17)
    result = camlib.normalize(values)
    assert (result.min(), result.max()) == (0, 1)
    assert result.flatten()[values.argmax()] == 1
    assert result.flatten()[values.argmin()] == 0


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-20, 1.0, 1e20, 3.4e38])
@pytest.mark.parametrize("method", ["minmax", "max", "percentile", "signed"])
def test_scale_of_the_map_does_not_matter(scale: float, method: str) -> None:
    shape = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(camlib.normalize(shape * scale, method), shape, rtol=0, atol=0.02)


def test_range_wider_than_the_largest_float_does_not_overflow() -> None:
    maps = torch.tensor([[-3.4e38, 0.0, 3.4e38]])
    assert camlib.normalize(maps).tolist() == [[0.0, 0.5, 1.0]]
    assert camlib.normalize(maps, "signed").tolist() == [[-1.0, 0.0, 1.0]]
    hot = torch.tensor([[-3e38] + [-2.9e38, 2.9e38] * 200 + [3.4e38]])
    assert sorted(set(camlib.normalize(hot, "percentile").flatten().tolist())) == [0.0, 1.0]


def test_percentile_clips_a_hot_pixel() -> None:
    maps = torch.linspace(0, 1, 1000).reshape(20, 50)
    maps[3, 7] = 1000
    assert camlib.normalize(maps).median() < 0.001
    assert abs(camlib.normalize(maps, "percentile").median() - 0.5) < 0.01


def test_percentile_does_not_stretch_the_noise_below_a_hot_pixel() -> None:
    noisy = torch.ones(40, 40)
    noisy[::2] += 2.0**-23
    noisy[5, 6] = 2
    result = camlib.normalize(noisy, "percentile")
    assert result[5, 6] == 1
    assert result.sum() < 1.001


def test_max_makes_negative_maps_zero() -> None:
    assert camlib.normalize(torch.tensor([[-2.0, -1.0]]), "max").tolist() == [[0.0, 0.0]]
    assert camlib.normalize(torch.tensor([[-2.0, 0.5, 1.0]]), "max").tolist() == [[0.0, 0.5, 1.0]]


def test_zero_stays_zero_when_signed() -> None:
    assert camlib.normalize(torch.tensor([[-4.0, 0.0, 1.0]]), "signed").tolist() == [[-1.0, 0.0, 0.25]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_constant_means_sixteen_eps(dtype: torch.dtype, size: float) -> None:
    base = 2.0 ** round(np.log2(size))
    eps = torch.finfo(dtype).eps
    exact = torch.tensor([[1.0, 1 - 16 * eps]], dtype=torch.float64) * base
    assert imaging.is_constant(exact.to(dtype))
    assert imaging.is_constant(-exact.to(dtype))
    wider = torch.tensor([[1.0, 1 - 16.5 * eps]], dtype=torch.float64) * base
    assert not imaging.is_constant(wider.to(dtype))


def test_each_map_is_checked_separately_for_a_constant() -> None:
    maps = torch.stack([torch.zeros(2, 3), torch.full((2, 3), -7.0), torch.eye(3)[:2], -torch.eye(3)[:2]])
    assert imaging.is_constant(maps).tolist() == [True, True, False, False]
    assert imaging.is_constant(maps.view(2, 2, 2, 3)).tolist() == [[True, True], [False, False]]
    assert imaging.is_constant(torch.tensor([[-3e38, 3e38]])).item() is False


def test_constant_signals_pictures_and_volumes() -> None:
    """Each line of a frame is constant, yet not the frame; each frame is, yet not the video."""
    lines = torch.arange(6.0).reshape(1, 1, 6, 1).expand(2, 2, 6, 4)
    assert imaging.is_constant(lines, 1).all()
    assert not imaging.is_constant(lines, 2).any()
    frames = torch.arange(2.0).reshape(1, 2, 1, 1).expand(3, 2, 6, 4)
    assert imaging.is_constant(frames, 2).all()
    assert imaging.is_constant(frames, 3).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("dims", "error", "message"),
    [
        (4, camlib.CamlibValueError, r"1 \(signals\), 2 \(pictures\) or 3 .* got 4"),
        *[(dims, camlib.CamlibValueError, f"dims must be an int of at least 1, got {dims}") for dims in (0, -1)],
        *[(dims, camlib.CamlibTypeError, f"int of at least 1, got {dims!r}") for dims in (True, 2.0, None, "2")],
    ],
)
def test_maps_have_one_two_or_three_dimensions(dims: Any, error: type[Exception], message: str) -> None:
    for function in (
        lambda: camlib.normalize(torch.rand(2, 2), dims=dims),
        lambda: imaging.is_constant(torch.rand(2, 2), dims),
    ):
        with pytest.raises(error, match=message):
            function()


@pytest.mark.parametrize(("dims", "wanted"), [(1, r"\(..., l\)"), (3, r"\(..., t, h, w\)")])
def test_errors_name_the_axes_that_are_missing(dims: int, wanted: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=rf"maps must have shape {wanted} without empty axes"):
        camlib.normalize(torch.ones([2] * (dims - 1)), dims=dims)


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-45, 1e-38, 3.4e38, -3.4e38])
def test_constant_maps_become_zeros(value: float) -> None:
    maps = torch.stack([torch.full((3, 4), value), torch.rand(3, 4)])
    for method in METHODS[:-1]:
        result = camlib.normalize(maps, method)
        assert not result[0].any()
        assert result[1].any()
    assert torch.equal(camlib.normalize(maps, "none"), maps)


def test_rounding_noise_is_not_stretched_into_a_picture() -> None:
    maps = torch.full((8, 8), 1 / 3)
    maps[::2] += 2.0**-24
    assert not camlib.normalize(maps).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_non_finite_maps_are_errors(bad: float, method: str, kind: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match="maps hold NaN or infinity"):
        camlib.normalize(kind([[[1.0, 2.0]], [[bad, 2.0]]]), method)


@settings(max_examples=40, deadline=None)
@given(values=hnp.arrays(np.float32, (2, 3, 4), elements=floats(infinities=True)), method=st.sampled_from(METHODS))
def test_finite_or_an_error(values: NDArray[np.float32], method: str) -> None:
    if np.isfinite(values).all():
        assert np.isfinite(camlib.normalize(values, method)).all()
    else:
        with pytest.raises(camlib.CamlibValueError, match="NaN or infinity"):
            camlib.normalize(values, method)


TORCH = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int16, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    maps = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    result = camlib.normalize(maps)
    assert result.tolist() == [[0, 1], [1, 1]]
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", ">i2", "g", "i8", "u2", "u1", "?"])
def test_arrays_of_every_type(dtype: str) -> None:
    result = camlib.normalize(np.array([[0, 1], [1, 1]], dtype))
    assert isinstance(result, np.ndarray)
    assert result.tolist() == [[0, 1], [1, 1]]
    assert result.dtype == (np.float64 if dtype in ("f8", ">f8", "g") else np.float32)


def test_arrays_of_every_layout() -> None:
    maps = np.arange(6.0).reshape(2, 3)
    frozen = maps.copy()
    frozen.flags.writeable = False
    for view in (maps[::-1, ::-1], np.asfortranarray(maps), np.broadcast_to(maps[0], (2, 3)), frozen):
        np.testing.assert_allclose(camlib.normalize(view), naive(view, "minmax"), atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_the_argument_is_neither_changed_nor_shared(method: str) -> None:
    maps = np.array([[1.0, 2.0], [4.0, -3.0]])
    before = maps.copy()
    camlib.normalize(maps, method)[:] = 7
    assert np.array_equal(maps, before)


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        ([[0.0, 1.0]], camlib.CamlibTypeError, "tensor or an array, got list"),
        (None, camlib.CamlibTypeError, "got NoneType"),
        (3.0, camlib.CamlibTypeError, "got float"),
        (torch.ones(2, 2, dtype=torch.complex64), camlib.CamlibTypeError, "must be real, got torch.complex64"),
        (np.ones((2, 2), complex), camlib.CamlibTypeError, "must hold numbers, got dtype complex128"),
        (np.array([["a", "b"]]), camlib.CamlibTypeError, "got dtype <U1"),
        (np.array([[None, 1]]), camlib.CamlibTypeError, "got dtype object"),
        (torch.ones(3), camlib.CamlibValueError, r"shape \(..., h, w\) without empty axes, got \(3,\)"),
        (torch.tensor(3.0), camlib.CamlibValueError, r"got \(\)"),
        (torch.ones(0, 2, 2), camlib.CamlibValueError, r"got \(0, 2, 2\)"),
        (np.ones((2, 0)), camlib.CamlibValueError, r"got \(2, 0\)"),
    ],
)
def test_other_types_and_shapes_of_maps_are_errors(maps: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        camlib.normalize(maps)


@pytest.mark.parametrize("method", ["min-max", "MINMAX", "", None, 3])
def test_an_unknown_method_lists_the_known_ones(method: object) -> None:
    with pytest.raises(camlib.CamlibValueError, match="minmax, max, percentile, signed, none") as error:
        camlib.normalize(torch.rand(2, 2), method)
    assert repr(method) in str(error.value)
