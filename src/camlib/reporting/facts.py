"""What is known about the images of a report, checked: names, notes, labels, predictions, confidences."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from camlib.errors import CamlibTypeError, CamlibValueError, check_class_names, items, number


class Fact(NamedTuple):
    """What is known about one image; None if not given."""

    name: str | None
    note: str | None
    label: int | None
    prediction: int | None
    confidence: float | None


@dataclass(frozen=True)
class Facts:
    """What is known about the images; arguments as for :func:`camlib.report`.

    Example:
        >>> Facts(names=["a", "b"], labels=[0, 1]).of_each(2)[1]
        Fact(name='b', note=None, label=1, prediction=None, confidence=None)
    """

    names: Any = None
    notes: Any = None
    labels: Any = None
    predictions: Any = None
    confidences: Any = None
    class_names: Any = None

    def of_each(self, images: int) -> list[Fact]:
        """Return what is known about each image.

        Raises:
            CamlibTypeError: a value is of another type.
            CamlibValueError: a value is out of range, or not as many are given as there are images.
        """
        check_class_names(self.class_names)
        columns = {
            "names": _texts("names", self.names),
            "notes": _texts("notes", self.notes),
            "labels": _indices("labels", self.labels, self.class_names),
            "predictions": _indices("predictions", self.predictions, self.class_names),
            "confidences": _probabilities(self.confidences),
        }
        for argument, values in columns.items():
            if values is not None and len(values) != images:
                raise CamlibValueError(f"{images} images, but {len(values)} {argument}")
        filled = [[None] * images if values is None else values for values in columns.values()]
        return [Fact(*values) for values in zip(*filled, strict=True)]

    def class_name(self, index: int | None) -> str | None:
        """Return the name of a class."""
        if index is None:
            return None
        return f"class {index}" if self.class_names is None else str(self.class_names[index])


def _listed(argument: str, given: Any) -> list[Any]:
    """Return the entries as a list, or raise."""
    return items(argument, given, "a list with an entry for each image")


def _texts(argument: str, given: Any) -> list[Any] | None:
    if isinstance(given, str):
        raise CamlibTypeError(f"{argument} must be a list with a text for each image, got one str: {given!r}")
    return None if given is None else [None if text is None else str(text) for text in _listed(argument, given)]


def _indices(argument: str, given: Any, class_names: Sequence[str] | None) -> list[Any] | None:
    """Class indices as ints; 0.7 is an error, it is not rounded."""
    if given is None:
        return None
    indices = []
    for value in _listed(argument, given):
        try:
            index = operator.index(value)
        except TypeError as error:
            raise CamlibTypeError(
                f"{argument} must be class indices, one int for each image, got {value!r}; pass names of the classes "
                "as class_names"
            ) from error
        if class_names is not None and not 0 <= index < len(class_names):
            raise CamlibValueError(f"{argument} contain {index}, but there are {len(class_names)} class names")
        if index < 0:
            raise CamlibValueError(f"{argument} contain {index}, but class indices start at 0")
        indices.append(index)
    return indices


def _probabilities(given: Any) -> list[Any] | None:
    if given is None:
        return None
    plain = [value.item() if getattr(value, "ndim", None) == 0 else value for value in _listed("confidences", given)]
    return [number("each of confidences", value, at_least=0, at_most=1) for value in plain]
