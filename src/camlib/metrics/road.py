"""ROAD: the score without the most, or the least, important pixels, these being imputed (Rong et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError, positive_number
from camlib.inputs.noise import normal, own_generator
from camlib.metrics.imputation import impute
from camlib.metrics.ranking import ranks
from camlib.metrics.scorer import Scorer, Trial

SHARES = (0.2, 0.4, 0.6, 0.8)


def road_most_relevant_first(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""How the score changes when the most important pixels are filled in from the others.

    .. math::
        \frac{1}{|shares|} \sum_{q \in shares} s(\tilde x_q) - s(x)

    where in :math:`\tilde x_q` the round(q P) most important of P pixels are imputed, see
    :func:`camlib.metrics.impute`, and Gaussian noise is added to them, as otherwise the network could tell from their
    smoothness where they are. Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449. Lower is better: the score
    falls without what it rests on.

    Only the order of the pixels counts; ties, of which a ReLU'd map has many, are shuffled.

    ``N (1 + |shares|)`` forward passes of an image. The pixels of a chunk's rows are imputed when it runs, whatever N
    is.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images (N, C, H, W).
        heatmaps: (N, H, W), at the inputs' resolution.
        target: as for :class:`camlib.metrics.Scorer`.
        shares: of the pixels, between 0 and 1; each leaves at least one pixel in place, and one to be imputed.
        noise: standard deviation, in units of the input; 0 adds none. Drawn once for each pixel, channel and share, and
            the same for every image.
        tolerance: as for :func:`camlib.metrics.impute`.
        generator: shuffles ties, then draws the noise; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), between -1 and 1 for probabilities.

    Raises:
        CamlibTypeError: what :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say.
        CamlibValueError: the same; the inputs are no pictures with two sides, ``shares`` are none or leave nothing in
            place or to be imputed, ``noise`` is negative, ``tolerance`` not positive.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import road_most_relevant_first
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> road_most_relevant_first(model, images, torch.rand(2, 64, 64), target=1, shares=[0.3]).shape
        torch.Size([2])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_road_most_relevant_first(trial, shares=shares, noise=noise, tolerance=tolerance, generator=generator)


def judge_road_most_relevant_first(
    trial: Trial,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`road_most_relevant_first` of a trial."""
    counts, order, drawn = _drawn(trial, shares, noise, generator)
    return _change(trial, counts, order, drawn, tolerance)


