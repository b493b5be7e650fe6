"""A figure that a notebook can show."""

from __future__ import annotations

import io
from os import PathLike
from typing import Any

from matplotlib import figure

from camlib.files import path_of, replacing


class Figure(figure.Figure):
    """A matplotlib figure for notebooks, made without pyplot, which would keep it alive."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save the figure as matplotlib does; if that fails, an older file stays as it was."""
        if not isinstance(fname, (str, PathLike)) or "pgf" in (options.get("format"), str(fname)[-3:]):
            super().savefig(fname, **options)
            return
        path = path_of(fname)
        kind = options.pop("format", None) or path.suffix.lower().lstrip(".")
        if not path.suffix:
            kind = kind or self.canvas.get_default_filetype()
            path = path.with_name(f"{path.name}.{kind}")
        with replacing(path) as file:
            super().savefig(file, format=kind, **options)

    def _repr_png_(self) -> bytes:
        """The figure as the PNG that a notebook shows."""
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()
