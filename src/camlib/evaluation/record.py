"""What has been done, in a file at all times: an evaluation that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibValueError
from camlib.inputs.nested import tensors_in


class Record:
    """Lines of JSON, the first of which says what is evaluated, and each other one holds a batch.

    A last line that was cut short, because the process was killed, is taken off.

    Args:
        path: of the file; it is made if it is not there.
        asked: what must be the same for the evaluation to go on.

    Raises:
        CamlibValueError: the file is of another evaluation, or none of this kind.
    """

    def __init__(self, path: str | PathLike[str], asked: dict[str, Any]) -> None:
        self._path = Path(path)
        self._lines = self._read(asked)
        if not self._lines:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"asked": asked}) + "\n")

    def _read(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            return []
        try:
            head, *lines = map(json.loads, whole.splitlines())
            before = head["asked"]
            changed = [key for key in asked if before.get(key) != json.loads(json.dumps(asked[key]))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CamlibValueError(
                f"{self._path} is not a record of an evaluation ({error}); give another path, or delete the file"
            ) from error
        if changed:
            raise CamlibValueError(
                f"{self._path} is of an evaluation with other {', '.join(changed)}; give another path, or delete the "
                "file to begin anew"
            )
        os.truncate(self._path, len(whole.encode()))
        return [head, *lines]

    def batch(self, number: int, digest: str) -> dict[str, Any] | None:
        """Return what was recorded of a batch; None if it has not been done.

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
        """Write what is to be recorded of the next batch."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def digest_of(value: Any) -> str:
    """Return a digest of the tensors in a batch, or of a model's parameters and buffers."""
    named = value.state_dict().items() if isinstance(value, nn.Module) else enumerate(tensors_in(value))
    digest = hashlib.sha256()
    for name, tensor in named:
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def described(value: Any) -> Any:
    """Return what an option is as JSON has it, the same in another process; tensors by their digest.

    Raises:
        CamlibValueError: a random generator, whose state is another when an evaluation goes on.

    Example:
        >>> described({"steps": 3, "function": abs, "shares": (0.2, 0.4)})
        {'steps': 3, 'function': 'abs', 'shares': [0.2, 0.4]}
    """
    if isinstance(value, torch.Generator):
        raise CamlibValueError(
            "a generator cannot be taken up again where an evaluation was stopped; leave generator= out (every call "
            "then draws the same), or path="
        )
    if isinstance(value, Tensor):
        return digest_of(value)
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, targets.Target):
        return [type(value).__qualname__, described(vars(value))]
    if callable(value):
        return getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().cpu()
    whole = whole.int_repr() if whole.is_quantized else whole
    return whole.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
