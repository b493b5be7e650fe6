"""The parts of a report besides its gallery: headline numbers, and sections of charts, tables and text."""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError, items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"
"""The signature at the start of a PNG file."""


@dataclass(frozen=True)
class Headline:
    """A headline number: its name, its value and its 95% interval.

    Example:
        >>> Headline("AUROC", 0.9612, (0.9371, 0.9794)).shown, Headline("AUROC", 0.9612, (0.9371, 0.9794)).range
        ('0.961', '0.937 to 0.979')
    """

    name: str
    value: float | str
    """A float is shown with three decimals, text as it is."""
    interval: tuple[float, float] | None = None
    """Its 95% interval."""
    note: str = ""
    """A few words on what it means."""

    def __post_init__(self) -> None:
        if self.interval is not None:
            ends = [_plain(end) for end in items(f"the interval of {self.name!r}", self.interval, "(low, high)")]
            if not all(isinstance(end, (int, float)) for end in ends):
                raise CamlibTypeError(f"the interval of {self.name!r} must be (low, high), got {self.interval!r}")
            if len(ends) != 2 or ends[0] > ends[1]:
                raise CamlibValueError(f"the interval of {self.name!r} must be (low, high), got {self.interval}")

    @property
    def shown(self) -> str:
        """The value as text."""
        return _shown(self.value)

    @property
    def range(self) -> str:
        """The interval as text; empty without one."""
        return " to ".join(map(_shown, self.interval)) if self.interval else ""


@dataclass(frozen=True)
class Chart:
    """A matplotlib figure or a PNG, with its content in words for readers who cannot see it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> Chart("Loss", Figure(), "The loss falls from 0.7 to 0.2 in four epochs.").source[:26]
        'data:image/svg+xml;base64,'
    """

    title: str
    figure: Figure | bytes
    """A matplotlib figure, embedded as SVG; or the bytes of a PNG, as from ``Path("roc.png").read_bytes()``."""
    alt: str
    """What the chart shows, in a sentence or two."""
    caption: str = ""

    def __post_init__(self) -> None:
        is_png = isinstance(self.figure, bytes) and self.figure.startswith(PNG) and len(self.figure) > 24
        if not (is_png or hasattr(self.figure, "savefig")):
            raise CamlibTypeError(
                f"a chart takes a matplotlib Figure or the bytes of a PNG, got {type(self.figure).__name__}"
            )
        if not isinstance(self.alt, str) or not self.alt.strip():
            raise CamlibValueError(f"the chart {self.title!r} has no alt text; say in a sentence what it shows")

    @property
    def is_wide(self) -> bool:
        """Whether the chart takes the full width, as figures over seven inches and PNGs twice as wide as high do."""
        if isinstance(self.figure, bytes):
            width, height = struct.unpack(">II", self.figure[16:24])  # a PNG begins with its size
            return bool(width >= 2 * height)
        return bool(self.figure.get_size_inches()[0] > 7)

    @property
    def source(self) -> str:
        """The chart as a data URI; an SVG in an ``img`` runs no scripts."""
        if isinstance(self.figure, bytes):
            return "data:image/png;base64," + b64encode(self.figure).decode()
        import matplotlib

        file = BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "camlib", "svg.fonttype": "path"}):  # the same file every time
            self.figure.savefig(file, format="svg", metadata={"Date": None})
        return "data:image/svg+xml;base64," + b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; the first cell of a row names it.

    Example:
        >>> Table(("method", "deletion"), [("Grad-CAM", 0.21)]).cells
        [['Grad-CAM', '0.210']]
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self) -> None:
        columns = items("columns", self.columns, "a list of names")
        rows = [items("a row", row, "a list of cells") for row in items("rows", self.rows, "a list of rows")]
        for cells in rows:
            if len(cells) != len(columns):
                raise CamlibValueError(f"a row has {len(cells)} cells for {len(columns)} columns: {cells}")
        object.__setattr__(self, "columns", columns)  # iterators would be empty from now on
        object.__setattr__(self, "rows", rows)

    @property
    def cells(self) -> list[list[str]]:
        """The cells as text; floats with three decimals."""
        return [[_shown(cell) for cell in row] for row in self.rows]

    @property
    def is_numeric(self) -> list[bool]:
        """Which columns contain only numbers; they are right-aligned, except the first."""
        return [
            all(isinstance(_plain(row[column]), (int, float)) for row in self.rows)
            for column in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Section:
    """A heading with charts, tables and paragraphs of text below it, in order.

    Example:
        >>> Section("Data", ["Split by patient.", Table(["images", "patients"], [(312, 298)])]).title
        'Data'
    """

    title: str
    parts: Sequence[Chart | Table | str]

    def __post_init__(self) -> None:
        parts = items(f"section {self.title!r}", self.parts, "a list of Chart, Table and str")
        odd = [type(part).__name__ for part in parts if not isinstance(part, (Chart, Table, str))]
        if odd:
            raise CamlibTypeError(
                f"section {self.title!r} must be a list of Chart, Table and str, got {', '.join(odd)}"
            )
        object.__setattr__(self, "parts", parts)


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _shown(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, float):
        return "unknown" if math.isnan(plain) else f"{plain:.3f}"
    return str(plain)
