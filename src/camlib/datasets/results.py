"""Images while a run explains them: loaded, explained, or failed with a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from camlib.datasets.alignment import transformed, window_of
from camlib.datasets.source import Item, reason
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibTypeError, CamlibValueError, NotFiniteError
from camlib.explanation import Explanation
from camlib.imaging.geometry import Window
from camlib.targets import class_probabilities

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEPT_PIXELS = 2**22
"""Pictures of more pixels are read again for their overlay, rather than kept while their batch is explained."""
WINDOWS = 256
"""How many sizes of pictures are remembered with their windows."""


@dataclass
class Loaded:
    """An image that was read."""

    item: Item
    input: Tensor
    """(C, H, W)."""
    picture: NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    window: Window | None = None


@dataclass
class Failed:
    """An image that has no map."""

    item: Item
    reason: str
    error: BaseException | None = None
    """An error of the transforms, or of the explanation of the image alone."""


@dataclass
class Result:
    """An image with its explanation, on the CPU."""

    loaded: Loaded
    explanation: Explanation
    confidence: float | None


class Reader(Protocol):
    """What reads the images of a source."""

    def read(self, item: Item) -> Any:
        """Return the picture (H, W, 3), uint8; or what the dataset holds."""


class Loader:
    """Reads images and transforms them; several threads may share it.

    Args:
        source: where they come from.
        transforms: what takes a PIL image and returns the input; None for datasets whose entries are inputs.
        aligned: whether it must be known which part of a picture its input shows.
    """

    def __init__(self, source: Reader, transforms: Any, *, aligned: bool) -> None:
        self._source, self._transforms, self._aligned = source, transforms, aligned
        self._windows: dict[tuple[int, int], Window | None] = {}
        self._lock = threading.Lock()

    def __call__(self, item: Item) -> Loaded | Failed:
        """Return an image, or why it has none."""
        if item.fault:
            return Failed(item, item.fault)
        try:
            found = self._source.read(item)
        except Exception as error:  # a dataset may raise anything for an image
            return Failed(item, reason(error))
        try:
            return self._transformed(item, found)
        except Exception as error:
            return Failed(item, reason(error), error)

    def again(self, item: Item) -> Any:
        """Return the picture of an image that was read before."""
        return as_picture(self._source.read(item))

    def _transformed(self, item: Item, found: Any) -> Loaded:
        if isinstance(found, Tensor) and found.is_floating_point():
            if found.dim() < 2:
                raise CamlibTypeError(f"the dataset must hold images (C, H, W), got a tensor {tuple(found.shape)}")
            if found.is_meta:
                raise CamlibTypeError("the dataset must hold images with values, got a tensor on the meta device")
            return Loaded(item, found.detach())
        if self._transforms is None:
            raise CamlibTypeError(
                f"the dataset must hold tensors of floating-point numbers, got {type(found).__name__}; give "
                "transforms= for pictures"
            )
        picture = as_picture(found)
        size = (picture.shape[0], picture.shape[1])
        image = transformed(self._transforms, picture)
        window = self._window(size, image)
        return Loaded(item, image, picture if size[0] * size[1] <= KEPT_PIXELS else None, size, window)

    def _window(self, size: tuple[int, int], image: Tensor) -> Window | None:
        with self._lock:
            if size not in self._windows:
                if len(self._windows) >= WINDOWS:
                    self._windows.pop(next(iter(self._windows)))
                try:
                    self._windows[size] = window_of(self._transforms, size, repeated=not self._windows)
                except CamlibValueError:
                    if self._aligned:
                        raise
                    self._windows[size] = None
            return self._windows[size]


def as_picture(found: Any) -> NDArray[np.uint8]:
    """Return a picture of a dataset, (H, W, 3): a PIL image, upright; an array; or a tensor of uint8.

    Raises:
        CamlibTypeError, CamlibValueError: it is something else, or it cannot be decoded.
    """
    from camlib.imaging.rgb import as_rgb

    if hasattr(found, "getexif"):
        from PIL import ImageOps

        try:
            found = ImageOps.exif_transpose(found)
        except OSError as error:  # it is decoded here
            raise CamlibValueError(f"a picture cannot be decoded: {error}") from error
    return as_rgb(found)


class Explaining:
    """Explains batches, and the images of a batch one by one if the batch fails.

    Args:
        explainer: the method, or a smoothing of one.
        target: what is explained, as for :func:`camlib.explain_dataset`.
        device: where the model is.
        worked: whether images were explained before, so that the arguments are right.
    """

    def __init__(
        self, explainer: Callable[..., Explanation], target: Any, device: torch.device, *, worked: bool = False
    ) -> None:
        self._explainer, self._device = explainer, device
        self._target = target
        self._listed = listed(target)
        self._worked = worked

    def __call__(self, batch: Sequence[Loaded | Failed]) -> list[Result | Failed]:
        """Return the results of a batch, in order.

        Raises:
            CamlibError: no image of the run was explained so far, and all of this batch fail for a reason of the
                arguments.
        """
        found: dict[int, Result | Failed] = {one.item.number: one for one in batch if isinstance(one, Failed)}
        loaded = [one for one in batch if isinstance(one, Loaded)]
        for group in _alike(loaded):
            found |= {one.item.number: result for one, result in zip(group, self._explained(group), strict=True)}
        results = [found[one.item.number] for one in batch]
        self._worked = self._worked or any(isinstance(one, Result) for one in results)
        if not self._worked:
            self._raise_if_of_arguments(results)
        return results

    @staticmethod
    def _raise_if_of_arguments(results: Sequence[Result | Failed]) -> None:
        errors = [one.error for one in results if isinstance(one, Failed)]
        if errors and all(errors) and not any(isinstance(one, NotFiniteError) for one in errors):
            first = errors[0]
            if isinstance(first, CamlibError):
                raise first
            raise CamlibRuntimeError(f"the transforms failed for every image of a batch: {first!r}") from first

    def _explained(self, group: Sequence[Loaded]) -> list[Result | Failed]:
        try:
            return self._together(group)
        except CamlibError as error:
            if len(group) == 1:
                return [Failed(group[0].item, reason(error), error)]
        return [one for alone in group for one in self._explained([alone])]

    def _together(self, group: Sequence[Loaded]) -> list[Result | Failed]:
        images = torch.stack([one.input for one in group])
        if self._device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self._device, non_blocking=True)
        explanation = self._explainer(images, self._target_of([one.item.number for one in group]))
        chances = _confidences(explanation)
        explanation = explanation.cpu()
        missing = explanation.missing.tolist()
        return [
            Failed(one.item, "a number is not finite for this image", NotFiniteError("not finite"))
            if missing[place]
            else Result(one, explanation[place], chances[place])
            for place, one in enumerate(group)
        ]

    def _target_of(self, numbers: Sequence[int]) -> Any:
        if self._listed is None:
            return self._target
        if max(numbers) >= len(self._listed):
            raise CamlibValueError(
                f"target has classes for {len(self._listed)} images, but the source has more; give one for each image"
            )
        return self._listed[torch.tensor(numbers)]


def listed(target: Any) -> Tensor | None:
    """Return the classes of a target that has some for each image; None for another target."""
    from camlib.targets.indices import as_tensor

    if isinstance(target, (list, tuple)) or (hasattr(target, "ndim") and target.ndim):
        return as_tensor(target, f"target must hold a class for each image, got {target!r}")
    return None


def _alike(loaded: Sequence[Loaded]) -> Iterator[list[Loaded]]:
    """Yield lists of images that make a batch: of one shape and type."""
    groups: dict[Any, list[Loaded]] = {}
    for one in loaded:
        groups.setdefault((one.input.shape, one.input.dtype), []).append(one)
    yield from groups.values()


def _confidences(explanation: Explanation) -> list[float | None]:
    """The probability of the predicted class of each image; None where the model has no classes."""
    try:
        chances = class_probabilities(explanation.outputs)
    except CamlibError:
        return [None] * len(explanation)
    if chances.dim() != 2 or len(chances) != len(explanation):
        return [None] * len(explanation)
    return chances.amax(1).tolist()
