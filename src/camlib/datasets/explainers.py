"""The explainer of a run."""

from __future__ import annotations

import copy
from typing import Any

import torch

from camlib.errors import CamlibTypeError
from camlib.methods import Method
from camlib.passes.devices import on_device
from camlib.smoothing import Smoothing


def prepared(explainer: Any, device: torch.device | None) -> Any:
    """Return the explainer for a run: images whose numbers are not finite get maps of NaN; on another device if asked.

    Raises:
        CamlibTypeError: it is no explainer.
    """
    if isinstance(explainer, Smoothing):
        own = copy.copy(explainer)
        own.method = prepared(explainer.method, device)
        return own
    if not isinstance(explainer, Method):
        raise CamlibTypeError(
            f"explainer must be a method such as camlib.GradCAM(model), or a smoothing of one, got {explainer!r}"
        )
    method = copy.copy(explainer)
    if device is not None and device != device_of(explainer):
        method = explainer.on(on_device(copy.deepcopy(explainer.model), device))
    method.on_nonfinite = "nan"
    return method


def device_of(explainer: Any) -> torch.device:
    """Where the model of an explainer is."""
    while isinstance(explainer, Smoothing):
        explainer = explainer.method
    tensors = [*explainer.model.parameters(), *explainer.model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
