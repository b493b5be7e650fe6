"""Arithmetic that many of the equations share."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.imaging.normalization import is_constant


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
