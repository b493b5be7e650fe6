"""What is printed at the end of a run, and of several."""

from __future__ import annotations

from pneumonia.explain import Localisation
from pneumonia.measures import MEASURES
from pneumonia.results import Results


def print_test(results: Results) -> None:
    """Print the measures of the test set, of its subgroups, and of its random subsets."""
    test, before, after = results.test, results.calibration.uncalibrated, results.calibration.calibrated
    print(f"\ntest set: {test.images} images of {test.patients} patients")
    print(f"  threshold    {results.threshold:.3f}, {results.threshold_rule}")
    for name in MEASURES:
        print(f"  {name:12} {test[name]}")
    (tn, fp), (fn, tp) = test.confusion
    print(f"  confusion    NORMAL: {tn} correct, {fp} wrong; PNEUMONIA: {tp} correct, {fn} wrong")
    print(
        f"  calibration  temperature {results.temperature:.2f}; expected calibration error {before.ece:.3f} before, "
        f"{after.ece:.3f} after; Brier score {before.brier:.3f} before, {after.brier:.3f} after"
    )
    for kind, found in results.subgroups.items():
        print(f"  {kind:12} {found.images} images: sensitivity {found.sensitivity}, AUROC {found.auroc}")
    print("validation set at the same threshold")
    for title, part in (("original", results.validation), ("altered", results.validation_elsewhere)):
        shown = ", ".join(f"{name} {part[name].value:.3f}" for name in ("accuracy", "specificity", "auroc"))
        print(f"  {title:12} {shown}")
    for number, subset in enumerate(results.subsets, 1):
        shown = ", ".join(f"{name} {subset[name]:.3f}" for name in ("accuracy", "sensitivity", "specificity", "auroc"))
        print(f"random subset {number}, {subset.images} test images: {shown}")


def print_localisation(where: Localisation) -> None:
    """Print whether the heatmaps point at the opacities."""
    print(f"\ndo the heatmaps point at the opacities? {where.images} PNEUMONIA test phantoms, {where.layer}")
    ours, gaussian = where.grad_cam, where.center_gaussian
    print(f"  pointing game  Grad-CAM {ours.pointing_game}; centre Gaussian {gaussian.pointing_game}")
    print(f"  energy inside  Grad-CAM {ours.energy_inside}; centre Gaussian {gaussian.energy_inside}")
