"""What is printed at the end of a run, and of several."""

from __future__ import annotations

from typing import Any

from pneumonia.evaluate import FIGURES

Results = dict[str, Any]


def print_test(results: Results) -> None:
    """Print the figures of the test set, of its subgroups, and of its random subsets."""
    test, settings = results["test"], results["calibration"]
    print(f"\ntest set: {test['images']} images of {test['patients']} patients")
    print(f"  threshold {results['threshold']:.3f}: {results['threshold_rule']}")
    for name in FIGURES:
        print(f"  {name:12} {_with_interval(test[name])}")
    (tn, fp), (fn, tp) = test["confusion"]
    print(f"  confusion    NORMAL: {tn} right, {fp} wrong; PNEUMONIA: {tp} right, {fn} wrong")
    before, after = settings["uncalibrated"], settings["calibrated"]
    print(
        f"  calibration  temperature {results['temperature']:.2f}; expected calibration error {before['ece']:.3f} "
        f"before, {after['ece']:.3f} after; Brier score {before['brier']:.3f}, {after['brier']:.3f}"
    )
    for kind, found in results["subgroups"].items():
        print(
            f"  {kind:12} {found['images']} images: sensitivity {_with_interval(found['sensitivity'])}, "
            f"AUROC {_with_interval(found['auroc'])}"
        )
    print("validation, at the same threshold")
    for title, part in (("as it is", "validation"), ("taken elsewhere", "validation_elsewhere")):
        shown = ", ".join(f"{name} {results[part][name]['value']:.3f}" for name in ("accuracy", "specificity", "auroc"))
        print(f"  {title:15} {shown}")
    for number, row in enumerate(results["subsets"], 1):
        shown = ", ".join(f"{k} {row[k]:.3f}" for k in ("accuracy", "sensitivity", "specificity", "auroc"))
        print(f"  random subset {number} of {row['images']}: {shown}")


def print_localisation(where: Results) -> None:
    """Print whether the heatmaps point at the opacity."""
    print(f"\ndo the heatmaps point at the opacity? {where['images']} PNEUMONIA test phantoms, {where['layer']}")
    for name in ("pointing_game", "energy_inside"):
        cells = [
            f"{who.replace('_', ' ')} {_with_interval(where[who][name])}" for who in ("grad_cam", "center_gaussian")
        ]
        print(f"  {name.replace('_', ' '):14} {'; '.join(cells)}")


def print_seeds(summary: Results) -> None:
    """Print mean and spread over the seeds."""
    print(f"\nseeds {', '.join(map(str, summary['seeds']))}: mean (standard deviation; least to most)")
    for name in FIGURES:
        row = summary["test"][name]
        print(f"  {name:12} {row['mean']:.3f} ({row['deviation']:.3f}; {row['least']:.3f} to {row['most']:.3f})")


def _with_interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"
