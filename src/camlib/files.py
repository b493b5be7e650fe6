"""Files: only regular ones are read, and a written one is whole or stays as it was."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from camlib.errors import CamlibTypeError, CamlibValueError


class MissingFileError(CamlibValueError, FileNotFoundError):
    """There is no such file."""


def path_of(path: str | PathLike[str]) -> Path:
    """Return a path.

    Raises:
        CamlibTypeError: it is something else, such as a file descriptor.

    Example:
        >>> path_of("picture.png").name
        'picture.png'
    """
    if not isinstance(path, (str, PathLike)) or not isinstance(os.fspath(path), str):
        raise CamlibTypeError(f"a path must be a str or a pathlib.Path, got {type(path).__name__}: {path!r}")
    return Path(path)


def opened(path: str | PathLike[str], wanted: str) -> BinaryIO:
    """Open a regular file to read it: not a pipe or a device, which may never end.

    Args:
        path: the file.
        wanted: what it should be, for errors.

    Raises:
        CamlibTypeError: ``path`` is not a path.
        CamlibValueError: there is no such file, it is not a regular one, or it cannot be opened.
    """
    file = path_of(path)
    try:
        if file.exists() and not file.is_file():
            raise CamlibValueError(f"{path} cannot be opened: it is not a regular file; give the path of {wanted}")
        return file.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, CamlibValueError):
            raise
        kind = MissingFileError if isinstance(error, FileNotFoundError) else CamlibValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{path} cannot be opened: {why}; give the path of {wanted}") from error


@contextlib.contextmanager
def replacing(path: str | PathLike[str], through: Path | None = None) -> Iterator[BinaryIO]:
    """Write a file as a whole: the new content takes the place of an older file when the block ends.

    If the block fails, because the disk is full for example, the older file stays and no other is left. Pipes and
    devices are written directly.

    Args:
        path: the file to write; the target of a symbolic link is replaced, not the link.
        through: a folder of the same file system that holds the file until it is whole; by default the file's folder.

    Raises:
        CamlibTypeError: ``path`` is not a path.
        CamlibValueError: its folder does not exist or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as file:
        ...         _ = file.write(b"whole")
        ...     [(one.name, one.read_text()) for one in Path(folder).iterdir()]
        [('a.txt', 'whole')]
    """
    given = path_of(path)
    try:
        target = given.resolve()
        direct = target.exists() and not target.is_file()
        name = f".{target.name[:100]}.{secrets.token_hex(8)}.tmp"
        whole = target if direct else (through or target.parent) / name
        file = whole.open("wb" if direct else "xb")
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CamlibValueError(f"{path} cannot be written: {why}; give a path in a folder that exists") from error
    try:
        with file:
            yield file
            if not direct:
                file.flush()
                os.fsync(file.fileno())
        if not direct:
            if target.exists():
                shutil.copymode(target, whole)
            os.replace(whole, target)
    except BaseException:
        if not direct:
            whole.unlink(missing_ok=True)
        raise
