"""Infidelity: does the heatmap foretell how the score answers to noise (Yeh et al. 2019)?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.imaging.normalization import as_maps
from camlib.inputs.noise import check_noise, normal, own_generator
from camlib.methods.arithmetic import divided
from camlib.metrics.scorer import Scorer, Trial
from camlib.passes.precision import full_precision


def infidelity(
    model: nn.Module,
    inputs: Any,
    heatmaps: Any,
    target: Any = None,
    *,
    samples: int = 20,
    sigma: float = 0.1,
    perturbations: Any = None,
    normalize: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""How far what the heatmap foretells of small changes is from what they do, squared.

    .. math::
        \frac{1}{S} \sum_{k=1}^{S} (a_k - b_k)^2, \qquad
        a_k = \sum_p H_p \sum_c I_{kcp}, \quad b_k = s(x) - s(x - I_k)

    with :math:`I_{kcp} \sim \mathcal{N}(0, \sigma^2)` for every channel c and pixel p, the same for every image. A
    heatmap has one value for all channels of a pixel, so that their changes are summed. Definition 2.1 of Yeh et al.
    2019, https://arxiv.org/abs/1901.09392. Lower is better: 0 for the gradient of a linear network.

    The heatmap is taken at its word, as a gradient in units of the score: twice the heatmap is another answer. One that
    is scaled to [0, 1] is not in these units; ``normalize=True`` multiplies each image's heatmap by the factor that
    suits it best, as captum does,

    .. math::
        \beta = \frac{\sum_k a_k b_k}{\sum_k a_k^2}

    so that only its shape is judged, and never worse than a heatmap of zeros. Where that is 0/0 it is 1.

    ``N (1 + samples)`` forward passes of an image. All perturbations (samples, C, H, W) are held at once.

    Args:
        model: as for :class:`camlib.metrics.Scorer`.
        inputs: what the model takes, N images.
        heatmaps: (N, H, W), signed or not, at the inputs' resolution; (N, L) of signals, (N, T, H, W) of volumes or
            videos.
        target: as for :class:`camlib.metrics.Scorer`.
        samples: S, how many perturbations are drawn.
        sigma: their standard deviation, in the inputs' units.
        perturbations: (S, C, H, W), those to take instead of drawn ones; ``samples``, ``sigma`` and ``generator`` then
            say nothing.
        normalize: whether each image's heatmap is scaled to fit best.
        generator: for the perturbations; without one, every call draws the same.
        **options: as for :class:`camlib.metrics.Scorer`.

    Returns:
        (N,), not negative, in the score's units squared.

    Raises:
        CamlibTypeError: what :class:`camlib.metrics.Scorer` and :class:`camlib.metrics.Trial` say, or perturbations
            that are no tensor or array of real numbers.
        CamlibValueError: the same, ``samples`` is not a positive int or ``sigma`` not a positive number, or
            perturbations of another shape, or not finite.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import infidelity
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> infidelity(model, images, torch.rand(2, 64, 64), target=1, samples=4, normalize=True).shape
        torch.Size([2])
    """
    return judge_infidelity(
        Trial(Scorer(model, inputs, target, **options), heatmaps),
        samples=samples,
        sigma=sigma,
        perturbations=perturbations,
        normalize=normalize,
        generator=generator,
    )


def judge_infidelity(
    trial: Trial,
    *,
    samples: int = 20,
    sigma: float = 0.1,
    perturbations: Any = None,
    normalize: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return :func:`infidelity` of a trial."""
    scorer = trial.scorer
    shape = tuple(scorer.pictures.shape[1:])
    if perturbations is None:
        check_noise(samples, sigma)
        noise = sigma * normal((samples, *shape), own_generator(generator), scorer.pictures)
    else:
        noise = _checked(perturbations, shape).to(scorer.pictures)
    images, count = len(scorer.pictures), len(noise)
    sample = torch.arange(count, device=noise.device).repeat(images)
    scores = scorer.scores(
        scorer.image_index.repeat_interleave(count), lambda pictures, rows: pictures - noise[sample[rows]]
    )
    lost = (scorer.clean[:, None] - scores.reshape(images, count)).to(trial.heatmaps.device)
    with full_precision(lost.device):
        dtype = torch.promote_types(lost.dtype, trial.heatmaps.dtype)
        foretold = trial.heatmaps.flatten(1).to(dtype) @ noise.to(dtype).sum(1).flatten(1).T
        return ((_fitted(foretold, lost) if normalize else foretold) - lost).square().mean(1)


def _fitted(foretold: Tensor, lost: Tensor) -> Tensor:
    """Scale each row (N, S) to fit best. What it is divided by first cancels, but keeps its squares from underflow."""
    unit = divided(foretold, foretold.abs().amax(1, keepdim=True))
    return unit * divided((unit * lost).mean(1, keepdim=True), unit.square().mean(1, keepdim=True))


def _checked(perturbations: Any, shape: tuple[int, ...]) -> Tensor:
    """Return perturbations (S, C, ...)."""
    found = as_maps(perturbations, "perturbations", dims=1)
    if tuple(found.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("S", *shape)))
        raise CamlibValueError(
            f"perturbations have shape {tuple(found.shape)}; they must be ({wanted}), S changes of a picture that are "
            "taken from every image"
        )
    return found
