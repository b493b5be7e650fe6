"""An explanation's file: an ``.npz`` of plain arrays and a JSON header, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Built = TypeVar("Built")

FORMAT = 1
"""The version of the file's layout."""

LAYER = "layers/"
"""Begins the name of the array that holds a layer's own maps."""


def save(path: str | PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write an explanation's fields: tensors as arrays, the rest in the header; outputs only if they are a tensor."""
    import numpy as np

    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    header = {name: fields[name] for name in fields.keys() - tensors.keys() - {"layers", "outputs"}}
    tensors |= {LAYER + name: maps for name, maps in fields["layers"].items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    written = json.dumps({"format": FORMAT, "dtypes": dtypes, **header}, sort_keys=True)
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(written), **arrays)


def load(path: str | PathLike[str], build: Callable[..., Built]) -> Built:
    """Return what ``build`` makes of a file's fields, with tensors on the CPU.

    Raises:
        CamlibValueError: the file was not written by :func:`save`, or ``build`` refuses its fields.
    """
    import numpy as np

    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                version, dtypes = header.pop("format"), header.pop("dtypes")
                if version != FORMAT:
                    raise ValueError(f"its format is {version!r}, this camlib reads {FORMAT}")
                tensors = {
                    name: torch.from_numpy(arrays[name]).to(getattr(torch, dtype)) for name, dtype in dtypes.items()
                }
            return build(**_fields(tensors, header))
        except Exception as error:  # a damaged file raises any error of zipfile, zlib, NumPy or JSON
            why = str(error).partition("allow_pickle")[0]  # NumPy's advice is to unpickle, which camlib never does
            raise CamlibValueError(f"{path} is not an explanation that camlib saved: {why}") from error


def _fields(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in header.items()}
    layers = {name.removeprefix(LAYER): tensors.pop(name) for name in list(tensors) if name.startswith(LAYER)}
    return {"outputs": None, **plain, **tensors, "layers": layers}


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return an array of the same values; bfloat16, which NumPy lacks, as float32."""
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
