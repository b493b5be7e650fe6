"""A model with its heatmaps as a program of torch.export."""

from __future__ import annotations

from typing import Any

import torch

from camlib.errors import CamlibRuntimeError
from camlib.exporting.module import WithHeatmaps, as_module

BATCH = "batch"
SIDES = {1: ("length",), 2: ("height", "width"), 3: ("time", "height", "width")}
"""The names of the dynamic axes of images."""


def export(explainer: Any, inputs: Any, **options: Any) -> torch.export.ExportedProgram:
    """Export a model together with its heatmaps as a program of ``torch.export``.

    The program holds plain operations: also the gradient of the tail. It can be saved, loaded without the model's code,
    lowered to a device, or compiled ahead of time by AOTInductor.

    Args:
        explainer: as for :func:`camlib.as_module`.
        inputs: as for :func:`camlib.as_module`.
        **options: as for :func:`camlib.as_module`.

    Returns:
        A program from images to (outputs, heatmaps). Its ``graph_module.meta["camlib"]`` holds the method, the layer,
        the target, class names, preprocessing and versions.

    Raises:
        CamlibTypeError, CamlibValueError, CamlibRuntimeError: as for :func:`camlib.as_module`.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> program = camlib.export(camlib.GradCAM(model), torch.rand(2, 3, 64, 64), target=1)
        >>> logits, heatmaps = program.module()(torch.rand(5, 3, 64, 64))
        >>> heatmaps.shape, program.graph_module.meta["camlib"]["layer"]
        (torch.Size([5, 64, 64]), 'layer4')
    """
    module = as_module(explainer, inputs, **options)
    return program_of(module)


def program_of(module: WithHeatmaps) -> torch.export.ExportedProgram:
    """Return the program of a module.

    Raises:
        CamlibRuntimeError: torch.export does not take the graph.
    """
    example = module.example
    dynamic = [_dynamic(module, number) for number in range(len(example))]
    try:
        with torch.no_grad():
            program = torch.export.export(module.graph, example, dynamic_shapes=tuple(dynamic))
    except Exception as error:  # whatever torch.export raises
        raise CamlibRuntimeError(
            f"torch.export does not take the graph of {module.metadata['model']}: {error}"
        ) from error
    program.graph_module.meta["camlib"] = dict(module.metadata)
    return program


def axes_of(module: WithHeatmaps, number: int) -> dict[int, str]:
    """Return the names of the dynamic axes of an input of a module."""
    found = {0: BATCH} if module.dynamic_batch else {}
    if module.dynamic_size and number == 0:
        found |= dict(zip(module.spatial, SIDES[len(module.spatial)], strict=True))
    return found


def _dynamic(module: WithHeatmaps, number: int) -> dict[int, Any]:
    return dict.fromkeys(axes_of(module, number), torch.export.Dim.DYNAMIC)
