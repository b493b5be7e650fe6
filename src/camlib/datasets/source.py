"""Where the images of a run come from: paths, folders and globs, or a dataset."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from camlib.errors import CamlibError, CamlibTypeError, CamlibValueError
from camlib.files import path_of
from camlib.imaging.reading import DICOM_SUFFIXES, read_image

PICTURE_SUFFIXES = DICOM_SUFFIXES | {
    *(".avif", ".bmp", ".dib", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".mpo", ".pcx"),
    *(".png", ".apng", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".tif", ".tiff", ".webp"),
}
"""Endings of the files that are taken from a folder; a path or a glob may name others."""
OWN = "it is inside the output folder of the run; choose another out, or remove it from the source"
"""Why a file that the run itself may have written is not read."""


@dataclass(frozen=True)
class Item:
    """An image of a source, before it is read."""

    number: int
    """Its place in the source."""
    path: str
    """Its path, or for a dataset its number as text. Bytes that are not UTF-8 are surrogates, as in ``os.fsdecode``."""
    fault: str = ""
    """Why it cannot be read, if that is known."""


class Source(Protocol):
    """A sequence of images that is the same each time."""

    total: int | None
    """How many images it has; None if that is not known in advance."""
    kind: str
    """What it is, for the settings of the run."""

    def __iter__(self) -> Iterator[Item]:
        """Yield the images in order."""

    def read(self, item: Item) -> Any:
        """Return the picture (H, W, 3), uint8; or what the dataset holds.

        Raises:
            CamlibError: it cannot be read.
        """


def source_of(source: Any, out: Path) -> Source:
    """Return the source of a run.

    Args:
        source: as for :func:`camlib.explain_dataset`.
        out: the folder of the run, whose files are not read.

    Raises:
        CamlibTypeError: it is something else.
        CamlibValueError: it is empty, or a path that does not exist.
    """
    if isinstance(source, (str, PathLike)):
        return PathSource([path_of(source)], out)
    if isinstance(source, (list, tuple)):
        if not source:
            raise CamlibValueError("source has no images; give paths, folders or globs")
        if all(isinstance(one, (str, PathLike)) for one in source):
            return PathSource([path_of(one) for one in source], out)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (bytes, dict)):
        return DatasetSource(source)
    raise CamlibTypeError(
        "source must be a path, a folder, a glob, a list of these, or a dataset with __len__ and __getitem__, got "
        f"{type(source).__name__}"
    )


class PathSource:
    """Files named by paths, folders and globs.

    A folder is walked in the order of its names while the run goes on, so that its names need no memory.
    """

    total: int | None = None
    kind: str = "paths"

    def __init__(self, given: Sequence[Path], out: Path) -> None:
        self._given = given
        self._out = Path(os.path.realpath(out))
        for path in given:
            if not os.path.lexists(path) and not _matches(path):
                what = "matches no file" if glob.has_magic(str(path)) else "does not exist"
                raise CamlibValueError(f"{path} {what}; give the path of a picture, of a folder, or a glob")
        if not any(path.is_dir() or glob.has_magic(str(path)) for path in given):
            self.total = len(given)

    def __iter__(self) -> Iterator[Item]:
        found = itertools.chain.from_iterable(map(self._expanded, self._given))
        for number, (path, fault) in enumerate(found):
            yield Item(number, path, fault)

    def read(self, item: Item) -> Any:
        """Return the picture of a file, (H, W, 3)."""
        return read_image(item.path)

    def _expanded(self, path: Path) -> Iterator[tuple[str, str]]:
        if path.is_dir():
            yield from self._walked(str(path), ())
        elif os.path.lexists(path):  # names may hold the signs of a glob
            yield str(path), OWN if self._is_own(path) else ""
        else:
            yield from ((one, "") for one in _matches(path) if not self._is_own(Path(one)))

    def _walked(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
        """Yield the pictures below a folder; a folder that holds itself by a link is entered once."""
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in above or self._is_own(Path(folder)):
                return
            with os.scandir(folder) as entries:
                names = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            yield folder, f"the folder cannot be read: {error.strerror}; allow it, or leave it out"
            return
        for name, is_folder in names:
            path = os.path.join(folder, name)
            if is_folder:
                yield from self._walked(path, (*above, (stat.st_dev, stat.st_ino)))
            elif os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield path, ""

    def _is_own(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == str(self._out) or real.startswith(os.path.join(self._out, ""))


class DatasetSource:
    """A dataset with ``__len__`` and ``__getitem__``, whose entries are images, or tuples that begin with them."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        try:
            self.total: int | None = len(dataset)
        except TypeError as error:  # arrays and tensors without axes claim to have a length
            raise CamlibTypeError(f"source must be a dataset that has a length, but its len() says: {error}") from error
        if not self.total:
            raise CamlibValueError("source has no images: the dataset is empty")
        self.kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        self._files = _files_of(dataset, self.total)

    def __iter__(self) -> Iterator[Item]:
        for number in range(self.total or 0):
            yield Item(number, self._files[number] if self._files else str(number))

    def read(self, item: Item) -> Any:
        """Return the image of an entry; a path is read."""
        found = self._dataset[item.number]
        if isinstance(found, (tuple, list)):
            found = found[0]
        return read_image(found) if isinstance(found, (str, PathLike)) else found


def _matches(path: Path) -> list[str]:
    return sorted(one for one in glob.glob(str(path), recursive=True) if not os.path.isdir(one))


def _files_of(dataset: Any, count: int) -> list[str]:
    """The files of a dataset that lists them as torchvision's ImageFolder does; otherwise an empty list."""
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or len(samples) != count or not isinstance(samples[0], tuple):
        return []
    return [str(first[0]) for first in samples] if isinstance(samples[0][0], (str, PathLike)) else []


def reason(error: BaseException) -> str:
    """Return why an image failed, in one line."""
    text = str(error).strip() or type(error).__name__
    told = text if isinstance(error, CamlibError) else f"{type(error).__name__}: {text}"
    return " ".join(told.splitlines())[:500]


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while block := list(itertools.islice(iterator, size)):
        yield block
