"""Imputation: every unknown pixel is the weighted mean of its neighbours, all at once, whatever the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib.metrics import imputation, impute

WEIGHTS = {(dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}


def equations(known: Tensor) -> Tensor:
    """The matrix M (pixels, pixels) of the renormalised equations M x = 0, one row for each pixel, known ones' zero."""
    height, width = known.shape
    rows = torch.zeros(height, width, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            beside = {
                (y + dy, x + dx): weight
                for (dy, dx), weight in WEIGHTS.items()
                if 0 <= y + dy < height and 0 <= x + dx < width
            }
            if not known[y, x]:
                rows[y, x, y, x] = 1
                for (v, u), weight in beside.items():
                    rows[y, x, v, u] = -weight / sum(beside.values())
    return rows.reshape(height * width, height * width)


def solved(pictures: Tensor, known: Tensor) -> Tensor:
    """Each picture by a dense solve in double precision."""
    results = pictures.double().clone()
    for picture, of_picture in zip(results, known, strict=True):
        matrix, gone = equations(of_picture), ~of_picture.flatten()
        for channel in picture:
            values = channel.flatten()
            right = -matrix[gone][:, ~gone] @ values[~gone]
            values[gone] = torch.linalg.solve(matrix[gone][:, gone], right)
            channel.copy_(values.reshape(channel.shape))
    return results


def worst_residual(pictures: Tensor, known: Tensor) -> Tensor:
    """How far an unknown pixel of each picture is from the mean of its neighbours, as a share of the known range."""
    matrices = torch.stack([equations(of_picture) for of_picture in known])
    residual = pictures.double().flatten(2) @ matrices.mT
    return residual.abs().amax((1, 2)) / ranges(pictures.double(), known)


def ranges(pictures: Tensor, known: Tensor) -> Tensor:
    """The range of each picture's known pixels."""
    seen = [picture[:, of_picture] for picture, of_picture in zip(pictures, known, strict=True)]
    return torch.stack([values.max() - values.min() for values in seen])


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Pictures of any size and scale, and masks: few or many pixels known, at least one of each picture."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    rows, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    share = torch.tensor(draw(st.lists(st.sampled_from([0, 0.1, 0.5, 0.9, 1]), min_size=rows, max_size=rows)))
    known = torch.rand(rows, *size) < share.view(-1, 1, 1)
    known.flatten(1)[torch.arange(rows), torch.randint(size[0] * size[1], (rows,))] = True
    scale, shift = draw(st.sampled_from([1e-6, 1.0, 1e6])), draw(st.sampled_from([0.0, -3.0]))
    return scale * (torch.randn(rows, channels, *size, dtype=torch.float64) + shift), known


def gap(size: int, share: float = 0.8) -> Tensor:
    """Known (1, size, size): a disc in the middle is missing, of that share of the pixels."""
    places = (torch.arange(size) - (size - 1) / 2) ** 2
    distances = places[:, None] + places
    return (distances > distances.flatten().kthvalue(round(share * size**2)).values)[None]


def specks(size: int, share: float = 0.8) -> Tensor:
    """Known (1, size, size): pixels are missing at random."""
    return torch.rand(1, size, size) >= share


# Against a dense solve ----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_imputation_solves_the_equations(problem: tuple[Tensor, Tensor]) -> None:
    pictures, known = problem
    expected = solved(pictures, known)
    size = expected.abs().max()
    torch.testing.assert_close(impute(pictures, known, tolerance=1e-13) / size, expected / size, rtol=0, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(problem=problems(), tolerance=st.sampled_from([0.1, 1e-3, 1e-5]), double=st.booleans())
def test_the_tolerance_is_met(problem: tuple[Tensor, Tensor], tolerance: float, double: bool) -> None:
    pictures, known = problem[0] if double else problem[0].float(), problem[1]
    several = known.flatten(1).sum(1) > 1
    residual = worst_residual(impute(pictures, known, tolerance=tolerance), known)[several]
    rounding = 8 * torch.finfo(pictures.dtype).eps * pictures.abs().amax((1, 2, 3)) / ranges(pictures, known)
    assert (residual <= tolerance + rounding[several]).all()


def test_the_tolerance_that_is_given_is_met() -> None:
    """Where the iterations end is up to chance: of many tolerances one would show a slight excess."""
    pictures, known = torch.rand(1, 1, 20, 20, dtype=torch.float64), gap(20, 0.6)
    for tolerance in torch.logspace(-1, -6, 80).tolist():
        assert worst_residual(impute(pictures, known, tolerance=tolerance), known) <= tolerance


@pytest.mark.parametrize("known", [gap(24, 0.9), specks(24, 0.9), gap(25, 0.5) & specks(25, 0.5)])
def test_most_of_a_picture_may_be_missing(known: Tensor) -> None:
    pictures = torch.rand(1, 2, *known.shape[1:], dtype=torch.float64)
    found = impute(pictures, known, tolerance=1e-13)
    torch.testing.assert_close(found, solved(pictures, known), rtol=0, atol=1e-10)


@pytest.mark.parametrize("known", [gap(160), specks(160), specks(160, 0.99), gap(160) | specks(160, 0.999)])
def test_wide_gaps_take_few_iterations(known: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the coarser grids they are about a hundred where pixels are missing in one piece."""
    monkeypatch.setattr(imputation, "ITERATIONS", 14)
    impute(torch.rand(1, 1, 160, 160), known)


# By hand ------------------------------------------------------------------------------------------------------------

NINE = torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 16.0], [32.0, 64.0, 128.0]])


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        ((1, 1), (2 + 8 + 16 + 64) / 6 + (1 + 4 + 32 + 128) / 12),
        ((0, 1), (2 * 1 + 2 * 4 + 2 * 0 + 8 + 16) / 8),  # two diagonals and one beside lie beyond the border
        ((0, 0), (2 * 2 + 2 * 8 + 0) / 5),
        ((2, 2), (2 * 16 + 2 * 64 + 0) / 5),
    ],
)
def test_isolated_pixels_are_the_weighted_mean_of_their_neighbours(pixel: tuple[int, int], expected: float) -> None:
    known = torch.ones(1, 3, 3, dtype=torch.bool)
    known[0, *pixel] = False
    found = impute(NINE[None, None], known, tolerance=1e-5)
    assert float(found[0, 0, *pixel]) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(found[0, 0, known[0]], NINE[known[0]])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (9, 7)])
def test_one_known_pixel_fills_the_picture(size: tuple[int, int]) -> None:
    pictures = torch.randn(2, 3, *size)
    known = torch.zeros(2, *size, dtype=torch.bool)
    known[:, -1, size[1] // 2] = True
    values = pictures[:, :, -1, size[1] // 2, None, None]
    torch.testing.assert_close(impute(pictures, known), values.expand_as(pictures), rtol=0, atol=1e-6)
    alone = pictures[:, :1]
    assert torch.equal(impute(alone, known), values[:, :1].expand_as(alone)), "a picture of one value is exact"


def test_a_slope_goes_on_through_a_gap() -> None:
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    slope = (3 * x - 2 * y + 5)[None, None].double()
    known = torch.ones(1, 12, 15, dtype=torch.bool)
    known[:, 2:10, 3:11] = False
    torch.testing.assert_close(impute(slope, known, tolerance=1e-12), slope, rtol=0, atol=1e-8)


# Properties ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_a_row_of_a_batch_is_imputed_as_if_alone(problem: tuple[Tensor, Tensor]) -> None:
    pictures, known = problem
    together = impute(pictures, known, tolerance=1e-3)
    alone = torch.cat([impute(pictures[[r]], known[[r]], tolerance=1e-3) for r in range(len(pictures))])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9 * float(pictures.abs().max()))


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_known_pixels_stay_and_the_others_lie_between_them(problem: tuple[Tensor, Tensor]) -> None:
    pictures, known = problem
    found = impute(pictures, known, tolerance=1e-12)
    assert torch.equal(found.movedim(1, -1)[known], pictures.movedim(1, -1)[known])
    for before, after, seen in zip(pictures, found, known, strict=True):
        low, high = before[:, seen].amin(1), before[:, seen].amax(1)
        slack = 1e-9 * before.abs().max()
        assert (after.flatten(1).amin(1) >= low - slack).all()
        assert (after.flatten(1).amax(1) <= high + slack).all()


@settings(max_examples=30, deadline=None)
@given(problem=problems(), hidden=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_what_unknown_pixels_hold_is_not_looked_at(problem: tuple[Tensor, Tensor], hidden: float) -> None:
    pictures, known = problem
    other = torch.where(known[:, None], pictures, hidden)
    assert torch.equal(impute(other, known), impute(pictures, known))


def test_pictures_are_left_as_they_are_and_need_no_gradient() -> None:
    pictures = torch.rand(1, 2, 6, 6, requires_grad=True)
    before = pictures.detach().clone()
    assert not impute(pictures, specks(6)).requires_grad
    assert torch.equal(pictures, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_whatever_autocast_says(dtype: torch.dtype) -> None:
    pictures, known = torch.rand(1, 2, 20, 20).to(dtype), gap(20, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = impute(pictures, known)
        single = impute(pictures.float(), known)
    assert found.dtype == dtype
    assert torch.equal(found, single.to(dtype))
    assert torch.equal(single, impute(pictures.float(), known))


# Errors -------------------------------------------------------------------------------------------------------------

ZEROS = torch.zeros(2, 3, 4, 5)
SEEN = torch.ones(2, 4, 5, dtype=torch.bool)
FIRST, SECOND = torch.tensor([True, False]), torch.tensor([False, True])


@pytest.mark.parametrize(
    ("pictures", "known", "match"),
    [
        ([0.0], SEEN, "images must be a floating-point tensor .*, got list"),
        (ZEROS.long(), SEEN, "images must be a floating-point tensor .*, got torch.int64"),
        (ZEROS, SEEN.float(), "known must be a bool tensor .*, got torch.float32"),
        (ZEROS, None, "known must be a bool tensor .*, got NoneType"),
    ],
)
def test_another_type_is_refused(pictures: Any, known: Any, match: str) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=match):
        impute(pictures, known)


@pytest.mark.parametrize(
    ("pictures", "known", "match"),
    [
        (ZEROS[0], SEEN, r"images have shape \(3, 4, 5\) and known \(2, 4, 5\)"),
        (ZEROS.mT, SEEN, r"must be \(R, C, H, W\) and \(R, H, W\)"),
        (ZEROS, SEEN[:1], r"known \(1, 4, 5\)"),
        (ZEROS, SEEN & FIRST.view(2, 1, 1), "no pixel of image 1 is known; at least one"),
        (ZEROS / FIRST.view(2, 1, 1, 1), SEEN, "a known pixel of image 1 is not finite"),
        (1 / (ZEROS + SECOND.view(2, 1, 1, 1)), SEEN, "a known pixel of image 0 is not finite"),
    ],
)
def test_what_cannot_be_imputed_is_refused(pictures: Tensor, known: Tensor, match: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=match):
        impute(pictures, known)


@pytest.mark.parametrize("tolerance", [0, -1e-3, float("nan")])
def test_a_tolerance_is_a_positive_number(tolerance: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match="tolerance must be a positive number"):
        impute(ZEROS, SEEN, tolerance=tolerance)
    with pytest.raises(camlib.CamlibTypeError, match="tolerance must be a positive number"):
        impute(ZEROS, SEEN, tolerance="low")


def test_a_tolerance_that_rounding_does_not_allow_is_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"tolerance must be at least 4e-06 in torch.float32, got 1e-06"):
        impute(ZEROS, SEEN, tolerance=1e-6)
    impute(ZEROS.double(), SEEN, tolerance=1e-6)


def test_an_imputation_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imputation, "ITERATIONS", 2)
    known = torch.cat([SEEN[:1], SEEN[:1]]).repeat(1, 5, 4)
    known[1] = gap(20, 0.8)
    with pytest.raises(camlib.CamlibRuntimeError, match="after 2 iterations the imputation of image 1 is not within"):
        impute(torch.rand(2, 3, 20, 20), known)
