"""Similarity of two heatmaps: correlation of values, of ranks, of edges, and structural similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from camlib.errors import CamlibValueError
from camlib.imaging.normalization import is_constant, normalized
from camlib.metrics.declaration import measure
from camlib.metrics.readings import HeatmapPair, in_unit_range

WINDOW = 7
"""Side of SSIM's window, in pixels."""

STABILISERS = 0.01**2, 0.03**2
"""SSIM's constants (K1 L)^2 and (K2 L)^2 for values in [0, 1], a range L of 1."""

ORIENTATIONS, CELLS, BLOCK = 9, 8, 3
"""HOG's orientations of edges, its cells along each side of a heatmap, and those along each side of a block."""

CLIP, FLOOR = 0.2, 1e-5
"""HOG's limit on the value of one orientation, and the length of a block that counts as without edges."""


@measure(HeatmapPair, "in [-1, 1]")
def pearson(heatmaps: HeatmapPair) -> Tensor:
    r"""Correlate the values of each pair of heatmaps.

    .. math::
        r = \frac{\sum_p (a_p - \bar a)(b_p - \bar b)}
            {\sqrt{\sum_p (a_p - \bar a)^2} \sqrt{\sum_p (b_p - \bar b)^2}}

    1 for heatmaps that differ by an offset and a positive factor only. The correlation with a heatmap
    that is constant up to rounding (:func:`camlib.imaging.is_constant`) is 0/0, and counts as 0. No forward pass.

    Example:
        >>> import torch
        >>> pearson(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[15.0, 10.0, 25.0, 20.0]]))
        tensor([0.6000])
    """
    return _correlation(heatmaps.values.flatten(1), heatmaps.others.flatten(1))


@measure(HeatmapPair, "in [-1, 1]")
def spearman(heatmaps: HeatmapPair) -> Tensor:
    r"""Correlate the ranks of each pair of heatmaps' pixels.

    :func:`pearson` of :math:`\operatorname{rank}(a)` and :math:`\operatorname{rank}(b)`; pixels of equal value share
    their mean rank. 1 if one heatmap is an increasing function of the other. The correlation with a heatmap that is
    constant up to rounding counts as 0. No forward pass.

    Example:
        >>> import torch
        >>> spearman(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[15.0, 10.0, 900.0, 20.0]]))
        tensor([0.6000])
    """
    return _correlation(_mean_ranks(heatmaps.values.flatten(1)), _mean_ranks(heatmaps.others.flatten(1)))


@measure(HeatmapPair, "in [-1, 1]; 1 for equal heatmaps")
def ssim(heatmaps: HeatmapPair) -> Tensor:
    r"""Compare the local means, contrasts and structures of each pair of heatmaps.

    The mean over all windows of 7 x 7 pixels within the heatmap of

    .. math::
        \frac{(2 \mu_a \mu_b + C_1)(2 \sigma_{ab} + C_2)}{(\mu_a^2 + \mu_b^2 + C_1)(\sigma_a^2 + \sigma_b^2 + C_2)},
        \quad C_1 = 0.01^2,\ C_2 = 0.03^2

    with sample variances (divided by 48); Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, as scikit-image's
    ``structural_similarity`` with ``data_range=1``. For heatmaps with a side under 7 pixels, the window is the largest
    odd one that fits. No forward pass.

    Raises:
        CamlibValueError: heatmaps that are not of images, with a side under 3 pixels, or not in [0, 1].
    """
    a, b = (in_unit_range(_of_images(one, 3, "ssim"))[:, None] for one in (heatmaps.values, heatmaps.others))
    shorter = min(a.shape[2:])
    side = min(WINDOW, shorter - 1 + shorter % 2)

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, side, stride=1)

    def covariance(x: Tensor, y: Tensor) -> Tensor:
        return (mean(x * y) - mean(x) * mean(y)) * (side**2 / (side**2 - 1))

    c1, c2 = STABILISERS
    means = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1)
    structures = (2 * covariance(a, b) + c2) / (covariance(a, a) + covariance(b, b) + c2)
    return (means * structures).flatten(1).mean(1)


