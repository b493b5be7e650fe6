"""What the fields of an explanation must be."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, boolean
from camlib.imaging.resizing import SIZES

_NUMBERS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The types of maps and scores."""
_CLASSES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""The types of class indices."""

MAX_PIXELS = 2**31
"""The most pixels of an input."""


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check types and shapes, but not the numbers on the device, for which this would have to wait.

    Raises:
        CamlibTypeError, CamlibValueError: a field is wrong.
    """
    maps, scores, target, layers = (fields[name] for name in ("maps", "scores", "target", "layers"))
    if not isinstance(layers, Mapping) or not all(isinstance(name, str) for name in layers):
        raise CamlibTypeError(f"layers must be a mapping from names to maps, got {reprlib.repr(layers)}")
    for name, tensor in (("maps", maps), ("scores", scores), *layers.items()):
        _check_kind(name, tensor, _NUMBERS, "a tensor of floating-point numbers")
    if isinstance(fields["outputs"], Tensor):
        _check_dense("outputs", fields["outputs"])
    for name in ("method", "layer", "quantity", "reason"):
        if not isinstance(fields[name], str):
            raise CamlibTypeError(f"{name} must be a string, got {fields[name]!r}")
    for name in ("class_agnostic", "relu"):
        if type(fields[name]) is not bool:
            boolean(name, fields[name])
    if not isinstance(target, str):
        _check_kind("target", target, _CLASSES, "a tensor with a class for each score, or a string")
    dims = maps.dim() - scores.dim()
    if scores.dim() not in (1, 2) or dims not in SIZES or maps.shape[: scores.dim()] != scores.shape:
        raise CamlibValueError(
            f"maps must have the axes of the scores and one to three more, (N, h, w) for scores (N,) or "
            f"(N, K, h, w) for scores (N, K), got {tuple(maps.shape)} for {tuple(scores.shape)}"
        )
    if isinstance(target, Tensor) and target.shape != scores.shape:
        raise CamlibValueError(
            f"target must have a class for each score, {tuple(scores.shape)}, got {tuple(target.shape)}"
        )
    for name, own in layers.items():
        if own.dim() < 2 or len(own) != len(maps):
            raise CamlibValueError(
                f"layer {name!r} must have maps of each of the {len(maps)} images, got {tuple(own.shape)}"
            )
    _check_shown(fields["pictures"], fields["class_names"], len(maps))
    _check_geometry(fields["input_size"], fields["extent"], fields["origin"], dims)


def _check_kind(name: str, tensor: Any, kinds: Collection[torch.dtype], wanted: str) -> None:
    """Check that a field is a dense tensor of certain types."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in kinds:
        given = tensor.dtype if isinstance(tensor, Tensor) else reprlib.repr(tensor)
        raise CamlibTypeError(f"{name} must be {wanted}, got {given}")
    _check_dense(name, tensor)


def _check_dense(name: str, tensor: Tensor) -> None:
    """Check that a tensor is dense."""
    if tensor.layout != torch.strided:
        raise CamlibTypeError(f"{name} must be a dense tensor, got {tensor.layout}; give {name}.to_dense()")


def _check_shown(pictures: Any, class_names: Any, images: int) -> None:
    """Check what is shown with the maps."""
    if pictures is not None and (not isinstance(pictures, (list, tuple)) or len(pictures) != images):
        given = f"{len(pictures)}" if isinstance(pictures, (list, tuple)) else reprlib.repr(pictures)
        raise CamlibValueError(f"pictures must be a list of a picture for each of the {images} images, got {given}")
    if class_names is not None and (
        not isinstance(class_names, (list, tuple)) or not all(isinstance(name, str) for name in class_names)
    ):
        raise CamlibTypeError(f"class_names must be a list of strings or None, got {reprlib.repr(class_names)}")


def _check_geometry(size: Any, extent: Any, origin: Any, dims: int) -> None:
    """Check where the maps lie."""
    if size is not None and (not _are_numbers(size, int) or min(size) < 1 or math.prod(size) > MAX_PIXELS):
        raise CamlibValueError(f"input_size must be positive ints, at most {MAX_PIXELS} pixels in all, got {size!r}")
    if origin is not None and (extent is None or not _are_numbers(origin) or len(origin) != len(extent)):
        raise CamlibValueError(
            f"origin needs an extent with as many numbers, got origin {origin!r} and extent {extent!r}"
        )
    if extent is None:
        return
    if not _are_numbers(extent) or min(extent) <= 0:
        raise CamlibValueError(f"extent must be a tuple of positive numbers, got {extent!r}")
    if size is None or not len(extent) == len(size) == dims:
        raise CamlibValueError(
            f"extent and input_size must have one number for each of the maps' {dims} axes, got extent {extent!r} and "
            f"input_size {size!r}"
        )


def _are_numbers(values: Any, kind: Any = (int, float)) -> bool:
    """Whether values are a tuple of one or more finite numbers."""
    return (
        isinstance(values, tuple)
        and bool(values)
        and all(isinstance(one, kind) and not isinstance(one, bool) and math.isfinite(one) for one in values)
    )
