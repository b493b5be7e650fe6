"""Regions of images, such as superpixels: integers that are equal for pixels of one region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError


def region_labels(regions: Any, shape: tuple[int, ...], device: torch.device, of: str, takes: str) -> Tensor:
    """Return the number of each pixel's region.

    Args:
        regions: integers (N, ...), or (...) for all images; any numbers, with gaps or negative.
        shape: (N, ...), of the images without channels.
        device: where to put them.
        of: what has this shape, for errors.
        takes: what is accepted, for errors.

    Returns:
        (N, ...), from 0 without gaps in each image.

    Raises:
        CamlibTypeError: no integers.
        CamlibValueError: another shape.

    Example:
        >>> import torch
        >>> region_labels([[7, 7], [-1, 7]], (1, 2, 2), torch.device("cpu"), "images", "integers")
        tensor([[[1, 1],
                 [0, 1]]])
    """
    try:
        labels = torch.as_tensor(regions, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CamlibTypeError(f"regions must be {takes}, got {regions!r}") from error
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.is_meta:
        raise CamlibTypeError(f"regions must be {takes}, got {labels.dtype}")
    if labels.shape not in (shape, shape[1:]):
        raise CamlibValueError(
            f"regions have shape {tuple(labels.shape)}, and {of} {tuple(shape)}; they must be the same, or one for "
            f"all images: {tuple(shape[1:])}"
        )
    return torch.stack([of_image.unique(return_inverse=True)[1] for of_image in labels.expand(shape)])


def regions_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image and the number of each region, (R,) and (R,): those of the first image, then of the second.

    Args:
        labels: (N, ...), from :func:`region_labels`.

    Example:
        >>> import torch
        >>> regions_of(torch.tensor([[0, 1, 1], [0, 0, 0]]))
        (tensor([0, 0, 1]), tensor([0, 1, 0]))
    """
    counts = labels.flatten(1).amax(1) + 1
    image = torch.arange(len(labels), device=labels.device).repeat_interleave(counts)
    return image, torch.arange(len(image), device=labels.device) - (counts.cumsum(0) - counts)[image]
