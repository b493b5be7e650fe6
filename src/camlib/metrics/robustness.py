"""How much an explanation changes when the images change by a little that should not matter.

Here, too, is what all metrics share that re-run the explanation: :func:`explained` and :func:`method_of`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int, positive_number
from camlib.explanation import Explanation
from camlib.inputs import Inputs
from camlib.inputs.noise import own_generator
from camlib.methods.base import Method
from camlib.smoothing import Explainer, Smoothing, bound_target


def max_sensitivity(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How much the heatmap changes at most, when every value of the image changes by at most the radius.

    .. math::
        \max_k \frac{\|H(x + d_k) - H(x)\|_2}{\|H(x)\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    the same :math:`d_k` for every image. Definition 3.1 of Yeh et al. 2019, https://arxiv.org/abs/1901.09392, whose
    maximum over all d is estimated by samples, and by norms as captum does. Lower is better: 0 for a heatmap that no
    such noise changes. Where the heatmap of the image itself is all zeros, its norm counts as 1. The target is bound
    to the outputs of the clean images, and is the same for the noisy ones.

    ``1 + samples`` explanations.

    Args:
        explainer: a :class:`camlib.methods.Method` or a smoothing: called as such, it explains. What it draws at random
            should be the same at every call.
        inputs: what its model takes, N images.
        target: as for :meth:`camlib.methods.Method.__call__`, one class of each image.
        radius: r, in the inputs' units.
        samples: how many noisy copies.
        generator: for the noise; without one, every call draws the same.

    Returns:
        (N,), not negative.

    Raises:
        CamlibTypeError: no explainer, inputs that hold no pictures of floats, or what the explainer says.
        CamlibValueError: ``radius`` is not a positive number or ``samples`` not a positive int, there are several
            classes of each image, or what the explainer says.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import max_sensitivity
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> max_sensitivity(cam, torch.rand(2, 3, 64, 64), samples=3).shape
        torch.Size([2])
    """
    return _relative(_changes(explainer, inputs, target, radius, samples, generator)).amax(0)


