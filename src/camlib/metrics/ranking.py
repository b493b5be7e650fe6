"""Pixels in the order of their importance; ties, of which a heatmap has many, are broken at random."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.inputs.noise import own_generator


def ranked(heatmaps: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the pixels of each heatmap, the most important first.

    A ReLU'd map is zero in many places: their order is shuffled, as otherwise the picture's upper left corner would
    come first. The same shuffle serves every image, so that a batch gives what its images give one by one.

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
    values = heatmaps.flatten(1)
    own = own_generator(generator)
    shuffle = torch.randperm(values.shape[1], generator=own, device=own.device).to(values.device)
    return shuffle[values[:, shuffle].argsort(dim=1, descending=True, stable=True)]


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
