"""Reading, explaining and writing, at the same time: the batches of a run."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from camlib.datasets.files import Files
from camlib.datasets.manifest import Manifest
from camlib.datasets.processes import Inline, Interrupts, Share
from camlib.datasets.results import Explaining, Failed, Loaded, Loader, Result
from camlib.datasets.shards import Shards, stored_fields
from camlib.datasets.source import Item, Source, blocks
from camlib.errors import CamlibError, CamlibRuntimeError, CamlibValueError, CamlibWarning

AHEAD = 2
"""How many batches are read before they are explained, and how many are written after."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk that is full."""


@dataclass
class Batch:
    """Images that are explained together."""

    number: int
    items: list[Item]

    @property
    def digest(self) -> str:
        """By which the images are recognised."""
        names = "\0".join(item.path for item in self.items)
        return hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass
class Commit:
    """Batches that a line of the manifest will hold."""

    batches: list[Batch] = field(default_factory=list)
    fields: list[Future[dict[str, Any]]] = field(default_factory=list)
    errors: list[tuple[int, str, str]] = field(default_factory=list)


class Pipeline:
    """The batches of a run, for one process.

    Args:
        source: the images.
        manifest: what is done.
        loader: reads them.
        explaining: explains them.
        writer: stores the maps.
        batch_size: images in a batch.
        in_shard: batches in a shard.
        share: which of the processes this is.
    """

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        loader: Loader,
        explaining: Explaining,
        writer: Files | Shards,
        *,
        batch_size: int,
        in_shard: int,
        share: Share,
    ) -> None:
        self._source, self._manifest, self._loader = source, manifest, loader
        self._explaining, self._writer = explaining, writer
        self._batch_size, self._in_shard, self._share = batch_size, in_shard, share
        self.interrupted = False
        """Whether Ctrl-C stopped it after a batch."""

    def run(self, workers: int, *, show: bool) -> None:
        """Explain what is not done.

        Raises:
            CamlibRuntimeError: a file cannot be written.
            CamlibValueError: the source has other images than those that are done; or as for the explainer, if no image
                was explained before.
        """
        from tqdm import tqdm

        total = self._source.total if self._share.world == 1 else None
        with (
            Interrupts() as interrupts,
            warnings.catch_warnings(),
            tqdm(total=total, desc="explain", unit=" images", disable=not show) as bar,
            _threads(workers) as readers,
            _threads(workers) as writers,
        ):
            warnings.filterwarnings("ignore", "no map for", CamlibWarning)  # these images are among the errors
            with as_disk_errors():
                self._explain(readers, writers, interrupts, bar)

    def _explain(self, readers: Executor, writers: Executor, interrupts: Interrupts, bar: Any) -> None:
        commits: collections.deque[Commit] = collections.deque([Commit()])
        recent: collections.deque[list[Future[dict[str, Any]]]] = collections.deque()
        ahead = 1 if isinstance(writers, Inline) else 1 + AHEAD
        for batch, loaded in self._loaded(readers, bar):
            shard = batch.number // self._in_shard
            if commits[-1].batches and commits[-1].batches[0].number // self._in_shard != shard:
                commits.append(Commit())
            results = self._explaining(loaded)
            done = [one for one in results if isinstance(one, Result)]
            fields = [writers.submit(self._fields, one) for one in done]
            commits[-1].batches.append(batch)
            commits[-1].fields += fields
            commits[-1].errors += [
                (one.item.number, one.item.path, one.reason) for one in results if isinstance(one, Failed)
            ]
            recent.append(fields)
            if len(recent) > AHEAD:
                for future in recent.popleft():
                    future.result()
            while len(commits) > ahead:
                self._commit(commits.popleft(), bar)
            if interrupts.asked:
                self.interrupted = True
                break
        for commit in commits:
            self._commit(commit, bar)

    def _fields(self, result: Result) -> dict[str, Any]:
        return self._writer.fields(result) if isinstance(self._writer, Files) else stored_fields(result)

    def _commit(self, commit: Commit, bar: Any) -> None:
        if not commit.batches:
            return
        fields = [future.result() for future in commit.fields]
        if isinstance(self._writer, Files):
            record = self._writer.record(fields)
        else:
            record = self._writer.record(commit.batches[0].items[0].number, fields)
        batches = [(batch.number, batch.digest) for batch in commit.batches]
        self._manifest.append({"batches": batches, **record, "errors": commit.errors})
        bar.update(sum(len(batch.items) for batch in commit.batches))

    def _loaded(self, readers: Executor, bar: Any) -> Iterator[tuple[Batch, list[Loaded | Failed]]]:
        """Yield the batches that are not done, with their images; the next ones are read meanwhile."""
        ahead = 0 if isinstance(readers, Inline) else AHEAD
        queue: collections.deque[tuple[Batch, list[Future[Loaded | Failed]]]] = collections.deque()
        for batch in self._to_do(bar):
            queue.append((batch, [readers.submit(self._loader, item) for item in batch.items]))
            if len(queue) > ahead:
                yield _ready(*queue.popleft())
        while queue:
            yield _ready(*queue.popleft())

    def _to_do(self, bar: Any) -> Iterator[Batch]:
        """Yield this process's batches that are not done, after comparing those that are."""
        number = -1
        for number, items in enumerate(blocks(self._source, self._batch_size)):
            batch = Batch(number, items)
            known = self._manifest.done.get(number)
            if known is not None:
                if known != batch.digest:
                    raise self._other_images(f"images {items[0].number} to {items[-1].number} are others")
                bar.update(len(items))
            elif number // self._in_shard % self._share.world == self._share.rank:
                yield batch
        if max(self._manifest.done, default=-1) > number:
            raise self._other_images("some are missing")

    @staticmethod
    def _other_images(what: str) -> CamlibValueError:
        return CamlibValueError(
            f"the source has other images than those that the run has explained ({what}); give the same, or another out"
        )


def _ready(batch: Batch, futures: Sequence[Future[Loaded | Failed]]) -> tuple[Batch, list[Loaded | Failed]]:
    return batch, [future.result() for future in futures]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[Executor]:
    """A pool of threads; with none, what is submitted runs at once."""
    if not count:
        yield Inline()
        return
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def as_disk_errors() -> Iterator[None]:
    """Raise what to do when a file cannot be written; other errors stay as they are."""
    try:
        yield
    except (OSError, CamlibError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or isinstance(error, CamlibRuntimeError):
            raise
        what = f"the disk is full ({cause.strerror}): make room and call again"
        if cause.errno not in FULL:
            what = f"the run cannot be written ({error}): call again when it can"
        raise CamlibRuntimeError(f"{what}; what is done is kept") from error
