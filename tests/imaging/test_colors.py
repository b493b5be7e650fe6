"""Red is high and blue is low, in RGB; every colormap of OpenCV and matplotlib, by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from numpy.typing import NDArray

import camlib
from camlib import imaging

RAMP = np.arange(256)[None] / 255


def opencv(name: str) -> NDArray[np.uint8]:
    """OpenCV's own colours, BGR turned round."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    return cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))[..., ::-1]


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_high_is_red_and_low_is_blue() -> None:
    colors = camlib.colorize(np.array([[0.0, 1.0]]), "jet")
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 128], [128, 0, 0]]]
    assert camlib.colorize(np.array([[0.9, 0.1]]), "jet").argmax(-1).tolist() == [[0, 2]]


DEFAULTS = """
import importlib, inspect, json, pkgutil, camlib
found = {}
for module in pkgutil.walk_packages(camlib.__path__, "camlib."):
    for name, thing in vars(importlib.import_module(module.name)).items():
        if getattr(thing, "__module__", "") == module.name and not name.startswith("_"):
            methods = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []
            named = {name: thing} if inspect.isfunction(thing) else {f"{name}.{own}": each for own, each in methods}
            for where, function in named.items():
                parameter = inspect.signature(function).parameters.get("colormap")
                if parameter is not None and parameter.default not in (parameter.empty, None):
                    found[where] = parameter.default
print(json.dumps(found))
"""
"""Prints the default colormap of every function and method that has one."""


@pytest.mark.slow
def test_default_colormap_is_written_once(tmp_path: Path) -> None:
    """Another constant in a copy of the library is the default everywhere."""
    copied = shutil.copytree(Path(camlib.__file__).parent, tmp_path / "camlib")
    colors = copied / "imaging" / "colors.py"
    changed = re.sub(r"^(DEFAULT_COLORMAP =).*", r'\1 "viridis"', colors.read_text(), flags=re.MULTILINE)
    colors.write_text(re.sub(r"^(DEFAULT_SIGNED_COLORMAP =).*", r'\1 "bwr"', changed, flags=re.MULTILINE))
    printed = subprocess.run(
        [sys.executable, "-c", DEFAULTS],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(printed) == {
        "Comparison.plot": "viridis",
        "Explanation.overlays": "viridis",
        "Explanation.plot": "viridis",
        "Shown.overlays": "viridis",
        "Shown.plot": "viridis",
        "colorize": "viridis",
        "colorize_signed": "bwr",
        "explain_dataset": "viridis",
        "overlay": "viridis",
        "overlay_signed": "bwr",
        "report": "viridis",
    }


@pytest.mark.parametrize("name", ["jet", "turbo", "viridis", "inferno", "hot", "bone", "magma"])
def test_opencv_names_are_opencvs_colours_exactly(name: str) -> None:
    assert np.array_equal(camlib.colorize(RAMP, name), opencv(name))


@pytest.mark.parametrize(("name", "levels"), [("jet", 33), ("viridis", 1), ("inferno", 1), ("turbo", 2)])
def test_matplotlib_agrees_where_both_know_the_name(name: str, levels: int) -> None:
    """But for jet, whose bends lie a few levels apart; the other order of channels would be off by 255."""
    assert difference(camlib.colorize(RAMP, name), matplotlib.colormaps[name](RAMP, bytes=True)[..., :3]) <= levels


@pytest.mark.parametrize("name", ["coolwarm", "RdBu_r", "Reds", "jet_r", "bwr", "gist_heat"])
def test_names_only_matplotlib_knows(name: str) -> None:
    assert difference(camlib.colorize(RAMP, name), matplotlib.colormaps[name](RAMP, bytes=True)[..., :3]) <= 1


def test_case_of_names_does_not_matter() -> None:
    assert np.array_equal(camlib.colorize(RAMP, "JET"), camlib.colorize(RAMP, "jet"))
    assert np.array_equal(camlib.colorize(RAMP, "rdbu_R"), camlib.colorize(RAMP, "RdBu_r"))


def test_colormap_objects() -> None:
    bands = ListedColormap([(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    assert camlib.colorize(np.array([[0.1, 0.5, 0.9]]), bands).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    ramp = LinearSegmentedColormap.from_list("from_black", ["black", "white"])
    assert difference(camlib.colorize(RAMP, ramp), np.repeat(np.arange(256)[None, :, None], 3, -1)) <= 1


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("virdis", "'viridis'"), ("jett", "'jet'"), ("cool_warm", "'coolwarm'"), ("tubro", "turbo")],
)
def test_unknown_name_suggests_close_ones(name: str, suggestion: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=f"colormap '{name}'; did you mean .*{suggestion}"):
        camlib.colorize(RAMP, name)


def test_a_name_close_to_no_colormap_is_an_error() -> None:
    with pytest.raises(camlib.CamlibValueError, match="colormap 'qqqqqq'; .*viridis"):
        camlib.colorize(RAMP, "qqqqqq")


@pytest.mark.parametrize("colormap", [None, 2, cv2.COLORMAP_JET, ["jet"]])
def test_another_type_of_colormap_is_an_error(colormap: object) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=f"Colormap, got {type(colormap).__name__}"):
        camlib.colorize(RAMP, colormap)


def test_changed_colours_do_not_affect_later_calls() -> None:
    camlib.colorize(RAMP, "jet")[:] = 0
    assert np.array_equal(camlib.colorize(RAMP, "jet"), opencv("jet"))


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_batches_and_kinds(kind: type) -> None:
    heatmaps = np.random.default_rng(0).random((3, 4, 5))
    colors = camlib.colorize(kind(heatmaps), "jet")
    assert isinstance(colors, np.ndarray)
    assert colors.shape == (3, 4, 5, 3)
    expected = opencv("jet")[0][np.rint(heatmaps * 255).astype(int)]
    assert np.array_equal(colors, expected)
    assert np.array_equal(camlib.colorize(kind(heatmaps[1]), "jet"), expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.int64])
