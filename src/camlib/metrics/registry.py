"""Every metric of a single image by name: how a case is judged, and which way is better."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.metrics.cases import Case
from camlib.metrics.coherency import judge_adcc, judge_arcc
from camlib.metrics.confidence import judge_average_drop, judge_average_increase
from camlib.metrics.correlation import judge_faithfulness_correlation, judge_sensitivity_n
from camlib.metrics.curves import judge_deletion, judge_insertion
from camlib.metrics.infidelity import judge_infidelity
from camlib.metrics.localisation import (
    energy_pointing_game,
    iou,
    pointing_game,
    relevance_rank,
    top_k_intersection,
)
from camlib.metrics.road import judge_road_combined, judge_road_least_relevant_first, judge_road_most_relevant_first
from camlib.metrics.robustness import average_sensitivity, lipschitz_estimate, max_sensitivity
from camlib.metrics.sanity import cascading_randomization, independent_randomization, random_logit
from camlib.metrics.shape import complexity, entropy, sparseness


@dataclass(frozen=True)
class Metric:
    """How one method's heatmaps are judged, image by image.

    Example:
        >>> from camlib.metrics import METRICS
        >>> METRICS["insertion"].better, METRICS["deletion"].better, METRICS["pointing_game"].of_masks
        ('higher', 'lower', True)
    """

    name: str
    """Its key in :data:`camlib.metrics.METRICS`."""
    judge: Callable[..., Tensor]
    """From a :class:`Case` and the metric's own options to (N,)."""
    better: Literal["higher", "lower"]
    """Which way is better, as far as its paper says so."""
    of_masks: bool = False
    """Whether it needs to know where the truth lies."""


def _of_heatmaps(metric: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda case, **options: metric(case.heatmaps, **options)


def _of_masks(metric: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An image without a mask is not judged: NaN."""
    return lambda case, **options: metric(case.heatmaps, case.masks, **({"empty": "nan"} | options))


def _of_explainer(metric: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda case, **options: metric(case.explainer, case.scorer.inputs, case.target, **options)


def _infidelity(case: Case, **options: Any) -> Tensor:
    """Heatmaps in [0, 1] are in no units of the score: each is scaled to fit best."""
    return judge_infidelity(case, **({"normalize": True} | options))


def _coherency(case: Case) -> Tensor:
    return case.coherency


def _adcc(case: Case) -> Tensor:
    return judge_adcc(case, case.coherency)


def _arcc(case: Case, **options: Any) -> Tensor:
    return judge_arcc(case, case.coherency, **options)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("average_drop", judge_average_drop, "lower"),
        Metric("average_increase", judge_average_increase, "higher"),
        Metric("insertion", judge_insertion, "higher"),
        Metric("deletion", judge_deletion, "lower"),
        Metric("road_most_relevant_first", judge_road_most_relevant_first, "lower"),
        Metric("road_least_relevant_first", judge_road_least_relevant_first, "higher"),
        Metric("road_combined", judge_road_combined, "higher"),
        Metric("infidelity", _infidelity, "lower"),
        Metric("faithfulness_correlation", judge_faithfulness_correlation, "higher"),
        Metric("sensitivity_n", judge_sensitivity_n, "higher"),
        Metric("coherency", _coherency, "higher"),
        Metric("adcc", _adcc, "higher"),
        Metric("arcc", _arcc, "higher"),
        Metric("pointing_game", _of_masks(pointing_game), "higher", of_masks=True),
        Metric("energy_pointing_game", _of_masks(energy_pointing_game), "higher", of_masks=True),
        Metric("relevance_rank", _of_masks(relevance_rank), "higher", of_masks=True),
        Metric("top_k_intersection", _of_masks(top_k_intersection), "higher", of_masks=True),
        Metric("iou", _of_masks(iou), "higher", of_masks=True),
        Metric("max_sensitivity", _of_explainer(max_sensitivity), "lower"),
        Metric("average_sensitivity", _of_explainer(average_sensitivity), "lower"),
        Metric("lipschitz_estimate", _of_explainer(lipschitz_estimate), "lower"),
        Metric("cascading_randomization", _of_explainer(cascading_randomization), "lower"),
        Metric("independent_randomization", _of_explainer(independent_randomization), "lower"),
        Metric("random_logit", _of_explainer(random_logit), "lower"),
        Metric("sparseness", _of_heatmaps(sparseness), "higher"),
        Metric("entropy", _of_heatmaps(entropy), "lower"),
        Metric("complexity", _of_heatmaps(complexity), "lower"),
    )
}
"""Every metric that tells something of each single image, by name. Those of box accuracy tell it of a data set."""


def metric_of(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        CamlibValueError: there is none of that name; close ones are suggested.
    """
    if name not in METRICS:
        close = difflib.get_close_matches(str(name), METRICS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no metric {name!r}; {hint}METRICS has {', '.join(sorted(METRICS))}")
    return METRICS[name]
