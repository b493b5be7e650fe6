"""Fixtures that every test may use."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import hypothesis
import pytest
import torch

# no example fails because the machine is busy; hypothesis's own profile for CI, chosen before, stays as it is
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")
# several threads may add the terms of a sum in another order in each pass: many tests compare two passes exactly
torch.set_num_threads(1)
# the same for the processes that tests start: while other tests run, their threads would wait for one another
os.environ["OMP_NUM_THREADS"] = "1"
NO_ULTRALYTICS = "ultralytics is not installed: pip install ultralytics"


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


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Seed what the fixtures of a module draw: the same whatever ran before it, as tests run in several processes."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests that need ultralytics where it is missing; with the variable CI set they fail instead."""
    if "ultralytics" in getattr(item, "fixturenames", ()) and not os.environ.get("CI"):
        skip_without_ultralytics()


def skip_without_ultralytics() -> None:
    """Skip the test if the package is missing."""
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip(NO_ULTRALYTICS)


@pytest.fixture(scope="session")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package, a dependency of tests alone (AGPL), with its settings out of the home folder and off the network."""
    os.environ["YOLO_CONFIG_DIR"] = str(tmp_path_factory.mktemp("ultralytics"))
    os.environ["YOLO_OFFLINE"] = "true"
    if not os.environ.get("CI"):
        skip_without_ultralytics()
    return importlib.import_module("ultralytics")
