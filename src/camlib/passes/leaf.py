"""The images among a model's inputs as a leaf of the autograd graph, and gradients with respect to them."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError
from camlib.inputs import Inputs
from camlib.passes.checkpoints import no_checkpoints


def as_leaf(inputs: Inputs) -> tuple[Tensor, Inputs]:
    """Return the images as a leaf, and the same inputs with images that depend on that leaf.

    The model gets videos with frames first, (N, T, 3, H, W), in that layout; the leaf and every gradient have channels
    first.

    Args:
        inputs: what the model takes.

    Returns:
        The leaf (N, C, ...), and the inputs.

    Raises:
        CamlibTypeError: there are no images, or they are not floating-point numbers.
    """
    with torch.enable_grad():
        leaf = inputs.floats.detach().requires_grad_()
        return leaf, inputs.with_images(leaf)


def gradient(scores: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of scores (N,), one per image, with respect to the images.

    Raises:
        CamlibRuntimeError: the scores do not depend on the images, or there is not one per image; or the model uses
            activation checkpointing.
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
            "no_grad, or the target uses other tensors; choose another target, or a method that needs no gradients"
        )
    return found
