"""When a result was made, on what machine, and with which versions: what every script puts into its JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

import torch


def provenance(*packages: str) -> dict[str, Any]:
    """The date, the machine, and the versions of camlib and of the packages."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": {package: importlib.metadata.version(package) for package in ("torch-camlib", *packages)},
    }
