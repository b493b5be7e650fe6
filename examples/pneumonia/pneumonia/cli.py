"""The command line: ``run.py [options]`` trains, evaluates and explains; two commands use the trained network."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import camlib
from pneumonia import InputError, distributed, methods, prediction
from pneumonia.options import parse
from pneumonia.pipeline import run
from pneumonia.seeds import run_seeds

SILENT_SECONDS = 60.0
"""How long a process that doesn't print waits after an error, so that the one that prints ends first."""


class Command(NamedTuple):
    """A command: its name, what it runs, and what to say when it is interrupted."""

    name: str
    run: Callable[[Sequence[str]], int]
    interrupted: str


def train(arguments: Sequence[str]) -> int:
    """Train, evaluate and explain, with one seed or with several."""
    options = parse(arguments)
    with distributed.joined(cuda=options.device.type == "cuda"):
        (run if options.seeds == 1 else run_seeds)(options)
    return 0


TRAIN = Command("run.py", train, "the same command with --resume continues after the last epoch")
COMMANDS = {
    "predict": Command("run.py predict", prediction.predict, "the overlays drawn so far are kept"),
    "methods": Command(
        "run.py methods", methods.compare, "the same command with --resume continues after the last batch"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status: 2 for bad input, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = COMMANDS.get(arguments[0], TRAIN) if arguments else TRAIN
    try:
        return command.run(arguments if command is TRAIN else arguments[1:])
    except (InputError, camlib.CamlibError) as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{command.name}: {error}", file=sys.stderr)
        else:  # every process of torchrun meets the same error, and the first to end makes it end the others
            time.sleep(SILENT_SECONDS)
        return 2
    except KeyboardInterrupt:
        print(f"{command.name}: interrupted; {command.interrupted}", file=sys.stderr)
        return 130
