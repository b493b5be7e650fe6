"""How long calls take beside each other, how many images run through the network, and what memory is held."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from camlib.inputs.nested import tensors_in
from camlib.passes.memory import Peak

Call = Callable[[], Any]

LONG = 60.0
"""Seconds: a call that takes more is made once, and that counts."""


def seconds(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call in each round, in which they take turns; one round before is not counted.

    A call that takes a minute is made in that first round alone, and counts as if it took as long in every round.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    long: dict[str, float] = {}
    for counted in [False] + [True] * rounds:
        for name, call in calls.items():
            start = time.perf_counter()
            if name not in long:
                call()
            took = long.get(name, time.perf_counter() - start)
            if took > LONG:
                long[name] = took
            if counted:
                found[name].append(took)
    return found


def ratio(own: list[float], base: list[float]) -> float:
    """The median over rounds of what a call took relative to another in the same round."""
    return statistics.median(one / other for one, other in zip(own, base, strict=True))


def forwards(model: nn.Module, call: Call) -> int:
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
    """Bytes of tensors made in a call that live at the same time, whatever library makes them."""
    peak = Peak()
    with peak:
        call()
    return peak.bytes


def resident_peak(module: str, *arguments: str) -> float:
    """What :func:`measure_resident_peak` gives in a new process: ``python -m module --peak arguments``."""
    command = [sys.executable, "-m", module, "--peak", *arguments]
    # Every large tensor in pages of its own, handed back when it dies: the resident memory is then what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def measure_resident_peak(call: Call) -> float:
    """Bytes of resident memory at the peak of a call over what the process held before; sampled while it runs."""
    import psutil

    gc.collect()
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def sample() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, process.memory_info().rss)
            time.sleep(0.0005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    call()
    done.set()
    sampler.join()
    return float(highest - before)
