"""Small networks on which methods are checked, in eval mode, the same at every call."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 4
SIZE = (12, 10)
"""Size of the pictures: not square, so that a method that swaps height and width fails."""


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Make a network with the same weights every time, and with batch-norm statistics other than the initial ones."""

    @functools.wraps(make)
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = make()
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    nn.init.normal_(buffer, std=0.1)
                elif name.endswith("running_var"):
                    nn.init.uniform_(buffer, 0.5, 2)
        return network.eval()

    return made


@_seeded
def hidden_layer_cnn() -> nn.Module:
    """A CNN with a hidden layer behind its features: gradients differ from cell to cell and from image to image.

    It is piecewise linear and has state that a call could change: batch-norm buffers, dropout, in-place operations.
    """
    hidden = (nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Linear(16, CLASSES))
    return _cnn(nn.AdaptiveAvgPool2d(2), nn.Flatten(), *hidden)


@_seeded
def linear_head_cnn() -> nn.Module:
    """A CNN whose logits are linear in the mean of its features, as :class:`camlib.CAM` requires."""
    return _cnn(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


@_seeded
def vision_transformer() -> nn.Module:
    """A vision transformer with a class token, for methods that read attention."""
    return VisionTransformer()


class _Shifted(nn.Module):
    """Features of pictures, times a number and plus another one."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.scale, self.shift = scale, shift

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 8, h, w)."""
        features: Tensor = self.scale * self.convolution(images) + self.shift
        return features


def shifted_features(scale: float, shift: float) -> nn.Module:
    """A CNN whose layer "features" returns those of a convolution, times a number and plus another one."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    make = _seeded(lambda: nn.Sequential(OrderedDict(features=_Shifted(scale, shift), head=nn.Sequential(*head))))
    return make()


NETWORKS: tuple[Callable[[], nn.Module], ...] = (hidden_layer_cnn, linear_head_cnn, vision_transformer)
"""A method is checked on the first of these that it accepts."""


def images() -> Tensor:
    """Return three pictures (3, 3, 12, 10), the same at every call."""
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def _cnn(*head: nn.Module) -> nn.Module:
    return nn.Sequential(
        OrderedDict(stem=_block(3, 6, 1), body=_block(6, 8, 2), dropout=nn.Dropout(0.5), head=nn.Sequential(*head))
    )


def _block(channels: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class VisionTransformer(nn.Module):
    """Patches of 2 x 2, a class token, two blocks, and a head that reads the token."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (SIZE[0] // 2) * (SIZE[1] // 2), width))
        self.blocks = nn.Sequential(_TransformerBlock(width), _TransformerBlock(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 4) of pictures (N, 3, 12, 10)."""
        patches = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


class _TransformerBlock(nn.Module):
    """Attention and a perceptron, each after a norm and with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, T, width)."""
        normed = self.norm1(tokens)
        attended: Tensor = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        mixed: Tensor = attended + self.mlp(self.norm2(attended))
        return mixed
