"""ROAD: the score without the most, or the least, important pixels, which are imputed (Rong et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, number
from camlib.inputs.noise import normal, own_generator
from camlib.metrics.declaration import after, metric
from camlib.metrics.fills import removed_counts
from camlib.metrics.imputation import impute
from camlib.metrics.ranking import least_first, ranks
from camlib.metrics.readings import ScoredHeatmaps

IMPUTED_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of the pixels that are imputed."""


class Imputing(NamedTuple):
    """Images some of whose pixels are imputed."""

    order: Tensor
    """(N, H, W), the rank of each pixel; 0 is the most important."""
    change: Callable[[Tensor], Tensor]
    """From ranks to the mean change (N,) of the score without the first pixels."""


def imputing(
    heatmaps: ScoredHeatmaps,
    *,
    shares: Sequence[float] = IMPUTED_SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Imputing:
    """Prepare what ROAD imputes.

    Args:
        heatmaps: (N, H, W), at the inputs' resolution.
        shares: the shares of the pixels to impute, between 0 and 1; each must impute at least one pixel and leave one.
        noise: standard deviation, in units of the input; 0 adds none. Drawn once per pixel, channel and share; all
            images share it.
        tolerance: as for :func:`camlib.metrics.impute`.
        generator: shuffles ties, then draws the noise; without one, every call draws the same.

    Raises:
        CamlibTypeError: ``shares`` is not a sequence, or one of them, ``noise`` or ``tolerance`` not a number.
        CamlibValueError: the inputs are not images with two sides, ``shares`` is empty, a share imputes no pixel or all
            pixels, ``noise`` is negative, or ``tolerance`` not positive.
    """
    scorer = heatmaps.scorer
    if scorer.images.dim() != 4:
        raise CamlibValueError(
            f"ROAD imputes images (N, C, H, W), and the inputs are {tuple(scorer.images.shape)}; "
            "camlib.metrics.deletion also takes signals, videos and volumes"
        )
    counts = removed_counts(shares, math.prod(scorer.size))
    number("noise", noise, at_least=0)
    own = own_generator(generator)
    order = ranks(heatmaps.values, own)
    drawn = noise * normal((len(counts), *scorer.images.shape[1:]), own, scorer.images)
    count = torch.tensor(counts, device=order.device)[:, None, None]

    def change(order: Tensor) -> Tensor:
        def without(images: Tensor, index: Tensor, k: Tensor) -> Tensor:
            removed = order[index] < count[k]
            return impute(images, ~removed, tolerance=tolerance) + removed[:, None] * drawn[k]

        changes = (scorer.scores_of_variants(len(counts), without) - scorer.clean[:, None]).mean(1)
        return changes.to(torch.result_type(changes, heatmaps.values))

    return Imputing(order, change)


@metric(ScoredHeatmaps, "lower", "between -1 and 1 for probabilities")
@after(imputing)
def road_most_relevant_first(imputing: Imputing) -> Tensor:
    r"""Change of the score when the most important pixels are imputed from the others.

    .. math::
        \frac{1}{|shares|} \sum_{q \in shares} s(\tilde x_q) - s(x)

    where in :math:`\tilde x_q` the round(q P) most important of P pixels are imputed, see
    :func:`camlib.metrics.impute`, and Gaussian noise is added to them, or the network could recognise them by their
    smoothness. Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449. Lower is better: the score falls without the
    pixels that it depends on.

    Only the order of the pixels counts; ties, which a ReLU'd map has many of, are shuffled.

    ``N (1 + |shares|)`` forward passes of an image. Pixels are imputed chunk by chunk.
    """
    return imputing.change(imputing.order)


@metric(ScoredHeatmaps, "higher", "between -1 and 1 for probabilities")
@after(imputing)
def road_least_relevant_first(imputing: Imputing) -> Tensor:
    r"""Change of the score when the least important pixels are imputed from the others.

    :func:`camlib.metrics.road_most_relevant_first` from the other end of the same order. Higher is better: the score
    stays, or rises, without the pixels that it does not depend on.

    ``N (1 + |shares|)`` forward passes of an image.
    """
    return imputing.change(least_first(imputing.order))


@metric(ScoredHeatmaps, "higher", "between -1/2 and 1/2 for probabilities")
@after(imputing)
def road_combined(imputing: Imputing) -> Tensor:
    r"""Half of the difference between the scores without the least important and without the most important pixels.

    .. math::
        \tfrac{1}{2}\,(\mathrm{LeRF} - \mathrm{MoRF})

    the changes of :func:`camlib.metrics.road_least_relevant_first` and
    :func:`camlib.metrics.road_most_relevant_first`, with the same noise; the score of the image as it is cancels. Rong
    et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449; this combination is pytorch-grad-cam's. Higher is better; 0
    for an uninformative order.

    ``N (1 + 2 |shares|)`` forward passes of an image.
    """
    order, change = imputing
    return (change(least_first(order)) - change(order)) / 2
