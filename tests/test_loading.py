"""Networks by name: those of the libraries, with their transforms and class names; weights without any code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import camlib
from camlib.loading import class_index, described, load
from camlib.loading.weights import state_dict_in

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def same(first: nn.Module, second: nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())


def test_torchvision_gives_the_transforms_and_categories_of_its_default_weights():
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    loaded = load("torchvision:resnet18", "none")
    assert torch.equal(loaded.transforms(PICTURE), weights.transforms()(PICTURE))
    assert loaded.classes == weights.meta["categories"]
    assert isinstance(loaded.model, torchvision.models.ResNet)
    assert not loaded.model.training


def test_timm_gives_its_data_config_and_imagenets_names():
    loaded = load("timm:convnext_atto", "none")
    config = timm.data.resolve_model_data_config(timm.create_model("convnext_atto"))
    assert torch.equal(loaded.transforms(PICTURE), timm.data.create_transform(**config)(PICTURE))
    assert len(loaded.classes) == 1000
    assert class_index("tabby", loaded.classes) == 281


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ViTForImageClassification]:
    """A folder that save_pretrained of Hugging Face wrote."""
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )  # fmt: skip
    torch.manual_seed(7)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path, model


def test_hugging_face_gives_its_processor_and_labels(saved):
    folder, model = saved
    loaded = load(f"hf:{folder}")
    assert same(loaded.model, model)
    assert loaded.classes == ["cat", "dog", "owl"]
    found = camlib.explain(f"hf:{folder}", PICTURE, method="libra_grad", target="owl")
    inputs = loaded.transforms(PICTURE)[None]
    assert inputs.shape == (1, 3, 32, 32)
    torch.testing.assert_close(found.maps, camlib.LibraGrad(model)(inputs, 2).maps)
    assert not same(load(f"hf:{folder}", "none").model, model)


def test_a_module_of_hugging_face_knows_its_folder(saved):
    folder, _ = saved
    loaded = described(ViTForImageClassification.from_pretrained(folder))
    assert loaded.transforms(PICTURE).shape == (3, 32, 32)
    assert loaded.classes == ["cat", "dog", "owl"]


def test_a_module_of_torchvision_keeps_neither():
    loaded = described(torchvision.models.resnet18())
    assert loaded.transforms is None
    assert loaded.classes is None


FORMS = {
    "a state dict": lambda state: state,
    "a checkpoint": lambda state: {"epoch": 3, "state_dict": state},
    "of DistributedDataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "of torch.compile": lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
    "of Lightning": lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1000, 2])
def test_weights_of_a_file_with_any_number_of_classes(form, classes, tmp_path):
    trained = torchvision.models.resnet18(num_classes=classes)
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "weights.pt")
    assert same(trained, load("torchvision:resnet18", tmp_path / "weights.pt").model)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:convnext_atto"])
def test_weights_of_safetensors(name, tmp_path):
    library, _, network = name.partition(":")
    build = timm.create_model if library == "timm" else torchvision.models.get_model
    trained = build(network, num_classes=5)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    assert same(trained, load(name, tmp_path / "weights.safetensors").model)


class Opens:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrapped", [lambda one: one, lambda one: {"state_dict": one}, lambda one: [one, 1]])
def test_pickled_objects_are_refused_and_do_not_run(wrapped, tmp_path):
    torch.save(wrapped(Opens(tmp_path / "opened")), tmp_path / "model.pt")
    with pytest.raises(
        camlib.CamlibTypeError, match=r"model\.pt holds pickled objects.*torch\.save\(model\.state_dict"
    ):
        state_dict_in(tmp_path / "model.pt")
    assert not (tmp_path / "opened").exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18(), tmp_path / "model.pt")
    with pytest.raises(camlib.CamlibTypeError, match="pickled objects, such as a whole model"):
        load("torchvision:resnet18", tmp_path / "model.pt")


BAD_FILES = {
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds a dict with epoch, and no tensors by name"),
    "no file of torch": (lambda path: path.write_bytes(b"nonsense" * 9), "is no file of tensors"),
    "an empty file": (lambda path: path.touch(), "is no file of tensors"),
    "another network": (
        lambda path: torch.save(torchvision.models.resnet34().state_dict(), path),
        r"another network than ResNet: .*unknown: layer1\.2\.conv1\.weight",
    ),
    "other shapes": (
        lambda path: torch.save(torchvision.models.wide_resnet50_2().state_dict(), path),
        "another network than ResNet",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_other_files_are_errors(name, tmp_path):
    write, message = BAD_FILES[name]
    write(tmp_path / "weights.pt")
    with pytest.raises(camlib.CamlibValueError, match=message):
        load("torchvision:resnet18", tmp_path / "weights.pt")


def test_a_damaged_file_of_safetensors_is_an_error(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(camlib.CamlibValueError, match="no file of safetensors"):
        load("torchvision:resnet18", tmp_path / "weights.safetensors")


BAD_NAMES = {
    "resnet18": (camlib.CamlibValueError, "did you mean torchvision:resnet18"),
    "nonsense": (camlib.CamlibValueError, "names no network"),
    "timm:convnext_ato": (camlib.CamlibValueError, "timm:convnext_atto"),
    "torchvision:zzz": (camlib.CamlibValueError, "list_models"),
    "hf:/no/such/folder": (camlib.CamlibValueError, "there is no folder /no/such/folder"),
    "no_such_module:build": (camlib.CamlibValueError, "cannot be imported"),
    "os:no_such_function": (camlib.CamlibValueError, "module os has no 'no_such_function'"),
    "os.path:join": (camlib.CamlibRuntimeError, "call it in Python without arguments"),
    "os:sep": (camlib.CamlibValueError, "module os has no 'sep' that can be called"),
    "../nothing:build": (camlib.CamlibValueError, "cannot be imported"),
    "os:getcwd": (camlib.CamlibTypeError, "returned a str; it must return a torch.nn.Module"),
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_errors_that_suggest_one(name, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    error, message = BAD_NAMES[name]
    with pytest.raises(error, match=message):
        load(name, "none")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18.a1_in1k", "hf:owner/name"])
def test_without_a_network_the_error_says_what_to_do(name, tmp_path):
    code = f"""
