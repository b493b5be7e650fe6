"""Heatmaps are aligned with the original picture, and localisation matches its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import camlib
from pneumonia import explain, phantoms
from pneumonia.augment import prepare
from pneumonia.data import Pictures, list_images, load
from pneumonia.explain import choose_layer, gallery, localisation
from pneumonia.measures import Estimate
from pneumonia.model import build
from pneumonia.network import Network
from tests.radiographs import SHAPE, write_classes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network(build("none")[0].eval(), 32, CPU)


def drawn(count=12, side=48):
    made = phantoms.generate(count, size=side, seed=0)
    names = [f"phantom {index}" for index in range(count)]
    return Pictures(made.images, made.labels, names, names, made.masks)


def test_localisation_of_perfect_heatmaps_is_perfect_and_of_the_gaussian_is_not(network, monkeypatch):
    pictures = drawn(40)
    sick = pictures.masks[pictures.labels == 1]
    monkeypatch.setattr(explain, "heatmaps", lambda *_: sick.float())
    found = localisation(network, pictures, "layer4", 0)
    assert found.images == len(sick)
    assert found.mask_area == pytest.approx(float(sick.double().mean()))
    assert found.grad_cam.pointing_game == found.grad_cam.energy_inside == Estimate(1.0, (1.0, 1.0))
    for estimate in (found.center_gaussian.pointing_game, found.center_gaussian.energy_inside):
        assert estimate.interval[1] < 0.9
    gaussian = camlib.functional.center_gaussian((48, 48)).numpy()
    share = np.mean([gaussian[mask].sum() / gaussian.sum() for mask in sick.numpy()])
    assert found.center_gaussian.energy_inside.value == pytest.approx(share, rel=1e-4)


def test_layer_is_chosen_by_the_validation_masks(network, monkeypatch):
    pictures = drawn(20)
    sick = pictures.masks[pictures.labels == 1].float()
    good, bad = sick, 1 - sick
    monkeypatch.setattr(explain, "heatmaps", lambda network, pictures, layer: good if layer == "layer3" else bad)
    assert choose_layer(network, pictures) == "layer3"


def test_heatmaps_are_of_the_pneumonia_logit_and_at_the_working_size(network):
    pictures = drawn(3, 40)
    maps = explain.heatmaps(network, pictures, "layer2")
    assert maps.shape == (3, 40, 40)
    expected = camlib.GradCAM(network.model, "layer2")(prepare(pictures.pixels, 32), [1, 1, 1]).heatmaps((40, 40))
    torch.testing.assert_close(maps, expected)


def test_gallery_shows_each_picture_at_its_own_resolution_with_its_labels(network, tmp_path):
    write_classes(tmp_path, 2, 1)
    Image.new("RGB", (90, 60), (200, 200, 200)).save(tmp_path / "PNEUMONIA/wide.png")
    pictures = load(list_images(tmp_path), 36, "x")
    figure, explanation = gallery(network, pictures, np.array([0.1, 0.7, 0.9, 0.2]), 0.5, "layer3")
    rows = [figure.axes[3 * row : 3 * row + 3] for row in range(4)]
    shapes = [[ax.get_images()[0].get_array().shape[:2] for ax in row] for row in rows]
    assert shapes == [[SHAPE] * 3] * 3 + [[(60, 90)] * 3]
    assert [row[0].get_title(loc="left") for row in rows] == [
        "NORMAL (90%), truly NORMAL",
        "WRONG: PNEUMONIA (70%), truly NORMAL",
        "PNEUMONIA (90%), truly PNEUMONIA",
        "WRONG: NORMAL (80%), truly PNEUMONIA",
    ]
    assert explanation.target.tolist() == [0, 1, 1, 0]
    assert explanation.layer == "layer3"
    assert len(figure.axes) == 13  # and the colour bar
    assert np.array_equal(rows[0][0].get_images()[0].get_array()[..., 0], np.asarray(Image.open(pictures.names[0])))


def test_true_opacities_of_phantoms_are_outlined_on_the_overlay_alone(network):
    pictures = drawn(6)
    figure, explanation = gallery(network, pictures, np.full(6, 0.9), 0.5, "layer2")
    plain = explanation.overlays(list(pictures.pixels.numpy()))
    for row, mask in enumerate(pictures.masks.numpy()):
        original, _, overlay = (ax.get_images()[0].get_array() for ax in figure.axes[3 * row : 3 * row + 3])
        assert np.array_equal(original[..., 0], pictures.pixels[row])
        changed = (overlay != plain[row]).any(-1)
        assert changed.any() == mask.any()
        assert not (changed & ~mask).any()  # the outline is the mask's own edge


def test_heatmap_is_aligned_with_what_it_explains(tmp_path):
    """The heatmap of a network that reads brightness alone is high at the bright spot, which is off the centre."""
    write_classes(tmp_path, 1, 1)
    pictures = load(list_images(tmp_path), 36, "x")

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = torch.nn.Conv2d(3, 1, 1, bias=False)
            torch.nn.init.ones_(self.maps.weight)

        def forward(self, x):
            score = self.maps(x).relu().mean((1, 2, 3))
            return torch.stack([-score, score], 1)

    figure, _ = gallery(Network(Bright(), 32, CPU), pictures, np.array([0.9, 0.9]), 0.5, "maps")
    heatmap = figure.axes[4].get_images()[0].get_array()
    inside = np.zeros(SHAPE, bool)
    inside[10:25, 8:24] = True
    assert heatmap[13:22, 11:21].min() > 0.8
    assert heatmap[~np.pad(inside, 3)[3:-3, 3:-3]].mean() < 0.3
