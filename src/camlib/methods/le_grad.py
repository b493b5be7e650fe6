"""LeGrad (Bousselham et al. 2024, https://arxiv.org/abs/2404.03214)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlib.capture import Watch, tap
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.isolation import full_precision, undisturbed
from camlib.layouts import infer_layout
from camlib.methods.base import Layer, Method, forward_pass
from camlib.methods.evidence import Evidence, check_finite, reshaped, single_or_double
from camlib.methods.pixels import no_checkpoints


def le_grad(gradients: Sequence[Tensor]) -> Tensor:
    r"""Average the positive gradients of the attention over blocks, heads and queries.

    .. math:: \frac{1}{L} \sum_l \operatorname{mean}_{h, q} \operatorname{ReLU}
        \left(\frac{\partial s}{\partial A^l_{h q t}}\right)

    for each key t, where A is the attention after its softmax.

    Args:
        gradients: of each block (N, heads, queries, keys), with respect to its attention; the keys are the same.

    Returns:
        (N, keys), not negative; what the tokens before the patches get is among them.

    Example:
        >>> import camlib, torch
        >>> camlib.le_grad([torch.tensor([[[[1.0, -1.0], [3.0, 1.0]]]])])
        tensor([[2.0000, 0.5000]])
    """
    return torch.stack([gradient.relu().mean((1, 2)) for gradient in gradients]).mean(0)


class LeGrad(Method):
    """LeGrad: the patches to which more attention would raise the score, over all blocks of a vision transformer.

    See :func:`camlib.le_grad` for the equation; Bousselham et al. 2024, https://arxiv.org/abs/2404.03214. The
    paper gives each block a score of its own, what the head makes of the mean of that block's tokens, and
    differentiates that; here it is the network's own score, whatever its head, as for every other method.

    It reads attention instead of a layer, wherever the model calls it: ``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, or a softmax written out. For the call the first two are computed in their explicit
    form, whose outputs are those of the fused kernels up to rounding. Attention must be global: every image's
    patches for keys, the same in each block, after at most 16 class and register tokens, which the map leaves out.
    An attentional pooling, whose queries are learned, counts as a block.

    The maps (N, h, w) are on the grid of the patches, and never negative, so that ``relu`` changes nothing.

    One forward pass, in the graph from the first attention on, and one tail gradient; K of it for K classes.

    Args:
        model: as for :class:`camlib.Method`.
        layer: none; attention is found where it is called.
        blocks: how many of the last blocks to read; None for all.
        **options: as for :class:`camlib.Method`; ``reshape`` gets the relevance of all tokens, (N, keys, 1).

    Raises:
        CamlibTypeError, CamlibValueError: ``blocks`` is not a positive int.
        CamlibTypeError: a submodule is scripted; or on calling, ``reshape`` returns no (N, 1, ...).
        CamlibRuntimeError: on calling, if the model has no attention, fewer blocks, or attention that is not global,
            or computes its activations again in the backward pass (checkpointing).

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.LeGrad(vit)(torch.rand(2, 3, 32, 32)).maps.shape
        torch.Size([2, 4, 4])
    """

    name: ClassVar[str] = "le_grad"
    layerless: ClassVar[bool] = True

    def __init__(self, model: nn.Module, layer: Layer = None, *, blocks: int | None = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        scripted = [name for name, module in self.model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            raise CamlibTypeError(
                f"{scripted[0]!r} of {type(self.model).__name__} is a ScriptModule, in which LeGrad cannot see "
                "attention; explain the model with the module that it was made from"
            )
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int)):
            raise CamlibTypeError(f"blocks must be an int or None, got {type(blocks).__name__}: {blocks!r}")
        if blocks is not None and blocks < 1:
            raise CamlibValueError(f"blocks must be at least 1, got {blocks}; leave it out for all")
        self.blocks = blocks

    def __call__(self, inputs: Any, target: Any = None) -> Explanation:  # noqa: D102 - inherited
        inputs = self._prepare(inputs)
        with undisturbed(self.model):
            attention = _Attention()
            with attention:
                evidence = forward_pass(self, Watch({}), inputs, target)
            with full_precision(evidence.device), torch.enable_grad():
                read = self._read(attention.seen, evidence)
                maps = evidence.stacked(
                    [self._map(_gradients(one, read), evidence) for one in evidence.score_of_each_class]
                )
                check_finite({"score": [evidence.scores.detach()], "map": [maps]})
                return evidence.explanation(self.name, maps, {})

    def _read(self, seen: list[Tensor], evidence: Evidence) -> list[Tensor]:
        """The attention of the blocks to read, all over the same patches of the images."""
        if not seen:
            raise CamlibRuntimeError(
                f"{type(self.model).__name__} calls no attention that LeGrad can read: neither nn.MultiheadAttention "
                "nor F.scaled_dot_product_attention, nor a softmax over (N, heads, tokens, tokens). Switch custom "
                "kernels (flash-attn, xformers, flex) off where the model has them; a network without attention "
                "takes camlib.GradCAM"
            )
        blocks = len(seen) if self.blocks is None else self.blocks
        if blocks > len(seen):
            raise CamlibRuntimeError(
                f"blocks={blocks} of {type(self.model).__name__}, which calls attention {len(seen)} times"
            )
        read = seen[-blocks:]
        for weights in read:
            if weights.dim() != 4 or len(weights) != evidence.images or weights.shape[3] != read[0].shape[3]:
                raise _not_global(weights, evidence)
        return read

    def _map(self, gradients: list[Tensor], evidence: Evidence) -> Tensor:
        """The relevance of the patches, on their grid."""
        relevance = le_grad(gradients)[..., None]
        if self.reshape is not None:
            grid = reshaped(self.reshape, relevance, "attention", evidence.size or (0, 0))
            if grid.shape[1] != 1:
                raise CamlibTypeError(
                    f"reshape turned the relevance of all tokens, {tuple(relevance.shape)}, into {tuple(grid.shape)}; "
                    "it must keep the one channel and leave the tokens out that are no patches"
                )
            return grid.squeeze(1)
        layout = infer_layout(tuple(relevance.shape), evidence.size, "last") if evidence.size else None
        if layout is None:
            raise _not_global(gradients[0], evidence)
        return layout.to_grid(relevance).squeeze(1)


def _gradients(scores: Tensor, attention: list[Tensor]) -> list[Tensor]:
    """The gradients of scores (N,), each of its own image, with respect to the attention of each block."""
    found: Sequence[Tensor | None] = [None]
    if scores.requires_grad:
        with no_checkpoints():
            found = torch.autograd.grad(scores.sum(), attention, retain_graph=True, allow_unused=True)
    gradients = [single_or_double(one) for one in found if one is not None]
    if len(gradients) < len(attention):
        raise CamlibRuntimeError(
            "attention does not lead to the score: it lies on a branch that the score does not use, or the model "
            "detaches it, or uses activation checkpointing, to be switched off; choose another target, read fewer "
            "blocks= from the end, or run the branch alone by forward="
        )
    return gradients


def _not_global(weights: Tensor, evidence: Evidence) -> CamlibRuntimeError:
    size = " x ".join(map(str, evidence.size)) if evidence.size else "unknown size"
    return CamlibRuntimeError(
        f"LeGrad needs global attention, (N, heads, queries, keys) with the same grid of patches for keys in every "
        f"block, and met {tuple(weights.shape)} for {evidence.images} images of {size}; for windowed attention, as "
        "Swin's, use camlib.GradCAM. Another layout of the tokens is told by reshape=, an image branch run by forward="
    )


class _Attention(TorchFunctionMode):
    """Keeps the attention that this thread computes, in the graph that begins at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; attention in its explicit form."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _scaled_dot_product(self._keep, *args, **kwargs)[0]
        if func is F.multi_head_attention_forward:
            return _multi_head(self._keep, *args, **kwargs)
        output = func(*args, **kwargs)
        if func in _SOFTMAX and output.dim() >= 4 and _axis(*args, **kwargs) in (-1, output.dim() - 1):
            return self._keep(output)
        return output

    def _keep(self, weights: Tensor) -> Tensor:
        handed_on: Tensor
        weights, handed_on = tap(weights, "attention")
        self.seen.append(weights)
        return handed_on


_SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}


def _axis(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int | None:
    return dim


Keep = Callable[[Tensor], Tensor]


def _scaled_dot_product(
    keep: Keep,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ``F.scaled_dot_product_attention`` computes, as its documentation writes it out; and the attention."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    weights = keep(logits.softmax(-1).to(value.dtype))  # under autocast a softmax is in single precision
    return torch.dropout(weights, dropout_p, True) @ value, weights


def _multi_head(
    keep: Keep,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` computes of (tokens, N, C), which calls attention out of sight.

    Its boolean masks are True where attention is not allowed, and ``is_causal`` only repeats what a mask says.
    """
    if query.dim() != 3 or bias_k is not None or bias_v is not None or add_zero_attn:
        raise _unread(query, "bias_k, bias_v or add_zero_attn")
    if static_k is not None or static_v is not None:
        raise _unread(query, "static_k or static_v")
    apart = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights: Any = apart if use_separate_proj_weight or in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    q, k, v = (x.unflatten(2, (num_heads, -1)).permute(1, 2, 0, 3) for x in projected)  # (N, heads, tokens, channels)
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, query)
        mask = mask if mask.dim() == 2 else mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, query)[:, None, None]
        mask = padding if mask is None else mask + padding
    attended, attention = _scaled_dot_product(keep, q, k, v, mask, dropout_p if training else 0.0)
    output = F.linear(attended.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, attention.mean(1) if average_attn_weights else attention


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to add to the logits."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)


def _unread(query: Tensor, what: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"LeGrad reads nn.MultiheadAttention of batches (tokens, N, channels) without extra keys, and met one of shape "
        f"{tuple(query.shape)} or with {what}; use camlib.GradCAM"
    )
