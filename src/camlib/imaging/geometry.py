"""From the original picture to the network's input and back: resizing, centre crops, letterboxes.

Each geometry knows both sizes. ``apply`` turns the picture into the input; ``restore`` maps a heatmap of the input back
to the original picture's pixels; ``then`` chains: ``Resize((480, 640), (256, 341)).then(CenterCrop((256, 341), (224,
224)))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number, positive_int
from camlib.imaging.normalization import as_maps, like
from camlib.imaging.resizing import checked_size, resize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Maps = TypeVar("Maps", Tensor, "NDArray[np.generic]")
Size = tuple[int, int]


class Geometry(ABC):
    """A transformation from pictures of one size to inputs of another, which can be undone for heatmaps."""

    original: Size
    """(H, W) of the picture."""
    result: Size
    """(H, W) of the input."""

    def apply(self, pictures: Maps) -> Maps:
        """Turn pictures (..., H, W), a tensor or an array, into the network's input.

        Raises:
            CamlibValueError: the pictures are not of the original size.
        """
        tensor = as_maps(pictures, "pictures")
        if tuple(tensor.shape[-2:]) != self.original:
            raise CamlibValueError(
                f"this geometry takes pictures of {self.original}, got {tuple(tensor.shape[-2:])} (height, width)"
            )
        result: Maps = like(self._apply(tensor), pictures)
        return result

    def restore(self, heatmaps: Maps) -> Maps:
        """Map heatmaps (..., h, w) of the input, at any resolution, back to the original picture: (..., H, W).

        Pixels outside a crop, which the network did not see, are zero.
        """
        result: Maps = like(self._restore(resize(as_maps(heatmaps, "heatmaps"), self.result)), heatmaps)
        return result

    def then(self, following: Geometry) -> Geometry:
        """Return this geometry followed by another.

        Raises:
            CamlibValueError: the other's original size is not the result size of this one.
        """
        if not isinstance(following, Geometry):
            raise CamlibTypeError(f"a geometry is followed by another, got {type(following).__name__}: {following!r}")
        if following.original != self.result:
            raise CamlibValueError(f"the first geometry ends at {self.result}, but the next takes {following.original}")
        return Chain(self.original, following.result, self, following)

    def __post_init__(self) -> None:
        for name in ("original", "result"):
            object.__setattr__(self, name, checked_size(getattr(self, name)))  # a list becomes a tuple

    @abstractmethod
    def _apply(self, pictures: Tensor) -> Tensor: ...

    @abstractmethod
    def _restore(self, heatmaps: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Resize(Geometry):
    """Resize the picture to the size of the input, whatever its aspect ratio.

    Example:
        >>> import torch
        >>> Resize((480, 640), (224, 224)).restore(torch.rand(7, 7)).shape
        torch.Size([480, 640])
    """

    original: Size
    result: Size

    def _apply(self, pictures: Tensor) -> Tensor:
        batch = pictures.reshape(-1, 1, *self.original)
        resized = torch.nn.functional.interpolate(batch, self.result, mode="bilinear", antialias=True)
        return resized.reshape(*pictures.shape[:-2], *self.result)

    def _restore(self, heatmaps: Tensor) -> Tensor:
        return resize(heatmaps, self.original)


@dataclass(frozen=True)
class CenterCrop(Geometry):
    """Crop the centre of the picture with torchvision's rounding; a smaller picture is padded with zeros.

    Example:
        >>> import torch
        >>> CenterCrop((4, 6), (2, 2)).restore(torch.ones(2, 2)).sum()
        tensor(4.)
    """

    original: Size
    result: Size

    def _apply(self, pictures: Tensor) -> Tensor:
        return _shift(pictures, self.result, [-offset for offset in self._offsets()])

    def _restore(self, heatmaps: Tensor) -> Tensor:
        return _shift(heatmaps, self.original, self._offsets())

    def _offsets(self) -> list[int]:
        """The position of the crop's first row and column in the picture; negative if the picture is padded."""
        offsets = []
        for whole, part in zip(self.original, self.result, strict=True):
            offsets.append(-((part - whole) // 2) if part > whole else round((whole - part) / 2))
        return offsets


@dataclass(frozen=True)
class Letterbox(Geometry):
    """Scale the picture to fit into the input, keep its aspect ratio, and pad the rest with zeros.

    Example:
        >>> import torch
        >>> Letterbox((480, 640), (224, 224)).apply(torch.ones(480, 640))[0].sum()  # the bar above
        tensor(0.)
    """

    original: Size
    result: Size

    def _apply(self, pictures: Tensor) -> Tensor:
        inner = self._inner()
        return _shift(Resize(self.original, inner).apply(pictures), self.result, self._offsets(inner))

    def _restore(self, heatmaps: Tensor) -> Tensor:
        inner = self._inner()
        return resize(_shift(heatmaps, inner, [-offset for offset in self._offsets(inner)]), self.original)

    def _inner(self) -> Size:
        """Size of the picture inside the bars."""
        scale = min(self.result[0] / self.original[0], self.result[1] / self.original[1])
        height, width = (max(1, round(side * scale)) for side in self.original)
        return min(height, self.result[0]), min(width, self.result[1])

    def _offsets(self, inner: Size) -> list[int]:
        return [(outer - side) // 2 for outer, side in zip(self.result, inner, strict=True)]


@dataclass(frozen=True)
class Window(Geometry):
    """Show what is inside a box of the picture at the size of the input.

    The box is (top, left, bottom, right) in pixels of the picture, and need not lie on whole pixels. It may reach
    beyond the picture, where the input is padded with zeros. If its right is less than its left, the input is mirrored.

    Example:
        >>> import torch
        >>> Window((4, 6), (2, 2), (1, 2, 3, 4)).restore(torch.ones(2, 2)).sum()
        tensor(4.)
    """

    original: Size
    result: Size
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        top, left, bottom, right = (number("each side of the box", side) for side in self.box)
        if top == bottom or left == right:
            raise CamlibValueError(f"the box must not be empty, got {self.box} (top, left, bottom, right)")
        object.__setattr__(self, "box", (top, left, bottom, right))

    def _apply(self, pictures: Tensor) -> Tensor:
        top, left, bottom, right = map(round, self.box)
        flipped = [axis for axis, swapped in ((-2, top > bottom), (-1, left > right)) if swapped]
        size = max(1, abs(bottom - top)), max(1, abs(right - left))
        inside = _shift(pictures, size, [-min(top, bottom), -min(left, right)])
        return Resize(size, self.result).apply(inside).flip(flipped)

    def _restore(self, heatmaps: Tensor) -> Tensor:
        top, left, bottom, right = self.box
        rows = _sampled(heatmaps.movedim(-2, -1), top, bottom, self.original[0]).movedim(-1, -2)
        return _sampled(rows, left, right, self.original[1])


@dataclass(frozen=True)
class Chain(Geometry):
    """One geometry followed by another, as :meth:`Geometry.then` returns it."""

    original: Size
    result: Size
    first: Geometry
    second: Geometry

    def _apply(self, pictures: Tensor) -> Tensor:
        return self.second.apply(self.first.apply(pictures))

    def _restore(self, heatmaps: Tensor) -> Tensor:
        return self.first.restore(self.second.restore(heatmaps))


def resize_center_crop(original: Size, resize: int = 256, crop: int = 224) -> Geometry:
    """Return the geometry of torchvision's evaluation presets: resize the shorter side, then crop the centre.

    Args:
        original: (H, W) of the picture.
        resize: length of the shorter side after resizing.
        crop: side of the square input.

    Example:
        >>> import torch
        >>> resize_center_crop((480, 640)).restore(torch.rand(7, 7)).shape
        torch.Size([480, 640])
    """
    height, width = checked_size(original)
    positive_int("resize", resize)
    positive_int("crop", crop)
    shorter, longer = min(height, width), max(height, width)
    long_side = int(resize * longer / shorter)
    resized = (resize, long_side) if height <= width else (long_side, resize)
    return Resize(original, resized).then(CenterCrop(resized, (crop, crop)))


def _sampled(values: Tensor, start: float, stop: float, length: int) -> Tensor:
    """Spread values (..., n) over the pixels from ``start`` to ``stop`` of a line of pixels; zero outside."""
    centres = torch.arange(length, dtype=torch.float64, device=values.device) + 0.5
    share, last = (centres - start) / (stop - start), values.shape[-1] - 1
    places = (share * (last + 1) - 0.5).clamp(0, last)
    below = places.floor().long()
    weight = (places - below).to(values.dtype)
    found = torch.lerp(values[..., below], values[..., (below + 1).clamp(max=last)], weight)
    return found * ((share >= 0) & (share <= 1))


def _shift(maps: Tensor, size: Size, offsets: list[int]) -> Tensor:
    """Place maps in zeros of another size, with their first row and column at ``offsets``; crop what lies outside."""
    result = maps.new_zeros(*maps.shape[:-2], *size)
    (top, left), (height, width) = offsets, maps.shape[-2:]
    rows = slice(max(0, top), min(size[0], top + height))
    columns = slice(max(0, left), min(size[1], left + width))
    from_rows = slice(rows.start - top, rows.stop - top)
    from_columns = slice(columns.start - left, columns.stop - left)
    result[..., rows, columns] = maps[..., from_rows, from_columns]
    return result
