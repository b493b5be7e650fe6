"""The stages of a run, each a function: read, fit, judge, explain, report. ``run`` does them all, for one seed."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import nn

import camlib
from pneumonia import NOTICE, distributed, figures
from pneumonia.acquisition import taken_elsewhere
from pneumonia.augment import MARGIN, prepare
from pneumonia.calibration import calibration, fit_temperature, probabilities_of, reliability
from pneumonia.data import Pictures
from pneumonia.evaluate import by_subgroup, evaluate, random_subsets
from pneumonia.explain import choose_layer, gallery, localisation
from pneumonia.model import build, freeze_all_but_head, write_decision
from pneumonia.options import choose_device, defaults_of, make_folder
from pneumonia.page import write_page
from pneumonia.quality import quality
from pneumonia.sources import DIVISIONS, Splits, from_folder, from_kaggle, from_medmnist, from_phantoms
from pneumonia.summary import print_localisation, print_test
from pneumonia.thresholds import rule_of
from pneumonia.train import Recipe, fast_bfloat16, fingerprint, margins, train

Results = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained network, how it was trained, and where it is."""

    model: nn.Module
    recipe: Recipe
    history: list[dict[str, float]]
    device: torch.device
    amp: bool
    """Mixed precision."""
    folder: Path


def run(options: argparse.Namespace) -> Results:
    """Do everything the options ask for, for one seed, and return what ``metrics.json`` holds."""
    start = time.monotonic()
    device, folder = choose_device(options.device), make_folder(options.output)
    splits = read_data(options)
    trained = fit(options, splits, device, folder)
    seconds = {"until trained": time.monotonic() - start}
    results = judge(options, splits, trained)
    if not distributed.is_first():
        return results
    write_json(results, folder / "metrics.json")
    figures.training(trained.history).savefig(folder / "training.png", dpi=120)
    figures.sheet(results).savefig(folder / "evaluation.png", dpi=120)
    print_test(results)
    results |= explain(options, splits, trained, results)
    seconds["in all"] = time.monotonic() - start
    results |= {"seconds": seconds}
    write_json(results, folder / "metrics.json")
    write_page(splits.test, trained.model, results, folder, device)
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    print(f"\n{seconds['in all']:.0f} s. In {folder}: {files}\nOpen {folder / 'report.html'}. {NOTICE}")
    skipped = [note for note in splits.notes if note.startswith("skipped ")]
    if skipped:
        print(f"\n{len(skipped)} unreadable images were left out:", *skipped, sep="\n  ")
    return results


def read_data(options: argparse.Namespace) -> Splits:
    """Read what ``--data`` names, at a working size a little above the network's."""
    working = round((options.size or defaults_of(options).size) * MARGIN)
    divide = DIVISIONS[options.split]
    if options.data == "phantoms":
        splits = from_phantoms(1120, working, options.seed)
    elif options.data == "kaggle":
        splits = from_kaggle(working, divide, options.seed)
    elif options.data == "medmnist":
        splits = from_medmnist(working)
    else:
        splits = from_folder(Path(options.data), working, divide, options.seed)
    if options.max_train and options.max_train < len(splits.training):
        labels = splits.training.labels.numpy()
        chosen, _ = train_test_split(
            np.arange(len(labels)), train_size=options.max_train, stratify=labels, random_state=options.seed
        )
        fewer = splits.training.take(chosen)
        splits = Splits(fewer, splits.validation, splits.test, [*splits.notes, f"training on {len(fewer)} images only"])
    return splits


def fit(options: argparse.Namespace, splits: Splits, device: torch.device, folder: Path) -> Trained:
    """Train, or continue to."""
    for note in splits.notes:
        if not note.startswith("skipped "):
            print(note)
    defaults = defaults_of(options)
    size, epochs = options.size or defaults.size, options.epochs or defaults.epochs
    torch.manual_seed(options.seed)
    model, weights = build(options.weights)
    if options.layer:  # one that cannot be explained is an error now, not after the training
        camlib.GradCAM(model, options.layer)(prepare(splits.training.pixels[:1], size), 0)
    if options.finetune == "head":
        freeze_all_but_head(model)
    recipe = Recipe(
        epochs=epochs,
        full_size_epochs=min(epochs, defaults.full_size_epochs),
        batch_size=options.batch_size,
        size=size,
        learning_rate=options.lr or (1e-3 if weights == "none" else 3e-4),
        seed=options.seed,
        finetune=options.finetune,
        weights=weights,
        images=fingerprint(splits.training, splits.validation),
    )
    amp = options.precision == "bfloat16" or (options.precision == "auto" and fast_bfloat16(device))
    counts = ", ".join(
        f"{len(part)} to {verb}"
        for part, verb in ((splits.training, "train"), (splits.validation, "validate"), (splits.test, "test"))
    )
    print(f"{counts}; {size} px, weights: {weights}, on {device}{', bfloat16' if amp else ''}")
    model, history = train(
        model,
        splits.training,
        splits.validation,
        recipe,
        folder,
        device=device,
        amp=amp,
        compiled=options.compile,
        resume=options.resume,
    )
    return Trained(model, recipe, history, device, amp, folder)


