"""The inputs of a model, parsed once: all tensors, the images among them, and the same inputs with other images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs.nested import copied, map_tensors, tensors_in

Size = tuple[int, ...]
"""(L,), (H, W) or (T, H, W): samples, pixels or voxels of the input."""
_TEXT = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""What Hugging Face calls the inputs of a text."""
_SPATIAL: dict[int, list[Size]] = {
    2: [(1,)],
    3: [(2,), (1, 2), (1,)],
    4: [(2, 3), (1, 2), (1, 2, 3)],
    5: [(2, 3, 4), (1, 3, 4), (1, 2, 3)],
}
"""The spatial axes that a tensor may have, by the number of its axes."""


class ImageAxes(NamedTuple):
    """Where the images are among the tensors of the inputs."""

    tensor: int
    """The number of their tensor."""
    spatial: tuple[int, ...]
    """Its spatial axes, in the order of the grids. Its first axis is the rows, and one that is left is the channels."""


class Inputs:
    """The inputs of a model: a tensor, a list of images, or a container that holds a batch of images.

    The images are the first tensor (N, C, H, W), or the list of images (C, H, W) that detectors take. If there are
    none, they are the first floating-point tensor (N, C, T, H, W), or (N, T, 3, H, W), the layout of Hugging Face's
    videos; and if there is none of these, the first floating-point tensor (N, C, L). Patches that Hugging Face has cut
    out already, "pixel_values" with fewer than four axes, are no images, since they do not show where they were.

    Args:
        raw: what the model takes.
        shared: tensors in it that all images share, such as the texts that each image is compared with, so that
            :meth:`pick` keeps them; None if this is not known. ``camlib.passes.rows.with_known_rows`` finds out.
        axes: where the images are, if that is known from a pass; None for the rule above.

    Example:
        >>> import torch
        >>> Inputs(torch.rand(2, 3, 32, 48)).size, Inputs([torch.rand(3, 32, 48)]).size
        ((32, 48), (32, 48))
        >>> Inputs({"pixel_values": torch.rand(2, 3, 8, 32, 48), "flag": True}).size, Inputs("text").size
        ((8, 32, 48), None)
        >>> spectrograms = Inputs(torch.rand(2, 100, 80), axes=ImageAxes(0, (1, 2)))
        >>> spectrograms.size, spectrograms.images.shape
        ((100, 80), torch.Size([2, 1, 100, 80]))
    """

    def __init__(self, raw: Any, shared: tuple[Tensor, ...] | None = None, axes: ImageAxes | None = None) -> None:
        self.raw = raw
        """What the model takes."""
        self.shared = shared
        """The tensors that all images share; None if this is not known."""
        self.tensors = (raw,) if isinstance(raw, Tensor) else tuple(tensors_in(raw))
        """All tensors in ``raw``, in order."""
        self.is_list = isinstance(raw, list) and bool(raw) and all(isinstance(x, Tensor) and x.dim() == 3 for x in raw)
        """Whether it is a list of images (C, H, W), whose sizes may differ, as torchvision's detectors take it."""
        self.axes = self._usual_axes() if axes is None else axes
        """Where the images are; None if there are none."""

    def along(self, axes: ImageAxes | None) -> Inputs:
        """Return the same inputs, with the images where a pass showed them."""
        return self if axes is None or not axes.spatial or axes == self.axes else Inputs(self.raw, self.shared, axes)

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """Names and sizes, the key under which layers and layouts are remembered."""
        if self.is_list:
            return "list", self.size
        names = tuple(self.raw) if isinstance(self.raw, Mapping) else len(self.tensors)
        sizes = (tuple(one.shape[1:]) for one in self.tensors if one.is_floating_point() and one.dim() > 1)
        return names, *sizes

    def _usual_axes(self) -> ImageAxes | None:
        if self.is_list:
            return ImageAxes(0, (1, 2))
        for axes in (4, 5, 3):
            for number, tensor in enumerate(self.tensors):
                if tensor.dim() == axes and (axes == 4 or tensor.is_floating_point()):
                    if axes == 3 and tensor is self._pixel_values:
                        return None
                    frames_first = axes == 5 and tensor.shape[2] == 3 != tensor.shape[1]
                    return ImageAxes(number, (1, 3, 4) if frames_first else tuple(range(2, axes)))
        return None

    def possible_axes(self) -> list[ImageAxes]:
        """Return all places where the images may be, the usual one first; a pass decides."""
        possible = [] if self.axes is None else [self.axes]
        if not self.is_list:
            for number, tensor in enumerate(self.tensors):
                cut_out = tensor is self._pixel_values and tensor.dim() < 4
                if not cut_out and (tensor.is_floating_point() or tensor.dim() > 3):
                    possible += [ImageAxes(number, spatial) for spatial in _SPATIAL.get(tensor.dim(), ())]
        return list(dict.fromkeys(possible))

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
        if self._batch is None or self.axes is None:
            return None
        return tuple(self._batch.shape[axis] for axis in self.axes.spatial)

    @property
    def _batch(self) -> Tensor | None:
        """The tensor that holds the images, in the model's own layout; None for a list, or if there is none."""
        return None if self.is_list or self.axes is None else self.tensors[self.axes.tensor]

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

    @cached_property
    def ambiguous(self) -> tuple[Tensor, ...]:
        """Tensors with as many rows as there are images, which may belong to the images one by one, or be shared.

        None are ambiguous where :attr:`shared` is known.
        """
        if self.shared is not None or self.is_list or self._batch is None:
            return ()
        count = len(self._batch)
        return tuple(one for one in self.tensors if one is not self._batch and one.dim() and len(one) == count)

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
        return self._channels_first(self._batch)

    def _channels_first(self, tensor: Tensor) -> Tensor:
        """(N, C, ...) from a tensor with the axes of the images' tensor; C is 1 if it has no channels."""
        order = self._order
        images = tensor if order == tuple(range(len(order))) else tensor.permute(order)
        return images.unsqueeze(1) if self._has_no_channels else images

    def _as_given(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`_channels_first`."""
        order = self._order
        images = images.squeeze(1) if self._has_no_channels else images
        if order == tuple(range(len(order))):
            return images
        return images.permute([order.index(axis) for axis in range(len(order))])

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The axes of the images' tensor: the rows, the channels if it has any, and the spatial axes."""
        assert self._batch is not None
        assert self.axes is not None
        channels = [axis for axis in range(1, self._batch.dim()) if axis not in self.axes.spatial]
        return 0, *channels, *self.axes.spatial

    @property
    def _has_no_channels(self) -> bool:
        return self.axes is not None and len(self._order) == 1 + len(self.axes.spatial)

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
        alone = self.is_list or isinstance(self.raw, Tensor)
        return Inputs(self.raw[:1], self.shared, self.axes) if alone else self

    def pick(self, index: Tensor, images: int) -> Inputs:
        """Return the inputs of the images in ``index``, repeated as often as they occur there.

        Args:
            index: (rows,), the number of each row's image.
            images: the number of images; tensors of another length, and those that are :attr:`shared`, are returned
                unchanged.
        """
        if self.is_list:
            return Inputs([self.raw[image] for image in index.tolist()])

        def pick(tensor: Tensor) -> Tensor:
            if any(tensor is one for one in self.shared or ()):
                return tensor
            return tensor.index_select(0, index) if tensor.dim() and len(tensor) == images else tensor

        return self.map(pick)

    def with_images(self, images: Tensor) -> Inputs:
        """Return the inputs with other images in place of :attr:`images`.

        Args:
            images: (N, C, ...), channels first.
        """
        if self.is_list:
            return Inputs([images[image] for image in range(len(images))])  # views that may be changed in place
        own, given = self._batch, images if self._batch is None else self._as_given(images)
        return self.map(lambda tensor: given if tensor is own else tensor)

    def copied(self) -> Inputs:
        """Return a copy that a model may change in place."""
        return Inputs(copied(self.raw), self.shared, self.axes)

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor."""
        shared: list[Tensor] = []

        def apply(tensor: Tensor) -> Tensor:
            applied = function(tensor)
            if any(tensor is one for one in self.shared or ()):
                shared.append(applied)
            return applied

        raw = map_tensors(apply, self.raw)
        return Inputs(raw, None if self.shared is None else tuple(shared), self.axes)

    def map_images(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor that has as many axes as the images, also to masks.

        Tensors that are :attr:`shared` are left as they are.

        Args:
            function: of tensors (N, C, ...), keeping the shape. It gets each image of a list as a batch of one.

        Raises:
            CamlibTypeError: there are no images.
        """
        if self.is_list:
            return Inputs([function(image[None])[0] for image in self.raw])
        _ = self.images  # or there are none
        axes, shared = len(self._order), self.shared or ()

        def apply(tensor: Tensor) -> Tensor:
            if tensor.dim() != axes or any(tensor is one for one in shared):
                return tensor
            return self._as_given(function(self._channels_first(tensor)))

        return self.map(apply)

    def map_values(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied as by :meth:`map_images`, except to masks of bools.

        Raises:
            CamlibTypeError: there are no images, or they are integers, which cannot change by small amounts.
        """
        return self.map_images(lambda image: image if image.dtype == torch.bool else function(_floating(image)))

    def map_rows(self, function: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Inputs:
        """Return the inputs with a function applied as by :meth:`map_values`, which also gets a value for each row.

        Tensors that have neither N rows nor a single one, for all images, are left as they are.

        Args:
            function: of tensors (N, C, ...) or (1, C, ...), and values (N,). It gets each image of a list as a batch of
                one, with its value.
            values: (N,).

        Raises:
            CamlibTypeError: as for :meth:`map_values`.
        """
        if self.is_list:
            of_row = iter(values.split(1))
            return self.map_values(lambda image: function(image, next(of_row)))
        fitting = (1, len(values))
        return self.map_values(lambda images: function(images, values) if len(images) in fitting else images)


def _floating(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        raise CamlibTypeError(
            f"the images are {images.dtype}; convert them to floating point before the call, as the model would"
        )
    return images
