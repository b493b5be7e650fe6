"""Does the heatmap lie where the object is? Against masks, or boxes of the pixels that show it."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, number, positive_int
from camlib.metrics.declaration import metric
from camlib.metrics.masks import checked_share
from camlib.metrics.readings import LocatedHeatmaps, in_unit_range


@metric(LocatedHeatmaps, "higher", "1 or 0")
def pointing_game(
    heatmaps: LocatedHeatmaps, *, tolerance: float = 15, generator: torch.Generator | None = None
) -> Tensor:
    r"""Whether the highest pixel lies on the object, or close to it.

    .. math::
        \left[\min_{p \in M} |p - \operatorname{argmax}_q H_q| \le \text{tolerance}\right]

    Zhang et al. 2016, https://arxiv.org/abs/1608.00507; the mean over images is the paper's accuracy. If several pixels
    are highest, one is drawn at random, so that a constant heatmap points anywhere. Higher is better. No forward pass.

    Args:
        tolerance: Euclidean distance in pixels.
        generator: for the draw, which differs for each image; without one, every call draws the same.

    Raises:
        CamlibTypeError: the tolerance is not a number.
        CamlibValueError: it is negative.

    Example:
        >>> import torch
        >>> pointing_game(torch.eye(3)[None] * torch.arange(3), torch.tensor([[0, 0, 1, 1]]), tolerance=2)
        tensor([0.])
    """
    number("tolerance", tolerance, at_least=0)
    maps, inside = heatmaps.values, heatmaps.inside
    size = tuple(maps.shape[1:])
    squares = torch.zeros((), dtype=torch.long, device=maps.device)
    for axis, place in enumerate(torch.unravel_index(heatmaps.ranked(generator)[:, 0], size), 1):
        shape = [len(maps), *[1] * len(size)]
        shape[axis] = size[axis - 1]
        squares = squares + (torch.arange(size[axis - 1], device=maps.device) - place[:, None]).square().reshape(shape)
    near = squares.sqrt() <= tolerance
    return (inside & near).flatten(1).any(1).to(maps.dtype)


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def energy_pointing_game(heatmaps: LocatedHeatmaps) -> Tensor:
    r"""Share of the heatmap that lies on the object: the relevance mass.

    .. math::
        \frac{\sum_{p \in M} H_p}{\sum_p H_p}

    Wang et al. 2020 (Score-CAM), https://arxiv.org/abs/1910.01279; Arras et al. 2022,
    https://arxiv.org/abs/2003.07258. 0 for a heatmap of zeros. Higher is better; an even heatmap has the mask's share
    of the image. No forward pass.

    Args:
        heatmaps: (N, H, W), not negative, a tensor or an array; with masks also (N, L) or (N, T, H, W).

    Raises:
        CamlibValueError: a negative heatmap.

    Example:
        >>> import torch
        >>> energy_pointing_game(torch.tensor([[[0.0, 1.0], [2.0, 1.0]]]), torch.tensor([[[0, 0], [1, 1]]]))
        tensor([0.7500])
    """
    lowest = float(heatmaps.values.min())
    if lowest < 0:
        raise CamlibValueError(
            f"heatmaps reach down to {lowest:.3g}; shares of a sum need values of at least 0: heatmaps.clamp(min=0) "
            "keeps the positive part, and heatmaps.abs() the magnitude"
        )
    return _share_inside(heatmaps)


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def grid_pointing_game(heatmaps: LocatedHeatmaps) -> Tensor:
    r"""In a mosaic of images, the share of the heatmap's positive part that lies on the tile of the explained class.

    .. math::
        \frac{\sum_{p \in M} \max(0, H_p)}{\sum_p \max(0, H_p)}

    for a mosaic of n x n images of different classes (:func:`camlib.metrics.mosaics`), where M is the tile of the class
    that H explains; no other tile shows this class. Böhle et al. 2021, https://arxiv.org/abs/2104.00032, and Rao et al.
    2022, https://arxiv.org/abs/2205.10435 (GridPG), for each tile of a mosaic. 0 without a positive value. Higher is
    better; a constant heatmap has 1 / n².

    The papers take raw maps. Min-max scaling lifts negative values above 0: explain with ``relu=True``, or give
    ``explanation.maps.clamp(min=0)``, resized. No forward pass.

    Example:
        >>> import torch
        >>> grid_pointing_game(torch.tensor([[[-1.0, 1.0], [2.0, 1.0]]]), torch.tensor([[[0, 0], [1, 0]]]))
        tensor([0.5000])
    """
    return _share_inside(heatmaps)


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def relevance_rank(heatmaps: LocatedHeatmaps, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Share of the K highest pixels that lie on the object, which has K pixels.

    .. math::
        \frac{|\text{top}_K(H) \cap M|}{K}, \quad K = |M|

    The relevance rank accuracy of Arras et al. 2022, https://arxiv.org/abs/2003.07258. Ties are shuffled. Higher is
    better. No forward pass.

    Args:
        generator: for the shuffle, which differs for each image; without one, every call draws the same.

    Example:
        >>> import torch
        >>> relevance_rank(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 0], [1, 1]]]))
        tensor([0.5000])
    """
    inside = heatmaps.inside.flatten(1)
    counts = inside.sum(1)
    found = inside.gather(1, heatmaps.ranked(generator))  # whether the pixels lie on it, the highest first
    chosen = torch.arange(inside.shape[1], device=inside.device) < counts[:, None]
    return (chosen & found).sum(1).to(heatmaps.values.dtype) / counts.clamp(min=1)


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def top_k_intersection(heatmaps: LocatedHeatmaps, *, k: int = 1000, generator: torch.Generator | None = None) -> Tensor:
    r"""Share of the k highest pixels that lie on the object.

    .. math::
        \frac{|\text{top}_k(H) \cap M|}{k}

    Theiner et al. 2021, https://arxiv.org/abs/2104.14995. Ties are shuffled. Higher is better; an object of fewer than
    k pixels cannot reach 1. No forward pass.

    Args:
        k: pixels, at most those of a heatmap.
        generator: for the shuffle, which differs for each image; without one, every call draws the same.

    Raises:
        CamlibTypeError: k is not an int.
        CamlibValueError: it is not from 1 to the number of pixels.

    Example:
        >>> import torch
        >>> top_k_intersection(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 1], [0, 1]]]), k=1)
        tensor([1.])
    """
    pixels = heatmaps.values[0].numel()
    if positive_int("k", k) > pixels:
        raise CamlibValueError(f"k must be at most {pixels}, the number of pixels of a heatmap, got {k!r}")
    chosen = heatmaps.ranked(generator)[:, :k]
    return heatmaps.inside.flatten(1).gather(1, chosen).sum(1).to(heatmaps.values.dtype) / k


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def roc_auc(heatmaps: LocatedHeatmaps) -> Tensor:
    r"""Probability that a pixel of the object is higher than one of the rest: the area under the ROC curve.

    .. math::
        P(H_p > H_q) + \tfrac{1}{2} P(H_p = H_q), \quad p \in M,\ q \notin M

    It takes the heatmap for the score of a classifier of pixels: Fawcett 2006,
    https://doi.org/10.1016/j.patrec.2005.10.010, and AUC in Quantus. It depends on the order of the pixels alone and
    needs no threshold. Ties count half, so that a constant heatmap has 1/2. Higher is better. 1 if the mask covers the
    whole image. No forward pass.

    Example:
        >>> import torch
        >>> roc_auc(torch.tensor([[[0.1, 0.9], [0.5, 0.1]]]), torch.tensor([[[0, 1], [0, 1]]]))
        tensor([0.6250])
    """
    return torch.stack(
        [
            _area(values[inside], values[~inside])
            for values, inside in zip(heatmaps.values, heatmaps.inside, strict=True)
        ]
    )


