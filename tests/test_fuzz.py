"""Wrong arguments of methods, and of functions that run a model or read a file: a result, or one of camlib's errors.

The methods and all arguments are found by inspection, so that new ones are tried, too.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import camlib
from tests.networks import small_cnn

MODEL = small_cnn().eval()
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FUNCTIONS: list[Any] = [object, int, len, lambda *args: 3, torch.nn.Identity(), torch.nn.Linear(2, 2)]
"""They are called where a function is taken, and what they raise then is not camlib's error."""
WRONG: list[Any] = [
    None, True, False, 0, -1, 3, 10**20, 0.5, -0.5, math.nan, math.inf, 1j, "", "a", "grad_cam", b"a",
    [], [1], ["a"], [None], (), (1, 2), {}, {"a": 1}, {1}, object(), slice(1),
    np.zeros(3), np.zeros((2, 8, 8), np.complex64), np.array("a"), torch.zeros(()), torch.zeros(0), torch.zeros(3),
    torch.zeros(2, 8, 8), torch.zeros(2, 8, 8, dtype=torch.complex64), torch.zeros(2, 3, 8, 8, dtype=torch.float64),
    torch.full((2, 3, 8, 8), math.nan), torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 8, 8, device="meta"),
    torch.tensor([True]), torch.tensor([9, -1]), *FUNCTIONS,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch) -> None:
    """Strings among the arguments are paths for functions that write files."""
    monkeypatch.chdir(tmp_path)


TIMES = 5 if os.environ.get("CI") else 1
"""Continuous integration makes this many times as many calls, more than 20,000."""
FEW: dict[str, Any] = {"samples": 2, "steps": 2, "chunk_size": 4, "tolerance": math.inf, "baselines": 0.0}
"""Options that keep a call short, by name."""


def options_of(cls: Any) -> list[str]:
    """The options of a method: its own, and those of every method."""
    own = [one.name for one in inspect.signature(cls).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return list(dict.fromkeys([*own, *inspect.signature(camlib.methods.Method.__init__).parameters]))


def outcome(call: Callable[[], Any]) -> None:
    """Call a function: a result or one of camlib's errors passes, any other error fails the test."""
    with contextlib.suppress(camlib.CamlibError):
        call()


def is_function(value: Any) -> bool:
    return any(value is function for function in FUNCTIONS)


@pytest.mark.filterwarnings("ignore")  # a wrong argument may also be warned of
class TestMethods:
    @pytest.mark.parametrize("name", sorted(camlib.METHODS))
    @settings(max_examples=TIMES * 60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_every_option(self, name: str, data: st.DataObject) -> None:
        cls = camlib.METHODS[name]
        options = [option for option in options_of(cls) if option != "self"]
        option = data.draw(st.sampled_from(options))
        value = data.draw(st.sampled_from(WRONG))
        if option in ("model", "forward", "reshape", "regions") and is_function(value):
            return
        given = {key: one for key, one in FEW.items() if key in options} | {option: value}
        model = given.pop("model", MODEL)
        outcome(lambda: cls(model, **given)(IMAGES, 1))

    @pytest.mark.parametrize("name", sorted(camlib.METHODS))
    @settings(max_examples=TIMES * 40, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_inputs_and_target(self, name: str, data: st.DataObject) -> None:
        cls = camlib.METHODS[name]
        options = options_of(cls)
        method = cls(MODEL, **{key: one for key, one in FEW.items() if key in options})
        value = data.draw(st.sampled_from(WRONG))
        if data.draw(st.booleans()):
            outcome(lambda: method(value, 1))
        elif not is_function(value):
            outcome(lambda: method(IMAGES, value))


VALID: dict[str, tuple[Any, dict[str, Any]]] = {
    "find_layer": (camlib.find_layer, {"model": MODEL, "inputs": IMAGES}),
    "find_stages": (camlib.find_stages, {"model": MODEL, "inputs": IMAGES}),
    "list_layers": (camlib.list_layers, {"model": MODEL, "inputs": IMAGES}),
    "create": (camlib.create, {"name": "grad_cam", "model": MODEL, "layer": "2"}),
    "capture": (camlib.capture, {"model": MODEL, "layer": "2"}),
    "read_image": (camlib.read_image, {"path": "nothing"}),
    "read_gray": (camlib.imaging.read_gray, {"path": "nothing"}),
    "load": (camlib.Explanation.load, {"path": "nothing"}),
    "cat": (camlib.Explanation.cat, {"explanations": [camlib.GradCAM(MODEL, "2")(IMAGES, 1)]}),
    "evaluate": (
        camlib.evaluate,
        {"model": MODEL, "loader": IMAGES, "methods": ["grad_cam"], "layers": ["2"], "metrics": ["sparseness"]},
    ),
}
"""Functions that run a model or read a file, with valid values of the arguments that they require."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", VALID)
@settings(max_examples=TIMES * 150, deadline=None, derandomize=True)
@given(data=st.data())
def test_functions_that_run_a_model_or_read_a_file(name: str, data: st.DataObject) -> None:
    function, valid = VALID[name]
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    assert all(one.name in valid for one in parameters if one.default is one.empty), "give a valid value in VALID"
    argument = data.draw(st.sampled_from([one.name for one in parameters]))
    value = data.draw(st.sampled_from(WRONG))
    if argument in ("model", "forward", "reshape", "target", "score") and is_function(value):
        return
    if argument == "path" and isinstance(value, str) and function is camlib.evaluate:
        return  # it would be written
    outcome(lambda: function(**{**valid, argument: value}))


def test_the_list_of_wrong_arguments_closed_no_file_of_the_process() -> None:
    os.fstat(1)
