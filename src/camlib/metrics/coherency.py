"""Does an explanation hold for what it shows? Coherency, and the means that weigh it: ADCC and ARCC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.metrics.confidence import judge_average_drop
from camlib.metrics.road import SHARES, judge_road_combined
from camlib.metrics.robustness import explained, method_of
from camlib.metrics.scorer import Scorer, Trial
from camlib.metrics.shape import complexity
from camlib.metrics.similarity import pearson
from camlib.smoothing import Explainer, bound_target


def coherency(explainer: Explainer, inputs: Any, target: Any = None) -> Tensor:
    r"""Does the explanation stay when the image is multiplied by its heatmap?

    .. math::
        \frac{1 + \operatorname{corr}(H, H')}{2}, \qquad H = H(x),\; H' = H(x \odot H)

    of the same class, with Pearson's correlation over the pixels. Section 3.2 of Poppi et al. 2021,
    https://arxiv.org/abs/2104.10252. Higher is better: 1 where the heatmap stays. Correlation with a heatmap that is
    constant counts as 0, and its coherency is 0.5.

    2 explanations.

    Args:
        explainer: a :class:`camlib.methods.Method` or a smoothing: called as such, it explains.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class of each image.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no explainer, inputs that hold no pictures of floats, or what the explainer says.
        CamlibValueError: there are several classes of each image, or what the explainer says.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import coherency
        >>> coherency(camlib.GradCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """
    return coherency_of(explainer, explained(explainer, inputs, target), inputs, target)


def coherency_of(explainer: Explainer, explanation: Explanation, inputs: Any, target: Any) -> Tensor:
    """Return :func:`coherency` of an explanation that is there already, for one more.

    Args:
        explainer: who explained.
        explanation: of the images as they are, with one map of each.
        inputs: those images.
        target: what was explained, bound or as it was given.
    """
    heatmaps = explanation.heatmaps()
    given = Inputs(inputs)
    pictures = given.floats
    shown = given.with_images(pictures * heatmaps[:, None].to(pictures)).raw
    again = explained(explainer, shown, bound_target(explanation, target))
    return (1 + pearson(heatmaps, again.heatmaps())) / 2


def adcc(explainer: Explainer, inputs: Any, target: Any = None, **options: Any) -> Tensor:
    r"""Weigh coherency, simplicity and what is left of the score: average drop, coherency and complexity, ADCC.

    .. math::
        3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{1 - \text{average drop}}
        \right)^{-1}

    the harmonic mean, of each image, and 0 if a part is 0; see :func:`coherency`, :func:`camlib.metrics.complexity` and
    :func:`camlib.metrics.average_drop`. Equation 7 of Poppi et al. 2021, https://arxiv.org/abs/2104.10252. Higher is
    better.

    2 explanations and ``N`` forward passes of an image; ``2 N`` with a ``forward`` among the options.

    Args:
        explainer: a :class:`camlib.methods.Method` or a smoothing of one, whose model and ``forward`` also give the
            scores.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class of each image; it is explained and, by its
            probability, scored.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no explainer, or one that knows no model; what it or :class:`camlib.metrics.Scorer` says.
        CamlibValueError: there are several classes of each image; scores that are negative; what the explainer or
            :class:`camlib.metrics.Scorer` says.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import adcc
        >>> adcc(camlib.GradCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """
    explanation = explained(explainer, inputs, target)
    trial = _trial(explainer, explanation, inputs, target, options)
    return judge_adcc(trial, coherency_of(explainer, explanation, inputs, target))


def judge_adcc(trial: Trial, coherencies: Tensor) -> Tensor:
    """Return :func:`adcc` of a trial, with the coherency (N,) of its heatmaps."""
    return harmonic_mean([coherencies, 1 - complexity(trial.heatmaps), 1 - judge_average_drop(trial)])


def arcc(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""Weigh as :func:`adcc`, with ROAD in the place of the average drop.

    .. math::
        3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{\text{clip}(2 R, 0, 1)}
        \right)^{-1}

    R being :func:`camlib.metrics.road_combined`, which is at most a half. Average drop asks about pictures that the
    network has never seen the like of, multiplied by heatmaps; ROAD about imputed ones. Domeniconi et al., "How to
    Evaluate and Refine your CAM", https://arxiv.org/abs/2605.14641. Higher is better; 0 where the score falls no less
    without the least relevant pixels than without the most relevant.

    2 explanations and ``2 N shares`` forward passes of an image, shares being how many there are; ``N`` more with a
    ``forward`` among the options.

    Args:
        explainer: as for :func:`adcc`.
        inputs: as for :func:`adcc`.
        target: as for :func:`adcc`.
        shares: as for :func:`camlib.metrics.road_combined`.
        noise: as for :func:`camlib.metrics.road_combined`.
        generator: as for :func:`camlib.metrics.road_combined`.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`adcc` and :func:`camlib.metrics.road_combined`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import arcc
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> arcc(cam, torch.rand(2, 3, 64, 64), shares=(0.5,)).shape
        torch.Size([2])
    """
    explanation = explained(explainer, inputs, target)
    trial = _trial(explainer, explanation, inputs, target, options)
    coherencies = coherency_of(explainer, explanation, inputs, target)
    return judge_arcc(trial, coherencies, shares=shares, noise=noise, generator=generator)


def judge_arcc(
    trial: Trial,
    coherencies: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`arcc` of a trial, with the coherency (N,) of its heatmaps."""
    road = judge_road_combined(trial, shares=shares, noise=noise, generator=generator)
    return harmonic_mean([coherencies, 1 - complexity(trial.heatmaps), (2 * road).clamp(0, 1)])


def harmonic_mean(parts: Sequence[Tensor]) -> Tensor:
    r"""Return the harmonic mean of M parts, :math:`M (\sum_i 1 / p_i)^{-1}`, and 0 where a part is 0.

    Args:
        parts: M tensors (N,), not negative.

    Returns:
        (N,).

    Raises:
        CamlibValueError: a part is negative.

    Example:
        >>> import torch
        >>> harmonic_mean([torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0])])
        tensor([0.6667, 0.0000])
    """
    table = torch.stack(list(parts))
    if bool((table < 0).any()):
        raise CamlibValueError(
            f"parts of a harmonic mean must not be negative, got {float(table.min()):.3g}; an average drop above 1 "
            "comes of a negative score: judge by the probability, leaving score out"
        )
    return len(table) / table.reciprocal().sum(0)  # of a part that is 0 the reciprocal is infinite, and the mean 0


def _trial(explainer: Explainer, explanation: Explanation, inputs: Any, target: Any, options: dict[str, Any]) -> Trial:
    """The heatmaps before a scorer of the explainer's own model, which need not run again on the images as they are."""
    method = method_of(explainer)
    scored = explanation.target if isinstance(explanation.target, Tensor) else target  # whatever of it was explained
    known = {} if "forward" in options else {"forward": method.network.forward, "outputs": explanation.outputs}
    return Trial(Scorer(method.model, inputs, scored, **known | options), explanation.heatmaps())
