"""The network behind a layer, run on features that replace the layer's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from camlib.inputs import Inputs
from camlib.passes.hooks import first_tensor, hooked, with_first
from camlib.passes.network import Network


class Tail:
    """The network behind a layer, as a function of the layer's features alone.

    The network is called on no images at all, so its trunk has nothing to compute. A hook on the layer replaces its
    empty output by the features, as many rows as there are. Anything else of the trunk that the tail reads, a skip
    connection for example, has no rows: it fails where it meets the features' rows, or leaves outputs without rows.
    Trying shows whether the tail needs the layer alone.

    Args:
        network: what runs.
        layer: the layer's name.
        inputs: what the model takes, of all images.
        images: how many there are.
    """

    def __init__(self, network: Network, layer: str, inputs: Inputs, images: int) -> None:
        self._network = network
        self._module = network.module.get_submodule(layer)
        self._inputs = inputs
        self._images = images

    def __call__(self, features: Tensor, image_index: Tensor) -> Any:
        """Return the outputs for features (rows, ...) in the layer's own layout.

        Args:
            features: what the layer is to return.
            image_index: (rows,) the image that each row belongs to.
        """
        with replaced(self._module, lambda own: _like(own, features)), _autocast_kept(features.device.type):
            return self._network.run(self._inputs.pick(self._through_trunk(image_index), self._images))

    def _through_trunk(self, image_index: Tensor) -> Tensor:
        return image_index[:0]


class WholeNetwork(Tail):
    """The same where the tail needs more of the trunk than the layer: each row's image runs through all of it."""

    def _through_trunk(self, image_index: Tensor) -> Tensor:
        return image_index


def _like(own: Tensor, features: Tensor) -> Tensor:
    """Features to replace a layer's own: quantised as these are, or in full precision, as all that follows.

    Differences of scores that one channel makes are lost in half precision, and the tail is the smaller part.
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


def replaced(module: nn.Module, change: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a module returns other features in this thread.

    Args:
        module: the layer.
        change: from the (first) tensor that it returns to another one.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return with_first(output, change(first_tensor(output, type(module).__name__)))

    return hooked([(module, hook)])
