"""What a call is given to explain, as batches of inputs with the pictures that show them."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from camlib.datasets.alignment import transformed, window_of
from camlib.datasets.results import as_picture
from camlib.datasets.source import source_of
from camlib.errors import CamlibError, CamlibTypeError, CamlibValueError
from camlib.imaging.geometry import Window
from camlib.inputs.nested import map_tensors
from camlib.loading import Loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SOURCES = "a path, a folder, a glob, a PIL image, an array (H, W, 3), a tensor, a DataLoader, or a list of these"
"""What can be explained."""


@dataclass(frozen=True)
class Batch:
    """Inputs, and what the network sees of each picture."""

    inputs: Any
    """On the model's device, in its type of numbers."""
    pictures: Sequence[NDArray[np.uint8]] | None
    """None if the inputs are no pictures."""
    count: int | None
    """How many images; None for inputs that the model alone understands."""


def batches_of(source: Any, loaded: Loaded, batch_size: int) -> Iterator[Batch]:
    """Yield what is to be explained.

    Args:
        source: as for :func:`camlib.explain`.
        loaded: the network, with the transforms for pictures.
        batch_size: the most pictures in a batch.

    Raises:
        CamlibTypeError: the source is something else, or pictures need transforms.
        CamlibValueError: a picture cannot be read, there is none, or the transforms give inputs of different sizes.
    """
    preparation = Preparation(loaded)
    if (pictures := _pictures_in(source)) is not None:
        while some := list(itertools.islice(pictures, batch_size)):
            yield preparation.of_pictures(some)
    elif isinstance(source, Tensor) and source.dim() > 3 and not source.is_meta:
        for part in source.split(batch_size):
            yield preparation.of_inputs(part)
    elif isinstance(source, Tensor) and (source.dim() < 2 or source.is_meta):
        raise CamlibTypeError(f"source must be {SOURCES}; got a tensor {tuple(source.shape)} on {source.device}")
    elif isinstance(source, (Tensor, Mapping, tuple)) or _is_list_of_images(source):
        yield preparation.of_inputs(source)
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)) and not _is_array(source):
        for batch in source:
            yield preparation.of_inputs(_without_labels(batch))
    else:
        raise CamlibTypeError(f"source must be {SOURCES}; got {type(source).__name__}")


class Preparation:
    """Turns pictures into inputs, and inputs into pictures.

    Args:
        loaded: the network with its transforms.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.window: Callable[[tuple[int, int]], Window | None] = functools.lru_cache(256)(self._window)
        """From the size (H, W) of pictures to the part that the network sees; None if the transforms do not show it."""

    def of_pictures(self, pictures: Sequence[NDArray[np.uint8]]) -> Batch:
        """Return the inputs that the transforms make of pictures, with what they show of them."""
        if self._loaded.transforms is None:
            what = self._loaded.name or type(self._loaded.model).__name__
            raise CamlibTypeError(
                f"the transforms of {what} are not known; give transforms=, from a PIL image to a tensor (C, H, W), "
                "such as torchvision's weights.transforms(), or give the model's own inputs as a tensor"
            )
        inputs = [transformed(self._loaded.transforms, picture) for picture in pictures]
        seen = []
        for picture, one in zip(pictures, inputs, strict=True):
            window = self.window((picture.shape[0], picture.shape[1]))
            seen.append(self._of_input(one) if window is None else seen_in(window, picture))
        if takes_lists(self._loaded.model):
            return Batch(self._moved(inputs), seen, len(inputs))
        sizes = {tuple(one.shape) for one in inputs}
        if len(sizes) > 1:
            raise CamlibValueError(
                f"the transforms give inputs of different sizes, {sorted(sizes)}; let them crop, or explain the "
                "pictures one by one"
            )
        return Batch(self._moved(torch.stack(inputs)), seen, len(inputs))

    def of_inputs(self, inputs: Any) -> Batch:
        """Return inputs with pictures of them, if they are images with one or three channels."""
        images = inputs.get("pixel_values") if isinstance(inputs, Mapping) else inputs
        if isinstance(images, Tensor) and images.dim() == 3:
            images = images[None]
        if not isinstance(images, (Tensor, list)):
            return Batch(self._moved(inputs), None, None)
        ready = all(isinstance(one, Tensor) and one.dim() == 3 and one.shape[0] in (1, 3) for one in images)
        return Batch(self._moved(inputs), [self._of_input(one) for one in images] if ready else None, len(images))

    def _moved(self, inputs: Any) -> Any:
        """Return inputs on the model's device, in its type of numbers."""
        state = next(self._loaded.model.parameters(), None)
        if state is None:
            return inputs
        return map_tensors(
            lambda one: one.to(state.device, state.dtype if one.is_floating_point() else one.dtype), inputs
        )

    def _of_input(self, image: Tensor) -> NDArray[np.uint8]:
        """The picture that an input (C, H, W) shows: its normalisation is undone, or else it is stretched to [0, 1]."""
        values = image.detach().cpu().double().nan_to_num()
        if self._scale is not None and self._scale[0].shape[0] == image.shape[0]:
            black, white = self._scale
            values = (values - black) / (white - black)
        elif float(values.min()) < 0 or float(values.max()) > 1:
            values = (values - values.min()) / (values.max() - values.min()).clamp(min=torch.finfo(values.dtype).tiny)
        return as_picture(values.clamp(0, 1).float())

    @functools.cached_property
    def _scale(self) -> tuple[Tensor, Tensor] | None:
        """The values (C, 1, 1) of black and of white in the input; None if they are not known."""
        import numpy as np

        if self._loaded.transforms is None:
            return None
        ends = [
            transformed(self._loaded.transforms, np.full((64, 64, 3), value, np.uint8)).double().flatten(1).median(1)
            for value in (0, 255)
        ]
        black, white = (end.values[:, None, None].cpu() for end in ends)
        return (black, white) if bool((white != black).all()) else None

    def _window(self, size: tuple[int, int]) -> Window | None:
        try:
            return window_of(self._loaded.transforms, size, repeated=True)
        except CamlibValueError:
            return None


