"""The report of a run: what it found, whether its heatmaps deserve trust, and examples chosen by a fixed rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import camlib
from camlib.reporting import Chart, Headline, Section, Table
from pneumonia import NOTICE, figures, quality_figures
from pneumonia.augment import prepare
from pneumonia.data import CLASSES, Pictures
from pneumonia.evaluate import FIGURES
from pneumonia.explain import original
from pneumonia.selection import GROUPS, choose_examples

Results = dict[str, Any]
METHODS = ("grad_cam", "hires_cam", "layer_cam", "eigen_cam")
"""All from one forward pass."""
MEANINGS = {
    "accuracy": "right decisions",
    "sensitivity": "of the sick, found",
    "specificity": "of the healthy, cleared",
    "ppv": "of those called sick, are",
    "npv": "of those cleared, healthy",
    "auroc": "ranks sick above healthy",
    "auprc": "mean precision",
}


def write_page(test: Pictures, model: nn.Module, results: Results, folder: Path, device: torch.device) -> Path:
    """Write ``report.html``, and return where it is."""
    labels = [row["label"] for row in results["predictions"]]
    probabilities = [row["probability"] for row in results["predictions"]]
    chosen = choose_examples(labels, probabilities, results["threshold"], seed=results["settings"]["seed"])
    indices = [index for group in chosen.values() for index in group]
    notes = [GROUPS[group] for group, members in chosen.items() for _ in members]
    called = [int(probabilities[index] >= results["threshold"]) for index in indices]
    examples = test.take(indices)
    inputs = prepare(examples.pixels.to(device), results["settings"]["size"])
    compared = camlib.compare(model, inputs, METHODS, called, layer=results["explained"]["layer"])
    report = camlib.report(
        compared,
        [original(examples, index) for index in range(len(examples))],
        names=[Path(name).name for name in examples.names],
        labels=examples.labels.tolist(),
        predictions=called,
        confidences=[
            probabilities[index] if label else 1 - probabilities[index]
            for index, label in zip(indices, called, strict=True)
        ],
        class_names=CLASSES,
        notes=notes,
        title="Pneumonia on chest radiographs: where did the network look?",
        notice=NOTICE,
        summary=headlines(results),
        sections=sections(results),
        card=card(results),
    )
    return report.save(folder / "report.html")


def headlines(results: Results) -> list[Headline]:
    """The figures of the test set with their intervals."""
    test = results["test"]
    return [
        *(
            Headline(_title(name), test[name]["value"], tuple(test[name]["interval"]), MEANINGS[name])
            for name in ("auroc", *(name for name in FIGURES if name != "auroc"))
        ),
        Headline("Test images", str(test["images"]), None, f"of {test['patients']} patients"),
    ]


def sections(results: Results) -> list[Section]:
    """Everything between the headline figures and the model card."""
    test, calibration = results["test"], results["calibration"]
    panels = {name: figures.panel(draw, results) for name, draw in figures.PANELS.items()}
    return [
        Section(
            "How good is it?",
            [
                f"Threshold {results['threshold']:.3f}: {results['threshold_rule']}. The test set chose nothing. "
                "Intervals are 95% bootstrap intervals over patients.",
                Chart("ROC", panels["roc"], f"ROC curve with an area of {test['auroc']['value']:.3f}."),
                Chart(
                    "Precision and recall",
                    panels["precision_recall"],
                    f"Precision-recall curve with an average precision of {test['auprc']['value']:.3f}.",
                ),
                Chart(
                    "Confusion matrix",
                    panels["confusion"],
                    "Rows are the truth, columns the prediction: {} and {} NORMAL, {} and {} PNEUMONIA.".format(
                        *(count for row in test["confusion"] for count in row)
                    ),
                ),
                Chart(
                    "Probabilities",
                    panels["probabilities"],
                    "Histograms of the predicted probability for either class, with the threshold.",
                ),
                *_subgroups(results),
                Table(
                    ("validation images", *map(_title, FIGURES)),
                    [
                        (name, *(results[part][figure]["value"] for figure in FIGURES))
                        for name, part in (
                            ("as they are", "validation"),
                            ("as if taken elsewhere", "validation_elsewhere"),
                        )
                    ],
                    "The same threshold on validation images, and on these with other proportions, sharpness and "
                    "exposure: what a change of machine may do.",
                ),
                *_subsets(results),
            ],
        ),
        Section(
            "Does a probability mean what it says?",
            [
                f"Logits are divided by one temperature, {results['temperature']:.2f}, fitted on validation images.",
                Chart(
                    "Reliability",
                    panels["reliability"],
                    "Share of PNEUMONIA among images against the probability given; the diagonal is perfect.",
                ),
                Table(
                    ("", "Brier score", "expected calibration error", "cross-entropy"),
                    [
                        (name, *(calibration[name][key] for key in ("brier", "ece", "cross_entropy")))
                        for name in ("uncalibrated", "calibrated")
                    ],
                    "Lower is better.",
                ),
            ],
        ),
        Section("Do the heatmaps deserve trust?", _trust(results)),
        Section(
            "How was it trained?",
            [
                Chart(
                    "Training",
                    figures.training(results["history"]),
                    f"Loss and validation AUROC over {len(results['history'])} epochs; the last validation AUROC is "
                    f"{results['history'][-1]['validation_auroc']:.3f}.",
                ),
                Table(("setting", "value"), [(key, str(value)) for key, value in results["settings"].items()]),
            ],
        ),
        Section("Data", [Table(("what was read and found",), [(note,) for note in results["notes"]])]),
    ]


def card(results: Results) -> dict[str, str]:
    """The model card (Mitchell et al. 2019), in short."""
    settings = results["settings"]
    return {
        "Model": f"ResNet-18 with two outputs, {settings['size']} x {settings['size']} pixels, started from weights: "
        f"{settings['weights']}",
        "Made for": "Showing camlib at work, for research and teaching.",
        "Not for": "Diagnosis, triage, or any decision about a patient. No other hospital's images were tried.",
        "Data": results["notes"][0],
        "Decision": f"PNEUMONIA at a probability of {results['threshold']:.3f} or above",
        "Known limits": "Trained as if both classes were equally frequent; PPV and NPV hold only for the share of sick "
        "images in this test set. Images of another machine, projection or age group may be read wrongly, and a corner "
        "marker may be read instead of a lung.",
        "Heatmaps": f"Taken at {results['explained']['layer']}. They show which features raised the score of the "
        "predicted class; a plausible heatmap is no proof of a right decision.",
        "Examples below": "Chosen by fixed rules, never by hand: " + "; ".join(GROUPS.values()) + ".",
    }


def _trust(results: Results) -> list[Chart | Table | str]:
    quality = results["quality"]
    verdict = quality["randomisation"]["verdict"]
    parts: list[Chart | Table | str] = [
        f"Asked of Grad-CAM at {quality['layer']}, on {len(quality['images'])} test images {quality['rule']}. "
        "None of this says that a heatmap is medically right.",
        Chart(
            "Does the map depend on the network?",
            quality_figures.draw_randomisation(quality["randomisation"]),
            f"Similarity of the heatmap to itself while the network's weights are randomised. Verdict: {verdict}.",
            f"Verdict: {verdict}. A map that stays when the network forgets explains nothing (Adebayo et al. 2018). "
            f"The rule: {quality['randomisation']['rule']}.",
        ),
        Chart(
            "Does it name the pixels that matter?",
            quality_figures.draw_faithfulness(quality["faithfulness"]),
            "Probability while pixels appear and vanish in the heatmap's order, beside maps that do not look.",
        ),
        Chart(
            "Does the network lean on borders and markers?",
            quality_figures.draw_shortcuts(quality["shortcuts"]),
            "Heatmap energy in corners, border and middle by area, and what covering them changes.",
            f"Images {quality['shortcuts']['rule']}.",
        ),
        Chart(
            "Do the methods agree?",
            quality_figures.draw_agreement(quality["agreement"]),
            "Mean rank correlation between the heatmaps of six methods.",
        ),
    ]
    if "localisation" in results:
        where = results["localisation"]
        parts.append(
            Table(
                ("map", "pointing game", "energy inside"),
                [
                    (title, *(_ranged(where[who][name]) for name in ("pointing_game", "energy_inside")))
                    for title, who in (("Grad-CAM", "grad_cam"), ("a Gaussian in the middle", "center_gaussian"))
                ],
                f"Against the true opacities of {where['images']} phantoms.",
            )
        )
    return parts


def _subgroups(results: Results) -> list[Chart | Table | str]:
    if not results["subgroups"]:
        return []
    rows = [
        (kind, found["images"], _ranged(found["sensitivity"]), _ranged(found["auroc"]))
        for kind, found in results["subgroups"].items()
    ]
    return [
        Table(("pneumonia by", "images", "sensitivity", "AUROC against all NORMAL"), rows, "Told by the file names.")
    ]


def _subsets(results: Results) -> list[Chart | Table | str]:
    if not results["subsets"]:
        return []
    names = ("images", *FIGURES)
    rows = [(str(number), *(row[name] for name in names)) for number, row in enumerate(results["subsets"], 1)]
    return [Table(("random subset", *map(_title, names)), rows, "How much a figure depends on the draw of few images.")]


def _title(name: str) -> str:
    return name.upper() if name in ("auroc", "auprc", "ppv", "npv") else name.capitalize()


def _ranged(figure: Results) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"
