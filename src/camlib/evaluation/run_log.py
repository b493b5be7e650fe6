"""A file that holds what an evaluation has done so far, from which a stopped evaluation resumes."""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.inputs import Inputs

WITH_REPR = (bytes, complex, range, slice, torch.dtype, torch.device, PurePath)
"""Types whose ``repr`` says everything, in every process."""
CONSTANTS = (bool, int, float, str, bytes, complex, Tensor, nn.Module)
"""Types of constants that a function may read from its module, with NumPy's."""


class RunLog:
    """Lines of JSON: the first says what is evaluated, each other one holds a batch.

    An incomplete last line, of a process that was killed, is removed.

    Args:
        path: the file, which is created if it does not exist.
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
                f"{self._path} is the record of another evaluation (different {', '.join(changed)}); give another "
                "path, or delete the file to start again"
            )
        os.truncate(self._path, len(complete.encode()))
        return [head, *lines]

    def batch(self, number: int, digest: str) -> dict[str, Any] | None:
        """Return the record of a batch; None if the batch has not been evaluated.

        Raises:
            CamlibValueError: other images were recorded under that number.
        """
        if number + 1 >= len(self._lines):
            return None
        line = self._lines[number + 1]
        if line.get("digest") != digest:
            raise CamlibValueError(
                f"batch {number} has other images or masks than those recorded in {self._path}; give them in the same "
                "order and batches (no shuffling), or give another path"
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


def as_json(value: Any) -> Any:
    """Return an option as JSON, the same in another process and different for another option.

    A class is described by its name. A function is described by its name, its code, its defaults and what it reads
    from its module: constants (numbers, strings, arrays, tensors, modules, dataclasses, and containers of these), and
    functions, which are described in the same way. Functions of other modules are described by their names.

    Raises:
        CamlibValueError: it cannot be recognised: a random generator, whose state changes; a lambda, a nested or
            decorated function, a bound method or a ``functools.partial``, of which others have the same name; an object
            without attributes in ``__dict__``.

    Example:
        >>> as_json({"steps": 3, "function": abs, "shares": (0.2, 0.4)})
        {'steps': 3, 'function': 'builtins.abs', 'shares': [0.2, 0.4]}
    """
    import numpy as np

    if isinstance(value, torch.Generator):
        raise CamlibValueError(
            "a generator cannot be restored when an evaluation resumes; leave generator= out (every call then draws "
            "the same), or path="
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return digest_of(value)
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(as_json(item)) for item in value)
    if isinstance(value, nn.Module):
        return [_name(type(value)), digest_of(value)]
    if isinstance(value, type) or inspect.isroutine(value) or isinstance(value, functools.partial):
        return _function(value)
    if isinstance(value, WITH_REPR):
        return repr(value)
    if not hasattr(value, "__dict__"):
        raise CamlibValueError(
            f"a {_name(type(value))} cannot be recognised when an evaluation resumes, as it keeps no attributes in "
            "__dict__; give an object of a class without __slots__, or leave path= out"
        )
    return [_name(type(value)), as_json(vars(value))]


def _function(function: Any) -> Any:
    """Describe a class or function by its name, and a function also by what it does, which may have been edited.

    Raises:
        CamlibValueError: other functions have the same name.
    """
    name = _name(function)
    for kind, is_it in (
        ("functools.partial", isinstance(function, functools.partial)),
        ("bound method", isinstance(function, MethodType)),
        ("lambda", name.endswith("<lambda>")),
        ("decorated function", hasattr(function, "__wrapped__") and not isinstance(function, type)),
        ("nested function", "<locals>" in name and not isinstance(function, type)),
        ("nested function", bool(getattr(function, "__closure__", None))),
    ):
        if is_it:
            raise _unrecognisable(kind)
    return [name, _digest_of_function(function, set())] if isinstance(function, FunctionType) else name


def _unrecognisable(kind: str) -> CamlibValueError:
    return CamlibValueError(
        f"a {kind} cannot be recognised when an evaluation resumes; give a named function, defined with def at the top "
        "of a module, or leave path= out"
    )


def _digest_of_function(function: FunctionType, seen: set[FunctionType]) -> str:
    """Return a digest of what a function does, wherever in its file it is.

    Args:
        function: one whose module defines it.
        seen: the functions that are described already, which may call each other; extended by this one.

    Raises:
        CamlibValueError: it has a closure, or calls a function of its module that has one, such as a decorated one.
    """
    if function.__closure__:
        raise _unrecognisable(f"function that calls {_name(function)}, a decorated or nested function,")
    seen.add(function)
    names = function.__globals__
    read = {name: _global(names[name], function, seen) for name in _globals_in(function.__code__) if name in names}
    parts = [_code(function.__code__), as_json([function.__defaults__, function.__kwdefaults__]), read]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _global(value: Any, reader: FunctionType, seen: set[FunctionType]) -> Any:
    """Describe what a function reads from its module."""
    if isinstance(value, FunctionType) or (hasattr(value, "__wrapped__") and not isinstance(value, type)):
        inner = value if isinstance(value, FunctionType) else value.__wrapped__  # of functools.cache, or a metric
        follow = isinstance(inner, FunctionType) and inner.__module__ == reader.__module__ and inner not in seen
        return [_name(inner), _digest_of_function(inner, seen) if follow else ""]
    return as_json(value) if _is_constant(value) else _name(value if isinstance(value, type) else type(value))


def _is_constant(value: Any) -> bool:
    import numpy as np

    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_constant, value))
    if isinstance(value, Mapping):
        return all(map(_is_constant, value.values()))
    if dataclasses.is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        return _is_constant(vars(value))
    return value is None or isinstance(value, (*CONSTANTS, np.generic, np.ndarray))


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _globals_in(code: CodeType) -> list[str]:
    """Return the names that code, and the functions inside it, look up in their module."""
    own = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_globals_in(one) for one in code.co_consts if isinstance(one, CodeType)]
    return sorted(own.union(*inner))


def _code(code: CodeType) -> str:
    """Return a digest of code without the names and the lines of its file."""
    constants = [_constant(one) for one in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def _constant(one: Any) -> str:
    if isinstance(one, CodeType):
        return _code(one)
    return repr(sorted(map(repr, one))) if isinstance(one, frozenset) else repr(one)  # a set's order changes


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu()
    whole = whole.int_repr() if whole.is_quantized else whole
    return whole.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
