"""Fixtures that every test may use."""

from __future__ import annotations

import pytest
import torch


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
