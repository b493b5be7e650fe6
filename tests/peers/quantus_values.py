"""Quantus' tests of similarities, sparseness, mosaics, robustness and faithfulness: values, or their range."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from tests.peers.case import Case
from tests.peers.quantus import PEER, Range

UNIT: Range = (0.0, 1.0)
BOTH: Range = (-1.0, 1.0)
RATIO = "a ratio per unit of the inputs is positive, and not bounded by 1, the upper end of the test's range"
SIGNALS = "camlib shifts signals and volumes, too, where Quantus refuses all but pictures"


def pair(name: str) -> tuple[Tensor, Tensor]:
    """Two attributions, by the name of Quantus' fixture; as heatmaps of one row."""
    drawn = torch.rand(10, generator=torch.Generator().manual_seed(0)) / 10
    given = {
        "half": (torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 2.0])),
        "diff": (torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0, 0.0])),
        "same": (drawn, drawn),
        "same_linear": (drawn, 3 * drawn),
        "inverse": (drawn, -3 * drawn),
    }[name]
    return given[0].reshape(1, 1, -1), given[1].reshape(1, 1, -1)


def similarity(name: str, kind: str, expected: float) -> None:
    """To two decimals, as in the test."""
    assert round(float(getattr(camlib.metrics, name)(*pair(kind))), 2) == expected


def structure(same: bool, expected: float) -> None:
    low = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) if same else torch.zeros(1, 16, 16)
    assert round(float(camlib.metrics.ssim(low, low if same else torch.ones(1, 16, 16))), 2) == expected


def picture_network() -> nn.Module:
    """Two convolutions and two linear layers, for pictures of 28 x 28 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def signal_network() -> nn.Module:
    """The same for signals of three channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 6, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 16, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def given(axes: int) -> tuple[nn.Module, Tensor]:
    """A network and images: one image, or one signal for each of three rows."""
    generator = torch.Generator().manual_seed(1)
    if axes == 1:
        return signal_network(), torch.rand(3, 3, 28, generator=generator)
    return picture_network(), torch.rand(3, 1, 28, 28, generator=generator)


def again(metric: str, axes: int, bounds: Range, **options: Any) -> None:
    """Metrics that repeat the explanation, of the magnitudes of input times gradient."""
    model, images = given(axes)
    values = getattr(camlib.metrics, metric)(camlib.InputXGradient(model), images, list(range(3)), **options)
    inside(values, bounds)


def scored(metric: str, axes: int, bounds: Range, **options: Any) -> None:
    """Metrics that score perturbed images."""
    model, images = given(axes)
    heatmaps = camlib.InputXGradient(model)(images, [0, 1, 2]).heatmaps()
    inside(getattr(camlib.metrics, metric)(model, images, heatmaps, [0, 1, 2], **options), bounds)


def inside(values: Tensor, bounds: Range) -> None:
    assert values.shape == (3,)
    assert bool(((values >= bounds[0]) & (values <= bounds[1])).all()), values


def sparse(axes: int) -> None:
    heatmaps = torch.rand(10, *[28] * axes, generator=torch.Generator().manual_seed(0)) / 10
    values = camlib.metrics.sparseness(heatmaps)
    assert bool(((values > 0) & (values < 1)).all()), values


def positive_and_finite(metric: str, axes: int) -> None:
    """A ratio of heatmaps to images, which can be above 1."""
    model, images = given(axes)
    values = getattr(camlib.metrics, metric)(camlib.InputXGradient(model), images, [0, 1, 2])
    assert bool((values.isfinite() & (values > 0)).all()), values


def consistent(discretise: Callable[[Tensor], Tensor]) -> None:
    model, images = given(2)
    heatmaps = camlib.InputXGradient(model)(images.repeat(2, 1, 1, 1)).heatmaps()
    values = camlib.metrics.consistency(heatmaps, model(images.repeat(2, 1, 1, 1)).argmax(1), discretise)
    assert bool(((values >= 0) & (values <= 1)).all()), values  # each image is there twice, so no NaN


def tiles(count: int) -> None:
    """Mosaics of 2 x 2 images, each where it was put, each with its class."""
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    drawn = camlib.metrics.mosaics(images, torch.arange(40) % 10, count=count)
    assert drawn.images.shape == (count, 1, 12, 12)
    known = {tuple(image.flatten().tolist()) for image in images}
    for mosaic in drawn.images:
        for top in (0, 6):
            for left in (0, 6):
                assert tuple(mosaic[:, top : top + 6, left : left + 6].flatten().tolist()) in known


