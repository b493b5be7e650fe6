"""Options that give what the authors' code computes where it differs from the paper: each restated from that code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camlib
from camlib import targets
from tests import equations, networks, oracles
from tests.oracles import Case


def model_and_images(classes: int = 6) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(3)
    model = networks.small_cnn(classes=classes).double()
    model[6].weight.data *= 20  # probabilities that are neither alike nor 0 and 1
    return model, torch.rand(2, 3, 8, 9, dtype=torch.float64)


# Finer-CAM: sum_i p_i (y_c - alpha y_i) / sum_i p_i, whose probabilities are differentiated, too ----------------------


def finer_score(outputs: Tensor, classes: list[int], alpha: float, references: int) -> Tensor:
    scores = []
    for row, c in zip(outputs, classes, strict=True):
        apart = (row - row[c]).abs().tolist()
        others = sorted((d for d in range(len(row)) if d != c), key=lambda d: apart[d])[:references]
        chances = row.softmax(0)
        total = sum(chances[d] * (row[c] - alpha * row[d]) for d in others)
        scores.append(total / sum(chances[d] for d in others))
    return torch.stack(scores)


@pytest.mark.parametrize(("weight", "nearest"), [(1.0, 3), (0.7, 2)])
def test_finer_cam_weights_the_nearest_classes_by_their_probability(weight: float, nearest: int) -> None:
    model, images = model_and_images()
    case = Case(oracles.sequential_split(model, 2), images, [4, 1])
    expected, scale = equations.grad_cam(
        *case.features_of(lambda outputs: finer_score(outputs, [4, 1], weight, nearest))
    )
    options = {"weight": weight, "nearest": nearest, "average": "probability", "relu": False}
    found = camlib.FinerCAM(model, "2", **options)(images, [4, 1])
    oracles.assert_close(found.maps, expected, scale, 1e-9)
    torch.testing.assert_close(found.scores, finer_score(model(images), [4, 1], weight, nearest).detach())
    several = camlib.FinerCAM(model, "2", **options)(images, [[0, 4], [1, 2]])
    torch.testing.assert_close(several.maps[:, 1], camlib.FinerCAM(model, "2", **options)(images, [4, 2]).maps)
    assert (
        found.maps - camlib.FinerCAM(model, "2", **options | {"average": "mean"})(images, [4, 1]).maps
    ).abs().max() > 0


def test_other_averages_are_refused() -> None:
    for make in (targets.Contrast, lambda **options: camlib.FinerCAM(networks.small_cnn(), **options)):
        with pytest.raises(camlib.CamlibValueError, match='average must be "mean" or "probability", got \'max\''):
            make(average="max")


# KPCA-CAM: tanh(x . y / C + 1) of features less their channel's mean --------------------------------------------------


def test_kpca_cam_has_the_kernel_of_the_authors() -> None:
    activations = torch.randn(2, 5, 4, 3, dtype=torch.float64) + 1
    expected = torch.zeros(2, 12, dtype=torch.float64)
    for n, features in enumerate(activations.flatten(2).mT.numpy()):
        features = features - features.mean(0)
        kernel = np.tanh(features @ features.T / 5 + 1)
        middle = np.eye(12) - np.ones((12, 12)) / 12
        values, vectors = np.linalg.eigh(middle @ kernel @ middle)
        expected[n] = torch.from_numpy(vectors[:, -1] * np.sqrt(values[-1]))
    found = camlib.functional.kpca_cam(activations, "sigmoid", "1/C", center=True)
    flat = found.flatten(1)
    sign = (flat * expected).sum(1, keepdim=True).sign()  # the authors leave it to chance
    torch.testing.assert_close(flat, sign * expected)
    apart = camlib.functional.kpca_cam(activations, "sigmoid", "1/C")
    assert (apart - found).abs().max() > 1e-3
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cam = camlib.KPCACAM(model, "0", kernel="sigmoid", gamma="1/C", center=True, relu=False)
    torch.testing.assert_close(cam(activations).maps, found)
    with pytest.raises(camlib.CamlibTypeError, match='gamma, if not None or "1/C", must be'):
        camlib.functional.kpca_cam(activations, gamma="1/N")


# Score-CAM: the sum over channels of the probability of the masked image times the upsampled channel ------------------


@pytest.mark.parametrize("name", ["score_cam", "ss_cam", "is_cam"])
def test_score_cam_weights_channels_by_their_probability(name: str) -> None:
    model, images = model_and_images()
    with torch.no_grad():
        activations = model[:4](images)
    noise = torch.randn((2, 8, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(2, 8, 9, dtype=torch.float64)
    for n, c in enumerate([4, 1]):
        for channel in activations[n]:
            if channel.max() == channel.min():
                continue
            mask = (channel - channel.min()) / (channel.max() - channel.min())
            masks = {"score_cam": [mask], "ss_cam": mask + 2.0 * noise, "is_cam": [mask / 2, mask]}[name]
            with torch.no_grad():
                chances = [model(images[n : n + 1] * one).softmax(1)[0, c] for one in masks]
            expected[n] += sum(chances) / len(chances) * channel
    samples = {} if name == "score_cam" else {"samples": 2}
    cam = camlib.create(name, model, "3", weights="probability", relu=False, **samples)
    found = cam(images, [4, 1])
    torch.testing.assert_close(found.maps, expected)
    torch.testing.assert_close(found.scores, model(images).softmax(1)[[0, 1], [4, 1]].detach())
    assert found.quantity == "probability"
    assert found.target.tolist() == [4, 1]
    torch.testing.assert_close(cam(images, [[4, 0], [0, 1]]).maps[[0, 1], [0, 1]], expected)
    given = cam(images, targets.Probability([4, 1]))
    torch.testing.assert_close(given.maps, expected)


def test_channels_that_are_left_out_weigh_nothing() -> None:
    activations, scores = torch.rand(1, 3, 2, 2), torch.tensor([[0.5, -torch.inf, 0.25]])
    found = camlib.functional.score_cam(activations, scores, "probability")
    torch.testing.assert_close(found, 0.5 * activations[:, 0] + 0.25 * activations[:, 2])
    model, images = model_and_images()
    some = camlib.ScoreCAM(model, "3", weights="probability", channels=2)(images, 1)
    assert not some.degenerate.any()


def test_negative_scores_are_no_weights() -> None:
    model, images = model_and_images()
    with pytest.raises(camlib.CamlibValueError, match="some are negative"):
        camlib.ScoreCAM(model, "3", weights="probability")(images, lambda outputs: -outputs.exp().sum(1))
    with pytest.raises(camlib.CamlibValueError, match='weights must be "softmax" or "probability"'):
        camlib.ScoreCAM(model, weights="logit")


# RefineCAM: each map is resized to the image, then min-maxed and multiplied -------------------------------------------


def test_refine_cam_multiplies_maps_of_the_images_size() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    for weighted in (model[2], model[6]):
        weighted.weight.data.abs_()  # every map has a positive value
    images, layers = torch.rand(2, 3, 16, 20, dtype=torch.float64), ["1", "3"]
    found = camlib.RefineCAM(model, layers, upsample=True)(images, [[1, 0], [2, 1]])
    expected = torch.ones(2, 2, 16, 20, dtype=torch.float64)
    for layer in layers:
        maps = camlib.GradCAMPlusPlus(model, layer)(images, [[1, 0], [2, 1]]).maps
        resized = F.interpolate(maps, (16, 20), mode="bilinear", align_corners=False)
        low, high = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
        expected *= (resized - low) / (high - low)
    torch.testing.assert_close(found.maps, expected)
    assert found.extent is None
    torch.testing.assert_close(found.heatmaps(normalize="none"), expected)
    grid = camlib.RefineCAM(model, layers)(images, [[1, 0], [2, 1]])
    assert grid.maps.shape == (2, 2, 8, 10)
    assert (grid.heatmaps() - found.heatmaps()).abs().max() > 1e-3
    with pytest.raises(camlib.CamlibTypeError, match="upsample must be"):
        camlib.RefineCAM(model, layers, upsample=1)
