"""The memory that work takes, and how much it may take."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from camlib.inputs.nested import tensors_in

BUDGET = 96 * 2**20
"""Bytes of tensors that a chunk of work may hold on a CPU, where larger chunks would not fit into its caches."""

CUDA_BUDGET = 2 * 2**30
"""The same on a GPU, which larger chunks use better; but at most half of its free memory."""


class Peak(TorchDispatchMode):
    """Measures the peak memory, in bytes, of the tensors that this thread creates while the context is open.

    Memory that a kernel allocates and frees internally is not counted.

    Example:
        >>> import torch
        >>> with Peak() as peak:
        ...     total = torch.ones(1000).mul(2).sum()  # the ones and their double live together
        >>> peak.bytes
        8000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        """The peak so far."""
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count the memory of its results unless it already existed."""
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._hold(storage)
        return made

    def _hold(self, storage: UntypedStorage) -> None:
        self._live[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self._live.pop, storage._cdata, None)
        self.bytes = max(self.bytes, sum(self._live.values()))


def _storages(value: Any) -> Iterator[UntypedStorage]:
    return (tensor.untyped_storage() for tensor in tensors_in(value) if tensor.layout == torch.strided)


def budget(device: torch.device) -> int:
    """Return how many bytes of tensors a chunk of work may hold on a device."""
    if device.type != "cuda":
        return BUDGET
    free, _ = torch.cuda.mem_get_info(device)
    return min(free // 2, CUDA_BUDGET)
