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
            row = int((~tensor.isfinite().reshape(len(tensor), -1).all(1)).int().argmax()) if tensor.dim() else 0
            image = row if image_index is None else int(image_index[row])
            raise NotFiniteError(
                f"the {what} is not finite (NaN or infinity) for image {image}; look for overflow in half "
                "precision, non-finite inputs or weights"
            )


def single_or_double(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision unchanged, and any other in single precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
