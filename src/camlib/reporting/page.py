"""The page: explanations and pictures in, one HTML file out."""

from __future__ import annotations

import math
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.explanation import Explanation
from camlib.imaging import as_pictures, colorize
from camlib.reporting.parts import Headline, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 448
"""Longer pictures are made smaller, to this many pixels on their longer side."""
QUALITY = 85
"""Of the JPEG images. A picture and three overlays take about 100 kB."""


@dataclass(frozen=True)
class Report:
    """A page that holds everything it shows.

    Example:
        >>> Report("<!doctype html>")
        <Report of 15 characters: save("report.html") writes it>
    """

    html: str

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page, whole or not at all, and return where."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(self.html, encoding="utf-8")
        os.replace(temporary, target)
        return target

    def __repr__(self) -> str:
        return f'<Report of {len(self.html)} characters: save("report.html") writes it>'


def report(
    explanations: Explanation | Mapping[str, Explanation],
    images: Any,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    predictions: Sequence[int] | None = None,
    confidences: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    title: str = "Where the network looked",
    notice: str = "A heatmap shows which features raised a score. It does not show that the network is right.",
    summary: Sequence[Headline] = (),
    sections: Sequence[Section] = (),
    card: Mapping[str, str] | None = None,
    colormap: Any = "jet",
    alpha: float | str = 0.5,
) -> Report:
    """Make a report of explanations: one HTML file with a gallery, and whatever else there is to say.

    Every picture has a slider between itself and its overlay; the gallery is filtered by outcome, class, confidence and
    name; several methods can be chosen from. It needs no network, works on a phone, from the keyboard, on paper and
    without scripts. Everything that is passed is shown as text: nothing in a name can run.

    Args:
        explanations: of N images, one class of each; or several of the same images, by method.
        images: the N pictures, as :meth:`camlib.Explanation.overlays` takes them; they may differ in size. Those larger
            than 448 pixels are made smaller.
        names: of the images; by default they are numbered.
        labels: true classes, (N,).
        predictions: predicted classes, (N,).
        confidences: probabilities of the predicted classes, (N,), in [0, 1].
        class_names: of the classes that labels and predictions name.
        notes: a few words on each image, such as why it is shown.
        title: of the page.
        notice: shown first, and on paper.
        summary: the figures that come first.
        sections: below them, in order, with the gallery last.
        card: rows of a model card: what the model is, what it was made for, where it fails.
        colormap: as for :meth:`camlib.Explanation.overlays`.
        alpha: as for :meth:`camlib.Explanation.overlays`.

    Returns:
        The page; ``save`` writes it, ``html`` is its text.

    Raises:
        CamlibRuntimeError: jinja2 is not installed.
        CamlibTypeError: something else than explanations.
        CamlibValueError: lengths that differ, several classes of each image, labels outside the class names, or
            confidences outside [0, 1].

    Example:
        >>> import camlib, torch, torchvision
        >>> images = torch.rand(2, 3, 64, 64)
        >>> explanation = camlib.GradCAM(torchvision.models.resnet18(num_classes=2))(images)
        >>> page = camlib.report(explanation, images, labels=[0, 1], class_names=["cat", "dog"])
        >>> page.html.count("<article")
        2
    """
    by_method = _by_method(explanations)
    pictures = [_bounded(picture) for picture in as_pictures(images)]
    count = len(pictures)
    _check(by_method, count, names, labels, predictions, confidences, notes, class_names)
    shown = [
        {
            "name": names[index] if names is not None else f"image {index + 1}",
            "label": _class(labels, index, class_names),
            "prediction": _class(predictions, index, class_names),
            "outcome": _outcome(labels, predictions, index),
            "confidence": None if confidences is None else float(confidences[index]),
            "note": notes[index] if notes is not None else "",
            "original": _data_uri(picture),
            "size": picture.shape[:2],
            "overlays": {
                method: _data_uri(explanation[index].overlays([picture], colormap, alpha)[0])
                for method, explanation in by_method.items()
            },
            "empty": [method for method, explanation in by_method.items() if bool(explanation[index].degenerate.any())],
        }
        for index, picture in enumerate(pictures)
    ]
    style, script = _template("report.css"), _template("report.js")
    html = (
        _environment()
        .from_string(_template("report.html.j2"))
        .render(
            title=title,
            notice=notice,
            summary=summary,
            sections=sections,
            card=card or {},
            images=shown,
            methods=list(by_method),
            classes=sorted(
                {str(image[key]) for image in shown for key in ("label", "prediction") if image[key] is not None}
            ),
            bar=_data_uri(_bar(colormap)),
            style=style,
            script=script,
            policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        )
    )
    return Report(html)


def _by_method(explanations: Any) -> dict[str, Explanation]:
    found = {explanations.method: explanations} if isinstance(explanations, Explanation) else explanations
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Explanation) for v in found.values()):
        raise CamlibTypeError(
            f"a report takes an Explanation, or a mapping of names to some, got {type(explanations).__name__}"
        )
    return {str(name): explanation.cpu() for name, explanation in found.items()}


def _check(
    by_method: Mapping[str, Explanation],
    count: int,
    names: Sequence[str] | None,
    labels: Sequence[int] | None,
    predictions: Sequence[int] | None,
    confidences: Sequence[float] | None,
    notes: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> None:
    for method, explanation in by_method.items():
        if explanation.has_class_axis:
            raise CamlibValueError(
                f"the explanation by {method} has several classes of each image; explain one class: cam(images, target)"
            )
        if len(explanation) != count:
            raise CamlibValueError(f"{count} images, but the explanation by {method} is of {len(explanation)}")
    given: dict[str, Sequence[Any] | None] = {
        "names": names,
        "labels": labels,
        "predictions": predictions,
        "confidences": confidences,
        "notes": notes,
    }
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise CamlibValueError(f"{count} images, but {len(values)} {name}")
    for name in ("labels", "predictions"):
        for index in given[name] or () if class_names is not None else ():
            if not 0 <= int(index) < len(class_names or ()):
                raise CamlibValueError(f"{name} hold {int(index)}, but there are {len(class_names or ())} class names")
    for value in confidences if confidences is not None else ():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise CamlibValueError(f"confidences are probabilities in [0, 1], got {float(value)}")


def _class(classes: Sequence[int] | None, index: int, class_names: Sequence[str] | None) -> str | None:
    if classes is None:
        return None
    number = int(classes[index])
    return f"class {number}" if class_names is None else str(class_names[number])


def _outcome(labels: Sequence[int] | None, predictions: Sequence[int] | None, index: int) -> str | None:
    if labels is None or predictions is None:
        return None
    return "correct" if int(labels[index]) == int(predictions[index]) else "wrong"


def _bounded(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    if max(height, width) <= LARGEST:
        return picture
    share = LARGEST / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _data_uri(picture: NDArray[np.uint8]) -> str:
    import cv2

    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + b64encode(data.tobytes()).decode()


def _bar(colormap: Any) -> NDArray[np.uint8]:
    import numpy as np

    return np.asarray(colorize(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(8, 0), colormap))


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise CamlibRuntimeError("a report needs the package jinja2: install the extra report") from error
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _template(name: str) -> str:
    return (resources.files("camlib.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
