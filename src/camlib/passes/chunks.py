"""Work on many rows in chunks that fit into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from camlib.errors import boolean, positive_int
from camlib.passes.memory import Peak, budget

Result = TypeVar("Result")
ChunkSize = int | Literal["auto"]


@dataclass(frozen=True)
class Chunks:
    """How many rows run at a time, and whether a progress bar shows them.

    Raises:
        CamlibTypeError, CamlibValueError: ``size`` is neither "auto" nor a positive int.
    """

    size: ChunkSize = "auto"
    """A number, or "auto", which measures the memory of the first row and runs as many rows as fit into 96 MiB (on a
    GPU, 2 GiB or half of its free memory, whichever is less), and halves that number if memory still runs out."""
    progress: bool = False

    def __post_init__(self) -> None:
        boolean("progress", self.progress)
        if not isinstance(self.size, str) or self.size != "auto":
            positive_int("chunk_size", self.size, instead='"auto"')


def in_chunks(
    work: Callable[[slice], Tensor],
    rows: int,
    chunks: Chunks,
    device: torch.device,
    what: str = "rows",
) -> Tensor:
    """Call ``work`` on consecutive chunks of rows, as :func:`for_each_chunk` does, and join the results.

    Example:
        >>> import torch
        >>> in_chunks(lambda chunk: torch.arange(10)[chunk] ** 2, 10, Chunks(4), torch.device("cpu"))
        tensor([ 0,  1,  4,  9, 16, 25, 36, 49, 64, 81])
    """
    done: list[Tensor] = []
    for_each_chunk(work, lambda _, found: done.append(found), rows, chunks, device, what)
    return torch.cat(done)


def for_each_chunk(
    work: Callable[[slice], Result],
    take: Callable[[slice, Result], None],
    rows: int,
    chunks: Chunks,
    device: torch.device,
    what: str = "rows",
) -> None:
    """Call ``work`` on consecutive chunks of rows, and hand each result on before the next chunk.

    If memory runs out with ``size="auto"``, the chunk is tried again at half its size, and later chunks keep the
    smaller size; finished chunks are kept.

    Args:
        work: from a slice of rows to a result, never None. It may be called again for a chunk that failed.
        take: gets the slice and the result of each chunk, once.
        rows: the number of rows, at least one.
        chunks: how many rows at a time; only the last chunk may be smaller.
        device: the device that does the work.
        what: the title of the progress bar.

    Raises:
        torch.OutOfMemoryError: a single row, or a chunk of the given size, does not fit into memory.

    Example:
        >>> import torch
        >>> for_each_chunk(lambda chunk: sum(range(10)[chunk]), print, 10, Chunks(4), torch.device("cpu"))
        slice(0, 4, None) 6
        slice(4, 8, None) 22
        slice(8, 10, None) 17
    """
    from tqdm import tqdm

    size = chunks.size
    start, at_once = 0, 1 if size == "auto" else size
    with tqdm(total=rows, desc=what, unit=" rows", disable=not chunks.progress) as bar:
        while start < rows:
            chunk = slice(start, min(start + at_once, rows))
            measured = Peak() if size == "auto" and start == 0 else None
            with contextlib.nullcontext() if measured is None else measured:
                found = _tried(work, chunk, at_once if size == "auto" else 1)
            if found is None:  # the failed chunk's tensors are already freed
                at_once = (chunk.stop - chunk.start) // 2
                continue
            if measured is not None:
                at_once = max(budget(device) // max(measured.bytes, 1), 1)
            take(chunk, found)
            del found  # or its memory would be held during the next chunk
            bar.update(chunk.stop - chunk.start)
            start = chunk.stop


def _tried(work: Callable[[slice], Result], chunk: slice, divisible: int) -> Result | None:
    """The result of ``work``; None if it ran out of memory on a chunk that can be divided."""
    try:
        return work(chunk)
    except torch.OutOfMemoryError:
        if divisible == 1 or chunk.stop - chunk.start == 1:
            raise
        return None
