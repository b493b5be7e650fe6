"""A heatmap over a picture: the blend is exact, the channels are RGB, and all types of pictures are accepted."""

from __future__ import annotations

from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import camlib
from camlib import imaging

sides = st.integers(1, 30)
sizes = st.tuples(sides, sides)


def picture(height: int = 6, width: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def heat(height: int = 6, width: int = 8, seed: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((height, width))


def jet(heatmap: NDArray[Any]) -> NDArray[np.uint8]:
    levels = np.rint(heatmap * 255).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]


def assert_blended(result: NDArray[Any], image: NDArray[Any], colors: NDArray[Any], alpha: Any) -> None:
    """(1 - alpha) image + alpha colour, within rounding to whole levels."""
    exact = (1 - alpha) * image.astype(np.float64) + alpha * colors.astype(np.float64)
    assert result.dtype == np.uint8
    assert result.shape == image.shape
    assert np.abs(result - exact).max() <= 0.5 + 1e-6


def test_pure_red_stays_red() -> None:
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 255
    for image in (red, torch.from_numpy(red).permute(2, 0, 1), Image.fromarray(red)):
        assert np.array_equal(camlib.overlay(image, np.zeros((3, 4)), alpha=0), red)


def test_hot_is_red_and_cold_is_blue() -> None:
    result = camlib.overlay(np.zeros((1, 2, 3), np.uint8), np.array([[1.0, 0.0]]), "jet", alpha=1)
    assert result.tolist() == [[[128, 0, 0], [0, 0, 128]]]


@settings(max_examples=60, deadline=None)
@given(size=sizes, alpha=st.floats(0, 1), seed=st.integers(0, 1000))
def test_blend_is_exact_to_rounding(size: tuple[int, int], alpha: float, seed: int) -> None:
    image, heatmap = picture(*size, seed), heat(*size, seed)
    assert_blended(camlib.overlay(image, heatmap, "jet", alpha), image, jet(heatmap), alpha)


@settings(max_examples=60, deadline=None)
@given(size=sizes, small=sizes, seed=st.integers(0, 1000))
def test_any_heatmap_on_any_picture(size: tuple[int, int], small: tuple[int, int], seed: int) -> None:
    image, heatmap = picture(*size, seed), heat(*small, seed)
    result = camlib.overlay(image, heatmap.astype(np.float32), "jet", alpha=1)
    assert result.shape == image.shape
    if size[0] >= small[0] and size[1] >= small[1]:
        resized = cv2.resize(heatmap, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        slack = np.abs(jet(np.clip(resized - 1e-4, 0, 1)).astype(int) - jet(np.clip(resized + 1e-4, 0, 1))).max()
        assert np.abs(result.astype(int) - jet(resized)).max() <= slack + 4  # one level of jet is 4 of a channel


def test_rounding_in_resizing_keeps_a_heatmap_in_its_range() -> None:
    heatmap = np.array([[1, 1, 1, 0]], np.float32)  # float32 interpolation to 17 x 3 makes 1.0000001 of the ones
    assert camlib.overlay(picture(17, 3), heatmap, "jet", alpha=1)[8, 0].tolist() == [128, 0, 0]
    assert imaging.overlay_signed(picture(17, 3), -heatmap).shape == (17, 3, 3)
    assert imaging.draw_boxes(picture(17, 3), heatmap).shape == (17, 3, 3)


def test_opacity_that_follows_the_heat() -> None:
    image, heatmap = picture(), heat()
    heatmap[0, 0], heatmap[5, 7] = 0, 1
    result = camlib.overlay(image, heatmap, "jet", alpha="heat")
    assert_blended(result, image, jet(heatmap), heatmap[..., None])
    assert np.array_equal(result[0, 0], image[0, 0])
    assert result[5, 7].tolist() == [128, 0, 0]


def test_signed_opacity_follows_the_magnitude() -> None:
    image = picture(1, 3)
    result = imaging.overlay_signed(image, np.array([[-1.0, 0.0, 1.0]]), alpha="heat")
    assert np.array_equal(result[0, 1], image[0, 1])
    expected = matplotlib.colormaps["coolwarm"]([0.0, 1.0], bytes=True)[:, :3].astype(int)
    assert np.abs(result[0, [0, 2]] - expected).max() <= 1


def test_signed_overlay_blends_the_signed_colours() -> None:
    image, heatmap = picture(), 2 * heat() - 1
    colors = matplotlib.colormaps["bwr"](np.rint((heatmap + 1) / 2 * 255).astype(int), bytes=True)[..., :3]
    result = imaging.overlay_signed(image, heatmap, colormap="bwr", alpha=0.25)
    exact = 0.75 * image + 0.25 * colors.astype(float)
    assert np.abs(result - exact).max() <= 0.5 + 0.25 + 1e-6  # the colour itself may be rounded otherwise
    with pytest.raises(camlib.CamlibValueError, match=r"\[-1, 1\]"):
        imaging.overlay_signed(image, heatmap * 2)


def test_another_colormap() -> None:
    image, heatmap = picture(), heat()
    colors = cv2.applyColorMap(np.rint(heatmap * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    assert_blended(camlib.overlay(image, heatmap, "viridis", 0.3), image, colors, 0.3)
    with pytest.raises(camlib.CamlibValueError, match="did you mean 'viridis'"):
        camlib.overlay(image, heatmap, "virids")


def test_defaults_are_jet_at_half_opacity() -> None:
    image, heatmap = picture(), heat()
    assert_blended(camlib.overlay(image, heatmap), image, jet(heatmap), 0.5)


def shown(image: Any) -> NDArray[np.uint8]:
    """The picture as the overlay sees it: no heat at all."""
    rgb = imaging.as_rgb(image)
    assert np.array_equal(camlib.overlay(image, np.zeros(rgb.shape[:2]), alpha=0), rgb)
    return rgb


def test_colour_pictures_of_every_type() -> None:
    rgb = picture()
    scaled = rgb / 255
    transparent = np.dstack([rgb, np.full((6, 8, 1), 7, np.uint8)])
    chw = torch.from_numpy(rgb).permute(2, 0, 1)
    for image in (
        rgb,
        scaled,
        scaled.astype(np.float32),
        transparent,
        np.asfortranarray(rgb),
        chw,
        chw / 255,
        chw.double() / 255,
        (chw.double() / 255).requires_grad_(),
        Image.fromarray(rgb),
        Image.fromarray(transparent),
    ):
        assert np.array_equal(shown(image), rgb)


def test_gray_pictures_of_every_type() -> None:
    grey = picture()[..., 0]
    expected = np.stack([grey] * 3, -1)
    tensor = torch.from_numpy(grey)
    for image in (
        grey,
        grey[..., None],
        grey / 255,
        tensor,
        tensor[None],
        tensor[None] / 255,
        Image.fromarray(grey),
        Image.merge("LA", [Image.fromarray(grey)] * 2),
    ):
        assert np.array_equal(shown(image), expected)


def test_palette_and_bilevel_pictures() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert shown(palette).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert shown(bilevel).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_half_precision_pictures_are_close() -> None:
    chw = torch.from_numpy(picture()).permute(2, 0, 1)
    for dtype, levels in ((torch.float16, 0), (torch.bfloat16, 1)):
        assert np.abs(shown((chw / 255).to(dtype)).astype(int) - picture()).max() <= levels


def test_a_batch_equals_its_pictures() -> None:
    images, heatmaps = np.stack([picture(seed=i) for i in range(3)]), np.stack([heat(3, 4, i) for i in range(3)])
    each = np.stack([camlib.overlay(images[i], heatmaps[i]) for i in range(3)])
    chw = torch.from_numpy(images).permute(0, 3, 1, 2)
    for batch in (images, images / 255, chw, chw / 255, list(images), tuple(chw), [Image.fromarray(i) for i in images]):
        for kind in (heatmaps, torch.from_numpy(heatmaps)):
            assert np.array_equal(camlib.overlay(batch, kind), each)
    assert camlib.overlay(images[:1], heatmaps[:1]).shape == (1, 6, 8, 3)
    assert camlib.overlay([images[0]], heatmaps[:1]).shape == (1, 6, 8, 3)


def test_lists_may_mix_types_of_pictures() -> None:
    mixed = [picture(), torch.from_numpy(picture()).permute(2, 0, 1), Image.fromarray(picture()), picture() / 255]
    result = camlib.overlay(mixed, np.stack([heat()] * 4))
    assert all(np.array_equal(one, result[0]) for one in result)


def test_pictures_and_heatmaps_stay_unchanged() -> None:
    image, heatmap = picture(), heat()
    before = image.copy(), heatmap.copy()
    camlib.overlay(image, heatmap)[:] = 0
    camlib.overlay(image, heatmap, alpha=0)[:] = 0
    assert np.array_equal(image, before[0])
    assert np.array_equal(heatmap, before[1])
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    camlib.overlay(tensor, heatmap, alpha=0)[:] = 0
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), before[0])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (picture().astype(float), camlib.CamlibValueError, r"lies in \[0, 1\], got \[0, 249\]; .*divide by 255"),
        (torch.randn(3, 6, 8), camlib.CamlibValueError, r"\[0, 1\], got \[-.*undo mean"),
        (np.full((6, 8, 3), np.nan), camlib.CamlibValueError, r"\[nan, nan\]"),
        (picture().astype(np.int64), camlib.CamlibTypeError, "uint8, or floating point .* got dtype int64"),
        (picture() > 3, camlib.CamlibTypeError, "dtype bool"),
        (torch.zeros(6, 8, 3, dtype=torch.uint8), camlib.CamlibValueError, r"channels-first.*got \(6, 8, 3\)"),
        (torch.zeros(4, 6, 8), camlib.CamlibValueError, r"got \(4, 6, 8\)"),
        (np.zeros((3, 6, 8)), camlib.CamlibValueError, r"\(H, W, 4\), got \(3, 6, 8\)"),
        (np.zeros(6), camlib.CamlibValueError, r"got \(6,\)"),
        (np.zeros((0, 8, 3), np.uint8), camlib.CamlibValueError, r"got \(0, 8, 3\)"),
        ("cat.png", camlib.CamlibTypeError, "PIL image, an array .* got str"),
        (None, camlib.CamlibTypeError, "got NoneType"),
        ([3, 4], camlib.CamlibTypeError, "got int"),
        (Image.new("I", (8, 6)), camlib.CamlibTypeError, "mode I has no standard range"),
        (Image.new("F", (8, 6)), camlib.CamlibTypeError, "mode F has no standard range"),
        (Image.new("I;16", (8, 6)), camlib.CamlibTypeError, "mode I;16 has no standard range"),
    ],
)
def test_other_types_and_shapes_of_pictures_are_errors(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        camlib.overlay(image, np.stack([heat()] * 2) if isinstance(image, list) else heat())


@pytest.mark.parametrize(
    ("pictures", "heatmaps"), [(None, 1), (None, 2), (1, None), (2, None), (2, 1), (2, 3), (1, 2), (0, None)]
)
def test_one_heatmap_for_each_picture(pictures: int | None, heatmaps: int | None) -> None:
    """No broadcasting: a count of None is a single one without a batch axis."""
    image = picture() if pictures is None else [picture()] * pictures
    heatmap = heat() if heatmaps is None else np.stack([heat()] * heatmaps)
    with pytest.raises(
        camlib.CamlibValueError, match="heatmaps, .* got " + str(heatmap.shape)[:-1].replace("(", r"\(")
    ):
        camlib.overlay(image, heatmap)


def test_pictures_of_a_batch_have_one_size() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"\(5, 8, 3\), \(6, 8, 3\).*one by one"):
        camlib.overlay([picture(), picture(5)], np.stack([heat()] * 2))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, 255, float("nan"), float("inf")])
def test_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(camlib.CamlibValueError, match=rf'alpha must be "heat" or a number in \[0, 1\], got {alpha}'):
        camlib.overlay(picture(), heat(), alpha=alpha)


@pytest.mark.parametrize("alpha", [True, None, "hot", "0.5", [0.5]])
def test_alpha_of_another_type_is_an_error(alpha: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r'alpha must be "heat" or a number in \[0, 1\]') as error:
        camlib.overlay(picture(), heat(), alpha=alpha)
    assert repr(alpha) in str(error.value)


def test_heatmap_out_of_range() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"\[0, 1\], got \[-1, .*normalize"):
        camlib.overlay(picture(), np.array([[-1.0, 0.5]]))
    with pytest.raises(camlib.CamlibValueError, match="NaN"):
        camlib.overlay(picture(), np.array([[np.nan, 0.5]]))
    with pytest.raises(camlib.CamlibTypeError, match="got list"):
        camlib.overlay(picture(), [[0.5]])


def test_a_single_picture_is_a_list_of_one() -> None:
    assert [p.shape for p in imaging.as_pictures(picture())] == [(6, 8, 3)]
    assert [p.shape for p in imaging.as_pictures([picture(), picture(2, 3)])] == [(6, 8, 3), (2, 3, 3)]
