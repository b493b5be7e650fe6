"""The stages of a run, each a function: read, fit, evaluate, explain, report. ``run`` does all of them for one seed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import camlib
from pneumonia import NOTICE, distributed, figures, measures
from pneumonia.augment import prepare, taken_elsewhere
from pneumonia.calibration import calibration, fit_temperature, probabilities_of
from pneumonia.checkpoint import Decision, Recipe, write_decision
from pneumonia.data import Pictures
from pneumonia.explain import choose_layer, gallery, localisation
from pneumonia.model import build, freeze_all_but_head
from pneumonia.network import Network
from pneumonia.options import Options, make_folder
from pneumonia.page import write_page
from pneumonia.quality import quality
from pneumonia.results import Explained, HeatmapResults, Prediction, Results, TemperatureScaling, write_json
from pneumonia.sources import Splits
from pneumonia.summary import print_localisation, print_test
from pneumonia.train import Epoch, fast_bfloat16, train


@dataclass(frozen=True)
class Trained:
    """A trained network and how it was trained."""

    network: Network
    recipe: Recipe
    history: list[Epoch]


def run(options: Options) -> Results:
    """Do everything that the options ask for, with one seed, and return the results of the test set."""
    start = time.monotonic()
    folder = make_folder(options.output)
    splits = options.source.read(options.size, options.seed)
    trained = fit(options, splits)
    seconds = {"until trained": time.monotonic() - start}
    results = evaluate(options, splits, trained)
    if not distributed.is_first():
        return results
    write_json(folder / "metrics.json", results)
    figures.training(trained.history).savefig(folder / "training.png", dpi=120)
    figures.sheet(results).savefig(folder / "evaluation.png", dpi=120)
    print_test(results)
    heatmaps = explain(options, splits, trained, results)
    seconds["in all"] = time.monotonic() - start
    write_json(folder / "metrics.json", results, heatmaps, {"seconds": seconds})
    page = write_page(splits.test, trained.network, results, heatmaps, folder / "report.html")
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    print(f"\n{seconds['in all']:.0f} s. Files in {folder}: {files}\nOpen {page}. {NOTICE}")
    if splits.skipped:
        print(f"\nImages that cannot be read and were left out: {len(splits.skipped)}", *splits.skipped, sep="\n  ")
    return results


def fit(options: Options, splits: Splits) -> Trained:
    """Train the network, or continue its training."""
    print(*splits.notes, sep="\n")
    device = options.device
    torch.manual_seed(options.seed)
    model, weights = build(options.weights)
    if options.layer:  # fail now and not after the training if the layer cannot be explained
        camlib.GradCAM(model, options.layer)(prepare(splits.training.pixels[:1], options.size), 0)
    if options.finetune == "head":
        freeze_all_but_head(model)
    recipe = Recipe(
        epochs=options.epochs,
        full_size_epochs=options.full_size_epochs,
        batch_size=options.batch_size,
        size=options.size,
        learning_rate=options.lr or (1e-3 if weights == "none" else 3e-4),
        seed=options.seed,
        finetune=options.finetune,
        weights=weights,
        images=splits.fingerprint,
    )
    amp = options.precision == "bfloat16" or (options.precision == "auto" and fast_bfloat16(device))
    print(
        f"{len(splits.training)} training, {len(splits.validation)} validation and {len(splits.test)} test images; "
        f"{options.size} px, weights: {weights}, on {device}{', bfloat16' if amp else ''}"
    )
    model, history = train(
        model,
        splits.training,
        splits.validation,
        recipe,
        options.output,
        device=device,
        amp=amp,
        compiled=options.compile,
        resume=options.resume,
    )
    return Trained(Network(model, options.size, device, amp), recipe, history)


def evaluate(options: Options, splits: Splits, trained: Trained) -> Results:
    """Choose temperature and threshold on validation images, then evaluate the test set once.

    The validation images are used as they are and as another machine might have taken them, since a test set rarely
    comes from the same machines as the training set.
    """
    rule, test, validation, seed = options.threshold, splits.test, splits.validation, options.seed
    elsewhere = replace(validation, pixels=taken_elsewhere(validation.pixels, seed))
    plain, shifted, views = (_margins(trained.network, part) for part in (validation, elsewhere, test))
    labels, twice = validation.labels.numpy(), np.concatenate([validation.labels.numpy()] * 2)
    temperature = fit_temperature(twice, np.concatenate([plain, shifted]))
    probabilities = probabilities_of(plain, temperature)
    probabilities_elsewhere = probabilities_of(shifted, temperature)
    threshold = rule.choose(twice, np.concatenate([probabilities, probabilities_elsewhere]))
    known = test.labels.numpy(), probabilities_of(views, temperature)
    return Results(
        threshold=threshold,
        threshold_rule=str(rule),
        temperature=temperature,
        test=measures.evaluate(*known, test.patients, threshold, seed),
        subgroups=measures.by_subgroup(*known, test.patients, test.names, threshold, seed),
        calibration=TemperatureScaling(
            calibration(known[0], probabilities_of(views, 1.0)), calibration(known[0], known[1])
        ),
        validation=measures.evaluate(labels, probabilities, validation.patients, threshold, seed),
        validation_elsewhere=measures.evaluate(labels, probabilities_elsewhere, validation.patients, threshold, seed),
        subsets=measures.random_subsets(*known, threshold, options.num_images, options.subsets, options.subset_seed),
        predictions=[
            Prediction(name, int(label), float(probability))
            for name, label, probability in zip(test.names, *known, strict=True)
        ],
        history=trained.history,
        settings=trained.recipe,
        notes=[*splits.notes, *(f"skipped {note}" for note in splits.skipped)],
        notice=NOTICE,
    )


def _margins(network: Network, pictures: Pictures) -> NDArray[Any]:
    margins: NDArray[Any] = network.margins(pictures.pixels).double().numpy()
    return margins


def explain(options: Options, splits: Splits, trained: Trained, results: Results) -> HeatmapResults:
    """Choose the layer on validation images, draw heatmaps of random test images, and test the heatmaps."""
    network, test, folder = trained.network, splits.test, options.output
    layer = options.layer or choose_layer(network, splits.validation)
    decision = Decision(results.threshold, results.temperature, results.threshold_rule, layer)
    write_decision(folder / "checkpoint.pt", decision)
    generator = np.random.default_rng(options.subset_seed)
    chosen = np.sort(generator.choice(len(test), min(options.show, len(test)), replace=False))
    figure, explanation = gallery(network, test.take(chosen), results.probabilities[chosen], results.threshold, layer)
    figure.savefig(folder / "heatmaps.png", dpi=100)
    explanation.save(folder / "explanation.npz")
    where = None
    if test.masks is not None:
        where = localisation(network, test, layer, options.seed)
        print_localisation(where)
    answers = quality(
        network,
        test,
        layer,
        options.seed,
        options.explain,
        threshold=results.threshold,
        temperature=results.temperature,
    )
    return HeatmapResults(Explained(layer, [test.names[index] for index in chosen]), answers, where)
