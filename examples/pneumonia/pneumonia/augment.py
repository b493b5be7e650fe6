"""Changes that leave the diagnosis alone, drawn anew for every picture and applied to a batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pneumonia.acquisition import blurred_by

INNER = 0.9
"""Share of the side that a second look at a picture takes."""
LEVELS = 3
"""So many degrees of lost sharpness in a batch."""
MARGIN = 1.125
"""Pictures are kept this much larger than the network's input."""


def standardize(pictures: Tensor) -> Tensor:
    """Give each picture (N, 1, H, W) mean 0 and deviation 1: exposure says nothing about the lungs."""
    mean, deviation = pictures.mean((2, 3), keepdim=True), pictures.std((2, 3), keepdim=True)
    return (pictures - mean) / (deviation + 1e-3)


def prepare(pixels: Tensor, size: int) -> Tensor:
    """Turn pictures (N, S, S) in uint8 into the network's input (N, 3, size, size), without chance."""
    pictures = pixels[:, None].float() / 255
    if pictures.shape[-1] != size:
        pictures = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    return as_input(standardize(pictures))


def views(pixels: Tensor, size: int) -> list[Tensor]:
    """Return what a picture (N, S, S) is judged by: all of it, its inner part, and the mirror images of both.

    The inner part leaves out the border, where markers and the edges of the detector are.
    """
    side = pixels.shape[-1]
    inner = round(side * INNER)
    start = (side - inner) // 2
    whole, middle = (prepare(part, size) for part in (pixels, pixels[:, start : start + inner, start : start + inner]))
    return [whole, whole.flip(3), middle, middle.flip(3)]


def as_input(pictures: Tensor) -> Tensor:
    """Repeat the gray channel thrice, channels-last: what a network made for photographs takes."""
    return pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turn pictures (N, S, S) in uint8 into randomly changed input (N, 3, size, size).

    A random affine map (flip, rotation by up to 10 degrees, scale 0.8 to 1.1, aspect, shift), lost sharpness in every
    second picture, gamma, blur, noise, and one erased rectangle in every second picture. Proportions and sharpness
    tell how a picture was taken, which in many collections depends on the class: they are varied widely.
    """
    n, device = len(pixels), pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator).to(device)

    pictures = pixels[:, None].float() / 255
    angle = uniform(-10, 10) * math.pi / 180
    scale, aspect = uniform(0.8, 1.1), uniform(-0.15, 0.15).exp()
    flip = uniform(-1, 1).sign()
    affine = torch.stack(
        [
            torch.stack([angle.cos() * scale * aspect * flip, -angle.sin() * scale, uniform(-0.12, 0.12)], 1),
            torch.stack([angle.sin() * scale * flip, angle.cos() * scale / aspect, uniform(-0.12, 0.12)], 1),
        ],
        1,
    )
    grid = F.affine_grid(affine, [n, 1, size, size], align_corners=False)
    pictures = F.grid_sample(pictures, grid, align_corners=False)
    which = uniform(0, 1)
    for step in range(LEVELS):  # as many pictures keep their sharpness as lose it, to one of these degrees
        share = torch.empty(1).uniform_(0.3, 0.9, generator=generator).item()
        chosen = (which >= step / LEVELS / 2) & (which < (step + 1) / LEVELS / 2)
        if chosen.any():
            pictures[chosen] = blurred_by(pictures[chosen], share)
    pictures = pictures.clamp(1e-4, 1) ** uniform(-0.4, 0.4).exp().view(-1, 1, 1, 1)
    blurred = uniform(0, 1) < 0.3
    if blurred.any():
        sigma = 0.5 + torch.rand(1, generator=generator).item()
        pictures[blurred] = gaussian_blur(pictures[blurred], [5, 5], [sigma, sigma])
    noise = torch.randn(pictures.shape, generator=generator).to(device)
    pictures = pictures + noise * uniform(0, 0.03).view(-1, 1, 1, 1)
    return as_input(standardize(_erase(pictures, uniform)))


def _erase(pictures: Tensor, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """Fill one rectangle of every second picture with a random gray."""
    side = pictures.shape[-1]
    at = torch.arange(side, device=pictures.device)
    inside = []
    for _axis in range(2):
        length, start = uniform(0.08, 0.3) * side, uniform(-0.1, 0.9) * side
        inside.append((at >= start[:, None]) & (at < (start + length)[:, None]))
    rectangle = inside[0][:, :, None] & inside[1][:, None, :] & (uniform(0, 1) < 0.5)[:, None, None]
    return torch.where(rectangle[:, None], uniform(0, 1).view(-1, 1, 1, 1), pictures)
