"""Is an explanation consistent with what it shows? Coherency, and the means that include it: ADCC and ARCC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.metrics.confidence import average_drop
from camlib.metrics.declaration import metric
from camlib.metrics.readings import Explained, HeatmapCase
from camlib.metrics.road import IMPUTED_SHARES, road_combined
from camlib.metrics.shape import complexity
from camlib.metrics.similarity import pearson


@metric(Explained, "higher", "in [0, 1]")
def coherency(explained: Explained) -> Tensor:
    r"""Does the explanation stay the same when the image is multiplied by its heatmap?

    .. math::
        \frac{1 + \operatorname{corr}(H, H')}{2}, \qquad H = H(x),\; H' = H(x \odot H)

    of the same class, with Pearson's correlation over the pixels. Section 3.2 of Poppi et al. 2021,
    https://arxiv.org/abs/2104.10252. Higher is better: 1 if the heatmap stays the same. The correlation with a constant
    heatmap counts as 0, and its coherency is 0.5.

    2 explanations.
    """
    heatmaps, images = explained.heatmaps, explained.images
    return (1 + pearson(heatmaps, explained.again(images * heatmaps[:, None].to(images)))) / 2


@metric(HeatmapCase, "higher", "in [0, 1]")
def adcc(case: HeatmapCase) -> Tensor:
    r"""ADCC: harmonic mean of coherency, simplicity and the share of the score that is left.

    .. math::
        3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{1 - \text{average drop}}
        \right)^{-1}

    of each image, and 0 if a part is 0; see :func:`camlib.metrics.coherency`, :func:`camlib.metrics.complexity` and
    :func:`camlib.metrics.average_drop`. Equation 7 of Poppi et al. 2021, https://arxiv.org/abs/2104.10252. Higher is
    better.

    2 explanations and ``N`` forward passes of an image; ``2 N`` with ``forward``.
    """
    return _with_coherency_and_simplicity(case, 1 - case.once(average_drop.evaluate))


@metric(HeatmapCase, "higher", "in [0, 1]")
def arcc(
    case: HeatmapCase,
    *,
    shares: Sequence[float] = IMPUTED_SHARES,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""ARCC: as :func:`camlib.metrics.adcc`, with ROAD in place of the average drop.

    .. math::
        3 \left( \frac{1}{\text{coherency}} + \frac{1}{1 - \text{complexity}} + \frac{1}{\text{clip}(2 R, 0, 1)}
        \right)^{-1}

    where R is :func:`camlib.metrics.road_combined`, which is at most 1/2. Average drop scores images multiplied by
    heatmaps, unlike any that the network was trained on; ROAD scores imputed ones. Domeniconi et al., "How to Evaluate
    and Refine your CAM", https://arxiv.org/abs/2605.14641. Higher is better; 0 if the score falls no further without
    the most relevant pixels than without the least relevant.

    2 explanations and ``2 N |shares|`` forward passes of an image; ``N`` more with ``forward``.

    Args:
        shares: as for :func:`camlib.metrics.road_combined`.
        noise: as for :func:`camlib.metrics.road_combined`.
        generator: as for :func:`camlib.metrics.road_combined`.

    Raises:
        CamlibValueError: as for :func:`camlib.metrics.road_combined`.
    """
    road = road_combined.of(case.scored, shares=shares, noise=noise, generator=generator)
    return _with_coherency_and_simplicity(case, (2 * road).clamp(0, 1))


def _with_coherency_and_simplicity(case: HeatmapCase, part: Tensor) -> Tensor:
    return harmonic_mean([case.once(coherency.evaluate), 1 - case.once(complexity.evaluate), part])


def harmonic_mean(parts: Sequence[Tensor]) -> Tensor:
    r"""Return the harmonic mean of M parts, :math:`M (\sum_i 1 / p_i)^{-1}`; 0 if a part is 0.

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
            "comes from a negative score: evaluate by the probability: leave score out"
        )
    return len(table) / table.reciprocal().sum(0)  # the reciprocal of 0 is infinite, and the mean 0
