"""How much of the score is left of a picture that only its heatmap shows (Chattopadhyay et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.metrics.scorer import Scorer, Trial
from camlib.targets.base import image_list


def average_drop(model: nn.Module, inputs: Any, heatmaps: Any, target: Any = None, **options: Any) -> Tensor:
    r"""How much of the score is lost when the picture is multiplied by its heatmap, as a share of the score.

    .. math::
        \frac{\max(0,\; Y - O)}{Y}, \qquad Y = s(x),\; O = s(x \odot H)

    Chattopadhyay et al. 2018 (Grad-CAM++), https://arxiv.org/abs/1710.11063, section 4.1; they report the mean over
    images in per cent. Lower is better: 0 where nothing is lost, 1 where all is.

    It favours heatmaps that show much: a heatmap of ones loses nothing. :func:`camlib.metrics.adcc` weighs that against
    how much is shown.

    ``2 N`` forward passes of an image.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W) in [0, 1], at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.
        target: as for :class:`camlib.metrics.Scorer`.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), in [0, 1] where scores are positive.

    Raises:
        CamlibTypeError: what :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say.
        CamlibValueError: the same, the heatmaps are not in [0, 1], or the score of an image as it is is not positive.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import average_drop
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> average_drop(model, images, torch.rand(2, 64, 64), target=1).shape
        torch.Size([2])
    """
    return judge_average_drop(Trial(Scorer(model, inputs, target, **options), heatmaps))


def judge_average_drop(trial: Trial) -> Tensor:
    """Return :func:`average_drop` of a trial."""
    clean = trial.scorer.clean
    if bool((clean <= 0).any()):
        raise CamlibValueError(
            f"the score of {image_list(clean <= 0)} is {float(clean.min()):.3g}, of which no share can be lost; judge "
            "by the probability (leave score out and give a class as the target), of a class that is not ruled out"
        )
    drop = (clean - trial.masked).clamp(min=0) / clean
    return drop.to(torch.result_type(drop, trial.heatmaps))


def average_increase(model: nn.Module, inputs: Any, heatmaps: Any, target: Any = None, **options: Any) -> Tensor:
    r"""Whether the score rises when the picture is multiplied by its heatmap: "increase in confidence".

    .. math::
        [\,s(x \odot H) > s(x)\,]

    Chattopadhyay et al. 2018 (Grad-CAM++), https://arxiv.org/abs/1710.11063, section 4.1; they report the mean over
    images in per cent. Higher is better. An equal score is no increase.

    ``2 N`` forward passes of an image.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W) in [0, 1], at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or videos.
        target: as for :class:`camlib.metrics.Scorer`.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), 1 or 0.

    Raises:
        CamlibTypeError: what :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say.
        CamlibValueError: the same, or the heatmaps are not in [0, 1].

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import average_increase
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> set(average_increase(model, images, torch.rand(2, 64, 64), target=1).tolist()) <= {0.0, 1.0}
        True
    """
    return judge_average_increase(Trial(Scorer(model, inputs, target, **options), heatmaps))


def judge_average_increase(trial: Trial) -> Tensor:
    """Return :func:`average_increase` of a trial."""
    clean = trial.scorer.clean
    return (trial.masked > clean).to(torch.result_type(clean, trial.heatmaps))
