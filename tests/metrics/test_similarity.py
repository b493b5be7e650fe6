"""Similarities of heatmaps are those of scipy and scikit-image, for a batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.stats
import skimage.feature
import skimage.metrics
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib.metrics.similarity import SIMILARITIES, hog, pearson, spearman, ssim

NAMES = sorted(SIMILARITIES)
levels = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
"""Few values make many ties, and edges that are exactly level."""


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """In [0, 1], with long stretches of zeros, as ReLU'd maps have."""
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coarse = torch.nn.functional.avg_pool2d(maps[:, None], 3, stride=1, padding=1)[:, 0]
    return camlib.normalize(coarse.relu())


def row(*values: float) -> Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


def test_names_are_those_of_the_functions() -> None:
    functions = [pearson, spearman, ssim, hog]
    assert {function.__name__: function for function in functions} == SIMILARITIES


# By hand -------------------------------------------------------------------------------------------------------------


def test_pearson_by_hand() -> None:
    assert pearson(row(0, 1, 2, 3), row(1, 0, 3, 2)).item() == pytest.approx(0.6, abs=1e-15)
    assert pearson(row(0, 1, 2, 3), row(3, 2, 1, 0)).item() == pytest.approx(-1, abs=1e-15)


def test_spearman_shares_the_ranks_of_ties_by_hand() -> None:
    assert spearman(row(0, 0, 1, 2), row(1, 2, 3, 4)).item() == pytest.approx(math.sqrt(0.9), abs=1e-15)


def test_ssim_of_constants_compares_their_means() -> None:
    first, second = (torch.full((1, 8, 9), value, dtype=torch.float64) for value in (0.2, 0.6))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-12)


def test_hog_knows_the_direction_of_edges_and_not_their_sign() -> None:
    across = (torch.arange(32) // 4 % 2).double().expand(1, 32, 32)
    assert hog(across, 1 - across).item() == pytest.approx(1, abs=1e-12)
    assert hog(across, across.mT).item() < 0


# As others have it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 9, 14), (3, 40), (2, 1, 2), (2, 3, 4, 5)])
def test_pearson_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=shape), generator.normal(size=shape)
    expected = [scipy.stats.pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(pearson(first, second).numpy(), expected, rtol=0, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6))
def test_spearman_is_that_of_scipy_with_and_without_ties(data: st.DataObject, shape: tuple[int, ...]) -> None:
    elements = data.draw(st.sampled_from([levels, st.floats(-1, 1)]))
    first, second = (data.draw(hnp.arrays(np.float64, shape, elements=elements)) for _ in range(2))
    maps = torch.from_numpy(np.stack([first, second]))
    assume(not camlib.imaging.is_constant(maps.flatten(1), 1).any())
    expected = scipy.stats.spearmanr(first.ravel(), second.ravel())[0]
    assert spearman(first[None], second[None]).item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(
    ("size", "window"),
    [((7, 7), 7), ((16, 21), 7), ((8, 7), 7), ((6, 9), 5), ((9, 6), 5), ((5, 5), 5), ((4, 30), 3), ((3, 3), 3)],
)
def test_ssim_is_that_of_scikit_image_with_a_window_that_fits(size: tuple[int, int], window: int) -> None:
    first, second = pictures(4, *size), pictures(4, *size, seed=1)
    second[0] = 0.9 * first[0] + 0.05  # alike, and not by chance
    expected = [
        skimage.metrics.structural_similarity(a, b, win_size=window, data_range=1)
        for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(first, second).numpy(), expected, rtol=0, atol=1e-12)


def test_ssim_has_scikit_images_window_by_default() -> None:
    first, second = pictures(1, 20, 20), pictures(1, 20, 20, seed=1)
    expected = skimage.metrics.structural_similarity(first[0].numpy(), second[0].numpy(), data_range=1)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-12)


SINGLE = 1e-7
"""scikit-image's hog adds up its cells in single precision, whatever the picture is."""


