"""Random numbers from a generator, never from torch's global one, and the same for every image of a batch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, positive_int, positive_number
from camlib.inputs.inputs import Inputs


def own_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return the given generator, or a new one seeded with 0, so that a call without one is repeatable."""
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
    """Check the options for noise.

    Raises:
        CamlibTypeError, CamlibValueError: ``samples`` is not a positive int, or ``sigma`` is not a positive number.
    """
    positive_int("samples", samples)
    positive_number("sigma", sigma)


def with_noise(inputs: Inputs, sigma: float, generator: torch.Generator) -> Inputs:
    """Add Gaussian noise to the images among the inputs.

    Args:
        inputs: what the model takes.
        sigma: standard deviation as a fraction of each image's range of values.
        generator: draws the same noise for all images, so a batch gives the same result as its images one by one.

    Raises:
        CamlibTypeError: the inputs hold no images, or integer images.
    """
    if not inputs.is_list:
        return inputs.map_values(
            lambda images: _noisy(images, sigma, normal((1, *images.shape[1:]), generator, images))
        )

    @functools.cache  # the images of a list come one by one; images of the same shape share their noise
    def drawn(shape: tuple[int, ...]) -> Tensor:
        return normal((1, *shape), generator, inputs.tensors[0])

    return inputs.map_values(lambda image: _noisy(image, sigma, drawn(image.shape[1:]).to(image)))


def _noisy(images: Tensor, sigma: float, noise: Tensor) -> Tensor:
    axes = tuple(range(1, images.dim()))
    spread = images.amax(axes, keepdim=True) - images.amin(axes, keepdim=True)
    return images + sigma * spread * noise
