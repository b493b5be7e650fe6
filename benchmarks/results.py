"""Results as JSON files in ``benchmarks/results``, each with its date, machine and versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"


def provenance(*packages: str) -> dict[str, Any]:
    """The date, the machine, and the versions of camlib and of the packages."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": {package: importlib.metadata.version(package) for package in ("torch-camlib", *packages)},
    }


def save(name: str, results: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write a result; a process that is stopped meanwhile leaves the earlier one."""
    path = folder / f"{name}.json"
    path.with_suffix(".part").write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".part").replace(path)


def load(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Read a result."""
    results: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return results


def load_if_there(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return a stored result, or an empty dictionary if there is none."""
    return load(name, folder) if (folder / f"{name}.json").exists() else {}
