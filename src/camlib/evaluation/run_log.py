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

from camlib import __version__
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Inputs

FORMAT = 2
"""The version of the file's layout."""

WITH_REPR = (bytes, complex, range, slice, torch.dtype, torch.device, PurePath)
"""Types whose ``repr`` says everything, in every process."""
CONSTANTS = (bool, int, float, str, bytes, complex, Tensor, nn.Module)
"""Types of constants that a function may read from its module, with NumPy's."""


class RunLog:
    """A file of lines of JSON: the first says what is evaluated, each other one holds a batch.

    Each line has a digest of itself and of all lines before it, so that a line that was changed, lost or written by
    somebody else is noticed. An incomplete last line, of a process that was killed, is removed. The file is locked
    until :meth:`close`, which the end of the process does, too.

    Args:
        path: the file, which is created if it does not exist.
        asked: what must be the same to resume.

    Raises:
        CamlibTypeError: ``path`` is not a path.
        CamlibValueError: the file is of another evaluation, of another kind, or used by another process; or it cannot
            be opened.
    """

    def __init__(self, path: str | PathLike[str], asked: dict[str, Any]) -> None:
        if not isinstance(path, (str, PathLike)):
            raise CamlibTypeError(f"path must be a path of a file, got {type(path).__name__}")
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            regular = self._path.is_file() or not self._path.exists()
            self._file: Any = self._path.open("a+b") if regular else None
        except (OSError, ValueError) as error:
            raise CamlibValueError(f"{path} cannot be opened as a record of an evaluation: {error}") from error
        if self._file is None:
            raise self._refused("it is not a regular file")
        try:
            if not locked(self._file):
                raise CamlibValueError(
                    f"{self._path} is in use by another evaluation; wait until it ends, or give another path"
                )
            self._before = ""
            """The digest of the last line."""
            self._batches = self._read(asked)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close and unlock the file."""
        self._file.close()

    def _read(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the recorded batches, after checking what was asked; begin a file that is empty."""
        begin, given = {"record": FORMAT, "asked": asked}, self._bytes()
        complete = given[: given.rfind(b"\n") + 1]
        if not complete:
            if not self._line(begin).startswith(given):
                raise self._refused("it does not begin with a line of JSON")
            self._file.truncate(0)
            self.append(begin)
            return []
        head, *batches = map(self._record, complete.splitlines())
        if head.get("record") != FORMAT:
            raise self._refused(f"its format is {head.get('record')!r}, this camlib writes {FORMAT}")
        ignored = {name for batch in batches for name in batch["changed"]}
        before, now = _without(ignored, head["asked"]), _without(ignored, json.loads(json.dumps(asked)))
        changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        if changed:
            raise CamlibValueError(
                f"{self._path} is the record of another evaluation (different {', '.join(changed)}); give another "
                "path, or delete the file to start again"
            )
        self._file.truncate(len(complete))
        return batches

    def _bytes(self) -> bytes:
        self._file.seek(0)
        found: bytes = self._file.read()
        return found

    def _record(self, line: bytes) -> dict[str, Any]:
        """Return what a line holds, after comparing it with its digest."""
        try:
            found = json.loads(line)
            record, check = found["holds"], found["check"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._refused(str(error)) from error
        if check != _check(self._before, record) or not isinstance(record, dict):
            raise self._refused("a line was changed, lost, or added by another process")
        self._before = check
        return record

    def _line(self, record: dict[str, Any]) -> bytes:
        return json.dumps({"check": _check(self._before, record), "holds": record}).encode() + b"\n"

    def _refused(self, why: str) -> CamlibValueError:
        return CamlibValueError(
            f"{self._path} is not a record of an evaluation ({why}); give another path, or delete the file"
        )

    def batch(self, number: int, digest: str) -> dict[str, Any] | None:
        """Return the record of a batch; None if the batch has not been evaluated.

        Raises:
            CamlibValueError: other images were recorded under that number.
        """
        if number >= len(self._batches):
            return None
        line = self._batches[number]
        if line["digest"] != digest:
            raise CamlibValueError(
                f"batch {number} has other images or masks than those recorded in {self._path}; give them in the same "
                "order and batches (no shuffling), or give another path"
            )
        return line

    def append(self, record: dict[str, Any]) -> None:
        """Record what is evaluated, or the next batch."""
        line = self._line(record)
        self._file.write(line)
        self._file.flush()
        self._before = _check(self._before, record)


def _check(before: str, record: Any) -> str:
    """A digest of a line and, by that of the line before, of all lines before it."""
    return hashlib.sha256(f"{before}{json.dumps(record)}".encode()).hexdigest()


def _without(names: set[str], asked: dict[str, Any]) -> dict[str, Any]:
    """What was asked, without some of the model's attributes."""
    kept = {name: value for name, value in asked["attributes"].items() if name not in names}
    return {**asked, "attributes": kept}


def locked(file: Any) -> bool:
    """Lock an open file until it is closed; return whether no other process or evaluation holds it.

    Where the file system has no locks, the file is not locked.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(2**31 - 2)  # beyond the lines, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def environment() -> dict[str, Any]:
    """Return as JSON what changes the numbers, apart from the options: versions, and autocast."""
    import platform

    autocast = {
        kind: str(torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    }
    version = ".".join(platform.python_version_tuple()[:2])
    return {"versions": {"camlib": __version__, "torch": torch.__version__, "python": version}, "autocast": autocast}


def attributes_of(model: nn.Module) -> dict[str, str]:
    """Return a digest of each plain attribute of a model, by name, such as a temperature, and of each module's code.

    The code is that of its class and of its hooks.

    Modules that a forward pass changes, such as a counter, change their digest; :class:`RunLog` ignores those that
    changed while a batch was evaluated.
    """
    found = {}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
        if type(module).__module__.startswith("torch."):
            found[name] = _digest([_name(type(module)), _plain(own), _hooks(module)])
        else:
            found[name] = _digest([_name(type(module)), _methods(type(module)), _hooks(module)])
            found |= {f"{name}.{key}".lstrip("."): _digest(_plain(value)) for key, value in own.items()}
    return found


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _hooks(module: nn.Module) -> list[Any]:
    """The code of a module's hooks."""
    return [_code_of(hook) for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values()]


def _methods(cls: type) -> list[Any]:
    """The code of a class's methods, apart from those of torch."""
    own = [one for one in cls.__mro__ if not one.__module__.startswith(("torch.", "builtins"))]
    return [
        [name, _code_of(function)] for one in own for name, function in vars(one).items() if inspect.isroutine(function)
    ]


def _code_of(function: Any) -> str:
    """A digest of what a function does; its type if it has no code in Python."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    return _code(function.__code__) if isinstance(function, FunctionType) else _name(type(function))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Describe an attribute: numbers, texts, arrays and containers of them by value, other objects by their type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if inspect.isroutine(value) or isinstance(value, type):
        return _name(value)
    if _is_constant(value) and not isinstance(value, nn.Module):
        return as_json(value)
    return repr(value) if isinstance(value, WITH_REPR) else _name(type(value))


def digest_of(value: Any) -> str:
    """Return a digest of the tensors in a batch, or of a model's parameters and all its buffers."""
    named: Any = enumerate(Inputs(value).tensors)
    if isinstance(value, nn.Module):
        named = (value.state_dict() | dict(value.named_buffers())).items()
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
    if tensor.is_meta:
        raise CamlibValueError("a tensor on the meta device has no values and cannot be recognised")
    whole = tensor.detach().cpu()
    whole = whole.int_repr() if whole.is_quantized else whole
    return whole.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
