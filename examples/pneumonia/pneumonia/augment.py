"""The network's input, random changes for training, and pictures altered as if taken elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

INNER = 0.9
"""Side of the inner view of a picture, as a share of the whole side."""
LEVELS = 3
"""Number of degrees of lost sharpness in a batch."""
MARGIN = 1.125
"""Pictures are stored larger than the network's input by this factor."""
DEGREES, SHARPNESS = 8, (0.35, 1.0)
"""Number and range of the degrees of sharpness in :func:`taken_elsewhere`."""


def standardize(pictures: Tensor) -> Tensor:
    """Give each picture (N, 1, H, W) mean 0 and standard deviation 1, because exposure says nothing about the lungs."""
    mean, deviation = pictures.mean((2, 3), keepdim=True), pictures.std((2, 3), keepdim=True)
    return (pictures - mean) / (deviation + 1e-3)


def prepare(pixels: Tensor, size: int) -> Tensor:
    """Turn pictures (N, S, S) in uint8 into the network's input (N, 3, size, size), without random changes."""
    pictures = pixels[:, None].float() / 255
    if pictures.shape[-1] != size:
        pictures = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    return as_input(standardize(pictures))


def views(pixels: Tensor, size: int) -> list[Tensor]:
    """Return the views of pictures (N, S, S) to predict from: the whole, the inner part, and the mirror image of each.

    The inner part leaves out the border, where markers and the edges of the detector are.
    """
    side = pixels.shape[-1]
    inner = round(side * INNER)
    start = (side - inner) // 2
    whole, middle = (prepare(part, size) for part in (pixels, pixels[:, start : start + inner, start : start + inner]))
    return [whole, whole.flip(3), middle, middle.flip(3)]


def as_input(pictures: Tensor) -> Tensor:
    """Repeat the gray channel three times, channels-last, for a network made for photographs."""
    return pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turn pictures (N, S, S) in uint8 into randomly changed input (N, 3, size, size).

    A random affine map (flip, rotation by up to 10 degrees, scale 0.8 to 1.1, aspect, shift), lost sharpness in about
    half the pictures, gamma, blur, noise, and one erased rectangle in about half the pictures. Proportions and
    sharpness vary widely because they reveal how a picture was taken, which in many collections depends on the class.
    """
    n, device = len(pixels), pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator).to(device)

    angle = uniform(-10, 10) * math.pi / 180
    scale, aspect = uniform(0.8, 1.1), uniform(-0.15, 0.15).exp()
    flip = uniform(-1, 1).sign()
    across = angle.cos() * scale * aspect * flip, -angle.sin() * scale, uniform(-0.12, 0.12)
    down = angle.sin() * scale * flip, angle.cos() * scale / aspect, uniform(-0.12, 0.12)
    pictures = _warped(pixels, across, down, size)
    which = uniform(0, 1)
    for step in range(LEVELS):  # half of the pictures lose sharpness, to one of these degrees
        share = torch.empty(1).uniform_(0.3, 0.9, generator=generator).item()
        chosen = (which >= step / LEVELS / 2) & (which < (step + 1) / LEVELS / 2)
        if chosen.any():
            pictures[chosen] = coarser(pictures[chosen], share)
    pictures = pictures.clamp(1e-4, 1) ** uniform(-0.4, 0.4).exp().view(-1, 1, 1, 1)
    blurred = uniform(0, 1) < 0.3
    if blurred.any():
        sigma = 0.5 + torch.rand(1, generator=generator).item()
        pictures[blurred] = gaussian_blur(pictures[blurred], [5, 5], [sigma, sigma])
    noise = torch.randn(pictures.shape, generator=generator).to(device)
    pictures = pictures + noise * uniform(0, 0.03).view(-1, 1, 1, 1)
    return as_input(standardize(_erase(pictures, uniform)))


def _erase(pictures: Tensor, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """Fill one rectangle in about half the pictures with a random gray."""
    side = pictures.shape[-1]
    at = torch.arange(side, device=pictures.device)
    inside = []
    for _axis in range(2):
        length, start = uniform(0.08, 0.3) * side, uniform(-0.1, 0.9) * side
        inside.append((at >= start[:, None]) & (at < (start + length)[:, None]))
    rectangle = inside[0][:, :, None] & inside[1][:, None, :] & (uniform(0, 1) < 0.5)[:, None, None]
    return torch.where(rectangle[:, None], uniform(0, 1).view(-1, 1, 1, 1), pictures)


def taken_elsewhere(pixels: Tensor, seed: int) -> Tensor:
    """Return pictures (N, S, S), uint8, with other proportions, framing, sharpness, exposure and noise.

    None of these changes the diagnosis. A network that has learned how the pictures of a class are *taken* does worse
    on the result; one that has learned the disease does not. The same seed gives the same changes.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    aspect, scale, zero = uniform(-0.15, 0.15).exp(), uniform(0.85, 1.1), torch.zeros(count)
    across = scale * aspect, zero, uniform(-0.06, 0.06)
    down = zero, scale / aspect, uniform(-0.06, 0.06)
    pictures = _warped(pixels, across, down, pixels.shape[-1])
    degree = torch.randint(DEGREES, (count,), generator=generator)
    for step, share in enumerate(torch.linspace(*SHARPNESS, DEGREES).tolist()):
        chosen = degree == step
        if share < 1 and chosen.any():
            pictures[chosen] = coarser(pictures[chosen], share)
    gamma = uniform(-0.4, 0.4).exp().view(-1, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator) * uniform(0, 0.03).view(-1, 1, 1, 1)
    return ((pictures.clamp(1e-4, 1) ** gamma + noise).clamp(0, 1) * 255).round().byte()[:, 0]


def _warped(pixels: Tensor, across: Sequence[Tensor], down: Sequence[Tensor], size: int) -> Tensor:
    """Apply affine maps, given by their two rows, to pictures in uint8: (N, S, S) to (N, 1, size, size) in [0, 1]."""
    affine = torch.stack([torch.stack(list(across), 1), torch.stack(list(down), 1)], 1)
    grid = F.affine_grid(affine, [len(pixels), 1, size, size], align_corners=False)
    return F.grid_sample(pixels[:, None].float() / 255, grid, align_corners=False)


def coarser(pictures: Tensor, share: float) -> Tensor:
    """Shrink pictures (N, 1, S, S) to a share of their size and enlarge them again, as a coarser detector would."""
    side = pictures.shape[-1]
    smaller = max(8, round(side * share))
    coarse = F.interpolate(pictures, (smaller, smaller), mode="bilinear", antialias=True)
    return F.interpolate(coarse, (side, side), mode="bilinear")
