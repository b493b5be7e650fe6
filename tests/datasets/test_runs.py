"""A run gives the maps of single calls in every storage; settings are recognised; overlays lie where they belong."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

import camlib
from camlib.datasets.alignment import window_of
from camlib.datasets.settings import described
from camlib.imaging import resize_center_crop
from camlib.imaging.geometry import Window
from tests.datasets.small import Scaled, explained, network, pictures, rows

ROOT = Path(__file__).parents[2]
STORAGES = ["files", "parquet", "webdataset"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "target",
    [None, 3, camlib.TopK(2), camlib.targets.Output(1)],
    ids=["predicted", "a class", "two classes", "an output"],
)
def test_rows_are_the_maps_of_single_calls(tmp_path, storage, target):
    source = pictures(tmp_path / "in", 5)
    run = explained(source, tmp_path / "out", storage=storage, target=target, workers=2)
    assert len(run) == len(list(run)) == len(list(run.rows)) == 5
    for place, row in enumerate(camlib.open_run(tmp_path / "out")):
        image = Scaled()(Image.open(row.path).convert("RGB"))[None]
        alone = camlib.GradCAM(network(), "1")(image, target)
        rounding = 1e-5 if storage == "files" else 1e-3 * float(alone.maps.max())  # shards hold float16
        close = {"rtol": 0, "atol": rounding}
        torch.testing.assert_close(row.map, alone.maps[0], **close)
        torch.testing.assert_close(torch.tensor(row.scores), alone.scores.flatten(), rtol=1e-5, atol=1e-5)
        assert row.classes == (tuple(alone.target.flatten().tolist()) if torch.is_tensor(alone.target) else ())
        torch.testing.assert_close(row.heatmap(), camlib.resize(alone.heatmaps()[0], (30, 40)), rtol=0, atol=2e-3)
        assert row.heatmap((7, 9)).shape[-2:] == (7, 9)
        assert row.path == run[place].path == run[place - 5].path
    assert [row.number for row in run[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        run[5]


def test_overlays_are_drawn_on_the_part_that_the_network_saw(tmp_path):
    preset = tv.Compose([tv.Resize(32), tv.CenterCrop(24), tv.ToTensor()])
    source = pictures(tmp_path / "in", 3, (60, 100))
    for row in explained(source, tmp_path / "out", transforms=preset, heatmaps=True, alpha=0.6):
        picture = camlib.read_image(row.path)
        seen = row.explanation.heatmaps()[0]
        reference = resize_center_crop((60, 100), 32, 24).restore(seen)
        assert ((row.heatmap() - reference).abs() > 0.1).float().mean() < 0.03  # its border is a pixel wide
        outside = row.heatmap() == 0
        assert outside[:, :20].all()
        assert outside[:, -20:].all()
        overlay = camlib.read_image(row.files["overlay"]).astype(int)
        drawn = camlib.overlay(picture, row.heatmap(), alpha=0.6)
        drawn = np.where(row.window.covered()[..., None], drawn, picture)
        written = cv2.imdecode(
            cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR
        )
        assert np.abs(overlay - written[..., ::-1]).max() <= 2  # two decoders of JPEG
        stored = np.asarray(Image.open(row.files["heatmap"]).copy())
        np.testing.assert_allclose(stored / 65535, row.heatmap().numpy(), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.6, "heat"])
@pytest.mark.parametrize("signed", [False, True])
def test_overlays_leave_alone_what_the_network_did_not_see(tmp_path, alpha, signed):
    preset = tv.Compose([tv.Resize(32), tv.CenterCrop(24), tv.ToTensor()])
    source = tmp_path / "in"
    source.mkdir()
    gray = np.full((60, 100, 3), 128, np.uint8)
    Image.fromarray(gray).save(source / "gray.png")
    cam = camlib.GradCAM(network(), "1", relu=not signed)
    options = {"transforms": preset, "alpha": alpha, "progress": False}
    (row,) = camlib.explain_dataset(cam, source, tmp_path / "out", **options)
    overlay = camlib.read_image(row.files["overlay"]).astype(int)
    rows, columns = slice(8, 52), slice(28, 72)  # the crop is 45 pixels wide and high, in the middle
    outside = np.ones((60, 100), bool)
    outside[rows, columns] = False
    outside[:, 16:84] = False  # JPEG mixes blocks of 16 pixels
    assert np.abs(overlay - gray)[outside].max() <= 2
    if alpha != "heat":
        assert np.abs(overlay - gray)[rows, columns].max() > 30


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (7, 2000), (2, 50), (300, 4000)])
def test_the_window_of_a_long_picture_is_found(size):
    (height, width), scale = size, 48 / min(size)
    window = window_of(tv.Compose([tv.Resize(48), tv.CenterCrop(32), tv.ToTensor()]), size)
    part, pixel = 32 / scale, 1 / scale
    box = (height - part) / 2, (width - part) / 2, (height + part) / 2, (width + part) / 2
    assert window.box == pytest.approx(box, abs=pixel)


def test_a_picture_of_one_pixel_costs_only_itself(tmp_path):
    source = pictures(tmp_path / "in", 3)
    Image.new("RGB", (1, 1)).save(source / "one.png")
    preset = tv.Compose([tv.Resize(32), tv.CenterCrop(24), tv.ToTensor()])
    run = explained(source, tmp_path / "out", transforms=preset)
    assert len(run) == 3
    assert [(Path(path).name, "too small" in why) for path, why in run.errors] == [("one.png", True)]


NORMALISED = [tv.ToTensor(), tv.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])]


@pytest.mark.parametrize(
    ("transforms", "box"),
    [
        ([tv.Resize((50, 70))], (0, 0, 120, 200)),
        ([tv.CenterCrop((60, 80))], (30, 60, 90, 140)),
        ([tv.Resize((60, 100)), tv.CenterCrop(40)], (20, 60, 100, 140)),
        ([tv.Pad((10, 20)), tv.Resize((80, 110))], (-20, -10, 140, 210)),
        ([tv.Resize((60, 100)), tv.RandomHorizontalFlip(1.0)], (0, 200, 120, 0)),
        ([tv.Grayscale(3), tv.Resize((24, 40), tv.InterpolationMode.BICUBIC)], (0, 0, 120, 200)),
    ],
)
def test_the_window_is_found_from_the_transforms(transforms, box):
    window = window_of(tv.Compose([*transforms, *NORMALISED]), (120, 200), repeated=True)
    assert window.box == pytest.approx(box, abs=0.6)


@pytest.mark.parametrize(
    "transforms",
    [tv.RandomRotation((20, 20)), tv.RandomRotation((90, 90)), tv.RandomPerspective(1, 1), tv.RandomCrop(40)],
)
def test_other_transforms_are_refused_for_overlays(tmp_path, transforms):
    both = tv.Compose([tv.Resize((60, 100)), transforms, *NORMALISED])
    with pytest.raises(camlib.CamlibValueError, match='give such, or storage="parquet"'):
        window_of(both, (120, 200), repeated=True)
    source = pictures(tmp_path / "in", 2)
    with pytest.raises(camlib.CamlibValueError, match='give such, or storage="parquet"'):
        explained(source, tmp_path / "out", transforms=both)
    run = explained(source, tmp_path / "out2", transforms=both, storage="webdataset")
    assert [row.window for row in run] == [None, None]


@pytest.mark.parametrize("box", [None, 3, "1234", (1, 2, 3), (1, 2, 3, "4"), (1, 2, 1, 4)])
def test_a_wrong_box_is_refused(box):
    with pytest.raises(camlib.CamlibError, match="box"):
        Window((40, 60), (20, 20), box)


def test_a_window_restores_what_it_applies():
    window = Window((40, 60), (20, 20), (10, 5, 30, 25))
    picture = torch.rand(40, 60)
    torch.testing.assert_close(window.apply(picture), picture[10:30, 5:25])
    restored = window.restore(picture[10:30, 5:25])
    torch.testing.assert_close(restored[10:30, 5:25], picture[10:30, 5:25])
    assert float(restored.abs().sum()) == pytest.approx(float(picture[10:30, 5:25].sum()), rel=1e-5)
    mirrored = Window((40, 60), (20, 20), (10, 25, 30, 5))
    torch.testing.assert_close(mirrored.apply(picture), picture[10:30, 5:25].flip(-1))
    torch.testing.assert_close(mirrored.restore(mirrored.apply(picture)), restored)
    with pytest.raises(camlib.CamlibValueError, match="must not be empty"):
        Window((4, 4), (2, 2), (1, 1, 1, 3))


def module_level(picture):
    return Scaled()(picture)


@pytest.mark.parametrize(
    "other",
    [
        {"target": 2},
        {"transforms": Scaled((32, 32))},
        {"transforms": module_level},
        {"batch_size": 3},
        {"colormap": "viridis"},
        {"alpha": 0.25},
        {"heatmaps": True},
        {"settings": {"note": "second"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_run_with_other_settings_is_refused_and_names_them(tmp_path, other):
    source = pictures(tmp_path / "in", 3)
    before = rows(explained(source, tmp_path / "out"))
    name = "note" if "settings" in other else next(iter(other))
    with pytest.raises(camlib.CamlibValueError, match=rf"other settings \(different .*{name}"):
        explained(source, tmp_path / "out", **other)
    assert rows(explained(source, tmp_path / "out")) == before


def test_another_model_method_or_image_is_refused(tmp_path):
    source = pictures(tmp_path / "in", 3)
    explained(source, tmp_path / "out")
    options = {"transforms": Scaled(), "batch_size": 4, "shard_size": 8, "progress": False}
    for explainer in (camlib.GradCAM(network(1), "1"), camlib.LayerCAM(network(), "1"), camlib.GradCAM(network(), "0")):
        with pytest.raises(camlib.CamlibValueError, match="different explainer"):
            camlib.explain_dataset(explainer, source, tmp_path / "out", **options)
    (source / "0001.png").rename(source / "0009.png")
    with pytest.raises(camlib.CamlibValueError, match="other images than those that the run has explained"):
        explained(source, tmp_path / "out")
    (source / "0000.png").unlink()
    (source / "0009.png").unlink()
    (source / "0002.png").unlink()
    with pytest.raises(camlib.CamlibValueError, match="some are missing"):
        explained(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("transforms", "what"),
    [
        (lambda picture: Scaled()(picture), "a lambda"),
        (functools.partial(module_level), "a functools.partial"),
        (tv.Compose([tv.Lambda(lambda picture: Scaled()(picture))]), "a lambda"),
    ],
    ids=["lambda", "partial", "inside"],
)
def test_what_cannot_be_recognised_is_refused_unless_it_is_named(tmp_path, transforms, what):
    source = pictures(tmp_path / "in", 3)
    with pytest.raises(camlib.CamlibValueError, match=rf"transforms cannot be recognised .*\({what}\).*settings="):
        explained(source, tmp_path / "out", transforms=transforms)
    expected = [row[:4] for row in rows(explained(source, tmp_path / "whole"))]
    named = {"transforms": transforms, "settings": {"transforms": "first"}}
    assert [row[:4] for row in rows(explained(source, tmp_path / "out", **named))] == expected
    assert [row[:4] for row in rows(explained(source, tmp_path / "out", **named))] == expected
    with pytest.raises(camlib.CamlibValueError, match="different transforms"):
        explained(source, tmp_path / "out", transforms=transforms, settings={"transforms": "second"})
    assert len(explained(source, tmp_path / "out2", transforms=transforms, resume=False)) == 3
    with pytest.raises(camlib.CamlibValueError, match="needs a new or an empty folder"):
        explained(source, tmp_path / "out2", transforms=transforms, resume=False)


def test_settings_are_the_same_in_another_process_and_differ_with_an_attribute():
    preset = "tv.Compose([tv.Resize(8, tv.InterpolationMode.BICUBIC), tv.CenterCrop(6), tv.ToTensor()])"
    program = (
        "import json; from torchvision import transforms as tv\n"
        f"from camlib.datasets.settings import described; print(json.dumps(described({preset})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    here = described(tv.Compose([tv.Resize(8, tv.InterpolationMode.BICUBIC), tv.CenterCrop(6), tv.ToTensor()]))
    assert json.loads(done.stdout) == json.loads(json.dumps(here))
    others = [
        tv.Compose([tv.Resize(8, tv.InterpolationMode.BILINEAR), tv.CenterCrop(6), tv.ToTensor()]),
        tv.Compose([tv.Resize(9, tv.InterpolationMode.BICUBIC), tv.CenterCrop(6), tv.ToTensor()]),
        tv.Compose([tv.Resize(8, tv.InterpolationMode.BICUBIC), tv.CenterCrop(7), tv.ToTensor()]),
    ]
    assert all(described(other) != here for other in others)


def test_a_folder_of_something_else_is_not_written_to(tmp_path):
    source = pictures(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(camlib.CamlibValueError, match="holds files of something else, such as 'letter.txt'"):
        explained(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["letter.txt"]
    with pytest.raises(camlib.CamlibValueError, match="holds no run"):
        camlib.open_run(tmp_path / "out")


def test_two_runs_do_not_share_a_folder(tmp_path):
    source = pictures(tmp_path / "in", 6)

    class Nested(Scaled):
        def __call__(self, picture):
            with pytest.raises(camlib.CamlibValueError, match="is in use by another run"):
                explained(source, tmp_path / "out", transforms=Scaled(), settings={"transforms": "one"})
            return super().__call__(picture)

    assert len(explained(source, tmp_path / "out", transforms=Nested(), settings={"transforms": "one"})) == 5


def test_paths_globs_folders_and_datasets_are_sources(tmp_path):
    folder = pictures(tmp_path / "in" / "deep", 4).parent
    files = sorted((folder / "deep").iterdir())
    for place, source in enumerate((folder, str(folder / "**" / "*.png"), files, [folder / "deep"])):
        assert [row.path for row in explained(source, tmp_path / f"out{place}")] == list(map(str, files))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Image.open(files[index]), index

    run = explained(Pictures(), tmp_path / "dataset")
    expected = explained(folder, tmp_path / "paths")
    assert [row[2:] for row in rows(run)] == [row[2:] for row in rows(expected)]
    assert [row.path for row in run] == ["0", "1", "2", "3"]
    listed = explained(folder, tmp_path / "listed", target=[3, 1, 4, 1])
    assert [row.classes for row in listed] == [(3,), (1,), (4,), (1,)]
    for wrong in (7, [], "none.png", str(folder / "*.gif")):
        with pytest.raises(camlib.CamlibError, match="source|does not exist|matches no file"):
            explained(wrong, tmp_path / "wrong")
    with pytest.raises(camlib.CamlibValueError, match="pictures need transforms"):
        explained(folder, tmp_path / "wrong", transforms=None)


def test_smoothings_and_class_names_are_taken_and_the_caller_keeps_his_explainer(tmp_path):
    source = pictures(tmp_path / "in", 3)
    method = camlib.GradCAM(network(), "1")
    smoothed = camlib.TestTimeAugmentation(method)
    names = ["a", "b", "c", "d", "e"]
    run = camlib.explain_dataset(
        smoothed, source, tmp_path / "out", transforms=Scaled(), class_names=names, progress=False, device="cpu"
    )
    assert "augmentation" in run[0].frame["method"]
    assert method.on_nonfinite == "raise"
    table = (tmp_path / "out" / "index.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in table[1:]] == [names[row.classes[0]] for row in run]


def test_a_shard_takes_about_a_hundred_bytes_for_a_map_of_seven_by_seven(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.utils.data.StackDataset(torch.rand(2000, 3, 28, 28, generator=generator))
    run = explained(images, tmp_path / "out", transforms=None, storage="parquet", shard_size=2000, batch_size=100)
    assert run[0].map.shape == (7, 7)
    maps = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.parquet"))
    assert maps / 2000 < 150


MEMORY = """
import resource, sys, tempfile
from pathlib import Path
import torch
from tests.datasets.small import explained


class Images(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((3, 128, 128), index / self.count)  # 192 KiB


def peak(count):
    with tempfile.TemporaryDirectory() as folder:
        explained(Images(count), folder, transforms=None, storage="webdataset", shard_size=64, batch_size=16, workers=2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


before = peak(300)
print(peak(2000) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of memory is that of Linux")
def test_the_memory_does_not_grow_with_the_number_of_images(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1700 * 192 / 10  # KiB; a tenth of the images that were added
