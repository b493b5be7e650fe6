"""LeGrad (Bousselham et al. 2024, https://arxiv.org/abs/2404.03214)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.attention import Attention, AttentionMethod, gradients_of
from camlib.methods.base import Layer
from camlib.methods.blocks import AttentionInBlocks, Block, attention_in_blocks
from camlib.methods.tails import scores_of, tail_alone
from camlib.passes.forward_pass import ForwardPass, NoScore
from camlib.passes.tail import Tail


def le_grad(gradients: Sequence[Tensor]) -> Tensor:
    r"""Average the positive gradients of the attention over blocks, heads and queries.

    .. math:: \frac{1}{L} \sum_l \operatorname{mean}_{h, q} \operatorname{ReLU}
        \left(\frac{\partial s}{\partial A^l_{h q t}}\right)

    for each key t, where A is the attention after its softmax. In the paper, s is another score for each block; see
    :class:`camlib.LeGrad`.

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
    The score that is differentiated with respect to the attention of a block is one of two:

    * ``score="final"``, the default: the network's score, as for every other method.
    * ``score="block"``, as in the paper: the block's own score. The mean of the tokens that the block returns replaces
      each of its tokens, and the rest of the network, behind the last block, gives the score of that. So what the
      block contributes through later blocks does not count. The mean includes the class token.

    A block is the outermost module that calls attention once. For ``score="block"``, all blocks must return tokens
    (N, tokens, C) of the same shape, and everything must pass through the last one: each call runs the rest of the
    network on the last block's tokens, unchanged, and raises an error if this does not give the network's score.

    The method reads attention instead of a layer, wherever the model computes it: ``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, or a written-out softmax. During the call the first two are computed explicitly; their
    outputs equal those of the fused kernels up to rounding. Attention must be global: the keys are the patches of one
    image, the same in each block; the map leaves out any other tokens before or after them. Attention
    pooling with learned queries counts as a block. Attention that is not computed from the image is left out, such as
    that of CLIP's text tower; so is attention to image and text together, unless ``reshape`` picks the patches.

    The maps (N, h, w) are on the grid of the patches. They are never negative, so ``relu`` has no effect.

    One forward pass, with autograd from the first attention on, and one tail gradient (K for K classes). With
    ``score="block"``, also a pass of the tail behind the last block for each block, and one more; and a gradient for
    each block and class.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads attention wherever the model calls it.
        blocks: how many of the last blocks to read; None for all. The authors' code reads the last two by default.
        score: "final" or "block", which score is differentiated.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets the relevance of all tokens, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int; ``score`` is something else.
        CamlibTypeError: a submodule is scripted; or when called, if ``reshape`` does not return (N, 1, ...).
        CamlibRuntimeError: when called, if the model has no attention, fewer blocks, or attention that is not global,
            or uses activation checkpointing. With ``score="block"``, also if the model has no such blocks, or the rest
            of the network needs more than the last block's tokens.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.LeGrad(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "le_grad"

    def __init__(
        self, model: nn.Module, layer: Layer = None, *, blocks: int | None = None, score: str = "final", **options: Any
    ) -> None:
        super().__init__(model, layer, blocks=blocks, **options)
        if not isinstance(score, str):
            raise CamlibTypeError(f'score must be "final" or "block", got {score!r}')
        if score not in ("final", "block"):
            raise CamlibValueError(f'score must be "final" or "block", got {score!r}')
        self.score = score

    def around(self) -> contextlib.AbstractContextManager[Attention]:
        """Return a context that records the attention, and the blocks that call it if they have their own scores."""
        return super().around() if self.score == "final" else attention_in_blocks(self.model)

    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """Return :func:`camlib.functional.le_grad` for each class."""
        if self.score == "final":
            return [le_grad(gradients_of(one, attention)) for one in forward_pass.score_of_each_class]
        recorded: AttentionInBlocks = forward_pass.noted[self.name]
        blocks = [recorded.block_of(weights) for weights in attention]
        tail = _behind(blocks, attention[-1], forward_pass)
        of_blocks = []
        for weights, block in zip(attention, blocks, strict=True):
            tokens = block.output.mean(1, keepdim=True).expand_as(block.output)
            scores = scores_of(tail, forward_pass, tokens, forward_pass.image_index)
            forward_pass.checks.finite(f"score of block {block.name!r}", scores)
            of_classes = scores.unbind(1) if scores.dim() == 2 else (scores,)
            of_blocks.append([gradients_of(one, [weights])[0] for one in of_classes])
        return [le_grad(gradients) for gradients in zip(*of_blocks, strict=True)]


def _behind(blocks: Sequence[Block], attention: Tensor, forward_pass: ForwardPass) -> Tail:
    """The part of the network behind the last block, which gives the network's score for its tokens.

    Raises:
        CamlibRuntimeError: there is no such part.
    """
    instead = 'use score="final", which needs no blocks'
    if isinstance(forward_pass.target, NoScore):
        raise CamlibRuntimeError(f'score="block" needs a score of its own for each block; {instead}, or give a target')
    wanted = (forward_pass.count, attention.shape[2])
    shapes = {block.name: tuple(block.output.shape) for block in blocks}
    if len(set(shapes.values())) > 1 or any(len(shape) != 3 or shape[:2] != wanted for shape in shapes.values()):
        raise CamlibRuntimeError(
            f'score="block" needs blocks that return tokens {(*wanted, "C")}, all of the same shape, but the modules '
            f"that call attention return {shapes}; {instead}, or blocks= to read the last blocks only"
        )
    last = blocks[-1]
    with torch.no_grad():
        found = tail_alone(forward_pass, last.name, last.output.detach())
    if isinstance(found, str):
        raise CamlibRuntimeError(
            f"the tokens of the last block, {last.name!r}, do not give the score without the rest of the network "
            f'({found}), so its other blocks have no score, either, as score="block" needs; {instead}'
        )
    return found[0]
