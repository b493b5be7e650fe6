"""Weights from a file, without running any code in it: safetensors, or tensors that torch saved."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.files import opened, path_of

WRAPPED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts save a state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers such as DistributedDataParallel, torch.compile and Lightning put in front of names."""


def state_dict_in(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read tensors by name. Nothing is unpickled but tensors and plain values.

    Raises:
        CamlibTypeError: the file holds a whole model, or other objects, that were pickled.
        CamlibValueError: there is no such file, or it holds no tensors by name.
        CamlibRuntimeError: safetensors is not installed.
    """
    file = path_of(path)
    with opened(path, "a state dict, .pt or .safetensors") as stream:
        if file.suffix.lower() == ".safetensors":
            return _safetensors(stream.read(), file.name)
        is_pickled = stream.read(2)[:1] in (b"P", b"\x80")  # of a zip archive, or of a pickle
        stream.seek(0)
        try:
            content = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises nearly anything
            if not isinstance(error, pickle.UnpicklingError) or not is_pickled:
                why = str(error).partition("\n")[0]
                raise CamlibValueError(
                    f"{file.name} is no file of tensors: {why}; give a state dict, as torch.save(model.state_dict(), "
                    "path) or safetensors writes it"
                ) from error
            raise CamlibTypeError(
                f"{file.name} holds pickled objects, such as a whole model; loading it would run code from the file, "
                "which camlib never does. Where you trust it, load it yourself and save its tensors: "
                'torch.save(model.state_dict(), "weights.pt")'
            ) from error
    return _state_dict(content, file.name)


def _safetensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise CamlibRuntimeError(f"{name} needs the package safetensors: pip install safetensors") from error
    try:
        return dict(load(content))
    except Exception as error:  # the package's own class of errors, and those of torch
        raise CamlibValueError(f"{name} is no file of safetensors: {error}; copy the file again") from error


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    for key in WRAPPED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        keys = f" with {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else ""
        raise CamlibValueError(
            f"{name} holds a {type(content).__name__}{keys}, and no tensors by name; save model.state_dict()"
        )
    return {str(key): tensor for key, tensor in content.items()}


def filled(build: Callable[..., nn.Module], path: str | PathLike[str], classes: str | None) -> nn.Module:
    """Return a network with the weights of a file.

    Args:
        build: returns the network with random weights.
        path: as for :func:`state_dict_in`.
        classes: the name of the argument of ``build`` for the number of classes; None if it has none. If only the last
            layer of the file has another size, as after fine-tuning, the network is built with as many classes.

    Raises:
        CamlibValueError: names or shapes are not those of the network.
    """
    tensors = state_dict_in(path)
    model = build()
    wanted = model.state_dict()
    tensors = _without_prefix(tensors, wanted)
    others = [name for name, tensor in tensors.items() if name in wanted and tensor.shape != wanted[name].shape]
    counts = {len(tensors[name]) for name in others if tensors[name].dim()}
    if classes and len(counts) == 1 and all(tensors[name].shape[1:] == wanted[name].shape[1:] for name in others):
        model = build(**{classes: counts.pop()})
        wanted = model.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")],
        "unknown": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
            for name, tensor in tensors.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {_first(names)}" for what, names in problems.items() if names)
        raise CamlibValueError(
            f"{path_of(path).name} holds the weights of another network than {type(model).__name__}: {listed}"
        )
    model.load_state_dict(tensors, strict=False)
    return model


def _without_prefix(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if tensors.keys() & wanted.keys() or not all(name.startswith(prefix) for name in tensors):
            continue
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
