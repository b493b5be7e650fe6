"""Generic attention attribution (Chefer et al. 2021, https://arxiv.org/abs/2103.15679)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.discovery.locating import queries_are_keys
from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.layers.layouts import Layout
from camlib.methods.arithmetic import divided
from camlib.methods.attention import AttentionMethod, check_attention, gradients_of, of_tokens_read
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.numbers import single_or_double


def generic_attention(attention: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    r"""Collect, block by block, how much each token has received from each other token.

    With the positive contributions of a block's attention A, averaged over its heads (equation 5 of the paper),

    .. math:: \bar A = \operatorname{mean}_h \operatorname{ReLU} \left( \frac{\partial s}{\partial A_h} A_h \right)

    a block of self-attention of the image updates the relevance R, which begins as the identity (equation 6):

    .. math:: R \leftarrow R + \bar A R

    Where queries q attend to the image i, as in the decoder of DETR, self-attention among the queries updates
    :math:`R^{qq}` in the same way, and :math:`R^{qi} \leftarrow R^{qi} + \bar A R^{qi}`, which begins as zero
    (equation 7); attention from the queries to the image adds (equations 8 to 10)

    .. math:: R^{qi} \leftarrow R^{qi} + \left( \hat R^{qq} \right)^T \bar A \hat R^{ii}, \qquad
        \hat R = I + \frac{R - I}{\text{the sum of each row of } R - I}

    with 0 / 0 = 0. Equation 11 of the paper changes nothing here, since the image does not attend to the queries.

    Args:
        attention: (N, heads, queries, keys) for each block, after its softmax, in the order of the blocks. The keys of
            the last one whose queries are not its keys, or else of the last one, are the tokens of the image; any other
            square attention is among the queries.
        gradients: of the scores, with respect to each attention.

    Returns:
        (N, tokens, tokens), the relevance R of each token of the image (columns) to each other; or, if queries attend
        to the image, :math:`R^{qi}`, (N, queries, tokens).

    Example:
        >>> import camlib, torch
        >>> attention = [torch.tensor([[[[0.5, 0.5], [0.0, 1.0]]]])]
        >>> camlib.functional.generic_attention(attention, [torch.tensor([[[[-1.0, 2.0], [0.0, 1.0]]]])])
        tensor([[[1., 1.],
                 [0., 2.]]])
    """
    check_attention(attention=attention, gradients=gradients)
    shapes = [tuple(one.shape) for one in attention]
    if len({shape[0] for shape in shapes}) > 1 or not all(_fits(shape[2:], shapes) for shape in shapes):
        raise CamlibValueError(
            "attention must be of the same images, among their tokens, among queries, or from these queries to the "
            f"tokens of the images, got {shapes}"
        )
    tokens = _tokens(shapes)
    image, queries, between = _identity(attention[0], tokens), None, None
    for weights, gradient in zip(attention, gradients, strict=True):
        added = (weights * gradient).relu().mean(1)
        rows, columns = added.shape[1:]
        if rows == columns == tokens:
            image = image + added @ image
            continue
        if queries is None or between is None:
            queries, between = _identity(added, rows), added.new_zeros(len(added), rows, tokens)
        if columns == tokens:
            between = between + _normalized(queries).mT @ added @ _normalized(image)
        else:
            queries, between = queries + added @ queries, between + added @ between
    return image if between is None else between


class GenericAttention(AttentionMethod):
    """Generic attention attribution: what the tokens that the score reads received from each patch, over all blocks.

    See :func:`camlib.functional.generic_attention` for the equation; Chefer et al. 2021,
    https://arxiv.org/abs/2103.15679. For vision transformers, CLIP's image tower, and DETR's encoder and decoder.

    The paper reads the row of the class token, or of the query of a detected object. camlib reads the rows of the
    tokens from which the score gets its gradient in the last block, and averages them. This is the class token where
    the head reads it, both of DeiT's tokens, the object's query in DETR and YOLOS, and all patches where the head
    averages patches, for which the paper has no rule. The map leaves out the identity with which R begins, since it
    says only that each token is relevant to itself.

    The method reads attention as :class:`camlib.LeGrad` does. It explains networks whose attention is all
    self-attention of the image, and networks in which queries then attend to the image, with or without self-attention
    among the queries, as in attention pooling and DETR's decoder. Other attention between two sets of tokens, such as
    text and image, is refused.

    The maps (N, h, w) are on the grid of the patches. They are never negative, so ``relu`` has no effect. Unlike
    LeGrad's, a map is not proportional to the score: twice the score gives another pattern, since R multiplies the
    blocks.

    One forward pass, with autograd from the first attention on, and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads attention wherever the model calls it.
        blocks: how many of the last calls of attention to read; None for all. The authors' demonstration for CLIP reads
            only the last.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets the relevance of all tokens, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int.
        CamlibTypeError: a submodule is scripted; or when called, if ``reshape`` does not return (N, 1, ...).
        CamlibRuntimeError: when called, if the model has no attention, fewer blocks, or attention that is not global,
            or uses activation checkpointing.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.GenericAttention(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "generic_attention"
    among_queries: ClassVar[bool] = True
    wanted: ClassVar[str] = "all patches of an image as keys, and these patches or queries as queries"

    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """Return the rows of :func:`camlib.functional.generic_attention` that the score reads, for each class."""
        weights = [single_or_double(one.detach()) for one in attention]
        of_classes = [gradients_of(one, attention) for one in forward_pass.score_of_each_class]
        return [self._of_class(weights, gradients) for gradients in of_classes]

    def _of_class(self, attention: list[Tensor], gradients: list[Tensor]) -> Tensor:
        relevance = generic_attention(attention, gradients)
        rows, tokens = relevance.shape[1:]
        if rows == tokens:
            relevance = relevance - _identity(relevance, tokens)
        return of_tokens_read(relevance, next(one for one in reversed(gradients) if one.shape[2] == rows))

    def fits(self, weights: Tensor, read: list[Tensor]) -> bool:
        """Whether an attention is among the patches, among queries, or from the queries to the patches."""
        shapes = [tuple(one.shape) for one in read]
        return all(len(shape) == 4 for shape in shapes) and _fits(tuple(weights.shape[2:]), shapes)

    def to_patches(self, read: list[Tensor]) -> Tensor:
        """Return the last attention whose keys are the patches."""
        tokens = _tokens([tuple(one.shape) for one in read])
        return next(one for one in reversed(read) if one.shape[3] == tokens)

    def _layout(self, read: list[Tensor], forward_pass: ForwardPass) -> Layout:
        positions: Any = forward_pass.noted.get("positions")
        tokens = self.to_patches(read).shape[3]
        for one in read if positions is not None else ():
            if one.shape[2] == one.shape[3] == tokens and not queries_are_keys(forward_pass.inputs, one, positions):
                raise CamlibRuntimeError(
                    f"{type(self.model).__name__} has attention {tuple(one.shape)}, with as many queries as patches, "
                    "but the queries could not be traced to these patches, so it is unknown which rule applies; use "
                    "images of another size, another number of queries, or camlib.LeGrad"
                )
        return super()._layout(read, forward_pass)


def _tokens(shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens of the image."""
    crossing = [shape for shape in shapes if shape[-2] != shape[-1]]
    return (crossing or shapes)[-1][-1]


def _fits(shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an attention (queries, keys) is among image tokens or queries, or from these queries to the image."""
    tokens, queries = _tokens(shapes), {one[-2] for one in shapes if one[-2] != one[-1]}
    return len(queries) < 2 and shape in {(tokens, tokens), *((q, k) for q in queries for k in (q, tokens))}


def _identity(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(len(like), -1, -1)


def _normalized(relevance: Tensor) -> Tensor:
    """Divide what was added to the identity by the sum of its row."""
    identity = _identity(relevance, relevance.shape[1])
    added = relevance - identity
    return identity + divided(added, added.sum(2, keepdim=True))
