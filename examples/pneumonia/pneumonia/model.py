"""The network: torchvision's ResNet-18 with two outputs, its starting weights, and which layers are trained."""

from __future__ import annotations

import http.client
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pneumonia import InputError
from pneumonia.data import CLASSES


def build(weights: str) -> tuple[nn.Module, str]:
    """Build the network and load its starting weights.

    Args:
        weights: ``imagenet``, ``none``, the path of a state dict, or ``auto``: ImageNet weights if they are cached or
            can be downloaded, none otherwise.

    Returns:
        The network, and where its weights come from: "imagenet", "none" or the path.

    Raises:
        InputError: the weights are not available, or belong to another architecture.
    """
    model = torchvision.models.resnet18(weights=None)
    source = weights
    if weights in ("auto", "imagenet"):
        state = _imagenet()
        if state is None and weights == "imagenet":
            raise InputError(
                "the ImageNet weights are not cached and cannot be downloaded; connect to the internet once, give "
                "--weights FILE, or train from scratch with --weights none"
            )
        source = "imagenet" if state is not None else "none"
        if state is None:
            print("NOTE: ImageNet weights are not available (not cached, no network): training FROM SCRATCH.")
        else:
            load_weights(model, state, "the cached file of ImageNet weights")
    elif weights != "none":
        load_weights(model, read_state(Path(weights)), weights)
    model.fc = nn.Linear(model.fc.in_features, len(CLASSES))
    return model.to(memory_format=torch.channels_last), source


def _imagenet() -> dict[str, Tensor] | None:
    """The ImageNet weights from torch's cache or the internet; None if neither has them."""
    enum = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(enum.url).name
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        if cached.exists():
            return read_state(cached)
        state: dict[str, Tensor] = enum.get_state_dict(progress=True, check_hash=True)
        return state
    except (OSError, RuntimeError, http.client.HTTPException):
        return None
    finally:
        socket.setdefaulttimeout(patience)


def read_state(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values that ``torch.save`` wrote, without unpickling code.

    Raises:
        InputError: the file does not exist, is damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about odd files before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, the unpickler and torch raise many kinds of errors
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise InputError(
            f"{path} is not a checkpoint of tensors that torch.save wrote, or is damaged: {reason}"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a state to a file: completely or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_weights(model: nn.Module, state: dict[str, Any], name: str) -> None:
    """Load a state dict except for the head, which may have another number of classes.

    Raises:
        InputError: the state dict belongs to another architecture.
    """
    inner = state.get("model")
    state = {k: v for k, v in (inner if isinstance(inner, dict) else state).items() if not str(k).startswith("fc.")}
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(map(str, state.keys() - own.keys()))
    shapes = [key for key in own.keys() & state.keys() if getattr(state[key], "shape", None) != own[key].shape]
    if missing or unknown or shapes:
        example = next(iter([*missing, *unknown, *sorted(shapes)]))
        raise InputError(
            f"{name} is not a checkpoint of a ResNet-18: {len(missing)} weights are missing, {len(unknown)} unknown, "
            f"{len(shapes)} have another shape, such as {example}"
        )
    model.load_state_dict(state, strict=False)


def freeze_all_but_head(model: nn.Module) -> None:
    """Freeze every layer but the last."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))


def train_mode(model: nn.Module) -> None:
    """Switch to train mode, except for the BatchNorm of frozen layers, whose statistics stay frozen as well."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
