"""run.py methods evaluates the methods on the network that run.py has trained."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
import torch

from pneumonia import methods, sources
from pneumonia.checkpoint import Decision, Recipe
from pneumonia.cli import main
from pneumonia.model import build


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder of a run on few small phantoms."""
    few = sources.from_phantoms(24, 36, 0)
    monkeypatch.setattr(sources, "from_phantoms", lambda count, size, seed: few)
    torch.manual_seed(0)
    save(tmp_path, few.fingerprint, decision=asdict(Decision(0.5, 1.0, "0.5, fixed in advance", "layer2")))
    return tmp_path


def save(folder, images, **more):
    recipe = Recipe(2, 8, 32, 1e-3, 0, "full", "none", images, 2)
    state = {"model": build("none")[0].state_dict(), "recipe": asdict(recipe)} | more
    torch.save(state, folder / "checkpoint.pt")


def test_table_and_figure_are_written_for_the_layer_of_the_run(run, capsys):
    assert (
        main(
            ["methods", "--run", str(run), "--images", "2", "--methods", "grad_cam", "score_cam", "--max-passes", "60"]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "grad_cam, layer2" in printed
    assert "left out: score_cam, layer2: more than 60 forward passes" in printed
    assert "not a medical device" in printed
    table = json.loads((run / "methods.json").read_text())
    assert table["images"] == 2
    assert set(table["better"]) == {*methods.METRICS, *methods.MASK_METRICS}
    assert (run / "methods.csv").exists()
    assert (run / "methods.png").stat().st_size > 10_000


def test_resuming_repeats_no_batch(run, monkeypatch):
    arguments = ["methods", "--run", str(run), "--images", "2", "--methods", "grad_cam", "--layers", "layer3"]
    assert main(arguments) == 0
    monkeypatch.setattr("camlib.evaluation.evaluator.Evaluator.evaluated", lambda *_: pytest.fail("evaluated again"))
    assert main([*arguments, "--resume"]) == 0


def test_bad_input_is_one_line(run, capsys):
    for arguments, complaint in (
        (["--run", str(run / "nowhere")], "there is no checkpoint"),
        (["--run", str(run), "--images", "0"], "--images: must be at least 1"),
        (["--run", str(run), "--methods", "grad_camm"], "did you mean 'grad_cam'"),
        (["--run", str(run), "--layers", "layer9"], "layer9"),
        (["--run", str(run), "--max-train", "10"], "was trained on other images"),
    ):
        assert main(["methods", *arguments]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.startswith("run.py methods: ")
        assert error.count("\n") == 1
    torch.save({"model": {}}, run / "checkpoint.pt")
    assert main(["methods", "--run", str(run)]) == 2
    assert "not a checkpoint of run.py" in capsys.readouterr().err


def test_the_layer_of_an_interrupted_run_is_found(run, capsys):
    save(run, sources.Source().read(32, 0).fingerprint)
    assert main(["methods", "--run", str(run), "--images", "2", "--methods", "grad_cam"]) == 0
    assert re.search(r"grad_cam, layer\d", capsys.readouterr().out)