def seen_in(window: Window, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what a network sees of a picture, at the picture's resolution: cropped, mirrored, padded with black.

    Example:
        >>> import numpy as np
        >>> seen_in(Window((4, 6), (2, 2), (0, 1, 4, 5)), np.zeros((4, 6, 3), np.uint8)).shape
        (4, 4, 3)
    """
    import numpy as np

    first_row, first_column, last_row, last_column = window.box
    top, left = round(min(first_row, last_row)), round(min(first_column, last_column))
    bottom = top + max(1, round(abs(last_row - first_row)))
    right = left + max(1, round(abs(last_column - first_column)))
    result = np.zeros((bottom - top, right - left, picture.shape[2]), np.uint8)
    rows, columns = max(0, top), max(0, left)
    part = picture[rows:bottom, columns:right]
    result[rows - top :, columns - left :][: part.shape[0], : part.shape[1]] = part
    return np.ascontiguousarray(
        result[:: 1 if first_row <= last_row else -1, :: 1 if first_column <= last_column else -1]
    )


def takes_lists(model: nn.Module) -> bool:
    """Whether a model takes a list of images of any size, as torchvision's detectors do.

    Example:
        >>> takes_lists(nn.Linear(2, 2))
        False
    """
    return type(getattr(model, "transform", None)).__name__ == "GeneralizedRCNNTransform"


def _pictures_in(source: Any) -> Iterator[NDArray[np.uint8]] | None:
    """The pictures of a source; None if it holds inputs."""
    if _is_picture(source):
        return iter([as_picture(source)])
    if isinstance(source, (str, PathLike)):
        return _read(source)
    if _is_array(source) and source.ndim == 4:
        return map(as_picture, source)
    named = isinstance(source, (list, tuple)) and bool(source)
    if named and all(_is_picture(one) or isinstance(one, (str, PathLike)) for one in source):
        return itertools.chain.from_iterable(
            _read(one) if isinstance(one, (str, PathLike)) else [as_picture(one)] for one in source
        )
    if isinstance(source, (list, tuple)) and not source:
        raise CamlibValueError(f"source is empty; give {SOURCES}")
    return None


def _read(path: str | PathLike[str]) -> Iterator[NDArray[np.uint8]]:
    """The pictures of a path, a folder or a glob."""
    source = source_of(path, Path(os.devnull))
    empty = True
    for item in source:
        empty = False
        if item.fault:
            raise CamlibValueError(f"{item.path} cannot be read: {item.fault}")
        yield source.read(item)
    if empty:
        raise CamlibValueError(f"{os.fspath(path)} holds no pictures; give {SOURCES}")


def _is_picture(value: Any) -> bool:
    """Whether a value is one picture as people look at it: floating-point tensors are inputs instead."""
    if isinstance(value, Tensor):
        return value.dtype == torch.uint8 and value.dim() in (2, 3)
    return (_is_array(value) and value.ndim in (2, 3)) or (hasattr(value, "convert") and hasattr(value, "mode"))


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "ndim")


def _is_list_of_images(value: Any) -> bool:
    """Whether a value is a list of tensors (C, H, W), as detectors take it."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, Tensor) and one.dim() == 3 for one in value)


def _without_labels(batch: Any) -> Any:
    """The inputs that a batch of a DataLoader is, or begins with."""
    if isinstance(batch, tuple) or (isinstance(batch, list) and not _is_list_of_images(batch)):
        if not batch:
            raise CamlibError("a batch of the loader is an empty tuple or list; its first entry must be the inputs")
        return batch[0]
    return batch
