"""How simple a heatmap is: whether its importance lies in few pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from camlib.metrics.scorer import checked_heatmaps, in_unit_range


def sparseness(heatmaps: Any) -> Tensor:
    r"""Return the Gini index of the heatmap's magnitudes: how unequal pixels are.

    .. math::
        \frac{\sum_{i=1}^P (2 i - P - 1)\, |H|_{(i)}}{P \sum_i |H|_{(i)}}

    with :math:`|H|_{(i)}` in rising order; Chalasani et al. 2020, https://arxiv.org/abs/1810.06583. 0 where all pixels
    are equal, and for a heatmap of zeros; 1 - 1/P where one pixel has everything. Higher is better: simpler. No forward
    pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array, signed or not; (N, L) or (N, T, H, W), too.

    Returns:
        (N,), in [0, 1 - 1/P].

    Raises:
        CamlibTypeError: no tensor or array of real numbers.
        CamlibValueError: another shape, or not finite.

    Example:
        >>> import torch
        >>> sparseness(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.7500, 0.0000])
    """
    shares = _shares(heatmaps).sort(1).values
    pixels = shares.shape[1]
    weights = torch.arange(1 - pixels, pixels, 2, device=shares.device).to(shares.dtype) / pixels
    return (weights * shares).sum(1).clamp(min=0)  # or rounding gives less than 0 where all are equal


def entropy(heatmaps: Any) -> Tensor:
    r"""Return the entropy of the heatmap's magnitudes, taken for a distribution: the complexity of Bhatt et al.

    .. math::
        -\sum_p q_p \log q_p, \quad q_p = \frac{|H_p|}{\sum_{p'} |H_{p'}|}

    in nats; Bhatt et al. 2020, https://arxiv.org/abs/2005.00631. 0 where one pixel has everything; log P where all are
    equal, and for a heatmap of zeros, which prefers no pixel. Lower is better: simpler. No forward pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array, signed or not; (N, L) or (N, T, H, W), too.

    Returns:
        (N,), in [0, log P].

    Raises:
        CamlibTypeError: no tensor or array of real numbers.
        CamlibValueError: another shape, or not finite.

    Example:
        >>> import torch
        >>> entropy(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.0000, 1.3863])
    """
    shares = _shares(heatmaps)
    nothing = (shares == 0).all(1)
    terms: Tensor = torch.special.entr(shares)
    return terms.sum(1).masked_fill(nothing, math.log(shares.shape[1]))


def complexity(heatmaps: Any) -> Tensor:
    r"""Return the mean of the heatmap: how much of the picture it takes.

    .. math::
        \frac{1}{P} \sum_p |H_p|

    The L1 norm of Poppi et al. 2021, https://arxiv.org/abs/2104.10252, over the number of pixels. Lower is better:
    simpler; a heatmap of zeros has 0. No forward pass.

    Args:
        heatmaps: (N, H, W) in [0, 1], a tensor or an array; (N, L) or (N, T, H, W), too.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no tensor or array of real numbers.
        CamlibValueError: another shape, not finite, or not in [0, 1].

    Example:
        >>> import torch
        >>> complexity(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([0.2500, 1.0000])
    """
    return in_unit_range(checked_heatmaps(heatmaps)).flatten(1).mean(1)


def _shares(heatmaps: Any) -> Tensor:
    """Return the magnitudes (N, P), over their sum; zeros for a heatmap of zeros."""
    magnitudes = checked_heatmaps(heatmaps).flatten(1).abs()
    # Over the largest first, as sums of large and of small values leave the range of floats.
    for divisor in (Tensor.amax, Tensor.sum):
        by = divisor(magnitudes, 1, keepdim=True)
        magnitudes = magnitudes / by.masked_fill(by == 0, 1)
    return magnitudes
