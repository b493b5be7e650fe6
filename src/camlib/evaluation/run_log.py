"""A file that holds what an evaluation has done so far, from which a stopped evaluation resumes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.inputs import Inputs


class RunLog:
    """Lines of JSON: the first says what is evaluated, each other one holds a batch.

    An incomplete last line, of a process that was killed, is removed.

    Args:
        path: of the file, which is created if it does not exist.
        asked: what must be the same to resume.

    Raises:
        CamlibValueError: the file is of another evaluation, or of another kind.
    """

    def __init__(self, path: str | PathLike[str], asked: dict[str, Any]) -> None:
        self._path = Path(path)
        self._lines = self._read(asked)
        if not self._lines:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"asked": asked}) + "\n", encoding="utf-8")

    def _read(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if not complete:
            return []
        try:
            head, *lines = map(json.loads, complete.splitlines())
            before = head["asked"]
            changed = [key for key in asked if before.get(key) != json.loads(json.dumps(asked[key]))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CamlibValueError(
                f"{self._path} is not a record of an evaluation ({error}); give another path, or delete the file"
            ) from error
        if changed:
            raise CamlibValueError(
                f"{self._path} is of an evaluation with other {', '.join(changed)}; give another path, or delete the "
                "file to start again"
            )
        os.truncate(self._path, len(complete.encode()))
        return [head, *lines]

    def batch(self, number: int, digest: str) -> dict[str, Any] | None:
        """Return what was recorded of a batch; None if it has not been evaluated.

        Raises:
            CamlibValueError: other images were recorded under that number.
        """
        if number + 1 >= len(self._lines):
            return None
        line = self._lines[number + 1]
        if line.get("digest") != digest:
            raise CamlibValueError(
                f"batch {number} is of other images or masks than those recorded in {self._path}; give them in the "
                "same order and batches (no shuffling), or another path"
            )
        return line

    def append(self, line: dict[str, Any]) -> None:
        """Record the next batch."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def digest_of(value: Any) -> str:
    """Return a digest of the tensors in a batch, or of a model's parameters and buffers."""
    named = value.state_dict().items() if isinstance(value, nn.Module) else enumerate(Inputs(value).tensors)
    digest = hashlib.sha256()
    for name, tensor in named:
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def described(value: Any) -> Any:
    """Return an option as JSON, the same in another process and different for another option.

    Raises:
        CamlibValueError: it cannot be recognised: a random generator, whose state changes; a lambda, a nested function,
            a bound method or a ``functools.partial``, of which others have the same name.

    Example:
        >>> described({"steps": 3, "function": abs, "shares": (0.2, 0.4)})
        {'steps': 3, 'function': 'builtins.abs', 'shares': [0.2, 0.4]}
    """
    if isinstance(value, torch.Generator):
        raise CamlibValueError(
            "a generator cannot be restored when an evaluation resumes; leave generator= out (every call then draws "
            "the same), or path="
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return digest_of(value)
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, nn.Module):
        return [_name(type(value)), digest_of(value)]
    if isinstance(value, type) or inspect.isroutine(value) or isinstance(value, functools.partial):
        return _function(value)
    return [_name(type(value)), described(vars(value))] if hasattr(value, "__dict__") else repr(value)


def _function(function: Any) -> Any:
    """Describe a class or function by its name, and a function also by its code, which may have been edited.

    Raises:
        CamlibValueError: its name is not its own.
    """
    inner = inspect.unwrap(function)
    name = _name(inner)
    for kind, is_it in (
        ("functools.partial", isinstance(inner, functools.partial)),
        ("bound method", isinstance(inner, MethodType)),
        ("lambda", name.endswith("<lambda>")),
        ("nested function", "<locals>" in name and not isinstance(inner, type)),
    ):
        if is_it:
            raise CamlibValueError(
                f"a {kind} cannot be recognised when an evaluation resumes; give a named function, defined with def at "
                "the top of a module, or leave path= out"
            )
    code = getattr(inner, "__code__", None)
    return name if code is None else [name, _code(code), described([inner.__defaults__, inner.__kwdefaults__])]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _code(code: CodeType) -> str:
    """Return a digest of what a function does, wherever in its file it is."""
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu()
    whole = whole.int_repr() if whole.is_quantized else whole
    return whole.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