@measure(HeatmapPair, "in [-1, 1]; 1 for equal heatmaps")
def hog(heatmaps: HeatmapPair) -> Tensor:
    r"""Correlate the histograms of oriented gradients (HOG) of each pair of heatmaps: do their edges agree?

    :func:`pearson` of the descriptors of scikit-image's ``hog``; Dalal and Triggs 2005,
    https://doi.org/10.1109/CVPR.2005.177. Cells are of :math:`\lfloor H / 8 \rfloor` by
    :math:`\lfloor W / 8 \rfloor` pixels, of at least 2 along each side; pixels left over at the lower and right border
    belong to no cell. In each, central differences vote by their magnitude for one of 9 orientations of 20 degrees.
    Each block of 3 x 3 cells is divided by its length (L2-Hys): :math:`v / \sqrt{|v|^2 + \epsilon^2}`, cut off at 0.2,
    and divided once more; :math:`\epsilon = 10^{-5}`, so that rounding makes no edge in a heatmap in [0, 1]. The
    correlation with a heatmap without edges counts as 0. No forward pass.

    Raises:
        CamlibValueError: heatmaps that are not of images, or with a side under 6 pixels.
    """
    pair = (_of_images(one, 2 * BLOCK, "hog") for one in (heatmaps.values, heatmaps.others))
    return _correlation(*map(_oriented_gradients, pair))


SIMILARITIES = {one.name: one for one in (pearson, spearman, ssim, hog)}
"""Functions of two heatmaps (N, H, W) that return their similarities (N,), by name."""


def _of_images(heatmaps: Tensor, least: int, name: str) -> Tensor:
    if heatmaps.dim() != 3 or min(heatmaps.shape[1:]) < least:
        raise CamlibValueError(
            f"heatmaps have shape {tuple(heatmaps.shape)}; {name} compares heatmaps (N, H, W) of at least {least} x "
            f"{least} pixels: camlib.resize(maps, size) makes them larger, and spearman compares any"
        )
    return heatmaps


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return (_standardised(a) * _standardised(b)).sum(1).clamp(-1, 1)


def _standardised(rows: Tensor) -> Tensor:
    """Return rows of mean zero and length one; zeros if they are constant."""
    scaled = normalized(rows, "minmax")  # or squares of small and of large values leave the floating-point range
    centred = scaled - scaled.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 0, centred / length, 0)


def _mean_ranks(rows: Tensor) -> Tensor:
    """Return doubled ranks less their mean, small whole numbers; equal values share their mean rank."""
    values = rows.masked_fill(is_constant(rows, 1)[:, None], 0).contiguous()
    ordered = values.sort(1).values.contiguous()
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to - values.shape[1]).to(rows.dtype)


def _oriented_gradients(heatmaps: Tensor) -> Tensor:
    """Return the descriptors (N, features)."""
    down = functional.pad(heatmaps[:, 2:] - heatmaps[:, :-2], (0, 0, 1, 1))
    aside = functional.pad(heatmaps[:, :, 2:] - heatmaps[:, :, :-2], (1, 1))
    # An edge has no sign. The remainder of slightly less than 0 rounds up to pi, which belongs to the last orientation.
    angles = torch.atan2(down, aside).remainder(math.pi)
    nearest = (angles * (ORIENTATIONS / math.pi)).long().clamp(max=ORIENTATIONS - 1)
    orientations = torch.arange(ORIENTATIONS, device=heatmaps.device)[:, None, None]
    votes = torch.hypot(down, aside)[:, None] * (nearest[:, None] == orientations)
    height, width = (max(2, side // CELLS) for side in heatmaps.shape[1:])
    histograms = functional.avg_pool2d(votes, (height, width))
    blocks = histograms.unfold(2, BLOCK, 1).unfold(3, BLOCK, 1)  # (N, orientations, down, aside, BLOCK, BLOCK)
    return _unit(_unit(blocks).clamp(max=CLIP)).flatten(1)


def _unit(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum((1, 4, 5), keepdim=True) + FLOOR**2).sqrt()
