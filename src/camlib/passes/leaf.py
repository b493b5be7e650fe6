"""The images among a model's inputs, as the leaf that a gradient is taken with respect to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError
from camlib.inputs import Inputs


def as_leaf(inputs: Inputs) -> tuple[Tensor, Inputs]:
    """Return the images, and the same inputs with the images in the graph of that leaf.

    The model gets clones, since it may work on its input in place. Videos with their frames first, (N, T, 3, H, W), it
    gets in that layout; the leaf and every gradient have the channels first all the same.

    Args:
        inputs: what the model takes.

    Returns:
        The leaf (N, C, ...), and the inputs.

    Raises:
        CamlibTypeError: there are no images, or they are not floating-point numbers.
    """
    with torch.enable_grad():
        leaf = inputs.floats.detach().requires_grad_()
        return leaf, inputs.with_images(leaf.clone())


def gradient(scores: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of scores (N,) with respect to the images, each image's of its own score.

    Raises:
        CamlibRuntimeError: the scores do not depend on the images, or are not one for each; or the model checkpoints.
    """
    if len(scores) != len(leaf):
        raise CamlibRuntimeError(
            f"there are {len(scores)} scores for images of shape {tuple(leaf.shape)}; the first axis of the model's "
            "outputs must be the images"
        )
    found = None
    if scores.requires_grad:
        with no_checkpoints():
            (found,) = torch.autograd.grad(scores, leaf, torch.ones_like(scores), retain_graph=True, allow_unused=True)
    if found is None:
        raise CamlibRuntimeError(
            "the score does not depend on the images through autograd: the model detaches them, or runs under "
            "no_grad, or the target reads something else; choose another target, or a method that needs no gradients"
        )
    return found


@contextlib.contextmanager
def no_checkpoints() -> Iterator[None]:
    """Name what is wrong where a backward pass fails because the model computes its activations again.

    The second time the functions that the method watches or replaces are called out of its sight.

    Raises:
        CamlibRuntimeError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        raise checkpointed() from error


def checkpointed() -> CamlibRuntimeError:
    """The error of a model that computes activations again in the backward pass."""
    return CamlibRuntimeError(
        "the model uses activation checkpointing (torch.utils.checkpoint), which computes activations again in the "
        "backward pass, where the method cannot follow; switch it off: memory_efficient=False, "
        "set_grad_checkpointing(False), gradient_checkpointing_disable()"
    )
