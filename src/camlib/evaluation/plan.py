"""What is evaluated: methods, each at one or several layers, by metrics."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camlib.comparison import on_network
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.evaluation.table import TableRow
from camlib.methods import Method
from camlib.methods.registry import METHODS
from camlib.metrics import METRICS, Metric
from camlib.metrics.readings import LocatedHeatmaps
from camlib.passes.network import Network

ALWAYS_EVALUATED = ("random_cam", "center_gaussian")
"""Baselines that are always among the methods: a method that does not beat them is uninformative."""
FAITHFULNESS = ("average_drop", "average_increase", "insertion", "deletion", "road_combined")
LOCALISATION = ("pointing_game", "energy_pointing_game")

AnyMetric = Metric[Any, ...]
Columns = Mapping[AnyMetric, Mapping[str, Any]]
"""The metrics with their options."""


def row_of(explainer: Method) -> TableRow:
    """Return the table's row for an explainer."""
    return TableRow(explainer.title, " + ".join(explainer.layers or ()))


def columns_of(metrics: Any, *, with_masks: bool) -> Columns:
    """Return the metrics, as for :func:`camlib.evaluate`.

    Raises:
        CamlibTypeError: a single string.
        CamlibValueError: there are none, one is unknown, or one needs masks and there are none.
    """
    if metrics is None:
        metrics = (*FAITHFULNESS, *(LOCALISATION if with_masks else ()))
    if isinstance(metrics, str):
        raise CamlibTypeError(f"metrics must be a list of names or a mapping, got a single string; give [{metrics!r}]")
    if not isinstance(metrics, Iterable) or hasattr(metrics, "ndim"):
        raise CamlibTypeError(f"metrics must be a list of names or a mapping, got {metrics!r}")
    options = metrics if isinstance(metrics, Mapping) else {metric: {} for metric in map(name_or_metric, metrics)}
    if not options:
        raise CamlibValueError("metrics is empty; give at least one, such as 'average_drop'")
    columns = {_metric(given): _options(_metric(given), of_metric) for given, of_metric in options.items()}
    names = [metric.name for metric in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise CamlibValueError(f"{twice} is among the metrics twice; give each metric its own name")
    needing = [metric.name for metric in columns if metric.reads is LocatedHeatmaps]
    if needing and not with_masks:
        raise CamlibValueError(f"{', '.join(needing)} compare heatmaps with masks; give masks=, or leave them out")
    return columns


def name_or_metric(given: Any) -> Any:
    """Return a metric as it was given.

    Raises:
        CamlibTypeError: it is neither a name nor a metric, and may not be hashable.
    """
    if not isinstance(given, (str, Metric)):
        raise CamlibTypeError(f"each of metrics must be a name or a metric, got {given!r}")
    return given


def _options(metric: AnyMetric, given: Any) -> Mapping[str, Any]:
    """Return a metric's options.

    Raises:
        CamlibTypeError: they are no mapping, or the metric has no such option.
    """
    if not isinstance(given, Mapping):
        raise CamlibTypeError(f"the options of {metric.name} must be a mapping, got {given!r}")
    own = list(inspect.signature(metric.of).parameters)[1:]
    for name in given:
        if name not in own:
            close = difflib.get_close_matches(str(name), own, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(own) or 'none'}"
            raise CamlibTypeError(f"{metric.name} has no option {name!r}; {hint}")
    return given


def _metric(given: Any) -> AnyMetric:
    if isinstance(given, Metric):
        return given
    if given not in METRICS:
        close = difflib.get_close_matches(str(given), METRICS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no metric {given!r}; {hint}METRICS has {', '.join(sorted(METRICS))}")
    return METRICS[given]


def explainers_of(methods: Any, network: Network, layers: Sequence[str] | None) -> list[Method]:
    """Return the methods on a network, once for each layer that they are to read.

    Raises:
        CamlibTypeError: a single string, or something that is not a method.
        CamlibValueError: an unknown method or layer, or a method that calls the model differently.
    """
    if isinstance(methods, str) and methods != "all":
        raise CamlibTypeError(f'methods must be "all" or a list of them, got {methods!r}')
    if isinstance(layers, str):
        raise CamlibTypeError(f"layers must be a list of names, got a single string; give [{layers!r}]")
    for name, listed in (("methods", methods), ("layers", layers)):
        if (not isinstance(listed, Iterable) or hasattr(listed, "ndim")) and (name == "methods" or listed is not None):
            raise CamlibTypeError(f"{name} must be a list, got {listed!r}")
    given = list(METHODS) if isinstance(methods, str) else list(methods)
    named = {getattr(method, "name", method) for method in given}
    found: list[Method] = []
    for method in (*given, *(name for name in ALWAYS_EVALUATED if name not in named)):
        explainer = on_network(method, network, None)
        each = layers if layers and explainer.layers is None and explainer.finds_one_layer else [None]
        found += [explainer if layer is None else on_network(method, network, [layer]) for layer in each]
    for explainer in found:
        if explainer.network.forward is not network.forward:
            raise CamlibValueError(
                f"{explainer!r} calls the model by another forward, and all are evaluated on the same outputs; give "
                "evaluate(..., forward=...), and the method by name"
            )
    return found
