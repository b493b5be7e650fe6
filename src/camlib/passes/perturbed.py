"""Forward passes of changed pictures, in chunks, and the target's scores of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib import targets
from camlib.inputs.batches import floating, pick_images, picture_batch, with_pictures
from camlib.passes.chunks import ChunkSize, in_chunks
from camlib.passes.forward_pass import check_finite, single_or_double
from camlib.passes.precision import callers_precision


@dataclass
class Trials:
    """What a network is tried on: rows, each made of one of the images.

    A chunk holds rows of several images as they come.
    """

    run: Callable[[Any], Any]
    """The forward pass, of inputs."""
    inputs: Any
    """What the model takes, of all images as they are."""
    images: int
    """How many there are."""
    target: targets.Target
    """What is scored, settled."""
    device: torch.device
    """Where the outputs lie."""
    chunk_size: ChunkSize = "auto"
    """How many rows run at a time."""
    progress: bool = False
    """Whether to show a progress bar."""
    what: str = "rows"
    """Its title."""

    def of_pictures(self, image_index: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return the scores of changed pictures.

        Args:
            image_index: (rows,) the image that each row is made of.
            change: from the pictures (r, C, ...) of a slice of rows, and the slice, to other pictures. It should not
                wait for the device without need.

        Returns:
            (rows,), or (rows, K) for K classes.

        Raises:
            CamlibTypeError: the pictures are of integers, which cannot change by a little.
            CamlibRuntimeError: a score is not finite.
        """
        run = _LaidOut(self.run, self.device)

        def outputs(rows: slice) -> Any:
            inputs = pick_images(self.inputs, image_index[rows], self.images)
            return run(with_pictures(inputs, run.laid_out(change(picture_batch(inputs), rows))))

        floating(picture_batch(self.inputs))
        return self.of_outputs(image_index, outputs)

    def of_outputs(self, image_index: Tensor, outputs: Callable[[slice], Any]) -> Tensor:
        """Return the scores, (rows,) or (rows, K), of outputs that are computed for a slice of rows at a time."""

        def work(rows: slice) -> Tensor:
            with callers_precision():
                return targets.score(self.target, outputs(rows), image_index[rows])

        rows = len(image_index)
        scores = in_chunks(work, rows, self.chunk_size, self.device, progress=self.progress, what=self.what)
        check_finite({"score of a perturbed image": [scores]})
        return single_or_double(scores)


class _LaidOut:
    """Forward passes of pictures that are laid out as is fastest: on a CPU channels-last, the values being the same.

    A network that cannot take it, because it calls ``view`` across the channels, gets the inputs' own layout.
    """

    def __init__(self, run: Callable[[Any], Any], device: torch.device) -> None:
        self._run = run
        self._channels_last = device.type == "cpu"

    def laid_out(self, pictures: Tensor) -> Tensor:
        """Return the pictures in the layout that is tried."""
        if not self._channels_last or pictures.dim() != 4:
            return pictures
        return pictures.contiguous(memory_format=torch.channels_last)

    def __call__(self, inputs: Any) -> Any:
        try:
            return self._run(inputs)
        except RuntimeError as error:
            if not self._channels_last or "view size is not compatible" not in str(error):
                raise
        self._channels_last = False
        return self._run(with_pictures(inputs, picture_batch(inputs).contiguous()))
