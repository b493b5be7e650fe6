"""Leave the model unchanged: eval mode, random numbers, grad mode and inference mode are restored."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn

from camlib.passes.network import state

_flags_lock = threading.Lock()
_held_in_eval: dict[nn.Module, int] = {}  # module that was training -> number of calls that keep it in eval mode


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep every module of ``model`` in eval mode; afterwards restore each module's flag.

    Calls are counted per module, so calls from several threads may overlap: the last one restores the flags.
    """
    held = []
    with _flags_lock:
        for module in model.modules():
            if module.training or module in _held_in_eval:
                _held_in_eval[module] = _held_in_eval.get(module, 0) + 1
                module.training = False
                held.append(module)
    try:
        yield
    finally:
        with _flags_lock:
            for module in held:
                _held_in_eval[module] -= 1
                if _held_in_eval[module] == 0:
                    del _held_in_eval[module]
                    module.training = True


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run without autograd, in eval mode, outside inference mode; everything is restored afterwards."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = {tensor.device.index for tensor in state(model) if tensor.is_cuda} if on_cuda else set()
    caching = torch.is_autocast_cache_enabled()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(sorted(cuda)),
        evaluating(model),
    ):
        # Casts cached under no_grad would have no gradient when the caller trains in the same autocast region.
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(caching)
