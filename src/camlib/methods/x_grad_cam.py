"""XGrad-CAM (Fu et al. 2020, https://arxiv.org/abs/2008.02312)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from camlib.methods.arithmetic import check_alike, divided, over_channels
from camlib.methods.base import GradientMethod


def x_grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Weight each channel by its mean gradient, weighted at each position by that position's share of the activation.

    .. math:: w_k = \sum_{ij} \frac{A_{kij}}{\sum_{ab} A_{kab}} G_{kij}, \quad 0 \text{ where } \sum A_k = 0

    Equation 7 of the paper. If the gradient of a channel is constant, as on pool + linear heads, this is Grad-CAM.
    Signed activations make it ill-conditioned: their sum may be nearly zero.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.x_grad_cam(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, 0.0]]]]))
        tensor([[[1., 3.]]])
    """
    check_alike(activations, gradients=gradients)
    weights = divided((activations * gradients).flatten(2).sum(2), activations.flatten(2).sum(2))
    return over_channels(weights, activations)


class XGradCAM(GradientMethod):
    """XGrad-CAM: weights chosen so that removing a channel changes the map's sum as it changes the score.

    See :func:`camlib.functional.x_grad_cam` for the equation; Fu et al. 2020, https://arxiv.org/abs/2008.02312.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.XGradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "x_grad_cam"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.x_grad_cam`."""
        return x_grad_cam(activations, gradients)