def road_least_relevant_first(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""How the score changes when the least important pixels are filled in from the others.

    :func:`road_most_relevant_first` from the other end of the same order. Higher is better: the score stays, or rises,
    without what it does not rest on.

    ``N (1 + |shares|)`` forward passes of an image.

    Args:
        model: as for :func:`road_most_relevant_first`.
        inputs: as for :func:`road_most_relevant_first`.
        heatmaps: as for :func:`road_most_relevant_first`.
        target: as for :func:`road_most_relevant_first`.
        shares: as for :func:`road_most_relevant_first`.
        noise: as for :func:`road_most_relevant_first`.
        tolerance: as for :func:`road_most_relevant_first`.
        generator: as for :func:`road_most_relevant_first`.
        **options: as for :func:`road_most_relevant_first`.

    Returns:
        (N,), between -1 and 1 for probabilities.

    Raises:
        CamlibTypeError: as for :func:`road_most_relevant_first`.
        CamlibValueError: as for :func:`road_most_relevant_first`.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import road_least_relevant_first
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> road_least_relevant_first(model, images, torch.rand(2, 64, 64), target=1, shares=[0.3]).shape
        torch.Size([2])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_road_least_relevant_first(trial, shares=shares, noise=noise, tolerance=tolerance, generator=generator)


def judge_road_least_relevant_first(
    trial: Trial,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`road_least_relevant_first` of a trial."""
    counts, order, drawn = _drawn(trial, shares, noise, generator)
    return _change(trial, counts, _reversed(order), drawn, tolerance)


def road_combined(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""Half of what the score falls further without the most important pixels than without the least important.

    .. math::
        \tfrac{1}{2}\,(\mathrm{LeRF} - \mathrm{MoRF})

    the changes of :func:`road_least_relevant_first` and :func:`road_most_relevant_first`, under the same noise; the
    score of the picture as it is cancels. Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449; this combination
    is pytorch-grad-cam's. Higher is better; 0 for an order that says nothing.

    ``N (1 + 2 |shares|)`` forward passes of an image.

    Args:
        model: as for :func:`road_most_relevant_first`.
        inputs: as for :func:`road_most_relevant_first`.
        heatmaps: as for :func:`road_most_relevant_first`.
        target: as for :func:`road_most_relevant_first`.
        shares: as for :func:`road_most_relevant_first`.
        noise: as for :func:`road_most_relevant_first`.
        tolerance: as for :func:`road_most_relevant_first`.
        generator: as for :func:`road_most_relevant_first`.
        **options: as for :func:`road_most_relevant_first`.

    Returns:
        (N,), between -1/2 and 1/2 for probabilities.

    Raises:
        CamlibTypeError: as for :func:`road_most_relevant_first`.
        CamlibValueError: as for :func:`road_most_relevant_first`.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import road_combined
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> road_combined(model, images, torch.rand(2, 64, 64), target=1, shares=[0.3]).shape
        torch.Size([2])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_road_combined(trial, shares=shares, noise=noise, tolerance=tolerance, generator=generator)


def judge_road_combined(
    trial: Trial,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`road_combined` of a trial."""
    counts, order, drawn = _drawn(trial, shares, noise, generator)
    most, least = (_change(trial, counts, way, drawn, tolerance) for way in (order, _reversed(order)))
    return (least - most) / 2


def _drawn(
    trial: Trial, shares: Sequence[float], noise: float, generator: torch.Generator | None
) -> tuple[list[int], Tensor, Tensor]:
    """Return numbers of pixels, their ranks (N, H, W), and the noise (shares, C, H, W); all arguments checked."""
    pictures = trial.scorer.pictures
    if pictures.dim() != 4:
        raise CamlibValueError(
            f"ROAD imputes pictures (N, C, H, W), and the inputs are {tuple(pictures.shape)}; "
            "camlib.metrics.deletion takes any number of sides"
        )
    counts = _counts(shares, math.prod(trial.scorer.size))
    if noise != 0:
        positive_number("noise, where it is not 0,", noise)
    own = own_generator(generator)
    order = ranks(trial.heatmaps, own)
    return counts, order, noise * normal((len(counts), *pictures.shape[1:]), own, pictures)


def _counts(shares: Sequence[float], pixels: int) -> list[int]:
    if not isinstance(shares, Sequence) or not shares:
        raise CamlibValueError(f"shares must be a sequence of numbers, such as (0.2, 0.4), got {shares!r}")
    counts = [round(positive_number("each of the shares", share, below=1) * pixels) for share in shares]
    for share, count in zip(shares, counts, strict=True):
        if not 0 < count < pixels:
            raise CamlibValueError(
                f"a share of {share:g} is {count} of the {pixels} pixels; at least one must be imputed and one stay"
            )
    return counts


def _reversed(order: Tensor) -> Tensor:
    return order[0].numel() - 1 - order


def _change(trial: Trial, counts: list[int], order: Tensor, noise: Tensor, tolerance: float) -> Tensor:
    """Return how the score changes without the first pixels of an order, in the mean over their numbers, (N,)."""
    clean = trial.scorer.clean
    image = trial.scorer.image_index.repeat_interleave(len(counts))
    draw = torch.arange(len(counts), device=order.device).repeat(len(order))
    count = torch.tensor(counts, device=order.device)[draw, None, None]

    def without(pictures: Tensor, rows: slice) -> Tensor:
        gone = order[image[rows]] < count[rows]
        return impute(pictures, ~gone, tolerance=tolerance) + gone[:, None] * noise[draw[rows]]

    scores = trial.scorer.scores(image, without).reshape(len(order), len(counts))
    changes = (scores - clean[:, None]).mean(1)
    return changes.to(torch.result_type(changes, trial.heatmaps))
