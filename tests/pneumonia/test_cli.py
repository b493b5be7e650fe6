"""The whole run, from folders to figures. Bad input ends in one line and exit status 2."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision

import camlib
from pneumonia.cli import main
from pneumonia.measures import MEASURES
from pneumonia.options import parser
from tests.radiographs import write_classes, write_kaggle

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[2] / "examples/pneumonia/run.py"
EPOCHS = 12
QUICK = ["--weights", "none", "--size", "32", "--epochs", "2", "--batch-size", "8", "--show", "2", "--subsets", "2"]
QUICK += ["--explain", "4"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on a folder in which one image cannot be read."""
    folder = tmp_path_factory.mktemp("run")
    write_kaggle(folder / "data")
    broken = folder / "data/train/NORMAL/IM-0001-0000.jpeg"
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["--data", str(folder / "data"), "--output", str(folder / "out"), "--num-images", "9", *QUICK]) == 0
    return folder


def test_run_writes_every_file_that_the_readme_lists(finished):
    names = {path.name for path in (finished / "out").iterdir()}
    assert names == {
        "checkpoint.pt", "history.csv", "metrics.json", "training.png", "evaluation.png", "heatmaps.png",
        "explanation.npz", "report.html",
    }  # fmt: skip
    for name in names:
        if name.endswith(".png"):
            assert cv2.imread(str(finished / "out" / name)).std() > 5


