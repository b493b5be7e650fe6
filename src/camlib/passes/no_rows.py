"""Functions of an empty batch that PyTorch refuses, such as ``x.reshape(0, 24, -1)``, as if the batch had rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camlib.inputs.nested import map_tensors, tensors_in

_TO_SIZES = frozenset({Tensor.reshape, Tensor.view, Tensor.unflatten, torch.reshape, torch.unflatten})
"""The functions whose arguments are sizes, of which 0 is that of no rows."""


class WithoutRows(TorchFunctionMode):
    """A context in which a function that fails for no rows returns what it returns for rows, without the rows.

    It must be given empty tensors alone: features and no rows do not go together. It is called on the ``meta`` device,
    which computes shapes alone, with one row and with two. The axes whose size differs between the two results are
    those of the rows. Where that fails too, the error is PyTorch's.

    Example:
        >>> import torch
        >>> with WithoutRows():
        ...     torch.zeros(0, 6, 4).reshape(0, 12, -1).shape
        torch.Size([0, 12, 2])
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and again with rows if it fails."""
        kwargs = kwargs or {}
        try:
            return function(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError) as error:
            given = [*tensors_in(list(args)), *tensors_in(kwargs)]
            if not given or any(tensor.numel() for tensor in given) or isinstance(error, torch.OutOfMemoryError):
                raise
            sized = function in _TO_SIZES
            try:
                one, two = (
                    function(*_with_rows(args, rows, sized), **_with_rows(kwargs, rows, sized)) for rows in (1, 2)
                )
                sizes = iter([tensor.shape for tensor in tensors_in(two)])
                return map_tensors(lambda tensor: _without_rows(tensor, next(sizes), given[0].device), one)
            except Exception:
                raise error from None


def _with_rows(given: Any, rows: int, sized: bool) -> Any:
    """Arguments of a function with this many rows in place of none."""
    if isinstance(given, Tensor):
        return torch.empty([side or rows for side in given.shape], dtype=given.dtype, device="meta")
    if isinstance(given, dict):
        return {key: _with_rows(value, rows, sized) for key, value in given.items()}
    if isinstance(given, (tuple, list)):
        return [_with_rows(value, rows, sized) for value in given]
    return rows if sized and type(given) is int and given == 0 else given


def _without_rows(one: Tensor, two: torch.Size, device: torch.device) -> Tensor:
    shape = [0 if side != other else side for side, other in zip(one.shape, two, strict=True)]
    return torch.zeros(shape, dtype=one.dtype, device=device)
