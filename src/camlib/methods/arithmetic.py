"""Arithmetic that many of the equations share."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.normalization import is_constant


def check_alike(activations: Tensor, **others: Tensor) -> None:
    """Check what a pure function was given: activations (N, C, ...) and tensors of the same shape, by name.

    Raises:
        CamlibTypeError: not tensors.
        CamlibValueError: fewer than three axes, or different shapes, which torch would broadcast.
    """
    for name, given in {"activations": activations, **others}.items():
        if not isinstance(given, Tensor):
            raise CamlibTypeError(f"{name} must be a tensor (N, C, ...), got {type(given).__name__}")
        if given.dim() < 3 or given.shape != activations.shape:
            raise CamlibValueError(
                f"{name} must be (N, C, ...), of one shape with the activations, got {tuple(given.shape)} with "
                f"activations {tuple(activations.shape)}"
            )


def over_channels(weights: Tensor, activations: Tensor) -> Tensor:
    """Return the weighted sum of the channels: weights (N, C), activations (N, C, ...) -> (N, ...)."""
    return torch.einsum("nc,nc...->n...", weights, activations)


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
