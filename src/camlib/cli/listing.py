"""``camlib layers`` and ``camlib methods``: what there is to choose from."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from camlib.cli import options


def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for --model.", autocompletion=options._networks)],
    weights: options.Weights = "none",
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of a picture, ahead of the transforms.")] = "256x256",
) -> None:
    """List the layers of a network, in the order in which they run; * marks the one that is explained by default.

    \b
    camlib layers torchvision:resnet18
    camlib layers timm:vit_tiny_patch16_224
    """
    import numpy as np

    from camlib.discovery.finding import find_layer_in, list_layers
    from camlib.errors import CamlibRuntimeError, CamlibValueError
    from camlib.explaining.sources import Preparation
    from camlib.loading import load
    from camlib.passes.network import Network

    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if not sides:
        raise CamlibValueError(f"--size must be the height and the width of a picture, such as 256x256, got {size!r}")
    loaded = load(model, weights)
    options.transforms_of(loaded)
    gray = np.random.default_rng(0).integers(0, 256, (int(sides[1]), int(sides[2]), 3), dtype=np.uint8)
    inputs = Preparation(loaded).of_pictures([gray]).inputs
    network = Network.of(loaded.model)
    try:
        found = find_layer_in(network, network.ready(inputs))
    except CamlibRuntimeError as error:
        found, why = "", str(error)
    rows = [
        (f"{'*' if info.name == found else ' '} {info.name}", info.type, " x ".join(map(str, info.shape or ())))
        for info in list_layers(loaded.model, inputs)
    ]
    _table(["  layer", "type", "output of one picture"], rows)
    if not found:
        typer.echo(f"\nno layer is found by default: {why}")


def methods() -> None:
    """List the methods: what each needs, and what it shows.

    \b
    camlib methods
    """
    import camlib

    rows = []
    for name, kind in camlib.METHODS.items():
        first = (kind.__doc__ or "").strip().partition("\n")[0].partition(": ")
        needs = [
            *(["gradients"] if kind.needs_gradients else []),
            *(["ignores the class"] if kind.class_agnostic else []),
            *(["random"] if kind.stochastic else []),
        ]
        rows.append((name, ", ".join(needs), (first[2] or first[0]).rstrip(".")))
    _table(["method", "notes", "shows"], rows)


def _table(head: list[str], rows: list[Any]) -> None:
    """Print columns, each as wide as its longest cell."""
    lines = [head, *rows]
    widths = [max(len(str(line[column])) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (str(cell).ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
