"""The folders that pytest puts on ``sys.path`` hide no other module: ``pytest --cov`` needs the package coverage."""

from __future__ import annotations

import pkgutil
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["pythonpath"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_on_the_path_has_the_name_of_an_installed_or_standard_one(folder):
    modules = {found.name for found in pkgutil.iter_modules([str(ROOT / folder)])}
    assert modules
    assert not modules & {*packages_distributions(), *sys.stdlib_module_names, "coverage"}


@pytest.mark.parametrize("package", ["benchmarks", "docs.figures", "pneumonia", "tests"])
def test_folders_next_to_the_library_are_packages(package):
    assert pkgutil.resolve_name(package).__file__.endswith("__init__.py")
