"""An explanation's file: an ``.npz`` of plain arrays and a JSON header, never a pickle."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, positive_int
from camlib.files import opened, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

Built = TypeVar("Built")

FORMAT = 1
"""The version of the file's layout."""

MAX_BYTES = 2**30
"""The most bytes of the arrays of a file that is loaded, unless the caller allows more."""

LAYER = "layers/"
"""Begins the name of the array that holds a layer's own maps."""


def save(path: str | PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write an explanation's fields: tensors as arrays, the rest in the header; outputs only if they are a tensor."""
    import numpy as np

    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    header = {name: fields[name] for name in fields.keys() - tensors.keys() - {"layers", "outputs", "pictures"}}
    tensors |= {LAYER + name: maps for name, maps in fields["layers"].items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    written = json.dumps({"format": FORMAT, "dtypes": dtypes, **header}, sort_keys=True)
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(written), **arrays)


def load(path: str | PathLike[str], build: Callable[..., Built], max_bytes: int) -> Built:
    """Return what ``build`` makes of a file's fields, with tensors on the CPU.

    Args:
        path: the file.
        build: takes the fields by name.
        max_bytes: the most bytes of all arrays, which are checked before memory is taken for them.

    Raises:
        CamlibTypeError: ``path`` is not a path.
        CamlibValueError: the file was not written by :func:`save`, or is too large, or ``build`` refuses its fields.
    """
    positive_int("max_bytes", max_bytes)
    with opened(path, "a file that Explanation.save wrote") as file:
        try:
            return build(**_checked(_read(file, max_bytes)))
        except Exception as error:  # a damaged file raises any error of zipfile, zlib, NumPy or JSON
            why = str(error).partition("allow_pickle")[0]  # NumPy's advice is to unpickle, which camlib never does
            raise CamlibValueError(f"{path} is not an explanation that camlib saved: {why}") from error


def _read(file: IO[bytes], max_bytes: int) -> dict[str, Any]:
    """The fields in a file."""
    import numpy as np

    with zipfile.ZipFile(file) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
        if total > max_bytes:
            raise ValueError(
                f"its arrays take {total} bytes, more than max_bytes={max_bytes}; raise that if you trust it"
            )
        for entry in archive.infolist():
            with archive.open(entry) as array:
                _check_array(array, entry.file_size)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        header = json.loads(str(arrays["header"]))
        version, dtypes = header.pop("format"), header.pop("dtypes")
        if version != FORMAT:
            raise ValueError(f"its format is {version!r}, this camlib reads {FORMAT}")
        tensors = {name: torch.from_numpy(arrays[name]).to(_dtype(dtype)) for name, dtype in dtypes.items()}
    return _fields(tensors, header)


def _check_array(array: IO[bytes], size: int) -> None:
    """Check that an array has no more values than the archive says: NumPy takes memory for all before it reads them."""
    from numpy.lib import format as npy

    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(array)]
    shape, _, dtype = read_header(array)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} does not fit into its {size} bytes")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no type of tensors")
    return dtype


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, with values that a saved explanation has; the explanation itself checks types and shapes."""
    scores, target, layers = (fields[name] for name in ("scores", "target", "layers"))
    size, extent, origin = fields["input_size"], fields.get("extent"), fields.get("origin")
    images = len(scores)
    classes = isinstance(target, Tensor) and target.shape == scores.shape and target.dtype == torch.int64
    conditions = {
        "target is a text, or a class for each score": isinstance(target, str) or (classes and not (target < 0).any()),
        "class_agnostic and relu are true or false": all(
            isinstance(fields.get(name, False), bool) for name in ("class_agnostic", "relu")
        ),
        "layers are floating-point maps of each image": all(
            one.is_floating_point() and one.dim() > 1 and len(one) == images for one in layers.values()
        ),
        "extent has numbers that are not smaller than input_size, or origin has numbers, too": extent is None
        or (
            _all_are((int, float), extent)
            and all((own if origin is None else 0) <= one <= 1024 * own for one, own in zip(extent, size, strict=True))
        ),
        "origin has numbers like input_size": origin is None
        or (
            _all_are((int, float), origin)
            and all(abs(one) <= 1024 * own for one, own in zip(origin, size, strict=True))
        ),
        "there are images": images > 0,
    }
    for condition, holds in conditions.items():
        if not holds:
            raise ValueError(f"not as saved: {condition}")
    return fields


def _all_are(kind: Any, values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and bool(values)
        and all(type(one) is not bool and isinstance(one, kind) for one in values)
    )


def _fields(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in header.items()}
    layers = {name.removeprefix(LAYER): tensors.pop(name) for name in list(tensors) if name.startswith(LAYER)}
    return {"outputs": None, **plain, **tensors, "layers": layers}


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return an array of the same values; bfloat16 and floats of eight bits, which NumPy lacks, as float32."""
    lacking = tensor.is_floating_point() and (tensor.dtype == torch.bfloat16 or tensor.itemsize == 1)
    array: NDArray[Any] = (tensor.float() if lacking else tensor).detach().cpu().numpy()
    return array
