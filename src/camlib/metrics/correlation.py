"""Does the score fall by as much as the heatmap says, when random pixels are removed?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, positive_int
from camlib.imaging.normalization import normalized
from camlib.inputs.noise import own_generator
from camlib.metrics.declaration import metric
from camlib.metrics.fills import Baseline, baseline_images, removed_counts
from camlib.metrics.readings import ScoredHeatmaps
from camlib.metrics.scorer import Scorer
from camlib.metrics.similarity import pearson
from camlib.passes.precision import full_precision

AT_ONCE = 2**21
"""How many pixels the sets in memory have together; each takes about 60 bytes while its set is drawn."""
SHARES_OF_SETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the pixels in the sets that sensitivity-n removes."""


@metric(ScoredHeatmaps, "higher", "in [-1, 1]")
def faithfulness_correlation(
    heatmaps: ScoredHeatmaps,
    *,
    samples: int = 100,
    share: float = 0.1,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Correlation of the heatmap's sum over random sets of pixels with the loss of score without them.

    .. math::
        \operatorname{corr}_k \Big( \sum_{p \in S_k} H_p,\; s(x) - s(x_{S_k}) \Big)

    over random sets :math:`S_k` of round(share P) of the P pixels, the same for every image; :math:`x_S` is the image
    with the pixels in S replaced by the baseline. Pearson's correlation. Equation 2 of Bhatt et al. 2020,
    https://arxiv.org/abs/2005.00631. Higher is better: 1 if the network is linear and the heatmap is each pixel's
    share in the score. An offset or a positive factor of the heatmap changes nothing. The correlation is 0/0, and
    counts as 0, for a constant heatmap or a score that loses the same without any of the sets.

    ``N (1 + samples)`` forward passes of an image.

    Args:
        heatmaps: (N, H, W), signed or not, at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or
            videos.
        samples: how many sets, at least 2.
        share: the share of the pixels that are in a set, between 0 and 1.
        baseline: what replaces pixels, as for :func:`camlib.metrics.fills.baseline_images`.
        generator: for the sets; without one, every call draws the same.

    Raises:
        CamlibTypeError: a baseline of another type.
        CamlibValueError: fewer than 2 samples, or a share that is not between 0 and 1, or rounds to none or all of the
            pixels.
    """
    return _correlations(heatmaps, samples, [share], baseline, generator)[:, 0]


@metric(ScoredHeatmaps, "higher", "in [-1, 1]", like=faithfulness_correlation)
def sensitivity_n(
    heatmaps: ScoredHeatmaps,
    *,
    samples: int = 20,
    shares: Sequence[float] = SHARES_OF_SETS,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean of :func:`camlib.metrics.faithfulness_correlation` over sets of several sizes.

    .. math::
        \frac{1}{|Q|} \sum_{q \in Q}
            \operatorname{corr}_k \Big( \sum_{p \in S_{qk}} H_p,\; s(x) - s(x_{S_{qk}}) \Big),
        \qquad |S_{qk}| = \operatorname{round}(q P)

    Section 4 of Ancona et al. 2018, https://arxiv.org/abs/1711.06104, which plots the correlation over the size of the
    sets: :func:`camlib.metrics.faithfulness_correlation` of each share gives that curve. Higher is better.

    ``N (1 + samples |shares|)`` forward passes of an image.

    Args:
        samples: how many sets of each size, at least 2.
        shares: Q, the shares of the pixels that are in a set, between 0 and 1.
        generator: for the sets, drawn size by size; without one, every call draws the same.

    Raises:
        CamlibTypeError: a baseline of another type, or shares that are not a sequence.
        CamlibValueError: fewer than 2 samples, no shares, or a share as :func:`camlib.metrics.faithfulness_correlation`
            refuses it.
    """
    return _correlations(heatmaps, samples, shares, baseline, generator).mean(1)


def _correlations(
    heatmaps: ScoredHeatmaps,
    samples: int,
    shares: Sequence[float],
    baseline: Baseline,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the correlation (N, shares) over sets of each size."""
    if positive_int("samples", samples) < 2:
        raise CamlibValueError("samples must be at least 2, got 1: one pair of numbers has no correlation")
    scorer, own = heatmaps.scorer, own_generator(generator)
    count, pixels = len(scorer.images), heatmaps.values[0].numel()
    sizes = removed_counts(shares, pixels)
    at_once = max(AT_ONCE // pixels, 1)
    blocks = [(size, min(at_once, samples - done)) for size in sizes for done in range(0, samples, at_once)]
    # An offset and a factor cancel in the correlation of sets of one size; a constant becomes exact zeros.
    cells = normalized(heatmaps.values.flatten(1), "minmax")
    instead = baseline_images(scorer.images, baseline)
    given, scores = [], []
    for size, several in blocks:
        sets = _random_sets(pixels, size, several, own).to(cells.device)
        with full_precision(sets.device):
            given.append(cells @ sets.to(cells.dtype).T)
        scores.append(-_scores_without(scorer, sets.reshape(-1, 1, *scorer.size), instead))
    # The clean score cancels, too; without it a score that is constant up to rounding is recognised as constant.
    pairs = (torch.cat(parts, 1).reshape(count * len(sizes), samples) for parts in (given, scores))
    return pearson(*pairs).reshape(count, len(sizes))


def _scores_without(scorer: Scorer, removed: Tensor, instead: Tensor) -> Tensor:
    """Return the scores (N, sets) of images without the pixels of sets (sets, 1, ...)."""
    return scorer.scores_of_variants(
        len(removed), lambda images, index, k: torch.where(removed[k], instead[index], images)
    )


def _random_sets(pixels: int, size: int, samples: int, generator: torch.Generator) -> Tensor:
    """Return random sets of ``size`` different pixels, (samples, pixels) bool, each as likely as any other."""
    device = generator.device
    drawn = torch.rand((samples, pixels), generator=generator, device=device, dtype=torch.float64)
    return torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, drawn.topk(size, dim=1).indices, True)
