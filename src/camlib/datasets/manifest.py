"""What a run has done so far: lines of JSON that survive the end of the process at any byte.

Each line has a checksum. A line that was not completed is dropped. Each process of a run appends to a part of its own,
and when it ends adds its lines to the manifest of all. Lines that are found twice, since a process ended between the
two, count once.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.evaluation.run_log import locked

FORMAT = 1
"""The version of the manifest's layout."""
STEP = 2**16
"""Bytes that are searched for the end of the last line at a time."""
MANIFEST = "manifest.jsonl"
"""Its name in the folder of the run."""


def as_line(record: Mapping[str, Any]) -> bytes:
    r"""Return a record as a line.

    Example:
        >>> as_line({"batches": []})
        b'{"crc": 1757221256, "holds": {"batches": []}}\n'
    """
    text = json.dumps(record)
    return f'{{"crc": {zlib.crc32(text.encode())}, "holds": {text}}}\n'.encode()


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the complete lines of a manifest, each with its offset in the file.

    Raises:
        CamlibValueError: a line was changed, or is not of a manifest.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CamlibValueError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        offset = 0
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, _holds(line, path)
            offset += len(line)


def record_at(path: Path, offset: int) -> dict[str, Any]:
    """Return the record of the line that begins at an offset."""
    with path.open("rb") as file:
        file.seek(offset)
        return _holds(file.readline(), path)


def _holds(line: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
        holds: dict[str, Any] = found["holds"]
        if found["crc"] != zlib.crc32(json.dumps(holds).encode()) or not isinstance(holds, dict):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CamlibValueError(
            f"{path} is not the manifest of a run, or was changed ({error}); give another folder, or delete this one"
        ) from error
    return holds


def parts(out: Path) -> list[Path]:
    """Return the manifest of all and those of single processes, if there are any."""
    return [path for path in (out / MANIFEST, *sorted(out.glob("manifest.*.jsonl"))) if path.is_file()]


def head_of(out: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if there is none."""
    for path in parts(out):
        for _, record in records(path):
            if record.get("run") != FORMAT:
                raise CamlibValueError(f"{path} is not a manifest that this camlib reads; give another folder")
            return record
    return None


class Manifest:
    """The manifest of a run while it is written.

    Args:
        out: the folder of the run.
        settings: what must be the same to resume.
        rank: the number of this process.
        world: how many processes share the run.

    Raises:
        CamlibValueError: the folder holds a run with other settings, or something else, or is used by another process.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        self._out, self._rank, self._world = out, rank, world
        self._head = {"run": FORMAT, "settings": json.loads(json.dumps(settings))}
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamlibValueError(f"{out} cannot be made a folder: {error.strerror}; give another out") from error
        self._check_folder()
        self._path = out / (MANIFEST if world == 1 else f"manifest.{rank}.jsonl")
        self._file = _appended(self._path)
        try:
            if not locked(self._file):
                raise CamlibValueError(f"{out} is in use by another run; wait until it ends, or give another out")
            self._check_settings()
            self.done = _done(out)
            """The digest of the names of each batch that is done, by its number."""
            _truncate(self._file, self._path)
            if not self._file.seek(0, os.SEEK_END):
                self._append(self._head)
        except BaseException:
            self.close()
            raise

    def _check_folder(self) -> None:
        others = [one.name for one in os.scandir(self._out) if not one.name.startswith(("manifest.", ".tmp-"))]
        if others and not parts(self._out):
            raise CamlibValueError(
                f"{self._out} holds files of something else, such as {min(others)!r}; give a new or an empty folder"
            )

    def _check_settings(self) -> None:
        found = head_of(self._out)
        if found is None:
            return
        before, now = found["settings"], self._head["settings"]
        changed = sorted(key for key in before | now if before.get(key) != now.get(key))
        if changed:
            raise CamlibValueError(
                f"{self._out} holds a run with other settings (different {', '.join(changed)}); give another out, or "
                "delete the folder to start again"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add what was done, after the files that it names are on the disk."""
        self._append(record)
        self.done |= dict(record["batches"])

    def _append(self, record: Mapping[str, Any]) -> None:
        _write(self._file, as_line(record))
        os.fsync(self._file.fileno())

    def merge(self) -> None:
        """Add the lines of this process to the manifest of all; the first process also adds those left by others."""
        left = [self._path] if self._world > 1 else []
        left += self._abandoned() if self._rank == 0 else []
        if not left:
            return
        whole = self._out / MANIFEST
        with _locked_for_all(self._out), contextlib.closing(_appended(whole)) as file:
            _truncate(file, whole)
            if not file.seek(0, os.SEEK_END):
                _write(file, as_line(self._head))
            known = {_batches(record) for _, record in records(whole)}
            for part in left:
                for _, record in records(part):
                    if _batches(record) not in known:
                        _write(file, as_line(record))
            os.fsync(file.fileno())
            for part in left:
                part.unlink(missing_ok=True)

    def _abandoned(self) -> list[Path]:
        """Parts of processes of an earlier run that had more of them."""
        numbered = [(part.name.split(".")[1], part) for part in self._out.glob("manifest.*.jsonl")]
        first = 0 if self._world == 1 else self._world
        return [part for number, part in numbered if number.isdigit() and int(number) >= first]

    def close(self) -> None:
        """Close and unlock it."""
        self._file.close()


def _done(out: Path) -> dict[int, str]:
    return {
        number: digest
        for path in parts(out)
        for _, record in records(path)
        for number, digest in record.get("batches", ())
    }


def _appended(path: Path) -> FileIO:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise CamlibValueError(f"{path} cannot be written: {error.strerror}; give another out") from error


def _write(file: FileIO, line: bytes) -> None:
    """Write a line; the system may write a part of it before it says that the disk is full."""
    while line:
        line = line[file.write(line) :]


def _truncate(file: FileIO, path: Path) -> None:
    """Remove a last line that was not completed."""
    end = file.seek(0, os.SEEK_END)
    with path.open("rb") as reader:
        while end:
            start = max(0, end - STEP)
            reader.seek(start)
            place = reader.read(end - start).rfind(b"\n")
            end = start + place + 1 if place >= 0 else start
            if place >= 0:
                break
    file.truncate(end)
    file.seek(0, os.SEEK_END)


def _batches(record: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of the batches that a record is of; none for the line of the settings."""
    return tuple(number for number, _ in record.get("batches", ()))


@contextlib.contextmanager
def _locked_for_all(out: Path) -> Iterator[None]:
    """Wait for the other processes of the run that write what is common to all."""
    import time

    with (out / ".tmp-lock").open("ab") as file:
        for _ in range(6000):
            if locked(file):
                break
            time.sleep(0.05)
        else:
            raise CamlibRuntimeError(f"{out} is locked by another process since five minutes; end it, and run again")
        yield
