"""What tests of every method need: options that make a method cheap, and which methods need attention."""

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

OF_ATTENTION = {name for name, method in camlib.METHODS.items() if method.reads == "attention"}
"""Methods that explain only networks with attention."""


def cheap(name: str) -> Callable[..., camlib.methods.Method]:
    """The method's class, or that class with few samples."""
    method = camlib.METHODS[name]
    return functools.partial(method, **OPTIONS[name]) if name in OPTIONS else method
