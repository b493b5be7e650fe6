"""Grad-CAM++ (Chattopadhyay et al. 2018, https://arxiv.org/abs/1710.11063)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from camlib.methods.arithmetic import check_alike, divided, over_channels, per_channel
from camlib.methods.base import GradientMethod


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Weight each channel by its positive gradients, each divided by how many positions share the evidence.

    .. math:: w_k = \sum_{ij} \frac{\operatorname{ReLU}(G_{kij})}{2 + G_{kij} \sum_{ab} A_{kab}}

    This is equation 19 of the paper with the exponential of the score, whose derivatives are
    :math:`e^s G, e^s G^2, e^s G^3` on a piecewise linear tail. The powers cancel, so nothing can underflow. It was
    derived for :math:`A \ge 0`; for signed activations there is a pole at :math:`G \sum A = -2`.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), signed where activations are.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.grad_cam_plus_plus(torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, -1.0]]]]))
        tensor([[[0.2500, 0.2500]]])
    """
    check_alike(activations, gradients=gradients)
    shared = 2 + gradients * per_channel(activations.flatten(2).sum(2), activations)
    weights = divided(gradients.relu(), shared).flatten(2).sum(2)
    return over_channels(weights, activations)


class GradCAMPlusPlus(GradientMethod):
    """Grad-CAM++: several instances of a class have the same weight, large or small.

    See :func:`camlib.functional.grad_cam_plus_plus` for the equation; Chattopadhyay et al. 2018,
    https://arxiv.org/abs/1710.11063. Unlike Grad-CAM it is not homogeneous: scaling the logits changes the map. As
    the logits shrink to zero, the weights become the means of the positive gradients.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAMPlusPlus(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "grad_cam_plus_plus"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.grad_cam_plus_plus`."""
        return grad_cam_plus_plus(activations, gradients)
