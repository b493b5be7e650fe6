"""The options of the command line, parsed into one typed value, with the defaults that suit the data."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from pneumonia import NOTICE, InputError
from pneumonia.distributed import own_device
from pneumonia.sources import DIVISIONS, Source
from pneumonia.thresholds import Rule, rule_of


@dataclass(frozen=True)
class Defaults:
    """What suits the data if the options do not say."""

    size: int
    epochs: int
    full_size_epochs: int


PHANTOMS = Defaults(size=96, epochs=4, full_size_epochs=4)
"""Small findings, which half the size would blur away."""
RADIOGRAPHS = Defaults(size=160, epochs=14, full_size_epochs=4)


@dataclass(frozen=True)
class Options:
    """The options of ``run.py``, as :func:`parser` describes them."""

    source: Source
    weights: str
    finetune: str
    epochs: int
    full_size_epochs: int
    size: int
    batch_size: int
    lr: float | None
    seed: int
    seeds: int
    device: torch.device
    precision: str
    compile: bool
    resume: bool
    threshold: Rule
    num_images: int
    subsets: int
    subset_seed: int
    layer: str | None
    show: int
    explain: int
    output: Path


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`InputError` on bad options, so that all bad input ends in the same way."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise InputError(f"{message}; see --help")


def parse(arguments: Sequence[str]) -> Options:
    """Parse the options of ``run.py``.

    Raises:
        InputError: an option is unknown, or its value is not allowed.

    Example:
        >>> options = parse(["--data", "chest_xray", "--epochs", "3"])
        >>> options.size, options.epochs, options.full_size_epochs
        (160, 3, 3)
    """
    values = vars(parser().parse_args(arguments))
    source = take_source(values)
    defaults = PHANTOMS if source.data == "phantoms" else RADIOGRAPHS
    values["size"] = values["size"] or defaults.size
    values["epochs"] = values["epochs"] or defaults.epochs
    return Options(source=source, full_size_epochs=min(values["epochs"], defaults.full_size_epochs), **values)


def parser() -> Parser:
    """Return the parser of ``run.py``."""
    p = Parser(
        prog="run.py",
        description=f"Train a ResNet-18 to tell PNEUMONIA from NORMAL, evaluate it, and show where it looked. {NOTICE}",
        epilog="Two more commands use the trained network: 'run.py predict IMAGES...' explains new images, and "
        "'run.py methods' evaluates the methods of camlib. Each has its own --help.",
    )
    add_source(p)
    training = p.add_argument_group("training", "where two defaults are given: for phantoms / for X-rays")
    training.add_argument(
        "--weights", default="auto", metavar="auto|imagenet|none|FILE", help="starting weights (default: %(default)s)"
    )
    training.add_argument("--finetune", choices=("full", "head"), default="full", help="which layers are trained")
    training.add_argument(
        "--epochs",
        type=at_least(1),
        help=f"default: {PHANTOMS.epochs} / {RADIOGRAPHS.epochs}, of which the last {PHANTOMS.full_size_epochs} / "
        f"{RADIOGRAPHS.full_size_epochs} at full size",
    )
    training.add_argument(
        "--size",
        type=at_least(32),
        help=f"side of the network's input in pixels (default: {PHANTOMS.size} / {RADIOGRAPHS.size})",
    )
    training.add_argument("--batch-size", type=at_least(2), default=32)
    training.add_argument("--lr", type=_rate, help="peak learning rate (default: 1e-3 from scratch, otherwise 3e-4)")
    training.add_argument("--seed", type=at_least(0), default=0)
    training.add_argument(
        "--seeds", type=at_least(1), default=1, metavar="N", help="train with N seeds from --seed on; mean and spread"
    )
    add_device(training)
    training.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 mixed precision if the processor computes it natively",
    )
    training.add_argument("--compile", action="store_true", help="train through torch.compile; faster on a GPU")
    training.add_argument("--resume", action="store_true", help="continue from the checkpoint in --output")
    evaluation = p.add_argument_group("evaluation")
    evaluation.add_argument(
        "--threshold",
        type=rule_of,
        default="youden",
        metavar="youden|sensitivity:S|NUMBER",
        help="rule that chooses the decision threshold on validation images (default: %(default)s)",
    )
    evaluation.add_argument(
        "--num-images", type=at_least(1), default=63, metavar="N", help="images in each random test subset"
    )
    evaluation.add_argument("--subsets", type=at_least(0), default=5, metavar="K", help="number of random test subsets")
    evaluation.add_argument("--subset-seed", type=at_least(0), default=0)
    evaluation.add_argument("--layer", help="layer to explain (default: chosen on validation images)")
    evaluation.add_argument(
        "--show", type=at_least(1), default=6, metavar="N", help="test images in the heatmap figure"
    )
    evaluation.add_argument(
        "--explain", type=at_least(1), default=32, metavar="N", help="test images used to test the heatmaps"
    )
    p.add_argument("--output", type=Path, default=Path("runs/pneumonia"), metavar="DIR", help="default: %(default)s")
    return p


def add_source(p: argparse.ArgumentParser) -> None:
    """Add the options that :func:`take_source` reads."""
    data = p.add_argument_group("data")
    data.add_argument("--data", default="phantoms", metavar="DIR|phantoms|kaggle|medmnist", help="default: %(default)s")
    data.add_argument("--split", choices=DIVISIONS, default="patient", help="what the split keeps together")
    data.add_argument("--max-train", type=at_least(8), metavar="N", help="train on N random images only")


def take_source(values: dict[str, Any]) -> Source:
    """Take the options of :func:`add_source` out of parsed options."""
    return Source(values.pop("data"), values.pop("split"), values.pop("max_train"))


def add_device(p: argparse._ActionsContainer) -> None:
    """Add the option for the device."""
    p.add_argument("--device", type=choose_device, default="auto", metavar="auto|cpu|cuda|mps")


def at_least(least: int) -> Callable[[str], int]:
    """Return an option type for whole numbers that are not smaller than ``least``."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    number.__name__ = "whole number"  # argparse: invalid whole number value
    return number


def _rate(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return float(text)


_rate.__name__ = "number"


def choose_device(name: str) -> torch.device:
    """Return the device to run on.

    Raises:
        InputError: it is not available.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return own_device(torch.device(next(device for device, usable in there.items() if usable)))
    kind, _, number = name.partition(":")
    known = there.get(kind, False) and (not number or number.isdecimal())
    if not known or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        usable = ", ".join(device for device, is_there in there.items() if is_there)
        raise InputError(f"--device {name} is not available here; available: {usable}")
    return own_device(torch.device(name))


def make_folder(folder: Path) -> Path:
    """Create the output folder.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--output {folder} cannot be created or written to: {error.strerror}") from error
    return folder
