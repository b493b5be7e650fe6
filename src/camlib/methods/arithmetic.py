"""Arithmetic that many of the equations share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.normalization import is_constant


def check_alike(activations: Tensor, **others: Tensor) -> None:
    """Check what a pure function was given: activations (N, C, ...) and tensors of the same shape, by name.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`check_tensor`.
    """
    check_tensor("activations", activations, "(N, C, ...)")
    for name, given in others.items():
        check_tensor(name, given, "(N, C, ...), the shape of the activations", activations)


def check_tensor(name: str, given: Tensor, wanted: str, like: Tensor | None = None, axes: int | None = None) -> None:
    """Check an argument's type and shape: torch would silently broadcast a wrong shape.

    Args:
        name: the argument's name, for errors.
        given: what was given for it.
        wanted: its shape in words, for errors.
        like: a tensor whose shape and device it must have; None for any with at least three axes.
        axes: how many of the first axes of ``like`` it must have; None for all.

    Raises:
        CamlibTypeError: it is not a tensor of floating-point numbers.
        CamlibValueError: it has another shape, or is on another device.
    """
    if not isinstance(given, Tensor):
        raise CamlibTypeError(f"{name} must be a tensor {wanted}, got {type(given).__name__}")
    if not given.is_floating_point():
        raise CamlibTypeError(f"{name} must hold floating-point numbers, got {given.dtype}")
    if like is None:
        if given.dim() < 3 or not given.numel():
            raise CamlibValueError(f"{name} must be {wanted}, without empty axes, got {tuple(given.shape)}")
        return
    shape = tuple(like.shape[:axes])
    if tuple(given.shape) != shape:
        raise CamlibValueError(f"{name} must be {wanted}, here {shape}, got {tuple(given.shape)}")
    if given.device != like.device:
        raise CamlibValueError(f"{name} must be on {like.device} like the others, got {given.device}")


def check_tensors(name: str, given: Iterable[Tensor], wanted: str) -> None:
    """Check that an argument is a sequence, as of tensors.

    Raises:
        CamlibTypeError: it is not a sequence.
    """
    without = isinstance(given, (str, bytes, Mapping)) or getattr(given, "ndim", None) == 0
    if without or not isinstance(given, Iterable):
        raise CamlibTypeError(f"{name} must be a sequence of tensors {wanted}, got {type(given).__name__}")


def over_channels(weights: Tensor, activations: Tensor) -> Tensor:
    """Return the weighted sum of the channels: weights (N, C), activations (N, C, ...) -> (N, ...)."""
    dtype = torch.promote_types(weights.dtype, activations.dtype)
    return torch.einsum("nc,nc...->n...", weights.to(dtype), activations.to(dtype))


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, ascending, and the eigenvectors of symmetric matrices (N, P, P).

    Raises:
        CamlibValueError: they are not finite.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError as error:
        if bool(matrix.isfinite().all()):
            raise
        raise CamlibValueError("the features hold NaN or infinity") from error
    return values, vectors


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Return values (N, C) as (N, C, 1, ...), to be broadcast over the grid of another tensor."""
    return values.reshape(*values.shape, *[1] * (like.dim() - values.dim()))


def centered(features: Tensor) -> Tensor:
    """Subtract each channel's mean from (N, C, ...); a channel that is constant up to rounding becomes zeros."""
    cells = features.flatten(2)
    deviations = cells - cells.mean(2, keepdim=True)
    return deviations.masked_fill(is_constant(cells, 1)[..., None], 0).reshape(features.shape)


def divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with zero where the denominator is zero. No epsilon: the scale of the scores must not matter."""
    return torch.where(denominator == 0, 0, numerator / torch.where(denominator == 0, 1, denominator))
