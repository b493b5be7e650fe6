"""Options that several commands share, and what they name: a network, a target."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camlib.errors import CamlibValueError

if TYPE_CHECKING:
    from camlib.loading import Loaded


class Precision(StrEnum):
    """The type of numbers in which the network runs."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def _networks(incomplete: str) -> list[str]:
    import torchvision

    return [name for name in (f"torchvision:{one}" for one in torchvision.models.list_models()) if incomplete in name]


def _methods(incomplete: str) -> list[str]:
    import camlib

    return [name for name in ("auto", *camlib.METHODS) if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="torchvision:resnet50, timm:convnext_tiny, hf:PATH or package.module:factory.",
        autocompletion=_networks,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="default|none|FILE",
        help="Weights: default (downloaded on first use), none (random), or a state dict (.pt, .safetensors).",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A method that `camlib methods` lists, or auto for the recommended one.",
        autocompletion=_methods,
    ),
]
Layer = Annotated[
    str | None, typer.Option(metavar="NAME", help="A layer that `camlib layers` lists; by default it is found.")
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS", help="A class by index or name, or top3 for the three highest; by default the predicted class."
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text file with a class name on each line, if the model has no names."),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps; auto for a GPU if there is one.")]
Colormap = Annotated[
    str | None, typer.Option(metavar="NAME", help="A colormap of OpenCV or matplotlib, such as turbo.")
]
PrecisionName = Annotated[
    Precision,
    typer.Option(help="Number type of the network; auto is float32. 16 bits are faster on a GPU, but less exact."),
]


def opened(
    model: str, weights: str, classes: Path | None, device: str = "auto", precision: Precision = Precision.AUTO
) -> Loaded:
    """Return the network of the options, on its device, with transforms in its precision."""
    import dataclasses

    import torch

    from camlib.loading import load
    from camlib.passes.devices import device_of_name, on_device

    loaded = load(model, weights)
    if weights == "none":
        typer.echo("camlib: the weights are random, so the result says nothing about a trained network", err=True)
    dtype = torch.float32 if precision is Precision.AUTO else getattr(torch, precision.value)
    on_device(loaded.model, device_of_name(_device(device), "--device"), "--device").to(dtype)
    transforms = loaded.transforms
    if transforms is not None and dtype is not torch.float32:
        transforms = InPrecision(transforms, precision.value)
    names = loaded.classes if classes is None else names_in(classes)
    return dataclasses.replace(loaded, transforms=transforms, classes=names)


class InPrecision:
    """Transforms whose result has another type of numbers.

    Args:
        transforms: from a PIL image to a tensor.
        precision: the type's name.
    """

    def __init__(self, transforms: Any, precision: str) -> None:
        self.transforms = transforms
        self.precision = precision

    def __call__(self, picture: Any) -> Any:
        """Return the tensor of a picture."""
        import torch

        return self.transforms(picture).to(getattr(torch, self.precision))


def _device(name: str) -> str:
    import os

    import torch

    if name != "auto":
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def names_in(path: Path) -> list[str]:
    """Return the names of classes in a text file, one a line."""
    from camlib.files import opened as opened_file

    with opened_file(path, "a file with the name of a class on each line") as file:
        return [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]


def target_of(text: str | None, loaded: Loaded) -> Any:
    """Return the target that ``--target`` names.

    Raises:
        CamlibValueError: there is no such class.
    """
    from camlib.loading import class_index
    from camlib.targets import TopK

    if text is None:
        return None
    if text.startswith("top") and text[3:].isdecimal():
        return TopK(int(text[3:]))
    return int(text) if text.isdecimal() else class_index(text, loaded.classes)


def transforms_of(loaded: Loaded) -> Any:
    """Return the transforms of a network.

    Raises:
        CamlibValueError: they are not known.
    """
    if loaded.transforms is None:
        raise CamlibValueError(
            f"the transforms of {loaded.name} are not known; let the factory return a tuple of the module and its "
            "transforms, from a PIL image to a tensor (C, H, W)"
        )
    return loaded.transforms
