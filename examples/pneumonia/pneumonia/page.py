"""The report of a run: its results, tests of its heatmaps, and examples chosen by fixed rules."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import camlib
from camlib.reporting import Chart, Headline, Section, Table
from pneumonia import NOTICE, figures, quality_figures
from pneumonia.data import CLASSES, Pictures
from pneumonia.explain import original
from pneumonia.measures import MEASURES
from pneumonia.network import Network
from pneumonia.quality import RegionUse
from pneumonia.results import HeatmapResults, Results
from pneumonia.selection import GROUPS, choose_examples

METHODS = ("grad_cam", "hires_cam", "layer_cam", "eigen_cam")
"""All computed in one forward pass."""
MEANINGS = {
    "auroc": "probability that a PNEUMONIA image ranks above a NORMAL one",
    "accuracy": "correct decisions",
    "sensitivity": "PNEUMONIA images called PNEUMONIA",
    "specificity": "NORMAL images called NORMAL",
    "ppv": "PNEUMONIA calls that are correct",
    "npv": "NORMAL calls that are correct",
    "auprc": "average precision",
}
"""What the report's tiles show, in their order."""


def write_page(test: Pictures, network: Network, results: Results, heatmaps: HeatmapResults, path: Path) -> Path:
    """Write the report, and return its path."""
    probabilities, threshold = results.probabilities, results.threshold
    chosen = choose_examples(results.labels, probabilities, threshold, seed=results.settings.seed)
    indices = [index for group in chosen.values() for index in group]
    called = [int(probabilities[index] >= threshold) for index in indices]
    examples = test.take(indices)
    compared = camlib.compare(
        network.model, network.inputs(examples.pixels), METHODS, called, layer=heatmaps.explained.layer
    )
    report = camlib.report(
        compared,
        [original(examples, index) for index in range(len(examples))],
        names=[Path(name).name for name in examples.names],
        labels=examples.labels.tolist(),
        predictions=called,
        confidences=[
            float(probabilities[index] if label else 1 - probabilities[index])
            for index, label in zip(indices, called, strict=True)
        ],
        class_names=CLASSES,
        notes=[GROUPS[group] for group, members in chosen.items() for _ in members],
        title="Pneumonia on chest radiographs: where did the network look?",
        notice=NOTICE,
        summary=headlines(results),
        sections=sections(results, heatmaps),
        card=card(results, heatmaps),
    )
    return report.save(path)


def headlines(results: Results) -> list[Headline]:
    """Return the measures of the test set with their intervals."""
    test = results.test
    return [
        *(Headline(_title(name), test[name].value, test[name].interval, meaning) for name, meaning in MEANINGS.items()),
        Headline("Test images", str(test.images), None, f"of {test.patients} patients"),
    ]


def sections(results: Results, heatmaps: HeatmapResults) -> list[Section]:
    """Return everything between the headlines and the model card."""
    test, scaling, last = results.test, results.calibration, results.history[-1]

    def panel(name: str, title: str, description: str) -> Chart:
        return Chart(title, figures.panel(figures.PANELS[name], results), description)

    return [
        Section(
            "How good is it?",
            [
                f"Decision threshold {results.threshold:.3f}: {results.threshold_rule}. The test set influenced no "
                "choice. Intervals are 95% bootstrap intervals over patients.",
                panel("roc", "ROC", f"ROC curve with an area of {test.auroc.value:.3f}."),
                panel(
                    "precision_recall",
                    "Precision and recall",
                    f"Precision-recall curve with an average precision of {test.auprc.value:.3f}.",
                ),
                panel(
                    "confusion",
                    "Confusion matrix",
                    "Rows are the truth, columns the prediction: {} and {} NORMAL, {} and {} PNEUMONIA.".format(
                        *(count for row in test.confusion for count in row)
                    ),
                ),
                panel(
                    "probabilities",
                    "Probabilities",
                    "Histograms of the predicted probability for each class, with the threshold.",
                ),
                *_subgroups(results),
                Table(
                    ("validation images", *map(_title, MEASURES)),
                    [
                        (name, *(part[measure].value for measure in MEASURES))
                        for name, part in (("original", results.validation), ("altered", results.validation_elsewhere))
                    ],
                    "The same threshold on the validation images, and on the same images with altered proportions, "
                    "sharpness and exposure, as another machine might take them.",
                ),
                *_subsets(results),
            ],
        ),
        Section(
            "Are the probabilities calibrated?",
            [
                f"Logits are divided by one temperature, {results.temperature:.2f}, fitted on validation images.",
                panel(
                    "reliability",
                    "Reliability",
                    "Share of PNEUMONIA among images against their predicted probability; the diagonal is perfect.",
                ),
                Table(
                    ("", "Brier score", "expected calibration error", "cross-entropy"),
                    [
                        (name, found.brier, found.ece, found.cross_entropy)
                        for name, found in (("uncalibrated", scaling.uncalibrated), ("calibrated", scaling.calibrated))
                    ],
                    "Lower is better.",
                ),
            ],
        ),
        Section("Do the heatmaps deserve trust?", _trust(heatmaps)),
        Section(
            "How was it trained?",
            [
                Chart(
                    "Training",
                    figures.training(results.history),
                    f"Loss and validation AUROC over {len(results.history)} epochs; the last validation AUROC is "
                    f"{last.validation_auroc:.3f}.",
                ),
                Table(("setting", "value"), [(key, str(value)) for key, value in asdict(results.settings).items()]),
            ],
        ),
        Section("Data", [Table(("what was read and found",), [(note,) for note in results.notes])]),
    ]


