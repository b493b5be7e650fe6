"""The result of a call: its heatmaps and figures, and that moving, joining, saving and indexing lose nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import camlib
from camlib import Explanation
from camlib.methods.fusion import fuse

SIZE = (12, 16)
SIZES = {1: (40,), 2: SIZE, 3: (6, 12, 16)}


def explain(maps: Tensor, dims: int = 2, **changes: Any) -> Explanation:
    """An explanation built by hand: the maps are all that matters, unless a test says otherwise."""
    rows = maps.shape[:-dims]
    fields: dict[str, Any] = {
        "maps": maps,
        "scores": torch.arange(1.0, 1 + rows.numel()).reshape(rows),
        "outputs": torch.arange(5.0 * rows[0]).reshape(-1, 5),
        "target": torch.arange(rows.numel()).reshape(rows),
        "method": "grad_cam",
        "layer": "features.3",
        "input_size": SIZES[dims],
    }
    return Explanation(**fields | changes)


def strided_cnn(classes: int = 5) -> nn.Sequential:
    """Maps of 6 x 8 (layer 1) and 3 x 4 (layer 3) for images of 12 x 16."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    ).eval()


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


def stretched(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """OpenCV's bilinear, then min-max, in double precision."""
    resized = cv2.resize(values.astype(np.float64), size[::-1], interpolation=cv2.INTER_LINEAR)
    return (resized - resized.min()) / np.ptp(resized)


def jet_over(image: NDArray[np.uint8], heatmap: NDArray[Any], alpha: float = 0.5) -> NDArray[Any]:
    colors = cv2.applyColorMap(np.rint(heatmap * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return (1 - alpha) * image + alpha * colors


def tensors_of(explanation: Explanation) -> dict[str, Any]:
    fields = {field.name: getattr(explanation, field.name) for field in dataclasses.fields(explanation)}
    return fields | {f"layers/{name}": maps for name, maps in fields.pop("layers").items()}


def assert_same(one: Explanation, other: Explanation) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


# Heatmaps


def test_maps_are_resized_before_normalisation() -> None:
    """3 x 3 to 4 x 4: no pixel lies on the hot centre, so that normalising first would end at 0.39."""
    maps = torch.zeros(1, 3, 3)
    maps[0, 1, 1] = 7
    expected = torch.zeros(1, 4, 4)
    expected[0, 1:3, 1:3] = 1
    torch.testing.assert_close(explain(maps).heatmaps((4, 4)), expected)


@pytest.mark.parametrize("size", [None, (12, 16), (30, 20), (3, 5)])
def test_heatmaps_equal_opencvs(size: tuple[int, int] | None) -> None:
    maps = torch.rand(2, 3, 5)
    heatmaps = explain(maps).heatmaps(size)
    assert heatmaps.shape == (2, *(size or SIZE))
    for one, other in zip(heatmaps, maps, strict=True):
        np.testing.assert_allclose(one.numpy(), stretched(other.numpy(), size or SIZE), atol=1e-5)


def test_a_call_gives_heatmaps_at_the_inputs_resolution() -> None:
    images = torch.rand(2, 3, *SIZE)
    model = strided_cnn()
    model[6].weight.data.abs_()  # or there might be no positive evidence
    explanation = camlib.GradCAM(model, "3")(images)
    assert explanation.maps.shape == (2, 3, 4)
    assert explanation.input_size == SIZE
    heatmaps = explanation.heatmaps()
    assert heatmaps.shape == (2, *SIZE)
    assert heatmaps.amax((-2, -1)).tolist() == [1, 1]
    for one, other in zip(heatmaps, explanation.maps, strict=True):
        np.testing.assert_allclose(one.numpy(), stretched(other.numpy(), SIZE), atol=1e-5)


def test_each_image_and_class_is_normalised_separately() -> None:
    maps = torch.rand(2, 3, 4, 5) * torch.tensor([1e-9, 1, 1e9])[:, None, None]
    heatmaps = explain(maps).heatmaps()
    assert heatmaps.shape == (2, 3, *SIZE)
    assert (heatmaps.amin((-2, -1)) == 0).all()
    assert (heatmaps.amax((-2, -1)) == 1).all()
    for n in range(2):
        for k in range(3):
            np.testing.assert_allclose(heatmaps[n, k].numpy(), stretched(maps[n, k].numpy(), SIZE), atol=1e-5)


def test_a_class_axis_is_recognised() -> None:
    assert explain(torch.rand(2, 3, 4, 5)).has_class_axis
    assert not explain(torch.rand(2, 4, 5)).has_class_axis


@pytest.mark.parametrize("normalize", ["minmax", "max", "percentile"])
def test_degenerate_maps_have_empty_heatmaps(normalize: str) -> None:
    shape = torch.rand(4, 5)
    maps = torch.stack(
        [
            torch.zeros(4, 5),
            torch.full((4, 5), 3.0),
            torch.full((4, 5), -3.0),
            -shape - 0.1,
            -shape.clamp(min=0.5) + 0.5,  # nowhere above zero
            3.0 + shape * 2**-21,  # nothing but rounding
            shape * 1e-38,  # small, but a shape it has
            shape - 0.5,
        ]
    )
    explanation = explain(maps)
    degenerate = [True] * 6 + [False] * 2
    assert explanation.degenerate.tolist() == degenerate
    assert explanation.heatmaps(normalize=normalize).flatten(1).any(1).logical_not().tolist() == degenerate
    by_class = explain(maps.view(4, 2, 4, 5))
    assert by_class.degenerate.tolist() == explanation.degenerate.view(4, 2).tolist()
    assert torch.equal(by_class.heatmaps(normalize=normalize).flatten(0, 1), explanation.heatmaps(normalize=normalize))


def test_signed_heatmaps_keep_negative_values() -> None:
    maps = torch.tensor([[[-4.0, 2.0]], [[-4.0, -2.0]], [[-4.0, -4.0]]])
    heatmaps = explain(maps).heatmaps((1, 2), "signed")
    assert heatmaps.tolist() == [[[-1.0, 0.5]], [[-1.0, -0.5]], [[0.0, 0.0]]]


def test_none_only_resizes() -> None:
    maps = torch.tensor([[[-4.0, 2.0]], [[5.0, 5.0]]])
    assert explain(maps).heatmaps((1, 4), "none").tolist() == [[[-4.0, -2.5, 0.5, 2.0]], [[5.0, 5.0, 5.0, 5.0]]]


def test_without_a_picture_a_size_is_needed() -> None:
    explanation = explain(torch.rand(1, 2, 3), input_size=None)
    with pytest.raises(camlib.CamlibValueError, match=r"give size=\(height, width\)"):
        explanation.heatmaps()
    assert explanation.heatmaps((4, 6)).shape == (1, 4, 6)


def test_wrong_sizes_and_methods_are_errors() -> None:
    explanation = explain(torch.rand(1, 2, 3))
    for size in ((), 0, (0, 0), 5, (4,)):
        with pytest.raises(camlib.CamlibValueError, match="two positive integers"):
            explanation.heatmaps(size)
    with pytest.raises(camlib.CamlibValueError, match="got 'sum'"):
        explanation.heatmaps(normalize="sum")


def test_heatmaps_leave_the_maps_unchanged() -> None:
    maps = torch.rand(2, 3, 4)
    before = maps.clone()
    explain(maps).heatmaps().zero_()
    explain(maps).degenerate  # noqa: B018
    assert torch.equal(maps, before)


# Overlays


def test_overlays_are_the_heatmaps_over_the_images() -> None:
    maps = torch.rand(2, 3, 5, dtype=torch.float64)
    images = pictures(size=(20, 30))
    overlays = explain(maps).overlays(images, "jet")
    assert overlays.shape == (2, 20, 30, 3)
    assert overlays.dtype == np.uint8
    for n in range(2):
        assert np.abs(overlays[n] - jet_over(images[n], stretched(maps[n].numpy(), (20, 30)))).max() <= 3
    heatmaps = explain(maps).heatmaps((20, 30))
    assert np.array_equal(overlays, camlib.overlay(images, heatmaps, "jet"))


def test_overlays_of_several_classes() -> None:
    explanation = explain(torch.rand(2, 3, 4, 5))
    images = pictures()
    overlays = explanation.overlays(images, "viridis", 0.3)
    assert overlays.shape == (2, 3, *SIZE, 3)
    for n in range(2):
        for k in range(3):
            expected = camlib.overlay(images[n], explanation.heatmaps()[n, k], "viridis", 0.3)
            assert np.array_equal(overlays[n, k], expected)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5)])
