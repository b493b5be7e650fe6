"""Methods by name."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.methods import catalogue
from camlib.methods.base import Method

_CLASSES = [value for value in vars(catalogue).values() if isinstance(value, type) and issubclass(value, Method)]
METHODS: dict[str, type[Method]] = {cls.name: cls for cls in _CLASSES}
"""Every method by name."""


def create(name: str, model: nn.Module, layer: Any = None, **options: Any) -> Method:
    """Build a method by its name.

    Args:
        name: a key of :data:`camlib.METHODS`.
        model: as for the method's class.
        layer: as for the method's class.
        **options: the method's own options.

    Raises:
        CamlibValueError: no method has that name; the error suggests similar names.

    Example:
        >>> import camlib, torchvision
        >>> camlib.create("grad_cam", torchvision.models.resnet18(), layer="layer4")
        GradCAM(ResNet, layer='layer4')
    """
    return method_named(name)(model, layer, **options)


def method_named(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        CamlibValueError: no method has that name; the error suggests similar names.
    """
    if not isinstance(name, str):
        raise CamlibTypeError(f"the name of a method must be a str, got {type(name).__name__}: {name!r}")
    if name not in METHODS:
        of_class = {cls.__name__.lower(): key for key, cls in METHODS.items()}
        key = of_class.get(str(name).lower())
        if key is not None:
            raise CamlibValueError(f"there is no method {name!r}; did you mean {key!r}, its key in camlib.METHODS?")
        close = difflib.get_close_matches(str(name), METHODS, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CamlibValueError(f"there is no method {name!r}; {hint}METHODS has {', '.join(sorted(METHODS))}")
    return METHODS[name]
