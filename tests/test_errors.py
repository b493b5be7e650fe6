"""Checks of numbers: a wrong type is a type error, one out of bounds a value error; both say what was wanted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

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
