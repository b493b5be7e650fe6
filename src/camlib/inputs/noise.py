"""Random numbers from a generator, never from torch's global one, and the same for every image of a batch."""

from __future__ import annotations

from typing import Any

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


class Noise:
    """Gaussian noise for copies of the images among the inputs, drawn copy after copy, for one image of each.

    Args:
        inputs: what the model takes.
        sigma: standard deviation as a fraction of each image's range of values.
        generator: draws the same noise for all images, so a batch gives the same result as its images one by one.
        copies: how many copies to draw for.

    Raises:
        CamlibTypeError: the inputs hold no images, or integer images.

    Example:
        >>> images = Inputs(torch.tensor([[[[0.0, 1.0]]], [[[0.0, 2.0]]]]))
        >>> noise = Noise(images, 0.1, own_generator(None), copies=4)
        >>> (noise.added(images, torch.tensor([3, 3])).images - images.images).flatten(1)
        tensor([[0.0403, 0.0838],
                [0.0807, 0.1676]])
    """

    def __init__(self, inputs: Inputs, sigma: float, generator: torch.Generator, copies: int) -> None:
        self._sigma = sigma
        like: dict[Any, Tensor] = {}

        def note(images: Tensor, row: Tensor) -> Tensor:
            like.setdefault(images.shape if inputs.is_list else len(like), images)  # a list's images share their noise
            return images

        inputs.map_rows(note, torch.arange(inputs.count))
        here = torch.empty((), dtype=torch.float64, device=generator.device)
        drawn = [[normal((1, *one.shape[1:]), generator, here) for one in like.values()] for _ in range(copies)]
        self._drawn = [torch.cat(of_copies).to(one) for one, *of_copies in zip(like.values(), *drawn, strict=True)]

    def added(self, inputs: Inputs, copy: Tensor) -> Inputs:
        """Return rows with their noise.

        Args:
            inputs: the inputs of some rows, each an image of those for which the noise was drawn.
            copy: (rows,), the number of the copy that each row is of.
        """
        of_shape, of_tensor = {one.shape[1:]: one for one in self._drawn}, iter(self._drawn)

        def noisy(images: Tensor, copy: Tensor) -> Tensor:
            drawn = of_shape[images.shape[1:]] if inputs.is_list else next(of_tensor)
            axes = tuple(range(1, images.dim()))
            spread = images.amax(axes, keepdim=True) - images.amin(axes, keepdim=True)
            return images + self._sigma * spread * drawn[copy].to(images)

        return inputs.map_rows(noisy, copy)
