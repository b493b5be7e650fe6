"""An explanation's file: plain arrays and a header of JSON in an ``.npz``, never a pickle."""

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


def save(path: str | PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header that JSON can hold."""
    import numpy as np

    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    written = json.dumps({"format": FORMAT, **header, "dtypes": dtypes})
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(written), **arrays)


def load(path: str | PathLike[str], build: Callable[[dict[str, Tensor], dict[str, Any]], Built]) -> Built:
    """Return what ``build`` makes of a file's tensors, on the CPU, and its header.

    Raises:
        CamlibValueError: the file was not written by :func:`save`, or ``build`` cannot use it.
    """
    import numpy as np

    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                tensors = {
                    name: torch.from_numpy(arrays[name]).to(getattr(torch, dtype))
                    for name, dtype in header["dtypes"].items()
                }
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}, this camlib reads {FORMAT}")
            return build(tensors, header)
        except Exception as error:  # a damaged file raises any error of zipfile, zlib, NumPy or JSON
            why = str(error).partition("allow_pickle")[0]  # NumPy's advice is to unpickle, which camlib never does
            raise CamlibValueError(f"{path} is not an explanation that camlib saved: {why}") from error


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return an array of the same values; bfloat16, which NumPy lacks, as float32."""
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