def test_overlays_take_every_kind_of_picture(shape: tuple[int, ...]) -> None:
    explanation = explain(torch.rand(shape))
    images = pictures()
    expected = explanation.overlays(images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    for batch in (list(images), tensor, tensor / 255, images / 255):
        assert np.array_equal(explanation.overlays(batch), expected)
    alone = [one.overlays(image)[0] for one, image in zip(explanation, images, strict=True)]
    assert np.array_equal(np.stack(alone), expected)


def test_heat_alpha_and_no_heat_at_all() -> None:
    images = pictures()
    assert np.array_equal(explain(torch.zeros(2, 4, 5)).overlays(images, alpha="heat"), images)


def test_images_of_different_sizes_go_one_by_one() -> None:
    explanation = explain(torch.rand(2, 4, 5))
    images = [pictures(1)[0], pictures(1, (5, 6))[0]]
    with pytest.raises(camlib.CamlibValueError, match=r"\[\(5, 6\), \(12, 16\)\].*for e, image in zip"):
        explanation.overlays(images)
    assert [e.overlays(image).shape for e, image in zip(explanation, images, strict=True)] == [
        (1, 12, 16, 3),
        (1, 5, 6, 3),
    ]


def test_as_many_pictures_as_images() -> None:
    explanation = explain(torch.rand(2, 4, 5))
    for images, count in ((pictures(3), 3), (pictures(1), 1), (pictures(1)[0], 1), ([], 0)):
        for draw in (explanation.overlays, explanation.plot):
            with pytest.raises(camlib.CamlibValueError, match=f"2 explained images need as many pictures, got {count}"):
                draw(images)
    for draw in (explanation[0:0].overlays, explanation[0:0].plot):
        with pytest.raises(camlib.CamlibValueError, match="nothing to draw"):
            draw([])


# Figures


def drawn(axes: Any) -> NDArray[Any]:
    return np.asarray(axes.images[0].get_array())


def test_figure_has_three_pictures_to_a_row_and_a_colour_bar() -> None:
    explanation = explain(torch.rand(2, 4, 5))
    images = pictures()
    figure = explanation.plot(images, colormap="jet")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 * 3 + 1
    heatmaps, overlays = explanation.heatmaps(), explanation.overlays(images, "jet")
    for n in range(2):
        original, heatmap, overlay = figure.axes[3 * n : 3 * n + 3]
        assert np.array_equal(drawn(original), images[n])
        assert np.array_equal(drawn(heatmap), heatmaps[n].numpy())
        assert np.array_equal(drawn(overlay), overlays[n])
        assert heatmap.images[0].get_clim() == (0, 1)
    figure.savefig(io.BytesIO(), format="png")
    red, _, blue, _ = figure.axes[1].images[0].cmap([0.0, 1.0], bytes=True).T
    assert (red.tolist(), blue.tolist()) == ([0, 128], [128, 0])


def test_figure_has_a_row_for_each_image_and_class() -> None:
    explanation = explain(torch.rand(2, 3, 4, 5))
    figure = explanation.plot(pictures(), alpha=0.3, colormap="viridis")
    assert len(figure.axes) == 6 * 3 + 1
    overlays = explanation.overlays(pictures(), "viridis", 0.3)
    assert all(np.array_equal(drawn(figure.axes[3 * row + 2]), overlays[row // 3, row % 3]) for row in range(6))


def titles(figure: Figure, column: int) -> list[str]:
    return [axes.get_title("left") or axes.get_title() for axes in figure.axes[column:-1:3]]


def test_titles_name_class_and_score() -> None:
    explanation = explain(torch.rand(2, 2, 4, 5), target=torch.tensor([[0, 2], [1, 0]]))
    assert titles(explanation.plot(pictures()), 0) == [
        "class 0: score 1.00",
        "class 2: score 2.00",
        "class 1: score 3.00",
        "class 0: score 4.00",
    ]
    named = titles(explanation.plot(pictures(), ["cat", "dog", "cow"]), 0)
    assert [title.split(":")[0] for title in named] == ["cat", "cow", "dog", "cat"]
    assert titles(explain(torch.rand(2, 4, 5), target="margin").plot(pictures()), 0) == ["margin: 1.00", "margin: 2.00"]


def test_rows_take_the_titles_that_are_given() -> None:
    explanation = explain(torch.rand(2, 4, 5))
    assert titles(explanation.plot(pictures(), titles=["a cat", "no cat"]), 0) == ["a cat", "no cat"]
    with pytest.raises(camlib.CamlibValueError, match="2 rows need as many titles, got 1"):
        explanation.plot(pictures(), titles=["a cat"])


def test_a_figure_marks_degenerate_maps() -> None:
    maps = torch.stack([torch.zeros(4, 5), torch.rand(4, 5)])
    assert titles(explain(maps).plot(pictures()), 1) == ["nothing stands out", "heatmap"]


def test_colour_bar_names_method_and_layer() -> None:
    label = explain(torch.rand(1, 4, 5)).plot(pictures(1)).axes[-1].get_ylabel()
    assert "grad_cam at features.3" in label
    assert "[0, 1]" in label


def test_every_explained_class_needs_a_name() -> None:
    explanation = explain(torch.rand(2, 4, 5), target=torch.tensor([0, 2]))
    with pytest.raises(camlib.CamlibValueError, match="class_names has 2 names, but class 2 was explained"):
        explanation.plot(pictures(), ["cat", "dog"])
    with pytest.raises(camlib.CamlibTypeError, match="class_names must be a list of names"):
        explanation.plot(pictures(), "cat")


def test_images_of_different_sizes_share_a_figure() -> None:
    figure = explain(torch.rand(2, 4, 5)).plot([pictures(1)[0], pictures(1, (5, 6))[0]])
    assert [drawn(axes).shape[:2] for axes in figure.axes[:6]] == [(12, 16)] * 3 + [(5, 6)] * 3


@pytest.mark.slow
def test_a_figure_does_not_touch_pyplot() -> None:
    before, backend = plt.get_fignums(), plt.get_backend()
    explain(torch.rand(1, 4, 5)).plot(pictures(1))
    assert plt.get_fignums() == before
    assert plt.get_backend() == backend


# Figures in the caller's axes


def test_overlays_are_drawn_into_as_many_axes_and_nothing_else() -> None:
    explanation = explain(torch.rand(2, 3, 4, 5))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(2, 4)
    assert explanation.plot(pictures(), axes=axes[:, 1:], alpha=0.3) is figure
    overlays = explanation.overlays(pictures(), alpha=0.3)
    for n, k in np.ndindex(2, 3):
        ax = axes[n, 1 + k]
        assert np.array_equal(drawn(ax), overlays[n, k])
        assert ax.get_title("left") == f"class {3 * n + k}: score {3 * n + k + 1:.2f}"
    assert not any(ax.images or ax.get_title("left") for ax in axes[:, 0])
    assert len(figure.axes) == 9
    assert "grad_cam at features.3" in figure.axes[-1].get_ylabel()
    assert figure.get_size_inches().tolist() == [9, 4]
    figure.savefig(io.BytesIO(), format="png")


def test_one_axes_takes_the_overlay_of_one_image() -> None:
    figure, explanation = Figure(), explain(torch.rand(1, 4, 5))
    left, right = figure.subplots(1, 2)
    assert explanation.plot(pictures(1), axes=right, titles=["a cat"]) is figure
    assert np.array_equal(drawn(right), explanation.overlays(pictures(1))[0])
    assert right.get_title("left") == "a cat"
    assert not left.images


DIMS = {2: (2, 3), 1: (2, 1), 3: (4, 6)}
"""Lines and columns of the figure of two images, by the number of grid axes."""


@pytest.mark.parametrize("form", [np.asarray, np.ravel, list, lambda axes: [list(line) for line in axes]])
@pytest.mark.parametrize("dims", DIMS)
def test_the_whole_figure_fits_into_axes_of_a_subfigure(dims: int, form: Callable[[Any], Any]) -> None:
    images = {1: signals, 2: pictures, 3: clips}[dims]()
    explanation = explain(torch.rand(2, *(2, 4, 5)[-dims:]), dims)
    expected = explanation.plot(images).axes
    figure = Figure(layout="constrained")
    subfigure = figure.subfigures(1, 2)[1]
    axes = subfigure.subplots(*DIMS[dims], squeeze=False)
    assert explanation.plot(images, axes=form(axes)) is figure
    assert len(subfigure.axes) == len(expected) == axes.size + 1
    assert subfigure.axes[-1].get_ylabel() == expected[-1].get_ylabel()
    for ax, other in zip(axes.flat, expected, strict=False):
        assert np.array_equal(drawn(ax), drawn(other))
        assert [line.get_ydata().tolist() for line in ax.lines] == [line.get_ydata().tolist() for line in other.lines]
        assert ax.get_title("left") == other.get_title("left")
        assert ax.get_title() == other.get_title()
    figure.savefig(io.BytesIO(), format="png")


def test_axes_that_cannot_hold_the_figure_are_refused_and_left_as_they_were() -> None:
    explanation, figure = explain(torch.rand(2, 4, 5)), Figure()
    axes = figure.subplots(2, 3)
    removed = Figure().subplots()
    removed.remove()
    values: dict[str, Any] = {
        "needs 2 for the overlays alone, or 6 axes, 2 lines of 3, got 1": axes[0, 0],
        "needs 2 for the overlays alone, or 6 axes, 2 lines of 3, got 3": axes[0],
        "one of them is given twice": [axes[0, 0], axes[0, 0]],
        "of one figure or subfigure, got those of 2": [axes[0, 0], Figure().subplots()],
        "axes are empty": [],
        "a projection 'polar'": [axes[0, 0], figure.add_subplot(projection="polar")],
        "a projection '3d'": [axes[0, 0], figure.add_subplot(projection="3d")],
        "removed from its figure": [axes[0, 0], removed],
    }
    for message, unfit in values.items():
        with pytest.raises(camlib.CamlibValueError, match=message):
            explanation.plot(pictures(), axes=unfit)
    for wrong, name in ((figure, "Figure"), (3, "3"), ("ax", "ax"), ([figure, figure], "Figure"), (torch.zeros(2), "")):
        with pytest.raises(camlib.CamlibTypeError, match=rf"an Axes of matplotlib, or an array or a list .*{name}"):
            explanation.plot(pictures(), axes=wrong)
    with pytest.raises(camlib.CamlibValueError, match=r"2 maps of clips needs 24 axes, 4 lines of 6, got 2"):
        explain(torch.rand(2, 2, 4, 5), 3).plot(clips(), axes=axes[0, :2])
    for option in ({"columns": 2}, {"figsize": (3, 3)}):
        with pytest.raises(camlib.CamlibValueError, match="leave out columns= and figsize="):
            explanation.plot(pictures(), axes=axes, **option)
    assert not any(ax.images for ax in figure.axes)


def test_plot_leaves_the_images_unchanged() -> None:
    images = pictures()
    before = images.copy()
    explain(torch.rand(2, 4, 5)).plot(images)
    explain(torch.rand(2, 4, 5)).overlays(images)[:] = 0
    assert np.array_equal(images, before)


# Devices and types


def nested() -> Explanation:
    outputs = OrderedDict(logits=torch.rand(2, 5), extra=[(torch.rand(2), "text"), torch.tensor([300, 7])])
    return explain(torch.rand(2, 4, 5), outputs=outputs, layers={"a": torch.rand(2, 4, 5), "b": torch.rand(2, 2, 2)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_casting_keeps_indices(dtype: torch.dtype) -> None:
    """Neither 16-bit type has 2049, nor bfloat16 257."""
    explanation = dataclasses.replace(nested(), target=torch.tensor([257, 2049]))
    cast = explanation.to(dtype)
    assert cast.target.dtype == torch.int64
    assert cast.target.tolist() == [257, 2049]
    assert cast.outputs["extra"][1].tolist() == [300, 7]
    for tensor in (cast.maps, cast.scores, cast.outputs["logits"], cast.outputs["extra"][0][0], *cast.layers.values()):
        assert tensor.dtype == dtype
    assert torch.equal(cast.maps, explanation.maps.to(dtype))
    assert cast.outputs["extra"][0][1] == "text"
    assert isinstance(cast.outputs, OrderedDict)
    assert explanation.maps.dtype == torch.float32


def test_every_tensor_moves() -> None:
    moved = dataclasses.replace(nested(), target=torch.tensor([3, 4])).to("meta")
    extra = moved.outputs["extra"]
    for tensor in (moved.maps, moved.scores, moved.target, moved.outputs["logits"], extra[0][0], extra[1]):
        assert tensor.device.type == "meta"
    assert all(maps.device.type == "meta" for maps in moved.layers.values())
    both = nested().to("meta", torch.float64)
    assert (both.maps.dtype, both.target.dtype) == (torch.float64, torch.int64)
    assert both.target.device.type == "meta"


def test_cpu_and_numpy() -> None:
    explanation = explain(torch.rand(2, 4, 5, dtype=torch.float64))
    assert_same(explanation.cpu(), explanation)
    array = explanation.numpy()
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    assert array.tolist() == explanation.maps.tolist()
    assert explanation.to(torch.bfloat16).numpy().tolist() == explanation.maps.bfloat16().tolist()


def test_target_by_name_stays_a_name() -> None:
    assert explain(torch.rand(2, 4, 5), target="margin").to(torch.float64).target == "margin"


# Joining


@pytest.mark.parametrize("target", [None, 2, camlib.TopK(2), lambda out: out[:, 1] - out[:, 0]])
@pytest.mark.parametrize("layer", ["3", ["1", "3"]])
def test_joined_calls_equal_one_call(target: Any, layer: Any) -> None:
    cam = camlib.GradCAM(strided_cnn().double(), layer, relu=False)
    images = torch.rand(5, 3, *SIZE, dtype=torch.float64)
    joined = Explanation.cat([cam(images[:2], target), cam(images[2:3], target), cam(images[3:], target)])
    whole = cam(images, target)
    first, second = tensors_of(joined), tensors_of(whole)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-12)
        else:
            assert value == second[name]


def test_one_explanation_joined_is_itself() -> None:
    explanation = explain(torch.rand(2, 4, 5), layers={"a": torch.rand(2, 3, 3)})
    assert_same(Explanation.cat([explanation]), explanation)


def test_outputs_other_than_tensors_are_not_joined() -> None:
    assert Explanation.cat([nested(), nested()]).outputs is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("method", explain(torch.rand(2, 4, 5), method="layer_cam")),
        ("layer", explain(torch.rand(2, 4, 5), layer="features.2")),
        ("input_size", explain(torch.rand(2, 4, 5), input_size=(16, 12))),
        ("input_size", explain(torch.rand(2, 4, 5), input_size=None)),
        ("has_class_axis", explain(torch.rand(2, 3, 4, 5))),
        ("map shape", explain(torch.rand(2, 5, 4))),
        ("target", explain(torch.rand(2, 4, 5), target="margin")),
        ("class_agnostic", explain(torch.rand(2, 4, 5), class_agnostic=True)),
        ("output shape", explain(torch.rand(2, 4, 5), outputs=torch.rand(2, 6))),
        ("output shape", explain(torch.rand(2, 4, 5), outputs=None)),
        ("layers", explain(torch.rand(2, 4, 5), layers={"a": torch.rand(2, 3, 3)})),
    ],
)
def test_different_explanations_are_not_joined(name: str, other: Explanation) -> None:
    here = explain(torch.rand(2, 4, 5))
    for pair in ([here, other], [other, here], [here, here, other]):
        with pytest.raises(camlib.CamlibValueError, match=f"explanations differ in {name}: .* and "):
            Explanation.cat(pair)


def test_other_numbers_of_classes_and_other_targets_are_not_joined() -> None:
    with pytest.raises(camlib.CamlibValueError, match="map shape"):
        Explanation.cat([explain(torch.rand(2, 3, 4, 5)), explain(torch.rand(2, 2, 4, 5))])
    with pytest.raises(camlib.CamlibValueError, match="target: 'margin' and 'sum'"):
        Explanation.cat([explain(torch.rand(2, 4, 5), target=name) for name in ("margin", "sum")])
    with pytest.raises(camlib.CamlibValueError, match="nothing to join"):
        Explanation.cat([])


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize(
    "changes", [{}, {"target": "margin"}, {"input_size": None}, {"layer": "größe + b/c"}, {"class_agnostic": True}]
)
def test_what_is_saved_is_what_is_loaded(
    dtype: torch.dtype, shape: tuple[int, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    layers = {"größe": torch.rand(2, 3, 3), "b/c": torch.rand(2, 5, 5), "": torch.rand(2, 1, 1)}
    explanation = explain(torch.randn(shape), layers=layers, **changes).to(dtype)
    explanation.save(tmp_path / "explanation.npz")
    assert_same(Explanation.load(tmp_path / "explanation.npz"), explanation)
    assert_same(Explanation.load(str(tmp_path / "explanation.npz")), explanation)


def test_a_calls_result_survives_a_file(tmp_path: Path) -> None:
    explanation = camlib.GradCAM(strided_cnn(), ["1", "3"])(torch.rand(3, 3, *SIZE), camlib.TopK(2))
    explanation.save(tmp_path / "a")  # the name is taken as it is
    loaded = Explanation.load(tmp_path / "a")
    assert_same(loaded, explanation)
    assert torch.equal(loaded.heatmaps(), explanation.heatmaps())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("outputs", [None, {"logits": torch.rand(2, 5)}, [torch.rand(2)], "text"])
def test_outputs_are_saved_only_if_a_tensor(outputs: Any, tmp_path: Path) -> None:
    explanation = explain(torch.rand(2, 4, 5), outputs=outputs)
    explanation.save(tmp_path / "a.npz")
    loaded = Explanation.load(tmp_path / "a.npz")
    assert loaded.outputs is None
    assert_same(loaded, dataclasses.replace(explanation, outputs=None))


def test_files_hold_no_pickle(tmp_path: Path) -> None:
    nested().save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert {"maps", "scores", "target", "layers/a", "layers/b"} <= set(file.files)
        assert all(file[name].dtype != object for name in file.files)


class Bomb:
    """Pickled, it would set ``exploded`` when loaded."""

    exploded = False

    def __reduce__(self) -> tuple[Callable[..., None], tuple[type, str, bool]]:
        return setattr, (Bomb, "exploded", True)


def text(path: Path) -> None:
    path.write_text("no explanation at all\n" * 50)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def other_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.arange(3))


def zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header", "x")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["header"]))
        header = change(header) or header
        with path.open("wb") as file:
            np.savez(file, **arrays | {"header": np.array(json.dumps(header))})

    return rewrite


def pickled_array(name: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        with path.open("wb") as file:
            np.savez(file, **arrays | {name: np.array([Bomb()], dtype=object)})

    return rewrite


DAMAGE = {
    "text": text,
    "empty": empty,
    "a pickle": bare_pickle,
    "an array": array,
    "another npz": other_npz,
    "a zip": zip_of_text,
    "truncated": truncated,
    "half": cut_in_half,
    "pickled maps": pickled_array("maps"),
    "pickled header": pickled_array("header"),
    "list for a header": with_header(lambda header: ["maps"]),
    "empty header": with_header(lambda header: {"dtypes": {}}),
    "no tensors": with_header(lambda header: {**header, "dtypes": {}}),
    "no method": with_header(lambda header: {key: value for key, value in header.items() if key != "method"}),
    "no target": with_header(lambda header: {**header, "dtypes": {"maps": "float32", "scores": "float32"}}),
    "unknown dtype": with_header(lambda header: {**header, "dtypes": {"maps": "float31"}}),
    "no dtype": with_header(lambda header: {**header, "dtypes": {"maps": "load"}}),
    "tomorrow's format": with_header(lambda header: {**header, "format": 2}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_other_and_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    explain(torch.rand(2, 4, 5)).save(path)
    DAMAGE[damage](path)
    with pytest.raises(camlib.CamlibValueError, match="a.npz is not an explanation that camlib saved"):
        Explanation.load(path)
    assert not Bomb.exploded


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_is_harmless_or_refused(place: float, flip: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    explanation = explain(torch.linspace(0, 1, 40).reshape(2, 4, 5))
    explanation.save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= flip
    path.write_bytes(content)
    try:
        loaded = Explanation.load(path)
    except camlib.CamlibValueError:
        return
    assert torch.equal(loaded.maps, explanation.maps)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Explanation.load(tmp_path / "nothing.npz")


# Images


def test_indexing_keeps_the_batch_axis() -> None:
    explanation = explain(torch.rand(4, 3, 5), layers={"a": torch.rand(4, 2, 2)})
    one = explanation[1]
    assert_same(one, explanation[1:2])
    assert torch.equal(one.maps, explanation.maps[1:2])
    assert torch.equal(one.scores, explanation.scores[1:2])
    assert torch.equal(one.outputs, explanation.outputs[1:2])
    assert torch.equal(one.target, explanation.target[1:2])
    assert torch.equal(one.layers["a"], explanation.layers["a"][1:2])
    assert (one.method, one.layer, one.input_size) == ("grad_cam", "features.3", SIZE)
    assert explain(torch.rand(4, 3, 5), class_agnostic=True)[1].class_agnostic


@pytest.mark.parametrize("index", [-1, -4, 0, 3])
def test_negative_indices_count_from_the_end(index: int) -> None:
    explanation = explain(torch.rand(4, 3, 5))
    assert torch.equal(explanation[index].maps[0], explanation.maps[index])
    assert len(explanation[index]) == 1


@pytest.mark.parametrize(
    "index", [slice(1, 3), slice(None), slice(-2, None), slice(0, 4, 2), slice(2, 2), slice(1, 99)]
)
def test_slices(index: slice) -> None:
    explanation = explain(torch.rand(4, 2, 3, 5))
    some = explanation[index]
    assert torch.equal(some.maps, explanation.maps[index])
    assert torch.equal(some.target, explanation.target[index])
    assert len(some) == len(range(4)[index])


def test_indexing_reaches_nested_outputs() -> None:
    explanation = nested()
    one = explanation[1]
    assert torch.equal(one.outputs["logits"], explanation.outputs["logits"][1:])
    assert torch.equal(one.outputs["extra"][0][0], explanation.outputs["extra"][0][0][1:])
    assert one.outputs["extra"][0][1] == "text"


@pytest.mark.parametrize("index", [4, -5, 100])
def test_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match=f"image {index} of 4"):
        explain(torch.rand(4, 3, 5))[index]


@pytest.mark.parametrize("index", ["0", 1.0, None, (0, 1), [0, 1]])
def test_index_of_another_type(index: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=f"an int or a slice, got {type(index).__name__}"):
        explain(torch.rand(4, 3, 5))[index]


def test_iteration_is_by_image() -> None:
    explanation = explain(torch.rand(3, 2, 4, 5))
    assert len(explanation) == 3
    parts = list(explanation)
    assert [len(part) for part in parts] == [1, 1, 1]
    assert_same(Explanation.cat(parts), explanation)


def test_repr_says_what_was_explained() -> None:
    assert repr(explain(torch.rand(2, 4, 5))) == (
        "Explanation(grad_cam at 'features.3': maps (2, 4, 5) torch.float32 for inputs of 12 x 16, target [0, 1])"
    )
    assert "inputs of ?, target margin" in repr(explain(torch.rand(2, 4, 5), input_size=None, target="margin"))
    assert len(repr(explain(torch.rand(500, 4, 5)))) < 200


def test_fields_are_frozen() -> None:
    explanation = explain(torch.rand(2, 4, 5))
    for field in dataclasses.fields(explanation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(explanation, field.name, None)


def test_explanations_are_hashable_and_equal_only_to_themselves() -> None:
    one, other = (explain(torch.zeros(1, 4, 5)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize(
    ("shape", "shown"), [((1, 4, 5), 1), ((3, 4, 5), 3), ((2, 3, 4, 5), 6), ((20, 4, 5), 8), ((5, 3, 4, 5), 8)]
)
def test_notebooks_show_the_heatmaps_in_a_row(shape: tuple[int, ...], shown: int) -> None:
    explanation = explain(torch.rand(shape))
    strip = cv2.imdecode(np.frombuffer(explanation._repr_png_(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert strip.shape == (12, shown * (16 + 2), 3)
    heatmaps = explanation.heatmaps().flatten(0, -3)
    for n in range(shown):
        assert np.array_equal(strip[:, 18 * n : 18 * n + 16], camlib.colorize(heatmaps[n]))


def test_notebooks_show_maps_of_inputs_without_a_picture() -> None:
    png = explain(torch.rand(2, 4, 5), input_size=None)._repr_png_()
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == (4, 14, 3)


# Signals, volumes and videos


GRIDS = {1: (7,), 2: (3, 5), 3: (2, 3, 5)}


def spread(values: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Linear along each axis in turn, half-pixel centres, then min-max over all."""
    for axis, (cells, wanted) in enumerate(zip(values.shape, size, strict=True)):
        places = (np.arange(wanted) + 0.5) * cells / wanted - 0.5
        values = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, values)
    return (values - values.min()) / np.ptp(values)


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("rows", [(2,), (2, 3)])
def test_dimensions_are_the_axes_beyond_those_of_the_scores(dims: int, rows: tuple[int, ...]) -> None:
    explanation = explain(torch.rand(*rows, *GRIDS[dims]), dims)
    assert explanation.dims == dims
    assert explanation.has_class_axis == (len(rows) == 2)


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("rows", [(2,), (2, 3)])
@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
def test_heatmaps_of_every_rank(dims: int, rows: tuple[int, ...], scale: float) -> None:
    size = tuple(int(side * scale) for side in SIZES[dims])
    maps = torch.rand(*rows, *GRIDS[dims], dtype=torch.float64)
    explanation = explain(maps, dims)
    heatmaps = explanation.heatmaps(None if scale == 1 else size)
    assert heatmaps.shape == (*rows, *size)
    for index in np.ndindex(rows):
        np.testing.assert_allclose(heatmaps[index].numpy(), spread(maps[index].numpy(), size), atol=1e-12)


def test_frames_of_a_heatmap_can_be_compared() -> None:
    """The video is scaled as a whole: a frame that matters half as much is half as high."""
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 1, 1], maps[0, 1, 1, 1] = 1, 2
    heatmaps = explain(maps, 3).heatmaps((2, 3, 5))
    assert heatmaps[0].amax((-2, -1)).tolist() == [0.5, 1]


@pytest.mark.parametrize("dims", GRIDS)
def test_degenerate_maps_of_every_rank(dims: int) -> None:
    shape = torch.rand(GRIDS[dims])
    maps = torch.stack([shape * 0, shape * 0 + 3, -shape - 0.1, shape - 0.5, 3 + shape * 2**-21, shape])
    degenerate = [True, True, True, False, True, False]
    for rows in ((6,), (3, 2)):
        explanation = explain(maps.reshape(*rows, *GRIDS[dims]), dims)
        assert explanation.degenerate.shape == rows
        assert explanation.degenerate.flatten().tolist() == degenerate
        assert (explanation.heatmaps().reshape(6, -1).amax(1) == 0).tolist() == degenerate


@pytest.mark.parametrize(
    ("dims", "what", "shape"),
    [
        (1, "signal", r"size=\(length,\)"),
        (2, "image", r"size=\(height, width\)"),
        (3, "volume or video", r"size=\(time, height, width\)"),
    ],
)
def test_sizes_of_every_rank_are_checked(dims: int, what: str, shape: str) -> None:
    maps = torch.rand(1, *GRIDS[dims])
    other = SIZES[dims % 3 + 1]
    for input_size in (None, other):
        with pytest.raises(camlib.CamlibValueError, match=rf"inputs held no {what} whose size is known; give {shape}"):
            explain(maps, dims, input_size=input_size).heatmaps()
    assert explain(maps, dims, input_size=None).heatmaps(SIZES[dims]).shape == (1, *SIZES[dims])
    for size in (other, (0,) * dims, (2.0,) * dims, 5):
        with pytest.raises(camlib.CamlibValueError, match=shape.replace("=", " must be ")):
            explain(maps, dims).heatmaps(size)


@pytest.mark.parametrize(
    ("maps", "scores"), [((2,), (2,)), ((2, 1, 3, 4, 5), (2,)), ((2, 4, 5), (3,)), ((2, 3, 4, 5), (2, 4))]
)
def test_maps_and_scores_go_together(maps: tuple[int, ...], scores: tuple[int, ...]) -> None:
    with pytest.raises(camlib.CamlibValueError, match="maps must have the axes of the scores") as error:
        dataclasses.replace(explain(torch.rand(2, 4, 5)), maps=torch.rand(maps), scores=torch.rand(scores))
    assert f"got {maps} for {scores}" in str(error.value)


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("rows", [(3,), (3, 2)])
def test_every_rank_is_saved_joined_and_taken_apart(dims: int, rows: tuple[int, ...], tmp_path: Path) -> None:
    explanation = explain(torch.rand(*rows, *GRIDS[dims]), dims, layers={"a": torch.rand(*rows, *GRIDS[dims])})
    explanation.save(tmp_path / "a.npz")
    assert_same(Explanation.load(tmp_path / "a.npz"), explanation)
    assert_same(Explanation.cat(list(explanation)), explanation)
    assert explanation[1].dims == dims
    assert torch.equal(explanation[1:].heatmaps(), explanation.heatmaps()[1:])
    assert f"inputs of {' x '.join(map(str, SIZES[dims]))}," in repr(explanation)


@pytest.mark.parametrize("dims", GRIDS)
def test_layers_of_every_rank_are_fused_on_the_finest_grid(dims: int) -> None:
    fine, coarse = torch.rand(2, 3, *SIZES[dims]), torch.rand(2, 3, *GRIDS[dims])
    fused = fuse([coarse, fine], "mean", dims=dims)
    assert fused.shape == fine.shape
    for index in np.ndindex(2, 3):
        both = [spread(maps[index].double().numpy(), SIZES[dims]) for maps in (coarse, fine)]
        np.testing.assert_allclose(fused[index].numpy(), np.mean(both, 0), atol=1e-5)
    assert fuse([coarse], "max", dims=dims) is coarse


# Padding


def padded(maps: Tensor, **changes: Any) -> Explanation:
    """Cells of 4 x 4 pixels over 16 x 20, of which the input is the upper left 12 x 16."""
    return explain(maps, extent=(16.0, 20.0), **changes)


def test_padding_is_cut_off_before_normalising() -> None:
    maps = torch.rand(2, 4, 5)
    maps[:, 3], maps[..., 4] = 100, -100
    for size in (None, (12, 16), (24, 32), (6, 8), (3, 4)):
        height, width = size or SIZE
        whole = camlib.resize(maps, (height * 4 // 3, width * 5 // 4))
        assert torch.equal(padded(maps).heatmaps(size), camlib.normalize(whole[:, :height, :width]))


def test_a_spot_stays_in_its_place() -> None:
    maps = torch.zeros(1, 4, 5)
    maps[0, 1, 2] = 1
    heatmap = padded(maps).heatmaps()[0]
    assert heatmap.shape == SIZE
    hot = (heatmap > 0.5).nonzero()
    assert (hot.amin(0).tolist(), hot.amax(0).tolist()) == ([4, 8], [7, 11])
    stretched_over_the_input = explain(maps).heatmaps()[0]
    assert (stretched_over_the_input > 0.5).nonzero().tolist() != hot.tolist()


def test_padding_is_rounded_to_whole_pixels() -> None:
    maps = torch.rand(1, 4, 5)
    heatmaps = explain(maps, extent=(13.4, 16.0)).heatmaps()
    assert torch.equal(heatmaps, camlib.normalize(camlib.resize(maps, (13, 16))[:, :12]))
    assert torch.equal(explain(maps, extent=(12.0, 16.0)).heatmaps(), explain(maps).heatmaps())


@pytest.mark.parametrize("rows", [(2,), (1, 2)])
def test_cells_in_the_padding_do_not_count(rows: tuple[int, ...]) -> None:
    maps = torch.full((2, 4, 5), -1.0)
    maps[0, 3, 2] = 5
    maps[1, 2, 3] = 5
    maps[:, 0, 0] = -2
    explanation = padded(maps.reshape(*rows, 4, 5))
    assert explanation.degenerate.flatten().tolist() == [True, False]
    heatmaps = explanation.heatmaps().reshape(2, *SIZE)
    assert not heatmaps[0].any()
    assert heatmaps[1].max() == 1


def test_cells_on_the_border_count() -> None:
    """The last cell that the input reaches is there, whether it is reached to the end or by rounding's width."""
    maps = torch.zeros(1, 1, 3)
    maps[..., 1] = 1
    for covered, degenerate in ((30.0, False), (20.1, False), (30.0 + 1e-12, False), (15.0, False)):
        explanation = explain(maps, input_size=(10, 15), extent=(10.0, covered))
        assert explanation.degenerate.tolist() == [degenerate]
    exactly = explain(torch.tensor([[[0.0, 0.0, 1.0]]]), input_size=(10, 20), extent=(10.0, 30.0 - 1e-12))
    assert exactly.degenerate.tolist() == [True]


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
def test_pictures_of_padded_maps(shape: tuple[int, ...]) -> None:
    explanation = padded(torch.rand(shape))
    images = pictures(size=(24, 32))
    overlays = explanation.overlays(images)
    heatmaps = explanation.heatmaps((24, 32))
    flat = zip(overlays.reshape(-1, 24, 32, 3), heatmaps.flatten(0, -3), strict=True)
    for row, (overlay, heatmap) in enumerate(flat):
        assert np.array_equal(overlay, camlib.overlay(images[row * 2 // heatmaps[..., 0, 0].numel()], heatmap))
    assert np.array_equal(drawn(explanation.plot(images).axes[2]), overlays.reshape(-1, 24, 32, 3)[0])
    strip = cv2.imdecode(np.frombuffer(explanation._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape[0] == SIZE[0]


def test_padding_survives_files_joins_and_indices(tmp_path: Path) -> None:
    explanation = padded(torch.rand(3, 4, 5))
    explanation.save(tmp_path / "a.npz")
    assert_same(Explanation.load(tmp_path / "a.npz"), explanation)
    assert Explanation.load(tmp_path / "a.npz").extent == (16.0, 20.0)
    assert_same(Explanation.cat(list(explanation)), explanation)
    with_header(lambda header: {key: value for key, value in header.items() if key != "extent"})(tmp_path / "a.npz")
    assert Explanation.load(tmp_path / "a.npz").extent is None
    with pytest.raises(camlib.CamlibValueError, match="explanations differ in extent"):
        Explanation.cat([explanation, explain(torch.rand(3, 4, 5))])


@pytest.mark.parametrize(
    "changes", [{"input_size": None}, {"input_size": (12,)}, {"extent": (16.0,)}, {"extent": (1.0, 16.0, 20.0)}]
)
def test_padding_needs_an_input_of_its_rank(changes: dict[str, Any]) -> None:
    with pytest.raises(camlib.CamlibValueError, match="must have one number for each of the maps' 2 axes"):
        explain(torch.rand(1, 4, 5), **{"extent": (16.0, 20.0)} | changes)


# Maps that explain no score


def test_without_a_score_titles_leave_it_out(tmp_path: Path) -> None:
    scores = torch.full((2,), float("nan"))
    explanation = explain(torch.rand(2, 4, 5), scores=scores, target="features")
    assert titles(explanation.plot(pictures()), 0) == ["features", "features"]
    named = explain(torch.rand(2, 4, 5), scores=scores, target=torch.tensor([0, 1]))
    assert titles(named.plot(pictures(), ["cat", "dog"]), 0) == ["cat", "dog"]
    explanation.save(tmp_path / "a.npz")
    assert Explanation.load(tmp_path / "a.npz").scores.isnan().tolist() == [True, True]
    assert Explanation.cat([explanation[0], explanation[1]]).target == "features"
    assert explanation.heatmaps().amax((-2, -1)).tolist() == [1, 1]


class Loudest(camlib.methods.ActivationMethod):
    """A custom method, which no registry knows."""

    name = "loudest"

    def maps(self, activations: Tensor) -> Tensor:
        return activations.amax(1)


@pytest.mark.parametrize("kind", [Loudest, camlib.EigenCAM, camlib.CenterGaussian])
@pytest.mark.parametrize("target", [None, 1, camlib.TopK(2), lambda out: out[:, 1] - out[:, 0]])
def test_class_agnostic_maps_are_labelled_with_no_class(kind: type[camlib.methods.Method], target: Any) -> None:
    explanation = kind(strided_cnn())(torch.rand(2, 3, *SIZE), target)
    assert explanation.class_agnostic
    assert set(titles(explanation.plot(pictures(), ["ant", "bee", "cow", "dog", "elk"]), 0)) == {"no particular class"}
    assert not camlib.GradCAM(strided_cnn())(torch.rand(2, 3, *SIZE)).class_agnostic


# Outputs of detectors


def detections(*counts: int) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.rand(count, 4), "scores": torch.rand(count), "labels": torch.arange(count)} for count in counts
    ]


@pytest.mark.parametrize("counts", [(3, 0, 5), (3, 3, 3), (1, 1, 1)])
def test_detections_follow_their_image(counts: tuple[int, ...]) -> None:
    """As many boxes as images must not be taken for a batch."""
    outputs = detections(*counts)
    explanation = explain(torch.rand(3, 4, 5), outputs=outputs)
    for n in (0, 1, 2, -1):
        (only,) = explanation[n].outputs
        assert all(torch.equal(only[name], outputs[n][name]) for name in outputs[n])
    assert [len(one["boxes"]) for one in explanation[1:].outputs] == list(counts[1:])
    assert explanation[3:].outputs == []
    assert [len(one.outputs[0]["labels"]) for one in explanation] == list(counts)


def test_detections_are_joined_by_image() -> None:
    first, second = detections(3, 0), detections(2)
    joined = Explanation.cat(
        [explain(torch.rand(2, 4, 5), outputs=first), explain(torch.rand(1, 4, 5), outputs=second)]
    )
    assert len(joined.outputs) == 3
    assert all(one is other for one, other in zip(joined.outputs, [*first, *second], strict=True))
    assert len(first) == 2
    with pytest.raises(camlib.CamlibValueError, match="explanations differ in outputs: 'a list with an entry"):
        Explanation.cat([joined, explain(torch.rand(1, 4, 5), outputs={"logits": torch.rand(1, 2)})])


def test_detections_are_moved() -> None:
    cast = explain(torch.rand(2, 4, 5), outputs=detections(3, 2)).to(torch.float64)
    assert [one["boxes"].dtype for one in cast.outputs] == [torch.float64] * 2
    assert [one["labels"].dtype for one in cast.outputs] == [torch.int64] * 2


def test_as_many_heads_as_images_are_heads() -> None:
    heads = [torch.rand(2, 5), torch.rand(2, 7)]
    one = explain(torch.rand(2, 4, 5), outputs=heads)[1]
    assert all(torch.equal(mine, head[1:]) for mine, head in zip(one.outputs, heads, strict=True))
    assert Explanation.cat([one, one]).outputs is None


# Overlays and figures of volumes and videos


def clips(count: int = 2, size: tuple[int, ...] = SIZES[3]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.mark.parametrize("rows", [(2,), (2, 3)])
def test_overlays_of_clips_are_those_of_their_frames(rows: tuple[int, ...]) -> None:
    explanation = explain(torch.rand(*rows, 2, 3, 5), 3)
    videos = clips(size=(9, 20, 30))
    overlays = explanation.overlays(videos, "viridis", 0.3)
    assert overlays.shape == (*rows, 9, 20, 30, 3)
    assert overlays.dtype == np.uint8
    heatmaps = explanation.heatmaps((9, 20, 30))
    for index in np.ndindex(rows):
        for frame in range(9):
            expected = camlib.overlay(videos[index[0], frame], heatmaps[index][frame], "viridis", 0.3)
            assert np.array_equal(overlays[index][frame], expected)


def test_overlays_take_every_kind_of_clip() -> None:
    explanation = explain(torch.rand(2, 2, 3, 5), 3)
    videos = clips()
    expected = explanation.overlays(videos)
    tensor = torch.from_numpy(videos).permute(0, 4, 1, 2, 3)
    for batch in (list(videos), tensor, list(tensor), tensor / 255, videos / 255, [list(video) for video in videos]):
        assert np.array_equal(explanation.overlays(batch), expected)
    alone = [one.overlays(video)[0] for one, video in zip(explanation, videos, strict=True)]
    channels_first = [one.overlays(video)[0] for one, video in zip(explanation, tensor, strict=True)]
    assert np.array_equal(np.stack(alone), expected)
    assert np.array_equal(np.stack(channels_first), expected)


def test_overlays_take_grey_volumes() -> None:
    explanation = explain(torch.rand(2, 2, 3, 5), 3)
    volumes = clips()[..., 0]
    expected = explanation.overlays(np.repeat(volumes[..., None], 3, -1))
    tensor = torch.from_numpy(volumes)
    for batch in (volumes, volumes[..., None], list(volumes), tensor[:, None], list(tensor), list(tensor[:, None])):
        assert np.array_equal(explanation.overlays(batch), expected)
    assert np.array_equal(explanation[0].overlays(volumes[0]), expected[:1])
    assert np.array_equal(explanation[0].overlays(tensor[0]), expected[:1])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(2, 4, 6, 12, 16), camlib.CamlibValueError, r"channels-first.*\(4, 6, 12, 16\).*give one"),
        (
            torch.rand(2, 6, 12, 16, 3),
            camlib.CamlibValueError,
            r"got \(6, 12, 16, 3\).*for channels last, pass an array",
        ),
        (np.zeros((2, 6, 12, 16, 2)), camlib.CamlibValueError, r"got \(6, 12, 16, 2\); give one channel of a volume"),
        (np.zeros((2, 6)), camlib.CamlibValueError, r"got \(2, 6\)"),
        (np.full((2, 6, 12, 16), 7.0), camlib.CamlibValueError, r"lies in \[0, 1\], got \[7, 7\]"),
        ([clips(1)[0], "b.mp4"], camlib.CamlibTypeError, "a list of frames, got str"),
        ([clips(1)[0], []], camlib.CamlibValueError, r"one or more frames of one size, got sizes \[\]"),
        ([clips(1)[0]], camlib.CamlibValueError, "2 explained images need as many clips, got 1"),
        (clips(3), camlib.CamlibValueError, "2 explained images need as many clips, got 3"),
        (
            [clips(1)[0], clips(1, (6, 4, 4))[0]],
            camlib.CamlibValueError,
            r"\[\(6, 4, 4\), \(6, 12, 16\)\].*one by one",
        ),
    ],
)
def test_other_types_and_shapes_of_clips_are_errors(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explain(torch.rand(2, 2, 3, 5), 3).overlays(images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "shown"),
    [
        (1, [0]),
        (5, [0, 1, 2, 3, 4]),
        (8, list(range(8))),
        (16, [0, 2, 4, 6, 9, 11, 13, 15]),
        (15, list(range(0, 15, 2))),
    ],
)
def test_figure_of_clips_shows_evenly_spaced_frames(frames: int, shown: list[int]) -> None:
    explanation = explain(torch.rand(2, 2, 3, 5), 3)
    videos = clips(size=(frames, 12, 16))
    figure = explanation.plot(videos)
    assert len(figure.axes) == 4 * len(shown) + 1
    overlays = explanation.overlays(videos)
    lines = np.array(figure.axes[:-1]).reshape(2, 2, len(shown))
    for n in range(2):
        assert [axes.get_title("left").split("\n")[-1] for axes in lines[n, 0]] == [f"frame {at}" for at in shown]
        for column, at in enumerate(shown):
            assert np.array_equal(drawn(lines[n, 0, column]), videos[n, at])
            assert np.array_equal(drawn(lines[n, 1, column]), overlays[n, at])
    figure.savefig(io.BytesIO(), format="png")


def test_figure_of_clips_names_every_class() -> None:
    maps = torch.rand(1, 2, 2, 3, 5)
    maps[0, 1] = 0
    figure = explain(maps, 3, target=torch.tensor([[2, 0]])).plot(clips(1), ["cat", "dog", "cow"], alpha=0.2)
    headings = [axes.get_title("left") for axes in figure.axes[::12]]
    assert headings == ["cow: score 1.00\nframe 0", "cat: score 2.00, nothing stands out\nframe 0", ""]
    assert "grad_cam at features.3" in figure.axes[-1].get_ylabel()


def test_clips_of_different_lengths_share_a_figure() -> None:
    videos = [clips(1)[0], clips(1, (3, 5, 7))[0]]
    figure = explain(torch.rand(2, 2, 3, 5), 3).plot(videos)
    assert [len(axes.images) for axes in figure.axes[:-1]] == [1] * 12 + ([1] * 3 + [0] * 3) * 2


# Figures of signals


def signals(channels: int = 2) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(2, channels, 40))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [(2,), (2, 3)])
def test_figure_of_signals_has_lines_before_their_heatmap(rows: tuple[int, ...]) -> None:
    explanation = explain(torch.rand(*rows, 7), 1)
    figure = explanation.plot(signals())
    heatmaps = explanation.heatmaps((40,)).reshape(-1, 40)
    assert len(figure.axes) == len(heatmaps) + 1
    for row, axes in enumerate(figure.axes[:-1]):
        signal = signals()[row * 2 // len(heatmaps)]
        assert [line.get_ydata().tolist() for line in axes.lines] == signal.tolist()
        assert np.array_equal(drawn(axes), heatmaps[row : row + 1].numpy())
        left, right, bottom, top = axes.images[0].get_extent()
        assert (left, right) == axes.get_xlim() == (-0.5, 39.5)
        assert (bottom, top) == axes.get_ylim()
        assert bottom < signal.min() < signal.max() < top
        assert axes.images[0].get_zorder() < min(line.get_zorder() for line in axes.lines)
        assert axes.get_title("left") == f"class {row}: score {row + 1:.2f}"
        assert axes.get_ylabel() == "value"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["channel 0", "channel 1"]
    assert figure.axes[-2].get_xlabel() == "sample"
    assert "grad_cam at features.3" in figure.axes[-1].get_ylabel()
    figure.savefig(io.BytesIO(), format="png")


def test_signals_colours_are_those_of_the_bar() -> None:
    """Half jet, half paper; with "heat" what does not matter is white."""
    for alpha, lowest in ((0.5, [128, 128, 192]), ("heat", [255, 255, 255]), (1.0, [0, 0, 128])):
        figure = explain(torch.rand(1, 7), 1).plot(signals()[:1], colormap="jet", alpha=alpha)
        assert np.array(figure.axes[0].images[0].cmap(0.0, bytes=True)[:3]).tolist() == lowest
        bar = figure.axes[-1].collections[-1]
        assert np.array(bar.cmap(0.0, bytes=True)[:3]).tolist() == lowest
    with pytest.raises(camlib.CamlibValueError, match='alpha must be "heat" or a number in .0, 1., got 2'):
        explain(torch.rand(1, 7), 1).plot(signals()[:1], alpha=2)


def lines_of(figure: Figure) -> list[list[list[float]]]:
    return [[line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes[:-1]]


@pytest.mark.slow
def test_figures_take_every_kind_of_signal() -> None:
    explanation = explain(torch.rand(2, 7), 1)
    two = signals()
    for batch in (
        two,
        torch.from_numpy(two),
        list(two),
        tuple(torch.from_numpy(two)),
        torch.from_numpy(two).requires_grad_(),
    ):
        assert lines_of(explanation.plot(batch)) == two.tolist()
    one = two[:, 0]
    for batch in (one, one[:, None], torch.from_numpy(one), list(one)):
        assert lines_of(explanation.plot(batch)) == one[:, None].tolist()
    for signal in (two[0], two[:1]):
        assert lines_of(explanation[0].plot(signal)) == [two[0].tolist()]
    for signal in (one[0], one[:1], one[0][None]):
        assert lines_of(explanation[0].plot(signal)) == [[one[0].tolist()]]
    lengths = explanation.plot([one[0], one[1][:13]])
    assert [drawn(axes).shape for axes in lengths.axes[:2]] == [(1, 40), (1, 13)]
    assert lines_of(explanation.plot(torch.from_numpy(two).bfloat16()))[0][0][0] == pytest.approx(
        two[0, 0, 0], rel=0.01
    )


def test_many_channels_go_without_a_legend() -> None:
    figure = explain(torch.rand(2, 7), 1).plot(signals(12))
    assert figure.axes[0].get_legend() is None
    assert len(figure.axes[0].lines) == 12
    assert explain(torch.rand(2, 7), 1).plot(signals(1)).axes[0].get_legend() is None


def test_a_figure_marks_degenerate_maps_of_signals() -> None:
    figure = explain(torch.stack([torch.zeros(7), torch.rand(7)]), 1).plot(signals())
    assert figure.axes[0].get_title("left") == "class 0: score 1.00, nothing stands out"
    assert not drawn(figure.axes[0]).any()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (signals()[:1], camlib.CamlibValueError, "2 explained images need as many signals, got 1"),
        (signals()[0, 0], camlib.CamlibValueError, "2 explained images need as many signals, got 1"),
        (np.zeros((2, 3, 4, 5)), camlib.CamlibValueError, r"\(C, L\) or \(L,\) without empty axes, got \(2, 3, 4, 5\)"),
        (np.zeros((2, 3, 0)), camlib.CamlibValueError, r"got \(3, 0\)"),
        (["a.wav", "b.wav"], camlib.CamlibTypeError, "real numbers, got str"),
        (None, camlib.CamlibTypeError, r"the explanation has no pictures, .* explanation\.plot\(pictures\)"),
        (np.zeros((2, 3), complex), camlib.CamlibTypeError, "real numbers, got complex128"),
    ],
)
def test_other_types_and_shapes_of_signals_are_errors(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explain(torch.rand(2, 7), 1).plot(images)


def test_signals_have_no_overlays() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"of signals have no overlays.*explanation\.plot\(signals\)"):
        explain(torch.rand(2, 7), 1).overlays(signals())


# Notebooks, of every rank


def decoded(explanation: Explanation) -> NDArray[np.uint8]:
    return cv2.imdecode(np.frombuffer(explanation._repr_png_(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize(("rows", "shown"), [((1,), 1), ((2, 3), 6), ((20,), 8)])
def test_notebooks_show_the_middle_frames_of_clips(rows: tuple[int, ...], shown: int) -> None:
    explanation = explain(torch.rand(*rows, 2, 3, 5), 3)
    strip = decoded(explanation)
    assert strip.shape == (12, shown * (16 + 2), 3)
    for n, heatmap in enumerate(explanation.heatmaps().flatten(0, -4)[:shown]):
        assert np.array_equal(strip[:, 18 * n : 18 * n + 16], camlib.colorize(heatmap[3]))


@pytest.mark.parametrize(("rows", "shown"), [((1,), 1), ((2, 3), 6), ((20,), 8)])
def test_notebooks_show_a_band_for_each_signal(rows: tuple[int, ...], shown: int) -> None:
    explanation = explain(torch.rand(*rows, 7), 1)
    strip = decoded(explanation)
    assert strip.shape == (shown * (16 + 2), 40, 3)
    for n, heatmap in enumerate(explanation.heatmaps().flatten(0, -2)[:shown]):
        assert np.array_equal(strip[18 * n : 18 * n + 16], camlib.colorize(heatmap.expand(16, -1)))


def test_notebooks_show_maps_of_unknown_inputs_of_every_rank() -> None:
    assert decoded(explain(torch.rand(2, 7), 1, input_size=None)).shape == (36, 7, 3)
    assert decoded(explain(torch.rand(2, 2, 3, 5), 3, input_size=None)).shape == (3, 14, 3)


@pytest.mark.slow
def test_a_notebook_shows_figures_without_pyplot():
    model, images = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 14), nn.Flatten()),
        torch.rand(1, 3, 16, 16),
    )
    comparison = camlib.compare(model, images, ["grad_cam", "layer_cam"])
    for shown in (comparison, comparison["grad_cam"]):
        assert shown.plot(images)._repr_png_().startswith(b"\x89PNG")