def average_sensitivity(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How much the heatmap changes on average, when every value of the image changes by at most the radius.

    .. math::
        \frac{1}{S} \sum_{k=1}^{S} \frac{\|H(x + d_k) - H(x)\|_2}{\|H(x)\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    :func:`max_sensitivity` with the mean in the place of the maximum (Yeh et al. 2019,
    https://arxiv.org/abs/1901.09392; Bhatt et al. 2020, https://arxiv.org/abs/2005.00631). Lower is better.

    ``1 + samples`` explanations.

    Args:
        explainer: as for :func:`max_sensitivity`.
        inputs: as for :func:`max_sensitivity`.
        target: as for :func:`max_sensitivity`.
        radius: as for :func:`max_sensitivity`.
        samples: S, how many noisy copies.
        generator: for the noise; without one, every call draws the same.

    Returns:
        (N,), not negative.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`max_sensitivity`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import average_sensitivity
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> average_sensitivity(cam, torch.rand(2, 3, 64, 64), samples=3).shape
        torch.Size([2])
    """
    return _relative(_changes(explainer, inputs, target, radius, samples, generator)).mean(0)


def lipschitz_estimate(
    explainer: Explainer,
    inputs: Any,
    target: Any = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How steep the explanation is at most: the change of the heatmap by the change of the image.

    .. math::
        \max_k \frac{\|H(x + d_k) - H(x)\|_2}{\|d_k\|_2}, \qquad d_{kcp} \sim \mathcal{U}(-r, r)

    the same :math:`d_k` for every image. Equation 2 of Alvarez-Melis and Jaakkola 2018,
    https://arxiv.org/abs/1806.08049, with samples of the neighbourhood. Lower is better; it grows with the pixels of
    the heatmap and falls with the values of the image, so compare it on images of one size and scale.

    ``1 + samples`` explanations.

    Args:
        explainer: as for :func:`max_sensitivity`.
        inputs: as for :func:`max_sensitivity`.
        target: as for :func:`max_sensitivity`.
        radius: as for :func:`max_sensitivity`.
        samples: as for :func:`max_sensitivity`.
        generator: for the noise; without one, every call draws the same.

    Returns:
        (N,), not negative, per unit of the inputs.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`max_sensitivity`.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import lipschitz_estimate
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> lipschitz_estimate(cam, torch.rand(2, 3, 64, 64), samples=3).shape
        torch.Size([2])
    """
    changes = _changes(explainer, inputs, target, radius, samples, generator)
    return (changes.of_heatmaps / changes.of_images[:, None]).amax(0)


def explained(explainer: Explainer, inputs: Any, target: Any = None) -> Explanation:
    """Return an explanation with one map of each image.

    Args:
        explainer: a :class:`camlib.methods.Method`, a smoothing, or anything that is called like one.
        inputs: what its model takes.
        target: as for :meth:`camlib.methods.Method.__call__`.

    Raises:
        CamlibTypeError: it is no explainer, or returns no explanation.
        CamlibValueError: there are several maps of each image.

    Example:
        >>> import camlib, torch, torchvision
        >>> explained(camlib.GradCAM(torchvision.models.resnet18(num_classes=4)), torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """
    if isinstance(explainer, (type, nn.Module)) or not callable(explainer):
        given = explainer.__name__ if isinstance(explainer, type) else type(explainer).__name__
        raise CamlibTypeError(
            f"explainer must be an explainer such as camlib.GradCAM(model), got {given}; a metric that re-runs the "
            "explanation takes (explainer, inputs, target)"
        )
    explanation = explainer(inputs, target)
    if not isinstance(explanation, Explanation):
        raise CamlibTypeError(
            f"explainer returned a {type(explanation).__name__}; it must return a camlib.Explanation, as "
            "camlib.GradCAM(model) does"
        )
    if explanation.has_class_axis:
        raise CamlibValueError(
            f"a metric judges one heatmap of each image, and the target names {explanation.scores.shape[1]} classes of "
            "each; judge one at a time: target[:, k], and None for the class that the model predicts"
        )
    return explanation


def method_of(explainer: Explainer) -> Method:
    """Return the method that an explainer is, or that a smoothing has inside: the one that knows the model.

    Raises:
        CamlibTypeError: there is none.

    Example:
        >>> import camlib, torchvision
        >>> method_of(camlib.NoiseAveraging(camlib.GradCAM(torchvision.models.resnet18(num_classes=4))))
        GradCAM(ResNet, layer=to be found)
    """
    while isinstance(explainer, Smoothing):
        explainer = explainer.method
    if not isinstance(explainer, Method):
        raise CamlibTypeError(
            f"the metric needs the explainer's model, and a {type(explainer).__name__} is neither a "
            "camlib.methods.Method nor a smoothing of one; give such as camlib.GradCAM(model)"
        )
    return explainer


class _Changes(NamedTuple):
    """Euclidean norms of what noise changes, noise by noise."""

    of_heatmaps: Tensor
    """(samples, N)."""
    heatmaps: Tensor
    """(N,), of the heatmaps themselves."""
    of_images: Tensor
    """(samples,)."""


def _changes(
    explainer: Explainer, inputs: Any, target: Any, radius: float, samples: int, generator: torch.Generator | None
) -> _Changes:
    radius, own = positive_number("radius", radius), own_generator(generator)
    positive_int("samples", samples)
    explanation = explained(explainer, inputs, target)
    bound, heatmaps = bound_target(explanation, target), explanation.heatmaps()
    given = Inputs(inputs)
    pictures = given.floats
    of_heatmaps, of_images = [], []
    for _ in range(samples):
        drawn = torch.rand(pictures.shape[1:], generator=own, device=own.device, dtype=torch.float64)
        step = radius * (2 * drawn - 1)
        changed = explained(explainer, given.with_images(pictures + step.to(pictures)).raw, bound)
        of_heatmaps.append(_norms(changed.heatmaps() - heatmaps))
        of_images.append(step.norm().to(heatmaps))
    return _Changes(torch.stack(of_heatmaps), _norms(heatmaps), torch.stack(of_images))


def _norms(heatmaps: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(heatmaps.flatten(1), dim=1)
    return norms


def _relative(changes: _Changes) -> Tensor:
    """(samples, N)."""
    return changes.of_heatmaps / torch.where(changes.heatmaps == 0, 1, changes.heatmaps)
