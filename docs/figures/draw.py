"""Draw the pictures of the pages, each for a light and for a dark page: ``python -m docs.figures.draw``.

Everything that is drawn comes from ``network.py`` (EfficientNet-Lite0 on photographs), ``shortcut.py`` (phantoms) and
the results of the benchmarks. What it writes into ``_static``, NAME-light.webp, NAME-dark.webp and the logo, is
committed: a build draws nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import rgb2lab

import camlib
from benchmarks.results import load
from camlib import metrics

DOCS = Path(__file__).parents[1]
sys.path += [str(DOCS.parent / "examples" / "pneumonia")]

from docs.figures import shortcut  # noqa: E402 - it needs the example
from docs.figures.network import CAT, ESPRESSO, MISSILE, images, model, pictures  # noqa: E402

INKS = {"light": "#1f2328", "dark": "#d6dae0"}
"""Text, by page. The figures' background is transparent."""
ACCENT, COOL = "#d9552b", "#3b82c4"
STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
WIDTH = 7.67
"""Of every figure in inches, at 96 px an inch as wide as a page's text."""


def hero() -> Image.Image:
    """Three photographs above their overlays, side by side without gaps."""
    overlays = camlib.GradCAM(model)(images, [CAT, ESPRESSO, MISSILE]).overlays(pictures, "inferno", "heat")
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in ([*map(np.array, pictures)], overlays)]))


def icon(path: Path, cells: int, gap: float) -> None:
    """Draw a square of heat, cell by cell: the logo, and with fewer cells the icon of a tab."""
    row, column = np.mgrid[:cells, :cells] / (cells - 1)
    heat = np.exp(-((column - 0.62) ** 2 + (row - 0.4) ** 2) / 0.13)
    heat = 0.12 + 0.82 * (heat - heat.min()) / (heat.max() - heat.min())
    colors, side = camlib.colorize(heat, "inferno"), 64 / cells
    lines = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" role="img" aria-label="a grid of heat">']
    for i, j in np.ndindex(cells, cells):
        place = f'x="{j * side + gap / 2:.1f}" y="{i * side + gap / 2:.1f}"'
        size = f'width="{side - gap:.1f}" height="{side - gap:.1f}" rx="{side * 0.22:.1f}"'
        lines.append(f'<rect {place} {size} fill="#{bytes(colors[i, j]).hex()}"/>')
    path.write_text("\n".join([*lines, "</svg>\n"]))


def layers() -> Figure:
    """The same class at four layers, from fine to coarse."""
    stages = ("_blocks.2", "_blocks.4", "_blocks.10", "features")
    figure, axes = _panels(len(stages) + 1)
    _show(axes[0], pictures[1], "picture")
    for axis, stage in zip(axes[1:], stages, strict=True):
        name = stage if stage == "features" else f"features.network.{stage}"
        explanation = camlib.LayerCAM(model, name)(images[1:2], ESPRESSO)
        drawn = _heat(axis, explanation.heatmaps()[0], f"{stage}\n{' x '.join(map(str, explanation.maps.shape[1:]))}")
    return _with_bar(figure, axes, drawn, "share of the map's range")


def contrast() -> Figure:
    """A class, its rival, and the one against the other."""
    cam = camlib.GradCAM(model, relu=False)
    tabby = 281
    explanations = {
        "Egyptian cat": cam(images[:1], CAT),
        "tabby": cam(images[:1], tabby),
        "Egyptian cat\nagainst tabby": cam(images[:1], camlib.targets.Contrast(CAT, against=tabby, weight=1)),
    }
    figure, axes = _panels(4)
    _show(axes[0], pictures[0], "picture")
    for axis, (title, explanation) in zip(axes[1:], explanations.items(), strict=True):
        drawn = _heat(axis, explanation.heatmaps(normalize="signed")[0], title, "coolwarm", -1)
    return _with_bar(figure, axes, drawn, "against    evidence    for")


def loss_and_logit() -> Figure:
    """Signed Grad-CAM of the logit, and of the loss."""
    cam = camlib.GradCAM(model, relu=False)

    def loss(outputs: Any) -> Any:
        return F.cross_entropy(outputs, outputs.argmax(1), reduction="none")

    figure, axes = _panels(3)
    _show(axes[0], pictures[1], "picture")
    for axis, title, target in ((axes[1], "of the logit", None), (axes[2], "of the loss", loss)):
        heatmap = cam(images[1:2], target).heatmaps(normalize="signed")[0]
        drawn = _heat(axis, heatmap, title, "coolwarm", -1)
    return _with_bar(figure, axes, drawn, "against    evidence    for")


def saturation() -> Figure:
    """The gradient of the probability, compared with that of the logit."""
    logits = np.linspace(-2, 16, 200)
    probability = 1 / (1 + np.exp(-logits))
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
    axis.semilogy(logits, np.ones_like(logits), color=COOL, label="of the logit")
    axis.semilogy(logits, probability * (1 - probability), color=ACCENT, label="of the probability, p (1 - p)")
    for sure in (0.5, 0.99, 0.9999):
        at = np.log(sure / (1 - sure))
        axis.plot(at, sure * (1 - sure), "o", color=ACCENT)
        axis.annotate(f"p = {sure}", (at, sure * (1 - sure)), (8, 4), textcoords="offset points")
    axis.set(xlabel="log odds of the class", ylabel="gradient", ylim=(1e-7, 4))
    axis.legend(frameon=False, loc="lower left")
    return figure


