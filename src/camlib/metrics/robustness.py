"""How much an explanation changes when the images change by an amount that should not matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from camlib.errors import positive_int, positive_number
from camlib.explanation import Explanation
from camlib.inputs.noise import own_generator
from camlib.metrics.declaration import after, metric
from camlib.metrics.readings import Explained


class Changes(NamedTuple):
    """Euclidean norms of the changes that noise causes."""

    of_heatmaps: Tensor
    """(samples, N)."""
    heatmaps: Tensor
    """(N,), of the heatmaps themselves."""
    of_images: Tensor
    """(samples,)."""

    def relative(self) -> Tensor:
        """Return the changes (samples, N) of the heatmaps as shares of their norms."""
        return self.of_heatmaps / torch.where(self.heatmaps == 0, 1, self.heatmaps)


def with_noise(
    explained: Explained, *, radius: float = 0.02, samples: int = 10, generator: torch.Generator | None = None
) -> Changes:
    """Explain noisy copies of the images.

    Args:
        radius: r, in the inputs' units.
        samples: S, how many noisy copies.
        generator: for the noise; without one, every call draws the same.

    Raises:
        CamlibValueError: ``radius`` is not a positive number, or ``samples`` not a positive int.
    """
    heatmaps, of_heatmaps, of_images = explained.heatmaps, [], []
    for step, noisy in explanations_with_noise(explained, radius, samples, generator):
        of_heatmaps.append(norms(noisy.heatmaps() - heatmaps))
        of_images.append(step.norm().to(heatmaps))
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


@metric(Explained, "lower", "not negative, per unit of the inputs")
@after(with_noise)
def lipschitz_estimate(changes: Changes) -> Tensor:
    r"""Largest ratio of the change of the heatmap to the change of the image.

    .. math::
        \max_k \frac{\|H(x + d_k) - H(x)\|_2}{\|d_k\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    with the same :math:`d_k` for every image. Equation 2 of Alvarez-Melis and Jaakkola 2018,
    https://arxiv.org/abs/1806.08049, with samples of the neighbourhood. Lower is better; it grows with the pixels of
    the heatmap and falls with the values of the image, so compare it on images of one size and scale.

    ``1 + samples`` explanations.
    """
    return (changes.of_heatmaps / changes.of_images[:, None]).amax(0)


def explanations_with_noise(
    explained: Explained, radius: float, samples: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Explanation]]:
    """Yield noise (C, ...) in double precision, with the explanation of the images with it, of the same classes."""
    radius, own = positive_number("radius", radius), own_generator(generator)
    images = explained.images
    for _ in range(positive_int("samples", samples)):
        drawn = torch.rand(images.shape[1:], generator=own, device=own.device, dtype=torch.float64)
        step = radius * (2 * drawn - 1)
        yield step, explained.explain_again(images + step.to(images))


def norms(values: Tensor) -> Tensor:
    """Return the Euclidean norm (N,) of each image's values (N, ...)."""
    found: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return found
