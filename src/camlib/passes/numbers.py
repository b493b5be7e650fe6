"""The numbers that maps are made of: in single or double precision, and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError


def check_finite(tensors: Mapping[str, Sequence[Tensor]]) -> None:
    """Raise if anything is not finite.

    A sum shows it in one pass without a copy, and the device is waited for once, for all sums. A sum may overflow
    though every number is finite, so tensors with such a sum are looked at again.

    Raises:
        CamlibRuntimeError: naming what is not finite.
    """
    flat = [(what, tensor) for what, group in tensors.items() for tensor in group]
    sums_finite = torch.stack([tensor.sum().isfinite() for _, tensor in flat]).tolist()
    for (what, tensor), fine in zip(flat, sums_finite, strict=True):
        if not fine and not bool(tensor.isfinite().all()):
            raise CamlibRuntimeError(
                f"the {what} is not finite (NaN or infinity); look for overflow in half "
                "precision, non-finite inputs or weights"
            )


def single_or_double(tensor: Tensor) -> Tensor:
    """Return a tensor of double precision as it is, and any other in single precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
