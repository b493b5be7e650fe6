"""Attention written out in operations that autograd can differentiate repeatedly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camlib.errors import CamlibRuntimeError

ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
"""torch's attention functions."""


class ExplicitAttention(TorchFunctionMode):
    """Replaces torch's attention functions by their explicit form, in this thread, while the context is open."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; compute attention in its explicit form."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _scaled_dot_product(self.keep, *args, **kwargs)[0]
        if func is F.multi_head_attention_forward:
            return _multi_head(self.keep, *args, **kwargs)
        return func(*args, **kwargs)

    def keep(self, weights: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Receive the attention (N, heads, queries, keys) after its softmax; return the tensor to use in its place.

        The query (N, heads, queries, channels) and the key (N, heads, keys, channels) are those of torch's functions.
        """
        return weights


Keep = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    """The result of ``F.scaled_dot_product_attention``, computed as in its documentation, and the attention."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    weights = logits.softmax(-1).to(value.dtype)  # under autocast, softmax returns single precision
    weights = keep(weights, query, key)
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
    """The result of ``F.multi_head_attention_forward`` for (tokens, N, C), which hides its call of attention.

    Its boolean masks are True where attention is not allowed, and ``is_causal`` is only a hint about the mask.
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
        "explicit attention supports nn.MultiheadAttention only for batches (tokens, N, channels) without extra keys; "
        f"got shape {tuple(query.shape)}, or {what}; use camlib.GradCAM"
    )