def judge(options: argparse.Namespace, splits: Splits, trained: Trained) -> Results:
    """Choose temperature and threshold on validation, then look at the test set once.

    Validation images are judged as they are and as another machine might have taken them, since a test set is rarely
    taken as the training set was.
    """
    rule, test, validation, seed = rule_of(options.threshold), splits.test, splits.validation, options.seed
    elsewhere = replace(validation, pixels=taken_elsewhere(validation.pixels, seed))
    plain, shifted, views = (_margins(trained, part) for part in (validation, elsewhere, test))
    labels, twice = validation.labels.numpy(), np.concatenate([validation.labels.numpy()] * 2)
    temperature = fit_temperature(twice, np.concatenate([plain, shifted]))
    probabilities = probabilities_of(plain, temperature)
    probabilities_elsewhere = probabilities_of(shifted, temperature)
    threshold = rule.choose(twice, np.concatenate([probabilities, probabilities_elsewhere]))
    known = test.labels.numpy(), probabilities_of(views, temperature)
    return {
        "threshold": threshold,
        "threshold_rule": str(rule),
        "temperature": temperature,
        "test": evaluate(*known, test.patients, threshold, seed),
        "subgroups": by_subgroup(*known, test.patients, test.names, threshold, seed),
        "calibration": {
            name: calibration(known[0], values) | {"reliability": reliability(known[0], values)}
            for name, values in (("uncalibrated", probabilities_of(views, 1.0)), ("calibrated", known[1]))
        },
        "validation": evaluate(labels, probabilities, validation.patients, threshold, seed),
        "validation_elsewhere": evaluate(labels, probabilities_elsewhere, validation.patients, threshold, seed),
        "subsets": random_subsets(*known, threshold, options.num_images, options.subsets, options.subset_seed),
        "predictions": _rows(test, known[1]),
        "history": trained.history,
        "settings": asdict(trained.recipe),
        "notes": splits.notes,
        "notice": NOTICE,
    }


def _margins(trained: Trained, pictures: Pictures) -> NDArray[Any]:
    found = margins(trained.model, pictures.pixels, trained.recipe.size, device=trained.device, amp=trained.amp)
    numbers: NDArray[Any] = found.double().numpy()
    return numbers


def _rows(pictures: Pictures, probabilities: NDArray[Any]) -> list[dict[str, Any]]:
    return [
        {"image": name, "label": int(label), "probability": float(probability)}
        for name, label, probability in zip(pictures.names, pictures.labels, probabilities, strict=True)
    ]


def explain(options: argparse.Namespace, splits: Splits, trained: Trained, results: Results) -> Results:
    """Choose the layer on validation, draw the heatmaps of random test images, and test the heatmaps themselves."""
    model, size, device, folder = trained.model, trained.recipe.size, trained.device, trained.folder
    test = splits.test
    layer = options.layer or choose_layer(model, splits.validation, size, device)
    write_decision(folder / "checkpoint.pt", results, layer)
    probabilities = np.array([row["probability"] for row in results["predictions"]])
    generator = np.random.default_rng(options.subset_seed)
    chosen = np.sort(generator.choice(len(test), min(options.show, len(test)), replace=False))
    figure, explanation = gallery(
        model, test.take(chosen), probabilities[chosen], results["threshold"], size, layer, device
    )
    figure.savefig(folder / "heatmaps.png", dpi=100)
    explanation.save(folder / "explanation.npz")
    found: Results = {"explained": {"layer": explanation.layer, "images": [test.names[index] for index in chosen]}}
    if test.masks is not None:
        found["localisation"] = localisation(model, test, size, layer, options.seed, device)
        print_localisation(found["localisation"])
    found["quality"] = quality(
        model,
        test,
        size,
        layer,
        device,
        options.seed,
        images=options.explain,
        threshold=results["threshold"],
        temperature=results["temperature"],
    )
    return found


def write_json(results: Results, path: Path) -> None:
    """Write the results; what is not a number is null."""
    path.write_text(json.dumps(_without_nan(results), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
