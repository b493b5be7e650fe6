"""The score while the most important pixels are removed or inserted (RISE, Petsiuk et al. 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from camlib.errors import positive_int
from camlib.metrics.declaration import after, measure, metric
from camlib.metrics.fills import Baseline, baseline_images
from camlib.metrics.ranking import least_first, ranks
from camlib.metrics.readings import ScoredHeatmaps


class Curve(NamedTuple):
    """Scores over the share of the pixels that are replaced or inserted."""

    scores: Tensor
    """(N, steps + 1)."""
    shares: Tensor
    """(steps + 1,), from 0 to 1."""


def deleted(
    heatmaps: ScoredHeatmaps, *, steps: int = 28, baseline: Baseline = "zero", generator: torch.Generator | None = None
) -> Curve:
    """Replace the most important pixels, step by step.

    Args:
        steps: in how many steps all pixels are replaced; RISE replaces 224 x 8 pixels at a time, which is 28 steps of
            224 x 224.
        baseline: what replaces them: "zero" (RISE's choice), "mean", "blur", a number or a tensor (C, 1, 1); see
            :func:`camlib.metrics.fills.baseline_images`.
        generator: shuffles ties, which a ReLU'd map has many of; without one, every call draws the same.

    Raises:
        CamlibTypeError: a ``baseline`` or ``generator`` of another type.
        CamlibValueError: ``steps`` is not a positive int, or ``baseline`` cannot be broadcast.
    """
    removed = _counts(heatmaps, steps)
    kept = [removed[-1] - count for count in removed[1:]]
    scores = _scores_of_kept(kept, least_first(ranks(heatmaps.values, generator)), heatmaps, baseline)
    return _curve(torch.cat([heatmaps.scorer.clean[:, None], scores], 1), removed, heatmaps)


def inserted(
    heatmaps: ScoredHeatmaps, *, steps: int = 28, baseline: Baseline = "blur", generator: torch.Generator | None = None
) -> Curve:
    """Insert the most important pixels, step by step.

    Args:
        steps: in how many steps all pixels are inserted; RISE inserts 224 x 8 pixels at a time, which is 28 steps of
            224 x 224.
        baseline: the image that they are inserted into: "blur" (RISE's choice, as sharp borders on grey are features,
            too), "zero", "mean", a number or a tensor (C, 1, 1); see :func:`camlib.metrics.fills.baseline_images`.
            RISE's code pads with zeros before it blurs, with a kernel that is nearly flat: on three photographs,
            insertion is then 0.716, 0.673 and 0.178 instead of 0.755, 0.686 and 0.161.
        generator: as for :func:`camlib.metrics.deletion`.

    Raises:
        CamlibError: as for :func:`camlib.metrics.deletion`.
    """
    kept = _counts(heatmaps, steps)
    scores = _scores_of_kept(kept[:-1], ranks(heatmaps.values, generator), heatmaps, baseline)
    return _curve(torch.cat([scores, heatmaps.scorer.clean[:, None]], 1), kept, heatmaps)


@measure(ScoredHeatmaps)
@after(deleted)
def deletion_curve(curve: Curve) -> Tensor:
    r"""Score while the most important pixels are removed, step by step.

    .. math::
        c_j = s(\text{x with its } n_j \text{ most important pixels at the baseline}), \qquad
        n_j = \operatorname{round}(j P / steps)

    The first is the score of the image as it is, the last that of the baseline alone. An earlier fall is better:
    :func:`camlib.metrics.deletion` is the area under the curve.

    ``N (1 + steps)`` forward passes of an image.

    Returns:
        (N, steps + 1), in the precision of the scores.
    """
    return curve.scores


@measure(ScoredHeatmaps)
@after(inserted)
def insertion_curve(curve: Curve) -> Tensor:
    r"""Score while the most important pixels are inserted, step by step.

    .. math::
        c_j = s(\text{the baseline with the } n_j \text{ most important pixels of x}), \qquad
        n_j = \operatorname{round}(j P / steps)

    The first is the score of the baseline alone, the last that of the image as it is. An earlier rise is better:
    :func:`camlib.metrics.insertion` is the area under the curve.

    ``N (1 + steps)`` forward passes of an image.

    Returns:
        (N, steps + 1), in the precision of the scores.
    """
    return curve.scores


@metric(ScoredHeatmaps, "lower", "between the lowest and the highest score of the curve")
@after(deleted)
def deletion(curve: Curve) -> Tensor:
    r"""Area under the score while the most important pixels are removed.

    .. math::
        \sum_{j=1}^{steps} \frac{c_{j-1} + c_j}{2} \cdot \frac{n_j - n_{j-1}}{P}, \qquad
        n_j = \operatorname{round}(j P / steps)

    where c_j is the score of the image whose n_j most important of P pixels are replaced by the baseline: see
    :func:`camlib.metrics.deletion_curve`. Petsiuk et al. 2018 (RISE), section 4.2, https://arxiv.org/abs/1806.07421.
    Lower is better: the score falls early without the pixels that it depends on. Only the order of the pixels counts.

    ``N (1 + steps)`` forward passes of an image.
    """
    return torch.trapezoid(*curve)


@metric(ScoredHeatmaps, "higher", "between the lowest and the highest score of the curve")
@after(inserted)
def insertion(curve: Curve) -> Tensor:
    r"""Area under the score while the most important pixels are inserted.

    .. math::
        \sum_{j=1}^{steps} \frac{c_{j-1} + c_j}{2} \cdot \frac{n_j - n_{j-1}}{P}, \qquad
        n_j = \operatorname{round}(j P / steps)

    where c_j is the score of the baseline with the n_j most important of P pixels of the image: see
    :func:`camlib.metrics.insertion_curve`. Petsiuk et al. 2018 (RISE), section 4.2, https://arxiv.org/abs/1806.07421.
    Higher is better: the score rises early with the pixels that it depends on. Only the order of the pixels counts.

    ``N (1 + steps)`` forward passes of an image.
    """
    return torch.trapezoid(*curve)


def _counts(heatmaps: ScoredHeatmaps, steps: int) -> list[int]:
    """Return n_j = round(j P / steps) for j = 0, ..., steps."""
    pixels = math.prod(heatmaps.scorer.size)
    return [round(step * pixels / steps) for step in range(positive_int("steps", steps) + 1)]


def _scores_of_kept(counts: list[int], order: Tensor, heatmaps: ScoredHeatmaps, baseline: Baseline) -> Tensor:
    """Return the scores (N, counts) of images that keep so many pixels, the first of an order (N, ...) of ranks."""
    instead = baseline_images(heatmaps.scorer.images, baseline)
    kept = torch.tensor(counts, device=order.device).reshape(-1, *[1] * (order.dim() - 1))
    return heatmaps.scorer.scores_of_variants(
        len(counts), lambda images, index, k: torch.where((order[index] < kept[k])[:, None], images, instead[index])
    )


def _curve(scores: Tensor, counts: list[int], heatmaps: ScoredHeatmaps) -> Curve:
    pixels = torch.tensor(counts, device=scores.device).to(torch.result_type(scores, heatmaps.values))
    return Curve(scores, pixels / counts[-1])
