"""Several methods on the same images, from one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from camlib.errors import CamlibTypeError, CamlibValueError, items
from camlib.explanation import Explanation
from camlib.explanation.titles import NO_CLASS
from camlib.imaging import DEFAULT_COLORMAP, as_pictures
from camlib.layers.names import resolve_layers
from camlib.methods import Method
from camlib.methods.base import Layer, OnNonfinite, explain_together, shares_pass
from camlib.methods.registry import method_named
from camlib.passes.network import Forward, Network, Reshape
from camlib.plotting.rows import EMPTY, MISSING, PLAIN, Style, add_colorbar, colors, laid, shortened
from camlib.smoothing import bound_target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_METHODS = (
    "grad_cam",
    "grad_cam_plus_plus",
    "x_grad_cam",
    "hires_cam",
    "layer_cam",
    "eigen_grad_cam",
    "eigen_cam",
    "fem",
)
"""Eight methods that share one forward pass and one tail gradient."""


CELL = 1.9
"""Width of a picture in the figure, in inches."""
COLUMNS = 7
"""Most pictures in a line; more methods are spread evenly over several lines."""
WIDEST = 28
"""Most characters in a line of a title, which fit the width of a picture."""


class Comparison(Mapping[str, Explanation]):
    """Explanations of the same images by method, and a figure of them side by side.

    Example:
        >>> import camlib, torch, torchvision
        >>> images = torch.rand(2, 3, 64, 64)
        >>> comparison = camlib.compare(torchvision.models.resnet18(num_classes=4), images, ["grad_cam", "eigen_cam"])
        >>> comparison["eigen_cam"].maps.shape, len(comparison)
        (torch.Size([2, 2, 2]), 2)
        >>> figure = comparison.plot(images)
    """

    def __init__(self, explanations: Mapping[str, Explanation]) -> None:
        self._explanations = dict(explanations)

    def __getitem__(self, name: str) -> Explanation:
        return self._explanations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._explanations)

    def __len__(self) -> int:
        return len(self._explanations)

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(self)}"

    def plot(
        self,
        images: Any,
        class_names: Sequence[str] | None = None,
        colormap: Any = DEFAULT_COLORMAP,
        alpha: float | str = 0.5,
    ) -> Figure:
        """Draw a row for each image and class: the picture, then every method's overlay, with a colour bar.

        Args:
            images: the pictures, as for :meth:`camlib.Explanation.overlays`.
            class_names: names for the class indices.
            colormap: as for :meth:`camlib.Explanation.overlays`.
            alpha: as for :meth:`camlib.Explanation.overlays`.

        Returns:
            A matplotlib figure, not shown.
        """
        return plot_comparison(self, images, class_names, colormap, alpha)


def compare(
    model: nn.Module,
    images: Any,
    methods: Sequence[str | type[Method] | Method] = DEFAULT_METHODS,
    target: Any = None,
    *,
    layer: Layer = None,
    forward: Forward | None = None,
    reshape: Reshape | None = None,
    on_nonfinite: OnNonfinite = "raise",
) -> Comparison:
    """Explain the same images with several methods.

    All methods that read activations and gradients share one forward pass, cut at all of their layers, and one
    tail gradient (K for K classes). Methods that contrast classes (Finer-CAM) or differentiate twice (ShapleyCAM) add a
    tail gradient each. Whatever else a method needs (passes of noisy copies, the input's gradient, explicit attention)
    runs separately, for the same classes. Finding the layer takes one more forward pass, and so does finding
    RefineCAM's stages.

    Args:
        model: as for :class:`camlib.methods.Method`.
        images: what the model takes.
        methods: names in :data:`camlib.METHODS`, classes, or explainers of this model with custom options.
        target: as for :meth:`camlib.methods.Method.__call__`. It is bound once, for all methods.
        layer: the layer for methods given by name or class that read a single layer; None to find it, once for all of
            them. Methods that read several layers find them; methods that read no layer ignore it.
        forward: as for :class:`camlib.methods.Method`.
        reshape: as for :class:`camlib.methods.Method`.
        on_nonfinite: as for :class:`camlib.methods.Method`, for methods given by name or class. An image costs only the
            methods whose numbers are not finite for it.

    Returns:
        The explanations by name, in the order of ``methods``.

    Raises:
        CamlibValueError: ``methods`` is empty, names a method twice or an unknown one, or holds an explainer of another
            model.
        CamlibTypeError: ``methods`` is not a list, or holds something that is not a method.

    Example:
        >>> import camlib, torch, torchvision
        >>> comparison = camlib.compare(torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64))
        >>> list(comparison)
        ['grad_cam', 'grad_cam_plus_plus', 'x_grad_cam', 'hires_cam', 'layer_cam', 'eigen_grad_cam', 'eigen_cam', 'fem']
    """
    network = Network.of(model, forward, reshape)
    wanted = items("methods", methods, "a list")
    layers = None if layer is None else list(resolve_layers(network.module, layer))
    given = [on_network(method, network, layers, on_nonfinite=on_nonfinite) for method in wanted]
    names = [method.title for method in given]
    if not names:
        raise CamlibValueError("methods is empty; give at least one, such as 'grad_cam'")
    if len(set(names)) < len(names):
        raise CamlibValueError(f"each method can be compared once, got {', '.join(names)}")
    sharing = [method for method in given if shares_pass(method) and method.network.is_called_as(network)]
    found: dict[str, Explanation] = {}
    if sharing:
        found = dict(zip((method.title for method in sharing), explain_together(sharing, images, target), strict=True))
        target = bound_target(found[sharing[0].title], target)
    for method in given:
        if method.title not in found:
            found[method.title] = method(images, target)
            target = bound_target(found[method.title], target)
    return Comparison({name: found[name] for name in names})


def on_network(method: Any, network: Network, layers: Sequence[str] | None, **common: Any) -> Method:
    """Return a method on a network and, if it has no layers yet, at the given layers, with options for all methods."""
    if isinstance(method, Method):
        if method.model is not network.module:
            raise CamlibValueError(f"{method!r} explains another model than the one given to compare")
        return method
    kind = method_named(method) if isinstance(method, str) else method
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise CamlibTypeError(
            f"each method must be a name in camlib.METHODS, or a class or instance of camlib.methods.Method, got "
            f"{type(method).__name__}: {method!r}"
        )
    options: dict[str, Any] = {"forward": network.forward, **common}
    if kind.reads in ("layers", "attention"):
        options["reshape"] = network.reshape
    if layers is not None and kind.finds_one_layer and not kind.layerless:
        options["layer"] = layers
    return kind(network.module, **options)


def located(methods: Sequence[Method], inputs: Any) -> list[Method]:
    """Return methods on one network, each fixed to the layers that it reads for these inputs."""
    ready = methods[0].network.ready(inputs)
    found: dict[Any, Sequence[str]] = {}
    return [method.located(ready, found) for method in methods]


def plot_comparison(
    comparison: Mapping[str, Explanation],
    images: Any,
    class_names: Sequence[str] | None,
    colormap: Any,
    alpha: float | str,
) -> Figure:
    """Draw a block of lines for each image and class; see :meth:`camlib.comparison.Comparison.plot`."""
    from camlib.plotting.figures import Figure

    first = next(iter(comparison.values()))
    of_classes = [one for one in comparison.values() if not one.class_agnostic]
    if first.dims != 2:
        raise CamlibValueError(
            f"the maps {tuple(first.maps.shape)} are not of images (N, C, H, W); plot each method alone: "
            "comparison[name].plot(...)"
        )
    signed = {name: one.signed for name, one in comparison.items()}
    pictures = as_pictures(images)
    if len(pictures) != len(first):
        raise CamlibValueError(f"{len(first)} explained images need as many pictures, got {len(pictures)}")
    classes = first[0].scores.numel()
    lines = math.ceil((len(comparison) + 1) / COLUMNS)
    columns = math.ceil((len(comparison) + 1) / lines)
    height, width = pictures[0].shape[:2]
    figure = Figure(
        figsize=(columns * CELL + 1.2, max(2.6, len(pictures) * classes * lines * (CELL * height / width + 0.25))),
        layout="constrained",
    )
    axes = figure.subplots(len(pictures) * classes * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for n, picture in enumerate(pictures):
        heatmaps = {
            name: one[n]
            .heatmaps(picture.shape[:2], "signed" if signed[name] else "minmax")
            .reshape(classes, *picture.shape[:2])
            .cpu()
            .numpy()
            for name, one in comparison.items()
        }
        titled = next((one for one in [*of_classes, *comparison.values()] if not bool(one.missing[n])), first)
        for k in range(classes):
            start = (n * classes + k) * lines
            cells = axes[start : start + lines].flat
            ax = next(cells)
            ax.imshow(picture)
            ax.set_title(shortened(titled[n].title(k, class_names), WIDEST), fontsize=8, **PLAIN)
            for (name, heatmap), ax in zip(heatmaps.items(), cells, strict=False):  # the last line may have room left
                ax.imshow(laid(picture, heatmap[k], Style(colormap, alpha, signed=signed[name])))
                agnostic = comparison[name].class_agnostic and bool(of_classes)
                missing, empty = bool(comparison[name].missing[n]), not heatmap[k].any()
                remark = MISSING if missing else EMPTY if empty else NO_CLASS if agnostic else ""
                ax.set_title(f"{name}\n{remark}".strip(), fontsize=8, **PLAIN)
    for kind in sorted(set(signed.values())):
        style = Style(colormap, alpha, _of_kind(signed, kind), kind)
        add_colorbar(figure, axes, colors(style), style)
    return figure


def _of_kind(signed: Mapping[str, bool], kind: bool) -> str:
    """The names of the methods whose maps are signed, or not; none where this is true of all."""
    return "" if len(set(signed.values())) == 1 else ", ".join(name for name, own in signed.items() if own is kind)
