"""What SECURITY.md promises about files: which are read, how much memory they take, and how they are written."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

import camlib
from camlib import Explanation
from camlib.evaluation import Evaluation, TableRow
from camlib.explanation.files import MAX_BYTES
from camlib.imaging.limits import MAX_PIXELS
from camlib.plotting.figures import Figure
from camlib.reporting.page import Report

ROOT = Path(__file__).parents[1]


def explanation(**changes: Any) -> Explanation:
    given = {"maps": torch.rand(2, 3, 3), "scores": torch.rand(2), "outputs": None, "target": torch.tensor([0, 1])}
    fields: dict[str, Any] = {**given, "method": "grad_cam", "layer": "a", "input_size": (8, 8)}
    return Explanation(**{**fields, "layers": {"a": torch.rand(2, 3, 3)}, **changes})


READERS: dict[str, Callable[[Any], Any]] = {
    "read_image": camlib.read_image,
    "read_gray": camlib.imaging.read_gray,
    "load": Explanation.load,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
class TestOnlyRegularFiles:
    def test_a_pipe_a_device_and_a_folder_are_refused_at_once(self, reader: Any, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.dcm").symlink_to("/dev/zero")
        (tmp_path / "folder.png").mkdir()
        for path in tmp_path.iterdir():
            with pytest.raises(camlib.CamlibValueError, match="not a regular file"):
                reader(path)

    def test_a_link_to_a_file_is_followed(self, reader: Any, tmp_path: Path) -> None:
        Image.new("L", (4, 4)).save(tmp_path / "a.png")
        explanation().save(tmp_path / "a.npz")
        for ending in ("png", "npz"):
            (tmp_path / f"link.{ending}").symlink_to(tmp_path / f"a.{ending}")
        reader(tmp_path / ("link.npz" if reader is Explanation.load else "link.png"))

    @pytest.mark.parametrize("path", [1, True, 2.5, None, b"a.png", io.BytesIO()])
    def test_what_is_not_a_path_is_refused_and_no_descriptor_is_closed(self, reader: Any, path: Any) -> None:
        with pytest.raises(camlib.CamlibTypeError, match="a path must be a str or a pathlib.Path"):
            reader(path)
        os.fstat(1)

    def test_a_path_with_a_null_byte_is_refused(self, reader: Any) -> None:
        with pytest.raises(camlib.CamlibValueError, match="cannot be opened"):
            reader("a\0b.png")


def dicom(path: Path, syntax: Any, rows: int, columns: int, pixels: bytes, bits: int = 8) -> Path:
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PixelRepresentation = rows, columns, 1, 0
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PhotometricInterpretation = bits - 1, "MONOCHROME2"
    made.PixelData = pydicom.encaps.encapsulate([pixels]) if syntax.is_encapsulated else pixels
    made["PixelData"].VR = "OB" if bits == 8 else "OW"
    made.save_as(path, enforce_file_format=True)
    return path


SIDE = 20_000


def large_png(path: Path) -> Path:
    Image.new("1", (13_000, 13_000)).save(path / "large.png")  # which Pillow's own limit lets pass
    return path / "large.png"


def large_jpeg() -> bytes:
    """The header of a JPEG of 20,000 x 20,000 pixels, over the data of a small one."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = SIDE.to_bytes(2, "big") * 2
    return bytes(data)


def large_jpeg_2000() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = SIDE.to_bytes(4, "big") * 2
    return bytes(data)


