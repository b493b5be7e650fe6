"""The command line: read, train, evaluate, explain, write the results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

import camlib
from pneumonia import figures
from pneumonia.augment import MARGIN, prepare
from pneumonia.data import Pictures
from pneumonia.errors import InputError
from pneumonia.evaluate import choose_threshold, evaluate, random_subsets
from pneumonia.explain import choose_layer, gallery, localisation
from pneumonia.model import build, freeze_all_but_head
from pneumonia.sources import DIVISIONS, Splits, from_folder, from_kaggle, from_medmnist, from_phantoms
from pneumonia.train import Recipe, fingerprint, predict, train


@dataclass(frozen=True)
class Defaults:
    """What suits the data where the options do not say."""

    size: int
    epochs: int
    full_size_epochs: int


PHANTOMS = Defaults(size=96, epochs=4, full_size_epochs=4)
"""Small findings, which half the size would blur away."""
RADIOGRAPHS = Defaults(size=128, epochs=8, full_size_epochs=3)

LEAST = {
    "size": 32, "batch_size": 2, "epochs": 1, "max_train": 8, "seed": 0, "num_images": 1, "subsets": 0,
    "subset_seed": 0, "show": 1,
}  # fmt: skip
"""The smallest value of each option that is a whole number."""
NOTICE = "Research software, not a medical device: nothing here is a diagnosis."


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="run.py",
        description=f"Train a ResNet-18 to tell PNEUMONIA from NORMAL, evaluate it, show where it looked. {NOTICE}",
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
    training.add_argument("--epochs", type=int, help="default: 4 / 8, of which the last 4 / 3 at full size")
    training.add_argument("--size", type=int, help="side of the network's input in pixels (default: 96 / 128)")
    training.add_argument("--batch-size", type=int, default=32)
    training.add_argument("--lr", type=float, help="highest learning rate (default: 1e-3 from scratch, else 3e-4)")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    training.add_argument("--amp", action="store_true", help="mixed precision: bfloat16 where it is safe")
    training.add_argument("--resume", action="store_true", help="continue from the checkpoint in --output")
    evaluation = p.add_argument_group("evaluation")
    evaluation.add_argument("--num-images", type=int, default=63, metavar="N", help="size of each random test subset")
    evaluation.add_argument("--subsets", type=int, default=5, metavar="K", help="how many random test subsets")
    evaluation.add_argument("--subset-seed", type=int, default=0)
    evaluation.add_argument("--layer", help="layer to explain (default: found by camlib)")
    evaluation.add_argument("--show", type=int, default=6, metavar="N", help="test images in the heatmap figure")
    p.add_argument("--output", type=Path, default=Path("runs/pneumonia"), help="default: %(default)s")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit status: 2 for bad input, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except (InputError, camlib.CamlibError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: stopped; the same command with --resume continues after the last epoch", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Do everything the options ask for."""
    start = time.monotonic()
    device = choose_device(options.device)
    defaults = PHANTOMS if options.data == "phantoms" else RADIOGRAPHS
    size = options.size or defaults.size
    epochs = options.epochs or defaults.epochs
    check_numbers(options)
    output = make_folder(options.output)
    splits = read_data(options, size)
    for note in splits.notes:
        if not note.startswith("skipped "):
            print(note)
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
    counts = ", ".join(
        f"{len(part)} to {verb}"
        for part, verb in ((splits.training, "train"), (splits.validation, "validate"), (splits.test, "test"))
    )
    print(f"{counts}; {size} px, weights: {weights}, on {device}")
    model, history = train(
        model, splits.training, splits.validation, recipe, output, device=device, amp=options.amp, resume=options.resume
    )
    trained = time.monotonic() - start

    results = judge(model, splits, recipe, options, device)
    results |= {"history": history, "settings": asdict(recipe), "notes": splits.notes, "notice": NOTICE}
    results["seconds"] = {"until trained": trained}
    write_json(results, output / "metrics.json")
    figures.draw_training(history, output / "training.png")
    figures.draw_evaluation(results, output / "evaluation.png")
    report(results)

    layer = options.layer
    if splits.test.masks is not None:
        layer = layer or choose_layer(model, splits.validation, size, device)
        results["localisation"] = localisation(model, splits.test, size, layer, options.seed, device)
        report_localisation(results["localisation"])
    results["explained"] = explain(model, splits.test, results, layer, options, size, device, output)
    results["seconds"]["in all"] = time.monotonic() - start
    write_json(results, output / "metrics.json")
    files = ", ".join(sorted(path.name for path in output.iterdir() if path.is_file()))
    print(f"\n{results['seconds']['in all']:.0f} s. In {output}: {files}\n{NOTICE}")
    skipped = [note for note in splits.notes if note.startswith("skipped ")]
    if skipped:
        print(f"\n{len(skipped)} unreadable images were left out:", *skipped, sep="\n  ")


