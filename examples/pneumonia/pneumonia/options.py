"""The options of the command line, what they may be, and what suits the data where they do not say."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pneumonia import NOTICE
from pneumonia.distributed import own_device
from pneumonia.errors import InputError
from pneumonia.sources import DIVISIONS
from pneumonia.thresholds import rule_of


@dataclass(frozen=True)
class Defaults:
    """What suits the data where the options do not say."""

    size: int
    epochs: int
    full_size_epochs: int


PHANTOMS = Defaults(size=96, epochs=4, full_size_epochs=4)
"""Small findings, which half the size would blur away."""
RADIOGRAPHS = Defaults(size=160, epochs=14, full_size_epochs=4)

LEAST = {
    "size": 32, "batch_size": 2, "epochs": 1, "max_train": 8, "seed": 0, "seeds": 1, "num_images": 1, "subsets": 0,
    "subset_seed": 0, "show": 1, "explain": 1,
}  # fmt: skip
"""The smallest value of each option that is a whole number."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="run.py",
        description=f"Train a ResNet-18 to tell PNEUMONIA from NORMAL, evaluate it, show where it looked. {NOTICE}",
        epilog="run.py predict IMAGES... explains new images with a trained checkpoint; see run.py predict --help.",
    )
    data = p.add_argument_group("data")
    data.add_argument("--data", default="phantoms", metavar="DIR|phantoms|kaggle|medmnist", help="default: %(default)s")
    data.add_argument("--split", choices=DIVISIONS, default="patient", help="what stays together in a split")
    data.add_argument("--max-train", type=int, metavar="N", help="train on N random images only, for a quick look")
    training = p.add_argument_group("training", "two defaults: for phantoms / for X-rays")
    training.add_argument(
        "--weights", default="auto", metavar="auto|imagenet|none|FILE", help="to start from (default: %(default)s)"
    )
    training.add_argument("--finetune", choices=("full", "head"), default="full", help="what is trained")
    training.add_argument(
        "--epochs",
        type=int,
        help=f"default: {PHANTOMS.epochs} / {RADIOGRAPHS.epochs}, of which the last {PHANTOMS.full_size_epochs} / "
        f"{RADIOGRAPHS.full_size_epochs} at full size",
    )
    training.add_argument(
        "--size",
        type=int,
        help=f"side of the network's input in pixels (default: {PHANTOMS.size} / {RADIOGRAPHS.size})",
    )
    training.add_argument("--batch-size", type=int, default=32)
    training.add_argument("--lr", type=float, help="highest learning rate (default: 1e-3 from scratch, else 3e-4)")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train N times, from --seed on; mean, spread"
    )
    training.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    training.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: mixed with bfloat16 where the processor computes it natively",
    )
    training.add_argument("--compile", action="store_true", help="train through torch.compile; pays on a GPU")
    training.add_argument("--resume", action="store_true", help="continue from the checkpoint in --output")
    evaluation = p.add_argument_group("evaluation")
    evaluation.add_argument(
        "--threshold",
        default="youden",
        metavar="youden|sensitivity:S|NUMBER",
        help="rule by which validation images choose the decision threshold (default: %(default)s)",
    )
    evaluation.add_argument("--num-images", type=int, default=63, metavar="N", help="size of each random test subset")
    evaluation.add_argument("--subsets", type=int, default=5, metavar="K", help="how many random test subsets")
    evaluation.add_argument("--subset-seed", type=int, default=0)
    evaluation.add_argument("--layer", help="layer to explain (default: validation chooses)")
    evaluation.add_argument("--show", type=int, default=6, metavar="N", help="test images in the heatmap figure")
    evaluation.add_argument(
        "--explain", type=int, default=32, metavar="N", help="test images on which the heatmaps themselves are tested"
    )
    p.add_argument("--output", type=Path, default=Path("runs/pneumonia"), help="default: %(default)s")
    return p


def defaults_of(options: argparse.Namespace) -> Defaults:
    """Return what suits the data: phantoms are small and have small findings."""
    return PHANTOMS if options.data == "phantoms" else RADIOGRAPHS


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before anything is read.

    Raises:
        InputError: a number is too small, or a rule is none.
    """
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.lr is not None and not 0 < options.lr < float("inf"):
        raise InputError(f"--lr must be a positive number, got {options.lr}")
    rule_of(options.threshold)


def choose_device(name: str) -> torch.device:
    """Return the device to run on.

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return own_device(torch.device(next(device for device, usable in there.items() if usable)))
    kind, _, number = name.partition(":")
    known = there.get(kind, False) and (not number or number.isdecimal())
    if not known or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        usable = ", ".join(device for device, is_there in there.items() if is_there)
        raise InputError(f"--device {name} is not to be had here; there is {usable}")
    return own_device(torch.device(name))


def make_folder(folder: Path) -> Path:
    """Make the output folder.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--output {folder} cannot be made or written to: {error.strerror}") from error
    return folder