def _area(inside: Tensor, outside: Tensor) -> Tensor:
    """The share of pairs in which the first is the larger one, and half of those in which both are the same."""
    if not len(outside):
        return inside.new_ones(())
    ordered = outside.sort().values
    lower, not_higher = (torch.searchsorted(ordered, inside.contiguous(), right=right) for right in (False, True))
    return ((lower + not_higher).double().mean() / (2 * len(ordered))).to(inside.dtype)


@metric(LocatedHeatmaps, "higher", "in [0, 1]")
def iou(heatmaps: LocatedHeatmaps, *, threshold: float = 0.5) -> Tensor:
    r"""Intersection over union of the object and the pixels that reach a threshold.

    .. math::
        \frac{|\{H \ge t\} \cap M|}{|\{H \ge t\} \cup M|}

    Higher is better. No forward pass.

    Args:
        heatmaps: (N, H, W) in [0, 1], a tensor or an array; with masks also (N, L) or (N, T, H, W).
        threshold: t, in (0, 1].

    Raises:
        CamlibTypeError: the threshold is not a number.
        CamlibValueError: heatmaps not in [0, 1], or a threshold not in (0, 1].

    Example:
        >>> import torch
        >>> iou(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 1], [0, 1]]]))
        tensor([0.3333])
    """
    checked_share("threshold", threshold)
    found, inside = (in_unit_range(heatmaps.values) >= threshold).flatten(1), heatmaps.inside.flatten(1)
    return (found & inside).sum(1).to(heatmaps.values.dtype) / (found | inside).sum(1).clamp(min=1)


def _share_inside(heatmaps: LocatedHeatmaps) -> Tensor:
    """Return the share (N,) of the positive values that lies inside the masks."""
    energy = heatmaps.values.flatten(1).clamp(min=0)
    highest = energy.amax(1, keepdim=True)
    energy = energy / highest.masked_fill(highest == 0, 1)  # or the sum of large values overflows
    total = energy.sum(1)
    return (energy * heatmaps.inside.flatten(1)).sum(1) / total.masked_fill(total == 0, 1)
