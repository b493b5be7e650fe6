"""``camlib doctor``: what is installed, whether it fits together, and whether an explanation works."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from importlib import metadata

import typer

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "matplotlib", "pillow", "tqdm", "typer")
"""Packages that camlib needs."""
EXTRAS = ("timm", "transformers", "safetensors", "jinja2", "pydicom", "pyarrow", "torchmetrics", "ultralytics")
"""Packages that it uses if they are there."""
MISMATCH = "install both in one command from the same index: pip install --upgrade torch torchvision"
"""What to do where torch and torchvision do not belong together."""


def doctor() -> None:
    """Show versions and devices, and check that torch and torchvision belong together.

    \b
    camlib doctor
    """
    from camlib import __version__

    typer.echo(f"camlib {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in (*PACKAGES, *EXTRAS):
        version = _version(package)
        typer.echo(f"  {package:16} {version or ('missing' if package in PACKAGES else 'not installed (optional)')}")
    problems = [*_missing(), *_mismatch(_version("torch"), _requirement("torchvision", "torch")), *_torchvision()]
    typer.echo(f"devices: {_devices()}")
    problems += [] if problems else _explains()
    for problem in problems:
        typer.echo(f"problem: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo("an explanation works")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirement(package: str, other: str) -> str | None:
    """The version of another package that a package pins, or None."""
    try:
        requirements = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return None
    pins = (re.fullmatch(rf"{other}\s*\(?==([\w.+]+)\)?(;.*)?", one) for one in requirements)
    return next((pin[1] for pin in pins if pin), None)


def _missing() -> list[str]:
    absent = [package for package in PACKAGES if _version(package) is None]
    if "opencv-python" in absent and any(map(_version, ("opencv-python-headless", "opencv-contrib-python"))):
        absent.remove("opencv-python")
    return [f"{', '.join(absent)} missing: pip install {' '.join(absent)}"] if absent else []


def _mismatch(torch: str | None, wanted: str | None) -> list[str]:
    """What is wrong if torchvision was built for another torch than the installed one."""
    if torch is None or wanted is None or torch.partition("+")[0] == wanted.partition("+")[0]:
        return []
    return [
        f"torchvision {_version('torchvision')} was built for torch {wanted}, and torch {torch} is installed: its "
        f'operators may be missing ("operator torchvision::nms does not exist"); {MISMATCH}'
    ]


def _torchvision() -> list[str]:
    """What is wrong if torchvision cannot be used."""
    try:
        torch, ops = importlib.import_module("torch"), importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
    except Exception as error:  # whatever a broken installation raises
        return [f"torchvision does not work: {str(error).partition(chr(10))[0]}; {MISMATCH}"]
    return []


def _devices() -> str:
    if "torch" not in sys.modules:
        return "unknown"
    torch = sys.modules["torch"]
    found = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*found, f"cpu with {torch.get_num_threads()} threads"])


def _explains() -> list[str]:
    """What is wrong if a small network cannot be explained."""
    import torch

    import camlib

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )
    try:
        camlib.GradCAM(network)(torch.rand(1, 3, 16, 16)).overlays(torch.rand(1, 3, 16, 16))
    except Exception as error:
        return [f"an explanation fails: {error!r}"]
    return []
