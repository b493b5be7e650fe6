"""Batch norms whose gradient PyTorch computes wrongly for a single image on a CPU.

The gradient of ``map.flatten(2).mT`` has the batch stride of another axis. For one image, PyTorch (2.14 at least)
treats such a memory layout and a contiguous one as the same in the backward pass of a batch norm.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from camlib.inputs import Inputs
    from camlib.passes.network import Network

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_misread(tensor: Tensor) -> bool:
    """Return whether PyTorch misreads the memory of a batch norm's input, or of its gradient.

    Example:
        >>> tokens = torch.rand(1, 12, 5)
        >>> is_misread(tokens.mT.view(1, 5, 3, 4)), is_misread(tokens.mT.reshape(1, 5, 3, 4).contiguous())
        (True, False)
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dim() in _CHANNELS_LAST
        and len(tensor) == 1
        and tensor.stride(0) != tensor.numel()
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=_CHANNELS_LAST[tensor.dim()])
    )


class RightNorms(TorchFunctionMode):
    """A context in which batch norms get contiguous copies of tensors that PyTorch would misread.

    Example:
        >>> norm = torch.nn.BatchNorm2d(5).eval()
        >>> map = torch.rand(1, 5, 3, 4, requires_grad=True)
        >>> with RightNorms():
        ...     tokens = norm(map).flatten(2).mT
        >>> torch.autograd.grad((tokens * torch.arange(60.0).view(1, 12, 5)).sum(), map)[0][0, 1, 0].round()
        tensor([ 1.,  6., 11., 16.])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, giving batch norms contiguous copies where needed."""
        kwargs = dict(kwargs or {})
        if func not in (F.batch_norm, torch.batch_norm):
            return func(*args, **kwargs)
        images, *others = args or (kwargs.pop("input"),)
        output = func(images.contiguous() if is_misread(images) else images, *others, **kwargs)
        if output.requires_grad:
            output.register_hook(_contiguous)
        return output


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return gradient.contiguous() if gradient is not None and is_misread(gradient) else gradient


def right_norms(network: Network, inputs: Inputs) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the network's batch norms have correct gradients for these inputs."""
    several = inputs.axes is not None and inputs.count > 1
    elsewhere = bool(inputs.tensors) and inputs.tensors[0].device.type != "cpu"
    if several or elsewhere or network.located.misread_norms is False:
        return contextlib.nullcontext()
    return RightNorms()
