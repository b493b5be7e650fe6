"""The tail of a network, run on features that replace a layer's output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from camlib.inputs import Inputs
from camlib.layers.names import call_of, module_of
from camlib.passes.hooks import first_tensor, hooked, with_first
from camlib.passes.network import Network
from camlib.passes.no_rows import WithoutRows
from camlib.passes.rows import with_known_rows


class Tail:
    """The tail of a network as a function of one layer's features.

    The network is called with an empty batch, so its trunk has nothing to compute. A hook on the layer replaces the
    empty output by the features. Any other tensor of the trunk that the tail reads, such as a skip connection, has no
    rows: combining it with the features fails, or the outputs have no rows. A trial run therefore shows whether the
    tail needs only the layer.

    Args:
        network: the network.
        layer: the layer's name.
        inputs: the inputs of all images.
        images: the number of images.
    """

    def __init__(self, network: Network, layer: str, inputs: Inputs, images: int) -> None:
        self._network = network
        self._layer = layer
        self._inputs = with_known_rows(network, inputs)
        self._images = images

    def __call__(self, features: Tensor, image_index: Tensor) -> Any:
        """Return the outputs for features (rows, ...) in the layer's own layout.

        Args:
            features: the features that the layer returns.
            image_index: (rows,), the number of each row's image.
        """
        with (
            replaced(self._network.module, self._layer, lambda own: _like(own, features)),
            _autocast_kept(features.device.type),
        ):
            return self._network.scored(self._through_trunk(image_index))

    def _through_trunk(self, image_index: Tensor) -> Inputs:
        return self._inputs.pick(image_index[:0], self._images)


class WithoutRowsOfTrunk(Tail):
    """The same where PyTorch refuses an empty batch, as in ``x.reshape(0, 24, -1)``.

    See :class:`camlib.passes.no_rows.WithoutRows`.
    """

    def __call__(self, features: Tensor, image_index: Tensor) -> Any:
        """Return the outputs, as :class:`Tail` does."""
        with WithoutRows():
            return super().__call__(features, image_index)


class ShapesOfTrunk(Tail):
    """The same for networks whose tail uses the number of rows that the trunk had, as for learned queries.

    The trunk runs on torch's fake tensors, which have a shape and a device, and no values: it computes nothing. What is
    computed from a fake tensor is fake, so a tail that needs more than the layer returns fake outputs.
    """

    def _through_trunk(self, image_index: Tensor) -> Inputs:
        from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import, and few networks need it

        mode, shared = FakeTensorMode(allow_non_fake_inputs=True), self._inputs.shared or ()

        def fake(tensor: Tensor) -> Tensor:
            return tensor if any(tensor is one for one in shared) else mode.from_tensor(tensor)

        return self._inputs.map(fake).pick(image_index, self._images)


class WholeNetwork(Tail):
    """The same for tails that need more of the trunk than the layer: each row's image runs through the whole trunk."""

    def _through_trunk(self, image_index: Tensor) -> Inputs:
        return self._inputs.pick(image_index, self._images)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values, since it was computed in the trunk of :class:`ShapesOfTrunk`."""
    return type(tensor) is not Tensor and type(tensor).__name__ == "FakeTensor"


def _like(own: Tensor, features: Tensor) -> Tensor:
    """Prepare features to replace a layer's output: quantised like it, or in full precision with autocast off.

    Half precision would lose the difference that one channel makes to the score, and the tail is the smaller part of
    the network.
    """
    kind = features.device.type
    if own.is_quantized:
        return torch.quantize_per_tensor(features, own.q_scale(), own.q_zero_point(), own.dtype)
    if torch.is_autocast_enabled(kind):
        torch.set_autocast_enabled(kind, False)
        return features.float()
    return features


@contextlib.contextmanager
def _autocast_kept(kind: str) -> Iterator[None]:
    autocasting = torch.is_autocast_enabled(kind)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, autocasting)


def replaced(model: nn.Module, layer: str, change: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a layer returns other features, in this thread.

    Args:
        model: the model.
        layer: the layer's name.
        change: from the (first) tensor that the layer returns to its replacement.
    """
    calls, wanted = count(1), call_of(layer)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if wanted not in (None, next(calls)):
            return None
        return with_first(output, change(first_tensor(output, layer)))

    return hooked([(module_of(model, layer), hook)])
