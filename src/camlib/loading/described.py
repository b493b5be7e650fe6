"""What a module that was not loaded by name says about its pictures and classes."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import nn

from camlib.loading.libraries import (
    classes_of_hugging_face,
    classes_of_timm,
    transforms_of_hugging_face,
    transforms_of_timm,
)
from camlib.loading.loaded import Loaded


def described(model: nn.Module) -> Loaded:
    """Return a module with the transforms and class names that its library keeps with it.

    A network of timm has a data config; one of Hugging Face has labels, and a processor in the folder from which it was
    loaded. Nothing is downloaded. Other modules, also those of torchvision, keep neither.

    Example:
        >>> described(nn.Linear(2, 2)).transforms is None
        True
    """
    if hasattr(model, "pretrained_cfg") and "timm" in sys.modules:
        return Loaded(model, transforms_of_timm(model), classes_of_timm(model))
    if _is_of_hugging_face(model):
        path = str(getattr(model, "name_or_path", "") or "")
        transforms = transforms_of_hugging_face(path, offline=True) if os.path.isdir(path) else None
        return Loaded(model, transforms, classes_of_hugging_face(model))
    return Loaded(model)


def _is_of_hugging_face(model: Any) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)
