"""LayerCAM (Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from camlib.methods.arithmetic import check_alike
from camlib.methods.base import GradientMethod


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Weight each position of each channel by its own positive gradient: :math:`\sum_k \operatorname{ReLU}(G_k) A_k`.

    Equations 5 and 6 of the paper.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), of the scores with respect to the activations.

    Returns:
        (N, ...), signed where activations are.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.layer_cam(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]]))
        tensor([[[4., 0.]]])
    """
    check_alike(activations, gradients=gradients)
    return torch.einsum("nc...,nc...->n...", gradients.relu(), activations)


class LayerCAM(GradientMethod):
    """LayerCAM: fine maps, also from shallow layers, where one weight per channel is too coarse.

    See :func:`camlib.functional.layer_cam` for the equation; Jiang et al. 2021,
    https://doi.org/10.1109/TIP.2021.3089943. The paper fuses several layers: give a list of them, with ``fuse="max"``.

    One forward pass and one tail gradient (K for K classes).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.LayerCAM(torchvision.models.resnet18(num_classes=4), ["layer3", "layer4"], fuse="max")
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "layer_cam"

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.layer_cam`."""
        return layer_cam(activations, gradients)
