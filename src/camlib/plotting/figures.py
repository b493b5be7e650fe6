"""A figure that a notebook can show."""

from __future__ import annotations

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A matplotlib figure for notebooks, made without pyplot, which would keep it alive."""

    def _repr_png_(self) -> bytes:
        """The figure as the PNG that a notebook shows."""
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()