LARGE: dict[str, Callable[[Path], Path]] = {
    "png": large_png,
    "dicom": lambda path: dicom(path / "a.dcm", ExplicitVRLittleEndian, SIDE, SIDE, bytes(8)),
    "dicom, deflated": lambda path: dicom(
        path / "a.dcm", DeflatedExplicitVRLittleEndian, 16, 16, bytes(6 * MAX_PIXELS + 64)
    ),
    "dicom, run lengths": lambda path: dicom(path / "a.dcm", RLELossless, SIDE, SIDE, bytes(64)),
    "dicom, jpeg inside": lambda path: dicom(path / "a.dcm", JPEGBaseline8Bit, 8, 8, large_jpeg()),
    "dicom, jpeg 2000 inside": lambda path: dicom(path / "a.dcm", JPEG2000Lossless, 8, 8, large_jpeg_2000()),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The memory in MiB that reading each large file takes in another process, and the error."""
    paths = {kind: str(make(tmp_path_factory.mktemp("large"))) for kind, make in LARGE.items()}
    code = f"""
import json, resource, camlib, pydicom, PIL.Image, cv2, numpy
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
found = {{}}
for kind, path in {paths!r}.items():
    before = peak()
    try:
        camlib.read_image(path)
    except camlib.CamlibValueError as error:
        found[kind] = (peak() - before, str(error))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", LARGE)
def test_a_picture_of_too_many_pixels_is_refused_before_memory_is_taken(
    kind: str, refusals: dict[str, tuple[int, str]]
) -> None:
    taken, said = refusals[kind]
    assert taken < 200
    assert "read; save it smaller" in said


def test_pictures_up_to_the_limit_are_read(tmp_path: Path) -> None:
    Image.new("1", (8192, 100)).save(tmp_path / "wide.png")
    assert camlib.read_image(tmp_path / "wide.png").shape == (100, 8192, 3)
    assert MAX_PIXELS == 8192 * 8192


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"\xd7\xcd\xc6\x9a"]
)
def test_no_decoder_that_runs_a_program_is_used(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(content + bytes(200))
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: started.append(args))
    with pytest.raises(camlib.CamlibValueError, match="cannot be read as a picture: (cannot identify|No module named)"):
        camlib.read_image(tmp_path / "x.png")
    assert not started


def changed_header(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        kept = dict(arrays)
    header = json.loads(str(kept.pop("header")))
    for name, value in changes.items():
        kept.pop(name, None)
        header["dtypes"].pop(name, None)
        header[name] = value
    np.savez_compressed(path, header=np.array(json.dumps(header)), **kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"extent": [0, 0]},
        {"extent": ["a", 2]},
        {"extent": [1e9, 1e9]},
        {"target": 5},
        {"target": [0, 1]},
        {"target": None},
        {"input_size": [1e9, 1e9]},
        {"input_size": [10**6, 10**6]},
        {"input_size": [0, 8]},
        {"input_size": [-8, 8]},
        {"input_size": "ab"},
        {"method": 3},
        {"layer": None},
        {"class_agnostic": "no"},
        {"unknown": 1},
        {"dtypes": {"maps": "float32"}},
        {"dtypes": {"maps": "manual_seed"}},
        {"dtypes": {"maps": "int64", "scores": "float32", "target": "int64", "layers/a": "float32"}},
        {"dtypes": {"maps": "float32", "scores": "float32", "target": "float32", "layers/a": "float32"}},
        {"dtypes": {"maps": "float32", "scores": "float32", "target": "int64", "layers/a": "int64"}},
        {"format": 99},
    ],
)
def test_a_changed_header_is_refused_when_the_file_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    explanation().save(tmp_path / "a.npz")
    changed_header(tmp_path / "a.npz", **changes)
    with pytest.raises(camlib.CamlibValueError, match="not an explanation that camlib saved"):
        Explanation.load(tmp_path / "a.npz")


@pytest.mark.parametrize("target", [torch.tensor([-1, 0]), torch.tensor([1])])
def test_a_target_that_is_no_class_of_each_image_is_refused(target: torch.Tensor, tmp_path: Path) -> None:
    saved = explanation()
    object.__setattr__(saved, "target", target)
    saved.save(tmp_path / "a.npz")
    with pytest.raises(camlib.CamlibValueError, match="not an explanation"):
        Explanation.load(tmp_path / "a.npz")


