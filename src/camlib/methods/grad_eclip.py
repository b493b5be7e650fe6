"""Grad-ECLIP (Zhao et al. 2024, https://arxiv.org/abs/2502.18816)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.methods.arithmetic import check_tensor, divided
from camlib.methods.attention import AttentionMethod, check_attention, gradients_of, tokens_read
from camlib.methods.base import Layer
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.numbers import single_or_double


def grad_eclip(gradients: Tensor, query: Tensor, key: Tensor) -> Tensor:
    r"""Weight the gradient of a token's attention by how similar the token's query is to each key.

    .. math:: M_{qt} = \lambda_{qt} \sum_h \frac{\partial s}{\partial A_{h q t}}, \qquad
        \lambda_{qt} = \operatorname{minmax}_t \cos(q_q, k_t)

    where queries and keys are vectors of all heads together. The paper writes the sum as
    :math:`\sum_c w_c v_{tc}`, with the values v and the gradient w of the score with respect to the attention's
    output at the token q; this is the same number, since that output is :math:`\sum_t A_{qt} v_t`. The similarity takes
    the place of the softmax, which leaves most patches near zero.

    Args:
        gradients: (N, heads, queries, keys), of the scores with respect to the attention.
        query: (N, heads, queries, channels).
        key: (N, heads, keys, channels), of the patches.

    Returns:
        (N, queries, keys), signed.

    Example:
        >>> import camlib, torch
        >>> gradients, query = torch.tensor([[[[2.0, -1.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> camlib.functional.grad_eclip(gradients, query, torch.tensor([[[[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]]]))
        tensor([[[ 2.0000, -0.5000,  0.0000]]])
    """
    check_attention(gradients=[gradients])
    for name, given, rows in (("query", query, 2), ("key", key, 3)):
        wanted = f"(N, heads, {'queries' if rows == 2 else 'keys'}, channels)"
        check_tensor(name, given, wanted)
        shape = (*gradients.shape[:2], gradients.shape[rows], query.shape[-1])
        if tuple(given.shape) != shape or given.device != gradients.device:
            raise CamlibValueError(
                f"{name} must be {wanted}, here {shape} on {gradients.device}, got {tuple(given.shape)} on "
                f"{given.device}"
            )
    products = torch.einsum("nhqd,nhkd->nqk", query, key)
    lengths = [one.square().sum((1, 3)).sqrt() for one in (query, key)]
    cosine = divided(products, lengths[0][:, :, None] * lengths[1][:, None])
    lowest, highest = cosine.amin(2, keepdim=True), cosine.amax(2, keepdim=True)
    return divided(cosine - lowest, highest - lowest) * gradients.sum(1)


class GradECLIP(AttentionMethod):
    """Grad-ECLIP, made for CLIP: the patches whose values raise the score, weighted by how similar query and key are.

    See :func:`camlib.functional.grad_eclip` for the equation; Zhao et al. 2024, https://arxiv.org/abs/2502.18816. The
    paper explains the cosine similarity of an image and a text, :class:`camlib.targets.Similarity`; classes of a vision
    transformer work as well.

    The paper reads the class token. camlib sums over the tokens from which the score gets its gradient in the last
    block: the class token, if the head reads it. The authors' code computes the last attention with a single
    head, which changes the output of a network that has more; camlib explains the network as it is.

    The method reads attention as :class:`camlib.LeGrad` does, but only if torch's functions compute it, because only
    these show queries and keys. The maps (N, h, w) are on the grid of the patches.

    One forward pass, with autograd from the first attention on, and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads attention wherever the model calls it.
        blocks: how many of the last blocks to read; their maps are added.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets a number for each token, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int.
        CamlibTypeError: a submodule is scripted; or when called, if ``reshape`` does not return (N, 1, ...).
        CamlibRuntimeError: when called, if the model has no attention, fewer blocks, or attention that is not global,
            or writes its attention out, or uses activation checkpointing.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.GradECLIP(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "grad_eclip"
    wanted: ClassVar[str] = "the same queries and the same grid of patches as keys in every block"

    def __init__(self, model: nn.Module, layer: Layer = None, *, blocks: int = 1, **options: Any) -> None:
        super().__init__(model, layer, blocks=blocks, **options)

    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """Return :func:`camlib.functional.grad_eclip` of the tokens that the score reads, for each class."""
        compared = forward_pass.noted[self.name].compared
        if any(id(one) not in compared for one in attention):
            raise CamlibRuntimeError(
                f"{type(self.model).__name__} writes its attention out, so GradECLIP cannot see queries and keys; "
                'switch to fused attention (attn_implementation="sdpa" in transformers, fused_attn in timm), or use '
                "camlib.GenericAttention"
            )
        numbers = torch.arange(attention[-1].shape[3], device=attention[-1].device, dtype=torch.float32)
        places = self.on_grid(numbers.expand(forward_pass.count, -1), attention, forward_pass)[0].flatten().long()
        pairs = [compared[id(one)] for one in attention]
        pairs = [(single_or_double(query), single_or_double(key)[:, :, places]) for query, key in pairs]
        found = []
        for score in forward_pass.score_of_each_class:
            gradients = gradients_of(score, attention)
            read = tokens_read(gradients[-1])
            of_blocks = [
                torch.einsum("nq,nqk->nk", read, grad_eclip(gradient[..., places], *pair).to(read.dtype))
                for gradient, pair in zip(gradients, pairs, strict=True)
            ]
            total = torch.stack(of_blocks).sum(0)
            found.append(total.new_zeros(gradients[-1].shape[0], len(numbers)).index_copy(1, places, total))
        return found

    def fits(self, weights: Tensor, read: list[Tensor]) -> bool:
        """Whether an attention has the same queries and keys as the others."""
        return weights.shape[2:] == read[-1].shape[2:]
