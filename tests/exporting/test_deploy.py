"""The example in examples/deploy: a file of ONNX is written, and explains a picture where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import camlib
from pneumonia.augment import prepare
from pneumonia.checkpoint import Decision, Recipe, write_decision
from pneumonia.model import build, write_state
from pneumonia.phantoms import generate

FOLDER = Path(__file__).parents[2] / "examples" / "deploy"
SIZE = 64
WITHOUT_TORCH = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "camlib"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refused())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
try:
    import torch
except ImportError:
    print("without torch")
"""


def run(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def explained(file: Path, folder: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """A phantom, its heatmap by explain.py, and what explain.py prints."""
    picture = np.asarray(generate(4, size=SIZE, seed=9).images[1])
    np.save(folder / "picture.npy", picture)
    said = run("-c", WITHOUT_TORCH, FOLDER / "explain.py", file, folder / "picture.npy", folder / "heatmap.npy")
    assert said.splitlines()[-1] == "without torch"
    return picture, np.load(folder / "heatmap.npy"), said


@pytest.mark.slow
def test_a_network_trained_on_phantoms_explains_a_phantom_without_torch(runtimes, tmp_path):
    file = tmp_path / "model.onnx"
    assert f"{SIZE} x {SIZE}" in run(FOLDER / "export.py", file, "--size", SIZE, "--steps", 4)
    _, heatmap, said = explained(file, tmp_path)
    assert heatmap.shape == (SIZE, SIZE)
    assert (heatmap.min(), heatmap.max()) == (0, 1)
    assert said.split()[0] in ("NORMAL", "PNEUMONIA")


@pytest.mark.slow
def test_the_checkpoint_of_the_pneumonia_example_gives_the_heatmap_of_camlib(runtimes, tmp_path):
    torch.manual_seed(3)
    model = build("none")[0].eval()
    recipe = Recipe(1, 2, SIZE, 1e-3, 0, "all", "none", "", 1)
    write_state({"model": model.state_dict(), "recipe": vars(recipe)}, tmp_path / "checkpoint.pt")
    write_decision(tmp_path / "checkpoint.pt", Decision(0.5, 1.0, "none", "layer3"))
    file = tmp_path / "model.onnx"
    run(FOLDER / "export.py", file, "--checkpoint", tmp_path / "checkpoint.pt")
    picture, heatmap, said = explained(file, tmp_path)
    images = prepare(torch.from_numpy(picture)[None], SIZE)
    wanted = camlib.GradCAM(model, "layer3")(images, 1).heatmaps()[0]
    np.testing.assert_allclose(heatmap, wanted.numpy(), atol=1e-5)
    assert "grad_cam at network.layer3" in said
