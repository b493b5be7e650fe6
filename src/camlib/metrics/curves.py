"""The score while the most important pixels vanish or appear: deletion and insertion (RISE, Petsiuk et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import positive_int
from camlib.metrics.fills import Baseline, baseline_pictures
from camlib.metrics.ranking import ranks
from camlib.metrics.scorer import Scorer, Trial


def deletion(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    steps: int = 28,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""The area under the score while the most important pixels are taken away.

    .. math::
        \sum_{j=1}^{steps} \frac{c_{j-1} + c_j}{2} \cdot \frac{n_j - n_{j-1}}{P}, \qquad
        n_j = \operatorname{round}(j P / steps)

    where c_j is the score of the picture whose n_j most important of P pixels are replaced by the baseline: see
    :func:`deletion_curve`. Petsiuk et al. 2018 (RISE), section 4.2, https://arxiv.org/abs/1806.07421. Lower is better:
    a class vanishes soon with what it rests on.

    Only the order of the pixels counts; ties, of which a ReLU'd map has many, are shuffled.

    ``N (1 + steps)`` forward passes of an image.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W), at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.
        target: as for :class:`camlib.metrics.Scorer`.
        steps: in how many steps all pixels vanish; RISE takes 224 x 8 pixels at a time, which is 28 steps of 224 x 224.
        baseline: what takes their place: "zero" (RISE's choice), "blur", a number or a tensor (C, 1, 1); see
            :func:`camlib.metrics.fills.baseline_pictures`.
        generator: shuffles ties; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), between the lowest and the highest score of the curve.

    Raises:
        CamlibTypeError: ``baseline`` or ``generator`` cannot be understood; what :class:`camlib.metrics.Scorer` says.
        CamlibValueError: ``steps`` is no positive int, or ``baseline`` cannot be broadcast; what
            :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import deletion
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> deletion(model, images, torch.rand(2, 64, 64), target=1, steps=4).shape
        torch.Size([2])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_deletion(trial, steps=steps, baseline=baseline, generator=generator)


def judge_deletion(
    trial: Trial, *, steps: int = 28, baseline: Baseline = "zero", generator: torch.Generator | None = None
) -> Tensor:
    """Return :func:`deletion` of a trial."""
    return _area(trial, judge_deletion_curve(trial, steps=steps, baseline=baseline, generator=generator))


def deletion_curve(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    steps: int = 28,
    baseline: Baseline = "zero",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""The score while the most important pixels are taken away, step by step.

    .. math::
        c_j = s(\text{x with its } n_j \text{ most important pixels at the baseline}), \qquad
        n_j = \operatorname{round}(j P / steps)

    The first is the score of the picture as it is, the last that of the baseline alone. See :func:`deletion`, the area
    under it; the sooner it falls, the better.

    ``N (1 + steps)`` forward passes of an image.

    Args:
        model: as for :func:`deletion`.
        inputs: as for :func:`deletion`.
        heatmaps: as for :func:`deletion`.
        target: as for :func:`deletion`.
        steps: as for :func:`deletion`.
        baseline: as for :func:`deletion`.
        generator: as for :func:`deletion`.
        **options: as for :func:`deletion`.

    Returns:
        (N, steps + 1), in the precision of the scores.

    Raises:
        CamlibTypeError: as for :func:`deletion`.
        CamlibValueError: as for :func:`deletion`.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import deletion_curve
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> deletion_curve(model, images, torch.rand(2, 64, 64), target=1, steps=4).shape
        torch.Size([2, 5])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_deletion_curve(trial, steps=steps, baseline=baseline, generator=generator)


def judge_deletion_curve(
    trial: Trial, *, steps: int = 28, baseline: Baseline = "zero", generator: torch.Generator | None = None
) -> Tensor:
    """Return :func:`deletion_curve` of a trial."""
    absent = baseline_pictures(trial.scorer.pictures, baseline)

    def without(pictures: Tensor, image: Tensor, important: Tensor) -> Tensor:
        return torch.where(important, absent[image], pictures)

    scores = _scores(trial, _counts(trial, steps)[1:], generator, without)
    return torch.cat([trial.scorer.clean[:, None], scores], 1)


def insertion(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    steps: int = 28,
    baseline: Baseline = "blur",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""The area under the score while the most important pixels appear.

    .. math::
        \sum_{j=1}^{steps} \frac{c_{j-1} + c_j}{2} \cdot \frac{n_j - n_{j-1}}{P}, \qquad
        n_j = \operatorname{round}(j P / steps)

    where c_j is the score of the baseline on which the n_j most important of P pixels are shown: see
    :func:`insertion_curve`. Petsiuk et al. 2018 (RISE), section 4.2, https://arxiv.org/abs/1806.07421. Higher is
    better: a class appears soon with what it rests on.

    Only the order of the pixels counts; ties, of which a ReLU'd map has many, are shuffled.

    ``N (1 + steps)`` forward passes of an image.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W), at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.
        target: as for :class:`camlib.metrics.Scorer`.
        steps: in how many steps all pixels appear; RISE takes 224 x 8 pixels at a time, which is 28 steps of 224 x 224.
        baseline: what they appear on: "blur" (RISE's choice, as sharp borders on grey look like something, too),
            "zero", a number or a tensor (C, 1, 1); see :func:`camlib.metrics.fills.baseline_pictures`.
        generator: shuffles ties; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), between the lowest and the highest score of the curve.

    Raises:
        CamlibTypeError: ``baseline`` or ``generator`` cannot be understood; what :class:`camlib.metrics.Scorer` says.
        CamlibValueError: ``steps`` is no positive int, or ``baseline`` cannot be broadcast; what
            :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import insertion
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> insertion(model, images, torch.rand(2, 64, 64), target=1, steps=4).shape
        torch.Size([2])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_insertion(trial, steps=steps, baseline=baseline, generator=generator)


def judge_insertion(
    trial: Trial, *, steps: int = 28, baseline: Baseline = "blur", generator: torch.Generator | None = None
) -> Tensor:
    """Return :func:`insertion` of a trial."""
    return _area(trial, judge_insertion_curve(trial, steps=steps, baseline=baseline, generator=generator))


def insertion_curve(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    steps: int = 28,
    baseline: Baseline = "blur",
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""The score while the most important pixels appear, step by step.

    .. math::
        c_j = s(\text{the baseline with the } n_j \text{ most important pixels of x}), \qquad
        n_j = \operatorname{round}(j P / steps)

    The first is the score of the baseline alone, the last that of the picture as it is. See :func:`insertion`, the area
    under it; the sooner it rises, the better.

    ``N (1 + steps)`` forward passes of an image.

    Args:
        model: as for :func:`insertion`.
        inputs: as for :func:`insertion`.
        heatmaps: as for :func:`insertion`.
        target: as for :func:`insertion`.
        steps: as for :func:`insertion`.
        baseline: as for :func:`insertion`.
        generator: as for :func:`insertion`.
        **options: as for :func:`insertion`.

    Returns:
        (N, steps + 1), in the precision of the scores.

    Raises:
        CamlibTypeError: as for :func:`insertion`.
        CamlibValueError: as for :func:`insertion`.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import insertion_curve
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> insertion_curve(model, images, torch.rand(2, 64, 64), target=1, steps=4).shape
        torch.Size([2, 5])
    """
    trial = Trial(Scorer(model, inputs, target, **options), heatmaps)
    return judge_insertion_curve(trial, steps=steps, baseline=baseline, generator=generator)


