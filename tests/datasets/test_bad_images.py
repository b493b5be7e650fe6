"""An image that cannot be read or explained costs only itself, and is listed with the reason."""

from __future__ import annotations

import csv
import errno
import glob
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlib
from camlib.imaging.limits import MAX_PIXELS
from tests.datasets.small import Scaled, contents, explained, network, pictures, rows


def gradient(size=(30, 40), kind=np.uint8):
    values = np.linspace(0, np.iinfo(kind).max, size[0] * size[1]).reshape(size)
    return values.astype(kind)


def saved(folder, name, picture, **options):
    folder.mkdir(exist_ok=True)
    picture.save(folder / name, **options)
    return folder / name


def the_row(source, out, **options):
    run = explained(source, out, **options)
    assert run.errors == []
    (row,) = run
    return row


def test_each_kind_of_damage_is_listed_and_the_others_are_explained(tmp_path):
    folder = tmp_path / "in"
    saved(folder, "good.png", Image.fromarray(gradient()))
    content = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[:60])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "broken-link.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("no picture's ending: not taken from a folder")
    run = explained(folder, tmp_path / "out")
    assert [Path(row.path).name for row in run] == ["good.png"]
    found = {Path(path).name: why for path, why in run.errors}
    assert set(found) == {"truncated.png", "empty.jpg", "text.jpg", "broken-link.png"}
    assert all("\n" not in why and len(why) > 20 for why in found.values())
    with (tmp_path / "out" / "index.csv").open(encoding="utf-8", newline="") as file:
        table = {Path(line["path"]).name: line for line in csv.DictReader(file)}
    assert {name: line["error"] for name, line in table.items()} == {**found, "good.png": ""}


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(gradient(kind=np.uint16)),
        Image.merge("CMYK", [Image.fromarray(gradient())] * 4),
        Image.fromarray(gradient()).convert("P"),
        Image.fromarray(gradient()).convert("RGBA"),
        Image.fromarray(gradient()).convert("1"),
    ],
    ids=["16 bits", "CMYK", "palette", "RGBA", "1 bit"],
)
def test_unusual_modes_are_explained_as_they_look(tmp_path, picture):
    path = saved(tmp_path / "in", "picture.tif", picture)
    shown = camlib.read_image(path)
    row = the_row(path, tmp_path / "out")
    expected = camlib.GradCAM(network(), "1")(Scaled()(Image.fromarray(shown))[None])
    torch.testing.assert_close(row.map, expected.maps[0])
    overlay = camlib.read_image(row.files["overlay"]).astype(int)
    assert np.abs(overlay - camlib.overlay(shown, row.heatmap())).mean() < 3  # JPEG


def test_a_picture_turned_by_exif_is_upright_in_its_overlay(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = saved(tmp_path / "in", "turned.jpg", Image.fromarray(gradient((30, 40))), exif=exif)
    row = the_row(path, tmp_path / "out")
    assert row.size == (40, 30)
    assert camlib.read_image(row.files["overlay"]).shape == (40, 30, 3)


def test_a_decompression_bomb_is_refused_by_its_header_with_the_limit(tmp_path):
    path = saved(tmp_path / "in", "bomb.png", Image.new("1", (2**13, 2**13 + 1)))
    assert path.stat().st_size < 2**20
    run = explained(path, tmp_path / "out")
    assert len(run) == 0
    ((_, why),) = run.errors
    assert str(MAX_PIXELS) in why


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_files_and_folders_without_permission_are_listed(tmp_path):
    folder = pictures(tmp_path / "in", 2)
    pictures(folder / "closed", 1)
    program = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from tests.datasets.small import explained\n"
        "explained(Path(sys.argv[1]) / '0000.png', Path(sys.argv[3]))\n"  # imports what is needed
        "os.geteuid() or os.setuid(65534)\n"  # root may read anything
        "run = explained(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps([[row.path for row in run], run.errors]))\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    for parent in [tmp_path, *tmp_path.parents][:4]:  # in parallel tests, one of them is that of the process
        parent.chmod(parent.stat().st_mode | 0o055)
    (folder / "0001.png").chmod(0)
    (folder / "closed").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(out), str(tmp_path / "first")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    (folder / "closed").chmod(0o700)
    assert done.returncode == 0, done.stderr
    explained_, errors = json.loads(done.stdout.splitlines()[-1])
    assert [Path(path).name for path in explained_] == ["0000.png"]
    assert {Path(path).name for path, _ in errors} == {"0001.png", "closed"}
    assert all("Permission denied" in why for _, why in errors)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere have no such names")
@pytest.mark.parametrize("storage", ["files", "parquet", "webdataset"])
def test_names_with_newlines_and_bytes_that_are_no_text_are_kept(tmp_path, storage):
    folder = pictures(tmp_path / "in", 1)
    names = [
        b"a\nb.png",
        b"caf\xe9.png",
        "é\u202e\U0001f600.png".encode(),
        b"=1+1.png",
        b"a..png",
        b"-" * 200 + b".png",
    ]
    for name in names:
        (Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))).write_bytes((folder / "0000.png").read_bytes())
    run = explained(folder, tmp_path / "out", storage=storage)
    assert run.errors == []
    assert {os.fsencode(os.path.basename(row.path)) for row in run} == {b"0000.png", *names}
    assert all(Path(row.path).is_file() and row.map.shape == (6, 6) for row in run)
    if storage == "files":
        written = {row.files["overlay"] for row in run}
        assert len(written) == len(names) + 1
        assert all(path.parent == tmp_path / "out" / "overlays" and path.is_file() for path in written)
        lines = list(csv.reader((tmp_path / "out" / "index.csv").read_text(encoding="utf-8").splitlines(keepends=True)))
        assert len(lines) == len(names) + 2
        assert not any(cell.startswith("=") for line in lines for cell in line)


