"""Recurrent layers on a GPU: cuDNN differentiates them in training mode only."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from camlib.passes.undoing import undone


def differentiable(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the recurrent layers among modules have gradients in eval mode: without cuDNN.

    Models without recurrent layers keep cuDNN.

    Example:
        >>> with differentiable([nn.LSTM(2, 3)]):
        ...     print(torch.backends.cudnn.enabled)
        False
    """
    if not any(issubclass(kind, nn.RNNBase) for kind in set(map(type, modules))):
        return contextlib.nullcontext()
    return _without_cudnn()


_lock = threading.RLock()
_calls: set[object] = set()
_before: list[bool] = []


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    """Switch cuDNN off for the whole process; the last of several calls that overlap restores the setting."""
    call = object()

    def release() -> None:
        with _lock:
            _calls.discard(call)
            while _before and not _calls:
                torch.backends.cudnn.enabled = _before[-1]
                _before.pop()

    with undone(release):
        with _lock:
            _calls.add(call)
            if not _before:
                _before.append(torch.backends.cudnn.enabled)
                torch.backends.cudnn.enabled = False
        yield
