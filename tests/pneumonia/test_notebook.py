"""The notebook runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples/pneumonia/pneumonia_gradcam.ipynb"


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # it trains a network


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.read(PATH, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PATH.parent), os.environ.get("PYTHONPATH", "")]))
        NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, folder


def test_every_cell_runs_on_phantoms(executed):
    notebook, folder = executed
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert (folder / "runs/notebook/report.html").stat().st_size > 100_000


def test_figures_and_heatmaps_are_shown(executed):
    outputs = [output for cell in executed[0].cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    said = "".join(output.get("text", "") for output in outputs)
    assert "test set: 280 images" in said
    assert "auroc" in said


def test_committed_notebook_has_no_outputs():
    for cell in nbformat.read(PATH, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_notebook_calls_the_examples_functions_and_defines_none():
    source = "\n".join(cell.source for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code")
    assert "pipeline.fit(" in source
    assert "def " not in source
    assert "class " not in source
