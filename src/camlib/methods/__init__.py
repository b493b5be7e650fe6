"""The methods, each a pure function of tensors and a thin class that binds it to a model."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from camlib.errors import CamlibValueError
from camlib.methods.base import GradientMethod, Method
from camlib.methods.grad_cam import GradCAM, grad_cam

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (GradCAM,)}
"""Every method by name."""


def create(name: str, model: nn.Module, layer: Any = None, **options: Any) -> Method:
    """Build a method by its name.

    Args:
        name: a key of :data:`camlib.METHODS`.
        model: as for the method's class.
        layer: as for the method's class.
        **options: the method's own options.

    Raises:
        CamlibValueError: no method has that name; close ones are suggested.

    Example:
        >>> import camlib, torchvision
        >>> camlib.create("grad_cam", torchvision.models.resnet18(), layer="layer4")
        GradCAM(ResNet, layer='layer4')
    """
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no method {name!r}; {hint}METHODS has {', '.join(sorted(METHODS))}")
    return METHODS[name](model, layer, **options)


__all__ = ["METHODS", "GradCAM", "GradientMethod", "Method", "create", "grad_cam"]
