"""What a call returns: heatmaps and figures out of maps, moved, joined, saved and taken apart without loss."""

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

SIZE = (12, 16)


def explain(maps: Tensor, **changes: Any) -> Explanation:
    """An explanation built by hand: the maps are all that matters, unless a test says otherwise."""
    rows = maps.shape[:-2]
    fields: dict[str, Any] = {
        "maps": maps,
        "scores": torch.arange(1.0, 1 + rows.numel()).reshape(rows),
        "outputs": torch.arange(5.0 * rows[0]).reshape(-1, 5),
        "target": torch.arange(rows.numel()).reshape(rows),
        "method": "grad_cam",
        "layer": "features.3",
        "input_size": SIZE,
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


def test_maps_are_resized_first_and_normalised_then() -> None:
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


def test_every_image_and_class_is_normalised_on_its_own() -> None:
    maps = torch.rand(2, 3, 4, 5) * torch.tensor([1e-9, 1, 1e9])[:, None, None]
    heatmaps = explain(maps).heatmaps()
    assert heatmaps.shape == (2, 3, *SIZE)
    assert (heatmaps.amin((-2, -1)) == 0).all()
    assert (heatmaps.amax((-2, -1)) == 1).all()
    for n in range(2):
        for k in range(3):
            np.testing.assert_allclose(heatmaps[n, k].numpy(), stretched(maps[n, k].numpy(), SIZE), atol=1e-5)


def test_class_axis_is_seen() -> None:
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
            explanation.heatmaps(size)  # type: ignore[arg-type]
    with pytest.raises(camlib.CamlibValueError, match="got 'sum'"):
        explanation.heatmaps(normalize="sum")


def test_heatmaps_leave_the_maps_as_they_are() -> None:
    maps = torch.rand(2, 3, 4)
    before = maps.clone()
    explain(maps).heatmaps().zero_()
    explain(maps).degenerate  # noqa: B018
    assert torch.equal(maps, before)


# Overlays


def test_overlays_are_the_heatmaps_over_the_images() -> None:
    maps = torch.rand(2, 3, 5, dtype=torch.float64)
    images = pictures(size=(20, 30))
    overlays = explain(maps).overlays(images)
    assert overlays.shape == (2, 20, 30, 3)
    assert overlays.dtype == np.uint8
    for n in range(2):
        assert np.abs(overlays[n] - jet_over(images[n], stretched(maps[n].numpy(), (20, 30)))).max() <= 3
    heatmaps = explain(maps).heatmaps((20, 30))
    assert np.array_equal(overlays, camlib.overlay(images, heatmaps))


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
    figure = explanation.plot(images)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2 * 3 + 1
    heatmaps, overlays = explanation.heatmaps(), explanation.overlays(images)
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


def test_figure_says_where_there_is_no_evidence() -> None:
    maps = torch.stack([torch.zeros(4, 5), torch.rand(4, 5)])
    assert titles(explain(maps).plot(pictures()), 1) == ["no positive evidence", "heatmap"]


def test_colour_bar_names_method_and_layer() -> None:
    label = explain(torch.rand(1, 4, 5)).plot(pictures(1)).axes[-1].get_ylabel()
    assert "grad_cam at features.3" in label
    assert "[0, 1]" in label


def test_class_names_must_reach() -> None:
    explanation = explain(torch.rand(2, 4, 5), target=torch.tensor([0, 2]))
    with pytest.raises(camlib.CamlibValueError, match="class_names has 2 names, but class 2 was explained"):
        explanation.plot(pictures(), ["cat", "dog"])
    with pytest.raises(camlib.CamlibTypeError, match="got a single string"):
        explanation.plot(pictures(), "cat")


def test_images_of_different_sizes_share_a_figure() -> None:
    figure = explain(torch.rand(2, 4, 5)).plot([pictures(1)[0], pictures(1, (5, 6))[0]])
    assert [drawn(axes).shape[:2] for axes in figure.axes[:6]] == [(12, 16)] * 3 + [(5, 6)] * 3


def test_pyplot_knows_nothing_of_it() -> None:
    before, backend = plt.get_fignums(), plt.get_backend()
    explain(torch.rand(1, 4, 5)).plot(pictures(1))
    assert plt.get_fignums() == before
    assert plt.get_backend() == backend


def test_plot_leaves_the_images_as_they_are() -> None:
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
def test_casting_leaves_indices_alone(dtype: torch.dtype) -> None:
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


def test_outputs_that_are_no_tensor_are_not_joined() -> None:
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
        ("output shape", explain(torch.rand(2, 4, 5), outputs=torch.rand(2, 6))),
        ("output shape", explain(torch.rand(2, 4, 5), outputs=None)),
        ("layers", explain(torch.rand(2, 4, 5), layers={"a": torch.rand(2, 3, 3)})),
    ],
)
def test_what_does_not_go_together_is_not_joined(name: str, other: Explanation) -> None:
    here = explain(torch.rand(2, 4, 5))
    for pair in ([here, other], [other, here], [here, here, other]):
        with pytest.raises(camlib.CamlibValueError, match=f"explanations differ in {name}: .* and "):
            Explanation.cat(pair)


def test_neither_other_classes_nor_other_targets() -> None:
    with pytest.raises(camlib.CamlibValueError, match="map shape"):
        Explanation.cat([explain(torch.rand(2, 3, 4, 5)), explain(torch.rand(2, 2, 4, 5))])
    with pytest.raises(camlib.CamlibValueError, match="target: 'margin' and 'sum'"):
        Explanation.cat([explain(torch.rand(2, 4, 5), target=name) for name in ("margin", "sum")])
    with pytest.raises(camlib.CamlibValueError, match="nothing to join"):
        Explanation.cat([])


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("changes", [{}, {"target": "margin"}, {"input_size": None}, {"layer": "größe + b/c"}])
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
def test_what_is_no_explanation_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    explain(torch.rand(2, 4, 5)).save(path)
    DAMAGE[damage](path)
    with pytest.raises(camlib.CamlibValueError, match="a.npz is not an explanation that camlib saved"):
        Explanation.load(path)
    assert not Bomb.exploded


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
        colors = jet_over(np.zeros((*SIZE, 3), np.uint8), heatmaps[n].numpy(), 1)
        assert np.array_equal(strip[:, 18 * n : 18 * n + 16], colors)


def test_notebooks_show_maps_of_inputs_without_a_picture() -> None:
    png = explain(torch.rand(2, 4, 5), input_size=None)._repr_png_()
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == (4, 14, 3)
