"""EigenCAM and its weighted forms: what the features have in common, by their first principal component."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import boolean
from camlib.methods.arithmetic import centered, check_alike, divided, eigenvectors
from camlib.methods.base import ActivationMethod, GradientMethod
from camlib.passes.numbers import single_or_double


def principal_projection(features: Tensor, center: bool = False) -> Tensor:
    """Project each image's features, a matrix of positions by channels, onto its first right-singular vector.

    The vector comes from the smaller of the two Gram matrices, never from a full decomposition. It is unique up to
    its sign, unless the two largest singular values are equal.

    Args:
        features: (N, C, ...).
        center: whether to subtract each channel's mean over the positions first.

    Returns:
        (N, ...), signed; the overall sign is arbitrary.

    Raises:
        CamlibValueError: the features are not finite.

    Example:
        >>> import torch
        >>> principal_projection(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])).abs()
        tensor([[[5., 0.]]])
    """
    features = single_or_double(features)
    matrix = (centered(features) if center else features).flatten(2).transpose(1, 2)  # (N, positions, C)
    largest = matrix.abs().amax((1, 2), keepdim=True)
    scaled = divided(matrix, largest)  # squares of very small or large features would under- or overflow
    if scaled.shape[1] <= scaled.shape[2]:
        values, vectors = eigenvectors(scaled @ scaled.mT)
        projection = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
    else:
        _, vectors = eigenvectors(scaled.mT @ scaled)
        projection = torch.einsum("npc,nc->np", scaled, vectors[..., -1])
    maps: Tensor = (projection * largest[..., 0]).reshape(features.shape[0], *features.shape[2:])
    return maps


def towards(projection: Tensor, features: Tensor) -> Tensor:
    """Give each projection (N, ...) the sign that correlates positively with the mean channel of (N, C, ...).

    If one of them is constant up to rounding, the projection's extreme of larger magnitude becomes positive. After a
    LayerNorm, for example, the mean of the channels is zero. A projection that does not change its sign has a
    level, which gets the sign of the mean channel's level: evidence that is positive everywhere stays so.
    """
    correlation = torch.linalg.vecdot(_deviations(projection[:, None]), _deviations(features))
    extreme = _larger_extreme(projection)
    decides = torch.where(correlation == 0, extreme, correlation)
    cells = projection.flatten(1)
    rounding = 16 * torch.finfo(cells.dtype).eps * cells.abs().amax(1)
    of_one_sign = (torch.minimum(cells.amax(1), -cells.amin(1)) <= rounding) & (correlation != 0)
    return with_sign(projection, torch.where(of_one_sign, extreme.sign() * features.flatten(1).mean(1).sign(), decides))


def with_positive_mass(projection: Tensor, features: Tensor) -> Tensor:
    """Give each projection (N, ...) of features (N, C, ...) the sign with which its sum is positive.

    The first vector of features that are not negative has one sign, so this is the sign with which the projection is
    not negative either. Where the features are signed, at least half of the projection remains after a ReLU. A sum that
    is zero up to rounding, as of centred features, has no sign: :func:`towards` then decides.
    """
    cells = features.flatten(2)
    largest = cells.abs().amax((1, 2))
    mass = divided(projection.flatten(1), largest[:, None]).sum(1)
    sizes = torch.linalg.vector_norm(divided(cells, largest[:, None, None]), dim=1).sum(1)
    decided = mass.abs() > 16 * torch.finfo(mass.dtype).eps * sizes
    keep = decided.reshape(-1, *[1] * (projection.dim() - 1))
    return torch.where(keep, with_sign(projection, mass), towards(projection, features))


def _deviations(features: Tensor) -> Tensor:
    """Deviations of the mean channel from its mean, (N, positions), scaled so that they neither under- nor overflow.

    They are zero if they are within the rounding of the features.
    """
    cells = features.flatten(2)
    channel = divided(cells, cells.abs().amax((1, 2), keepdim=True)).mean(1)
    rounding = 16 * torch.finfo(channel.dtype).eps
    constant = channel.amax(1, keepdim=True) - channel.amin(1, keepdim=True) <= rounding
    return (channel - channel.mean(1, keepdim=True)).masked_fill(constant, 0)


def _larger_extreme(projection: Tensor) -> Tensor:
    """Return numbers (N,) with the sign of each projection's value of largest magnitude."""
    flat = projection.flatten(1)
    return flat.amin(1) + flat.amax(1)


