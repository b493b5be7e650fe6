"""Attention rollout (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928), a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.inputs.nested import tensors_in
from camlib.methods.attention import AttentionMethod, check_attention, gradients_of, of_tokens_read
from camlib.passes.forward_pass import ForwardPass, NoScore
from camlib.passes.numbers import single_or_double


def attention_rollout(attention: Sequence[Tensor]) -> Tensor:
    r"""Multiply the attention of all blocks, each averaged over its heads and with the skip connection.

    .. math:: \tilde A_l = \left( \tfrac12 \operatorname{mean}_h A_{l h} + \tfrac12 I \right) \tilde A_{l - 1},
        \qquad \tilde A_0 = I

    Args:
        attention: (N, heads, tokens, tokens) for each block, after its softmax, in the order of the blocks.

    Returns:
        (N, tokens, tokens), for each token (rows) how much comes from each token of the first block (columns). Rows sum
        to one.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.attention_rollout([torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])] * 2)
        tensor([[[0.5625, 0.4375],
                 [0.0000, 1.0000]]])
    """
    check_attention(attention=attention)
    shapes = [tuple(one.shape) for one in attention]
    if len({(shape[0], *shape[2:]) for shape in shapes}) > 1 or shapes[0][2] != shapes[0][3]:
        raise CamlibValueError(
            f"attention must be (N, heads, tokens, tokens), of all blocks with the same N and tokens, got {shapes}"
        )
    identity = torch.eye(shapes[0][2], dtype=attention[0].dtype, device=attention[0].device)
    rollout = identity.expand(len(attention[0]), -1, -1)
    for weights in attention:
        rollout = (0.5 * weights.mean(1) + 0.5 * identity) @ rollout
    return rollout


class AttentionRollout(AttentionMethod):
    """Attention rollout: which patches the network attends to. A baseline: it ignores the class.

    See :func:`camlib.functional.attention_rollout` for the equation; Abnar and Zuidema 2020,
    https://arxiv.org/abs/2005.00928. The map is the same for every class that is read at the same tokens, and it does
    not tell evidence for a class from evidence against it. Use it as a baseline for other methods, not to explain a
    prediction. The values, the MLPs and the head of the network are not in the equation.

    The paper reads the row of the class token. camlib averages the rows of the tokens that the score reads, as
    :class:`camlib.GenericAttention` does; the gradient of the score is used only to find these tokens. If the outputs
    hold no classes and no target is given, these are all tokens on which the outputs depend.

    The method reads attention as :class:`camlib.LeGrad` does; all of it must be self-attention of the same tokens.
    The maps (N, h, w) are on the grid of the patches. They are never negative, so ``relu`` has no effect.

    One forward pass, with autograd from the first attention on, and one gradient of the part after the last attention
    (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads attention wherever the model calls it.
        blocks: how many of the last blocks to read; None for all.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets the rollout to all tokens, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int.
        CamlibTypeError: a submodule is scripted; or when called, if ``reshape`` does not return (N, 1, ...).
        CamlibRuntimeError: when called, if the model has no attention, fewer blocks, or attention that is not global,
            or if the score does not depend on the last block.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> _ = torch.nn.init.normal_(vit.heads.head.weight)  # torchvision's begins at zero, and reads no token
        >>> camlib.AttentionRollout(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "attention_rollout"
    class_agnostic: ClassVar[bool] = True
    wanted: ClassVar[str] = "the same tokens as queries and keys in every block"

    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """Return the rows of :func:`camlib.functional.attention_rollout` that the score reads, for each class."""
        rollout = attention_rollout([single_or_double(one.detach()) for one in attention])
        of_classes = forward_pass.score_of_each_class
        if isinstance(forward_pass.target, NoScore):
            of_classes = (_of_outputs(forward_pass.outputs.raw),)
        gradients = [gradients_of(one, attention[-1:])[0] for one in of_classes]
        forward_pass.checks.never(
            ~torch.stack(gradients).flatten(2).any(2).all(),
            lambda: CamlibRuntimeError(
                "the score does not depend on the last attention (as behind a head whose weights are zero), so it is "
                "unknown which tokens AttentionRollout should read; choose another target"
            ),
        )
        return [of_tokens_read(rollout, one) for one in gradients]

    def fits(self, weights: Tensor, read: list[Tensor]) -> bool:
        """Whether an attention is self-attention of the same tokens as the others."""
        return super().fits(weights, read) and weights.shape[2] == weights.shape[3]


def _of_outputs(outputs: object) -> Tensor:
    """A number that depends on every element of the outputs, also where these are normalised."""
    found = [one for one in tensors_in(outputs) if one.requires_grad]
    return torch.stack(
        [(one.flatten() * torch.arange(one.numel(), device=one.device).cos()).sum().float() for one in found]
        or [torch.zeros(())]
    )
