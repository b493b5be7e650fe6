"""The proof of an exported graph: on images that it never saw, it gives what eager calls give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibError, CamlibRuntimeError, CamlibWarning
from camlib.exporting.call import CLASS_INDEX, Call
from camlib.targets.indices import class_outputs

TOLERANCE = 1e-4
"""The largest difference of heatmaps in [0, 1], and of outputs and maps by their largest magnitude."""
ROUNDING = 2e-6
"""The change of an image, by the spread of its values, that is like the rounding inside a network."""
DRAWS = 4
"""How many such changes are tried."""
BATCHES = (1, 2, 5)
"""The lengths of the batches that are compared."""

Graph = Callable[..., Sequence[Tensor]]
"""From the inputs of a graph to outputs and heatmaps."""


@dataclass(frozen=True)
class Run:
    """What runs a graph, for errors."""

    name: str


def prove(call: Call, graph: Graph, inputs: Tensor, run: Run, dynamic_batch: bool, dynamic_size: bool) -> float:
    """Compare a graph with eager calls.

    Args:
        call: what the graph was recorded of.
        graph: the graph.
        inputs: the images, or pictures, that were given as an example.
        run: what runs it.
        dynamic_batch: whether to compare batches of several lengths.
        dynamic_size: whether to compare images of several sizes.

    Returns:
        The largest difference.

    Raises:
        CamlibRuntimeError: the graph gives something else, or fails.
    """
    largest, proved = 0.0, 0
    for seed, (rows, shape) in enumerate(_shapes(call, inputs, dynamic_batch, dynamic_size), 1):
        given = trial(call, inputs, rows, shape, seed)
        try:
            expected = eager(call, given)
        except CamlibError as error:
            if tuple(shape) == tuple(inputs.shape[1:]):
                raise CamlibRuntimeError(
                    f"{run.name} cannot be compared with eager calls on random images: {error}"
                ) from error
            continue  # the model does not take images of this size
        proved += tuple(shape) != tuple(inputs.shape[1:])
        of_shape = f"for inputs {tuple(given[0].shape)}"
        try:
            found = graph(*given)
        except Exception as error:  # whatever a runtime raises
            raise CamlibRuntimeError(f"{run.name} fails {of_shape}: {error}") from error
        for k, (what, one, other) in enumerate(zip(("outputs", "heatmaps"), found, expected, strict=True)):
            difference = _difference(one, other)
            if not difference <= TOLERANCE and not difference <= TOLERANCE + 2 * _rounding(call, given, expected, k):
                raise CamlibRuntimeError(
                    f"{run.name} gives other {what} than eager calls {of_shape}: they differ by {difference:.2g}, "
                    f"where {TOLERANCE:g} is allowed. The model may depend on numbers or shapes in a way that no "
                    "graph shows; explain it eagerly"
                )
            largest = max(largest, difference)
    if dynamic_size and not proved:
        raise CamlibRuntimeError(
            f"{run.name} cannot be compared with eager calls for images of another size, which the model does not "
            "take; leave dynamic_size out"
        )
    return largest


def _rounding(call: Call, given: Sequence[Tensor], expected: Sequence[Tensor], which: int) -> float:
    """How far eager calls are from each other on images that differ by rounding alone.

    Gradients jump where an activation changes its sign, so a deep tail may turn rounding into visible differences.
    """
    images, *classes = given
    images = call.images(images)
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for _ in range(DRAWS):
        noise = torch.randn(images.shape, generator=generator).to(images)
        noisy = _explained(call, images + ROUNDING * images.std() * noise, classes)
        largest = max(largest, _difference(noisy[which], expected[which]))
    return largest


def eager(call: Call, given: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs and heatmaps of an eager call of the method."""
    images, *classes = given
    return _explained(call, call.images(images), classes)


def _explained(call: Call, images: Tensor, classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    target = classes[0] if classes else call.target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamlibWarning)
        explanation = call.method(images, target)
    outputs = explanation.outputs
    heatmaps = explanation.heatmaps(call.heatmap_size, "minmax" if call.normalize else "none")
    return outputs if isinstance(outputs, Tensor) else class_outputs(outputs), heatmaps


def trial(call: Call, inputs: Tensor, rows: int, shape: Sequence[int], seed: int) -> tuple[Tensor, ...]:
    """Return random inputs of a graph, which have the mean and the spread of the given ones.

    Args:
        call: what the graph was recorded of.
        inputs: the given images or pictures.
        rows: the length of the batch.
        shape: the shape of each image.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    if inputs.is_floating_point():
        mean, std = inputs.mean().cpu(), inputs.std().cpu()
        images = (mean + std * torch.randn(rows, *shape, generator=generator)).to(inputs)
    else:
        images = torch.randint(0, 256, (rows, *shape), generator=generator).to(inputs)
    if call.target != CLASS_INDEX:
        return (images,)
    return images, torch.randint(0, call.classes, (rows,), generator=generator).to(inputs.device)


def _shapes(
    call: Call, inputs: Tensor, dynamic_batch: bool, dynamic_size: bool
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield lengths of batches and shapes of images."""
    own = tuple(inputs.shape[1:])
    for rows in BATCHES if dynamic_batch else (len(inputs),) * 2:
        yield rows, own
    if dynamic_size:
        spatial = call.spatial if call.preprocessing is None else (1, 2)
        for number, more in enumerate((32, 64, 13), 2):
            shape = list(own)
            for place, axis in enumerate(spatial):
                shape[axis - 1] += more * (1 + place)
            yield number if dynamic_batch else len(inputs), tuple(shape)


def _difference(found: Any, expected: Tensor) -> float:
    """The largest difference, by the largest magnitude where that is above one."""
    found = torch.as_tensor(found).to(expected.device)
    if found.shape != expected.shape:
        return float("inf")
    scale = float(expected.abs().max())
    return float((found.double() - expected.double()).abs().max()) / max(scale, 1.0 if scale == 0 else scale)
