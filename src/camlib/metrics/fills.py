"""How many pixels a metric removes, and what replaces them."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, items, positive_number
from camlib.passes.numbers import single_or_double

Baseline = float | Tensor | Literal["zero", "mean", "blur"]

SIGMA = 5.0
"""Standard deviation of the Gaussian blur, in pixels."""

REACH = 5
"""Radius of the blur, in pixels: 11 taps."""


def baseline_images(images: Tensor, baseline: Baseline) -> Tensor:
    """Return the images whose pixels replace removed ones.

    Args:
        images: (N, C, ...), of floats.
        baseline: "zero", which is grey where images are normalised; "mean", of each channel of each image; "blur", each
            image under a Gaussian of sigma 5 pixels and 11 taps along each side, borders replicated; a number; or a
            tensor that is broadcast to an image (C, ...), such as a data set's mean of each channel (C, 1, 1).

    Returns:
        (N, C, ...), like the images; it may share memory, so do not write into it.

    Raises:
        CamlibTypeError: ``baseline`` is of another type.
        CamlibValueError: a number or tensor that is not finite, or a tensor that cannot be broadcast.

    Example:
        >>> import torch
        >>> baseline_images(torch.rand(2, 3, 8, 8), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))[1, :, 0, 0]
        tensor([0.1000, 0.2000, 0.3000])
        >>> baseline_images(torch.rand(2, 3, 8, 8), "blur").shape
        torch.Size([2, 3, 8, 8])
    """
    if isinstance(baseline, str) and baseline == "blur":
        return _blurred(images)
    if isinstance(baseline, str) and baseline == "mean":
        means = single_or_double(images.detach()).flatten(2).mean(2).to(images.dtype)
        return means.reshape(*means.shape, *[1] * (images.dim() - 2)).expand(images.shape)
    value = 0 if isinstance(baseline, str) and baseline == "zero" else baseline
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise CamlibTypeError(
            'baseline must be "zero", "mean", "blur", a number or a tensor, got '
            f"{type(baseline).__name__}: {baseline!r}"
        )
    if isinstance(value, Tensor) and (value.is_meta or value.is_complex()):
        raise CamlibValueError(f"baseline must hold real numbers, got {value.dtype} on {value.device}")
    values = torch.as_tensor(value, dtype=images.dtype, device=images.device).detach()
    if not bool(values.isfinite().all()):
        raise CamlibValueError(f"baseline holds NaN or infinity as {images.dtype}; give finite numbers")
    try:
        return values.expand(images.shape[1:]).expand(images.shape)
    except RuntimeError as error:
        raise CamlibValueError(
            f"baseline of shape {tuple(values.shape)} cannot be broadcast to images {tuple(images.shape[1:])}; "
            "give a number, or a tensor with one value for each channel, (C, 1, 1)"
        ) from error


def removed_counts(shares: object, pixels: int) -> list[int]:
    """Return how many of the pixels each share is.

    Args:
        shares: a sequence of numbers between 0 and 1.
        pixels: P, of an image.

    Raises:
        CamlibTypeError: not a sequence of numbers.
        CamlibValueError: an empty sequence, or a share that is not between 0 and 1, or rounds to none or all pixels.
    """
    given = items("shares", shares, "a sequence of numbers such as (0.1, 0.5)")
    if not given:
        raise CamlibValueError("shares is empty; give at least one number between 0 and 1")
    counts = [round(positive_number("each share", share, below=1) * pixels) for share in given]
    for share, count in zip(given, counts, strict=True):
        if not 0 < count < pixels:
            raise CamlibValueError(
                f"a share of {share:g} of {pixels} pixels comes to {'none' if count == 0 else 'all'} of them; at least "
                "one must be removed, and one left"
            )
    return counts


def _blurred(images: Tensor) -> Tensor:
    """Blur along every spatial axis: by sums, as a convolution would round under autocast and, on a GPU, to TF32."""
    offsets = range(-REACH, REACH + 1)
    weights = [math.exp(-(offset**2) / (2 * SIGMA**2)) for offset in offsets]
    blurred = single_or_double(images.detach())
    for axis in range(2, images.dim()):
        places = torch.arange(images.shape[axis], device=images.device)
        sharp, blurred = blurred, torch.zeros_like(blurred)
        for weight, offset in zip(weights, offsets, strict=True):
            seen = (places + offset).clamp(0, len(places) - 1)
            blurred = blurred + weight / sum(weights) * sharp.index_select(axis, seen)
    return blurred.to(images.dtype)
