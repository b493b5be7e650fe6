"""Wrong arguments are errors that say what was wanted: numbers out of bounds, and those that would change a result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

import camlib
from camlib.errors import number, positive_int, positive_number


@pytest.mark.parametrize("value", [True, None, "1", [1], 1j, torch.tensor(1), np.ones(1)])
def test_values_that_are_not_numbers_are_type_errors(value: Any) -> None:
    for check in (number, positive_number, positive_int):
        with pytest.raises(camlib.CamlibTypeError, match="size must be .*, got ") as error:
            check("size", value)
        assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [1.5, 1.0, np.float32(1), math.nan])
def test_a_fraction_is_no_int(value: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match="size must be an int of at least 1"):
        positive_int("size", value)


@pytest.mark.parametrize("value", [0, -1, np.int64(0)])
def test_an_int_below_one_is_a_value_error(value: Any) -> None:
    with pytest.raises(camlib.CamlibValueError, match="size must be an int of at least 1"):
        positive_int("size", value)


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2), np.uint8(2)])
def test_numbers_become_those_of_python(value: Any) -> None:
    found = number("size", value)
    assert (found, type(found)) == (2.0, float)
    if isinstance(value, (int, np.integer)):
        assert (positive_int("size", value), type(positive_int("size", value))) == (2, int)


@pytest.mark.parametrize(
    ("bounds", "wanted", "inside", "outside"),
    [
        ({}, "a finite number", [0, -1e300, 5], [math.nan, math.inf, -math.inf]),
        ({"above": 0}, "a positive number", [1e-300, 5], [0, -0.0, -1, math.nan, math.inf]),
        ({"at_least": 0}, "a number of at least 0", [0, 5], [-1e-9, math.inf]),
        ({"above": 2}, "a number above 2", [2.5], [2, math.inf]),
        ({"at_least": 0, "instead": "None"}, "None or a number of at least 0", [0], [-1]),
        ({"above": 0, "below": 1}, "a number in (0, 1)", [0.5], [0, 1, 1.5, math.nan]),
        ({"above": 0, "at_most": 1}, "a number in (0, 1]", [0.5, 1], [0, 1.01]),
        ({"at_least": 0, "at_most": 1}, "a number in [0, 1]", [0, 0.5, 1], [-0.01, 255, math.nan, math.inf]),
        ({"at_least": 1, "below": 2}, "a number in [1, 2)", [1, 1.9], [0.9, 2]),
    ],
    ids=str,
)
def test_bounds_are_kept_and_named(
    bounds: dict[str, Any], wanted: str, inside: list[float], outside: list[float]
) -> None:
    for value in inside:
        assert number("size", value, **bounds) == value
    for value in outside:
        with pytest.raises(camlib.CamlibValueError) as error:
            number("size", value, **bounds)
        assert str(error.value) == f"size must be {wanted}, got {value!r}"


PICTURES = torch.rand(2, 3, 64, 64)


def network() -> torch.nn.Module:
    return torchvision.models.resnet18(num_classes=4).eval()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: camlib.GradCAM(network(), forward=""), TypeError, "forward must be a function or None, got ''"),
        (lambda: camlib.GradCAM(network(), forward=False), TypeError, "forward must be a function or None, got False"),
        (lambda: camlib.GradCAM(network(), reshape=[]), TypeError, r"reshape must be a function or None, got \[\]"),
        (lambda: camlib.GradCAM(network(), relu="no"), TypeError, "relu must be True or False, got 'no'"),
        (
            lambda: camlib.TestTimeAugmentation(camlib.GradCAM(network()), mirror="no"),
            TypeError,
            "mirror must be True or False, got 'no'",
        ),
        (
            lambda: camlib.metrics.infidelity(
                network(), torch.rand(1, 3, 64, 64), torch.rand(1, 64, 64), normalize="none"
            ),
            TypeError,
            "normalize must be True or False, got 'none'",
        ),
        (
            lambda: camlib.GradCAM(network())(torch.rand(3, 3, 64, 64), torch.eye(4)[[1, 2, 0]].long()),
            ValueError,
            r"shape \(3, 4\) and a single 1 in each row.*target.argmax\(1\)",
        ),
        (
            lambda: camlib.functional.grad_cam_plus_plus(torch.rand(1, 3, 4, 4), torch.zeros(3)),
            ValueError,
            r"gradients must be \(N, C, ...\), the shape of the activations, here \(1, 3, 4, 4\), got \(3,\)",
        ),
        (
            lambda: camlib.functional.shapley_cam(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), 5),
            TypeError,
            "products must be a tensor .*got int",
        ),
        (
            lambda: camlib.functional.layer_cam(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)),
            ValueError,
            r"here \(2, 3, 4, 4\), got \(1, 3, 4, 4\)",
        ),
        (lambda: camlib.functional.center_gaussian((4, 4), math.nan), ValueError, "sigma must be a positive number"),
        (
            lambda: camlib.report(camlib.GradCAM(network())(PICTURES, 1), PICTURES, class_names="cat"),
            TypeError,
            "class_names must be a list of names, got 'cat'",
        ),
        (
            lambda: dataclasses.replace(camlib.GradCAM(network())(PICTURES, 1), target=torch.tensor(9)),
            ValueError,
            r"target must have a class for each score, \(2,\), got \(\)",
        ),
        (
            lambda: dataclasses.replace(camlib.GradCAM(network())(PICTURES, 1), target=torch.tensor([-1, 0])).title(),
            ValueError,
            "class -1 was explained; class indices are not negative",
        ),
        (
            lambda: camlib.metrics.sparseness(torch.tensor([[[0.0]], [[math.nan]], [[1.0]]])),
            ValueError,
            "heatmaps hold NaN or infinity at 1 of 3",
        ),
    ],
)
def test_arguments_that_would_give_another_map_or_number_are_refused(call: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        call()
    assert isinstance(raised.value, camlib.CamlibError)


@pytest.mark.parametrize("confidence", [-0.5, 0, 1, 95])
def test_confidence_of_an_interval_is_between_0_and_1(confidence: float) -> None:
    evaluation = camlib.evaluate(network(), PICTURES, ["center_gaussian"], metrics=["sparseness"])
    with pytest.raises(camlib.CamlibValueError, match=r"confidence must be a number in \(0, 1\)"):
        evaluation.interval(evaluation.rows[0], "sparseness", confidence)


def test_zeros_and_ones_that_are_classes_are_taken_as_such() -> None:
    explanation = camlib.GradCAM(network())(PICTURES, [[0, 1], [1, 0]])
    assert explanation.target.tolist() == [[0, 1], [1, 0]]
