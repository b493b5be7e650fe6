"""A network with what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Transforms = Callable[[Any], Any]
"""From a PIL image to the tensor (C, H, W) that the network takes."""


@dataclass(frozen=True)
class Loaded:
    """A network, how its pictures are prepared, and what its classes are called.

    Example:
        >>> Loaded(nn.Linear(2, 2), name="mine:two").classes is None
        True
    """

    model: nn.Module
    transforms: Transforms | None = None
    """None if they are not known."""
    classes: Sequence[str] | None = None
    """Names by class index; None if they are not known."""
    name: str = ""
    """What the user called it; empty for a module."""