def cells() -> Figure:
    """Forty-nine numbers, enlarged; and what one of them reads."""
    explanation = camlib.GradCAM(model)(images[1:2], ESPRESSO)
    pixels = images[1:2].clone().requires_grad_()
    with torch.enable_grad():
        cell = model.features(pixels)[0, :, 3, 3].abs().sum()
    (gradient,) = torch.autograd.grad(cell, pixels)
    read = gradient[0].abs().sum(0)
    figure, axes = _panels(4)
    _show(axes[0], pictures[1], "picture")
    _heat(axes[1], camlib.normalize(explanation.maps)[0], "the map: 7 x 7 numbers")
    drawn = _heat(axes[2], explanation.heatmaps()[0], "the same, enlarged")
    _heat(axes[3], (read / read.quantile(0.995)).clamp(max=1), "what the middle cell reads")
    axes[3].add_patch(plt.Rectangle((96, 96), 32, 32, fill=False, color="white", linewidth=1.5))
    return _with_bar(figure, axes, drawn, "share of the range")


def scales() -> Figure:
    """Two classes, each on its own scale, and both on one."""
    explanation = camlib.GradCAM(model)(images[:1], [[CAT, MISSILE]])
    own, (cat, missile) = explanation.heatmaps()[0], explanation.heatmaps(normalize="none")[0].clamp(min=0)
    figure, axes = _panels(4)
    score = explanation.scores[0]
    for axis, heatmap, title in (
        (axes[0], own[0], f"Egyptian cat\nlogit {score[0]:.1f}, own scale"),
        (axes[1], own[1], f"missile\nlogit {score[1]:.1f}, own scale"),
        (axes[2], cat / cat.max(), "Egyptian cat\none scale"),
        (axes[3], missile / cat.max(), "missile\none scale"),
    ):
        drawn = _heat(axis, heatmap, title)
    return _with_bar(figure, axes, drawn, "evidence")


def colormaps() -> Figure:
    """The lightness of colour maps from 0 to 1."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    values = np.linspace(0, 1, 256)
    places = {"jet": (0.15, 8, -8), "turbo": (0.12, -34, 8), "viridis": (0.3, -40, 6), "inferno": (0.3, 8, -10)}
    for name, (x, right, up) in places.items():
        colors = camlib.colorize(values[None], name)[0] / 255
        lightness = rgb2lab(colors[None])[0, :, 0]
        axis.scatter(values, lightness, c=colors, s=14, linewidths=0)
        at = int(x * 255)
        axis.annotate(name, (values[at], lightness[at]), (right, up), textcoords="offset points")
    axis.set(xlabel="heatmap", ylabel="lightness L* of the colour", xlim=(0, 1), ylim=(0, 105))
    return figure


def agnostic() -> Figure:
    """Two methods asked about a cat and about a missile."""
    figure, axes = _panels(4)
    column = 0
    for name, title in (("grad_cam", "Grad-CAM"), ("eigen_cam", "EigenCAM")):
        heatmaps = camlib.create(name, model)(images[:1], [[CAT, MISSILE]]).heatmaps()[0]
        for heatmap, label in zip(heatmaps, ("Egyptian cat", "missile"), strict=True):
            drawn = _heat(axes[column], heatmap, f"{title}\n{label}")
            column += 1
    return _with_bar(figure, axes, drawn, "share of the range")


def sanity() -> Figure:
    """Rank correlation with the trained network's heatmap, while the network forgets part by part."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    for name, title, color in (("grad_cam", "Grad-CAM", ACCENT), ("sobel", "Sobel: edges of the picture", COOL)):
        result = metrics.randomization(camlib.create(name, model), images, similarities=["spearman"])
        line = [1.0, *result.similarities["spearman"].mean(1).tolist()]
        axis.plot(range(len(line)), line, "o-", color=color, label=title)
    axis.axhline(result.random_pair["spearman"], color="gray", linestyle=":", label="two random maps")
    parts = [stage.removeprefix("features.network.") for stage in result.stages]
    axis.set_xticks(range(len(line)), ["as trained", *parts], rotation=20, ha="right")
    axis.set(ylabel="rank correlation", ylim=(-0.35, 1.1), xlabel="random, from the output down to")
    axis.legend(frameon=False, loc=(0.3, 0.55))
    return figure