def test_pictures_of_one_name_have_their_own_outputs(tmp_path):
    for place, name in enumerate(("a/cat.png", "a/cat.jpg", "b/cat.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(gradient((20 + place, 30))).save(tmp_path / name)
    run = explained([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "cat.jpg"], tmp_path / "out")
    files = [path for row in run for path in row.files.values()]
    assert len(run) == 4
    assert len(set(files)) == len(files) == 8
    for row in run:
        shown = camlib.read_image(row.files["overlay"]).shape[:2]
        assert shown == row.size == camlib.read_image(row.path).shape[:2]


def test_the_outputs_may_be_inside_the_source_and_are_not_read(tmp_path):
    folder = pictures(tmp_path / "in", 3)
    first = rows(explained(folder, folder / "out"))
    assert rows(explained(folder, folder / "out")) == first
    assert [Path(path).parent for _, path, *_ in first] == [folder] * 3
    everything = str(folder / "**" / "*.[jp][pn]g")
    found = explained(everything, folder / "out2")
    assert [row.path for row in found] == [
        path for path in sorted(glob.glob(everything, recursive=True)) if "out2" not in path
    ]
    assert any("overlays" in row.path for row in found)  # of another run


def test_an_output_of_the_run_that_is_named_is_listed(tmp_path):
    folder = pictures(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    os.link(folder / "0001.png", tmp_path / "out" / ".tmp-picture.png")
    run = explained([folder / "0000.png", tmp_path / "out" / ".tmp-picture.png"], tmp_path / "out")
    assert [Path(row.path).name for row in run] == ["0000.png"]
    ((path, why),) = run.errors
    assert path.endswith(".tmp-picture.png")
    assert "folder of the run" in why


class OneIsNotFinite(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(index))
        return image.fill_(torch.nan) if index == 2 else image


def test_an_image_that_is_not_finite_costs_itself_alone(tmp_path):
    data = OneIsNotFinite()
    run = explained(data, tmp_path / "out", storage="webdataset", transforms=None)
    assert [row.number for row in run] == [0, 1, 3, 4, 5]
    assert [(path, "not finite" in why) for path, why in run.errors] == [("2", True)]
    for row in run:
        alone = camlib.GradCAM(network(), "1")(data[row.number][None]).maps[0]
        torch.testing.assert_close(row.map, alone, rtol=2e-3, atol=2e-3 * float(alone.max()))  # float16


def test_images_of_other_shapes_are_explained_in_batches_of_their_own(tmp_path):
    class Mixed(OneIsNotFinite):
        def __getitem__(self, index):
            side = 24 + 8 * (index % 3)
            return (
                torch.rand(3 if index < 5 else 4, side, side, generator=torch.Generator().manual_seed(index)),
                "label",
            )

    run = explained(Mixed(), tmp_path / "out", storage="webdataset", transforms=None)
    assert [tuple(row.map.shape) for row in run] == [(6, 6), (8, 8), (10, 10), (6, 6), (8, 8)]
    ((path, why),) = run.errors
    assert path == "5"
    assert "channels" in why


def test_an_argument_that_fails_for_every_image_is_an_error_not_a_list(tmp_path):
    folder = pictures(tmp_path / "in", 3)
    with pytest.raises(camlib.CamlibValueError, match="classes 0 to 4"):
        explained(folder, tmp_path / "out", target=99)
    with pytest.raises(camlib.CamlibTypeError, match="transforms must return a tensor"):
        explained(folder, tmp_path / "out2", transforms=np.asarray)


def test_a_full_disk_stops_the_run_and_the_next_call_goes_on(tmp_path, monkeypatch):
    source = pictures(tmp_path / "in", 24)
    expected = contents(explained(source, tmp_path / "whole").out)
    real, calls = os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] >= 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    for workers in (0, 2):
        calls[0] = 0
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(camlib.CamlibRuntimeError, match="disk is full.*make room and call again"):
            explained(source, tmp_path / f"out{workers}", workers=workers)
        monkeypatch.setattr(os, "fsync", real)
        assert 0 < len(camlib.open_run(tmp_path / f"out{workers}")) < 22
        assert contents(explained(source, tmp_path / f"out{workers}", workers=workers).out) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
def test_a_limit_of_the_system_on_files_stops_the_run_in_the_same_way(tmp_path):
    source = pictures(tmp_path / "in", 30)
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.datasets.small import explained\n"
        "import camlib\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    explained(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except camlib.CamlibRuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "out")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "the disk is full" in done.stdout, done.stderr
    assert 0 < len(camlib.open_run(tmp_path / "out")) < 28
    assert rows(explained(source, tmp_path / "out")) == rows(explained(source, tmp_path / "whole"))