DISCRETE: dict[str, Callable[[Tensor], Tensor]] = {
    "floating_points": lambda heatmaps: heatmaps.round(decimals=2),
    "sign": torch.sign,
    "top_n_sign": lambda heatmaps: heatmaps.flatten(1)[:, :5].sign(),
    "rank": lambda heatmaps: heatmaps.flatten(1).argsort(1),
}
SIMILAR = {"same": 1.0, "same_linear": 1.0, "diff": 0.0, "half": 0.5, "inverse": -1.0}
ABSENT = {
    "test_complexity_metrics.effective_complexity": "camlib has no effective complexity: it depends on a threshold",
    "test_faithfulness_metrics.faithfulness_estimate": "camlib has faithfulness correlation, not over single pixels",
    "test_faithfulness_metrics.monotonicity_arya": "camlib has no monotonicity",
    "test_faithfulness_metrics.monotonicity_correlation": "camlib has no monotonicity",
    "test_faithfulness_metrics.selectivity": "camlib has region_perturbation, with the area, and no other selectivity",
    "test_faithfulness_metrics.sufficiency": "camlib has no sufficiency, which compares distances between heatmaps",
    "test_randomisation_metrics.smooth_model_parameter_randomisation": "camlib randomises any smoothing instead",
    "test_similarity_func.correlation_kendall_tau": "camlib has no rank correlation but Spearman's",
    "test_similarity_func.cosine": "camlib has no cosine of heatmaps",
    "test_robustness_metrics.return_nan_when_prediction_changes": "only relative stability leaves out changed classes",
}


def _cases() -> list[Case]:
    checks: dict[str, Callable[[], object]] = {}
    for kind, expected in SIMILAR.items():
        for name in ("spearman", "pearson"):
            check = functools.partial(similarity, name, kind, expected)
            checks[f"test_similarity_func.correlation_{name}.{kind}"] = check
    checks["test_similarity_func.ssim.same"] = functools.partial(structure, True, 1.0)
    checks["test_similarity_func.ssim.diff"] = functools.partial(structure, False, 0.0)
    for count in (4, 10):
        checks[f"test_mosaic_func.{count}"] = functools.partial(tiles, count)
    for axes in (1, 2):
        checks[f"test_complexity_metrics.sparseness.{axes}d"] = functools.partial(sparse, axes)
        for metric in ("max_sensitivity", "average_sensitivity"):
            check = functools.partial(again, metric, axes, UNIT, radius=0.02, samples=5)
            checks[f"test_robustness_metrics.{metric}.{axes}d"] = check
        for metric in ("cascading_randomization", "random_logit"):
            check = functools.partial(again, metric, axes, BOTH, similarity="spearman")
            checks[f"test_randomisation_metrics.{metric}.{axes}d"] = check
        checks[f"test_randomisation_metrics.efficient_randomization.{axes}d"] = functools.partial(
            again, "efficient_randomization", axes, (-1e9, 1e9)
        )
        for metric, bounds_of in (
            ("faithfulness_correlation", BOTH), ("sensitivity_n", BOTH), ("region_perturbation", BOTH),
            ("deletion", UNIT), ("insertion", UNIT),
        ):  # fmt: skip
            options = {"regions": 7} if metric == "region_perturbation" else {}
            check = functools.partial(scored, metric, axes, bounds_of, **options)
            checks[f"test_faithfulness_metrics.{metric}.{axes}d"] = check
    checks["test_faithfulness_metrics.road.2d"] = functools.partial(scored, "road_most_relevant_first", 2, BOTH)
    checks["test_faithfulness_metrics.irof.2d"] = functools.partial(scored, "irof", 2, (-80.0, 80.0), regions=7)
    checks["test_faithfulness_metrics.infidelity.2d"] = functools.partial(scored, "infidelity", 2, (0.0, 1e9))
    for name, discretise in DISCRETE.items():
        checks[f"test_robustness_metrics.consistency.{name}"] = functools.partial(consistent, discretise)
    cases = [Case(PEER, test, "pass", check) for test, check in checks.items()]
    for metric, axes, why in (
        ("lipschitz_estimate", 1, RATIO), ("lipschitz_estimate", 2, RATIO), ("continuity", 2, RATIO),
        ("continuity", 1, SIGNALS),
    ):  # fmt: skip
        check = functools.partial(positive_and_finite, metric, axes)
        cases.append(Case(PEER, f"test_robustness_metrics.{metric}.{axes}d", "by design", check, why))
    return cases + [Case(PEER, test, "cannot", None, why) for test, why in ABSENT.items()]


CASES = _cases()
