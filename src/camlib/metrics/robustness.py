"""How much an explanation changes when the images change by an amount that should not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int, positive_number
from camlib.explanation import Explanation
from camlib.inputs.noise import own_generator
from camlib.metrics.declaration import after, metric
from camlib.metrics.readings import Explained

Perturb = Callable[[Tensor, torch.Generator], Tensor]
"""From images (N, C, ...) and a generator to changed images."""


class Changes(NamedTuple):
    """Euclidean norms of the changes that noise causes."""

    of_heatmaps: Tensor
    """(samples, N)."""
    heatmaps: Tensor
    """(N,), of the heatmaps themselves."""
    of_images: Tensor
    """(samples, N)."""

    def relative(self) -> Tensor:
        """Return the changes (samples, N) of the heatmaps as shares of their norms."""
        return self.of_heatmaps / torch.where(self.heatmaps == 0, 1, self.heatmaps)


def with_noise(
    explained: Explained,
    *,
    radius: float = 0.02,
    samples: int = 10,
    perturb: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Changes:
    """Explain noisy copies of the images.

    Args:
        radius: r, in the inputs' units; not used with ``perturb``.
        samples: S, how many noisy copies.
        perturb: what changes the images in place of the noise, such as brightness or compression: a function of the
            images (N, C, ...) and a generator, from which it draws what is random, to images of the same shape.
        generator: for the noise; without one, every call draws the same.

    Raises:
        CamlibTypeError: ``perturb`` is no function, or returns no tensor of floats.
        CamlibValueError: ``radius`` is not a positive number, or ``samples`` not a positive int; ``perturb`` returns
            another shape, or values that are not finite.
    """
    heatmaps, of_heatmaps, of_images = explained.heatmaps, [], []
    for step, noisy in explanations_with_noise(explained, radius, samples, generator, perturb):
        of_heatmaps.append(norms(noisy.heatmaps() - heatmaps))
        of_images.append(norms(step.expand(explained.images.shape)).to(heatmaps))
    return Changes(torch.stack(of_heatmaps), norms(heatmaps), torch.stack(of_images))


@metric(Explained, "lower", "not negative")
@after(with_noise)
def max_sensitivity(changes: Changes) -> Tensor:
    r"""Largest change of the heatmap when every value of the image changes by at most the radius.

    .. math::
        \max_k \frac{\|H(x + d_k) - H(x)\|_2}{\|H(x)\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    with the same :math:`d_k` for every image. Definition 3.1 of Yeh et al. 2019, https://arxiv.org/abs/1901.09392; the
    maximum over all d is estimated from samples, with captum's norms. Lower is better: 0 for a heatmap that no such
    noise changes. If the heatmap of the image itself is all zeros, its norm counts as 1. The noisy images are explained
    for the class of the images as they are.

    ``1 + samples`` explanations.
    """
    return changes.relative().amax(0)


@metric(Explained, "lower", "not negative")
@after(with_noise)
def average_sensitivity(changes: Changes) -> Tensor:
    r"""Mean change of the heatmap when every value of the image changes by at most the radius.

    .. math::
        \frac{1}{S} \sum_{k=1}^{S} \frac{\|H(x + d_k) - H(x)\|_2}{\|H(x)\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    :func:`camlib.metrics.max_sensitivity` with the mean in place of the maximum (Yeh et al. 2019,
    https://arxiv.org/abs/1901.09392; Bhatt et al. 2020, https://arxiv.org/abs/2005.00631). Lower is better.

    ``1 + samples`` explanations.
    """
    return changes.relative().mean(0)


@metric(Explained, "lower", "not negative, per unit of the inputs; NaN where no copy differs")
@after(with_noise)
def lipschitz_estimate(changes: Changes) -> Tensor:
    r"""Largest ratio of the change of the heatmap to the change of the image.

    .. math::
        \max_k \frac{\|H(x + d_k) - H(x)\|_2}{\|d_k\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    with the same :math:`d_k` for every image. Equation 2 of Alvarez-Melis and Jaakkola 2018,
    https://arxiv.org/abs/1806.08049, with samples of the neighbourhood. Lower is better; it grows with the pixels of
    the heatmap and falls with the values of the image, so compare it on images of one size and scale. Copies that
    ``perturb`` left unchanged do not count; NaN if none changed.

    ``1 + samples`` explanations.
    """
    return largest_ratio(changes.of_heatmaps, changes.of_images)


def explanations_with_noise(
    explained: Explained,
    radius: float,
    samples: int,
    generator: torch.Generator | None,
    perturb: Perturb | None = None,
) -> Iterator[tuple[Tensor, Explanation]]:
    """Yield changes in double precision, with the explanation of the changed images, of the same classes.

    The changes are noise (C, ...), the same for all images, or (N, C, ...) by ``perturb``.
    """
    radius, own = positive_number("radius", radius), own_generator(generator)
    images = explained.images
    for _ in range(positive_int("samples", samples)):
        if perturb is None:
            drawn = torch.rand(images.shape[1:], generator=own, device=own.device, dtype=torch.float64)
            step = radius * (2 * drawn - 1)
            changed = images + step.to(images)
        else:
            changed = _perturbed(images, perturb, own)
            step = changed.double() - images.detach().double()
        yield step, explained.explain_again(changed)


def _perturbed(images: Tensor, perturb: Perturb, generator: torch.Generator) -> Tensor:
    if isinstance(perturb, type) or not callable(perturb):
        raise CamlibTypeError(
            f"perturb must be a function of images and a generator, got {type(perturb).__name__}: {perturb!r}"
        )
    changed = perturb(images.detach().clone(), generator)
    if not isinstance(changed, Tensor) or not changed.is_floating_point():
        given = str(changed.dtype) if isinstance(changed, Tensor) else type(changed).__name__
        raise CamlibTypeError(f"perturb returned {given}; it must return a tensor of floats, the changed images")
    if changed.shape != images.shape:
        raise CamlibValueError(
            f"perturb returned images of shape {tuple(changed.shape)}; they must keep that of the images, "
            f"{tuple(images.shape)}, since their heatmaps are compared pixel by pixel"
        )
    if not bool(changed.isfinite().all()):
        raise CamlibValueError("perturb returned NaN or infinity; return finite images")
    return changed.detach().to(images)


def largest_ratio(of_heatmaps: Tensor, of_images: Tensor) -> Tensor:
    """Return the largest ratio (N,) of changes (samples, N), of the copies that differ; NaN where none does."""
    differs = of_images > 0
    ratios = (of_heatmaps / of_images.where(differs, 1)).masked_fill(~differs, -torch.inf)
    return ratios.amax(0).masked_fill(~differs.any(0), torch.nan)


def norms(values: Tensor, order: float = 2) -> Tensor:
    """Return the norm (N,) of each image's values (N, ...), by default the Euclidean one."""
    found: Tensor = torch.linalg.vector_norm(values.flatten(1), order, dim=1)
    return found
