"""How long calls take when they take turns, how many images run through the network, and how much memory is held."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camlib.inputs.nested import tensors_in
from camlib.passes.memory import Peak

Call = Callable[[], Any]


def seconds(call: Call, device: str = "cpu") -> float:
    """The seconds of one call, until the device has done its work."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(calls: Mapping[str, Call], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """The seconds of each call in each round, in which they take turns. Each should have been called once before."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(seconds(call, device))
    return found


def ratio(own: list[float], base: list[float]) -> float:
    """The median over rounds of one call's seconds relative to another's in the same round."""
    return statistics.median(one / other for one, other in zip(own, base, strict=True))


def compared(calls: Mapping[str, Call], rounds: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """By call: the seconds of its first run, the median of later rounds, and its ratio to the first of the calls."""
    first = {name: seconds(call, device) for name, call in calls.items()}
    took = in_turns(calls, rounds, device)
    base = next(iter(took.values()))
    return {
        name: {"seconds of the first call": first[name], "seconds": statistics.median(took[name])}
        | {"time": ratio(took[name], base)}
        for name in calls
    }


def passes(model: nn.Module, call: Call) -> int:
    """How many images run through the network in a call."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(next(tensors_in((args, kwargs))))), with_kwargs=True
    )
    try:
        call()
    finally:
        handle.remove()
    return sum(rows)


def tensor_peak(call: Call) -> int:
    """Bytes of the tensors that a call makes and that live at the same time, in whatever library."""
    with Peak() as peak:
        call()
    bytes_at_the_peak: int = peak.bytes
    return bytes_at_the_peak


def resident_peak(call: Call) -> int:
    """Bytes of resident memory at the peak of a call above what the process held before. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    (kilobytes,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)
