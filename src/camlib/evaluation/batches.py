"""The images of an evaluation, batch by batch, each with its target and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from camlib import targets
from camlib.errors import CamlibTypeError, CamlibValueError, positive_int
from camlib.inputs import Inputs
from camlib.passes.network import Network
from camlib.passes.rows import with_known_rows
from camlib.targets.indices import integers

SIZE = 16
"""Images per batch of a tensor."""


@dataclass(frozen=True)
class Batch:
    """Some of the images."""

    start: int
    """The number of the first one among all images."""
    inputs: Inputs
    target: Any
    """What is explained."""
    masks: Tensor | None
    """(N, H, W), where the objects are, if known."""

    @property
    def images(self) -> range:
        """The numbers of the images."""
        return range(self.start, self.start + self.inputs.count)

    @property
    def first(self) -> Batch:
        """The first image alone whose pixels are finite; the first image if there is none."""
        return self._single(next(iter(self._finite), 0))

    @property
    def is_usable(self) -> bool:
        """Whether the pixels of an image are finite."""
        return bool(self._finite)

    @cached_property
    def _finite(self) -> list[int]:
        """The places of images whose pixels are finite."""
        return [place for place, image in enumerate(self.inputs.images) if bool(image.isfinite().all())]

    @property
    def singles(self) -> Iterator[Batch]:
        """Every image alone."""
        return map(self._single, range(len(self.images)))

    def _single(self, place: int) -> Batch:
        one = slice(place, place + 1)
        index = torch.tensor([place], device=self.inputs.images.device)
        target = self.target[one] if isinstance(self.target, Tensor) else self.target
        masks = None if self.masks is None else self.masks[one]
        return Batch(self.start + place, self.inputs.pick(index, self.inputs.count), target, masks)


class Batches:
    """All batches of a loader, with the target and the masks of their images.

    Args:
        loader: batches: inputs, or tuples that begin with them, as a DataLoader gives; or a tensor of images.
        target: as for :func:`camlib.evaluate`.
        masks: (M, H, W) of bools, or None.
        max_images: the most images to read.
        network: the network that takes them.

    Raises:
        CamlibTypeError: ``target`` or ``max_images`` is of another type.
        CamlibValueError: ``target`` or ``max_images`` cannot work; on iteration, there are no images, or the number or
            the size of targets or masks does not match them.
    """

    def __init__(self, loader: Any, target: Any, masks: Any, max_images: int | None, network: Network) -> None:
        if not isinstance(loader, (Tensor, Iterable)) or isinstance(loader, (str, bytes)):
            raise CamlibTypeError(
                f"loader must give batches, as a DataLoader, a list of them or a tensor of images, got a "
                f"{type(loader).__name__}"
            )
        if getattr(loader, "ndim", 4) == 0:
            raise CamlibValueError("loader is a single number; give a tensor of images, or batches of them")
        if masks is not None:
            try:
                masks = torch.as_tensor(masks)
            except (TypeError, ValueError, RuntimeError) as error:
                raise CamlibTypeError(f"masks must be a tensor or an array (M, H, W), got {masks!r}") from error
            if masks.dim() < 2:
                raise CamlibValueError(f"masks must be a tensor or an array (M, H, W), got shape {tuple(masks.shape)}")
        self._network = network
        self._whole = loader if isinstance(loader, Tensor) else None
        self._loader = loader.split(SIZE) if isinstance(loader, Tensor) and loader.dim() else loader
        self.target = _checked_target(target)
        """The target of all images."""
        self._masks = masks
        self._limit = None if max_images is None else positive_int("max_images", max_images)

    @property
    def total(self) -> int | None:
        """How many images there are, if known."""
        known = [self._limit, None if self._masks is None else len(self._masks)]
        return min((count for count in known if count is not None), default=None)

    def given(self, batch: Batch) -> Any:
        """Return the images as they were given: the tensor of all, or those of a batch."""
        return batch.inputs.raw if self._whole is None else self._whole

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for given in self._loader:
            inputs = with_known_rows(self._network, self._network.ready(_inputs_of(given)))
            if inputs.images.is_meta:
                raise CamlibValueError("the images are on the device 'meta', where tensors have no values")
            if self._limit is not None and start + inputs.count > self._limit:
                inputs = _first(inputs, self._limit - start)
            images = range(start, start + inputs.count)
            yield Batch(start, inputs, self._target_of(images), self._masks_of(images, inputs))
            start = images.stop
            if start == self._limit:
                break
        if not start:
            raise CamlibValueError("the loader gave no images; give at least one batch")
        for name, of_images in (("masks", self._masks), ("target", self.target)):
            if self._limit is None and hasattr(of_images, "__len__") and len(of_images) != start:
                raise CamlibValueError(
                    f"{name} has entries for {len(of_images)} images, but the loader gave {start}; give one for each"
                )

    def _target_of(self, images: range) -> Any:
        if not isinstance(self.target, Tensor):
            return self.target
        if len(self.target) < images.stop:
            raise CamlibValueError(
                f"target has classes for {len(self.target)} images, but there are more; give one for each image"
            )
        return self.target[images.start : images.stop]

    def _masks_of(self, images: range, inputs: Inputs) -> Tensor | None:
        if self._masks is None:
            return None
        masks = torch.as_tensor(self._masks[images.start : images.stop])
        if tuple(masks.shape) != (len(images), *(inputs.size or ())):
            raise CamlibValueError(
                f"masks of images {images[0]} to {images[-1]} have shape {tuple(masks.shape)}, and the inputs "
                f"{tuple(inputs.images.shape)}; give a mask for each image, of the inputs' size"
            )
        return masks


def _inputs_of(given: Any) -> Inputs:
    """Return the inputs that a batch is, or begins with."""
    if isinstance(given, tuple):
        return Inputs(given[0])
    inputs = Inputs(given)
    return Inputs(given[0]) if isinstance(given, list) and not inputs.is_list else inputs


def _first(inputs: Inputs, count: int) -> Inputs:
    index = torch.arange(count, device=inputs.images.device)
    return inputs.pick(index, inputs.count)


def _checked_target(target: Any) -> Any:
    """Return the target; classes of all images, of whatever type, as a tensor (M,)."""
    if target is None or callable(target) or isinstance(target, (targets.Target, int, targets.TopK)):
        return target
    classes = integers(target)
    if classes.dim() == 0:
        return int(classes)
    if classes.dim() != 1:
        raise CamlibValueError(
            f"target has shape {tuple(classes.shape)}; a metric evaluates one heatmap of each image: give one class "
            "for each, or for all"
        )
    return classes
