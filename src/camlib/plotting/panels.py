"""The axes of a figure: how many it has, and those that a caller gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from camlib.errors import CamlibTypeError, CamlibValueError, items

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Panels(NamedTuple):
    """The axes that a figure needs, and its size with them."""

    lines: int
    columns: int
    size: tuple[float, float]
    """Width and height in inches."""


def checked_axes(axes: Any) -> list[Axes]:
    """Return the axes that a caller gave, line by line.

    Args:
        axes: one Axes of matplotlib, or an array or a list of them.

    Raises:
        CamlibTypeError: something else.
        CamlibValueError: none, one of them twice, of another projection, removed, or of several figures.
    """
    from matplotlib.axes import Axes

    wanted = "an Axes of matplotlib, or an array or a list of them, such as figure.subplots(2, 3)"
    listed: list[Any] = [axes] if isinstance(axes, Axes) else items("axes", axes, wanted)
    given: list[Any] = []
    for line in listed:
        given += list(line) if isinstance(line, (list, tuple)) or getattr(line, "ndim", 0) == 1 else [line]
    for one in given:
        if not isinstance(one, Axes):
            raise CamlibTypeError(f"axes must be {wanted}; got one that is a {type(one).__name__}")
        if one.name != "rectilinear":
            raise CamlibValueError(f"axes must have two straight axes, got a projection {one.name!r}")
        if one.figure is None or one not in one.figure.axes:
            raise CamlibValueError(
                "axes must be those of a figure, got one that was removed from its figure, or an inset"
            )
    if not given:
        raise CamlibValueError("axes are empty; give at least one")
    if len(set(given)) < len(given):
        raise CamlibValueError("each of axes can hold one picture, and one of them is given twice")
    figures = {one.figure for one in given}
    if len(figures) != 1:
        raise CamlibValueError(f"axes must be of one figure or subfigure, got those of {len(figures)}")
    return given
