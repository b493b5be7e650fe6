"""LeGrad (Bousselham et al. 2024, https://arxiv.org/abs/2404.03214)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, positive_int
from camlib.layers.layouts import infer_layout
from camlib.methods.base import Layer, Method, Reads
from camlib.passes.attention import ExplicitAttention
from camlib.passes.forward_pass import ForwardPass, reshaped
from camlib.passes.hooks import tap
from camlib.passes.leaf import no_checkpoints
from camlib.passes.numbers import check_finite, single_or_double


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
        >>> camlib.functional.le_grad([torch.tensor([[[[1.0, -1.0], [3.0, 1.0]]]])])
        tensor([[2.0000, 0.5000]])
    """
    return torch.stack([gradient.relu().mean((1, 2)) for gradient in gradients]).mean(0)


class LeGrad(Method):
    """LeGrad: the patches to which more attention would raise the score, over all blocks of a vision transformer.

    See :func:`camlib.functional.le_grad` for the equation; Bousselham et al. 2024, https://arxiv.org/abs/2404.03214.
    The paper gives each block a score of its own, what the head makes of the mean of that block's tokens, and
    differentiates that; here it is the network's own score, whatever its head, as for every other method.

    It reads attention instead of a layer, wherever the model computes it: ``F.scaled_dot_product_attention``,
    ``nn.MultiheadAttention``, or a softmax written out. For the call the first two are computed in their explicit
    form, whose outputs are those of the fused kernels up to rounding. Attention must be global: every image's
    patches for keys, the same in each block, after at most 16 class and register tokens, which the map leaves out.
    An attentional pooling, whose queries are learned, counts as a block.

    The maps (N, h, w) are on the grid of the patches, and never negative, so that ``relu`` changes nothing.

    One forward pass, in the graph from the first attention on, and one tail gradient; K of it for K classes.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: none; attention is found where it is called.
        blocks: how many of the last blocks to read; None for all.
        **options: as for :class:`camlib.methods.Method`; ``reshape`` gets the relevance of all tokens, (N, keys, 1).

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
    reads: ClassVar[Reads] = "attention"

    def __init__(self, model: nn.Module, layer: Layer = None, *, blocks: int | None = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        scripted = [name for name, module in self.model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            raise CamlibTypeError(
                f"{scripted[0]!r} of {type(self.model).__name__} is a ScriptModule, in which LeGrad cannot see "
                "attention; explain the model with the module that it was made from"
            )
        self.blocks = None if blocks is None else positive_int("blocks", blocks)

    def around(self) -> contextlib.AbstractContextManager[_Attention]:
        """Return a context that keeps the attention, in the graph that begins at the first."""
        return _Attention()

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.le_grad` of the patches, for each class."""
        check_finite({"score": [forward_pass.scores.detach()]})
        with torch.enable_grad():
            read = self._read(forward_pass.noted[self.name].seen, forward_pass)
            of_classes = [_gradients(one, read) for one in forward_pass.score_of_each_class]
            return {"": forward_pass.stacked([self._map(gradients, forward_pass) for gradients in of_classes])}

    def _read(self, seen: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
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
            if weights.dim() != 4 or len(weights) != forward_pass.count or weights.shape[3] != read[0].shape[3]:
                raise _not_global(weights, forward_pass)
        return read

    def _map(self, gradients: list[Tensor], forward_pass: ForwardPass) -> Tensor:
        """The relevance of the patches, on their grid."""
        relevance = le_grad(gradients)[..., None]
        if self.network.reshape is not None:
            grid = reshaped(self.network.reshape, relevance, "attention", forward_pass.size or (0, 0))
            if grid.shape[1] != 1:
                raise CamlibTypeError(
                    f"reshape turned the relevance of all tokens, {tuple(relevance.shape)}, into {tuple(grid.shape)}; "
                    "it must keep the one channel and leave out the tokens that are not patches"
                )
            return grid.squeeze(1)
        layout = infer_layout(tuple(relevance.shape), forward_pass.size, "last") if forward_pass.size else None
        if layout is None:
            raise _not_global(gradients[0], forward_pass)
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


def _not_global(weights: Tensor, forward_pass: ForwardPass) -> CamlibRuntimeError:
    size = " x ".join(map(str, forward_pass.size)) if forward_pass.size else "unknown size"
    return CamlibRuntimeError(
        f"LeGrad needs global attention, (N, heads, queries, keys) with the same grid of patches for keys in every "
        f"block, and met {tuple(weights.shape)} for {forward_pass.count} images of {size}; for windowed attention, as "
        "Swin's, use camlib.GradCAM. Pass reshape= for another token layout, and forward= to run an image branch alone"
    )


class _Attention(ExplicitAttention):
    """Keeps the attention that this thread computes, in the graph that begins at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; attention in its explicit form, and what networks write out themselves kept too."""
        output = super().__torch_function__(func, types, args, kwargs)
        if func in _SOFTMAX and output.dim() >= 4 and _axis(*args, **(kwargs or {})) in (-1, output.dim() - 1):
            return self.keep(output)
        return output

    def keep(self, weights: Tensor) -> Tensor:
        """Cut the graph at the first attention, and remember each."""
        handed_on: Tensor
        weights, handed_on = tap(weights, "attention")
        self.seen.append(weights)
        return handed_on


_SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}


def _axis(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int | None:
    return dim
