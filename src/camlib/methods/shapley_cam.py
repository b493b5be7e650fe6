"""ShapleyCAM (Cai 2025, https://arxiv.org/abs/2501.06261)."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from torch import Tensor

from camlib.methods.arithmetic import check_alike, over_channels
from camlib.methods.base import LayerMethod
from camlib.passes.attention import ExplicitAttention
from camlib.passes.forward_pass import ForwardPass


def shapley_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    r"""Weight each channel by its approximate Shapley value, from a second-order expansion of the score.

    .. math:: \sum_k \operatorname{mean}_{ij}\left(G - \tfrac{1}{2} H A\right)_k A_k

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), G of the scores with respect to the activations.
        products: (N, C, ...), the product of the Hessian and the activations, H A.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> ones = torch.ones(1, 1, 1, 2)
        >>> camlib.functional.shapley_cam(ones, 3 * ones, 2 * ones)
        tensor([[[2., 2.]]])
    """
    check_alike(activations, gradients=gradients, products=products)
    weights = (gradients - products / 2).flatten(2).mean(2)
    return over_channels(weights, activations)


class ShapleyCAM(LayerMethod):
    """ShapleyCAM: Grad-CAM corrected for the curvature of the score.

    See :func:`camlib.functional.shapley_cam` for the equation; Cai 2025, https://arxiv.org/abs/2501.06261. On
    piecewise linear tails (convolutions, ReLU, pooling, linear layers) the Hessian of a logit is zero and the map is
    that of Grad-CAM; the paper explains :class:`camlib.targets.ReST`, whose Hessian is not zero.

    One forward pass and one tail gradient that is differentiated again (K for K classes). Attention runs in its
    explicit form, which can be differentiated twice.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.ShapleyCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64), camlib.targets.ReST()).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "shapley_cam"

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which attention can be differentiated twice."""
        return ExplicitAttention()

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :func:`camlib.functional.shapley_cam` for each class."""
        activations = forward_pass.activations(layer)
        pairs = forward_pass.second_order(layer)
        return forward_pass.stacked([shapley_cam(activations, gradient, product) for gradient, product in pairs])