def descriptor(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    cell = tuple(max(2, side // 8) for side in picture.shape)
    return skimage.feature.hog(picture, orientations=9, pixels_per_cell=cell, cells_per_block=(3, 3))


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (6, 6), (7, 13), (50, 27), (23, 100)])
def test_hog_correlates_scikit_images_descriptors(size: tuple[int, int]) -> None:
    first, second = pictures(3, *size), pictures(3, *size, seed=1)
    second[0] = first[0].sqrt()
    expected = [
        scipy.stats.pearsonr(descriptor(a), descriptor(b))[0]
        for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    np.testing.assert_allclose(hog(first, second).numpy(), expected, rtol=0, atol=SINGLE)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(6, 20), width=st.integers(6, 20))
def test_hog_is_scikit_images_where_edges_lie_between_two_orientations(
    data: st.DataObject, height: int, width: int
) -> None:
    first, second = (data.draw(hnp.arrays(np.float64, (height, width), elements=levels)) for _ in range(2))
    pair = descriptor(first), descriptor(second)
    assume(all(np.ptp(features) > 1e-6 for features in pair))
    assert hog(first[None], second[None]).item() == pytest.approx(scipy.stats.pearsonr(*pair)[0], abs=SINGLE)


def test_hog_keeps_an_edge_that_is_all_but_level() -> None:
    """A little less than 0 degrees is a little less than 180, to which scikit-image rounds it up and then drops it."""
    level, slope = torch.zeros(1, 32, 32).double(), torch.arange(32).double()
    level[:, :, :10], level[:, :, 11:] = -1, 1
    slight, slighter = level.clone(), level.clone()
    slight[0, :, 10] -= 1e-6 * slope
    slighter[0, :, 10] -= 1e-20 * slope
    assert hog(slighter, slight).item() == pytest.approx(1, abs=1e-4)
    assert hog(slighter, level).item() < 0.9


# What holds of all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_heatmap_is_like_itself_and_similarity_has_no_direction(name: str) -> None:
    first, second = pictures(3, 24, 30), pictures(3, 24, 30, seed=1)
    similarity = SIMILARITIES[name]
    torch.testing.assert_close(similarity(first, first), torch.ones(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(similarity(first, second), similarity(second, first), rtol=0, atol=1e-14)
    assert (similarity(first, second) < 0.9).all()


@pytest.mark.parametrize("name", ["pearson", "spearman", "hog"])
def test_rounding_makes_no_correlation_more_than_perfect(name: str) -> None:
    heatmaps = torch.rand(300, 8, 9)
    results = SIMILARITIES[name](heatmaps, heatmaps)
    assert results.max() <= 1
    torch.testing.assert_close(results, torch.ones(300), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_its_images_give(name: str) -> None:
    first, second = pictures(4, 24, 30), pictures(4, 24, 30, seed=1)
    second[2] = 0
    alone = [SIMILARITIES[name](first[i : i + 1], second[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(SIMILARITIES[name](first, second), torch.cat(alone), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["pearson", "spearman", "hog"])
def test_correlation_with_a_constant_is_zero(name: str) -> None:
    heatmaps = pictures(3, 24, 24)
    constants = torch.stack([torch.zeros(24, 24), torch.ones(24, 24), torch.full((24, 24), 0.3)]).double()
    assert SIMILARITIES[name](heatmaps, constants).tolist() == [0, 0, 0]
    assert SIMILARITIES[name](constants, heatmaps).tolist() == [0, 0, 0]
    assert SIMILARITIES[name](constants, constants).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_constant_up_to_rounding_is_constant(name: str, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    rounded = 1 + eps * torch.randint(0, 3, (2, 9, 9)).to(dtype)
    assert SIMILARITIES[name](rounded, pictures(2, 9, 9)).tolist() == [0, 0]
    assert SIMILARITIES[name](1 + 100 * (rounded - 1), 1 + 100 * (rounded - 1)).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("factors", [(1e-30, 1e-30), (1e30, 1e30), (1e30, 1e-30), (1e-43, 1.0)])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_values_may_be_as_small_or_large_as_their_type_holds(name: str, factors: tuple[float, float]) -> None:
    first, second = torch.randint(0, 11, (2, 8, 8)).float(), torch.rand(2, 8, 8)
    expected = SIMILARITIES[name](first, second)
    scaled = SIMILARITIES[name](first * factors[0], second * factors[1])
    tolerance = 1e-6 if min(factors) > 1e-40 else 0.03  # the least floats have few digits
    torch.testing.assert_close(scaled, expected, rtol=0, atol=tolerance)


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(0.01, 100), offset=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_pearson_is_blind_to_offset_and_factor_and_spearman_to_any_rising_function(
    scale: float, offset: float, seed: int
) -> None:
    first, second = pictures(2, 9, 11, seed=seed), pictures(2, 9, 11, seed=seed + 1)
    torch.testing.assert_close(pearson(scale * first + offset, second), pearson(first, second), rtol=0, atol=1e-11)
    torch.testing.assert_close(pearson(-scale * first + offset, second), -pearson(first, second), rtol=0, atol=1e-11)
    torch.testing.assert_close(spearman(first**3, second.sqrt()), spearman(first, second), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_single_precision_unless_a_heatmap_is_double(name: str) -> None:
    similarity = SIMILARITIES[name]
    first, second = pictures(2, 24, 24), pictures(2, 24, 24, seed=1)
    assert similarity(first.float(), second.float()).dtype == torch.float32
    assert similarity(first.half(), second.half()).dtype == torch.float32
    assert similarity(first.float(), second).dtype == similarity(first, second.float()).dtype == torch.float64
    assert similarity(first, second).dtype == torch.float64
    torch.testing.assert_close(
        similarity(first.float(), second.float()).double(), similarity(first, second), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_arrays_are_taken_and_heatmaps_are_left_alone(name: str) -> None:
    first, second = pictures(2, 24, 24), pictures(2, 24, 24, seed=1)
    before = first.clone(), second.clone()
    expected = SIMILARITIES[name](first, second)
    assert torch.equal(SIMILARITIES[name](first.numpy(), second.numpy()), expected)
    assert torch.equal(SIMILARITIES[name](first, second.mT.contiguous().mT), expected)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_signals_and_volumes_have_correlations_too(name: str) -> None:
    maps = pictures(2, 6, 8), pictures(2, 6, 8, seed=1)
    expected = SIMILARITIES[name](*maps)
    for shape in [(2, 48), (2, 2, 3, 8)]:
        assert torch.equal(SIMILARITIES[name](*(heatmaps.reshape(shape) for heatmaps in maps)), expected)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 1), (2, 8, 32), (2, 256)])
def test_heatmaps_of_two_shapes_are_not_compared(
    similarity: Callable[[Any, Any], Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(camlib.errors.CamlibValueError, match=r"heatmaps have shape .*; they must be \(2, 16, 16\)"):
        similarity(torch.rand(2, 16, 16), torch.rand(shape))


@pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)
def test_values_that_are_not_heatmaps_are_not_compared(similarity: Callable[[Any, Any], Tensor]) -> None:
    heatmaps = torch.rand(2, 16, 16)
    with pytest.raises(camlib.errors.CamlibTypeError, match="must be a tensor or an array, got str"):
        similarity(heatmaps, "heatmaps")
    with pytest.raises(camlib.errors.CamlibValueError, match="NaN or infinity"):
        similarity(heatmaps, heatmaps / 0)


@pytest.mark.parametrize(
    ("similarity", "shape", "message"),
    [
        (
            ssim,
            (2, 40),
            r"\(2, 40\); ssim compares heatmaps \(N, H, W\) of at least 3 x 3 pixels: camlib.resize",
        ),
        (ssim, (2, 9, 2), "at least 3 x 3"),
        (hog, (2, 2, 9, 9), r"\(2, 2, 9, 9\); hog compares heatmaps \(N, H, W\) of at least 6 x 6 pixels"),
        (hog, (2, 5, 30), "at least 6 x 6"),
    ],
)
def test_ssim_and_hog_compare_pictures_of_some_size(
    similarity: Callable[[Any, Any], Tensor], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(camlib.errors.CamlibValueError, match=message):
        similarity(torch.rand(shape), torch.rand(shape))


def test_ssim_is_for_heatmaps_in_the_unit_range() -> None:
    heatmaps = torch.rand(2, 16, 16)
    for wrong in (heatmaps - 0.5, 3 * heatmaps):
        for pair in ((heatmaps, wrong), (wrong, heatmaps)):
            with pytest.raises(camlib.errors.CamlibValueError, match=r"must be in \[0, 1\]: camlib.normalize"):
                ssim(*pair)
