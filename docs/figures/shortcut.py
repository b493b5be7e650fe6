"""A network that learns a shortcut: phantoms on which every sick patient's picture carries a bright tag.

Phantoms are drawings, no medical images; see ``examples/pneumonia``. Training takes a few seconds on one core.
"""

import torch
from torch import Tensor, nn

from pneumonia.phantoms import Phantoms, generate

SIDE = 64
TAG = (slice(3, 9), slice(3, 9))
TRAINING, TEST = 240, 80


def with_tag(radiographs: Tensor, chosen: Tensor) -> Tensor:
    """Return the radiographs (N, H, W), with a bright square in the corner of the chosen ones."""
    tagged = radiographs.clone()
    for index in chosen.nonzero().flatten().tolist():
        tagged[index][TAG] = 255
    return tagged


def prepared(radiographs: Tensor) -> Tensor:
    """What the network takes, (N, 1, H, W) in [-1, 1]."""
    return radiographs[:, None].float() / 127.5 - 1


def network() -> nn.Sequential:
    """Three convolutions, the mean over the picture, a linear layer."""
    channels = (1, 8, 16, 16)
    features: list[nn.Module] = []
    for before, after, stride in zip(channels[:-1], channels[1:], (2, 2, 1), strict=True):
        features += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 2))


def trained(phantoms: Phantoms, epochs: int = 12) -> nn.Sequential:
    """A network trained on the first phantoms, of which the sick ones, and only these, are tagged."""
    radiographs = prepared(with_tag(phantoms.images, phantoms.labels == 1))[:TRAINING]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(epochs):
            for batch in torch.randperm(TRAINING).split(24):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(radiographs[batch]), phantoms.labels[batch]).backward()
                optimizer.step()
    return model.eval()


def phantoms_of_both_classes() -> Phantoms:
    """The phantoms for training and, behind them, those for the test."""
    return generate(TRAINING + TEST, size=SIDE, seed=1)
