"""The difference from a reference set: its score against the definition, and Grad-CAM's map in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import targets


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_the_score_is_the_distance_from_the_mean_in_the_images_own_direction(
    images: int, references: int, width: int, seed: int
) -> None:
    own, others, later = (
        features(images, width, seed=seed),
        features(references, width, seed=seed + 1),
        features(5, width),
    )
    bound = targets.bind(targets.Difference(others), own)
    index = torch.arange(5) % images
    found = targets.score(bound, later, index)
    mean = np.array([sum(row[c] for row in others.tolist()) / references for c in range(width)])
    for row, image, score in zip(later.numpy(), index.tolist(), found.tolist(), strict=True):
        direction = own[image].numpy() - mean
        assert math.isclose(score, (row - mean) @ direction / math.sqrt(direction @ direction), abs_tol=1e-9)
    distances = (own - torch.from_numpy(mean)).norm(dim=1)
    torch.testing.assert_close(targets.score(bound, own, torch.arange(images)), distances)


def test_grad_cam_weights_each_channel_by_its_difference() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images, healthy = torch.rand(2, 3, 8, 9).double(), torch.rand(6, 3, 8, 9).double()
    with torch.no_grad():
        activations, others = network[:2](images), network(healthy)
    explanation = camlib.GradCAM(network, "1", relu=False)(images, targets.Difference(others))
    for image, found in zip(activations, explanation.maps, strict=True):
        weights = image.mean((1, 2)) - others.mean(0)
        expected = sum(w * channel for w, channel in zip(weights, image, strict=True)) / weights.norm()
        torch.testing.assert_close(found, expected / found.numel())
    assert (explanation.target, explanation.quantity) == ("Difference", "difference of features")


def test_the_features_that_were_added_are_found() -> None:
    """Images of noise, one of which has a bright square in one channel of the features."""
    network = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = features(9, 4, 8, 8).abs().float()
    images[0, 2, 1:4, 5:8] += 5
    found = camlib.GradCAM(network, "0")(images[:1], targets.Difference(network(images[1:])))
    heatmap = found.heatmaps()[0]
    assert heatmap[1:4, 5:8].min() > 2 * heatmap[5:].max()


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("a", "give a tensor"),
        (torch.zeros(2, 3, dtype=torch.long), "floating-point"),
        (torch.zeros(3), r"shape \(3,\); give \(M, D\)"),
        (torch.zeros(0, 3), r"shape \(0, 3\)"),
        (torch.full((1, 3), math.nan), "not finite"),
    ],
)
def test_wrong_references_are_refused(references: object, message: str) -> None:
    with pytest.raises(camlib.CamlibError, match=message):
        targets.Difference(references)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"references have 4 features, and the outputs \(2, 3\)"):
        targets.bind(targets.Difference(features(5, 4)), features(2, 3))
    with pytest.raises(camlib.CamlibTypeError, match=r"Difference needs embeddings \(rows, D\)"):
        targets.bind(targets.Difference(features(5, 4)), features(2, 4, 3, 3))
    same = features(2, 3)
    with pytest.raises(camlib.CamlibValueError, match="features of image 1 equal the mean"):
        targets.bind(targets.Difference(same[1:]), same)


def test_half_precision_and_picked_images() -> None:
    own = features(3, 4).half()
    bound = targets.bind(targets.Difference(features(5, 4, seed=1)), own)
    found = targets.score(bound, own, torch.arange(3))
    assert found.dtype == torch.float32
    torch.testing.assert_close(targets.score(bound.pick(torch.tensor([2])), own[2:], torch.tensor([0])), found[2:])