class TestArchives:
    def archive(self, path: Path, array: bytes, zeros: int) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("maps.npy", "w") as file:
            file.write(array)
            for _ in range(zeros // 2**20):
                file.write(bytes(2**20))
        return path

    def refused(self, path: Path, why: str) -> None:
        code = f"""
import resource, camlib
from camlib import Explanation
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Explanation.load({str(path)!r})
except camlib.CamlibValueError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert why in done.stdout, done
        assert int(done.stdout.split()[0]) < 200

    def header(self, shape: tuple[int, ...]) -> bytes:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return file.getvalue()

    def test_a_small_file_of_large_arrays_is_refused(self, tmp_path: Path) -> None:
        path = self.archive(tmp_path / "a.npz", self.header((MAX_BYTES // 4,)), MAX_BYTES)
        assert path.stat().st_size < 2**21
        self.refused(path, "more than max_bytes")

    def test_an_array_larger_than_its_data_is_refused(self, tmp_path: Path) -> None:
        self.refused(self.archive(tmp_path / "a.npz", self.header((2**34,)), 2**20), "does not fit into its")

    def test_a_caller_may_allow_more_or_less(self, tmp_path: Path) -> None:
        explanation().save(tmp_path / "a.npz")
        with pytest.raises(camlib.CamlibValueError, match="max_bytes=1000"):
            Explanation.load(tmp_path / "a.npz", max_bytes=1000)
        assert len(Explanation.load(tmp_path / "a.npz", max_bytes=10**6)) == 2


def evaluation() -> Evaluation:
    values = {TableRow("grad_cam", "a"): {"deletion": torch.rand(300, dtype=torch.float64)}}
    return Evaluation(values, {"deletion": "lower"}, {TableRow("grad_cam", "a"): 1})


def figure() -> Figure:
    made = Figure()
    made.subplots().plot([1, 2])
    return made


SAVERS: dict[str, Callable[[Path], Any]] = {
    "explanation": lambda path: explanation(maps=torch.rand(2, 64, 64)).save(path),
    "csv": lambda path: evaluation().to_csv(path),
    "json": lambda path: evaluation().to_json(path),
    "report": lambda path: Report("<!doctype html>" * 1000).save(path),
    "png": lambda path: figure().savefig(path, format="png"),
    "svg": lambda path: figure().savefig(path, format="svg"),
    "plot": lambda path: explanation().plot(torch.rand(2, 3, 8, 8)).savefig(path, format="png"),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
class TestWholeOrAsBefore:
    def test_a_full_disk_leaves_the_older_file_and_no_other(self, save: Callable[[Path], Any], tmp_path: Path) -> None:
        path = tmp_path / "file.x"
        path.write_bytes(b"older")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file.x", b"older")]

    def test_a_new_file_replaces_the_older_and_keeps_its_permissions_and_links(
        self, save: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        path, link = tmp_path / "file.x", tmp_path / "link.x"
        path.write_bytes(b"older")
        path.chmod(0o640)
        link.symlink_to(path)
        save(link)
        assert link.is_symlink()
        assert path.read_bytes() != b"older"
        assert path.stat().st_mode & 0o777 == 0o640
        assert sorted(one.name for one in tmp_path.iterdir()) == ["file.x", "link.x"]

    def test_a_folder_that_does_not_exist_is_named(self, save: Callable[[Path], Any], tmp_path: Path) -> None:
        with pytest.raises(camlib.CamlibValueError, match="nowhere.*cannot be written: No such file"):
            save(tmp_path / "nowhere" / "file.x")


def test_two_writers_of_one_file_leave_one_of_them_whole(tmp_path: Path) -> None:
    pages = [letter * 10**6 for letter in "abcd"]
    threads = [threading.Thread(target=lambda page=page: Report(page).save(tmp_path / "r.html")) for page in pages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "r.html").read_text() in pages
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_file_promises_names_the_limits() -> None:
    promises = " ".join((ROOT / "SECURITY.md").read_text().split())
    assert "8192 x 8192 pixels" in promises
    assert "384 MiB" in promises
    assert MAX_BYTES == 2**30
    assert "1 GiB" in promises
