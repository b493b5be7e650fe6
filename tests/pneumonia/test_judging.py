"""judge.py judges the methods on the network that run.py has trained."""

from __future__ import annotations

import json

import pytest
import torch

from pneumonia import judging, sources
from pneumonia.judging import main
from pneumonia.model import build
from pneumonia.train import fingerprint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder of a run on few small phantoms."""
    monkeypatch.setattr(
        "pneumonia.pipeline.from_phantoms", lambda count, size, seed: sources.from_phantoms(24, size, seed)
    )
    torch.manual_seed(0)
    few = sources.from_phantoms(24, 36, 0)
    recipe = {"size": 32, "seed": 0, "images": fingerprint(few.training, few.validation)}
    state = {"model": build("none")[0].state_dict(), "recipe": recipe}
    torch.save(state, tmp_path / "checkpoint.pt")
    (tmp_path / "metrics.json").write_text(json.dumps({"explained": {"layer": "layer2"}}))
    return tmp_path


def test_table_and_figure_are_written_for_the_layer_of_the_run(run, capsys):
    assert main(["--run", str(run), "--images", "2", "--methods", "grad_cam", "score_cam", "--max-passes", "60"]) == 0
    printed = capsys.readouterr().out
    assert "grad_cam, layer2" in printed
    assert "left out: score_cam, layer2: more than 60 forward passes" in printed
    assert "not a medical device" in printed
    table = json.loads((run / "methods.json").read_text())
    assert table["images"] == 2
    assert set(table["better"]) == {*judging.METRICS, *judging.OF_MASKS}
    assert (run / "methods.csv").exists()
    assert (run / "methods.png").stat().st_size > 10_000


def test_resuming_does_no_batch_again(run, monkeypatch):
    arguments = ["--run", str(run), "--images", "2", "--methods", "grad_cam", "--layers", "layer3"]
    assert main(arguments) == 0
    monkeypatch.setattr("camlib.evaluation.run._Bench.judged", lambda *_: pytest.fail("judged again"))
    assert main([*arguments, "--resume"]) == 0


def test_bad_input_is_one_line(run, capsys):
    for arguments, told in (
        (["--run", str(run / "nowhere")], "there is no checkpoint"),
        (["--run", str(run), "--images", "0"], "--images must be at least 1"),
        (["--run", str(run), "--methods", "grad_camm"], "did you mean 'grad_cam'"),
        (["--run", str(run), "--layers", "layer9"], "layer9"),
        (["--run", str(run), "--max-train", "10"], "was trained on other images"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    torch.save({"model": {}}, run / "checkpoint.pt")
    assert main(["--run", str(run)]) == 2
    assert "not a checkpoint of run.py" in capsys.readouterr().err


def test_without_metrics_json_the_layer_is_found(run):
    (run / "metrics.json").unlink()
    assert judging.explained_layer(run) is None
