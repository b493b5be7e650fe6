"""The command line: ``run.py [options]`` trains, evaluates and explains; ``run.py predict`` explains new images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import camlib
from pneumonia import distributed
from pneumonia.errors import InputError
from pneumonia.options import check, choose_device, parser
from pneumonia.pipeline import run
from pneumonia.prediction import main as predict
from pneumonia.seeds import run_seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status: 2 for bad input, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["predict"]:
        return predict(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        check(options)
        with distributed.joined(cuda=choose_device(options.device).type == "cuda"):
            (run if options.seeds == 1 else run_seeds)(options)
    except (InputError, camlib.CamlibError) as error:
        if int(os.environ.get("RANK", "0")) == 0:  # all processes of torchrun have met it
            print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: stopped; the same command with --resume continues after the last epoch", file=sys.stderr)
        return 130
    return 0
