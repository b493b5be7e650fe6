"""The padding of a detector's images: how much of what its layers see is the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from camlib.errors import CamlibValueError
from camlib.inputs import Size
from camlib.passes.hooks import Hook


class Padding:
    """The padding that a detector adds in a forward pass, recorded by :meth:`hooks`.

    torchvision's detectors take a list of images, or a batch, resize them, and pad them on the right and at the bottom
    into one batch: their ``transform`` returns an ``ImageList`` with both sizes.
    """

    extent: tuple[float, ...] | None = None
    """(H, W) that the layers saw, in the inputs' pixels; None if it is the size of the inputs."""

    def hooks(self, modules: Iterable[nn.Module], size: Size | None) -> list[tuple[nn.Module, Hook]]:
        """Return the model's transforms with the hooks that record their padding.

        Args:
            modules: all modules of a model; without such a transform it has no padding.
            size: the size of its inputs.
        """

        def note(module: nn.Module, args: Any, output: Any) -> None:
            batch = output[0] if isinstance(output, tuple) else output
            resized = {tuple(image_size) for image_size in batch.image_sizes}
            if len(resized) > 1:
                raise CamlibValueError(
                    f"the model resizes the images to different sizes, {sorted(resized)}; explain them one by one"
                )
            inside, padded = resized.pop(), tuple(batch.tensors.shape[2:])
            if size is not None and padded != inside:
                sides = zip(size, padded, inside, strict=True)
                self.extent = tuple(side * whole / own for side, whole, own in sides)

        # hasattr on the class, because nn.Module.__getattr__ is slow for attributes that are missing
        return [(module, note) for module in modules if hasattr(type(module), "batch_images")]
