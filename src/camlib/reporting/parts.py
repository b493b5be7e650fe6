"""What a report is made of, beside its gallery: headline figures, and sections of charts, tables and text."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from camlib.errors import CamlibTypeError, CamlibValueError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Headline:
    """A figure that comes first: its name, its value, and how sure it is.

    Example:
        >>> Headline("AUROC", 0.9612, (0.9371, 0.9794)).shown, Headline("AUROC", 0.9612, (0.9371, 0.9794)).range
        ('0.961', '0.937 to 0.979')
    """

    name: str
    value: float | str
    """A number is shown with three decimals, text as it is."""
    interval: tuple[float, float] | None = None
    """Its 95% interval."""
    note: str = ""
    """A few words on what it means."""

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
    """A matplotlib figure, with what it shows in words for those who do not see it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> Chart("Loss", Figure(), "The loss falls from 0.7 to 0.2 in four epochs.").source[:26]
        'data:image/svg+xml;base64,'
    """

    title: str
    figure: Figure
    alt: str
    """What it shows, in a sentence or two."""
    caption: str = ""

    def __post_init__(self) -> None:
        if not hasattr(self.figure, "savefig"):
            raise CamlibTypeError(f"a chart takes a matplotlib Figure, got {type(self.figure).__name__}")
        if not self.alt.strip():
            raise CamlibValueError(f"the chart {self.title!r} has no alt text; say in a sentence what it shows")

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width of the page, as figures of more than seven inches do."""
        return bool(self.figure.get_size_inches()[0] > 7)

    @property
    def source(self) -> str:
        """The figure as an SVG image in a data URI; an image runs no scripts."""
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
        for row in self.rows:
            if len(row) != len(self.columns):
                raise CamlibValueError(f"a row of {len(row)} cells under {len(self.columns)} columns: {list(row)}")

    @property
    def cells(self) -> list[list[str]]:
        """The cells as text; floats with three decimals."""
        return [[_shown(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in order: charts, tables, and paragraphs of text.

    Example:
        >>> Section("Data", ["Split by patient."]).identifier
        'data'
    """

    title: str
    parts: Sequence[Chart | Table | str]

    def __post_init__(self) -> None:
        odd = [type(part).__name__ for part in self.parts if not isinstance(part, (Chart, Table, str))]
        if odd or isinstance(self.parts, str):
            raise CamlibTypeError(
                f"a section holds a list of Chart, Table and str, got {', '.join(odd) or 'one str'} in {self.title!r}"
            )

    @property
    def identifier(self) -> str:
        """The title as an anchor."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "not known" if math.isnan(value) else f"{value:.3f}"
    return str(value)
