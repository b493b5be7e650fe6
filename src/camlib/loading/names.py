"""Networks by name."""

from __future__ import annotations

from os import PathLike, fspath

import torch

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.loading.libraries import LIBRARIES, of_factory
from camlib.loading.loaded import Loaded

FORMS = '"torchvision:resnet50", "timm:convnext_tiny", "hf:PATH" or "package.module:factory"'
"""The forms of names."""


def load(name: str, weights: str | PathLike[str] = "default") -> Loaded:
    """Return a network by name, in eval mode, with its transforms and the names of its classes.

    Args:
        name: ``"torchvision:resnet50"``; ``"timm:convnext_tiny"``; ``"hf:PATH"``, a folder that ``save_pretrained``
            wrote or a repository of Hugging Face; or ``"package.module:factory"``, a function that returns a module, or
            a tuple of module, transforms and class names. It is called without arguments.
        weights: "default" for the library's, which are downloaded on first use; "none" for random weights, the same
            each time; or a file with a state dict, ``.safetensors`` or what ``torch.save`` wrote. A pickled model is
            refused: loading it would run code from the file.

    Raises:
        CamlibTypeError: ``name`` is no text, or the file holds a pickled model.
        CamlibValueError: there is no such network, or the weights do not fit.
        CamlibRuntimeError: the library is not installed, or the weights cannot be downloaded.

    Example:
        >>> loaded = load("torchvision:resnet18", weights="none")
        >>> loaded.classes[281], loaded.model.training
        ('tabby', False)
    """
    if not isinstance(name, str):
        raise CamlibTypeError(f"the name of a network must be a text such as {FORMS}, got {name!r}")
    if not isinstance(weights, (str, PathLike)):
        raise CamlibTypeError(f'weights must be "default", "none" or the path of a file, got {weights!r}')
    prefix, colon, rest = name.partition(":")
    if not colon or not prefix or not rest:
        raise CamlibValueError(f"{name!r} names no network; give {FORMS}{_guess(name)}")
    source = fspath(weights)
    with torch.random.fork_rng(devices=[]):  # random weights are the same each time, so that a run can go on
        torch.manual_seed(0)
        loaded = LIBRARIES[prefix](rest, source) if prefix in LIBRARIES else of_factory(name, source)
    loaded.model.eval()
    return loaded


def _guess(name: str) -> str:
    import torchvision

    return f"; did you mean torchvision:{name}?" if name in torchvision.models.list_models() else ""
