"""Pixels in the order of their importance; ties, which are frequent, are broken at random."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError
from camlib.inputs.noise import own_generator


def ranked(heatmaps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the pixels of each heatmap, the most important first.

    A ReLU'd map is zero in many places. Their order is shuffled, or the upper left corner would come first. All images
    share the shuffle, so that a batch gives the same as its images one by one.

    Args:
        heatmaps: (N, ...).
        generator: for the shuffle; without one, every call draws the same.

    Returns:
        (N, P) indices into the flattened pixels.

    Example:
        >>> import torch
        >>> ranked(torch.tensor([[[0.2, 0.9], [0.5, 0.0]]]))
        tensor([[1, 2, 0, 3]])
    """
    if not isinstance(heatmaps, Tensor) or heatmaps.dim() < 2 or heatmaps.is_complex():
        given = tuple(heatmaps.shape) if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise CamlibTypeError(f"heatmaps must be a tensor (N, ...) of real numbers, got {given}")
    values = heatmaps.flatten(1)
    own = own_generator(generator)
    shuffle = torch.randperm(values.shape[1], generator=own, device=own.device).to(values.device)
    return shuffle[values[:, shuffle].argsort(dim=1, descending=True, stable=True)]


def ranked_each(heatmaps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return :func:`ranked`, with ties shuffled independently for each image.

    With one shuffle for all, the constant heatmaps of a data set would all point at the same pixel. A generator that is
    passed on from image to image gives the same draws as one call for all images.

    Args:
        heatmaps: (N, ...).
        generator: as for :func:`ranked`.

    Returns:
        (N, P) indices into the flattened pixels.

    Example:
        >>> import torch
        >>> ranked_each(torch.zeros(3, 2, 2)).sort(1).values.tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """
    values = heatmaps.flatten(1)
    own = own_generator(generator)
    drawn = torch.rand(values.shape, generator=own, device=own.device, dtype=torch.float64).to(values.device)
    shuffle = drawn.argsort(dim=1)
    return shuffle.gather(1, values.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))


def ranks(heatmaps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the rank of each pixel, 0 for the most important: the inverse of :func:`ranked`.

    Args:
        heatmaps: (N, ...).
        generator: as for :func:`ranked`.

    Returns:
        (N, ...), a permutation of 0 to P - 1 for each image.

    Example:
        >>> import torch
        >>> ranks(torch.tensor([[[0.2, 0.9], [0.5, 0.0]]]))
        tensor([[[2, 0],
                 [1, 3]]])
    """
    order = ranked(heatmaps, generator)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(heatmaps.shape)


def least_first(ranks: Tensor) -> Tensor:
    """Return the ranks (N, ...) of the opposite order.

    Example:
        >>> import torch
        >>> least_first(torch.tensor([[2, 0, 1]]))
        tensor([[0, 2, 1]])
    """
    return ranks[0].numel() - 1 - ranks
