"""A network on the device that was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from camlib.errors import CamlibTypeError, CamlibValueError


def device_of_name(device: Any, argument: str = "device") -> torch.device:
    """Return a device that can compute.

    Args:
        device: a device, or its name.
        argument: the argument's name, for errors.

    Raises:
        CamlibTypeError: it is something else.
        CamlibValueError: there is no such device, or it is the meta device.

    Example:
        >>> device_of_name("cpu")
        device(type='cpu')
    """
    if not isinstance(device, (str, torch.device)):
        raise CamlibTypeError(f'{argument} must be a device such as "cpu" or "cuda:0", got {device!r}')
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise _unusable(argument, device, error) from error
    if found.type == "meta":
        raise CamlibValueError(f"{argument} {device} cannot be used: tensors on it have no values; give another device")
    return found


def on_device(model: nn.Module, device: torch.device, argument: str = "device") -> nn.Module:
    """Move a module to a device, and return it.

    Args:
        model: the module.
        device: where to.
        argument: the argument's name, for errors.

    Raises:
        CamlibValueError: the device cannot be used.

    Example:
        >>> on_device(nn.Linear(2, 2), torch.device("cpu")).weight.device
        device(type='cpu')
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(argument, device, error) from error


def _unusable(argument: str, device: Any, error: BaseException) -> CamlibValueError:
    why = str(error).partition("\n")[0]
    return CamlibValueError(f"{argument} {device} cannot be used: {why}")
