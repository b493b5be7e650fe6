"""Importing camlib loads next to nothing; its names load torch and no more, and every promised name is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import camlib

NEW_MODULES = """
import json, sys
import torch
before = set(sys.modules)
import camlib
print(json.dumps(sorted(set(sys.modules) - before)))
for name in camlib.__all__:
    getattr(camlib, name)
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""

CONTRACT = {
    "GradCAM", "Explanation", "find_layer", "list_layers", "create", "METHODS", "capture", "functional", "imaging",
    "methods", "metrics", "targets", "testing", "CamlibError", "TopK", "normalize", "resize", "colorize", "overlay",
    "CamlibValueError", "CamlibTypeError", "CamlibRuntimeError", "compare",
}  # fmt: skip


def test_import_loads_nothing_and_all_names_only_torch_and_the_standard_library():
    done = subprocess.run([sys.executable, "-c", NEW_MODULES], capture_output=True, text=True, check=True)
    by_import, by_names = map(json.loads, done.stdout.splitlines())
    assert by_import == ["camlib"]
    assert set(by_names) - {"camlib", "torch"} <= sys.stdlib_module_names
    assert not set(by_names) & {"torchvision", "cv2", "matplotlib", "PIL"}


@pytest.mark.slow
def test_gradients_need_neither_pictures_nor_plots():
    code = (
        "import sys, torch, camlib\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), "
        "torch.nn.Flatten(), torch.nn.Linear(4, 2))\n"
        "assert camlib.GradCAM(net)(torch.rand(2, 3, 8, 8)).heatmaps().shape == (2, 8, 8)\n"
        "print([name for name in ('torchvision', 'cv2', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_contract_is_public():
    assert set(camlib.__all__) >= CONTRACT
    assert all(hasattr(camlib, name) for name in camlib.__all__)
    assert camlib.METHODS["grad_cam"] is camlib.GradCAM


def public(module: ModuleType) -> set[str]:
    return {name for name in getattr(module, "__all__", dir(module)) if not name.startswith("_")}


VERBS = {"normalize", "resize", "colorize", "overlay", "read_image", "TopK"}
"""Names of modules that users type so often that they are at the top, too."""


def test_the_face_is_small_and_every_name_has_one_home():
    top = public(camlib)
    methods = {method.__name__ for method in camlib.METHODS.values()}
    assert len(top - methods) <= 40, "besides methods, camlib shows what users type; everything else has a module"
    for name in top:
        if isinstance(getattr(camlib, name), ModuleType):
            repeated = public(getattr(camlib, name)) & (top - VERBS)
            assert not repeated, f"camlib.{name} repeats names of camlib: {repeated}"
    assert public(camlib.functional) >= {"grad_cam", "score_cam", "full_gradients"}
    assert {"Method", "LayerMethod", "GradientMethod", "ActivationMethod"} <= public(camlib.methods)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'camlib' has no attribute 'GradCam'"):
        camlib.GradCam  # noqa: B018


def test_types_are_shipped():
    assert (Path(camlib.__file__).parent / "py.typed").is_file()
