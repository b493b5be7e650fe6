"""Layers by name: resolve the names and modules that a user gives.

A layer is a module by its dotted name. Of a module that is called several times, "name#2" is the second call.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from camlib.errors import CamlibTypeError, CamlibValueError


def resolve_layers(model: nn.Module, layer: str | nn.Module | Sequence[str | nn.Module]) -> dict[str, nn.Module]:
    """Return the layers by dotted name, in the order given.

    Args:
        model: the model they belong to.
        layer: a dotted name, "name#2" for a module's second call, a module of the model, or a list of those.

    Raises:
        CamlibValueError: a name is unknown (the error suggests similar ones), a module belongs to another model, or the
            list is empty or repeats a layer.
        CamlibTypeError: ``layer`` is neither a name nor a module.
    """
    given: list[Any] = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    if not given:
        raise CamlibValueError("layer is an empty list; give at least one layer, or None to find it")
    found: dict[str, nn.Module] = {}
    for item in given:
        name, module = _resolve(model, item)
        if name in found:
            raise CamlibValueError(f"layer {name!r} is given twice")
        found[name] = module
    return found


def module_of(model: nn.Module, layer: str) -> nn.Module:
    """Return the module of a layer."""
    return model.get_submodule(layer.partition("#")[0])


def call_of(layer: str) -> int | None:
    """Return which call of the module a layer is, from 1; None if its name does not say, as of a single call.

    Example:
        >>> call_of("trunk#2"), call_of("trunk")
        (2, None)
    """
    number = layer.partition("#")[2]
    return int(number) if number else None


def _resolve(model: nn.Module, layer: Any) -> tuple[str, nn.Module]:
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer and name:
                return name, module
        raise CamlibValueError(
            f"layer is a {type(layer).__name__} that is not part of the {type(model).__name__}; pass one of its "
            "submodules, such as model.layer4, or a name"
        )
    if not isinstance(layer, str):
        raise CamlibTypeError(f"layer must be a name or a module, got {type(layer).__name__}: {reprlib.repr(layer)}")
    modules = dict(model.named_modules(remove_duplicate=False))
    name, _, call = layer.partition("#")
    if name and name in modules and ((call.isdecimal() and int(call) > 0) or not call):
        return layer, modules[name]
    close = difflib.get_close_matches(layer, modules, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {_outline(model)}"
    raise CamlibValueError(
        f"the {type(model).__name__} has no layer {layer!r}; {hint} camlib.list_layers(model, inputs) lists all layers"
    )


def _outline(model: nn.Module) -> str:
    return ", ".join(name for name, _ in model.named_children()) + "."
