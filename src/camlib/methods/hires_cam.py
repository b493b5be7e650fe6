"""HiResCAM (Draelos and Carin 2020, https://arxiv.org/abs/2011.08891), and its variant with element-wise ReLU."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib.errors import positive_int
from camlib.methods.arithmetic import check_alike
from camlib.methods.base import GradientMethod, Layer


def hires_cam(activations: Tensor, gradients: Tensor, pool: int = 1) -> Tensor:
    r"""Sum activation times gradient over the channels, position by position: :math:`\sum_k \bar G_k A_k`.

    :math:`\bar G` is the gradient itself (HiResCAM, equation 4 of the paper), or its mean over a window of ``pool``
    cells along each axis (Seg-XRes-CAM). If the tail is global average pooling and one linear layer, the map sums to
    the score minus the bias.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.
        pool: the side of the windows, which tile the grid from its first cell; the last ones may be smaller. 1 is
            HiResCAM; a window of the whole grid is Grad-CAM.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.hires_cam(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]]))
        tensor([[[ 4., -3.]]])
    """
    check_alike(activations, gradients=gradients)
    if positive_int("pool", pool) > 1:
        gradients = _window_means(gradients, pool)
    return torch.einsum("nc...,nc...->n...", gradients, activations)


def _window_means(features: Tensor, pool: int) -> Tensor:
    """Each cell of (N, C, ...) as the mean of its window: one axis after the other, since such a mean is separable."""
    for axis in range(2, features.dim()):
        window = torch.arange(features.shape[axis], device=features.device) // pool
        same = (window[:, None] == window).to(features.dtype)
        features = (features.movedim(axis, -1) @ (same / same.sum(0))).movedim(-1, axis)
    return features


class HiResCAM(GradientMethod):
    """HiResCAM: each position is weighted by its own gradient, without averaging over the map.

    See :func:`camlib.functional.hires_cam` for the equation; Draelos and Carin 2020, https://arxiv.org/abs/2011.08891.
    If the tail is global average pooling and one linear layer, it is Grad-CAM. ``pool`` averages the gradient in
    windows, which is between HiResCAM and Grad-CAM and was proposed for segmentation: Seg-XRes-CAM, Hasany et al. 2023,
    https://openaccess.thecvf.com/content/CVPR2023W/XAI4CV/html/Hasany_Seg-XRes-CAM. Their code also offers the largest
    gradient of each window; camlib averages, so that a window of the whole grid gives Grad-CAM.

    One forward pass and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        pool: the side of the windows in cells of the layer's grid; 1 for HiResCAM.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``pool`` is not a positive int.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.HiResCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "hires_cam"

    def __init__(self, model: nn.Module, layer: Layer = None, *, pool: int = 1, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.pool = positive_int("pool", pool)

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.hires_cam`."""
        return hires_cam(activations, gradients, self.pool)


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
