"""The baseline of an image: the value that its pixels take when they say nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number


def check_fill(baseline: object) -> None:
    """Check that a baseline is a number or a tensor.

    Raises:
        CamlibTypeError, CamlibValueError: it is neither, or a number that is not finite.
    """
    if not isinstance(baseline, Tensor):
        number("baseline, if not a tensor,", baseline)


def fill_for(baseline: float | Tensor, images: Tensor) -> Tensor:
    """Return a baseline that broadcasts to each image, on the images' device and of their type.

    Args:
        baseline: a number, or a tensor that broadcasts to (C, ...).
        images: (N, C, ...).

    Raises:
        CamlibTypeError: the tensor has no values.
        CamlibValueError: it does not broadcast.

    Example:
        >>> import torch
        >>> fill_for(torch.ones(3, 1, 1), torch.zeros(2, 3, 8, 8)).shape
        torch.Size([3, 1, 1])
    """
    if isinstance(baseline, Tensor) and baseline.is_meta:
        raise CamlibTypeError("baseline is on the meta device and has no values; give a tensor with values")
    found = torch.as_tensor(baseline).to(images)
    try:
        found.expand(images.shape[1:])
    except RuntimeError as error:
        raise CamlibValueError(
            f"baseline of shape {tuple(found.shape)} cannot be broadcast to images {tuple(images.shape[1:])}; "
            "give a number, or a tensor with one value per channel, (C, 1, 1)"
        ) from error
    return found
