"""Several runs that differ in their seed: how much do the results depend on split, starting weights and batches?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pneumonia import distributed
from pneumonia.measures import MEASURES
from pneumonia.options import Options
from pneumonia.pipeline import run
from pneumonia.results import Results, write_json


@dataclass(frozen=True)
class Spread:
    """How one measure of the test set varies over the seeds."""

    mean: float
    deviation: float
    """Sample standard deviation; NaN for a single value."""
    least: float
    most: float
    values: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.deviation:.3f}; {self.least:.3f} to {self.most:.3f})"


def run_seeds(options: Options) -> None:
    """Run each seed in its folder ``seed-N``, and print mean and spread; ``seeds.json`` is updated after each run."""
    done: dict[int, Results] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"\n== seed {seed} ({len(done) + 1} of {options.seeds}) ==")
        done[seed] = run(replace(options, seed=seed, output=options.output / f"seed-{seed}"))
        spreads = {name: spread([results.test[name].value for results in done.values()]) for name in MEASURES}
        if distributed.is_first():
            write_json(options.output / "seeds.json", {"seeds": list(done), "test": spreads})
    print(f"\nseeds {', '.join(map(str, done))}: mean (standard deviation; minimum to maximum)")
    for name, found in spreads.items():
        print(f"  {name:12} {found}")


def spread(values: Sequence[float]) -> Spread:
    """Describe how values vary."""
    return Spread(
        mean=float(np.mean(values)),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        least=float(np.min(values)),
        most=float(np.max(values)),
        values=list(values),
    )
