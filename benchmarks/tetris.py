"""XAI-TRIS (Clark et al. 2023, https://arxiv.org/abs/2306.12816), rebuilt: 8 x 8 pictures of two tetrominoes.

White noise hides a pattern, at the strengths of the authors' configuration. There are four scenarios. *Linear*: the
pattern, a T at one place or an L at another, is added to the noise. *Multiplicative*: the pattern scales the noise.
*Translations and rotations*: the pattern is added anywhere, in one of four orientations. *XOR*: both patterns are
there, with equal or different signs. The truth is the pattern. As in the paper, the absolute values of the attributions
count, and only test pictures that the network classifies correctly are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.drawn import SEEDS, draws, trained
from benchmarks.subjects import Subject, Trial, indexed

STRENGTHS = {"linear": 0.18, "multiplicative": 0.7, "translations and rotations": 0.65, "XOR": 0.35}
T = np.array([[1, 0], [1, 1], [1, 0]])
L = np.array([[1, 0], [1, 0], [1, 1]])
PLACES = ((1, 1), (4, 5))
COUNT, TRAINING, EXPLAINED = 6000, 5000, 64
Array = NDArray[np.float64]


def patterns(scenario: str, random: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """The signals (COUNT, 8, 8) and the classes."""
    found, labels = np.zeros((COUNT, 8, 8)), random.integers(0, 2, COUNT)
    for signal, label in zip(found, labels, strict=True):
        if scenario == "XOR":
            first = random.choice([-1, 1])
            signs = (first, first if label == 0 else -first)
            placed = [(sign * one, place) for sign, one, place in zip(signs, (T, L), PLACES, strict=True)]
        elif scenario == "translations and rotations":
            turned = np.rot90((T, L)[label], int(random.integers(4)))
            place = tuple(random.integers(0, 9 - side) for side in turned.shape)
            placed = [(turned, place)]
        else:
            placed = [((T, L)[label], PLACES[label])]
        for one, (y, x) in placed:
            signal[y : y + one.shape[0], x : x + one.shape[1]] = one
    return found, labels


def pictures(scenario: str, random: np.random.Generator) -> tuple[Array, Array, NDArray[np.int64]]:
    """Pictures (COUNT, 8, 8) in [-1, 1], their signals, and the classes."""
    signals, labels = patterns(scenario, random)
    noise, strength = random.normal(0, 0.5, signals.shape), STRENGTHS[scenario]
    if scenario == "multiplicative":
        scaled = 1 - strength * signals
        made = scaled / np.linalg.norm(scaled) * noise / np.linalg.norm(noise)
    else:
        made = strength * signals / np.linalg.norm(signals) + (1 - strength) * noise / np.linalg.norm(noise)
    return made / np.abs(made).max(), signals, labels


def network() -> nn.Module:
    """A convolutional network of the authors' kind: small kernels, and a linear layer that knows the places."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 2),
    )  # fmt: skip


def trial(scenario: str, seed: int) -> Trial:
    """The logit of the class, of pictures that are classified correctly."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    made, signals, classes = pictures(scenario, random)
    images, labels = torch.from_numpy(made).float()[:, None], torch.from_numpy(classes)
    model, order = network(), draws(random, TRAINING, 64, 1500)
    trained(model, len(order), 5e-3, lambda step: F.cross_entropy(model(images[order[step]]), labels[order[step]]))
    with torch.no_grad():
        right = (model(images[TRAINING:]).argmax(1) == labels[TRAINING:]).nonzero().flatten() + TRAINING
    print(f"right: {len(right) / (COUNT - TRAINING):.2f}")
    chosen = right[:EXPLAINED]
    truth = torch.from_numpy(signals[chosen] != 0)
    return Trial(model, images[chosen], truth, indexed(labels[chosen].tolist()), range(len(chosen)), signed=True)


def made_for(scenario: str) -> Callable[[], Iterator[Trial]]:
    """The trials of a scenario."""
    return lambda: (trial(scenario, seed) for seed in SEEDS)


SUBJECTS = tuple(
    Subject(f"XAI-TRIS {scenario}", f"a class of 8 x 8 pictures, {scenario}", made_for(scenario), {}, 64, len(SEEDS))
    for scenario in STRENGTHS
)
