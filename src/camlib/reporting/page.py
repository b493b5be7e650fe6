"""The page: from explanations and pictures to one HTML file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from camlib import __version__
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.explanation import Explanation
from camlib.files import replacing
from camlib.imaging.colors import DEFAULT_COLORMAP, lookup_table
from camlib.plotting.rows import Style
from camlib.reporting.facts import Facts
from camlib.reporting.gallery import cards, data_uri
from camlib.reporting.parts import Headline, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OF_A_CLASS = "A heatmap that explains a class shows which features raised its score."
SAME_FOR_ALL = "A heatmap that is the same for every class explains no score."
"""Beginnings of the notice where some methods, or all, are class-agnostic."""


@dataclass(frozen=True)
class Report:
    """A self-contained HTML page. A notebook shows it in a frame.

    Example:
        >>> Report("<!doctype html>")
        <Report of 15 characters: save("report.html") writes it>
    """

    html: str

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the page and return its path; if that fails, an older file stays as it was."""
        with replacing(path) as file:
            file.write(self.html.encode())
        return Path(path)

    def __repr__(self) -> str:
        return f'<Report of {len(self.html)} characters: save("report.html") writes it>'

    def _repr_html_(self) -> str:
        """The page in a frame, which keeps its style and its script out of the notebook."""
        return (
            f'<iframe title="Report" sandbox="allow-scripts" width="100%" height="720" srcdoc="{escape(self.html)}">'
            "</iframe>"
        )


def report(
    explanations: Explanation | Mapping[str, Explanation],
    images: Any,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    predictions: Sequence[int] | Tensor | None = None,
    confidences: Sequence[float] | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    title: str = "Where the network looked",
    notice: str | None = None,
    summary: Sequence[Headline] = (),
    sections: Sequence[Section] = (),
    card: Mapping[str, str] | None = None,
    colormap: Any = DEFAULT_COLORMAP,
    alpha: float | str = 0.5,
) -> Report:
    """Make a report of explanations: one HTML file with a gallery, headline numbers, charts, tables and a model card.

    A slider on each picture uncovers its overlay; the gallery can be filtered by outcome, class, confidence and name,
    and switched between methods. The page needs no network and works on a phone, from the keyboard, on paper and
    without scripts. All arguments are shown as text, so no code in a name can run.

    Args:
        explanations: of N images, with one class for each; or a mapping from methods to explanations of these images.
        images: the N pictures, as for :meth:`camlib.Explanation.overlays`; they may differ in size. Pictures larger
            than 448 pixels are reduced. Of volumes and videos, up to eight frames are shown.
        names: names of the images; by default they are numbered.
        labels: true classes, (N,).
        predictions: predicted classes, (N,).
        confidences: probabilities of the predicted classes, (N,), in [0, 1].
        class_names: names for the class indices: of the explained classes, labels and predictions.
        notes: a few words on each image, such as why it is shown.
        title: the page's title.
        notice: a sentence at the top and the bottom of the page; by default what the heatmaps show and what they do
            not.
        summary: headline numbers, at the top.
        sections: sections below the headline numbers, in order; the gallery follows them.
        card: rows of a model card: what the model is, what it was made for, where it fails.
        colormap: as for :meth:`camlib.Explanation.overlays`.
        alpha: as for :meth:`camlib.Explanation.overlays`.

    Returns:
        The page; ``save`` writes it, ``html`` is its text.

    Raises:
        CamlibRuntimeError: jinja2 is not installed.
        CamlibTypeError: an argument is not made of explanations, class indices, numbers, headlines or sections.
        CamlibValueError: lengths differ, images have several classes, maps are of signals, a class has no
            name, or a confidence is outside [0, 1].

    Example:
        >>> import camlib, torch, torchvision
        >>> images = torch.rand(2, 3, 64, 64)
        >>> explanation = camlib.GradCAM(torchvision.models.resnet18(num_classes=2))(images)
        >>> page = camlib.report(explanation, images, labels=[0, 1], class_names=["cat", "dog"])
        >>> page.html.count("<article")
        2
    """
    template = _environment().from_string(_template("report.html.j2"))
    by_method = _by_method(explanations)
    _check_list("summary", summary, Headline)
    _check_list("sections", sections, Section)
    if card is not None and not isinstance(card, Mapping):
        raise CamlibTypeError(f"card must be a mapping from texts to texts, got {card!r}")
    if notice is not None and not isinstance(notice, str):
        raise CamlibTypeError(f"notice must be a string, got {notice!r}")
    facts = Facts(names, notes, labels, predictions, confidences, class_names)
    gallery = cards(by_method, images, facts, Style(colormap, alpha))
    agnostic = [method for method, explanation in by_method.items() if explanation.class_agnostic]
    kinds = sorted({explanation.signed for explanation in by_method.values()})
    style, script = _template("report.css"), _template("report.js")
    html = template.render(
        title=_text(title),
        notice=_notice(len(agnostic), len(by_method)) if notice is None else _text(notice),
        summary=_text(summary),
        sections=_text(sections),
        card=_text(card or {}),
        gallery=gallery,
        agnostic=agnostic,
        sources={method: _source(method, explanation) for method, explanation in by_method.items()},
        classes=sorted({name for entry in gallery for name in (entry.label, entry.prediction) if name is not None}),
        bars=[(kind, data_uri(_bar(Style(colormap, alpha, signed=kind)))) for kind in kinds],
        signed=[method for method, explanation in by_method.items() if explanation.signed],
        version=__version__,
        style=style,
        script=script,
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
    )
    return Report(html.encode(errors="replace").decode())  # file names may contain bytes that are not text


def _by_method(explanations: Any) -> dict[str, Explanation]:
    found = {explanations.method: explanations} if isinstance(explanations, Explanation) else explanations
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Explanation) for v in found.values()):
        raise CamlibTypeError(
            f"a report takes an Explanation, or a mapping from names to Explanations, got {type(explanations).__name__}"
        )
    return {str(name): explanation.cpu() for name, explanation in found.items()}


def _check_list(argument: str, given: Any, kind: type) -> None:
    if not isinstance(given, Sequence) or not all(isinstance(part, kind) for part in given):
        raise CamlibTypeError(f"{argument} must be a list of {kind.__name__}, got {given!r}")


def _text(value: Any) -> Any:
    """The same value with plain texts: jinja2 does not escape what has ``__html__``, as Django's safe strings do."""
    if hasattr(value, "__html__"):
        return str(value)
    if isinstance(value, Mapping):
        return {_text(name): _text(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{own.name: _text(getattr(value, own.name)) for own in fields(value)})
    return value


def _notice(agnostic: int, methods: int) -> str:
    """Say what heatmaps show, by the number of methods whose maps are the same for every class."""
    shown = "A heatmap shows which features raised a score." if not agnostic else OF_A_CLASS
    return f"{SAME_FOR_ALL if agnostic == methods else shown} It does not show that the network is right."


def _source(method: str, explanation: Explanation) -> str:
    return f"{method} at {explanation.layer}" if explanation.layer else method


def _bar(style: Style) -> NDArray[np.uint8]:
    return lookup_table(style.colors)[None].repeat(8, 0)


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
