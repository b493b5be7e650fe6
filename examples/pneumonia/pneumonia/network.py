"""A trained network with what it needs to read images: input size, device and precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pneumonia import distributed
from pneumonia.augment import prepare, views


@dataclass(frozen=True)
class Network:
    """A network of two outputs, NORMAL and PNEUMONIA."""

    model: nn.Module
    size: int
    """Side of its input in pixels."""
    device: torch.device
    amp: bool = False
    """Whether predictions use mixed precision."""

    def inputs(self, pixels: Tensor) -> Tensor:
        """Turn pictures (N, S, S) in uint8 into the network's input (N, 3, size, size), on its device."""
        return prepare(pixels.to(self.device), self.size)

    @torch.inference_mode()
    def margins(self, pixels: Tensor, batch_size: int = 64) -> Tensor:
        """Return the logit of PNEUMONIA minus that of NORMAL for each view, (N, views), on the CPU.

        See :func:`pneumonia.augment.views`. The probability of an image is the mean of the sigmoids over its views.
        Several processes share the pictures, of which there must be at least one for each.
        """
        self.model.eval()
        parts = []
        batches = distributed.own_part(pixels).split(batch_size)
        for batch in tqdm(batches, desc="predicting", unit="batch", leave=False):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                logits = torch.stack([self.model(view) for view in views(batch.to(self.device), self.size)], 1).float()
            parts.append((logits[..., 1] - logits[..., 0]).cpu())
        return distributed.gathered(torch.cat(parts))
