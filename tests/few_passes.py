"""Methods that perturb, with options that make them cheap: the tests that every method passes need no more."""

from __future__ import annotations

import functools
from collections.abc import Callable

import camlib

OPTIONS = {
    "rise": {"samples": 16, "cells": 3},
    "ss_cam": {"samples": 2},
    "is_cam": {"samples": 2},
    "integrated_gradients": {"steps": 3},
    "expected_gradients": {"baselines": 0.0, "samples": 3},  # images of any size have this baseline
}


def cheap(name: str) -> Callable[..., camlib.methods.Method]:
    """The method's class, or that class with few samples."""
    method = camlib.METHODS[name]
    return functools.partial(method, **OPTIONS[name]) if name in OPTIONS else method
