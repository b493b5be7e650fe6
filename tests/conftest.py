"""Fixtures that every test may use."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch

NOT_INSTALLED = "ultralytics is not installed: pip install ultralytics"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let ``make docs`` name the site that it has built, and ``.ci/run`` ask for every network of torchvision."""
    parser.addoption("--site", help="a folder of built documentation, for tests/test_site.py to check")
    parser.addoption(
        "--all-models", action="store_true", help="test all 80 classifiers of torchvision, not one of each family"
    )


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed what a test module draws while it is imported, its parametrized inputs for one: the same in every run."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package, which is only a test's dependency (AGPL): without it a test fails in CI, and is skipped elsewhere.

    Its settings are kept out of the home folder, and it is kept off the network.
    """
    os.environ["YOLO_CONFIG_DIR"] = str(tmp_path_factory.mktemp("ultralytics"))
    os.environ["YOLO_OFFLINE"] = "true"
    if os.environ.get("CI"):
        import ultralytics as package
    else:
        package = pytest.importorskip("ultralytics", reason=NOT_INSTALLED)
    return package