import camlib
from camlib.loading import load
try:
    load({name!r})
except camlib.CamlibRuntimeError as error:
    print(error)
"""
    closed = "http://127.0.0.1:9"  # the port of discard: nothing listens there
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
        "http_proxy": closed,
        "https_proxy": closed,
        "PYTHONPATH": str(Path(camlib.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert f"{name} could not be loaded with its weights" in done.stdout, done.stderr
    assert 'weights=FILE (a state dict or safetensors), or weights="none"' in done.stdout


@pytest.mark.parametrize(
    ("name", "classes", "index"),
    [
        ("tabby", ["dog", "tabby"], 1),
        (" TABBY ", ["dog", "Tabby"], 1),
        ("tabby cat", ["dog", "tabby, tabby cat"], 1),
        ("cat", ["cat, tom", "cat"], 1),
    ],
)
def test_a_class_is_found_by_its_name_or_a_synonym(name, classes, index):
    assert class_index(name, classes) == index


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("cat", None, "no class 'cat'; give its index"),
        ("crane", ["crane", "dog", "crane"], "2 classes are called 'crane': 0, 2"),
        ("tom", ["cat, tom", "turkey, tom"], "2 classes are called 'tom': 0, 1"),
        ("taby", ["dog", "Tabby"], "did you mean 'Tabby'"),
        ("zebra", ["dog"], "none of the 1 classes is called 'zebra'; give its index"),
    ],
)
def test_a_name_of_no_or_of_several_classes_is_an_error(name, classes, message):
    with pytest.raises(camlib.CamlibValueError, match=message):
        class_index(name, classes)
