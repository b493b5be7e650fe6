"""The gallery: each image with its overlays, and what is known about it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibValueError
from camlib.explanation import Explanation
from camlib.explanation.titles import explained
from camlib.imaging import as_pictures
from camlib.plotting import overlaid
from camlib.plotting.clips import FRAMES, as_clips, evenly_spaced
from camlib.plotting.rows import Style
from camlib.reporting.facts import Fact, Facts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 448
"""The longer side of a picture in pixels; larger pictures are reduced to it."""
QUALITY = 85
"""JPEG quality; a picture with three overlays takes about 100 kB."""


@dataclass(frozen=True)
class Overlay:
    """A picture with a heatmap over it."""

    method: str
    source: str
    """A data URI."""
    explains: str
    """What the heatmap explains: a class, another target, or no particular class."""
    is_empty: bool
    is_missing: bool
    """Whether there is no heatmap, because its numbers are not finite."""


@dataclass(frozen=True)
class Card:
    """An image, its overlays, and what is known about it; None if not given."""

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
        """The confidence in whole percent; only a confidence of 1 is shown as 100%."""
        if self.confidence is None:
            return ""
        rounded = f"{self.confidence:.0%}"
        return {"100%": "over 99%", "0%": "below 1%"}.get(rounded, rounded) if 0 < self.confidence < 1 else rounded


def cards(by_method: Mapping[str, Explanation], images: Any, facts: Facts, style: Style) -> list[Card]:
    """Check what was given, and return a card for each image."""
    for method, explanation in by_method.items():
        _check_explanation(method, explanation)
    first = next(iter(by_method.values()))
    of_pictures = first.dims == 2
    pictures = (
        list(map(_bounded, as_pictures(images))) if of_pictures else as_clips(images, len(first), first.input_size)
    )
    for method, explanation in by_method.items():
        if len(explanation) != len(pictures) or explanation.dims != first.dims:
            raise CamlibValueError(
                f"{len(pictures)} images, but the explanation by {method} has {len(explanation)} images"
                if explanation.dims == first.dims
                else f"maps with {first.dims} and with {explanation.dims} axes do not fit into one report"
            )
    stills = list(map(still, pictures))
    return [
        Card(
            name=f"image {index + 1}" if fact.name is None else fact.name,
            note=fact.note or "",
            label=facts.class_name(fact.label),
            prediction=facts.class_name(fact.prediction),
            outcome=_outcome(fact),
            confidence=fact.confidence,
            original=data_uri(shown),
            height=shown.shape[0],
            width=shown.shape[1],
            overlays=[
                _overlay(method, explanation[index], picture, facts, style._replace(signed=explanation.signed))
                for method, explanation in by_method.items()
            ],
        )
        for index, (picture, shown, fact) in enumerate(zip(pictures, stills, facts.of_each(len(pictures)), strict=True))
    ]


def still(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture as it is; of a clip (T, H, W, 3), up to eight frames, evenly spaced, four in a line."""
    import numpy as np

    if picture.ndim == 3:
        return picture
    frames = list(picture[evenly_spaced(len(picture), FRAMES)])
    columns = min(len(frames), 4)
    frames += [np.zeros_like(frames[0])] * (-len(frames) % columns)
    lines = [np.concatenate(frames[start : start + columns], 1) for start in range(0, len(frames), columns)]
    return _bounded(np.concatenate(lines))


def _outcome(fact: Fact) -> str | None:
    if fact.label is None or fact.prediction is None:
        return None
    return "correct" if fact.label == fact.prediction else "wrong"


def _overlay(method: str, one: Explanation, picture: NDArray[np.uint8], facts: Facts, style: Style) -> Overlay:
    heatmaps = one.heatmaps(picture.shape[: one.dims], "signed" if style.signed else "minmax")
    missing = bool(one.missing)
    return Overlay(
        method=method,
        source=data_uri(still(overlaid([picture], heatmaps[:, None], style)[0])),
        explains="nothing" if missing else explained(one.target, one.class_agnostic, facts.class_names),
        is_empty=not bool(heatmaps.any()),
        is_missing=missing,
    )


def data_uri(picture: NDArray[np.uint8]) -> str:
    """The picture (H, W, 3) as a JPEG in a URI."""
    import cv2

    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + b64encode(data.tobytes()).decode()


def _check_explanation(method: str, explanation: Explanation) -> None:
    if explanation.dims == 1:
        raise CamlibValueError(
            f"a report shows pictures and clips, and the maps by {method} are of signals; draw them with "
            "explanation.plot(signals)"
        )
    if explanation.has_class_axis:
        raise CamlibValueError(
            f"the explanation by {method} has several classes for each image; explain one class: cam(images, target)"
        )


def _bounded(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    if max(height, width) <= LARGEST:
        return picture
    share = LARGEST / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
