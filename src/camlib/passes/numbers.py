"""Checks and conversions of the numbers in maps: single or double precision, and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError


class NotFiniteError(CamlibRuntimeError):
    """A number is NaN or infinite, for one of the images."""


def check_finite(tensors: Mapping[str, Sequence[Tensor]], image_index: Tensor | None = None) -> None:
    """Check that all tensors are finite.

    A sum shows this in one pass without a copy, and all sums need only one device synchronisation. A sum may overflow
    although every number is finite, so tensors with such a sum are checked element by element.

    Args:
        tensors: by what they are, for errors.
        image_index: (rows,), the image of each row; None if the first axis is the images.

    Raises:
        NotFiniteError: naming what is not finite, and the first image where it is not.
    """
    flat = [(what, tensor) for what, group in tensors.items() for tensor in group]
    sums_finite = torch.stack([tensor.sum().isfinite() for _, tensor in flat]).tolist()
    for (what, tensor), fine in zip(flat, sums_finite, strict=True):
        if not fine and not bool(tensor.isfinite().all()):
            raise not_finite(what, tensor.isfinite(), image_index)


def not_finite(what: str, finite: Tensor, image_index: Tensor | None = None) -> NotFiniteError:
    """Return the error for numbers that are not finite.

    Args:
        what: what they are.
        finite: which numbers are finite; if it has axes, the first one is the rows.
        image_index: (rows,), the image of each row; None if the rows are the images.
    """
    where = ""
    if finite.dim() and len(finite) > 1:
        rows = (~finite.flatten(1).all(1) if finite.dim() > 1 else ~finite).nonzero().flatten()
        images = rows.tolist() if image_index is None else image_index.to(rows.device)[rows].unique().tolist()
        where = f" for image {images[0]}" if len(images) == 1 else f" for images {', '.join(map(str, images))}"
        if image_index is None and len(images) == len(finite):
            where = f" for any of the {len(finite)} images"
    return NotFiniteError(
        f"the {what} is not finite (NaN or infinity){where}; look for overflow in half precision, non-finite inputs or "
        "weights"
    )


def single_or_double(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision unchanged, and any other in single precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
