"""The same run from several seeds: other splits, other first weights, other batches. How much is luck?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumonia import distributed
from pneumonia.evaluate import FIGURES
from pneumonia.pipeline import run, write_json
from pneumonia.summary import print_seeds

Results = dict[str, Any]


def run_seeds(options: argparse.Namespace) -> Results:
    """Run each seed in a folder of its own, ``seed-N``; write ``seeds.json`` after each, and print mean and spread."""
    folder, seeds = Path(options.output), range(options.seed, options.seed + options.seeds)
    done: dict[int, Results] = {}
    for seed in seeds:
        print(f"\n== seed {seed} ({len(done) + 1} of {len(seeds)}) ==")
        done[seed] = run(argparse.Namespace(**{**vars(options), "seed": seed, "output": folder / f"seed-{seed}"}))
        if distributed.is_first():
            write_json(spread(list(done), list(done.values())), folder / "seeds.json")
    summary = spread(list(done), list(done.values()))
    print_seeds(summary)
    return summary


def spread(seeds: Sequence[int], results: Sequence[Results]) -> Results:
    """Mean, standard deviation (of the sample), least and most of each figure of the test set."""
    return {
        "seeds": list(seeds),
        "test": {name: _spread([row["test"][name]["value"] for row in results]) for name in FIGURES},
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {
        "mean": float(np.mean(values)),
        "deviation": deviation,
        "least": float(np.min(values)),
        "most": float(np.max(values)),
        "values": [float(value) for value in values],
    }
