"""Several seeds are several complete runs, and their spread matches its definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pneumonia.cli import main
from pneumonia.seeds import spread
from tests.radiographs import write_classes


def test_spread_is_mean_sample_deviation_and_range():
    found = spread([0.8, 0.9, 1.0])
    assert found.values == [0.8, 0.9, 1.0]
    assert (found.mean, found.deviation, found.least, found.most) == pytest.approx((0.9, 0.1, 0.8, 1.0))


def test_one_seed_has_no_spread():
    found = spread([0.7])
    assert np.isnan(found.deviation)
    assert found.mean == 0.7


@pytest.mark.slow
def test_each_seed_is_a_separate_run(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_classes(tmp_path / "data", 24, 24)
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--weights", "none"]
    arguments += ["--size", "32", "--epochs", "1", "--batch-size", "8", "--show", "1", "--explain", "4"]
    assert main([*arguments, "--seed", "5", "--seeds", "2"]) == 0
    torch.set_num_threads(threads)
    summary = json.loads((tmp_path / "out/seeds.json").read_text())
    runs = [json.loads((tmp_path / f"out/seed-{seed}/metrics.json").read_text()) for seed in (5, 6)]
    assert summary["seeds"] == [5, 6] == [run["settings"]["seed"] for run in runs]
    assert summary["test"]["auroc"]["values"] == [run["test"]["auroc"]["value"] for run in runs]
    assert runs[0]["settings"]["images"] != runs[1]["settings"]["images"]  # another split
    assert "seeds 5, 6: mean" in capsys.readouterr().out
