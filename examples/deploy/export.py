"""Write a classifier of chest X-rays together with its Grad-CAM as one file of ONNX.

python examples/deploy/export.py model.onnx
python examples/deploy/export.py model.onnx --checkpoint runs/pneumonia/checkpoint.pt

The first exports a small network trained on phantoms, the second the network that examples/pneumonia has trained.
The file takes gray pictures, uint8 (N, H, W, 1), of the size in its metadata. ``explain.py`` needs nothing else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import camlib
from camlib.exporting import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[1] / "pneumonia"))

from pneumonia.augment import standardize
from pneumonia.checkpoint import read_checkpoint
from pneumonia.phantoms import generate

CLASS_NAMES = ["NORMAL", "PNEUMONIA"]


def trained_on_phantoms(size: int, steps: int) -> nn.Module:
    """A small network with two logits, trained on phantoms."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))
    phantoms = generate(128, size=size)
    images, labels = torch.as_tensor(phantoms.images)[:, None] / 255, torch.as_tensor(phantoms.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = torch.arange(32).add(32 * step) % len(images)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


class OfGrayPictures(nn.Module):
    """The network of examples/pneumonia together with its preparation of gray pictures, values in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of pictures (N, 1, H, W)."""
        logits: Tensor = self.network(standardize(images).expand(-1, 3, -1, -1))
        return logits


def main() -> None:
    """Train or read a network, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the file of ONNX to write")
    parser.add_argument("--checkpoint", type=Path, help="of examples/pneumonia/run.py; without it, phantoms")
    parser.add_argument("--size", type=int, default=64, help="side of the phantoms, default: %(default)s")
    parser.add_argument("--steps", type=int, default=60, help="of the training on phantoms, default: %(default)s")
    options = parser.parse_args()
    layer = None
    if options.checkpoint is None:
        size, model = options.size, trained_on_phantoms(options.size, options.steps)
    else:
        checkpoint = read_checkpoint(options.checkpoint)
        size, model = checkpoint.recipe.size, OfGrayPictures(checkpoint.model).eval()
        layer = checkpoint.decision and f"network.{checkpoint.decision.layer}"
    pictures = torch.as_tensor(generate(2, size=size, seed=1).images)[..., None]
    camlib.export_onnx(
        camlib.GradCAM(model, layer),
        pictures,
        options.file,
        target=1,
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        class_names=CLASS_NAMES,
    )
    print(f"wrote {options.file}, for pictures of {size} x {size}")


if __name__ == "__main__":
    main()
