"""The gallery: each image with its overlays, and what is known about it."""

from __future__ import annotations

import math
import operator
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.explanation.titles import explained
from camlib.imaging import as_pictures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 448
"""Longer pictures are made smaller, to this many pixels on their longer side."""
QUALITY = 85
"""Of the JPEG images. A picture and three overlays take about 100 kB."""


@dataclass(frozen=True)
class Overlay:
    """A picture with a heatmap over it."""

    method: str
    source: str
    """A data URI."""
    explains: str
    """What the heatmap explains: a class, another target, or no particular class."""
    is_empty: bool


@dataclass(frozen=True)
class Card:
    """An image, its overlays, and what is known about it; None is what nobody said."""

    name: str
    note: str
    label: str | None
    prediction: str | None
    outcome: str | None
    """Whether label and prediction agree: "correct" or "wrong"."""
    confidence: float | None
    original: str
    """A data URI."""
    height: int
    width: int
    overlays: list[Overlay]

    @property
    def explains(self) -> str:
        """What the heatmaps explain, by method where that differs."""
        if len({overlay.explains for overlay in self.overlays}) == 1:
            return self.overlays[0].explains
        return ", ".join(f"{overlay.explains} ({overlay.method})" for overlay in self.overlays)

    @property
    def percent(self) -> str:
        """The confidence in whole percent; only a certain network is 100% sure."""
        if self.confidence is None:
            return ""
        rounded = f"{self.confidence:.0%}"
        return {"100%": "over 99%", "0%": "below 1%"}.get(rounded, rounded) if 0 < self.confidence < 1 else rounded


def cards(
    by_method: Mapping[str, Explanation],
    images: Any,
    *,
    names: Sequence[str] | None,
    labels: Any,
    predictions: Any,
    confidences: Any,
    class_names: Sequence[str] | None,
    notes: Sequence[str] | None,
    colormap: Any,
    alpha: float | str,
) -> list[Card]:
    """Check what was given, and make a card of each image. Arguments as for :func:`camlib.report`."""
    for method, explanation in by_method.items():
        _check_explanation(method, explanation)
    pictures = [_bounded(picture) for picture in as_pictures(images)]
    for method, explanation in by_method.items():
        if len(explanation) != len(pictures):
            raise CamlibValueError(f"{len(pictures)} images, but the explanation by {method} is of {len(explanation)}")
    known: dict[str, list[Any] | None] = {
        "names": _texts("names", names),
        "notes": _texts("notes", notes),
        "labels": _indices("labels", labels, class_names),
        "predictions": _indices("predictions", predictions, class_names),
        "confidences": _probabilities(confidences),
    }
    for argument, values in known.items():
        if values is not None and len(values) != len(pictures):
            raise CamlibValueError(f"{len(pictures)} images, but {len(values)} {argument}")

    def card(index: int, picture: NDArray[np.uint8]) -> Card:
        name, note, label, prediction, confidence = (
            None if values is None else values[index] for values in known.values()
        )
        return Card(
            name=f"image {index + 1}" if name is None else name,
            note=note or "",
            label=None if label is None else _class_name(label, class_names),
            prediction=None if prediction is None else _class_name(prediction, class_names),
            outcome=None if label is None or prediction is None else "correct" if label == prediction else "wrong",
            confidence=confidence,
            original=data_uri(picture),
            height=picture.shape[0],
            width=picture.shape[1],
            overlays=[
                Overlay(
                    method=method,
                    source=data_uri(one.overlays([picture], colormap, alpha)[0]),
                    explains=explained(one.target, one.class_agnostic, class_names),
                    is_empty=bool(one.degenerate.any()),
                )
                for method, one in ((method, explanation[index]) for method, explanation in by_method.items())
            ],
        )

    return [card(index, picture) for index, picture in enumerate(pictures)]


def data_uri(picture: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as a JPEG in a URI."""
    import cv2

    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + b64encode(data.tobytes()).decode()


def _check_explanation(method: str, explanation: Explanation) -> None:
    if explanation.dims != 2:
        raise CamlibValueError(
            f"a report shows pictures, but the maps by {method} have {explanation.dims} axes each; draw signals with "
            "explanation.plot(signals), and for volumes and videos give explanations of single frames"
        )
    if explanation.has_class_axis:
        raise CamlibValueError(
            f"the explanation by {method} has several classes of each image; explain one class: cam(images, target)"
        )


def _texts(argument: str, given: Sequence[str] | None) -> list[str] | None:
    if isinstance(given, str):
        raise CamlibTypeError(f"{argument} are a list with a text for each image, got one str: {given!r}")
    return None if given is None else ["" if text is None else str(text) for text in given]


def _indices(argument: str, given: Any, class_names: Sequence[str] | None) -> list[int] | None:
    """Class indices as ints; 0.7 is refused, not rounded."""
    if given is None:
        return None
    indices = []
    for value in given:
        try:
            index = operator.index(value)
        except TypeError as error:
            raise CamlibTypeError(
                f"{argument} are class indices, one int for each image, got {value!r}; classes are named by class_names"
            ) from error
        if class_names is not None and not 0 <= index < len(class_names):
            raise CamlibValueError(f"{argument} hold {index}, but there are {len(class_names)} class names")
        if index < 0:
            raise CamlibValueError(f"{argument} hold {index}, but classes are counted from 0")
        indices.append(index)
    return indices


def _probabilities(given: Any) -> list[float] | None:
    if given is None:
        return None
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError, RuntimeError) as error:  # the last from tensors of several numbers
        raise CamlibTypeError(
            f"confidences are the predicted classes' probabilities, one for each image: {error}"
        ) from error
    for value in values:
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise CamlibValueError(f"confidences are probabilities in [0, 1], got {value}")
    return values


def _class_name(index: int, class_names: Sequence[str] | None) -> str:
    return f"class {index}" if class_names is None else str(class_names[index])


def _bounded(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    if max(height, width) <= LARGEST:
        return picture
    share = LARGEST / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
