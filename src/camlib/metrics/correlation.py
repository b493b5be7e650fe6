"""Does the score fall by as much as the heatmap says, when random pixels are taken away?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int, positive_number
from camlib.imaging.normalization import normalized
from camlib.inputs.noise import own_generator
from camlib.metrics.fills import Baseline, baseline_pictures
from camlib.metrics.scorer import Scorer, Trial
from camlib.metrics.similarity import pearson
from camlib.passes.precision import full_precision

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Of the pixels, which sensitivity-n takes away."""


def faithfulness_correlation(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    samples: int = 100,
    share: float = 0.1,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""Correlate what the heatmap gives random sets of pixels with what the score loses without them.

    .. math::
        \operatorname{corr}_k \Big( \sum_{p \in S_k} H_p,\; s(x) - s(x_{S_k}) \Big)

    over random sets :math:`S_k` of round(share P) of the P pixels, the same for every image; :math:`x_S` is the picture
    whose pixels in S are the baseline's. Pearson's correlation. Equation 2 of Bhatt et al. 2020,
    https://arxiv.org/abs/2005.00631. Higher is better: 1 where the network is linear and the heatmap is each pixel's
    share in the score. An offset or a positive factor of the heatmap changes nothing. The correlation of a heatmap that
    is constant, or of a score that loses the same without any of the sets, is 0/0, and counts as 0.

    ``N (1 + samples)`` forward passes of an image.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W), signed or not, at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or
            videos.
        target: as for :class:`camlib.metrics.Scorer`.
        samples: how many sets, at least 2.
        share: of the pixels that are in a set, between 0 and 1.
        baseline: what pixels become: "zero", "blur", a number, or a tensor that is broadcast to a picture (C, ...).
        generator: for the sets; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), in [-1, 1].

    Raises:
        CamlibTypeError: what :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say, or a baseline of
            another kind.
        CamlibValueError: the same, fewer than 2 samples, or a share that is not between 0 and 1, or comes to no pixel
            or to all of them.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import faithfulness_correlation
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> faithfulness_correlation(model, images, torch.rand(2, 64, 64), target=1, samples=8).shape
        torch.Size([2])
    """
    return judge_faithfulness_correlation(
        Trial(Scorer(model, inputs, target, **options), heatmaps),
        samples=samples,
        share=share,
        baseline=baseline,
        generator=generator,
    )


def judge_faithfulness_correlation(
    trial: Trial,
    *,
    samples: int = 100,
    share: float = 0.1,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`faithfulness_correlation` of a trial."""
    return _correlations(trial, samples, [share], baseline, generator)[:, 0]


def sensitivity_n(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    samples: int = 20,
    shares: Sequence[float] = SHARES,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""Correlate as :func:`faithfulness_correlation`, for sets of several sizes, and take the mean.

    .. math::
        \frac{1}{|Q|} \sum_{q \in Q}
            \operatorname{corr}_k \Big( \sum_{p \in S_{qk}} H_p,\; s(x) - s(x_{S_{qk}}) \Big),
        \qquad |S_{qk}| = \operatorname{round}(q P)

    Section 4 of Ancona et al. 2018, https://arxiv.org/abs/1711.06104, which draws the correlation over the size of the
    sets: :func:`faithfulness_correlation` of each share gives that curve. Higher is better, in [-1, 1]. As there, the
    correlation with a constant counts as 0.

    ``N (1 + samples shares)`` forward passes of an image, shares being how many there are.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: as for :func:`faithfulness_correlation`.
        target: as for :class:`camlib.metrics.Scorer`.
        samples: how many sets of each size, at least 2.
        shares: Q, of the pixels that are in a set, between 0 and 1.
        baseline: as for :func:`faithfulness_correlation`.
        generator: for the sets, drawn size by size; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), in [-1, 1].

    Raises:
        CamlibTypeError: as for :func:`faithfulness_correlation`, or shares that are no sequence.
        CamlibValueError: as for :func:`faithfulness_correlation`, or there are no shares.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import sensitivity_n
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> sensitivity_n(model, images, torch.rand(2, 64, 64), target=1, samples=4, shares=(0.1, 0.5)).shape
        torch.Size([2])
    """
    return judge_sensitivity_n(
        Trial(Scorer(model, inputs, target, **options), heatmaps),
        samples=samples,
        shares=shares,
        baseline=baseline,
        generator=generator,
    )


def judge_sensitivity_n(
    trial: Trial,
    *,
    samples: int = 20,
    shares: Sequence[float] = SHARES,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`sensitivity_n` of a trial."""
    if isinstance(shares, str) or not isinstance(shares, Sequence):
        raise CamlibTypeError(f"shares must be a sequence of numbers such as (0.1, 0.5), got {shares!r}")
    if not shares:
        raise CamlibValueError("shares is empty; give at least one number between 0 and 1")
    return _correlations(trial, samples, shares, baseline, generator).mean(1)


def _correlations(
    trial: Trial, samples: int, shares: Sequence[float], baseline: Baseline, generator: torch.Generator | None
) -> Tensor:
    """(N, shares), the correlation over sets of each size."""
    if positive_int("samples", samples) < 2:
        raise CamlibValueError("samples must be at least 2, got 1: one pair of numbers has no correlation")
    scorer, own = trial.scorer, own_generator(generator)
    images, pixels = len(scorer.pictures), trial.heatmaps[0].numel()
    sizes = [_size(share, pixels) for share in shares]
    sets = torch.cat([_random_sets(pixels, size, samples, own) for size in sizes]).to(trial.heatmaps.device)
    with full_precision(sets.device):
        # Sets of one size: an offset and a factor cancel in the correlation, and a constant becomes zeros to the bit.
        cells = normalized(trial.heatmaps.flatten(1), "minmax")
        given = cells @ sets.to(cells.dtype).T
    scores = _scores_without(scorer, sets.reshape(-1, 1, *scorer.size), baseline)
    # The clean score cancels, too; without it what is constant but for rounding is seen to be that.
    pairs = (values.reshape(images * len(sizes), samples) for values in (given, -scores))
    return pearson(*pairs).reshape(images, len(sizes))


def _size(share: float, pixels: int) -> int:
    size = round(positive_number("share", share, below=1) * pixels)
    if not 0 < size < pixels:
        raise CamlibValueError(
            f"a share of {share} of {pixels} pixels comes to {'none' if size == 0 else 'all'} of them, so all sets "
            "are the same; take another share"
        )
    return size


def _random_sets(pixels: int, size: int, samples: int, generator: torch.Generator) -> Tensor:
    """(samples, pixels) bool: sets of ``size`` different pixels, each as likely as any other."""
    device = generator.device
    drawn = torch.rand((samples, pixels), generator=generator, device=device, dtype=torch.float64)
    return torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, drawn.topk(size, dim=1).indices, True)


def _scores_without(scorer: Scorer, sets: Tensor, baseline: Baseline) -> Tensor:
    """(N * M,), the scores of each image without the pixels of each of the M sets (M, 1, ...)."""
    image = scorer.image_index.repeat_interleave(len(sets))
    of_row = torch.arange(len(sets), device=sets.device).repeat(len(scorer.pictures))
    instead = baseline_pictures(scorer.pictures, baseline)
    return scorer.scores(image, lambda pictures, rows: torch.where(sets[of_row[rows]], instead[image[rows]], pictures))
