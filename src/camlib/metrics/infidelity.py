"""Infidelity: does the heatmap predict how the score responds to noise (Yeh et al. 2019)?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, boolean
from camlib.imaging.normalization import as_maps
from camlib.inputs.noise import check_noise, normal, own_generator
from camlib.methods.arithmetic import divided
from camlib.metrics.declaration import metric
from camlib.metrics.readings import ScoredHeatmaps
from camlib.passes.precision import full_precision


@metric(ScoredHeatmaps, "lower", normalize=True)  # heatmaps in [0, 1] are not in units of the score
def infidelity(
    heatmaps: ScoredHeatmaps,
    *,
    samples: int = 20,
    sigma: float = 0.1,
    perturbations: Any = None,
    normalize: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Squared error of what the heatmap predicts small changes do to the score.

    .. math::
        \frac{1}{S} \sum_{k=1}^{S} (a_k - b_k)^2, \qquad
        a_k = \sum_p H_p \sum_c I_{kcp}, \quad b_k = s(x) - s(x - I_k)

    with :math:`I_{kcp} \sim \mathcal{N}(0, \sigma^2)` for every channel c and pixel p, the same for every image. A
    heatmap has one value for all channels of a pixel, so that their changes are summed. Definition 2.1 of Yeh et al.
    2019, https://arxiv.org/abs/1901.09392. Lower is better: 0 for the gradient of a linear network.

    The heatmap is read as a gradient in units of the score: twice the heatmap has another infidelity. One that is
    scaled to [0, 1] is not in these units; ``normalize=True`` multiplies each image's heatmap by the factor that fits
    best, as captum does and :func:`camlib.evaluate` by default,

    .. math::
        \beta = \frac{\sum_k a_k b_k}{\sum_k a_k^2}

    so that only its shape counts, and it is never worse than a heatmap of zeros. Where that is 0/0 it is 1.

    ``N (1 + samples)`` forward passes of an image. All perturbations (samples, C, H, W) are in memory at once.

    Args:
        heatmaps: (N, H, W), signed or not, at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or
            videos.
        samples: S, how many perturbations are drawn.
        sigma: their standard deviation, in the inputs' units.
        perturbations: (S, C, H, W), used instead of drawn ones; ``samples``, ``sigma`` and ``generator`` then have no
            effect.
        normalize: whether each image's heatmap is scaled to fit best.
        generator: for the perturbations; without one, every call draws the same.

    Returns:
        (N,), not negative, in the score's units squared.

    Raises:
        CamlibTypeError: perturbations that are not a tensor or array of real numbers.
        CamlibValueError: ``samples`` is not a positive int, ``sigma`` is not a positive number, or perturbations of
            another shape, or not finite.
    """
    boolean("normalize", normalize)
    scorer = heatmaps.scorer
    shape = tuple(scorer.images.shape[1:])
    if perturbations is None:
        check_noise(samples, sigma)
        noise = sigma * normal((samples, *shape), own_generator(generator), scorer.images)
    else:
        noise = _checked(perturbations, shape).to(scorer.images)
    scores = scorer.scores_of_variants(len(noise), lambda images, _, sample: images - noise[sample])
    lost = (scorer.clean[:, None] - scores).to(heatmaps.values.device)
    with full_precision(lost.device):
        dtype = torch.promote_types(lost.dtype, heatmaps.values.dtype)
        predicted = heatmaps.values.flatten(1).to(dtype) @ noise.to(dtype).sum(1).flatten(1).T
        return ((_fitted(predicted, lost) if normalize else predicted) - lost).square().mean(1)


def _fitted(predicted: Tensor, lost: Tensor) -> Tensor:
    """Scale each row (N, S) to fit best. The first divisor cancels; it keeps the squares from underflow."""
    unit = divided(predicted, predicted.abs().amax(1, keepdim=True))
    return unit * divided((unit * lost).mean(1, keepdim=True), unit.square().mean(1, keepdim=True))


def _checked(perturbations: Any, shape: tuple[int, ...]) -> Tensor:
    """Return perturbations (S, C, ...)."""
    found = as_maps(perturbations, "perturbations", dims=1)
    if tuple(found.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("S", *shape)))
        raise CamlibValueError(
            f"perturbations have shape {tuple(found.shape)}; they must be ({wanted}), S changes that are "
            "subtracted from every image"
        )
    return found
