"""KPCA-CAM (Karmani et al. 2024, https://arxiv.org/abs/2410.00267)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, boolean, positive_number
from camlib.methods.arithmetic import centered, check_alike, divided, eigenvectors
from camlib.methods.base import ActivationMethod
from camlib.methods.eigen_cam import towards
from camlib.passes.numbers import single_or_double

KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": lambda x, gamma: torch.exp(-gamma * torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2),
    "sigmoid": lambda x, gamma: torch.tanh(gamma * (x @ x.mT) + 1),
    "linear": lambda x, gamma: x @ x.mT,
}
"""Kernel matrices (N, positions, positions) of features (N, positions, C), given gamma."""
MOST_POSITIONS = 2**14
"""The most positions of a map."""


Gamma = float | Literal["1/C"] | None
"""A number, one over the number of channels, or None."""


def kpca_cam(activations: Tensor, kernel: str = "rbf", gamma: Gamma = None, *, center: bool = False) -> Tensor:
    r"""Return the first kernel principal component of the positions' features: :math:`\sqrt{\lambda_1} u_1`.

    :math:`u_1` is the first eigenvector of the kernel matrix between positions, centred in feature space. The sign is
    the one that correlates positively with the mean activation of the channels.

    Args:
        activations: (N, C, ...).
        kernel: "rbf": :math:`e^{-\gamma |x - y|^2}`, "sigmoid": :math:`\tanh(\gamma x \cdot y + 1)`, or "linear",
            which is centred EigenCAM.
        gamma: by default one over the variance of the image's features, summed over the channels: the average squared
            distance between two positions is then 2 / gamma, regardless of the scale of the features. "1/C" for one
            over the number of channels.
        center: whether to subtract each channel's mean over the positions first, which changes the "sigmoid" kernel.

    Returns:
        (N, ...), signed.

    Raises:
        CamlibTypeError: ``gamma`` is not a number, or ``center`` not a bool.
        CamlibValueError: ``kernel`` is unknown, ``gamma`` is not positive and finite, or there are more than 16384
            positions, whose kernel matrix would take gigabytes and hours.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.kpca_cam(torch.tensor([[[[3.0, 1.0]]]]), "linear").round(decimals=3)
        tensor([[[ 1., -1.]]])
    """
    check_alike(activations)
    _check(kernel, gamma)
    activations = centered(activations) if boolean("center", center) else activations
    gamma = 1 / activations.shape[1] if isinstance(gamma, str) else gamma
    features = single_or_double(activations).flatten(2).transpose(1, 2)
    if features.shape[1] > MOST_POSITIONS:
        raise CamlibValueError(
            f"KPCA-CAM compares every two of the map's positions, and {tuple(activations.shape[2:])} are more than "
            f"{MOST_POSITIONS}; choose a layer with a smaller grid, or camlib.EigenCAM"
        )
    if gamma is None and kernel != "linear":
        features, gamma = _of_unit_variance(features), 1
    matrix = KERNELS[kernel](features, gamma or 1)
    rounding = 16 * torch.finfo(matrix.dtype).eps * matrix.shape[1] * matrix.abs().amax((1, 2), keepdim=True)
    matrix = matrix - matrix.mean(1, keepdim=True) - matrix.mean(2, keepdim=True) + matrix.mean((1, 2), keepdim=True)
    values, vectors = eigenvectors(matrix)
    leading = values[..., -1:]  # only rounding if all features are the same; its square root would be visible
    component = vectors[..., -1] * torch.where(leading > rounding[..., 0], leading, 0).sqrt()
    return towards(component.reshape(activations.shape[0], *activations.shape[2:]), activations)


def _check(kernel: str, gamma: Gamma) -> None:
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise CamlibValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if gamma is not None and not (isinstance(gamma, str) and gamma == "1/C"):
        positive_number('gamma, if not None or "1/C",', gamma)


def _of_unit_variance(features: Tensor) -> Tensor:
    """Divide each image's features (N, positions, C) by the square root of their variance, summed over the channels."""
    scaled = divided(features, features.abs().amax((1, 2), keepdim=True))  # otherwise squares under- or overflow
    variance = centered(scaled.mT).square().mean(2).sum(1)
    return divided(scaled, variance.sqrt()[:, None, None])


class KPCACAM(ActivationMethod):
    """KPCA-CAM: EigenCAM for nonlinear patterns of the features.

    See :func:`camlib.functional.kpca_cam` for the equation; Karmani et al. 2024, https://arxiv.org/abs/2410.00267.
    ``KPCACAM(model, kernel="sigmoid", gamma="1/C", center=True)`` is the authors' code, which is also in grad-cam; but
    the sign is arbitrary there. The sigmoid kernel saturates where activations are large.

    One forward pass, no gradient: the same map for every target. Memory grows with the square of the number of
    positions, time with its third power.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        kernel: as for :func:`camlib.functional.kpca_cam`.
        gamma: as for :func:`camlib.functional.kpca_cam`.
        center: as for :func:`camlib.functional.kpca_cam`.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`camlib.functional.kpca_cam`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.KPCACAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "kpca_cam"

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        *,
        kernel: str = "rbf",
        gamma: Gamma = None,
        center: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        _check(kernel, gamma)
        self.center = boolean("center", center)
        self.kernel = kernel
        self.gamma = gamma

    def maps(self, activations: Tensor) -> Tensor:
        """Return :func:`camlib.functional.kpca_cam`."""
        return kpca_cam(activations, self.kernel, self.gamma, center=self.center)
