"""The base class of methods that read attention: where a model computes it, and which tokens are the patches."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from camlib.discovery.locating import KEYS, image_axes, keys_layout
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, positive_int
from camlib.inputs.nested import tensors_in
from camlib.layers.layouts import Layout
from camlib.methods.arithmetic import check_tensor, check_tensors, divided
from camlib.methods.base import Layer, Method, Reads
from camlib.passes.attention import ATTENTION, ExplicitAttention
from camlib.passes.checkpoints import no_checkpoints
from camlib.passes.forward_pass import ForwardPass, NoScore, reshaped
from camlib.passes.hooks import tap
from camlib.passes.nodes import Paths
from camlib.passes.numbers import single_or_double
from camlib.passes.origins import Origins


class AttentionMethod(Method):
    """A method that reads attention wherever the model computes it. A subclass defines :meth:`relevance`.

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
    """

    reads: ClassVar[Reads] = "attention"
    wanted: ClassVar[str] = "the same grid of patches as keys in every block"
    """The attention that it reads, for errors."""
    among_queries: ClassVar[bool] = False
    """Whether it also reads the attention among learned queries, as of a detector, before they attend to the image."""

    def __init__(self, model: nn.Module, layer: Layer = None, *, blocks: int | None = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        scripted = [name for name, module in self.model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            raise CamlibTypeError(
                f"{scripted[0]!r} of {type(self.model).__name__} is a ScriptModule, in which attention "
                f"cannot be seen by {type(self).__name__}; explain a model that contains the original module"
            )
        self.blocks = None if blocks is None else positive_int("blocks", blocks)

    def around(self) -> contextlib.AbstractContextManager[Attention]:
        """Return a context that records the attention; the autograd graph begins at the first one."""
        return Attention()

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass, with the images where the keys of the attention show them to be."""
        if self.network.reshape is None:
            seen = self._of_images(forward_pass.noted[self.name], forward_pass)
            self._layout(self._read(seen, forward_pass), forward_pass)
        return forward_pass.along(image_axes(self.network, forward_pass.inputs, [KEYS]))

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :meth:`relevance` of the patches, for each class."""
        if not isinstance(forward_pass.target, NoScore):
            forward_pass.checks.finite("score", forward_pass.scores)
        with torch.enable_grad():
            seen = self._of_images(forward_pass.noted[self.name], forward_pass)
            read = self._read(_up_to_the_score(seen, forward_pass), forward_pass)
            relevance = self.relevance(read, forward_pass)
        return {"": forward_pass.stacked([self.on_grid(one, read, forward_pass) for one in relevance])}

    def on_grid(self, relevance: Tensor, read: list[Tensor], forward_pass: ForwardPass) -> Tensor:
        """Return a number for each token (N, keys) as a map (N, ...) of the patches."""
        if self.network.reshape is not None:
            return self._reshaped(relevance[..., None], len(forward_pass.size or (0, 0))).squeeze(1)
        grid: Tensor = self._layout(read, forward_pass).to_grid(relevance[..., None])
        return grid.squeeze(1)

    @abstractmethod
    def relevance(self, attention: list[Tensor], forward_pass: ForwardPass) -> Sequence[Tensor]:
        """Return the relevance of all tokens (N, keys) for each class, before the final ReLU.

        Args:
            attention: (N, heads, queries, keys) of each block, after the softmax, in the autograd graph.
            forward_pass: the pass.
        """

    def _of_images(self, attention: Attention, forward_pass: ForwardPass) -> list[Tensor]:
        """The attention that is computed from the images, without what is known to be of a text.

        Raises:
            CamlibRuntimeError: all of it is of a text, at least in part.
        """
        inputs, buffers = forward_pass.inputs, {id(buffer) for buffer in self.model.buffers()}
        images, texts = set(map(id, inputs.pictures)), set(map(id, inputs.texts))
        alone: list[Tensor] = []
        with_text: list[Tensor] = []
        of_nothing: set[int] = set()
        for weights, origins in zip(attention.seen, attention.origins, strict=True):
            given = [one for one in origins if id(one) not in buffers]
            if self.among_queries and not given:
                of_nothing.add(id(weights))
                alone.append(weights)
                continue
            unknown = [one for one in given if id(one) not in images | texts]
            of_image = any(id(one) in images for one in given) or any(one.is_floating_point() for one in unknown)
            if images and not of_image:
                continue
            has_text = any(id(one) in texts for one in given) or any(map(_is_text, unknown))
            (with_text if has_text else alone).append(weights)
        queries = {one.shape[-2] for one in alone if id(one) not in of_nothing and one.shape[-2] != one.shape[-1]}
        alone = [one for one in alone if id(one) not in of_nothing or set(one.shape[-2:]) <= queries]
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
                f"{type(self.model).__name__} calls no attention that {type(self).__name__} can read: neither "
                "nn.MultiheadAttention nor F.scaled_dot_product_attention, nor a softmax over (N, heads, tokens, "
                "tokens). If the model uses custom kernels (flash-attn, xformers, flex), switch them off; for a "
                "network without attention use camlib.GradCAM"
            )
        blocks = len(seen) if self.blocks is None else self.blocks
        if blocks > len(seen):
            raise CamlibRuntimeError(
                f"blocks={blocks} is more than {type(self.model).__name__} has: it calls attention {len(seen)} times"
            )
        read = seen[-blocks:]
        for weights in read:
            if weights.dim() != 4 or len(weights) != forward_pass.count or not self.fits(weights, read):
                raise self.not_global(weights, forward_pass)
        return read

    def fits(self, weights: Tensor, read: list[Tensor]) -> bool:
        """Whether an attention can be read together with the others: it has the same keys."""
        return weights.shape[3] == read[0].shape[3]

    def to_patches(self, read: list[Tensor]) -> Tensor:
        """Return the last attention whose keys are the patches."""
        return read[-1]

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
        last = self.to_patches(read)
        layout = keys_layout(self.network, forward_pass.inputs, last, forward_pass.noted.get("positions"))
        if layout is None:
            raise self.not_global(last, forward_pass)
        return layout

    def not_global(self, weights: Tensor, forward_pass: ForwardPass) -> CamlibRuntimeError:
        """Return the error for an attention that cannot be read."""
        size = " x ".join(map(str, forward_pass.size)) if forward_pass.size else "unknown size"
        return CamlibRuntimeError(
            f"{type(self).__name__} needs global attention, (N, heads, queries, keys) with {self.wanted}, but found "
            f"{tuple(weights.shape)} for {forward_pass.count} images of {size}; for windowed attention, such as "
            "Swin's, use camlib.GradCAM. Pass reshape= for another token layout, and forward= to run only an image "
            "branch"
        )


def check_attention(**given: Sequence[Tensor]) -> None:
    """Check what a pure function was given: by name, a sequence of tensors (N, heads, queries, keys), all alike.

    Raises:
        CamlibTypeError, CamlibValueError: an argument is something else, or the shapes differ between the arguments.
    """
    wanted = "(N, heads, queries, keys), one for each block"
    for name, tensors in given.items():
        check_tensors(name, tensors, wanted)
        for one in tensors:
            check_tensor(name, one, wanted)
            if one.dim() != 4:
                raise CamlibValueError(f"{name} must be {wanted}, got {tuple(one.shape)}")
        if not len(tensors):
            raise CamlibValueError(f"{name} must hold at least one tensor {wanted}")
    shapes = {name: [tuple(one.shape) for one in tensors] for name, tensors in given.items()}
    first, *others = shapes.values()
    if any(other != first for other in others):
        raise CamlibValueError(f"{' and '.join(shapes)} must have the same shapes, got {shapes}")


def tokens_read(gradient: Tensor) -> Tensor:
    """Return which tokens the score reads, (N, queries), as 1 or 0.

    A token is read if the score has a gradient with respect to what the token attends to in the last block: the class
    token, all patches behind a mean over them, or the query of a detected object.

    Args:
        gradient: (N, heads, queries, keys), of the scores with respect to the last attention.
    """
    return gradient.ne(0).any(3).any(1).to(gradient.dtype)


def of_tokens_read(relevance: Tensor, gradient: Tensor) -> Tensor:
    """Average the relevance (N, queries, keys) over the tokens that the score reads (:func:`tokens_read`).

    Returns:
        (N, keys); zeros for an image whose score has no gradient.
    """
    read = tokens_read(gradient).to(relevance.dtype)
    return torch.einsum("nq,nqk->nk", divided(read, read.sum(1, keepdim=True)), relevance)


def _is_text(tensor: Tensor) -> bool:
    """Whether a tensor that is neither an input nor the model's looks like the words (N, tokens) of a text."""
    return tensor.dim() == 2 and tensor.dtype in (torch.int64, torch.int32)


