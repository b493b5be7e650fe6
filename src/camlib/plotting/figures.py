"""A figure that shows itself in a notebook."""

from __future__ import annotations

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A matplotlib figure made without pyplot, which keeps figures alive, and which notebooks ask for pictures."""

    def _repr_png_(self) -> bytes:
        """What a notebook asks for."""
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()
