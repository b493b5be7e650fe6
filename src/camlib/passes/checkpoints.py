"""Activation checkpointing, which computes activations again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from camlib.errors import CamlibRuntimeError


@contextlib.contextmanager
def no_checkpoints() -> Iterator[None]:
    """Explain the failure of a backward pass that is due to activation checkpointing.

    A checkpointed model calls its functions again in the backward pass, where the method cannot watch or replace them.

    Raises:
        CamlibRuntimeError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        raise checkpointed() from error


def checkpointed() -> CamlibRuntimeError:
    """Return the error for a model that uses activation checkpointing."""
    return CamlibRuntimeError(
        "the model uses activation checkpointing (torch.utils.checkpoint), which computes activations again in the "
        "backward pass, where the method cannot follow; switch it off: memory_efficient=False, "
        "set_grad_checkpointing(False), gradient_checkpointing_disable(); or pass use_reentrant=False"
    )