def gradients_of(scores: Tensor, attention: list[Tensor]) -> list[Tensor]:
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


def _up_to_the_score(seen: list[Tensor], forward_pass: ForwardPass) -> list[Tensor]:
    """Leave out the attention behind the last that leads to a score, such as that of a pooling head that is not read.

    Attention before it that does not lead to the score stays: it may be hidden, as by a checkpoint, which is an error.
    """
    scores = None if isinstance(forward_pass.target, NoScore) else forward_pass.scores
    if scores is None or not scores.requires_grad:
        return seen
    nodes = Paths(scores, [], seen).nodes
    leads = [number for number, weights in enumerate(seen) if get_gradient_edge(weights).node in nodes]
    return seen[: leads[-1] + 1] if leads else seen


class Attention(ExplicitAttention):
    """Records the attention that this thread computes; the autograd graph begins at the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.compared: dict[int, tuple[Tensor, Tensor]] = {}
        """By the identity of an attention that torch computes, its query and its key."""
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

    def keep(self, weights: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Cut the graph at the first attention, and record each."""
        passed_on: Tensor
        weights, passed_on = tap(weights, "attention")
        if query is not None and key is not None:
            self.compared[id(weights)] = query.detach(), key.detach()
        self.seen.append(weights)
        self.origins.append(self._origins.of(self._arguments))
        return passed_on


_SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}


def _axis(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> int | None:
    return dim
