"""The network behind a layer, run on features put in the place of the layer's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from camlib.inputs.batches import pick_images
from camlib.passes.capture import first_tensor, with_first


class Tail:
    """The network behind a layer, as a function of the layer's features alone.

    The network is called on no images at all: its trunk has nothing to compute, and a hook on the layer hands on the
    features, as many rows as there are, in place of the layer's empty output. Whatever else of the trunk the tail
    reads, a skip connection say, has no rows, so that it meets the features' rows with an error, or leaves outputs of
    no rows: whether the tail needs the layer alone is found out by trying.

    Args:
        run: the forward pass, of inputs.
        module: the layer.
        inputs: what the model takes, of all images.
        images: how many there are.
    """

    def __init__(self, run: Callable[[Any], Any], module: nn.Module, inputs: Any, images: int) -> None:
        self._run = run
        self._module = module
        self._inputs = inputs
        self._images = images

    def __call__(self, features: Tensor, image_index: Tensor) -> Any:
        """Return the outputs for features (rows, ...) in the layer's own layout.

        Args:
            features: what the layer is to return.
            image_index: (rows,) the image that each row belongs to.
        """
        with _replaced(self._module, features):
            return self._run(pick_images(self._inputs, self._through_trunk(image_index), self._images))

    def _through_trunk(self, image_index: Tensor) -> Tensor:
        return image_index[:0]


class WholeNetwork(Tail):
    """The same where the tail needs more of the trunk than the layer: each row's image runs through all of it."""

    def _through_trunk(self, image_index: Tensor) -> Tensor:
        return image_index


@contextlib.contextmanager
def _replaced(module: nn.Module, features: Tensor) -> Iterator[None]:
    """Let a module return other features in this thread; what comes behind it runs in full precision.

    Differences of scores that one channel makes are lost in half precision, and the tail is the smaller part.
    """
    thread, kind = threading.get_ident(), features.device.type
    autocasting = torch.is_autocast_enabled(kind)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        whole = first_tensor(output, type(module).__name__)
        if whole.is_quantized:
            scale, zero = whole.q_scale(), whole.q_zero_point()
            return with_first(output, torch.quantize_per_tensor(features, scale, zero, whole.dtype))
        if torch.is_autocast_enabled(kind):
            torch.set_autocast_enabled(kind, False)
            return with_first(output, features.float())
        return with_first(output, features)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        torch.set_autocast_enabled(kind, autocasting)
