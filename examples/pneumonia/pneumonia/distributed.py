"""Several processes, as ``torchrun`` starts them: rank, shares of the data, and communication.

Without ``torchrun`` there is one process, and the functions here change nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextlib.contextmanager
def joined(cuda: bool) -> Iterator[None]:
    """Join the other processes, if there are any; only the first one prints.

    NCCL connects them on GPUs, gloo elsewhere. Unexpected errors of the other processes still show their traceback.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the process that prints, draws and writes."""
    return _rank() == 0


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process if there are several processes; otherwise the device itself."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def own_part(values: Tensor) -> Tensor:
    """Return the rows of this process. The parts of all processes, joined in order, are all rows."""
    return values.tensor_split(count())[_rank()]


def own_generator(generator: torch.Generator, seed: int, epoch: int) -> torch.Generator:
    """Return the generator itself if there is one process; otherwise a new one for each process and epoch."""
    if count() == 1:
        return generator
    return torch.Generator().manual_seed((seed * 10_007 + epoch) * 1_009 + _rank())


def gathered(part: Tensor) -> Tensor:
    """Join the parts of all processes in order, and return the whole in each process."""
    if count() == 1:
        return part
    parts: list[Tensor | None] = [None] * count()
    dist.all_gather_object(parts, part.cpu())
    return torch.cat([found.to(part.device) for found in parts if found is not None])


def mean(value: Tensor) -> float:
    """Return the mean of a number over the processes, which is the same in each, so all make the same decisions."""
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value.item() / count()


def share_first(model: nn.Module) -> None:
    """Copy the weights and BatchNorm statistics of the first process, which differ without a GPU, to the others."""
    if count() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def together(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that gradients are averaged over the processes.

    gloo cannot share BatchNorm's statistics: each process then normalises by its part of the batch, and the running
    statistics of the first process are kept.
    """
    if count() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def with_shared_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Make BatchNorm use the statistics of the whole batch, if the processes have GPUs."""
    if count() == 1 or device.type != "cuda":
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
