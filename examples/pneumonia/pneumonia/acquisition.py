"""The same pictures as another machine might have taken them: a test of what a network hangs on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT, SCALE, SHIFT, SHARPNESS, GAMMA, NOISE = 0.15, (0.85, 1.1), 0.06, (0.35, 1.0), 0.4, 0.03
LEVELS = 8
"""In so many steps the sharpness is lost."""


def taken_elsewhere(pixels: Tensor, seed: int) -> Tensor:
    """Return pictures (N, S, S), uint8, with other proportions, framing, sharpness, exposure and noise.

    None of it changes a diagnosis. A network that has learnt how the pictures of a class are *taken* (its proportions,
    its sharpness) does worse on these; one that has learnt the disease does not. The same seed gives the same changes.
    """
    generator = torch.Generator().manual_seed(seed)
    count, side = len(pixels), pixels.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    aspect, scale, zero = uniform(-ASPECT, ASPECT).exp(), uniform(*SCALE), torch.zeros(count)
    affine = torch.stack(
        [
            torch.stack([scale * aspect, zero, uniform(-SHIFT, SHIFT)], 1),
            torch.stack([zero, scale / aspect, uniform(-SHIFT, SHIFT)], 1),
        ],
        1,
    )
    grid = F.affine_grid(affine, [count, 1, side, side], align_corners=False)
    pictures = F.grid_sample(pixels[:, None].float() / 255, grid, align_corners=False)
    level = torch.randint(LEVELS, (count,), generator=generator)
    for step, share in enumerate(torch.linspace(*SHARPNESS, LEVELS).tolist()):
        chosen = level == step
        if share < 1 and chosen.any():
            pictures[chosen] = blurred_by(pictures[chosen], share)
    gamma = uniform(-GAMMA, GAMMA).exp().view(-1, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator) * uniform(0, NOISE).view(-1, 1, 1, 1)
    return ((pictures.clamp(1e-4, 1) ** gamma + noise).clamp(0, 1) * 255).round().byte()[:, 0]


def blurred_by(pictures: Tensor, share: float) -> Tensor:
    """Make pictures (N, 1, S, S) smaller by a share, and as large as before: what a coarser detector leaves."""
    side = pictures.shape[-1]
    smaller = max(8, round(side * share))
    coarse = F.interpolate(pictures, (smaller, smaller), mode="bilinear", antialias=True)
    return F.interpolate(coarse, (side, side), mode="bilinear")