def with_sign(projection: Tensor, decides: Tensor) -> Tensor:
    """Return the projection (N, ...), negated where ``decides`` (N,) is negative."""
    sign = torch.where(decides < 0, -1.0, 1.0).to(projection.dtype)
    return projection * sign.reshape(-1, *[1] * (projection.dim() - 1))


def eigen_cam(activations: Tensor, center: bool = False) -> Tensor:
    r"""Project the activations onto their first right-singular vector: :math:`A v_1 = \sigma_1 u_1`.

    Muhammad and Yeasin 2020, section III. The paper fixes no sign, and a decomposition may return either. Here the sum
    of the map is positive: the map is high where the dominant pattern of the features is strong, and a ReLU never
    removes all of it. With ``center=True`` the sum is zero, and the map correlates positively with the mean activation
    of the channels.

    Args:
        activations: (N, C, ...).
        center: whether to subtract each channel's mean first, as grad-cam does and the paper does not.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.eigen_cam(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]]))
        tensor([[[5., 0.]]])
    """
    check_alike(activations)
    projection = principal_projection(activations, boolean("center", center))
    return towards(projection, activations) if center else with_positive_mass(projection, activations)


class EigenCAM(ActivationMethod):
    """EigenCAM: where the dominant pattern of the features is, regardless of the class.

    See :func:`camlib.functional.eigen_cam` for the equation; Muhammad and Yeasin 2020, https://arxiv.org/abs/2008.00299.

    The paper has no final ReLU; ``relu=False`` leaves it out. It changes nothing where activations are not negative.

    One forward pass, no gradient: the same map for every target.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        center: as for :func:`camlib.functional.eigen_cam`.
        **options: as for :class:`camlib.methods.Method`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.EigenCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "eigen_cam"

    def __init__(self, model: Any, layer: Any = None, *, center: bool = False, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.center = boolean("center", center)

    def maps(self, activations: Tensor) -> Tensor:
        """Return :func:`camlib.functional.eigen_cam`."""
        return eigen_cam(activations, self.center)


def eigen_grad_cam(activations: Tensor, gradients: Tensor, center: bool = False) -> Tensor:
    r"""Project activation times gradient onto its first right-singular vector: EigenCAM of :math:`G \odot A`.

    The sign is the one that correlates positively with the mean of the products over the channels.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.
        center: whether to subtract each channel's mean first, as grad-cam does.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> activations, gradients = torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> camlib.functional.eigen_grad_cam(activations, gradients)
        tensor([[[6., 0.]]])
    """
    check_alike(activations, gradients=gradients)
    products = gradients * activations
    return towards(principal_projection(products, boolean("center", center)), products)


class EigenGradCAM(GradientMethod):
    """Eigen-Grad-CAM: the dominant pattern of the features' contributions to the class.

    See :func:`camlib.functional.eigen_grad_cam` for the equation; after Muhammad and Yeasin 2020,
    https://arxiv.org/abs/2008.00299, with the features weighted by their gradients.

    One forward pass and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        center: as for :func:`camlib.functional.eigen_grad_cam`.
        **options: as for :class:`camlib.methods.Method`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.EigenGradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "eigen_grad_cam"

    def __init__(self, model: Any, layer: Any = None, *, center: bool = False, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.center = boolean("center", center)

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.eigen_grad_cam`."""
        return eigen_grad_cam(activations, gradients, self.center)


def seg_eigen_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Project :math:`|G| \odot A` onto its first right-singular vector, with its larger extreme made positive.

    Chung and Ying 2025, equations 10 to 13: the magnitude of the gradient says where something matters, for or
    against. The sign is flipped if the projection's minimum is larger in magnitude than its maximum.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.seg_eigen_cam(torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[-2.0, 0.0]]]]))
        tensor([[[6., 0.]]])
    """
    check_alike(activations, gradients=gradients)
    projection = principal_projection(gradients.abs() * activations)
    return with_sign(projection, _larger_extreme(projection))


class SegEigenCAM(GradientMethod):
    """Seg-Eigen-CAM: EigenCAM for segmentation, weighted by the magnitude of the gradients.

    See :func:`camlib.functional.seg_eigen_cam` for the equation; Chung and Ying 2025,
    https://doi.org/10.3390/app15137562. It was designed for :class:`camlib.targets.Region`, but takes any target.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.SegEigenCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "seg_eigen_cam"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.seg_eigen_cam`."""
        return seg_eigen_cam(activations, gradients)
