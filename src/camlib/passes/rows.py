"""Which tensors of the inputs belong to the images one by one, and which ones all images share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.inputs import Inputs, Outputs
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network

_MOST = 4
"""With more ambiguous tensors than this, all of them are shared or none is."""


def with_known_rows(network: Network, inputs: Inputs, image: int | None = None) -> Inputs:
    """Return the inputs with the knowledge which of their tensors the images share.

    A tensor that has as many rows as there are images can belong to them one by one, as an age for each picture, or be
    shared, as the texts that every picture is compared with. The network shows it: with a single image and the right
    rows of the other tensors, its output for this image stays the same. The answer is remembered. Nothing runs if no
    tensor is ambiguous.

    Args:
        network: the network.
        inputs: its inputs.
        image: the number of the single image, whose output must be finite; None for the last one.

    Raises:
        CamlibValueError: the output for one image is another one, whatever rows the other tensors have.

    Example:
        >>> import torch
        >>> class Compare(torch.nn.Module):
        ...     def forward(self, images, texts):
        ...         return images.mean((2, 3)) @ texts.T
        >>> texts = torch.rand(2, 3)
        >>> with_known_rows(Network.of(Compare()), Inputs((torch.rand(2, 3, 8, 8), texts))).shared[0] is texts
        True
    """
    ambiguous = inputs.ambiguous
    if not ambiguous:
        return inputs
    count = inputs.count
    key = inputs.kind, count, _numbers(ambiguous, inputs)
    if key in network.shared:
        return Inputs(inputs.raw, tuple(inputs.tensors[number] for number in network.shared[key]), inputs.axes)
    image = count - 1 if image is None else image
    index = torch.tensor([0, 0] if count == 1 else [image], device=inputs.images.device)
    with undisturbed(network.module):
        together = network.run(inputs)
        possible = (Inputs(inputs.raw, shared, inputs.axes) for shared in _subsets(ambiguous))
        fits = (one for one in possible if _reproduces(network, one.pick(index, count), Outputs(together), index))
        fitting = list(itertools.islice(fits, 2))
    if len(fitting) == 1:  # with equal rows, or weights of zero, several fit, and another call may show which one does
        network.shared[key] = _numbers(fitting[0].shared or (), inputs)
    if fitting:
        return fitting[0]
    shapes = ", ".join(str(tuple(one.shape)) for one in ambiguous)
    raise CamlibValueError(
        f"the inputs hold {count} images and tensors {shapes} with as many rows, and the model's output for one image "
        "changes whether it gets all of these rows or only that image's; give only what belongs to the images one by "
        "one as the inputs, and the rest by forward=lambda model, images: model(images, ...)"
    )


def check_rows(outputs: Outputs, rows: int) -> None:
    """Check that the outputs have a row for each perturbed image, if that can be seen.

    Raises:
        CamlibRuntimeError: they have another number of rows.
    """
    if outputs.rows not in (None, rows):
        raise CamlibRuntimeError(
            f"the outputs have {outputs.rows} rows for {rows} of the perturbed images; return a row for "
            "each, also for a single one. If the model squeezes the axis of the batch away, pass "
            "forward=lambda model, x: model(x).reshape(len(x), -1)"
        )


def _numbers(tensors: tuple[Tensor, ...], inputs: Inputs) -> tuple[int, ...]:
    """Return the indices of some tensors among those of the inputs."""
    return tuple(number for number, one in enumerate(inputs.tensors) if any(one is own for own in tensors))


def _subsets(ambiguous: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors that may be shared: none, all, or some of them."""
    yield ()
    yield ambiguous
    for size in range(len(ambiguous) - 1, 0, -1) if len(ambiguous) <= _MOST else ():
        yield from itertools.combinations(ambiguous, size)


def _reproduces(network: Network, picked: Inputs, together: Outputs, index: Tensor) -> bool:
    """Whether the outputs for picked images are those for all images together."""
    try:
        alone = Outputs(network.run(picked))
    except Exception:  # the model cannot take these rows, in whatever words it says so
        return False
    if alone.rows != len(index):
        return False
    one, other = alone.main, together.main
    if one is None or other is None:
        return one is other
    expected = other[index.to(other.device)]
    if one.shape != expected.shape or not one.is_floating_point():
        return one.shape == expected.shape
    rounding = torch.finfo(one.dtype).eps ** 0.5 * expected.double().abs().amax()
    return bool(((one - expected).double().abs() <= rounding).all())
