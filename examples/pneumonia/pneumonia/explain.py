"""Where the network looked: heatmaps of test images, and on phantoms whether they point at the opacity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

import camlib
from camlib.imaging import draw_contours
from camlib.metrics import deletion, energy_pointing_game, insertion, pointing_game
from pneumonia.data import CLASSES, Pictures
from pneumonia.measures import Estimate, means
from pneumonia.network import Network

Array = NDArray[Any]
CANDIDATES = ("layer2", "layer3", "layer4")
"""The layers that validation images choose from."""
FEW, STEPS = 32, 8
"""Images, and steps of insertion and deletion, that choose the layer if there are no masks."""
AT_ONCE = 64


@dataclass(frozen=True)
class Pointing:
    """Whether heatmaps point at the opacities."""

    pointing_game: Estimate
    """Share of the images whose highest heatmap value lies inside an opacity."""
    energy_inside: Estimate
    """Share of the heatmap that lies inside the opacities."""


@dataclass(frozen=True)
class Localisation:
    """Whether Grad-CAM points at the opacities of phantoms, and whether a Gaussian in the centre does."""

    images: int
    layer: str
    mask_area: float
    """Mean share of the picture that the opacities cover."""
    grad_cam: Pointing
    center_gaussian: Pointing


def gallery(
    network: Network, pictures: Pictures, probabilities: Array, threshold: float, layer: str | None
) -> tuple[Figure, camlib.Explanation]:
    """Draw original, heatmap and overlay of each picture at its own resolution, a row for each.

    The logit of the predicted class is explained. The whole picture was resized to the network's square input, so
    resizing a heatmap to the size of the picture aligns the two. The overlay of a phantom shows the outline of its
    opacities.
    """
    predicted = torch.from_numpy((probabilities >= threshold).astype(np.int64)).to(network.device)
    explanation = camlib.GradCAM(network.model, layer)(network.inputs(pictures.pixels), predicted)
    titles = [
        f"{'' if label == guess else 'WRONG: '}{CLASSES[guess]} ({p if guess else 1 - p:.0%}), truly {CLASSES[label]}"
        for label, guess, p in zip(pictures.labels.tolist(), predicted.tolist(), probabilities, strict=True)
    ]
    figure = explanation.plot([original(pictures, index) for index in range(len(pictures))], titles=titles)
    if pictures.masks is not None:
        for overlay, mask in zip(figure.axes[2::3], pictures.masks, strict=True):  # the last picture of each row
            _outline(overlay, mask)
    return figure, explanation


def _outline(overlay: Axes, mask: Tensor) -> None:
    """Outline the true opacities of a phantom, if it has any, on its overlay."""
    if mask.any():
        (image,) = overlay.get_images()
        image.set_data(draw_contours(np.asarray(image.get_array()), mask.float()))
        overlay.set_title("overlay, true opacity outlined", fontsize=9)


def original(pictures: Pictures, index: int) -> Array:
    """Return a picture as it is on disk; of a phantom, its pixels."""
    path = Path(pictures.names[index])
    return camlib.imaging.read_gray(path) if path.is_file() else pictures.pixels[index].numpy()


def heatmaps(network: Network, pictures: Pictures, layer: str | None) -> Tensor:
    """Return Grad-CAM heatmaps of the PNEUMONIA logit, (N, S, S), at the working size of the pictures."""
    cam = camlib.GradCAM(network.model, layer)
    side = pictures.pixels.shape[-1]
    parts = [cam(network.inputs(batch), 1).heatmaps((side, side)).cpu() for batch in pictures.pixels.split(AT_ONCE)]
    return torch.cat(parts)


def choose_layer(network: Network, validation: Pictures) -> str:
    """Return the candidate layer with the best heatmaps of the PNEUMONIA validation images.

    If there are masks, the best heatmaps have the highest energy inside them. Otherwise they are the most faithful
    ones: those with the largest difference between insertion and deletion.
    """
    sick = validation.sick()

    def energy(layer: str) -> float:
        return float(energy_pointing_game(heatmaps(network, sick, layer), masks).mean())

    def faithfulness(layer: str) -> float:
        few = sick.take(range(min(FEW, len(sick))))
        size = (network.size, network.size)
        maps = camlib.resize(heatmaps(network, few, layer), size).to(network.device)
        rise, fall = (
            metric(network.model, network.inputs(few.pixels), maps, target=1, steps=STEPS)
            for metric in (insertion, deletion)
        )
        return float((rise - fall).mean())

    masks = sick.masks
    return max(CANDIDATES, key=faithfulness if masks is None else energy)


def localisation(network: Network, test: Pictures, layer: str, seed: int) -> Localisation:
    """Measure whether the heatmaps of PNEUMONIA test phantoms point at the opacities; intervals are over images."""
    sick = test.sick()
    masks = sick.masks
    assert masks is not None

    def pointing(maps: Tensor) -> Pointing:
        measured = {
            "pointing_game": pointing_game(maps, masks, tolerance=0),
            "energy_inside": energy_pointing_game(maps, masks),
        }
        return Pointing(**means(measured, range(len(sick)), seed))

    return Localisation(
        images=len(sick),
        layer=layer,
        mask_area=float(masks.double().mean()),
        grad_cam=pointing(heatmaps(network, sick, layer)),
        center_gaussian=pointing(camlib.functional.center_gaussian(tuple(masks.shape[1:])).expand(len(sick), -1, -1)),
    )
