"""Undo changes to the end, also when a signal interrupts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

TRIES = 10
"""How many interruptions :func:`completed` survives."""


@contextlib.contextmanager
def undone(work: Callable[[], None]) -> Iterator[None]:
    """Return a context that undoes changes however its block ends.

    A signal handler may raise between any two operations, also while changes are made or undone: a KeyboardInterrupt,
    or the end of a time limit. Changes are therefore made inside the block.

    Args:
        work: undoes the changes that were made so far. It continues where an earlier call was interrupted, and does
            nothing after the last.

    Example:
        >>> left = [3, 2, 1]
        >>> def work():
        ...     while left:
        ...         if left.pop() == 2:
        ...             raise KeyboardInterrupt
        >>> try:
        ...     with undone(work):
        ...         pass
        ... except KeyboardInterrupt:
        ...     print("interrupted,", len(left), "left")
        interrupted, 0 left
    """
    is_undone = False
    try:
        try:
            yield
        finally:
            completed(work)
            is_undone = True
    finally:
        if not is_undone:  # the lines above were interrupted
            completed(work)


def completed(work: Callable[[], None]) -> None:
    """Call a function until it ends, and only then raise what interrupted it."""
    interruption: BaseException | None = None
    for _ in range(TRIES):
        try:
            work()
            break
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
