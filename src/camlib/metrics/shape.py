"""How simple a heatmap is: whether its importance is concentrated in few pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camlib.metrics.declaration import metric
from camlib.metrics.readings import Heatmaps, in_unit_range


@metric(Heatmaps, "higher", "in [0, 1 - 1/P]")
def sparseness(heatmaps: Heatmaps) -> Tensor:
    r"""Gini index of the heatmap's magnitudes: how unequal the pixels are.

    .. math::
        \frac{\sum_{i=1}^P (2 i - P - 1)\, |H|_{(i)}}{P \sum_i |H|_{(i)}}

    with :math:`|H|_{(i)}` in ascending order; Chalasani et al. 2020, https://arxiv.org/abs/1810.06583. 0 if all pixels
    are equal, and for a heatmap of zeros; 1 - 1/P if one pixel has everything. Higher is better: simpler. No forward
    pass.

    Example:
        >>> import torch
        >>> sparseness(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.7500, 0.0000])
    """
    shares = _shares(heatmaps.values).sort(1).values
    pixels = shares.shape[1]
    weights = torch.arange(1 - pixels, pixels, 2, device=shares.device).to(shares.dtype) / pixels
    return (weights * shares).sum(1).clamp(min=0)  # rounding may give less than 0 if all are equal


@metric(Heatmaps, "lower", "in [0, log P]")
def entropy(heatmaps: Heatmaps) -> Tensor:
    r"""Entropy of the heatmap's magnitudes as a distribution, in nats: the complexity of Bhatt et al.

    .. math::
        -\sum_p q_p \log q_p, \quad q_p = \frac{|H_p|}{\sum_{p'} |H_{p'}|}

    Bhatt et al. 2020, https://arxiv.org/abs/2005.00631. 0 if one pixel has everything; log P if all are equal, and for
    a heatmap of zeros, which prefers no pixel. Lower is better: simpler. No forward pass.

    Example:
        >>> import torch
        >>> entropy(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.0000, 1.3863])
    """
    shares = _shares(heatmaps.values)
    nothing = (shares == 0).all(1)
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(1).masked_fill(nothing, math.log(shares.shape[1]))


@metric(Heatmaps, "lower", "in [0, 1]")
def complexity(heatmaps: Heatmaps) -> Tensor:
    r"""Mean of the heatmap: the share of the image that it covers.

    .. math::
        \frac{1}{P} \sum_p |H_p|

    The L1 norm of Poppi et al. 2021, https://arxiv.org/abs/2104.10252, divided by the number of pixels. Lower is
    better: simpler; a heatmap of zeros has 0. No forward pass.

    Args:
        heatmaps: (N, H, W) in [0, 1], a tensor or an array; also (N, L) or (N, T, H, W).

    Raises:
        CamlibValueError: heatmaps not in [0, 1].

    Example:
        >>> import torch
        >>> complexity(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.2500, 1.0000])
    """
    return in_unit_range(heatmaps.values).flatten(1).mean(1)


def _shares(heatmaps: Tensor) -> Tensor:
    """Return the magnitudes (N, P) divided by their sum; zeros for a heatmap of zeros."""
    magnitudes = heatmaps.flatten(1).abs()
    # Divided by the largest first, as sums of large and of small values leave the range of floats.
    for divisor in (Tensor.amax, Tensor.sum):
        by = divisor(magnitudes, 1, keepdim=True)
        magnitudes = magnitudes / by.masked_fill(by == 0, 1)
    return magnitudes
