"""HiResCAM (Draelos and Carin 2020, https://arxiv.org/abs/2011.08891), and its variant with element-wise ReLU."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from camlib.methods.arithmetic import check_alike
from camlib.methods.base import GradientMethod


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Sum activation times gradient over the channels, position by position: :math:`\sum_k G_k A_k`.

    Equation 4 of the paper. On pool + linear heads the map sums to the score minus the bias: it decomposes the score
    exactly.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.hires_cam(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]]))
        tensor([[[ 4., -3.]]])
    """
    check_alike(activations, gradients=gradients)
    return torch.einsum("nc...,nc...->n...", gradients, activations)


class HiResCAM(GradientMethod):
    """HiResCAM: each position is weighted by its own gradient, without averaging over the map.

    See :func:`camlib.functional.hires_cam` for the equation; Draelos and Carin 2020, https://arxiv.org/abs/2011.08891.
    On pool + linear heads it is Grad-CAM.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.HiResCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "hires_cam"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.hires_cam`."""
        return hires_cam(activations, gradients)


def grad_cam_element_wise(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Sum only the positive products: :math:`\sum_k \operatorname{ReLU}(G_k A_k)`.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), not negative.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.grad_cam_element_wise(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]]))
        tensor([[[4., 0.]]])
    """
    check_alike(activations, gradients=gradients)
    return (gradients * activations).relu().sum(1)


class GradCAMElementWise(GradientMethod):
    """HiResCAM without cancellation between channels: it sums what raises the score and ignores what lowers it.

    See :func:`camlib.functional.grad_cam_element_wise` for the equation. There is no paper; the library grad-cam
    introduced it.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAMElementWise(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "grad_cam_element_wise"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.grad_cam_element_wise`."""
        return grad_cam_element_wise(activations, gradients)
