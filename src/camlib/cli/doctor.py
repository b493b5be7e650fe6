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

OLDEST = 15
"""torchvision 0.15 belongs to torch 2.0, and each later one to the next torch."""


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
    problems = [*_missing(), *mismatch(_version("torch"), _version("torchvision")), *_torchvision()]
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


def _missing() -> list[str]:
    absent = [package for package in PACKAGES if _version(package) is None]
    if "opencv-python" in absent and any(map(_version, ("opencv-python-headless", "opencv-contrib-python"))):
        absent.remove("opencv-python")
    return [f"{', '.join(absent)} missing: pip install {' '.join(absent)}"] if absent else []


def mismatch(torch: str | None, torchvision: str | None) -> list[str]:
    """Return what is wrong if torchvision was built for another torch than the installed one.

    Each torchvision belongs to one torch, as its README lists: 0.15 to 2.0, 0.16 to 2.1, and so on.

    Example:
        >>> mismatch("2.4.1", "0.19.1")
        []
        >>> mismatch("2.5.0+cpu", "0.19.1")[0][:69]
        'torchvision 0.19.1 was built for torch 2.4, and torch 2.5.0+cpu is in'
    """
    own = re.match(r"2\.(\d+)", torch or "")
    other = re.match(r"0\.(\d+)", torchvision or "")
    if own is None or other is None or int(other[1]) < OLDEST or int(own[1]) == int(other[1]) - OLDEST:
        return []
    return [
        f"torchvision {torchvision} was built for torch 2.{int(other[1]) - OLDEST}, and torch {torch} is installed: "
        f'its operators may be missing ("operator torchvision::nms does not exist"); {MISMATCH}'
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
