"""camlib.explain: any source, any model; its pictures are what the network saw; the maps are those of the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

import camlib

SIDE = 64


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coarse noise, so that resizing and JPEG change little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=classes).eval()


PREPARE = transforms.Compose(
    [
        transforms.Resize(SIDE),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        Image.fromarray(picture(100, 150, seed)).save(tmp_path / name)
    return tmp_path


def opened(folder: Path) -> list[Image.Image]:
    return [Image.fromarray(camlib.read_image(path)) for path in sorted(folder.glob("*.png"))]


FORMS: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda folder: folder,
    "its name": str,
    "a glob": lambda folder: str(folder / "*.png"),
    "paths": lambda folder: sorted(folder.glob("*.png")),
    "a tuple of paths": lambda folder: tuple(map(str, sorted(folder.glob("*.png")))),
    "PIL images": opened,
    "arrays": lambda folder: list(map(np.asarray, opened(folder))),
    "an array": lambda folder: np.stack(opened(folder)),
    "a mixture": lambda folder: [folder / "a.png", opened(folder)[1], np.asarray(opened(folder)[2])],
    "tensors of uint8": lambda folder: [torch.tensor(np.asarray(one)).movedim(-1, 0) for one in opened(folder)],
}
"""The same three pictures in every form that is prepared by the transforms."""


def inputs_of(folder: Path) -> Tensor:
    return torch.stack(list(map(PREPARE, opened(folder))))


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_every_form_have_the_maps_of_the_method_on_the_prepared_inputs(form, folder):
    model = network()
    found = camlib.explain(model, FORMS[form](folder), method="layer_cam", transforms=PREPARE, target=2)
    torch.testing.assert_close(found.maps, camlib.LayerCAM(model)(inputs_of(folder), 2).maps)
    assert [shown.shape for shown in found.pictures] == [(100, 100, 3)] * 3


def test_a_picture_is_shown_as_far_as_the_network_saw_it_at_its_own_resolution(folder):
    found = camlib.explain(network(), folder / "a.png", transforms=PREPARE)
    np.testing.assert_array_equal(found.pictures[0], picture(100, 150, 1)[:, 25:125])


def test_a_padded_picture_is_shown_with_its_padding():
    padded = transforms.Compose([transforms.Pad((10, 20)), transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
    (shown,) = camlib.explain(network(), picture(100, 150), transforms=padded).pictures
    assert shown.shape == (140, 170, 3)
    np.testing.assert_array_equal(shown[20:120, 10:160], picture(100, 150))
    assert not shown[:20].any()
    assert not shown[120:].any()
    assert not shown[:, :10].any()
    assert not shown[:, 160:].any()


def test_a_mirrored_picture_is_shown_mirrored():
    mirrored = transforms.Compose(
        [transforms.Resize((SIDE, SIDE)), transforms.RandomHorizontalFlip(1.0), transforms.ToTensor()]
    )
    (shown,) = camlib.explain(network(), picture(100, 150), transforms=mirrored).pictures
    np.testing.assert_array_equal(shown, picture(100, 150)[:, ::-1])


def test_where_the_part_is_not_known_the_input_itself_is_shown():
    rotated = transforms.Compose(
        [transforms.Resize((SIDE, SIDE)), transforms.RandomRotation((20, 20)), transforms.ToTensor()]
    )
    (shown,) = camlib.explain(network(), picture(100, 150), transforms=rotated).pictures
    expected = rotated(Image.fromarray(picture(100, 150))).movedim(0, -1).numpy() * 255
    assert shown.shape == (SIDE, SIDE, 3)
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_the_result_does_not_depend_on_the_batches(size, folder):
    model = network()
    found = camlib.explain(model, folder, transforms=PREPARE, target=[0, 1, 2], batch_size=size)
    torch.testing.assert_close(found.maps, camlib.GradCAM(model)(inputs_of(folder), torch.tensor([0, 1, 2])).maps)
    assert found.target.tolist() == [0, 1, 2]
    assert len(found.pictures) == 3


def test_tensors_and_loaders_are_the_models_own_inputs(folder):
    model, inputs = network(), inputs_of(folder)
    expected = camlib.GradCAM(model)(inputs).maps
    loader = DataLoader(TensorDataset(inputs, torch.zeros(3)), batch_size=2)
    for source in (inputs, loader, DataLoader(inputs, batch_size=2), [inputs[:2], inputs[2:]]):
        torch.testing.assert_close(camlib.explain(model, source).maps, expected)
    torch.testing.assert_close(camlib.explain(model, inputs[0]).maps, expected[:1])


def test_the_normalisation_of_inputs_is_undone_for_their_pictures(folder):
    found = camlib.explain(network(), inputs_of(folder), transforms=PREPARE)
    expected = (inputs_of(folder) * 0.25 + 0.5).movedim(1, -1).numpy() * 255
    assert max(np.abs(shown - wanted).max() for shown, wanted in zip(found.pictures, expected, strict=True)) <= 1


def test_inputs_between_0_and_1_are_their_own_pictures():
    images = torch.rand(2, 3, SIDE, SIDE)
    found = camlib.explain(network(), images)
    np.testing.assert_array_equal(found.pictures[1], camlib.imaging.as_rgb(images[1]))


def test_signals_have_maps_and_no_pictures():
    signals = nn.Sequential(nn.Conv1d(2, 8, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    found = camlib.explain(signals, torch.rand(4, 2, 200))
    assert found.maps.shape == (4, 194)
    assert found.pictures is None


def test_a_detector_takes_a_list_of_pictures():
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=3, box_score_thresh=0.0, min_size=96, max_size=128
    )
    found = camlib.explain(
        detector, [picture(60, 80), picture(60, 80, 1)], transforms=transforms.ToTensor(), target=camlib.targets.Box()
    )
    assert found.maps.shape[0] == 2
    assert [shown.shape for shown in found.pictures] == [(60, 80, 3)] * 2
    assert found.method == "eigen_grad_cam"
    assert "belongs to a box" in found.reason


def test_plots_overlays_and_reports_need_no_pictures(folder):
    found = camlib.explain(network(), folder, transforms=PREPARE, target="cat", classes=["dog", "cat", "owl", "fox"])
    assert found.overlays().shape == (3, 100, 100, 3)
    np.testing.assert_array_equal(found.overlays(), found.overlays(list(found.pictures)))
    titles = [axes.get_title("left") for axes in found.plot().axes]
    assert sum(title.startswith("cat: score") for title in titles) == 3
    page = found.report(names=["<b>one</b>", "two", "three"]).html
    assert page.count("<article") == 3
    assert "<b>one" not in page
    assert "&lt;b&gt;one" in page
    assert "cat" in page


def test_pictures_follow_indexing_joining_and_moving_but_are_not_saved(folder, tmp_path):
    found = camlib.explain(network(), folder, transforms=PREPARE, classes=["dog", "cat", "owl", "fox"])
    np.testing.assert_array_equal(found[1].pictures[0], found.pictures[1])
    again = camlib.Explanation.cat([found[:1], found[1:]]).to(torch.float64)
    for one, other in zip(again.pictures, found.pictures, strict=True):
        np.testing.assert_array_equal(one, other)
    found.save(tmp_path / "found.npz")
    loaded = camlib.Explanation.load(tmp_path / "found.npz")
    assert loaded.pictures is None
    assert loaded.reason == found.reason != ""
    assert list(loaded.class_names) == ["dog", "cat", "owl", "fox"]
    with pytest.raises(camlib.CamlibTypeError, match=r"the explanation has no pictures.*explanation\.plot\(pictures\)"):
        loaded.plot()


def test_an_explanation_with_and_one_without_pictures_join_without(folder):
    found = camlib.explain(network(), folder, transforms=PREPARE)
    joined = camlib.Explanation.cat([found, camlib.GradCAM(network())(inputs_of(folder))])
    assert len(joined) == 6
    assert joined.pictures is None


def test_the_model_is_as_before(folder):
    model = network().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    camlib.explain(model, folder, transforms=PREPARE)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_timm_modules_know_their_transforms(folder):
    model = timm.create_model("convnext_atto", num_classes=4).eval()
    found = camlib.explain(model, folder)
    made = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    expected = torch.stack(list(map(made, opened(folder))))
    torch.testing.assert_close(found.maps, camlib.GradCAM(model)(expected).maps)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (lambda folder: folder / "a.png", {}, camlib.CamlibTypeError, "the transforms of ResNet are not known"),
        (lambda folder: folder / "z.png", {"transforms": PREPARE}, camlib.CamlibValueError, "z.png does not exist"),
        (lambda folder: [], {}, camlib.CamlibValueError, "source is empty"),
        (lambda folder: 3, {}, camlib.CamlibTypeError, "source must be a path, .* got int"),
        (lambda folder: folder, {"transforms": PREPARE, "target": [1, 2]}, camlib.CamlibValueError, "for 2 images"),
        (lambda folder: folder, {"transforms": PREPARE, "target": "cat"}, camlib.CamlibValueError, "no class 'cat'"),
        (lambda folder: folder, {"transforms": PREPARE, "method": "grad_cm"}, camlib.CamlibValueError, "did you mean"),
        (lambda folder: folder, {"transforms": PREPARE, "weights": "none"}, camlib.CamlibValueError, "by name"),
        (
            lambda folder: folder,
            {"transforms": transforms.Resize(8)},
            camlib.CamlibTypeError,
            "transforms must return a tensor",
        ),
        (lambda folder: folder, {"transforms": PREPARE, "batch_size": 0}, camlib.CamlibValueError, "batch_size"),
        (lambda folder: folder, {"transforms": PREPARE, "nonsense": 0}, camlib.CamlibTypeError, "nonsense"),
    ],
)
def test_what_cannot_work_is_an_error_that_says_what_to_do(source, options, error, message, folder):
    with pytest.raises(error, match=message):
        camlib.explain(network(), source(folder), **options)


def test_pictures_whose_inputs_differ_in_size_are_refused_or_explained_one_by_one(folder):
    Image.fromarray(picture(150, 100)).save(folder / "d.png")
    uncropped = transforms.Compose([transforms.Resize(SIDE), transforms.ToTensor()])
    with pytest.raises(camlib.CamlibValueError, match="inputs of different sizes"):
        camlib.explain(network(), folder, transforms=uncropped)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(camlib.CamlibValueError, match="holds no pictures"):
        camlib.explain(network(), tmp_path, transforms=PREPARE)


@pytest.mark.parametrize("device", ["meta", "nonsense", 3, ""])
def test_a_device_that_cannot_be_used_is_an_error(device):
    with pytest.raises(camlib.CamlibError, match="device"):
        camlib.explain("torchvision:resnet18", picture(64, 64), weights="none", device=device)


def test_a_truncated_picture_of_pil_is_an_error(folder):
    Image.fromarray(picture(100, 150)).save(folder / "t.jpg")
    (folder / "t.jpg").write_bytes((folder / "t.jpg").read_bytes()[:900])
    opened_picture = Image.open(folder / "t.jpg")
    with opened_picture, pytest.raises(camlib.CamlibValueError, match="cannot be decoded"):
        camlib.explain(network(), opened_picture, transforms=PREPARE)


def test_transforms_that_are_no_function_are_an_error():
    with pytest.raises(camlib.CamlibTypeError, match="transforms must be a function"):
        camlib.explain(network(), picture(64, 64), transforms=True)
