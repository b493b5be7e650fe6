"""How much of the score is left of an image that is multiplied by its heatmap (Chattopadhyay et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.metrics.declaration import metric
from camlib.metrics.readings import ScoredHeatmaps
from camlib.metrics.scorer import Scorer
from camlib.targets.base import image_list


@metric(ScoredHeatmaps, "lower")
def average_drop(heatmaps: ScoredHeatmaps) -> Tensor:
    r"""How much of the score is lost when the image is multiplied by its heatmap, as a share of the score.

    .. math::
        \frac{\max(0,\; Y - O)}{Y}, \qquad Y = s(x),\; O = s(x \odot H)

    Chattopadhyay et al. 2018 (Grad-CAM++), https://arxiv.org/abs/1710.11063, section 4.1; they report the mean over
    images in per cent. Lower is better: 0 if nothing is lost, 1 if all is.

    It favours heatmaps that cover much: a heatmap of ones loses nothing. :func:`camlib.metrics.adcc` weighs that
    against how much is covered.

    ``2 N`` forward passes of an image.

    Args:
        heatmaps: (N, H, W) in [0, 1], at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.

    Returns:
        (N,), in [0, 1] for positive scores; NaN for an image among others whose probability is 0 in floating point.

    Raises:
        CamlibValueError: heatmaps not in [0, 1], or an image with another score of 0 or less.
        CamlibRuntimeError: only images of probability 0.
    """
    clean = positive_scores(heatmaps.scorer, "the average drop")
    drop = (clean - heatmaps.masked_scores).clamp(min=0) / clean
    return drop.to(torch.result_type(drop, heatmaps.values))


@metric(ScoredHeatmaps, "higher", "1 or 0", like=average_drop)
def average_increase(heatmaps: ScoredHeatmaps) -> Tensor:
    r"""Whether the score rises when the image is multiplied by its heatmap: "increase in confidence".

    .. math::
        [\,s(x \odot H) > s(x)\,]

    Chattopadhyay et al. 2018 (Grad-CAM++), https://arxiv.org/abs/1710.11063, section 4.1; they report the mean over
    images in per cent. Higher is better. A score that is equal up to rounding, 16 eps of its magnitude, is not an
    increase: the copies of the images run in other batches, which may round differently.

    ``2 N`` forward passes of an image.

    Raises:
        CamlibValueError: heatmaps not in [0, 1].
    """
    clean = heatmaps.scorer.clean
    rounding = 16 * torch.finfo(clean.dtype).eps * clean.abs()
    return (heatmaps.masked_scores - clean > rounding).to(torch.result_type(clean, heatmaps.values))


def positive_scores(scorer: Scorer, what: str) -> Tensor:
    """Return the scores (N,) of the images as they are, NaN for a probability of 0.

    Args:
        scorer: the scorer of the images.
        what: what divides by them, for the error.

    Raises:
        CamlibValueError: an image with another score of 0 or less.
        CamlibRuntimeError: only images of probability 0.
    """
    clean = scorer.clean
    undefined = (clean <= 0) & scorer.known
    lost = undefined & (clean == 0) & scorer.is_probability
    if bool((undefined & ~lost).any()) or bool(lost.all()):
        raise (CamlibRuntimeError if bool(lost.all()) else CamlibValueError)(
            f"the score of {image_list(undefined)} is {float(clean[undefined].min()):.3g}, and {what} is undefined for "
            "scores <= 0; evaluate by the probability (leave score out and give a class as the target), of a class "
            "whose probability does not underflow"
        )
    return clean.masked_fill(lost, torch.nan)
