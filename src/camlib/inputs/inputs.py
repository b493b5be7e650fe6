"""The inputs of a model, parsed once: all tensors, the images among them, and the same inputs with other images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs.nested import copied, map_tensors, tensors_in

Size = tuple[int, ...]
"""(L,), (H, W) or (T, H, W): samples, pixels or voxels of the input."""
_TEXT = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""What Hugging Face calls the inputs of a text."""


class Inputs:
    """The inputs of a model: a tensor, a list of images, or a container that holds a batch of images.

    The images are the first tensor (N, C, H, W), or the list of images (C, H, W) that detectors take. If there are
    none, they are the first floating-point tensor (N, C, T, H, W), or (N, T, 3, H, W), the layout of Hugging Face's
    videos; and if there is none of these, the first floating-point tensor (N, C, L). Patches that Hugging Face has cut
    out already, "pixel_values" with fewer than four axes, are no images, since they do not show where they were.

    Args:
        raw: what the model takes.
        texts_apart: whether texts in it do not belong to the images one by one, so that :meth:`pick` keeps them all.

    Example:
        >>> import torch
        >>> Inputs(torch.rand(2, 3, 32, 48)).size, Inputs([torch.rand(3, 32, 48)]).size
        ((32, 48), (32, 48))
        >>> Inputs({"pixel_values": torch.rand(2, 3, 8, 32, 48), "flag": True}).size, Inputs("text").size
        ((8, 32, 48), None)
    """

    def __init__(self, raw: Any, texts_apart: bool = False) -> None:
        self.raw = raw
        """What the model takes."""
        self.texts_apart = texts_apart
        self.tensors = (raw,) if isinstance(raw, Tensor) else tuple(tensors_in(raw))
        """All tensors in ``raw``, in order."""
        self.is_list = isinstance(raw, list) and bool(raw) and all(isinstance(x, Tensor) and x.dim() == 3 for x in raw)
        """Whether it is a list of images (C, H, W), whose sizes may differ, as torchvision's detectors take it."""

    @cached_property
    def size(self) -> Size | None:
        """(H, W) of images, (L,) of signals, (T, H, W) of videos and volumes; None if there are none.

        Raises:
            CamlibValueError: the images of a list have different sizes.
        """
        if self.is_list:
            sizes = {tuple(image.shape[1:]) for image in self.raw}
            if len(sizes) > 1:
                raise CamlibValueError(
                    f"the images have different sizes, {sorted(sizes)}, but the maps of one call must have the same "
                    "size; explain images of different sizes in separate calls"
                )
            return sizes.pop()
        if self._batch is None:
            return None
        shape = self._batch.shape
        return (shape[1], *shape[3:]) if self._frames_first else tuple(shape[2:])

    @cached_property
    def _batch(self) -> Tensor | None:
        """The tensor that holds the images, in the model's own layout; None for a list, or if there is none."""
        for axes in () if self.is_list else (4, 5, 3):
            for tensor in self.tensors:
                if tensor.dim() == axes and (axes == 4 or tensor.is_floating_point()):
                    return None if axes == 3 and tensor is self._pixel_values else tensor
        return None

    @property
    def location(self) -> tuple[int, tuple[int, ...]] | None:
        """The number of the images' tensor in :attr:`tensors`, and its spatial axes; None if there are no images."""
        if self.is_list:
            return 0, (1, 2)
        if self._batch is None:
            return None
        axes = (1, 3, 4) if self._frames_first else tuple(range(2, self._batch.dim()))
        return next(number for number, tensor in enumerate(self.tensors) if tensor is self._batch), axes

    @property
    def _pixel_values(self) -> Any:
        return self.raw.get("pixel_values") if isinstance(self.raw, Mapping) else None

    @property
    def pictures(self) -> tuple[Tensor, ...]:
        """The tensors that hold the images, as the model gets them; none if there are no images."""
        return self.tensors if self.is_list else () if self._batch is None else (self._batch,)

    @cached_property
    def texts(self) -> tuple[Tensor, ...]:
        """The tensors that hold texts, which Hugging Face names so, or integers (rows, tokens)."""
        if isinstance(self.raw, Mapping):
            found = [self.raw[name] for name in _TEXT if name in self.raw]
            return tuple(one for one in found if isinstance(one, Tensor))
        return tuple(one for one in self.tensors if one.dim() == 2 and one.dtype in (torch.int64, torch.int32))

    @property
    def _frames_first(self) -> bool:
        return self._batch is not None and self._batch.dim() == 5 and self._batch.shape[2] == 3 != self._batch.shape[1]

    @cached_property
    def images(self) -> Tensor:
        """The images as a batch with channels first, (N, C, H, W), (N, C, L) or (N, C, T, H, W).

        A list is stacked; videos with frames first are returned as a view.

        Raises:
            CamlibTypeError: there are no images.
        """
        if self.is_list and self.size is not None:
            return torch.stack(self.raw)
        if self._batch is None:
            raise CamlibTypeError(
                f"the inputs, a {type(self.raw).__name__}, hold neither images (N, C, H, W) nor signals (N, C, L) nor "
                "volumes (N, C, T, H, W)"
            )
        return self._batch.movedim(1, 2) if self._frames_first else self._batch

    @property
    def floats(self) -> Tensor:
        """The :attr:`images`, checked to be floating-point numbers.

        Raises:
            CamlibTypeError: they are not.
        """
        return _floating(self.images)

    @property
    def count(self) -> int:
        """N, the number of images.

        Raises:
            CamlibTypeError: there are no images.
        """
        return len(self.raw) if self.is_list else len(self.images)

    def first(self) -> Inputs:
        """Return the inputs with only the first image; containers other than lists of images are returned unchanged."""
        return Inputs(self.raw[:1]) if self.is_list or isinstance(self.raw, Tensor) else self

    def pick(self, index: Tensor, images: int) -> Inputs:
        """Return the inputs of the images in ``index``, repeated as often as they occur there.

        Args:
            index: (rows,), the number of each row's image.
            images: the number of images; tensors of another length, and texts apart, are returned unchanged.
        """
        if self.is_list:
            return Inputs([self.raw[image] for image in index.tolist()])

        kept = self.texts if self.texts_apart else ()

        def pick(tensor: Tensor) -> Tensor:
            if any(tensor is text for text in kept):
                return tensor
            return tensor.index_select(0, index) if tensor.dim() and len(tensor) == images else tensor

        return self.map(pick)

    def with_images(self, images: Tensor) -> Inputs:
        """Return the inputs with other images in place of :attr:`images`.

        Args:
            images: (N, C, ...), channels first.
        """
        if self.is_list:
            return Inputs([images[image] for image in range(len(images))])
        moved = images.movedim(1, 2) if self._frames_first else images
        return self.map(lambda tensor: moved if tensor is self._batch else tensor)

    def copied(self) -> Inputs:
        """Return a copy that a model may change in place."""
        return Inputs(copied(self.raw), self.texts_apart)

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor."""
        return Inputs(map_tensors(function, self.raw), self.texts_apart)

    def map_images(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor that has as many axes as the images, also to masks.

        Args:
            function: of tensors (N, C, ...), keeping the shape. It gets each image of a list as a batch of one.

        Raises:
            CamlibTypeError: there are no images.
        """
        if self.is_list:
            return Inputs([function(image[None])[0] for image in self.raw])
        axes = self.images.dim()
        return self.map(lambda tensor: function(tensor) if tensor.dim() == axes else tensor)

    def map_values(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied as by :meth:`map_images`, except to masks of bools.

        Raises:
            CamlibTypeError: there are no images, or they are integers, which cannot change by small amounts.
        """
        return self.map_images(lambda image: image if image.dtype == torch.bool else function(_floating(image)))


def _floating(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise CamlibTypeError(
            f"the images are {images.dtype}; convert them to floating point before the call, as the model would"
        )
    return images
