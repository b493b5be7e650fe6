"""Where the network looked: heatmaps of test images, and on phantoms whether they point at the opacity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import camlib
from camlib.imaging import draw_contours
from camlib.metrics import deletion, energy_pointing_game, insertion, pointing_game
from pneumonia.augment import prepare
from pneumonia.data import CLASSES, Pictures

Array = NDArray[Any]
CANDIDATES = ("layer2", "layer3", "layer4")
"""Layers among which validation images choose."""
FEW, STEPS = 32, 8
"""Images, and steps of insertion and deletion, by which they do where there are no masks."""
RESAMPLES = 1000
AT_ONCE = 64


def gallery(
    model: nn.Module,
    pictures: Pictures,
    probabilities: Array,
    threshold: float,
    size: int,
    layer: str | None,
    device: torch.device,
) -> tuple[Figure, camlib.Explanation]:
    """Draw original, heatmap and overlay of each picture at its own resolution, a row for each.

    The logit of the predicted class is explained. The pictures were squeezed whole into the network's square
    input, so that stretching a heatmap to the picture's own size puts it back where it belongs. On the overlay of a
    phantom its opacities are outlined.
    """
    predicted = torch.from_numpy((probabilities >= threshold).astype(np.int64)).to(device)
    explanation = camlib.GradCAM(model, layer)(prepare(pictures.pixels.to(device), size), predicted)
    figure = explanation.plot([original(pictures, index) for index in range(len(pictures))], CLASSES)
    for row, (label, guess, probability) in enumerate(
        zip(pictures.labels.tolist(), predicted.tolist(), probabilities, strict=True)
    ):
        certainty = probability if guess else 1 - probability
        figure.axes[3 * row].set_title(
            f"{'' if label == guess else 'WRONG: '}{CLASSES[guess]} ({certainty:.0%}), truly {CLASSES[label]}",
            fontsize=8,
            loc="left",
            color="black" if label == guess else "firebrick",
        )
        shown = figure.axes[3 * row + 1]
        if shown.get_title() == "heatmap":
            shown.set_title(f"heatmap for {CLASSES[guess]}", fontsize=9)
        if pictures.masks is not None and pictures.masks[row].any():
            _outline(figure.axes[3 * row + 2], pictures.masks[row])
    return figure, explanation


def _outline(overlay: Axes, mask: Tensor) -> None:
    """Outline the true opacity of a phantom on its overlay."""
    (image,) = overlay.get_images()
    image.set_data(draw_contours(np.asarray(image.get_array()), mask.float()))
    overlay.set_title("overlay, true opacity outlined", fontsize=9)


def original(pictures: Pictures, index: int) -> Array:
    """The picture as it is on disk, or as it was drawn."""
    path = Path(pictures.names[index])
    return camlib.imaging.read_gray(path) if path.is_file() else pictures.pixels[index].numpy()


def heatmaps(model: nn.Module, pictures: Pictures, size: int, layer: str | None, device: torch.device) -> Tensor:
    """Grad-CAM heatmaps of the PNEUMONIA logit, (N, S, S), at the pictures' working size."""
    cam = camlib.GradCAM(model, layer)
    side = pictures.pixels.shape[-1]
    parts = [
        cam(prepare(batch.to(device), size), 1).heatmaps((side, side)).cpu() for batch in pictures.pixels.split(AT_ONCE)
    ]
    return torch.cat(parts)


def choose_layer(model: nn.Module, validation: Pictures, size: int, device: torch.device) -> str:
    """The candidate whose heatmaps of validation images are best.

    Where masks tell the truth, by the energy inside them. Elsewhere by faithfulness to the network: how much further
    the probability rises when the pixels come back in the heatmap's order than when they go in it.
    """
    sick = _sick(validation)

    def energy(layer: str) -> float:
        return float(energy_pointing_game(heatmaps(model, sick, size, layer, device), masks).mean())

    def faithfulness(layer: str) -> float:
        few = sick.take(range(min(FEW, len(sick))))
        inputs = prepare(few.pixels.to(device), size)
        maps = camlib.resize(heatmaps(model, few, size, layer, device), (size, size)).to(device)
        rise = insertion(model, inputs, maps, target=1, steps=STEPS) - deletion(
            model, inputs, maps, target=1, steps=STEPS
        )
        return float(rise.mean())

    masks = sick.masks
    return max(CANDIDATES, key=faithfulness if masks is None else energy)


def localisation(
    model: nn.Module, test: Pictures, size: int, layer: str, seed: int, device: torch.device
) -> dict[str, Any]:
    """Whether the heatmaps of the PNEUMONIA test phantoms point at the opacities, beside a centre Gaussian.

    Returns:
        Pointing game and energy inside, with 95% bootstrap intervals over the images.
    """
    sick = _sick(test)
    assert sick.masks is not None
    side = sick.pixels.shape[-1]
    contenders = {
        "grad_cam": heatmaps(model, sick, size, layer, device),
        "center_gaussian": camlib.functional.center_gaussian((side, side)).expand(len(sick), -1, -1),
    }
    measures: dict[str, Callable[..., Tensor]] = {
        "pointing_game": partial(pointing_game, tolerance=0),
        "energy_inside": energy_pointing_game,
    }
    return {
        "images": len(sick),
        "layer": layer,
        "mask_area": float(sick.masks.double().mean()),
        **{
            who: {name: _with_interval(measure(maps, sick.masks), seed) for name, measure in measures.items()}
            for who, maps in contenders.items()
        },
    }


def _sick(pictures: Pictures) -> Pictures:
    return pictures.take(pictures.labels.nonzero().flatten().tolist())


def _with_interval(measured: Tensor, seed: int) -> dict[str, Any]:
    values: Array = measured.double().numpy()
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values))).mean(1)
    return {"value": float(values.mean()), "interval": [float(bound) for bound in np.percentile(drawn, [2.5, 97.5])]}