def shortcuts() -> Figure:
    """What a network looked at that was trained on tagged phantoms."""
    phantoms = shortcut.phantoms_of_both_classes()
    network = shortcut.trained(phantoms)
    sick = phantoms.labels == 1
    shown = [index for index in sick.nonzero().flatten().tolist() if index >= shortcut.TRAINING][:2]
    figure, axes = _panels(4)
    for place, (tagged, title) in enumerate(((sick, "sick, with the tag"), (~sick, "sick, without"))):
        radiographs = shortcut.with_tag(phantoms.images, tagged)[shown[:1]]
        explanation = camlib.GradCAM(network)(shortcut.prepared(radiographs), 1)
        probability = float(explanation.outputs.softmax(1)[0, 1])
        axes[2 * place].imshow(radiographs[0], cmap="gray")
        axes[2 * place].contour(phantoms.masks[shown[0]], [0.5], colors="white", linewidths=1)
        axes[2 * place].set_title(title)
        drawn = _heat(axes[2 * place + 1], explanation.heatmaps()[0], f"Grad-CAM of PNEUMONIA\np = {probability:.2f}")
        axes[2 * place + 1].contour(phantoms.masks[shown[0]], [0.5], colors="white", linewidths=1)
    for axis in axes:
        axis.axis("off")
    return _with_bar(figure, axes, drawn, "share of the range")


def growth() -> Figure:
    """How the time of camlib and grad-cam grows; measured by ``benchmarks/run suite``."""
    growth = load("suite")["growth"]
    titles = {"images": "Grad-CAM, ResNet-18", "channels": "Ablation-CAM, synthetic", "classes": "Grad-CAM, one image"}
    figure, axes = _panels(3)
    for axis, (what, title) in zip(axes, titles.items(), strict=True):
        points = [point for point in growth if point["of"] == what]
        numbers = [point["number"] for point in points]
        for name, style in (("camlib", "o-"), ("grad-cam", "s--"), ("forward", ":")):
            color = {"camlib": ACCENT, "grad-cam": COOL}.get(name, mpl.rcParams["text.color"])
            label = "bare forward pass" if name == "forward" else name
            axis.loglog(numbers, [point["seconds"][name] for point in points], style, ms=4, color=color, label=label)
        axis.set(title=title, xlabel=what)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("seconds")
    axes[2].legend(frameon=False, loc=(0.36, 0.16))
    return figure


def layer_scan() -> Figure:
    """Energy on the truth by layer; measured by ``benchmarks/run layer_scan``."""
    titles = {"watermark": "watermark", "mosaic": "tile of a mosaic", "transformer": "shape, transformer"}
    styles = {"grad_cam": "s--", "hires_cam": "^-", "layer_cam": "o-", "balanced layer_cam": "D-"}
    inks = {"grad_cam": COOL, "hires_cam": "#3c9d5d", "layer_cam": ACCENT, "balanced layer_cam": "#9160c4"}
    subjects = load("layer_scan")["subjects"]
    figure, grid = plt.subplots(
        1, len(subjects), figsize=(WIDTH, 3.4), layout="constrained", sharey=True, squeeze=False
    )
    axes = grid[0]
    for axis, (subject, scanned) in zip(axes, subjects.items(), strict=True):
        for name, by_layer in scanned["methods"].items():
            means = np.array([of["mean"] for of in by_layer.values()])
            ends = np.array([of["interval"] for of in by_layer.values()]).T
            around = abs(ends - means)
            axis.errorbar(
                range(len(means)), means, around, fmt=styles[name], color=inks[name], ms=4, capsize=2, label=name
            )
        labels = [layer.replace("encoder.layers.encoder_layer_", "block ") for layer in scanned["grids"]]
        axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axis.set(title=titles[subject], ylim=(0, 1))
    axes[0].set_ylabel("share of the energy on the truth")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, ncols=4, loc="outside lower center")
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(WIDTH, (WIDTH - 0.8) / count + 0.55), layout="constrained")
    return figure, list(axes)


def _show(axis: Axes, picture: Any, title: str = "") -> None:
    axis.imshow(picture)
    axis.set_title(title)
    axis.axis("off")


def _heat(axis: Axes, heatmap: Any, title: str, cmap: str = "inferno", low: float = 0) -> Any:
    drawn = axis.imshow(heatmap, cmap=cmap, vmin=low, vmax=1, interpolation="nearest")
    axis.set_title(title)
    axis.axis("off")
    return drawn


def _with_bar(figure: Figure, axes: list[Axes], drawn: Any, label: str) -> Figure:
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8, aspect=16, pad=0.01)
    return figure


FIGURES: tuple[Callable[[], Figure], ...] = (
    layers,
    contrast,
    loss_and_logit,
    saturation,
    cells,
    scales,
    colormaps,
    agnostic,
    sanity,
    shortcuts,
    growth,
    layer_scan,
)


def main(names: list[str]) -> None:
    """Draw the named figures, or all."""
    icon(DOCS / "_static" / "logo.svg", 5, 1.6)
    icon(DOCS / "_static" / "favicon.svg", 4, 1.2)
    hero().save(DOCS / "_static" / "hero.webp", quality=82, method=6)
    for draw in FIGURES:
        if names and draw.__name__ not in names:
            continue
        for page, ink in INKS.items():
            inked = dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
            )
            with mpl.rc_context({**STYLE, **inked}):
                figure = draw()
                path = DOCS / "_static" / f"{draw.__name__}-{page}.webp"
                figure.savefig(path, dpi=192, transparent=True, pil_kwargs={"quality": 80, "method": 6})
                plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
