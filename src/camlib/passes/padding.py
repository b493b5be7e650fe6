"""How much of what a detector's layers see is its picture, and how much is padding."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn

from camlib.errors import CamlibValueError
from camlib.inputs.batches import picture_size


class Padding:
    """The padding that a detector adds, noted in a forward pass.

    torchvision's detectors take a list of pictures, or a batch, resize them, and pad them at the right and at the
    bottom into one batch: their ``transform`` returns an ``ImageList`` that knows both sizes.

    Args:
        model: any model; those without such a transform pad nothing.
        inputs: its inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._size = picture_size(inputs)
        # asked of the class: a module that lacks an attribute takes its time to say so
        self._transforms = [module for module in model.modules() if hasattr(type(module), "batch_images")]
        self.extent: tuple[float, ...] | None = None
        """(H, W) that the layers saw, in the inputs' pixels; None where it is the inputs' own size."""

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Listen to the transforms of this thread's forward pass.

        Raises:
            CamlibValueError: from the forward pass, if it resizes the pictures to different sizes.
        """
        thread = threading.get_ident()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != thread or self._size is None:
                return
            batch = output[0] if isinstance(output, tuple) else output
            resized = {tuple(size) for size in batch.image_sizes}
            if len(resized) > 1:
                raise CamlibValueError(
                    f"the model resizes the pictures to different sizes, {sorted(resized)}; explain them one by one"
                )
            inside, padded = resized.pop(), tuple(batch.tensors.shape[2:])
            if padded != inside:
                sides = zip(self._size, padded, inside, strict=True)
                self.extent = tuple(side * whole / own for side, whole, own in sides)

        handles = [module.register_forward_hook(note) for module in self._transforms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
