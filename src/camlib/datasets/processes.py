"""The processes that share a run, and the threads of each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from camlib.errors import CamlibValueError

P = ParamSpec("P")
T = TypeVar("T")


class Share(NamedTuple):
    """Which of the processes of a run this is."""

    rank: int
    world: int


def own_share() -> Share:
    """Return this process's share: by torch.distributed, if it is initialised, or by what torchrun sets.

    Raises:
        CamlibValueError: the variables RANK and WORLD_SIZE are not numbers that belong together.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return Share(distributed.get_rank(), distributed.get_world_size())
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(one.isdecimal() for one in given) or int(given[0]) >= int(given[1]):
        raise CamlibValueError(
            f"RANK={given[0]!r} must be a number below WORLD_SIZE={given[1]!r}; torchrun sets both, or unset them"
        )
    return Share(int(given[0]), int(given[1]))


def wait_for_others() -> None:
    """Wait until all processes are here, if torch.distributed is initialised."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


class Inline(Executor):
    """Runs what it is given at once, in the thread that gives it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Return a future that is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        return future


class Interrupts:
    """Notes the first Ctrl-C, so that the batch can be finished; the second one interrupts at once.

    Only the main thread receives signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether Ctrl-C was pressed."""
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
