"""Scripted submodules in the discovery pass: they take no hooks, but their operations show when they ran."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from camlib.errors import CamlibTypeError


class Scripted(TorchDispatchMode):
    """A context that notes when the weights of scripted submodules are used, in this thread.

    Weight matrices of linear layers do not count: a scripted head returns no feature map.

    Args:
        model: any model.
        now: returns the time, as a number.

    Example:
        >>> Scripted(nn.Linear(2, 3), now=lambda: 0).refuse_after(0)
    """

    def __init__(self, model: nn.Module, now: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._now = now
        self._names = {
            parameter.data_ptr(): str(module.original_name)
            for module in model.modules()
            if isinstance(module, torch.jit.ScriptModule)
            for parameter in module.parameters()
            if parameter.dim() > 2
        }
        self._used: dict[str, int] = {}

    def watching(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context; a model without scripted convolutions does not pay for it."""
        return self if self._names else contextlib.nullcontext()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, and note whose weights it uses."""
        for one in args:
            if isinstance(one, Tensor) and one.dim() > 2 and (name := self._names.get(one.data_ptr())):
                self._used[name] = self._now()
        return func(*args, **(kwargs or {}))

    def refuse_after(self, time: int) -> None:
        """Refuse a layer that was reached at a time, if a scripted convolution ran later.

        Raises:
            CamlibTypeError: the last feature map may be that of a scripted submodule.
        """
        later = [name for name, used in self._used.items() if used > time]
        if later:
            raise CamlibTypeError(
                f"the model contains a ScriptModule, {later[0]}, which takes no hooks, and which runs after the last "
                "layer that does; build it from the original module, or give layer=, a layer outside the ScriptModule"
            )
