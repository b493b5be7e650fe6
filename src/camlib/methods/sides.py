"""Numbers of pixels along the sides of an image: windows, strides."""

from __future__ import annotations

from collections.abc import Sequence

from camlib.errors import CamlibValueError, positive_int

Sides = int | tuple[int, ...]
"""One number for all sides, or one for each."""


def checked_sides(name: str, sides: int | Sequence[int] | None) -> Sides | None:
    """Return the numbers of pixels; None if none are given.

    Raises:
        CamlibTypeError, CamlibValueError: they are not positive ints.
    """
    if sides is None:
        return None
    return (
        tuple(positive_int(name, side) for side in sides) if isinstance(sides, Sequence) else positive_int(name, sides)
    )


def of_each_side(name: str, sides: Sides | None, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return one number for each side of the image; an empty tuple if none were given.

    Raises:
        CamlibValueError: the image has another number of sides.

    Example:
        >>> of_each_side("window", 8, (32, 48))
        (8, 8)
    """
    if sides is None:
        return ()
    each = sides if isinstance(sides, tuple) else (sides,) * len(size)
    if len(each) != len(size):
        raise CamlibValueError(f"{name} has {len(each)} sides, {each}, but the image has {len(size)}, {size}")
    return each
