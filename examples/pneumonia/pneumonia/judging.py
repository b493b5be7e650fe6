"""Methods judged on a trained network: which of them point at the finding, and which are faithful to the network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import camlib
from pneumonia import NOTICE
from pneumonia.augment import prepare
from pneumonia.data import Pictures
from pneumonia.errors import InputError
from pneumonia.model import build, read_checkpoint
from pneumonia.options import choose_device
from pneumonia.pipeline import read_data
from pneumonia.sources import DIVISIONS
from pneumonia.train import fingerprint

METRICS: dict[str, dict[str, Any]] = {
    "average_drop": {},
    "average_increase": {},
    "insertion": {"steps": 8},
    "deletion": {"steps": 8},
    "road_combined": {"shares": (0.2, 0.5, 0.8)},
    "sparseness": {},
}
"""Fewer steps than by default: there are many methods to judge."""
OF_MASKS: dict[str, dict[str, Any]] = {
    "pointing_game": {"tolerance": 3},
    "energy_pointing_game": {},
    "relevance_rank": {},
}
"""Asked where the masks of the findings are known, of the phantoms."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="judge.py", description=f"Judge the methods of camlib on a network that run.py has trained. {NOTICE}"
    )
    p.add_argument("--run", type=Path, default=Path("runs/pneumonia"), help="folder of that run (default: %(default)s)")
    p.add_argument("--data", default="phantoms", metavar="DIR|phantoms|kaggle|medmnist", help="that it was run on")
    p.add_argument("--split", choices=DIVISIONS, default="patient", help="that it was run with")
    p.add_argument("--max-train", type=int, metavar="N", help="that it was run with")
    p.add_argument("--images", type=int, default=32, metavar="N", help="PNEUMONIA test images (default: %(default)s)")
    p.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    p.add_argument("--layers", nargs="+", metavar="NAME", help="default: the layer that the run explained")
    p.add_argument("--max-passes", type=int, default=600, metavar="P", help="of an image, for an explanation")
    p.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    p.add_argument("--resume", action="store_true", help="go on where the same command was stopped")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge; return the exit status: 2 for bad input, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        judge(options)
    except (InputError, camlib.CamlibError) as error:
        print(f"judge.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("judge.py: stopped; the same command with --resume goes on after the last batch", file=sys.stderr)
        return 130
    return 0


def judge(options: argparse.Namespace) -> camlib.evaluation.Evaluation:
    """Judge the methods on test images, print the table, and write it with its figure into the run's folder."""
    start = time.monotonic()
    if options.images < 1:
        raise InputError(f"--images must be at least 1, got {options.images}")
    device = choose_device(options.device)
    model, recipe = trained(options.run / "checkpoint.pt")
    options.seed, options.size = recipe["seed"], recipe["size"]
    splits = read_data(options)
    if fingerprint(splits.training, splits.validation) != recipe["images"]:
        raise InputError(
            f"{options.run} was trained on other images than --data {options.data} --split {options.split} gives; give "
            "those options as run.py had them, or its test images may be among the training images here"
        )
    test = splits.test
    sick = test.take(test.labels.nonzero().flatten()[: options.images].tolist())
    inputs = prepare(sick.pixels.to(device), recipe["size"])
    record = options.run / "judged.jsonl"
    if not options.resume:
        record.unlink(missing_ok=True)
    evaluation = camlib.evaluate(
        model.to(device),
        inputs,
        options.methods or "all",
        options.layers or explained_layer(options.run),
        METRICS if sick.masks is None else METRICS | OF_MASKS,
        _masks(sick, recipe["size"]),
        target=1,
        max_passes=options.max_passes,
        progress=True,
        path=record,
    )
    print(f"\n{evaluation}")
    evaluation.to_csv(options.run / "methods.csv")
    evaluation.to_json(options.run / "methods.json")
    evaluation.plot().savefig(options.run / "methods.png", dpi=120)
    took = time.monotonic() - start
    print(f"\n{took:.0f} s. In {options.run}: methods.csv, methods.json, methods.png\n{NOTICE}")
    return evaluation


def trained(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint, and the recipe that it was trained by.

    Raises:
        InputError: there is none, or it is not one of run.py's.
    """
    state = read_checkpoint(path)
    model = build("none")[0].eval()
    try:
        model.load_state_dict(state["model"])
        recipe = {key: kind(state["recipe"][key]) for key, kind in (("size", int), ("seed", int), ("images", str))}
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a checkpoint of run.py ({reason}); train one with run.py") from error
    return model, recipe


def explained_layer(run: Path) -> list[str] | None:
    """The layer that the run drew heatmaps of; None where it has not come so far."""
    try:
        return [str(json.loads((run / "metrics.json").read_text())["explained"]["layer"])]
    except (OSError, ValueError, KeyError):
        return None


def _masks(pictures: Pictures, size: int) -> Tensor | None:
    """The masks at the network's resolution."""
    return None if pictures.masks is None else camlib.resize(pictures.masks.float(), (size, size)) >= 0.5
