"""Random numbers of one's own: never torch's global ones, and the same for every image of a batch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, positive_int, positive_number
from camlib.inputs.batches import holds_pictures, map_values


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return the generator given, or a new one seeded with 0: a call without one is repeatable."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise CamlibTypeError(
            f"generator must be a torch.Generator, got {type(generator).__name__}: {generator!r}; "
            "torch.Generator().manual_seed(7) makes one"
        )
    return torch.Generator().manual_seed(0) if generator is None else generator


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw standard normal numbers on the generator's device; return them on the device and in the type of ``like``."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64).to(like)


def check_noise(samples: int, sigma: float) -> None:
    """Check how much noise is asked for.

    Raises:
        CamlibValueError: no samples, or sigma not a positive number.
    """
    positive_int("samples", samples)
    positive_number("sigma", sigma)


def with_noise(inputs: Any, sigma: float, generator: torch.Generator) -> Any:
    """Add Gaussian noise to the pictures among the inputs.

    Args:
        inputs: what the model takes; a list of pictures (C, H, W), as detectors take them, too.
        sigma: standard deviation as a share of each image's range of values.
        generator: draws one noise for all images, so that a batch gives what its images give one by one.

    Returns:
        The inputs, with new tensors.

    Raises:
        CamlibTypeError: the inputs hold no pictures, or pictures of integers.
    """

    def draw(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return normal((1, *shape), generator, like)

    if holds_pictures(inputs):  # each comes alone, and those of one shape share what was drawn for the first
        once = functools.cache(lambda shape: draw(shape, inputs[0]))
        return map_values(lambda image: _noisy(image, sigma, once(image.shape[1:]).to(image)), inputs)
    return map_values(lambda images: _noisy(images, sigma, draw(images.shape[1:], images)), inputs)


def _noisy(images: Tensor, sigma: float, noise: Tensor) -> Tensor:
    axes = tuple(range(1, images.dim()))
    spread = images.amax(axes, keepdim=True) - images.amin(axes, keepdim=True)
    return images + sigma * spread * noise
