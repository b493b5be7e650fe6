"""Outputs by their columns: the binary logit and the sum of labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import camlib
from camlib import targets
from tests.networks import Network

LOGITS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])


def scores(target: targets.Target, outputs: Tensor = LOGITS) -> Tensor:
    return targets.score(targets.bind(target, outputs), outputs, torch.arange(len(outputs)))


@pytest.mark.parametrize("outputs", [torch.tensor([[3.0], [-1.0]]), torch.tensor([3.0, -1.0])])
def test_binary_logit_is_plus_or_minus_the_logit(outputs):
    assert scores(targets.BinaryLogit(), outputs).tolist() == [3.0, -1.0]
    assert scores(targets.BinaryLogit(positive=False), outputs).tolist() == [-3.0, 1.0]
    assert targets.score(
        targets.BinaryLogit(), outputs.repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1])
    ).tolist() == [
        3.0,
        3.0,
        -1.0,
        -1.0,
    ]


def test_binary_logit_is_the_class_of_a_binary_network():
    images, model = torch.rand(2, 3, 8, 8), Network(1).eval()
    cam = camlib.GradCAM(model, "norm", relu=False)
    negative = cam(images, targets.BinaryLogit(positive=False))
    torch.testing.assert_close(negative.maps, cam(images, [0, 0]).maps)
    assert negative.target == "negative logit"
    assert cam(images, targets.BinaryLogit()).target == "positive logit"


def test_binary_logit_needs_a_single_logit():
    with pytest.raises(camlib.CamlibValueError, match=r"needs a single logit.*returns \(2, 3\).*class index"):
        scores(targets.BinaryLogit())
    with pytest.raises(camlib.CamlibTypeError, match="positive must be a bool, got int: 1"):
        targets.BinaryLogit(1)


MASK = [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 2], [1]],
        ([2, 0], (1,)),
        [np.array([0, 2]), torch.tensor([1])],
        torch.tensor(MASK),
        torch.tensor(MASK).bool(),
        torch.tensor(MASK).double(),
        np.array(MASK, dtype=bool),
    ],
)
def test_multi_label_is_the_sum_of_the_labels_logits(labels):
    assert scores(targets.MultiLabel(labels)).tolist() == [5.0, 16.0]


def test_multi_label_follows_enlarged_batches():
    target = targets.bind(targets.MultiLabel([[0, 2], [1]]), LOGITS)
    outputs = torch.cat([LOGITS, 10 * LOGITS])
    assert targets.score(target, outputs, torch.tensor([1, 0, 0, 1])).tolist() == [2.0, 40.0, 50.0, 160.0]


def test_multi_label_of_a_single_output_is_that_output():
    assert scores(targets.MultiLabel([[0], [0]]), torch.tensor([3.0, -1.0])).tolist() == [3.0, -1.0]


def test_multi_label_map_is_that_of_the_sum():
    images, model = torch.rand(2, 3, 8, 8), Network(4).eval()
    cam = camlib.GradCAM(model, "norm", relu=False)
    explanation = cam(images, targets.MultiLabel([[0, 2], [3]]))
    one, other = cam(images, [0, 3]).maps, cam(images, [2, 3]).maps
    torch.testing.assert_close(explanation.maps, torch.stack([one[0] + other[0], one[1]]))
    assert explanation.target == "MultiLabel"


def test_infinite_logits_of_other_labels_do_not_matter():
    outputs = torch.tensor([[1.0, -torch.inf]])
    assert scores(targets.MultiLabel([[0]]), outputs).tolist() == [1.0]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0], []], ValueError, "no label is given for image 1 of 2"),
        (torch.zeros(2, 3), ValueError, "no label is given for images 0, 1 of 2"),
        ([[0], [3]], ValueError, "label has class index 3, but the outputs have classes 0 to 2"),
        ([[0], [-1]], ValueError, "label has class index -1"),
        ([[0]], ValueError, r"MultiLabel\(\[\[0\]\]\) for 2 images; give a list"),
        ([0, 2], ValueError, r"MultiLabel\(\[0, 2\]\) for 2 images"),
        ([[[0]], [[1]]], ValueError, "for 2 images; give a list"),
        ([[True, False, True], [1]], TypeError, r"label holds torch\.bool"),
        ([[0.5], [1]], TypeError, r"label holds torch\.float32"),
        (torch.tensor([[0, 2], [1, 1]]), ValueError, r"shape \(2, 2\), and the outputs \(2, 3\)"),
        (torch.ones(1, 3), ValueError, r"shape \(1, 3\), and the outputs \(2, 3\)"),
        (torch.tensor([[0, 2, 1], [1, 1, 0]]), ValueError, "values other than 0 and 1"),
        ("cat", TypeError, "'cat' are not understood"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, error, message):
    with pytest.raises(error, match=message) as caught:
        targets.bind(targets.MultiLabel(labels), LOGITS)
    assert isinstance(caught.value, camlib.CamlibError)
