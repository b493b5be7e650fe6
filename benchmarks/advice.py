"""What the documentation recommends, by what is explained, and the subject of ``truth.py`` which that rests on.

A test holds every line to the results: each method must be in the top group of its subject.
"""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """One line of the table."""

    explained: str
    guide: str
    """The beginning of the line in the table of ``docs/guides/methods.rst``."""
    subject: str
    methods: tuple[str, ...]
    """As in the results, the first one first."""
    target: str
    layer: str


ADVICE = (
    Advice(
        "a character of a text line, or another score that has a place",
        "to explain a score that has a place",
        "line",
        ("seg_eigen_cam", "layer_cam"),
        "the logit at the character's step",
        "the last convolution before the sequence",
    ),
    Advice(
        "a box of a detector",
        "to explain a detection",
        "box",
        ("eigen_grad_cam",),
        ":class:`~camlib.targets.Box`",
        "what the heads read: the backbone's last layer, or all levels",
    ),
)
