"""The errors camlib raises, each a CamlibError and the builtin that fits; and checks of numbers that raise them."""

from __future__ import annotations

import math


class CamlibError(Exception):
    """Base of every error that camlib raises on purpose."""


class CamlibValueError(CamlibError, ValueError):
    """An argument has the right type but a value that cannot work."""


class CamlibTypeError(CamlibError, TypeError):
    """An argument is of a type that cannot work."""


class CamlibRuntimeError(CamlibError, RuntimeError):
    """The model, or the machine, did something that no argument check could foresee."""


class CamlibWarning(UserWarning):
    """Something works, but not quite as the caller may believe."""


def positive_int(name: str, value: object) -> int:
    """Return an int of at least 1.

    Raises:
        CamlibValueError: it is none.

    Example:
        >>> positive_int("samples", 8)
        8
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CamlibValueError(f"{name} must be an int of at least 1, got {value!r}")
    return value


def positive_number(name: str, value: object, below: float = math.inf) -> float:
    """Return a number that is positive and less than another.

    Raises:
        CamlibValueError: it is none.

    Example:
        >>> positive_number("probability", 0.5, below=1)
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < below:
        wanted = "a positive number" if below == math.inf else f"a number between 0 and {below:g}, these excluded"
        raise CamlibValueError(f"{name} must be {wanted}, got {value!r}")
    return float(value)
