"""Checks and conversions of the numbers in maps: single or double precision, and finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camlib.errors import NotFiniteError


class Checks:
    """What must hold of numbers on a device, collected while they are computed, and checked with a single wait.

    A sum shows in one pass without a copy whether numbers are finite. It may overflow although every number is finite,
    so tensors with such a sum are checked element by element.

    Example:
        >>> checks = Checks()
        >>> checks.finite("map", torch.tensor([[1.0], [torch.inf]]))
        >>> checks.evaluate()
        Traceback (most recent call last):
            ...
        camlib.errors.NotFiniteError: the map is not finite (NaN or infinity) for image 1; look for overflow...

    Args:
        image_index: (rows,), the image of each row of the pass; None if the rows are the images.
    """

    def __init__(self, image_index: Tensor | None = None) -> None:
        self._image_index = image_index
        self._asked: list[tuple[Tensor, Callable[[], Exception | None]]] = []
        self.recorded = False
        """Whether a graph is recorded, so that no number may be read from the device."""

    def finite(self, what: str, tensor: Tensor, image_index: Tensor | None = None) -> None:
        """Require that all numbers are finite.

        Args:
            what: what they are, for the error.
            tensor: the numbers.
            image_index: the row of the pass that each row belongs to; None if the first axis is those rows.
        """

        def problem() -> Exception | None:
            finite = tensor.isfinite()
            if bool(finite.all()):
                return None
            of_rows = self._image_index
            if of_rows is None or image_index is None:
                return not_finite(what, finite, image_index if of_rows is None else of_rows)
            return not_finite(what, finite, of_rows[image_index.to(of_rows.device)])

        self._asked.append((_each_once(tensor.detach()).sum(), problem))

    def never(self, flag: Tensor, error: Callable[[], Exception]) -> None:
        """Require that a flag is not set.

        Args:
            flag: a single bool on the device.
            error: makes the error to raise otherwise.
        """
        self._asked.append((torch.where(flag, torch.nan, 0.0), error))

    def passed(self) -> Tensor:
        """Return one bool for each thing that was required, on the device, without a wait; evaluate nothing."""
        home = self._asked[0][0].device  # a network may be spread over several
        return torch.stack([number.to(home) for number, _ in self._asked]).isfinite()

    def evaluate(self) -> None:
        """Check everything that was required since the last time, with one wait for the device.

        Raises:
            NotFiniteError: naming the first thing that is not finite, and the images where it is not.
        """
        if not self._asked:
            return
        passed = self.passed().tolist()
        asked, self._asked = self._asked, []
        for (_, problem), fine in zip(asked, passed, strict=True):
            error = None if fine else problem()
            if error is not None:
                raise error


def are_finite(*tensors: Tensor) -> bool:
    """Return whether all numbers are finite, with one wait for the device; False also where their sum overflows."""
    return bool(torch.stack([_each_once(tensor.detach()).sum() for tensor in tensors]).isfinite().all())


def _each_once(tensor: Tensor) -> Tensor:
    """A tensor without the repetitions of an expanded one."""
    if 0 not in tensor.stride() or tensor.layout != torch.strided:
        return tensor
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def not_finite(what: str, finite: Tensor, image_index: Tensor | None = None) -> NotFiniteError:
    """Return the error for numbers that are not finite.

    Args:
        what: what they are.
        finite: which numbers are finite; if it has axes, the first one is the rows.
        image_index: (rows,), the image of each row; None if the rows are the images.
    """
    images: list[int] = []
    where = ""
    if finite.dim():
        rows = (~finite.flatten(1).all(1) if finite.dim() > 1 else ~finite).nonzero().flatten()
        images = rows.tolist() if image_index is None else image_index.to(rows.device)[rows].unique().tolist()
    if finite.dim() and (len(finite) > 1 or image_index is not None):
        where = f" for image {images[0]}" if len(images) == 1 else f" for images {', '.join(map(str, images))}"
        if image_index is None and len(images) == len(finite):
            where = f" for any of the {len(finite)} images"
    return _error(what, where, images)


def not_finite_in_copies(error: NotFiniteError, image_index: Tensor) -> NotFiniteError:
    """Return an error about copies of the images, with the numbers of the images.

    Args:
        error: the error, with the numbers of the copies.
        image_index: (rows,), the image of each copy.
    """
    images = sorted({int(image_index[copy]) for copy in error.images})
    where = f" in a copy of image {', '.join(map(str, images))}" if images else " in a copy of an image"
    return _error(error.what, where, images)


def _error(what: str, where: str, images: list[int]) -> NotFiniteError:
    return NotFiniteError(
        f"the {what} is not finite (NaN or infinity){where}; look for overflow in half precision, non-finite inputs or "
        "weights",
        images,
        what,
    )


def single_or_double(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision unchanged, and any other in single precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def all_single_or_double(*tensors: Tensor) -> list[Tensor]:
    """Return :func:`single_or_double` of each tensor."""
    return [single_or_double(tensor) for tensor in tensors]
