"""The errors camlib raises, each a CamlibError and the matching builtin; and checks of numbers that raise them."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping, Sized
from typing import Any


class CamlibError(Exception):
    """Base of every error that camlib raises on purpose."""


class CamlibValueError(CamlibError, ValueError):
    """An argument has the right type but a value that cannot work."""


class CamlibTypeError(CamlibError, TypeError):
    """An argument is of a type that cannot work."""


class CamlibRuntimeError(CamlibError, RuntimeError):
    """The model, or the machine, did something that no argument check could foresee."""


class NotFiniteError(CamlibRuntimeError):
    """A score, an activation, a gradient or a map is NaN or infinite.

    Args:
        message: what is not finite.
        images: the numbers of the images where it is not; empty if they are not known.
        what: the name of the numbers.

    Example:
        >>> NotFiniteError("the score is not finite", images=(2,)).images
        (2,)
    """

    def __init__(self, message: str, images: Iterable[int] = (), what: str = "number") -> None:
        super().__init__(message)
        self.what = what
        """The name of the numbers."""
        self.images = tuple(images)
        """The numbers of the images in the batch; empty if they are not known."""


class CamlibWarning(UserWarning):
    """Something works, but perhaps not as the caller expects."""


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    instead: str = "",
) -> float:
    """Return a finite number within bounds.

    Args:
        name: the argument's name, for errors.
        value: what was given for it.
        above: a bound that it must exceed.
        below: a bound that it must not reach.
        at_least: its least value.
        at_most: its greatest value.
        instead: another value that the argument takes, for errors.

    Raises:
        CamlibTypeError: ``value`` is not a real number; bools are refused.
        CamlibValueError: it is out of bounds, infinite or NaN.

    Example:
        >>> number("share", 0.5, above=0, at_most=1)
        0.5
        >>> number("share", 0, above=0, at_most=1)
        Traceback (most recent call last):
        camlib.errors.CamlibValueError: share must be a number in (0, 1], got 0
    """
    low, high = max(above, at_least), min(below, at_most)
    begin = "[" if at_least > above else "("
    end = "]" if at_most < below else ")"
    wanted = "a finite number" if (low, high) == (-math.inf, math.inf) else f"a number in {begin}{low:g}, {high:g}{end}"
    if high == math.inf and low > -math.inf:
        wanted = f"a number of at least {low:g}" if at_least > above else f"a number above {low:g}"
    if (above, high) == (0, math.inf):
        wanted = "a positive number"
    wanted = f"{instead} or {wanted}" if instead else wanted
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise CamlibTypeError(f"{name} must be {wanted}, got {value!r}")
    found = float(value)
    if isinstance(value, numbers.Integral) and abs(found) >= 2.0**63:
        raise CamlibValueError(f"{name} must be {wanted}, and an int below 2^63, got {value!r}")
    if not (above < found < below and at_least <= found <= at_most):
        raise CamlibValueError(f"{name} must be {wanted}, got {value!r}")
    return found


def positive_number(name: str, value: object, below: float = math.inf) -> float:
    """Return :func:`number` above 0.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`number`.
    """
    return number(name, value, above=0, below=below)


def positive_int(name: str, value: object, instead: str = "") -> int:
    """Return an int of at least 1.

    Args:
        name: the argument's name, for errors.
        value: what was given for it.
        instead: another value that the argument takes, for errors.

    Raises:
        CamlibTypeError: ``value`` is not an integer; bools are refused.
        CamlibValueError: it is less than 1.

    Example:
        >>> positive_int("samples", 8)
        8
    """
    wanted = f"{instead} or an int of at least 1" if instead else "an int of at least 1"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise CamlibTypeError(f"{name} must be {wanted}, got {value!r}")
    found = int(value)
    if found < 1:
        raise CamlibValueError(f"{name} must be {wanted}, got {value!r}")
    if found >= 2**31:
        raise CamlibValueError(f"{name} must be {wanted} and below 2^31, got {value!r}")
    return found


def optional_function(name: str, value: object) -> None:
    """Check that a value is None or can be called.

    Args:
        name: the argument's name, for errors.
        value: what was given for it.

    Raises:
        CamlibTypeError: it is something else.

    Example:
        >>> optional_function("forward", "")
        Traceback (most recent call last):
        camlib.errors.CamlibTypeError: forward must be a function or None, got ''
    """
    if value is not None and not callable(value):
        raise CamlibTypeError(f"{name} must be a function or None, got {value!r}")


def check_class_names(value: object) -> None:
    """Check class names: None, or anything indexable by class, such as a list or a dict, but not a string.

    Raises:
        CamlibTypeError: it is something else.

    Example:
        >>> check_class_names({0: "cat", 1: "dog"})
    """
    if value is None:
        return
    if not isinstance(value, (str, bytes)) and hasattr(value, "__getitem__") and isinstance(value, Sized):
        with contextlib.suppress(TypeError):  # arrays and tensors without axes claim to have a length
            len(value)
            return
    raise CamlibTypeError(f"class_names must be a list of names, got {value!r}")


def items(name: str, value: object, wanted: str) -> list[Any]:
    """Return the items of a sequence as a list; a string is refused, not split into letters.

    Args:
        name: the argument's name, for errors.
        value: what was given for it.
        wanted: what it must be, for errors.

    Raises:
        CamlibTypeError: it is a string, a mapping, or not a sequence.

    Example:
        >>> items("names", ("cat", "dog"), "a list of names")
        ['cat', 'dog']
    """
    if not isinstance(value, (str, bytes, Mapping)) and isinstance(value, Iterable):
        with contextlib.suppress(TypeError):  # arrays and tensors without axes claim to be iterable
            return list(value)
    raise CamlibTypeError(f"{name} must be {wanted}, got {value!r}")


def boolean(name: str, value: object) -> bool:
    """Return True or False; a text such as "no" is refused, it is not True.

    Args:
        name: the argument's name, for errors.
        value: what was given for it.

    Raises:
        CamlibTypeError: it is something else.

    Example:
        >>> boolean("relu", False)
        False
    """
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):  # NumPy's, not imported here
        raise CamlibTypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
