"""Recurrent layers on a GPU: cuDNN differentiates them in training mode only."""

from __future__ import annotations

import contextlib
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
    if not any(isinstance(module, nn.RNNBase) for module in modules):
        return contextlib.nullcontext()
    return _without_cudnn()


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    enabled = torch.backends.cudnn.enabled

    def restore() -> None:
        torch.backends.cudnn.enabled = enabled

    with undone(restore):
        torch.backends.cudnn.enabled = False
        yield
