"""Autocast: off where maps are computed, and back on for the network's further passes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_precision = threading.local()  # .outer: the autocast that full_precision has switched off


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off: maps are computed in float32 even where the network runs in half precision.

    The network's further passes run in the precision of the first: see :func:`callers_precision`.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        yield
        return
    outer = getattr(_precision, "outer", None)
    _precision.outer = outer or (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        _precision.outer = outer


def callers_precision() -> contextlib.AbstractContextManager[Any]:
    """Return to the autocast that was on where :func:`full_precision` was entered, in this thread."""
    outer = getattr(_precision, "outer", None)
    if outer is None:
        return contextlib.nullcontext()
    kind, dtype, enabled = outer
    return torch.autocast(kind, dtype=dtype, enabled=enabled)