def test_results_describe_the_run(finished):
    results = json.loads((finished / "out/metrics.json").read_text())
    assert results["settings"]["weights"] == "none"
    assert results["test"]["images"] == 14
    assert len(results["subsets"]) == 2
    assert {row["images"] for row in results["subsets"]} == {9}
    assert np.sum(results["test"]["confusion"]) == 14
    assert "not a medical device" in results["notice"]
    assert [note for note in results["notes"] if "IM-0001-0000.jpeg" in note]
    right = [(row["probability"] >= results["threshold"]) == bool(row["label"]) for row in results["predictions"]]
    assert results["test"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    with (finished / "out/history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    for part in ("test", "validation", "validation_elsewhere"):
        for name in MEASURES:
            low, high = results[part][name]["interval"]
            assert low <= results[part][name]["value"] <= high
    assert results["subgroups"].keys() == {"bacteria", "virus"}
    assert results["calibration"].keys() == {"uncalibrated", "calibrated"}
    assert results["quality"].keys() >= {"randomisation", "faithfulness", "shortcuts", "agreement"}


def test_checkpoint_holds_the_decision_that_was_reported(finished):
    results = json.loads((finished / "out/metrics.json").read_text())
    decision = torch.load(finished / "out/checkpoint.pt", weights_only=True)["decision"]
    assert decision == {
        "threshold": results["threshold"],
        "temperature": results["temperature"],
        "rule": results["threshold_rule"],
        "layer": results["explained"]["layer"],
    }


def test_new_images_are_predicted_with_the_checkpoint_as_in_the_test_set(finished):
    results = json.loads((finished / "out/metrics.json").read_text())
    images = [row["image"] for row in results["predictions"]]
    arguments = ["--checkpoint", str(finished / "out/checkpoint.pt"), "--output", str(finished / "predicted")]
    assert main(["predict", *images, *arguments]) == 0
    rows = json.loads((finished / "predicted/predictions.json").read_text())["predictions"]
    found = {row["image"]: row["probability"] for row in rows}
    for row in results["predictions"]:
        assert found[row["image"]] == pytest.approx(row["probability"], abs=2e-2)  # bfloat16 there, if it is fast


def test_threshold_follows_the_rule_that_is_given(finished, tmp_path):
    arguments = ["--data", str(finished / "data"), "--output", str(tmp_path), "--num-images", "9", *QUICK]
    shutil.copy(finished / "out/checkpoint.pt", tmp_path / "checkpoint.pt")
    assert main([*arguments, "--resume", "--threshold", "0.25"]) == 0
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["threshold"] == 0.25
    assert results["threshold_rule"] == "0.25, fixed in advance"


def test_explained_images_are_test_images_and_of_the_predicted_class(finished):
    results = json.loads((finished / "out/metrics.json").read_text())
    explanation = camlib.Explanation.load(finished / "out/explanation.npz")
    probability = {row["image"]: row["probability"] for row in results["predictions"]}
    shown = results["explained"]["images"]
    assert len(shown) == len(explanation) == 2
    assert explanation.target.tolist() == [int(probability[name] >= results["threshold"]) for name in shown]


def test_resuming_repeats_the_results_without_training(finished, capsys):
    before = json.loads((finished / "out/metrics.json").read_text())
    arguments = ["--data", str(finished / "data"), "--output", str(finished / "out"), "--num-images", "9", *QUICK]
    assert main([*arguments, "--resume"]) == 0
    after = json.loads((finished / "out/metrics.json").read_text())
    assert "resuming after epoch 2 of 2" in capsys.readouterr().out
    for name in ("test", "subsets", "predictions", "threshold", "history"):
        assert before[name] == after[name]


def test_head_alone_is_trained(tmp_path):
    write_classes(tmp_path / "data", 24, 24)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pt")
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--weights", str(tmp_path / "w.pt"), "--finetune", "head", "--split", "image"]) == 0
    trained = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["training"]
    assert all(torch.equal(trained[name], state[name]) for name in state if not name.startswith("fc."))


def test_killed_run_loses_at_most_an_epoch(tmp_path):
    write_kaggle(tmp_path / "data")
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *QUICK]
    arguments += ["--epochs", str(EPOCHS)]
    process = subprocess.Popen([sys.executable, RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    while not (tmp_path / "out/history.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    kept = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["history"]
    assert 1 <= len(kept) < EPOCHS
    assert main([*arguments, "--resume"]) == 0
    history = json.loads((tmp_path / "out/metrics.json").read_text())["history"]
    assert len(history) == EPOCHS
    assert history[: len(kept)] == kept


def bad_inputs(folder):
    write_classes(folder / "good", 24, 24)
    write_classes(folder / "one class", 5, 0)
    broken = write_classes(folder / "broken", 10, 10)
    for path in broken[:8]:
        path.write_bytes(b"not an image")
    (folder / "empty").mkdir()
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), folder / "squeezenet.pt")
    (folder / "file").write_text("x")
    good = ["--data", f"{folder}/good"]
    return {
        "there is no folder": ["--data", f"{folder}/nowhere"],
        "holds no images": ["--data", f"{folder}/empty"],
        "both classes are needed": ["--data", f"{folder}/one class"],
        "8 of 20 images": ["--data", f"{folder}/broken"],
        "not a checkpoint of a ResNet-18": [*good, "--weights", f"{folder}/squeezenet.pt"],
        "there is no checkpoint": [*good, "--weights", f"{folder}/nothing.pt"],
        "--device tpu is not available": [*good, "--device", "tpu"],
        "--device cuda:x is not": [*good, "--device", "cuda:x"],
        "--size: must be at least 32, got 8": [*good, "--size", "8"],
        "--epochs: must be at least 1, got 0": [*good, "--epochs", "0"],
        "--max-train: must be at least 8, got 0": [*good, "--max-train", "0"],
        "layer 'fc' returns shape": [*good, "--layer", "fc"],
        "is called more than once": [*good, "--layer", "layer4.1.relu"],
        "--seeds: must be at least 1, got 0": [*good, "--seeds", "0"],
        "--threshold must be youden": [*good, "--threshold", "best"],
        "--lr: must be a positive number, got -1": [*good, "--lr", "-1"],
        "--seed: invalid whole number value: 'x'": [*good, "--seed", "x"],
        "unrecognized arguments: --colour": [*good, "--colour"],
        "cannot be created": [*good, "--output", f"{folder}/file/out"],
        "did you mean": [*good, "--layer", "layr4"],
    }


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    for complaint, arguments in bad_inputs(tmp_path).items():
        assert main([*QUICK, "--output", f"{tmp_path}/out", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        (line,) = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("run.py: ")]
        assert complaint in line
        assert "Traceback" not in said


def test_bad_input_at_the_command_line_shows_no_traceback(tmp_path):
    done = subprocess.run([sys.executable, RUN, "--data", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"run.py: there is no folder {tmp_path / 'x'}; give --data")


def test_a_reduced_training_set_has_both_classes(tmp_path):
    write_classes(tmp_path / "data", 20, 100)
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *QUICK, "--split", "image"]
    assert main([*arguments, "--max-train", "8"]) == 0
    notes = json.loads((tmp_path / "out/metrics.json").read_text())["notes"]
    assert "training on 8 images only" in notes


def test_missing_package_names_the_extra(tmp_path):
    code = f"import runpy, sys; sys.modules['sklearn'] = None; runpy.run_path({str(RUN)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install -e '.[pneumonia]'" in done.stderr


def test_interruption_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumonia.cli.run", interrupted)
    assert main([]) == 130
    assert "--resume continues" in capsys.readouterr().err


def test_help_says_that_it_is_not_a_medical_device():
    text = " ".join(parser().format_help().split())
    assert "not a medical device" in text
    assert "auto|imagenet|none|FILE" in text