def test_heatmaps_of_every_type(dtype: torch.dtype) -> None:
    assert camlib.colorize(torch.tensor([[0, 1]]).to(dtype), "jet").tolist() == [[[0, 0, 128], [128, 0, 0]]]


@pytest.mark.parametrize(("value", "shown"), [(1.001, "1"), (-0.001, "-0.001"), (255.0, "255")])
def test_a_heatmap_out_of_range_is_an_error_with_the_range(value: float, shown: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"must lie in \[0, 1\], got .*" + shown):
        camlib.colorize(np.array([[0.5, value]]))


def test_a_signed_map_in_colorize_points_to_the_signed_functions() -> None:
    with pytest.raises(camlib.CamlibValueError, match="the signed functions"):
        camlib.colorize(np.array([[-1.0, 1.0]]))


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (4,), (0, 3), (1, 1, 2, 3, 4)])
def test_heatmap_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    for function in (camlib.colorize, imaging.colorize_signed):
        with pytest.raises(camlib.CamlibValueError, match="got " + str(shape).replace("(", r"\(").replace(")", r"\)")):
            function(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_heatmap_that_is_not_finite_is_an_error(bad: float) -> None:
    for function in (camlib.colorize, imaging.colorize_signed):
        with pytest.raises(camlib.CamlibValueError, match="heatmap hold NaN or infinity"):
            function(np.array([[0.5, bad]]))


def test_zero_is_the_neutral_middle_of_signed_colours() -> None:
    low, middle, high = imaging.colorize_signed(np.array([[-1.0, 0.0, 1.0]]))[0].astype(int)
    assert low.argmax() == 2
    assert high.argmax() == 0
    assert np.ptp(middle) <= 2  # grey
    expected = matplotlib.colormaps["coolwarm"]([0.0, 0.5, 1.0], bytes=True)[:, :3]
    assert difference(np.stack([low, middle, high]), expected) <= 1


@settings(max_examples=50, deadline=None)
@given(value=st.floats(0, 1, width=32))
def test_signed_colours_are_symmetrical(value: float) -> None:
    """In a colormap whose red is its blue turned round, one level (of 256) apart at most."""
    map_ = ListedColormap([(i / 255, 0, 1 - i / 255) for i in range(256)])
    minus, plus = imaging.colorize_signed(np.array([[-value, value]]), map_)[0].astype(int)
    assert abs(plus[0] - minus[2]) <= 1
    assert abs(plus[0] - (127.5 + 127.5 * value)) <= 0.501
    assert minus[0] <= plus[0]


def test_signed_range_is_checked() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"must lie in \[-1, 1\], got \[-1.5, 0\]; .*\"signed\""):
        imaging.colorize_signed(np.array([[-1.5, 0.0]]))
    with pytest.raises(camlib.CamlibValueError, match=r"\[0, 1.01\]"):
        imaging.colorize_signed(np.array([[1.01, 0.0]]))
