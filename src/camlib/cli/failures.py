"""Images that failed, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

import typer

LISTED = 20
"""The most failed images that are listed."""
FAILED = 1
"""The exit status where images failed, or the run could not go on."""


def list_failed(failed: Sequence[tuple[str, str]]) -> None:
    """List images that failed on standard error.

    Args:
        failed: their paths, and why.

    Raises:
        typer.Exit: with status 1, if there are any.
    """
    for path, why in failed[:LISTED]:
        typer.echo(f"failed: {printable(path)}: {printable(why)}", err=True)
    if len(failed) > LISTED:
        typer.echo(f"failed: {len(failed) - LISTED} more", err=True)
    if failed:
        raise typer.Exit(FAILED)


def printable(text: str) -> str:
    r"""Return a file name in one line that any terminal shows: control characters and bytes are escaped.

    Example:
        >>> print(printable("a" + chr(10) + "b"))
        a\nb
    """
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return shown.encode("utf-8", "backslashreplace").decode()
