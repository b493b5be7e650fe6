"""Measure one method at several layers, to choose the layer to explain."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from camlib.comparison import on_network
from camlib.discovery.finding import find_stages_in
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.evaluation.batches import Batches
from camlib.evaluation.plan import AnyMetric, columns_of, name_or_metric
from camlib.evaluation.run import evaluate
from camlib.evaluation.table import Evaluation, TableRow
from camlib.layers.names import resolve_layers
from camlib.methods import Method
from camlib.metrics.readings import called
from camlib.passes.network import Forward, Network, Reshape

if TYPE_CHECKING:
    from camlib.plotting.figures import Figure

CELL = 1.1
"""Width of a layer in the figure, in inches."""


@dataclass(frozen=True, eq=False)
class LayerScan:
    """A method at several layers, with a value for each image; see :func:`camlib.scan_layers`.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        >>> masks[:, :32] = True
        >>> scan = camlib.scan_layers(model, images, "hires_cam", ["layer3", "layer4"], masks=masks)
        >>> scan.layers, scan.grids["layer3"], scan.best in scan.layers
        (['layer3', 'layer4'], (4, 4), True)
        >>> low, high = scan.interval("layer4")
        >>> low <= scan.mean("layer4") <= high
        True
    """

    method: str
    """Its name."""
    metric: str
    """Its name."""
    grids: Mapping[str, tuple[int, ...]]
    """The size of the map at each layer, in the order of the layers."""
    evaluation: Evaluation
    """The values of all images, also of the baselines."""

    @property
    def layers(self) -> list[str]:
        """The names of the layers, in the order in which they were given or are computed."""
        return list(self.grids)

    @property
    def best(self) -> str:
        """The layer with the best mean; :meth:`difference` says whether another layer differs from it."""
        sign = 1 if self.evaluation.better[self.metric] == "higher" else -1
        return max(self.layers, key=lambda layer: sign * self.mean(layer))

    def mean(self, layer: str) -> float:
        """Return the mean over images.

        Raises:
            CamlibValueError: the layer was not measured.
        """
        return self.evaluation.mean(self._row(layer), self.metric)

    def interval(self, layer: str, confidence: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of the mean over images.

        Raises:
            CamlibValueError: the layer was not measured, or the confidence is not between 0 and 1.
            CamlibTypeError: the confidence is not a number.
        """
        return self.evaluation.interval(self._row(layer), self.metric, confidence)

    def difference(self, layer: str, other: str, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
        """Return by how much a layer is better than another, image by image, and the interval of the mean difference.

        Raises:
            CamlibValueError: a layer was not measured, or the confidence is not between 0 and 1.
            CamlibTypeError: the confidence is not a number.
        """
        return self.evaluation.difference(self._row(layer), self._row(other), self.metric, confidence)

    def plot(self) -> Figure:
        """Draw the means with their intervals, layer by layer, and the baselines.

        Returns:
            A matplotlib figure, not shown.
        """
        return plot_scan(self)

    def __str__(self) -> str:
        better = self.evaluation.better[self.metric]
        lines = [f"{self.method}, {self.metric} ({better} is better), {self.evaluation.images} images"]
        for layer, grid in self.grids.items():
            low, high = self.interval(layer)
            lines.append(f"{layer} ({' x '.join(map(str, grid))}): {self.mean(layer):.3f} ({low:.3f} to {high:.3f})")
        return "\n".join(lines)

    def _row(self, layer: str) -> TableRow:
        if not isinstance(layer, str) or layer not in self.grids:
            raise CamlibValueError(f"layer {layer!r} was not measured; scan.layers has {', '.join(self.layers)}")
        return TableRow(self.method, layer)


def scan_layers(
    model: nn.Module,
    loader: Any,
    method: str | type[Method] | Method = "layer_cam",
    layers: Sequence[str] | None = None,
    metric: str | AnyMetric = "energy_pointing_game",
    masks: Any = None,
    *,
    target: Any = None,
    options: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    reshape: Reshape | None = None,
) -> LayerScan:
    """Measure one method at several layers, to choose the layer to explain.

    The layer can matter as much as the method. With masks, the metric says how much of each map lies on the object;
    for mosaics, pass :meth:`camlib.metrics.Mosaics.by_tile` and ``metric="grid_pointing_game"``. Without masks, choose
    a metric that runs the model, such as "insertion".

    A method that reads activations and gradients takes one forward pass for all layers; finding the layers takes one.

    Args:
        model: as for :class:`camlib.methods.Method`.
        loader: as for :func:`camlib.evaluate`; it is read twice.
        method: a name in :data:`camlib.METHODS`, a class, or an explainer of this model without a layer.
        layers: their names; None for the last layer of each resolution, as :func:`camlib.find_stages` finds them.
        metric: a name in :data:`camlib.metrics.METRICS`, or a metric.
        masks: (M, H, W) of bools, where the object is in each image; for metrics that compare maps with masks.
        target: as for :func:`camlib.evaluate`.
        options: of the metric.
        forward: as for :class:`camlib.methods.Method`.
        reshape: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibValueError: an unknown method, metric or layer, a method that reads no layer or has one already, or a
            metric that needs masks without them.
        CamlibTypeError: ``layers`` is not a list of names, or ``loader`` can be read only once.
        CamlibRuntimeError: the method fails at every layer.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        >>> masks[:, :32] = True  # the object is in the upper half
        >>> scan = camlib.scan_layers(model, images, masks=masks)
        >>> scan.grids
        {'relu': (32, 32), 'layer1': (16, 16), 'layer2': (8, 8), 'layer3': (4, 4), 'layer4': (2, 2)}
        >>> figure = scan.plot()
    """
    if isinstance(loader, Iterator):
        raise CamlibTypeError(
            f"loader is a {type(loader).__name__}, which can be read only once, but the layers are found before they "
            "are measured; give a tensor, a list of batches or a DataLoader"
        )
    own: Any = {} if options is None else options
    (column,) = columns_of({name_or_metric(metric): own}, with_masks=masks is not None)
    network = Network.of(model, forward, reshape)
    explainer = on_network(method, network, None)
    if not explainer.finds_one_layer or explainer.layers is not None:
        reason = "reads no single layer" if explainer.layerless or explainer.layers is None else "has a layer already"
        raise CamlibValueError(f"{explainer!r} {reason}; give a method that reads one layer, without a layer")
    first = next(iter(Batches(loader, target, masks, None, network))).first
    names = find_stages_in(network, first.inputs) if layers is None else _names(layers)
    each = [_at(explainer, name) for name in names]
    evaluation = evaluate(
        model,
        loader,
        each,
        names,
        {column: own},
        masks,
        target=target,
        forward=forward,
        reshape=reshape,
    )
    grids = {
        name: tuple(called(one, first.inputs, first.target).maps.shape[1:])
        for name, one in zip(names, each, strict=True)
        if TableRow(explainer.title, name) in evaluation.rows
    }
    if not grids:
        raise CamlibValueError("; ".join(f"{row}: {why}" for row, why in evaluation.left_out.items()))
    return LayerScan(explainer.title, column.name, grids, evaluation)


def _names(layers: Any) -> list[str]:
    """Return the names of layers.

    Raises:
        CamlibTypeError: they are no list of strings.
        CamlibValueError: there are none, or one is there twice.
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(one, str) for one in layers):
        raise CamlibTypeError(f'layers must be a list of names, such as ["layer3", "layer4"], got {layers!r}')
    if len(set(layers)) < max(len(layers), 1):
        raise CamlibValueError(f"layers must be different names, at least one, got {layers!r}")
    return list(layers)


def _at(explainer: Method, layer: str) -> Method:
    """Return the method at a layer."""
    other = copy.copy(explainer)
    other.layers = resolve_layers(explainer.model, layer)
    return other


def plot_scan(scan: LayerScan) -> Figure:
    """Draw a point with its interval for each layer; see :meth:`LayerScan.plot`."""
    from camlib.plotting.figures import Figure

    figure = Figure(figsize=(CELL * max(len(scan.layers), 3) + 1.6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(scan.layers))
    means = [scan.mean(layer) for layer in scan.layers]
    ends = [scan.interval(layer) for layer in scan.layers]
    around = [[mean - low for mean, (low, _) in zip(means, ends, strict=True)]]
    around.append([high - mean for mean, (_, high) in zip(means, ends, strict=True)])
    axes.errorbar(places, means, around, fmt="o-", capsize=3, label=scan.method)
    rows, own = scan.evaluation.rows, [TableRow("random_cam", layer) for layer in scan.layers]
    if scan.method != "random_cam" and all(row in rows for row in own):
        chance = [scan.evaluation.mean(row, scan.metric) for row in own]
        axes.plot(places, chance, ":", color="grey", label="random weights of the channels")
    for row in (row for row in rows if row.method == "center_gaussian"):
        axes.axhline(
            scan.evaluation.mean(row, scan.metric), ls="--", color="grey", lw=1, label="Gaussian in the centre"
        )
    labels = [f"{layer}\n{' x '.join(map(str, grid))}" for layer, grid in scan.grids.items()]
    axes.set_xticks(places, labels, fontsize=8, rotation=20 if max(map(len, scan.layers)) > 12 else 0)
    axes.set_xlabel("layer, and size of its map", fontsize=8)
    axes.set_ylabel(f"{scan.metric.replace('_', ' ')}\n{scan.evaluation.better[scan.metric]} is better", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
