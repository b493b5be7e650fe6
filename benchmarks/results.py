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


def save(name: str, results: dict[str, Any]) -> None:
    """Write a result."""
    (FOLDER / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def load(name: str) -> dict[str, Any]:
    """Read a result."""
    results: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return results
