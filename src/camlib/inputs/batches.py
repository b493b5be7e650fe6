"""The pictures among a model's inputs: read, and changed as a whole or in their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs.nested import map_tensors, tensors_in

Size = tuple[int, ...]
"""(L,), (H, W) or (T, H, W): samples, pixels or voxels of the input."""


def picture_batch(inputs: Any) -> Tensor:
    """Return the pictures among the inputs as a batch (N, C, ...), channels first.

    Args:
        inputs: what a model takes; a list of pictures (C, H, W) is stacked, of several batches the first is taken.
            Of videos as Hugging Face takes them, (N, T, 3, H, W), it is a view.

    Raises:
        CamlibTypeError: there are none.
    """
    given, size = given_pictures(inputs), _size(inputs)
    return given if given.shape[2:] == size else given.movedim(1, 2)


def given_pictures(inputs: Any) -> Tensor:
    """Return what :func:`picture_batch` does, but as the model takes it: of videos the frames may come first.

    Raises:
        CamlibTypeError: there are none.
    """
    if holds_pictures(inputs):
        return torch.stack(inputs)
    axes = 2 + len(_size(inputs))
    return next(tensor for tensor in tensors_in(inputs) if tensor.dim() == axes)


def with_pictures(inputs: Any, pictures: Tensor) -> Any:
    """Return the inputs with other pictures in the place of :func:`picture_batch`'s.

    Args:
        inputs: what the model takes.
        pictures: as many (N, C, ...), channels first.
    """
    if holds_pictures(inputs):
        return [pictures[image] for image in range(len(pictures))]  # views that may be changed in place
    given = given_pictures(inputs)
    moved = pictures if given.shape[2:] == pictures.shape[2:] else pictures.movedim(1, 2)
    return map_tensors(lambda tensor: moved if tensor is given else tensor, inputs)


def pick_images(inputs: Any, index: Tensor, images: int) -> Any:
    """Return the inputs of some of the images, as often as they are named.

    Args:
        inputs: what the model takes; what has not one row for each image stays as it is.
        index: (rows,) of image numbers.
        images: how many images there are.
    """
    if holds_pictures(inputs):
        return [inputs[image] for image in index.tolist()]

    def pick(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, index) if tensor.dim() and len(tensor) == images else tensor

    return map_tensors(pick, inputs)


def map_pictures(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every picture among the inputs, masks and integers included.

    Args:
        function: of tensors (N, C, ...); it keeps the shape.
        inputs: what a model takes; of a list of pictures (C, H, W), as detectors take them, each is a batch of one.
            What has another number of axes than the pictures stays.

    Returns:
        The inputs, with new pictures.

    Raises:
        CamlibTypeError: there are none.
    """
    if holds_pictures(inputs):
        return [function(picture[None])[0] for picture in inputs]
    axes = 2 + len(_size(inputs))
    return map_tensors(lambda tensor: function(tensor) if tensor.dim() == axes else tensor, inputs)


def map_values(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to the values of the pictures, as :func:`map_pictures`; masks of bools stay.

    Raises:
        CamlibTypeError: there are no pictures, or they hold integers, which cannot change by a little.
    """

    def changed(picture: Tensor) -> Tensor:
        return picture if picture.dtype == torch.bool else function(floating(picture))

    return map_pictures(changed, inputs)


def floating(pictures: Tensor) -> Tensor:
    """Return pictures of floats.

    Raises:
        CamlibTypeError: they are not.
    """
    if not pictures.is_floating_point():
        raise CamlibTypeError(
            f"the pictures are {pictures.dtype}; convert them as the model would, to floats, before the call"
        )
    return pictures


def _size(inputs: Any) -> tuple[int, ...]:
    size = picture_size(inputs)
    if size is None:
        raise CamlibTypeError(
            f"the inputs, a {type(inputs).__name__}, hold neither images (N, C, H, W) nor signals (N, C, L) nor "
            "volumes (N, C, T, H, W)"
        )
    return size


def picture_size(inputs: object) -> Size | None:
    """Return the spatial size of the inputs.

    Args:
        inputs: what a model takes.

    Returns:
        (H, W) of the first tensor (N, C, H, W) among the inputs, or of a list of pictures (C, H, W), as detectors take
        it; failing that (T, H, W) of the first floating (N, C, T, H, W), or (N, T, 3, H, W), as Hugging Face has
        videos; failing that (L,) of the first floating (N, C, L); or None.

    Raises:
        CamlibValueError: a list of pictures of different sizes.

    Example:
        >>> import torch
        >>> picture_size(torch.rand(2, 3, 32, 48)), picture_size([torch.rand(3, 32, 48)])
        ((32, 48), (32, 48))
        >>> picture_size(torch.rand(2, 3, 8, 32, 48)), picture_size(torch.rand(2, 12, 1000))
        ((8, 32, 48), (1000,))
    """
    if holds_pictures(inputs):
        sizes = {tuple(picture.shape[1:]) for picture in inputs}
        if len(sizes) > 1:
            raise CamlibValueError(
                f"the pictures have different sizes, {sorted(sizes)}; maps of one call share one grid: explain "
                "pictures of different sizes in separate calls"
            )
        return sizes.pop()
    tensors = list(tensors_in(inputs))
    for dims in (4, 5, 3):
        shapes = (t.shape for t in tensors if t.dim() == dims and (dims == 4 or t.is_floating_point()))
        shape = next(shapes, None)
        if shape is not None:
            frames_first = dims == 5 and shape[2] == 3 != shape[1]
            return (shape[1], *shape[3:]) if frames_first else tuple(shape[2:])
    return None


def holds_pictures(inputs: object) -> TypeGuard[list[Tensor]]:
    """Whether the inputs are a list of pictures (C, H, W), each of its own size, as torchvision's detectors take it."""
    return isinstance(inputs, list) and bool(inputs) and all(isinstance(x, Tensor) and x.dim() == 3 for x in inputs)
