"""What is found in the outputs of every kind of model."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import camlib
from camlib import targets
from camlib.inputs import Outputs
from tests.networks import Network

LOGITS = torch.arange(6.0).view(2, 3)


@dataclass
class Answer:
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


Pair = namedtuple("Pair", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    "outputs",
    [
        LOGITS,
        {"logits": LOGITS, "out": torch.zeros(4)},
        OrderedDict(aux=torch.zeros(4), out=LOGITS),
        {"last_hidden_state": torch.zeros(4), "pooler_output": LOGITS},
        {"logits": None, "image_embeds": LOGITS},
        Answer(LOGITS, torch.zeros(4)),
        Answer(None, LOGITS),
        Pair(LOGITS, None),
    ],
)
def test_the_main_tensor_is_the_first_of_the_known_names(outputs):
    assert Outputs(outputs).main is LOGITS
    assert Outputs(outputs).rows == 2


@pytest.mark.parametrize(
    "outputs",
    [None, 1.0, [LOGITS], {"scores": LOGITS}, {"logits": 1.0}, Answer(), Answer, SimpleNamespace(logits=LOGITS)],
)
def test_nothing_else_is_a_main_tensor(outputs):
    assert Outputs(outputs).main is None


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ({"loss": torch.tensor(1.0), "scores": LOGITS}, 2),
        ((torch.tensor(1.0), torch.zeros(5, 1)), 5),
        ({"aux": torch.zeros(7), "out": LOGITS}, 2),
        ([{"boxes": torch.zeros(9, 4)}, {"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(1, 4)}], 3),
        (torch.tensor(1.0), None),
        ([], None),
        ("text", None),
    ],
)
def test_rows_are_images(outputs, rows):
    assert Outputs(outputs).rows == rows


def test_detections_have_boxes_and_scores():
    found = {"boxes": torch.zeros(1, 4), "scores": torch.zeros(1)}
    assert Outputs([found, found]).is_detections
    assert Outputs((found,)).is_detections
    assert not Outputs([found, {"boxes": torch.zeros(1, 4)}]).is_detections
    assert not Outputs(found).is_detections
    assert not Outputs([LOGITS]).is_detections
    assert not Outputs([]).is_detections


@pytest.mark.parametrize(
    "wrap", [lambda logits: {"logits": logits, "loss": logits.mean()}, Answer, lambda y: (y, 0)[0]]
)
def test_classes_of_mappings_and_dataclasses_are_their_logits(wrap):
    images, model = torch.rand(2, 3, 8, 8), Network().eval()
    wrapped = camlib.GradCAM(model, "norm", forward=lambda m, x: wrap(m(x)))
    for target in (None, 1, [2, 0], [[0, 1], [1, 2]], camlib.TopK(2)):
        expected = camlib.GradCAM(model, "norm")(images, target)
        explanation = wrapped(images, target)
        assert torch.equal(explanation.target, expected.target)
        torch.testing.assert_close(explanation.maps, expected.maps)


@pytest.mark.parametrize("wrap", [Answer, lambda y: Pair(y, None), lambda y: OrderedDict(logits=y)])
def test_what_is_explained_can_be_detached(wrap):
    model = Network().eval()
    explanation = camlib.GradCAM(model, "norm", forward=lambda m, x: wrap(m(x)))(torch.rand(2, 3, 8, 8))
    assert type(explanation.outputs) is type(wrap(LOGITS))
    assert not Outputs(explanation.outputs).main.requires_grad


def test_objects_that_cannot_be_detached_are_refused():
    """Their graph would live on in the explanation."""
    opaque = camlib.GradCAM(Network().eval(), "norm", forward=lambda m, x: SimpleNamespace(logits=m(x)))
    with pytest.raises(camlib.CamlibTypeError, match=r"returns a SimpleNamespace.*forward="):
        opaque(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"pooler_output": LOGITS}, r"returns a dict without logits, an embedding.*camlib.targets.Similarity"),
        ([{"boxes": torch.zeros(1, 4), "scores": torch.zeros(1)}], r"returns a list.*or camlib\.targets\.Box"),
        ({"out": torch.zeros(2, 3, 4, 4)}, r"\(2, 3, 4, 4\).*camlib\.targets\.Region\(category\)"),
    ],
)
def test_outputs_without_classes_are_an_error_that_names_a_target(outputs, message):
    with pytest.raises(camlib.CamlibTypeError, match=message):
        targets.bind(None, outputs)
