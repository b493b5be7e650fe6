"""Small networks that the tests explain, and hypothesis strategies that draw them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


def small_cnn(classes: int = 3, channels: int = 4) -> nn.Sequential:
    """Convolution (0), in-place ReLU (1), convolution (2), ReLU (3), global pooling (4), linear head (6)."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


def signal_cnn(classes: int = 3, channels: int = 4) -> nn.Sequential:
    """:func:`small_cnn` for signals (N, 2, L), with the same numbering."""
    return nn.Sequential(
        nn.Conv1d(2, channels, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.Conv1d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


def volume_cnn(classes: int = 3, channels: int = 4) -> nn.Sequential:
    """:func:`small_cnn` for volumes (N, 1, D, H, W), with the same numbering."""
    return nn.Sequential(
        nn.Conv3d(1, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv3d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


class Network(nn.Module):
    """Features, then a head: a network with names, as users write them. It counts its forward passes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        maps = torch.relu_(self.norm(self.features(x)))
        return self.head(self.drop(maps.mean((2, 3))))


@dataclass(frozen=True)
class Drawn:
    """A random network in float64, images for it, and the layer to cut at."""

    model: nn.Sequential
    images: Tensor
    cut: int
    classes: int


Activations = Sequence[Callable[[], nn.Module]]


def relu_in_place() -> nn.Module:
    return nn.ReLU(inplace=True)


def silu_in_place() -> nn.Module:
    return nn.SiLU(inplace=True)


RELUS: Activations = (relu_in_place, nn.ReLU)
"""With these ``cnns`` draws networks that are piecewise linear."""


@st.composite
def cnns(
    draw: st.DrawFn,
    activations: Activations = (*RELUS, silu_in_place, nn.Tanh),
    heads: Sequence[str] = ("pool", "flatten", "hidden"),
) -> Drawn:
    """Random CNNs: channels, sizes, kernels, strides, activations, poolings, heads and batch all vary.

    Heads are global average pooling and a linear layer, a linear layer on a 2 x 2 grid, or two of them with a ReLU.
    """
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels = [draw(st.integers(1, 3)), *(draw(st.integers(1, 6)) for _ in range(draw(st.integers(1, 3))))]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        kernel = draw(st.sampled_from([1, 3]))
        stride = draw(st.sampled_from([1, 1, 2]))
        layers.append(nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(after))
        layers.append(draw(st.sampled_from(activations))())
        if draw(st.booleans()):
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    cut = draw(st.integers(0, len(layers) - 1))
    classes = draw(st.integers(2, 5))
    head = draw(st.sampled_from(heads))
    side = draw(st.integers(8, 13)), draw(st.integers(8, 13))
    if head == "pool":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)]
    elif head == "flatten":
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[-1], classes)]
    else:
        layers += [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels[-1], 5)]
        layers += [nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(5, classes)]
    model = nn.Sequential(*layers).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    images = torch.randn(draw(st.integers(1, 3)), channels[0], *side, dtype=torch.float64)
    return Drawn(model, images, cut, classes)