def card(results: Results, heatmaps: HeatmapResults) -> dict[str, str]:
    """Return a short model card (Mitchell et al. 2019)."""
    settings = results.settings
    return {
        "Model": f"ResNet-18 with two outputs, {settings.size} x {settings.size} pixels; starting weights: "
        f"{settings.weights}",
        "Intended use": "To demonstrate camlib, in research and teaching.",
        "Not intended for": "Diagnosis, triage, or any decision about a patient. It was not evaluated on images of "
        "other hospitals.",
        "Data": results.notes[0],
        "Decision": f"PNEUMONIA at a probability of {results.threshold:.3f} or above",
        "Known limits": "Both classes have the same weight in training; PPV and NPV hold only for the share of "
        "PNEUMONIA images in this test set. The network may fail on images of another machine, projection or age "
        "group, and it may read a corner marker instead of a lung.",
        "Heatmaps": f"Computed at {heatmaps.explained.layer}. They show which features raised the score of the "
        "predicted class; a plausible heatmap does not prove that the decision is right.",
        "Examples below": "Chosen by fixed rules, never by hand: " + "; ".join(GROUPS.values()) + ".",
    }


def _trust(heatmaps: HeatmapResults) -> list[Chart | Table | str]:
    quality = heatmaps.quality
    verdict = quality.randomisation.verdict
    parts: list[Chart | Table | str] = [
        f"Tests of Grad-CAM at {quality.layer} on {len(quality.images)} test images, {quality.rule}. "
        "None of them shows that a heatmap is medically right.",
        Chart(
            "Does the map depend on the network?",
            quality_figures.draw_randomisation(quality.randomisation),
            f"Similarity of the heatmap to the original while the weights are randomised. Verdict: {verdict}.",
            f"Verdict: {verdict}. A map that stays the same when the weights are randomised explains nothing (Adebayo "
            f"et al. 2018). The rule: {quality.randomisation.rule}.",
        ),
        Chart(
            "Does it name the pixels that matter?",
            quality_figures.draw_faithfulness(quality.faithfulness),
            "Probability while pixels are inserted and deleted in the order of the heatmap, compared with maps that do "
            "not depend on the network.",
        ),
        Chart(
            "Does the network rely on borders and markers?",
            quality_figures.draw_shortcuts(quality.shortcuts),
            "Heatmap energy by area in corners, border and middle, and the effect of covering them.",
            f"Images {quality.shortcuts.rule}. {flags(quality.shortcuts.called)}",
        ),
        Chart(
            "Do the methods agree?",
            quality_figures.draw_agreement(quality.agreement),
            "Mean rank correlation between the heatmaps of six methods.",
        ),
    ]
    if where := heatmaps.localisation:
        parts.append(
            Table(
                ("map", "pointing game", "energy inside"),
                [
                    (title, str(found.pointing_game), str(found.energy_inside))
                    for title, found in (("Grad-CAM", where.grad_cam), ("centre Gaussian", where.center_gaussian))
                ],
                f"Compared with the true opacities of {where.images} phantoms.",
            )
        )
    return parts


def flags(called: dict[str, RegionUse]) -> str:
    """Name the regions that are flagged, except the middle, which is a reference."""
    flagged = [
        f"{region} (images called {name})"
        for name, use in called.items()
        for region, found in use.regions.items()
        if found.flagged and region != "middle"
    ]
    return f"Flagged: {', '.join(flagged)}." if flagged else "Neither corners nor border are flagged."


def _subgroups(results: Results) -> list[Table]:
    rows = [(kind, found.images, str(found.sensitivity), str(found.auroc)) for kind, found in results.subgroups.items()]
    columns = ("kind of pneumonia", "images", "sensitivity", "AUROC against all NORMAL")
    return [Table(columns, rows, "Recognised by the file names.")] if rows else []


def _subsets(results: Results) -> list[Table]:
    names = ("images", *MEASURES)
    rows = [(str(number), *(subset[name] for name in names)) for number, subset in enumerate(results.subsets, 1)]
    columns = ("random subset", *map(_title, names))
    return [Table(columns, rows, "How much the measures of a few images depend on the draw.")] if rows else []


def _title(name: str) -> str:
    return name.upper() if name in ("auroc", "auprc", "ppv", "npv") else name.capitalize()
