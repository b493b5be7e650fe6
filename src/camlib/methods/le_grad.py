"""LeGrad (Bousselham et al. 2024, https://arxiv.org/abs/2404.03214)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camlib.discovery.locating import KEYS, image_axes, keys_layout
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, positive_int
from camlib.inputs.nested import tensors_in
from camlib.layers.layouts import Layout
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.base import Layer, Method, Reads
from camlib.passes.attention import ATTENTION, ExplicitAttention
from camlib.passes.checkpoints import no_checkpoints
from camlib.passes.forward_pass import ForwardPass, reshaped
from camlib.passes.hooks import tap
from camlib.passes.numbers import single_or_double
from camlib.passes.origins import Origins


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


class LeGrad(Method):
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
    reads: ClassVar[Reads] = "attention"

    def __init__(self, model: nn.Module, layer: Layer = None, *, blocks: int | None = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        scripted = [name for name, module in self.model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            raise CamlibTypeError(
                f"{scripted[0]!r} of {type(self.model).__name__} is a ScriptModule, in which LeGrad cannot see "
                "attention; explain a model that contains the original module"
            )
        self.blocks = None if blocks is None else positive_int("blocks", blocks)

    def around(self) -> contextlib.AbstractContextManager[_Attention]:
        """Return a context that records the attention; the autograd graph begins at the first one."""
        return _Attention()

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass, with the images where the keys of the attention show them to be."""
        if self.network.reshape is None:
            seen = self._of_images(forward_pass.noted[self.name], forward_pass)
            self._layout(self._read(seen, forward_pass), forward_pass)
        return forward_pass.along(image_axes(self.network, forward_pass.inputs, [KEYS]))

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.le_grad` of the patches, for each class."""
        forward_pass.checks.finite("score", forward_pass.scores)
        with torch.enable_grad():
            read = self._read(self._of_images(forward_pass.noted[self.name], forward_pass), forward_pass)
            of_classes = [_gradients(one, read) for one in forward_pass.score_of_each_class]
        relevance = [le_grad(gradients)[..., None] for gradients in of_classes]
        if self.network.reshape is not None:
            axes = len(forward_pass.size or (0, 0))
            grids = [self._reshaped(one, axes) for one in relevance]
        else:
            layout = self._layout(read, forward_pass)
            grids = [layout.to_grid(one) for one in relevance]
        return {"": forward_pass.stacked([grid.squeeze(1) for grid in grids])}

    def _of_images(self, attention: _Attention, forward_pass: ForwardPass) -> list[Tensor]:
        """The attention that is computed from the images, without what is known to be of a text.

        Raises:
            CamlibRuntimeError: all of it is of a text, at least in part.
        """
        inputs, buffers = forward_pass.inputs, {id(buffer) for buffer in self.model.buffers()}
        images, texts = set(map(id, inputs.pictures)), set(map(id, inputs.texts))
        alone: list[Tensor] = []
        with_text: list[Tensor] = []
        for weights, origins in zip(attention.seen, attention.origins, strict=True):
            given = [one for one in origins if id(one) not in buffers]
            unknown = [one for one in given if id(one) not in images | texts]
            of_image = any(id(one) in images for one in given) or any(one.is_floating_point() for one in unknown)
            if images and not of_image:
                continue
            has_text = any(id(one) in texts for one in given) or any(map(_is_text, unknown))
            (with_text if has_text else alone).append(weights)
        found = alone or (with_text if self.network.reshape is not None else [])
        if attention.seen and not found:
            to = "a text and the image together" if with_text else "a text"
            raise CamlibRuntimeError(
                f"{type(self.model).__name__} attends to {to}, and never to the patches of the image alone; pass "
                "reshape=, a function from the relevance of all tokens (N, keys, 1) to that of the patches "
                "(N, 1, h, w), or use camlib.GradCAM"
            )
        return found

    def _read(self, seen: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
        """The attention of the blocks to read; all have the same patches as keys."""
        if not seen:
            raise CamlibRuntimeError(
                f"{type(self.model).__name__} calls no attention that LeGrad can read: neither nn.MultiheadAttention "
                "nor F.scaled_dot_product_attention, nor a softmax over (N, heads, tokens, tokens). If the model uses "
                "custom kernels (flash-attn, xformers, flex), switch them off; for a network without attention use "
                "camlib.GradCAM"
            )
        blocks = len(seen) if self.blocks is None else self.blocks
        if blocks > len(seen):
            raise CamlibRuntimeError(
                f"blocks={blocks} is more than {type(self.model).__name__} has: it calls attention {len(seen)} times"
            )
        read = seen[-blocks:]
        for weights in read:
            if weights.dim() != 4 or len(weights) != forward_pass.count or weights.shape[3] != read[0].shape[3]:
                raise _not_global(weights, forward_pass)
        return read

    def _reshaped(self, relevance: Tensor, axes: int) -> Tensor:
        """The relevance of all tokens (N, keys, 1) on the grid that the user's ``reshape`` makes of it."""
        assert self.network.reshape is not None
        grid = reshaped(self.network.reshape, relevance, "attention", axes)
        if grid.shape[1] != 1:
            raise CamlibTypeError(
                f"reshape turned the relevance of all tokens, {tuple(relevance.shape)}, into {tuple(grid.shape)}; "
                "it must keep the single channel and leave out the tokens that are not patches"
            )
        return grid

    def _layout(self, read: list[Tensor], forward_pass: ForwardPass) -> Layout:
        """Where the keys of the attention are on the images."""
        layout = keys_layout(self.network, forward_pass.inputs, read[-1], forward_pass.noted.get("positions"))
        if layout is None:
            raise _not_global(read[-1], forward_pass)
        return layout


def _is_text(tensor: Tensor) -> bool:
    """Whether a tensor that is neither an input nor the model's looks like the words (N, tokens) of a text."""
    return tensor.dim() == 2 and tensor.dtype in (torch.int64, torch.int32)


def _gradients(scores: Tensor, attention: list[Tensor]) -> list[Tensor]:
    """The gradients of scores (N,), one per image, with respect to the attention of each block."""
    found: Sequence[Tensor | None] = [None]
    if scores.requires_grad:
        with no_checkpoints():
            found = torch.autograd.grad(scores.sum(), attention, retain_graph=True, allow_unused=True)
    gradients = [single_or_double(one) for one in found if one is not None]
    if len(gradients) < len(attention):
        raise CamlibRuntimeError(
            "attention does not lead to the score: it is on a branch that the score does not use, or the model "
            "detaches it, or uses activation checkpointing, which must be switched off; choose another target, read "
            "fewer blocks= from the end, or run only the branch with forward="
        )
    return gradients


def _not_global(weights: Tensor, forward_pass: ForwardPass) -> CamlibRuntimeError:
    size = " x ".join(map(str, forward_pass.size)) if forward_pass.size else "unknown size"
    return CamlibRuntimeError(
        f"LeGrad needs global attention, (N, heads, queries, keys) with the same grid of patches as keys in every "
        f"block, but found {tuple(weights.shape)} for {forward_pass.count} images of {size}; for windowed attention, "
        "such as Swin's, use camlib.GradCAM. Pass reshape= for another token layout, and forward= to run only an image "
        "branch"
    )


class _Attention(ExplicitAttention):
    """Records the attention that this thread computes; the autograd graph begins at the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.origins: list[list[Tensor]] = []
        """The origins of each; see :class:`camlib.passes.origins.Origins`."""
        self._origins = Origins()
        self._arguments: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, attention in its explicit form; also record attention that networks write out."""
        kwargs = kwargs or {}
        is_softmax = func in _SOFTMAX
        if is_softmax or func in ATTENTION:
            self._arguments = [*tensors_in(list(args[:2])), *tensors_in(list(kwargs.values()))]
        output = super().__torch_function__(func, types, args, kwargs)
        if is_softmax and output.dim() >= 4 and _axis(*args, **kwargs) in (-1, output.dim() - 1):
            output = self.keep(output)
        self._origins.note(func, args, kwargs, output)
        return output

    def keep(self, weights: Tensor) -> Tensor:
        """Cut the graph at the first attention, and record each."""
        passed_on: Tensor
        weights, passed_on = tap(weights, "attention")
        self.seen.append(weights)
        self.origins.append(self._origins.of(self._arguments))
        return passed_on


_SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}


def _axis(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int | None:
    return dim
