"""Batch norms whose gradient PyTorch computes wrongly for a single image on a CPU.

A contiguous map does not have the memory layout of one whose batch axis has the stride of another axis, as the gradient
of ``map.flatten(2).mT``. PyTorch (2.14, for one) takes them for alike in the backward pass if there is one image.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from camlib.passes.hooks import hooked


def is_misread(tensor: Tensor) -> bool:
    """Return whether PyTorch misreads the memory of a batch norm's input, or of its gradient.

    Example:
        >>> tokens = torch.rand(1, 12, 5)
        >>> is_misread(tokens.mT.view(1, 5, 3, 4)), is_misread(tokens.mT.reshape(1, 5, 3, 4).contiguous())
        (True, False)
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dim() == 4
        and len(tensor) == 1
        and tensor.stride(0) != tensor.numel()
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def right_norms(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside the block, PyTorch reads what it would misread from contiguous copies.

    Example:
        >>> norm = nn.BatchNorm2d(5).eval()
        >>> map = torch.rand(1, 5, 3, 4, requires_grad=True)
        >>> with right_norms(norm):
        ...     tokens = norm(map).flatten(2).mT
        >>> torch.autograd.grad((tokens * torch.arange(60.0).view(1, 12, 5)).sum(), map)[0][0, 1, 0].round()
        tensor([ 1.,  6., 11., 16.])
    """

    def on_copies(norm: nn.Module, args: Any, output: Any) -> Any:
        if not args or args[0].dim() != 4 or len(args[0]) > 1 or args[0].device.type != "cpu":
            return output
        if is_misread(args[0]):
            output = norm.forward(args[0].contiguous())
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.contiguous() if is_misread(gradient) else gradient)
        return output

    return hooked([(module, on_copies) for module in model.modules() if isinstance(module, _BatchNorm)])
