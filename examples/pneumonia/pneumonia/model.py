"""The network: torchvision's ResNet-18 with two outputs, its starting weights, and what of it is trained."""

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

from pneumonia.data import CLASSES
from pneumonia.errors import InputError


def build(weights: str) -> tuple[nn.Module, str]:
    """Build the network and say where its weights come from.

    Args:
        weights: ``auto`` for ImageNet's where they are cached or can be fetched and none otherwise, ``imagenet``,
            ``none``, or the path of a state dict.

    Returns:
        The network, and "imagenet", "none" or the path.

    Raises:
        InputError: the weights cannot be had, or are of another architecture.
    """
    model = torchvision.models.resnet18(weights=None)
    source = weights
    if weights in ("auto", "imagenet"):
        state = _imagenet()
        if state is None and weights == "imagenet":
            raise InputError(
                "the ImageNet weights are not cached and cannot be fetched; connect to the internet once, give "
                "--weights FILE, or train from scratch with --weights none"
            )
        source = "imagenet" if state is not None else "none"
        if state is None:
            print("NOTE: no ImageNet weights here (not cached, no network): training FROM SCRATCH.")
        else:
            load_weights(model, state, "the cached file of ImageNet weights")
    elif weights != "none":
        load_weights(model, read_checkpoint(Path(weights)), weights)
    model.fc = nn.Linear(model.fc.in_features, len(CLASSES))
    return model.to(memory_format=torch.channels_last), source


def _imagenet() -> dict[str, Tensor] | None:
    """The ImageNet weights, from torch's cache or the network, or None."""
    enum = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(enum.url).name
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        if cached.exists():
            return read_checkpoint(cached)
        state: dict[str, Tensor] = enum.get_state_dict(progress=True, check_hash=True)
        return state
    except (OSError, RuntimeError, http.client.HTTPException):
        return None
    finally:
        socket.setdefaulttimeout(patience)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that torch saved; tensors and plain values only, nothing is unpickled.

    Raises:
        InputError: there is no such file, or it is not one of these.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of odd files that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises what zipfile, the unpickler or torch please
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise InputError(
            f"{path} is not a checkpoint of tensors that torch.save wrote, or is damaged: {reason}"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def write_decision(path: Path, results: dict[str, Any], layer: str) -> None:
    """Add to a checkpoint how probabilities become decisions and where to explain: what ``predict`` needs of a run."""
    state = read_checkpoint(path)
    state["decision"] = {
        "threshold": results["threshold"],
        "temperature": results["temperature"],
        "rule": results["threshold_rule"],
        "layer": layer,
    }
    save_whole(state, path)


def save_whole(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint: whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_weights(model: nn.Module, state: dict[str, Any], name: str) -> None:
    """Load a state dict; the head may have another number of classes, nothing else may differ.

    Raises:
        InputError: it is a state dict of another architecture.
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
            f"{len(shapes)} of another shape, such as {example}"
        )
    model.load_state_dict(state, strict=False)


def freeze_all_but_head(model: nn.Module) -> None:
    """Train the last layer alone."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))


def train_mode(model: nn.Module) -> None:
    """Switch to training, except for the BatchNorm of frozen layers: its statistics stay frozen as well."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
