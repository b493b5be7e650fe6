"""What the documents show is true: docstring examples and the README's code run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camlib

ROOT = Path(__file__).parents[1]
MODULES = [
    "camlib",
    *(found.name for found in pkgutil.walk_packages(camlib.__path__, "camlib.")),
    *(f"pneumonia.{found.name}" for found in pkgutil.iter_modules([str(ROOT / "examples/pneumonia/pneumonia")])),
]
SHOWN_ELSEWHERE = {"METHODS", "Method", "Captured", "CapturedLayers", "LayerInfo", "FullGradients"}
"""A table, the base of all methods, and what the functions capture, list_layers and full_gradients return."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed


PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (camlib, camlib.functional, camlib.methods)
    for name in dir(module)
    if not name.startswith("_") and name not in SHOWN_ELSEWHERE
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_functions_and_classes_have_an_example(name):
    thing = PUBLIC[name]
    if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
        assert ">>>" in (thing.__doc__ or ""), name


PAGES = sorted(
    str(path.relative_to(ROOT / "docs"))
    for path in (ROOT / "docs").rglob("*.rst")
    if path.relative_to(ROOT / "docs").parts[0] not in ("_build", "examples")  # what Sphinx makes
)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")  # of the other libraries beside which some pages run
def test_examples_of_the_documentation_are_true(page, request):
    if "ultralytics" in (ROOT / "docs" / page).read_text():
        request.getfixturevalue("ultralytics")
    torch.manual_seed(0)
    failed, _ = doctest.testfile(str(ROOT / "docs" / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert not failed


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_of_the_documentation_is_run(page):
    """As a doctest; blocks of another kind say what they are, and Python is none of them."""
    text = (ROOT / "docs" / page).read_text()
    assert set(re.findall(r"code-block:: *(\S*)", text)) <= {"console", "text"}
    assert not re.search(r"(?<!:)::\n\n +\S", re.sub(r"^ *\.\. .*::.*$", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("document", [*PAGES, "../README.md", "../CONTRIBUTING.md"])
def test_the_make_targets_that_documents_name_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^ *\$? ?|`)make ([a-z-]+)", (ROOT / "docs" / document).read_text(), re.MULTILINE)
    assert set(named) <= targets


def test_the_makefile_describes_every_target_and_its_quick_tests_exist():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):.*## +\S", text, re.MULTILINE))
    (quick,) = re.findall(r"^QUICK := \$\(addprefix tests/,(.*?)\)", text, re.MULTILINE | re.DOTALL)
    assert all((ROOT / "tests" / name).exists() for name in quick.replace("\\", "").split()), quick


@pytest.mark.slow
def test_readme_code_runs(tmp_path, monkeypatch):
    """Every Python block of the README, in order, on a small network and two pictures."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    load = camlib.loading.load
    monkeypatch.setattr("camlib.explaining.one_call.load", lambda name, weights: load(name, "none"))  # no download
    Image.new("RGB", (300, 200), "orange").save("cat.jpg")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer3 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
            self.layer4 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.ReLU())
            self.fc = nn.Linear(4, 7)

        def forward(self, x):
            return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))

    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pictures).movedim(-1, 1) / 255
    names = {"model": Model().eval(), "images": images, "pictures": pictures, "torch": torch}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "where.npz").exists()
    assert names["maps"].shape == (2, 16, 16)


def test_links_inside_the_project_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for found in re.findall(r"\]\(([^)#]+)|<img src=\"([^\"]+)", document.read_text()):
            target = "".join(found)
            assert "://" in target or (document.parent / target).exists(), f"{document}: {target}"
