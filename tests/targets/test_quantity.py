"""An explanation says what its scores are, and an evaluation what its metrics judged by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import camlib
from camlib import targets
from tests.networks import small_cnn

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUANTITIES: list[tuple[Any, str]] = [
    (None, "logit"),
    (1, "logit"),
    (camlib.TopK(2), "logit"),
    (targets.Probability(), "probability"),
    (targets.Confidence(1), "probability"),
    (targets.ReST(1), "ReST"),
    (targets.Contrast(1), "difference of logits"),
    (targets.Output(1), "output"),
    (targets.MultiLabel([[0, 1, 1], [1, 0, 0]]), "sum of logits"),
    (lambda outputs: outputs[:, 0], "score"),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_cnn().eval()


@pytest.mark.parametrize(("target", "quantity"), QUANTITIES)
def test_an_explanation_says_what_was_explained(model, target, quantity, tmp_path) -> None:
    explanation = camlib.GradCAM(model, "2")(IMAGES, target)
    assert explanation.quantity == explanation[1].quantity == quantity
    explanation.save(tmp_path / "explanation.npz")
    assert camlib.Explanation.load(tmp_path / "explanation.npz").quantity == quantity
    assert camlib.Explanation.cat([explanation, explanation]).quantity == quantity


def test_the_logits_of_a_network_that_ends_in_a_softmax_are_explained(model) -> None:
    assert camlib.GradCAM(nn.Sequential(*model, nn.Softmax(1)), "2")(IMAGES, 1).quantity == "logit"


def test_explanations_of_different_quantities_are_not_joined(model) -> None:
    cam = camlib.GradCAM(model, "2")
    with pytest.raises(camlib.CamlibValueError, match="differ in quantity: 'logit' and 'probability'"):
        camlib.Explanation.cat([cam(IMAGES, 1), cam(IMAGES, targets.Probability(1))])


def test_a_method_without_a_score_has_no_quantity() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    assert camlib.EigenCAM(features, "0")(IMAGES).quantity == "none"


@pytest.mark.parametrize(
    ("options", "judged"),
    [
        ({}, "probability"),
        ({"target": 1, "score": targets.Classes}, "logit"),
        ({"target": targets.ReST(1)}, "ReST"),
        ({"target": lambda outputs: outputs[:, 0].exp()}, "score"),
    ],
)
def test_an_evaluation_says_what_was_judged(model, options, judged) -> None:
    found = camlib.evaluate(model, IMAGES, ["grad_cam"], layers=["2"], metrics=["average_drop"], **options)
    assert found.judged == judged
