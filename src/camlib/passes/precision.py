"""Autocast: off while maps are computed, and as the caller set it while the network runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """The autocast state for a type of device, to restore for further passes of the network."""

    kind: str
    dtype: torch.dtype
    enabled: bool

    @staticmethod
    def current(device: torch.device) -> Precision | None:
        """Return the current autocast state; None for device types without autocast."""
        kind = device.type
        if not torch.amp.is_autocast_available(kind):
            return None
        return Precision(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))


def restored(precision: Precision | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context with that autocast state."""
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast(precision.kind, dtype=precision.dtype, enabled=precision.enabled)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast: maps are computed in float32 even where the network runs in half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
