"""``run.py methods``: the methods of camlib evaluated on a trained network.

Which of them are faithful to the network, and on phantoms, which point at the opacities?
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import camlib
from pneumonia import NOTICE, InputError
from pneumonia.checkpoint import read_checkpoint
from pneumonia.network import Network
from pneumonia.options import Parser, add_device, add_source, at_least, take_source

METRICS: dict[str, dict[str, Any]] = {
    "average_drop": {},
    "average_increase": {},
    "insertion": {"steps": 8},
    "deletion": {"steps": 8},
    "road_combined": {"shares": (0.2, 0.5, 0.8)},
    "sparseness": {},
}
"""With fewer steps than by default, because there are many methods."""
MASK_METRICS: dict[str, dict[str, Any]] = {
    "pointing_game": {"tolerance": 3},
    "energy_pointing_game": {},
    "relevance_rank": {},
}
"""For phantoms, whose masks are known."""


def parser() -> Parser:
    """Return the parser of the command."""
    p = Parser(
        prog="run.py methods",
        description=f"Evaluate the methods of camlib on a network that run.py has trained. {NOTICE}",
        epilog="Give --data, --split and --max-train as for that run.",
    )
    p.add_argument("--run", type=Path, default=Path("runs/pneumonia"), metavar="DIR", help="folder of that run "
                   "(default: %(default)s)")  # fmt: skip
    add_source(p)
    p.add_argument(
        "--images", type=at_least(1), default=32, metavar="N", help="PNEUMONIA test images (default: %(default)s)"
    )
    p.add_argument("--methods", nargs="+", metavar="NAME", default="all", help="default: all")
    p.add_argument("--layers", nargs="+", metavar="NAME", help="default: the layer that the run explained")
    p.add_argument(
        "--max-passes", type=int, default=600, metavar="P",
        help="leave out methods that need more forward passes per image (default: %(default)s)",
    )  # fmt: skip
    add_device(p)
    p.add_argument("--resume", action="store_true", help="continue an interrupted evaluation")
    return p


def compare(arguments: Sequence[str]) -> int:
    """Evaluate the methods on test images, print the table, and write it with its figure into the run's folder."""
    start = time.monotonic()
    options = vars(parser().parse_args(arguments))
    folder, device, source = options["run"], options["device"], take_source(options)
    checkpoint = read_checkpoint(folder / "checkpoint.pt")
    recipe = checkpoint.recipe
    splits = source.read(recipe.size, recipe.seed)
    if splits.fingerprint != recipe.images:
        raise InputError(
            f"{folder} was trained on other images than --data {source.data} --split {source.split} gives; repeat the "
            "options of that run, because its training images may be among the test images here"
        )
    sick = splits.test.sick(options["images"])
    network = Network(checkpoint.model.to(device), recipe.size, device)
    layers = options["layers"]
    if layers is None and checkpoint.decision is not None:
        layers = [checkpoint.decision.layer]
    record = folder / "methods.jsonl"
    if not options["resume"]:
        record.unlink(missing_ok=True)
    evaluation = camlib.evaluate(
        network.model,
        network.inputs(sick.pixels),
        options["methods"],
        layers,
        METRICS if sick.masks is None else METRICS | MASK_METRICS,
        sick.masks_at(recipe.size),
        target=1,
        max_passes=options["max_passes"],
        progress=True,
        path=record,
    )
    print(f"\n{evaluation}")
    evaluation.to_csv(folder / "methods.csv")
    evaluation.to_json(folder / "methods.json")
    evaluation.plot().savefig(folder / "methods.png", dpi=120)
    took = time.monotonic() - start
    print(f"\n{took:.0f} s. Files in {folder}: methods.csv, methods.json, methods.png\n{NOTICE}")
    return 0