def judge_insertion_curve(
    trial: Trial, *, steps: int = 28, baseline: Baseline = "blur", generator: torch.Generator | None = None
) -> Tensor:
    """Return :func:`insertion_curve` of a trial."""
    absent = baseline_pictures(trial.scorer.pictures, baseline)

    def alone(pictures: Tensor, image: Tensor, important: Tensor) -> Tensor:
        return torch.where(important, pictures, absent[image])

    scores = _scores(trial, _counts(trial, steps)[:-1], generator, alone)
    return torch.cat([scores, trial.scorer.clean[:, None]], 1)


def _counts(trial: Trial, steps: int) -> list[int]:
    """Return n_j = round(j P / steps) for j = 0, ..., steps."""
    pixels = math.prod(trial.scorer.size)
    return [round(step * pixels / steps) for step in range(positive_int("steps", steps) + 1)]


def _scores(
    trial: Trial,
    counts: list[int],
    generator: torch.Generator | None,
    change: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the scores (N, counts) of pictures that were changed at that many of their most important pixels.

    Args:
        trial: of the heatmaps.
        counts: how many pixels.
        generator: for :func:`ranks`.
        change: from pictures (r, C, ...), the images (r,) they are of, and a mask (r, 1, ...), to other pictures.
    """
    order = ranks(trial.heatmaps, generator)
    image = trial.scorer.image_index.repeat_interleave(len(counts))
    count = torch.tensor(counts, device=order.device).repeat(len(order))

    def changed(pictures: Tensor, rows: slice) -> Tensor:
        of_rows = order[image[rows]]
        important = of_rows < count[rows].reshape(-1, *[1] * (of_rows.dim() - 1))
        return change(pictures, image[rows], important[:, None])

    return trial.scorer.scores(image, changed).reshape(len(order), len(counts))


def _area(trial: Trial, curve: Tensor) -> Tensor:
    """Return the area (N,) under a curve (N, steps + 1) by trapezoids, over the share of pixels."""
    counts = torch.tensor(_counts(trial, curve.shape[1] - 1), device=curve.device)
    shares = counts.to(torch.result_type(curve, trial.heatmaps)) / counts[-1]
    return torch.trapezoid(curve, shares)
