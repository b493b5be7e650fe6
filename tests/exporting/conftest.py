"""The runtimes of ONNX, which the tests of exported files need."""

from __future__ import annotations

import importlib.util
import os

import pytest

NEEDED = ("onnx", "onnxscript", "onnxruntime", "openvino")


@pytest.fixture(scope="session")
def runtimes() -> None:
    """Skip the test where a runtime is missing; with the variable CI set it fails instead."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing)}; pip install '.[dev]'")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; pip install '.[dev]'")