def check_numbers(options: argparse.Namespace) -> None:
    """Check the options that are numbers.

    Raises:
        InputError: one of them is too small.
    """
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.lr is not None and not 0 < options.lr < float("inf"):
        raise InputError(f"--lr must be a positive number, got {options.lr}")


def choose_device(name: str) -> torch.device:
    """Return the device to run on.

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, usable in there.items() if usable))
    kind, _, number = name.partition(":")
    known = there.get(kind, False) and (not number or number.isdecimal())
    if not known or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        usable = ", ".join(device for device, is_there in there.items() if is_there)
        raise InputError(f"--device {name} is not to be had here; there is {usable}")
    return torch.device(name)


def read_data(options: argparse.Namespace, size: int) -> Splits:
    """Read what ``--data`` names, at a working size a little above the network's."""
    working = round(size * MARGIN)
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


def judge(
    model: torch.nn.Module, splits: Splits, recipe: Recipe, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Choose the threshold on validation, then look at the test set once."""
    probabilities = {
        name: predict(model, part.pixels, recipe.size, device=device, amp=options.amp).double().numpy()
        for name, part in (("validation", splits.validation), ("test", splits.test))
    }
    labels = {"validation": splits.validation.labels.numpy(), "test": splits.test.labels.numpy()}
    threshold = choose_threshold(labels["validation"], probabilities["validation"])
    return {
        "threshold": threshold,
        "threshold_rule": "middle of those within one standard error of the best Youden index on validation",
        "test": evaluate(labels["test"], probabilities["test"], splits.test.patients, threshold, options.seed),
        "subsets": random_subsets(
            labels["test"], probabilities["test"], threshold, options.num_images, options.subsets, options.subset_seed
        ),
        "predictions": [
            {"image": name, "label": int(label), "probability": float(probability)}
            for name, label, probability in zip(splits.test.names, labels["test"], probabilities["test"], strict=True)
        ],
    }


def explain(
    model: torch.nn.Module,
    test: Pictures,
    results: dict[str, Any],
    layer: str | None,
    options: argparse.Namespace,
    size: int,
    device: torch.device,
    output: Path,
) -> dict[str, Any]:
    """Draw the heatmaps of random test images; return which, and where they were taken."""
    generator = np.random.default_rng(options.subset_seed)
    chosen = np.sort(generator.choice(len(test), min(options.show, len(test)), replace=False))
    probabilities = np.array([results["predictions"][index]["probability"] for index in chosen])
    figure, explanation = gallery(model, test.take(chosen), probabilities, results["threshold"], size, layer, device)
    figure.savefig(output / "heatmaps.png", dpi=100)
    explanation.save(output / "explanation.npz")
    return {"layer": explanation.layer, "images": [test.names[index] for index in chosen]}


def write_json(results: dict[str, Any], path: Path) -> None:
    """Write the results; what is not a number is null."""
    path.write_text(json.dumps(_without_nan(results), indent=1, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def report(results: dict[str, Any]) -> None:
    """Print the figures of the test set and of the subsets."""
    test = results["test"]
    print(f"\ntest set: {test['images']} images of {test['patients']} patients, threshold {results['threshold']:.3f}")
    for name in ("accuracy", "sensitivity", "specificity", "auroc"):
        low, high = test[name]["interval"]
        print(f"  {name:12} {test[name]['value']:.3f}  (95% interval {low:.3f} to {high:.3f})")
    (tn, fp), (fn, tp) = test["confusion"]
    print(f"  confusion    NORMAL: {tn} right, {fp} wrong; PNEUMONIA: {tp} right, {fn} wrong")
    for number, row in enumerate(results["subsets"], 1):
        shown = ", ".join(f"{k} {row[k]:.3f}" for k in ("accuracy", "sensitivity", "specificity", "auroc"))
        print(f"  random subset {number} of {row['images']}: {shown}")


def report_localisation(where: dict[str, Any]) -> None:
    """Print whether the heatmaps point at the opacity."""
    print(f"\ndo the heatmaps point at the opacity? {where['images']} PNEUMONIA test phantoms, {where['layer']}")
    for name in ("pointing_game", "energy_inside"):
        cells = []
        for who in ("grad_cam", "center_gaussian"):
            value, (low, high) = where[who][name]["value"], where[who][name]["interval"]
            cells.append(f"{who.replace('_', ' ')} {value:.3f} ({low:.3f} to {high:.3f})")
        print(f"  {name.replace('_', ' '):14} {'; '.join(cells)}")
