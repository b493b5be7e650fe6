"""Tensors inside the containers that models take and return."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in a tensor, sequence, mapping or dataclass, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def named_entries(value: Any) -> Mapping[str, Any]:
    """Return the named entries of a mapping, dataclass or named tuple; an empty mapping for anything else.

    Example:
        >>> from types import SimpleNamespace
        >>> named_entries({"logits": 1}), named_entries(SimpleNamespace(logits=1))
        ({'logits': 1}, {})
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def map_tensors(
    function: Callable[[Tensor], Tensor], value: Any, of_others: Callable[[Any], Any] = lambda other: other
) -> Any:
    """Apply ``function`` to every tensor in ``value``; containers are rebuilt.

    Args:
        function: what replaces each tensor.
        value: a tensor, or what may hold some.
        of_others: what replaces each object that is neither a tensor nor a container; by default it is kept.
    """

    def mapped(item: Any) -> Any:
        return map_tensors(function, item, of_others)

    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: mapped(item) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        rebuilt = copy.copy(value)
        for key, item in items.items():
            rebuilt[key] = item  # ordered dicts and Hugging Face outputs allow it
        return rebuilt
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(mapped, value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(mapped, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return _with_attributes(value, {name: mapped(getattr(value, name)) for name in names})
    return of_others(value)


def copied(value: Any) -> Any:
    """Return a copy of a model's inputs, which the model may change in place.

    Tensors, arrays and containers are copied. Tensors that are attributes of other objects are copied, too. A tensor
    that occurs twice has one copy.

    Example:
        >>> import torch
        >>> inputs = {"images": torch.zeros(1), "flag": True}
        >>> copied(inputs)["images"].add_(1), inputs["images"]
        (tensor([1.]), tensor([0.]))
    """
    copies: dict[int, Tensor] = {}

    def clone(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.clone()
        return copies[id(tensor)]

    def copy_of(item: Any) -> Any:
        if type(item).__module__ == "numpy":
            return copy.copy(item)
        if isinstance(item, (type, nn.Module)):
            return item
        held = {name: one for name, one in getattr(item, "__dict__", {}).items() if isinstance(one, Tensor)}
        return item if not held else _with_attributes(item, {name: clone(one) for name, one in held.items()})

    return map_tensors(clone, value, copy_of)


def _with_attributes(value: Any, attributes: Mapping[str, Any]) -> Any:
    """A copy of an object with other attributes; its constructor is not called."""
    changed = copy.copy(value)
    for name, attribute in attributes.items():
        object.__setattr__(changed, name, attribute)  # also of frozen dataclasses
    return changed
