"""Checks and conversions of the numbers in maps: single or double precision, and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError


def check_finite(tensors: Mapping[str, Sequence[Tensor]]) -> None:
    """Check that all tensors are finite.

    A sum shows this in one pass without a copy, and all sums need only one device synchronisation. A sum may overflow
    although every number is finite, so tensors with such a sum are checked element by element.

    Raises:
        CamlibRuntimeError: naming what is not finite.
    """
    flat = [(what, tensor) for what, group in tensors.items() for tensor in group]
    sums_finite = torch.stack([tensor.sum().isfinite() for _, tensor in flat]).tolist()
    for (what, tensor), fine in zip(flat, sums_finite, strict=True):
        if not fine and not bool(tensor.isfinite().all()):
            raise not_finite(what, tensor.isfinite())


def not_finite(what: str, finite: Tensor) -> CamlibRuntimeError:
    """Return the error for numbers that are not finite.

    Args:
        what: what they are.
        finite: which numbers are finite; if it has axes, the first one is the images.
    """
    where = ""
    if finite.dim() and len(finite) > 1:
        images = (~finite.flatten(1).all(1) if finite.dim() > 1 else ~finite).nonzero().flatten().tolist()
        where = f" for image {images[0]}" if len(images) == 1 else f" for images {', '.join(map(str, images))}"
        where = where if len(images) < len(finite) else f" for any of the {len(finite)} images"
    return CamlibRuntimeError(
        f"the {what} is not finite (NaN or infinity){where}; look for overflow in half precision, non-finite inputs or "
        "weights"
    )


def single_or_double(tensor: Tensor) -> Tensor:
    """Return a tensor in double precision unchanged, and any other in single precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
