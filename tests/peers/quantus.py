"""Quantus' tests of localisation: heatmaps that lie in, outside of, or half in a rectangle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import camlib
from tests.peers.case import Case

PEER = "Quantus 85bc29d"
IMAGES, SIDE = 10, 224
Range = tuple[float, float]
WITHOUT = "its heatmaps are made during the test, and it expects a list, of any values"
TIES = "half of the tied pixels are inside: Quantus takes the first, or any of them; camlib draws for each image"


def rectangle(axes: int, *spans: tuple[int, int]) -> Tensor:
    """(1, 224) or (1, 224, 224), one inside of a span along each axis; a single span counts for all axes."""
    inside = torch.ones((), dtype=torch.bool)
    for axis in range(axes):
        start, end = spans[axis] if len(spans) > 1 else spans[0]
        line = torch.zeros(SIDE, dtype=torch.bool)
        line[start:end] = True
        inside = inside & line.reshape([SIDE if other == axis else 1 for other in range(axes)])
    return inside.expand(IMAGES, *[SIDE] * axes)


def drawn(kind: str, axes: int) -> tuple[Tensor, Tensor]:
    """Heatmaps and masks, by the name of Quantus' fixture."""
    torch.manual_seed(0)
    spans: dict[str, tuple[Any, Any]] = {
        "all_in_gt": ([(50, 150)], [(50, 150)]),
        "all_in_gt_seg_bigger": ([(50, 150)], [(0, 150)]),
        "none_in_gt": ([(100, 200)], [(0, 100)]),
        "none_in_gt_fourth": ([(112, 224)], [(0, 112)]),
        "half_in_gt": (
            [(0, 100)] if axes == 1 else [(0, 100), (75, 100)],
            [(50, 100)],
        ),
    }
    name = kind.removesuffix("_zeros").removesuffix("_non_normalised")
    high, mask = (rectangle(axes, *span) for span in spans[name])
    if kind == "half_in_gt_zeros" and axes == 2:
        mask = rectangle(axes, (0, 50), (50, 100))
    low = torch.zeros(high.shape) if kind.endswith("zeros") or "fourth" in kind else torch.rand(high.shape) / 10
    scale = 200 if kind.endswith("non_normalised") else 1
    return torch.where(high, 25.0 if scale > 1 else 1.0, low * scale), mask


def within(metric: str, kind: str, axes: int, expected: Range, **options: Any) -> Callable[[], None]:
    """A check that all values lie in the range that the test gives, its ends included."""

    def check() -> None:
        values = getattr(camlib.metrics, metric)(*drawn(kind, axes), **options)
        assert values.shape == (IMAGES,)
        assert bool(((values >= expected[0] - 1e-6) & (values <= expected[1] + 1e-6)).all()), values

    return check


ALL, NONE, MOST = (1.0, 1.0), (0.0, 0.0), (0.5, 1.0)
HALF = (0.5, 0.5)

EXPECTED: dict[str, list[tuple[str, int, Range, dict[str, Any]]]] = {
    "pointing_game": [
        *(("all_in_gt", axes, ALL, {"tolerance": 0}) for axes in (1, 2)),
        *(("none_in_gt", axes, NONE, {"tolerance": 0}) for axes in (1, 2)),
    ],
    "top_k_intersection": [
        ("all_in_gt", 1, ALL, {"k": 100}), ("all_in_gt", 2, ALL, {"k": 10000}), ("all_in_gt", 1, HALF, {"k": 200}),
        ("all_in_gt", 2, (0.25, 0.25), {"k": 40000}), ("none_in_gt", 1, NONE, {"k": 100}),
        ("none_in_gt", 2, NONE, {"k": 10000}), ("none_in_gt_zeros", 2, (0.1, 0.25), {"k": 40000}),
        ("half_in_gt_zeros", 2, HALF, {"k": 2500}), ("half_in_gt_zeros", 1, (0.4, 0.4), {"k": 125}),
    ],
    "energy_pointing_game": [
        *(("all_in_gt_zeros", axes, ALL, {}) for axes in (1, 2)),
        *(("all_in_gt_seg_bigger", axes, MOST, {}) for axes in (1, 2)),
        *(("none_in_gt_zeros", axes, NONE, {}) for axes in (1, 2)), ("half_in_gt_zeros", 1, HALF, {}),
        ("half_in_gt_zeros", 2, HALF, {}),
    ],
    "relevance_rank": [
        *(("all_in_gt", axes, ALL, {}) for axes in (1, 2)),
        *(("all_in_gt_seg_bigger", axes, MOST, {}) for axes in (1, 2)),
        *(("none_in_gt", axes, NONE, {}) for axes in (1, 2)), ("half_in_gt", 2, HALF, {}),
    ],
    "roc_auc": [
        *(("all_in_gt", axes, ALL, {}) for axes in (1, 2)),
        *(("all_in_gt_non_normalised", axes, ALL, {}) for axes in (1, 2)),
        ("none_in_gt_fourth", 1, NONE, {}), ("none_in_gt_fourth", 2, (1 / 3, 1 / 3), {}),
    ],
}  # fmt: skip


def half_of_the_ties(metric: str, axes: int, **options: Any) -> Callable[[], None]:
    """A check that the mean over many draws is near 1/2, where half of the highest pixels are inside."""

    def check() -> None:
        heatmaps, masks = drawn("half_in_gt_zeros" if options.get("k") else "half_in_gt", axes)
        heatmaps, masks = (one[:1].expand(200, *one.shape[1:]) for one in (heatmaps, masks))
        mean = float(getattr(camlib.metrics, metric)(heatmaps, masks, **options).mean())
        assert 0.35 < mean < 0.65, mean

    return check


def _cases() -> list[Case]:
    cases = [
        Case(
            PEER,
            f"{metric}.{kind}_{axes}d{''.join(map(str, options.values()))}",
            "pass",
            within(metric, kind, axes, at, **options),
        )
        for metric, rows in EXPECTED.items()
        for kind, axes, at, options in rows
    ]
    for metric, axes, options in (
        ("pointing_game", 1, {"tolerance": 0}),
        ("pointing_game", 2, {"tolerance": 0}),
        ("relevance_rank", 1, {}),
        ("top_k_intersection", 2, {"k": 1250}),
    ):
        name = f"{metric}.half_in_gt_{axes}d{''.join(map(str, options.values()))}"
        cases.append(Case(PEER, name, "by design", half_of_the_ties(metric, axes, **options), TIES))
    cases += [
        Case(PEER, f"{metric}.all_in_gt_no_abatch_{axes}d", "cannot", None, WITHOUT)
        for metric in EXPECTED
        for axes in (1, 2)
    ]
    return cases


CASES = _cases()
