"""The images among a model's inputs, as the leaf that a gradient is taken with respect to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.layouts import holds_pictures
from camlib.nested import map_tensors
from camlib.pictures import picture_batch


def as_leaf(inputs: Any) -> tuple[Tensor, Any]:
    """Return the images, and the same inputs with the images in the graph of that leaf.

    The model is handed clones: it may work on its input in place.

    Args:
        inputs: what the model takes: images (N, C, ...), or a container that holds them, or a list of pictures.

    Returns:
        The leaf (N, C, ...), and the inputs.

    Raises:
        CamlibTypeError: there are none, or they are not floating-point numbers.
    """
    with torch.enable_grad():
        images = picture_batch(inputs)
        leaf = _leaf(images)
        if holds_pictures(inputs):
            return leaf, [picture.clone() for picture in leaf]
        return leaf, map_tensors(lambda tensor: leaf.clone() if tensor is images else tensor, inputs)


def _leaf(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise CamlibTypeError(
            f"the images are {images.dtype}, which has no gradient; convert them as the model would, to floats, "
            "before the call"
        )
    return images.detach().requires_grad_()


def gradient(scores: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of scores (N,) with respect to the images, each image's of its own score.

    Raises:
        CamlibRuntimeError: the scores do not depend on the images, or are not one for each.
    """
    if len(scores) != len(leaf):
        raise CamlibRuntimeError(
            f"there are {len(scores)} scores for images of shape {tuple(leaf.shape)}; the first axis of the model's "
            "outputs must be the images"
        )
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(scores, leaf, torch.ones_like(scores), retain_graph=True, allow_unused=True)
    if found is None:
        raise CamlibRuntimeError(
            "the score does not depend on the images through autograd: the model detaches them, or runs under "
            "no_grad, or the target reads something else; choose another target, or a method that needs no gradients"
        )
    return found
