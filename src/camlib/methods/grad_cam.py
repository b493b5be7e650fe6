"""Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from camlib.methods.arithmetic import check_alike, over_channels
from camlib.methods.base import GradientMethod


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Weight each channel by the mean of its gradient: :math:`\sum_k \operatorname{mean}_{ij}(G_k) A_k`.

    This is the map before the paper's final ReLU (equations 1 and 2), which :class:`camlib.GradCAM` applies.

    Args:
        activations: (N, C, h, w), the layer's output A.
        gradients: (N, C, h, w), of the scores with respect to A.

    Returns:
        (N, h, w), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.grad_cam(torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 0.5))
        tensor([[[1., 1.],
                 [1., 1.]]])
    """
    check_alike(activations, gradients=gradients)
    return over_channels(gradients.flatten(2).mean(2), activations)


class GradCAM(GradientMethod):
    """Grad-CAM: where the features are that raise the score, weighted by how much they raise it on average.

    ``ReLU(sum_k mean_ij(G_k) A_k)``, Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391.

    A call makes one forward pass, cut at the layer, and one backward pass through the tail (K of them for K classes,
    in batches of at most 16). Without ``layer``, the first call makes one more of each, with one image.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> explanation = cam(torch.rand(2, 3, 64, 64), target=1)
        >>> explanation.layer, explanation.maps.shape
        ('layer4', torch.Size([2, 2, 2]))
    """

    name: ClassVar[str] = "grad_cam"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.grad_cam`."""
        return grad_cam(activations, gradients)
