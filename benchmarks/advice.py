"""Which methods the documentation recommends for which score, and the subject of ``truth.py`` that shows it.

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
    proved: bool = True
    """Whether the intervals of the first method lie above those of every baseline, for energy and pointing game."""


ADVICE = (
    Advice(
        "a class, among several objects",
        "to explain a class, among several objects",
        "mosaic",
        ("grad_cam of the probability",),
        ":class:`~camlib.targets.Probability`",
        "the one that is found",
    ),
    Advice(
        "a small region, such as a mark that reveals the class",
        "to find a small region",
        "watermark at features.13",
        ("eigen_grad_cam", "seg_eigen_cam"),
        "the class",
        "a finer one, by :func:`~camlib.scan_layers`",
    ),
    Advice(
        "a class of a vision transformer",
        "to explain a vision transformer",
        "transformer",
        ("libra_grad", "generic_attention"),
        "the class",
        "the tokens before the first block; all attention",
        proved=False,
    ),
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
    Advice(
        "a region of a segmentation",
        "to explain a segmentation",
        "region",
        ("hires_cam", "layer_cam", "seg_eigen_cam"),
        ":class:`~camlib.targets.Region`",
        "the one that is found",
    ),
)
