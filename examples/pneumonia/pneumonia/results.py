"""The results of a run, and how they are written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumonia.calibration import Calibration
from pneumonia.checkpoint import Recipe
from pneumonia.explain import Localisation
from pneumonia.measures import Evaluation, Subgroup, Subset
from pneumonia.quality import Quality
from pneumonia.train import Epoch


@dataclass(frozen=True)
class Prediction:
    """A test image and its probability of PNEUMONIA."""

    image: str
    label: int
    probability: float


@dataclass(frozen=True)
class TemperatureScaling:
    """The calibration on the test set before and after dividing the logits by the temperature."""

    uncalibrated: Calibration
    calibrated: Calibration


@dataclass(frozen=True)
class Results:
    """What a run found about its network."""

    threshold: float
    threshold_rule: str
    temperature: float
    test: Evaluation
    subgroups: dict[str, Subgroup]
    calibration: TemperatureScaling
    validation: Evaluation
    validation_elsewhere: Evaluation
    """On validation images altered as if another machine had taken them."""
    subsets: list[Subset]
    predictions: list[Prediction]
    history: list[Epoch]
    settings: Recipe
    notes: list[str]
    notice: str

    @property
    def labels(self) -> NDArray[Any]:
        """The labels of the test images, (N,)."""
        return np.array([row.label for row in self.predictions])

    @property
    def probabilities(self) -> NDArray[Any]:
        """The probabilities of PNEUMONIA of the test images, (N,)."""
        return np.array([row.probability for row in self.predictions])


@dataclass(frozen=True)
class Explained:
    """The layer that was explained, and the test images in the heatmap figure."""

    layer: str
    images: list[str]


@dataclass(frozen=True)
class HeatmapResults:
    """What a run found about its heatmaps."""

    explained: Explained
    quality: Quality
    localisation: Localisation | None
    """For phantoms only, whose masks are known."""


def write_json(path: Path, *parts: Any) -> None:
    """Write dataclasses and dicts into one JSON object; NaN becomes null."""
    merged = {key: value for part in parts for key, value in plain(part).items()}
    path.write_text(json.dumps(merged, indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Turn dataclasses into what JSON holds: dicts, lists, strings, numbers, and null for NaN.

    Example:
        >>> plain(Prediction("x.png", 1, float("nan")))
        {'image': 'x.png', 'label': 1, 'probability': None}
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
