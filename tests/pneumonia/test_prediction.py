"""New images of every format are predicted as in the run, also if another image is damaged."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from pneumonia.calibration import probabilities_of
from pneumonia.checkpoint import Recipe
from pneumonia.cli import main
from pneumonia.data import CLASSES, load
from pneumonia.model import build
from pneumonia.network import Network
from pneumonia.prediction import unique_names

DECISION = {"threshold": 0.5, "temperature": 2.0, "rule": "0.5, fixed in advance", "layer": "layer3"}
RECIPE = asdict(Recipe(2, 8, 32, 1e-3, 0, "full", "none", "x", 2))
HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and images of every kind, one of them damaged."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    model = build("none")[0]
    save(folder / "checkpoint.pt", model)
    random = np.random.default_rng(0)
    images = folder / "images"
    (images / "again").mkdir(parents=True)
    for name, shape in (("a.png", (40, 56)), ("again/a.jpeg", (64, 48)), (HOSTILE, (33, 47))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(images / name)
    write_dicom(images / "x.dcm", random.integers(0, 4096, (50, 70)))
    (images / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def save(path, model, **changes):
    state = {"model": model.state_dict(), "recipe": RECIPE, "decision": DECISION} | changes
    torch.save(state, path)


def write_dicom(path, stored):
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid(entropy_srcs=["camlib"])
    made.PatientName = made.PatientID = "Sentinel^Patient"
    made.Rows, made.Columns = stored.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = stored.astype("<u2").tobytes()
    made.save_as(path, enforce_file_format=True)
    assert pydicom.dcmread(path).Rows == stored.shape[0]


def predict(folder, *arguments):
    options = ["--checkpoint", str(folder / "checkpoint.pt"), "--output", str(folder / "out"), "--device", "cpu"]
    return main(["predict", *map(str, arguments), *options])


@pytest.fixture(scope="module")
def results(folder):
    assert predict(folder, folder / "images") == 0
    return json.loads((folder / "out/predictions.json").read_text())


def test_every_readable_image_has_a_row_and_an_overlay_at_its_own_resolution(folder, results):
    assert len(results["predictions"]) == 4
    sizes = {row["image"].rsplit("/")[-1]: row["overlay"] for row in results["predictions"]}
    for name, shape in (("a.png", (40, 56)), ("a.jpeg", (64, 48)), (HOSTILE, (33, 47)), ("x.dcm", (50, 70))):
        with Image.open(folder / "out" / sizes[name]) as overlay:
            assert overlay.size == shape[::-1]
            assert np.asarray(overlay).std() > 5
    assert len(set(sizes.values())) == 4


def test_probability_and_decision_are_those_of_the_run(folder, results):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = build("none")[0]
    model.load_state_dict(state["model"])
    path = folder / "images/a.png"
    pixels = load([(path, 0), (folder / "images/again/a.jpeg", 1)], 36, "x").pixels[:1]
    views = Network(model, 32, torch.device("cpu")).margins(pixels).double().numpy()
    (row,) = [row for row in results["predictions"] if row["image"] == str(path)]
    assert row["probability"] == pytest.approx(probabilities_of(views, 2.0)[0], abs=1e-6)
    assert all(row["decision"] == CLASSES[row["probability"] >= 0.5] for row in results["predictions"])
    assert (results["threshold"], results["layer"], results["method"]) == (0.5, "layer3", "grad_cam")
    assert "not a medical device" in results["notice"]


def test_image_that_cannot_be_read_is_listed_and_the_others_are_predicted(results, folder, capsys):
    (skipped,) = results["skipped"]
    assert "broken.png cannot be read as a picture" in skipped
    assert predict(folder, folder / "images/broken.png", folder / "images/a.png") == 0
    assert "1 file skipped" in capsys.readouterr().out
    assert predict(folder, folder / "images/broken.png") == 2


def test_nothing_of_a_dicom_header_is_written_or_printed(folder, capsys):
    assert predict(folder, folder / "images") == 0
    captured = capsys.readouterr()
    assert "Sentinel" not in captured.out + captured.err
    for path in (folder / "out").iterdir():
        assert b"Sentinel" not in path.read_bytes()


def test_method_and_layer_can_be_chosen(folder):
    assert predict(folder, folder / "images/a.png", "--method", "layer_cam", "--layer", "layer2") == 0
    results = json.loads((folder / "out/predictions.json").read_text())
    assert (results["method"], results["layer"]) == ("layer_cam", "layer2")


def test_images_of_several_batches_keep_their_order(folder, monkeypatch):
    files = sorted(path for path in (folder / "images").rglob("*") if path.is_file() and path.name != "broken.png")
    assert predict(folder, *files) == 0
    at_once = json.loads((folder / "out/predictions.json").read_text())["predictions"]
    monkeypatch.setattr("pneumonia.prediction.AT_ONCE", 3)
    assert predict(folder, *files) == 0
    apart = json.loads((folder / "out/predictions.json").read_text())["predictions"]
    assert [row["image"] for row in apart] == [str(path) for path in files]
    for one, other in zip(at_once, apart, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_names_do_not_collide_if_case_is_ignored(tmp_path):
    files = [tmp_path / name for name in ("x.png", "b/X.jpeg", "c/x.dcm", "x-2.png")]
    names = list(unique_names(files).values())
    assert len({name.casefold() for name in names}) == 4


def bad_checkpoints(folder):
    torch.manual_seed(0)
    model = build("none")[0]
    save(folder / "none.pt", model)
    state = torch.load(folder / "none.pt", weights_only=True)
    del state["decision"]
    torch.save(state, folder / "none.pt")
    save(folder / "odd.pt", model, decision=DECISION | {"threshold": 1.5})
    save(folder / "cold.pt", model, decision=DECISION | {"temperature": 0.0})
    save(folder / "empty.pt", model, decision={})
    torch.save({"model": {"x": torch.zeros(1)}, "decision": DECISION, "recipe": RECIPE}, folder / "other.pt")
    return {
        "none.pt": "run.py --resume finishes it",
        "odd.pt": "threshold=1.5",
        "cold.pt": "temperature=0.0",
        "empty.pt": "is not a checkpoint of run.py",
        "other.pt": "is not a checkpoint of run.py",
        "nowhere.pt": "there is no checkpoint",
    }


def test_bad_input_is_one_line_and_status_2(folder, tmp_path, capsys):
    image = str(folder / "images/a.png")
    cases = {
        complaint: [image, "--checkpoint", str(tmp_path / name)]
        for name, complaint in bad_checkpoints(tmp_path).items()
        if name != "empty.pt"
    }
    good = ["--checkpoint", str(folder / "checkpoint.pt")]
    cases |= {
        "there is no image": [str(tmp_path / "nothing.png"), *good],
        "holds no JPEG, PNG or DICOM images": [str(empty(tmp_path)), *good],
        "did you mean": [image, *good, "--method", "grad_can"],
    }
    cases["is not a checkpoint of run.py"] = [image, "--checkpoint", str(tmp_path / "empty.pt")]
    for complaint, arguments in cases.items():
        assert main(["predict", *arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2, complaint
        said = capsys.readouterr().err
        (line,) = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("run.py predict: ")]
        assert complaint in line
        assert "Traceback" not in said


def empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"
