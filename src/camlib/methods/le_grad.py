"""LeGrad (Bousselham et al. 2024, https://arxiv.org/abs/2404.03214)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.attention import AttentionMethod, gradients_of
from camlib.passes.forward_pass import ForwardPass


def le_grad(gradients: Sequence[Tensor]) -> Tensor:
    r"""Average the positive gradients of the attention over blocks, heads and queries.

    .. math:: \frac{1}{L} \sum_l \operatorname{mean}_{h, q} \operatorname{ReLU}
        \left(\frac{\partial s}{\partial A^l_{h q t}}\right)

    for each key t, where A is the attention after its softmax.

    Args:
        gradients: (N, heads, queries, keys) for each block, with respect to its attention; all blocks have the same
            keys.

    Returns:
        (N, keys), not negative; the tokens before the patches are included.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.le_grad([torch.tensor([[[[1.0, -1.0], [3.0, 1.0]]]])])
        tensor([[2.0000, 0.5000]])
    """
    wanted = "(N, heads, queries, keys), of all blocks with the same N and keys"
    check_tensors("gradients", gradients, wanted)
    gradients = list(gradients)
    for gradient in gradients:
        check_tensor("gradients", gradient, wanted)
        if gradient.dim() != 4 or (len(gradient), gradient.shape[-1]) != (len(gradients[0]), gradients[0].shape[-1]):
            raise CamlibValueError(f"gradients must be {wanted}, got {[tuple(one.shape) for one in gradients]}")
    if not gradients:
        raise CamlibValueError(f"gradients must hold at least one tensor {wanted}")
    return torch.stack([gradient.relu().mean((1, 2)) for gradient in gradients]).mean(0)


class LeGrad(AttentionMethod):
    """LeGrad: the patches where more attention would raise the score, over all blocks of a vision transformer.

    See :func:`camlib.functional.le_grad` for the equation; Bousselham et al. 2024, https://arxiv.org/abs/2404.03214.
    The paper computes a separate score for each block (the head applied to the mean of that block's tokens) and
    differentiates it. camlib differentiates the network's own score, whatever its head, as for every other method.

    The method reads attention instead of a layer, wherever the model computes it: ``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, or a written-out softmax. During the call the first two are computed explicitly; their
    outputs equal those of the fused kernels up to rounding. Attention must be global: the keys are the patches of one
    image, the same in each block; the map leaves out any other tokens before or after them. Attention
    pooling with learned queries counts as a block. Attention that is not computed from the image is left out, such as
    that of CLIP's text tower; so is attention to image and text together, unless ``reshape`` picks the patches.

    The maps (N, h, w) are on the grid of the patches. They are never negative, so ``relu`` has no effect.

    One forward pass, with autograd from the first attention on, and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads attention wherever the model calls it.
        blocks: how many of the last blocks to read; None for all.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets the relevance of all tokens, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int.
        CamlibTypeError: a submodule is scripted; or when called, if ``reshape`` does not return (N, 1, ...).
        CamlibRuntimeError: when called, if the model has no attention, fewer blocks, or attention that is not global,
            or uses activation checkpointing.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.LeGrad(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "le_grad"

    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """Return :func:`camlib.functional.le_grad` for each class."""
        return [le_grad(gradients_of(one, attention)) for one in forward_pass.score_of_each_class]
