"""Forward passes of perturbed images, in chunks, and the target's scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from camlib import targets
from camlib.errors import CamlibRuntimeError
from camlib.inputs import Inputs, Outputs
from camlib.passes.chunks import Chunks, in_chunks
from camlib.passes.network import Network
from camlib.passes.numbers import Checks, single_or_double
from camlib.passes.precision import Precision, restored
from camlib.passes.rows import check_rows, with_known_rows


@dataclass
class PerturbedPasses:
    """Forward passes of rows, each made from one of the images; a chunk may hold rows of several images."""

    network: Network
    """The network to run."""
    inputs: Inputs
    """Its inputs, with the unchanged images."""
    count: int
    """The number of images."""
    target: targets.BoundTarget
    """The target, which gives the scores."""
    device: torch.device
    """The device of the outputs."""
    precision: Precision | None = None
    """The autocast state of the passes; None for the current one."""
    chunks: Chunks = field(default_factory=Chunks)
    """How many rows run at a time."""
    what: str = "rows"
    """The title of the progress bar."""
    checks: Checks | None = None
    """Where the check of the scores is added; None to check them at once."""

    def of_images(self, image_index: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return the scores of perturbed images.

        Args:
            image_index: (rows,), the number of each row's image.
            change: from the images (r, C, ...) of a slice of rows, and the slice, to perturbed images. It should not
                wait for the device.

        Returns:
            (rows,), or (rows, K) for K classes.

        Raises:
            CamlibTypeError: the images are integers, which cannot change by small amounts.
            CamlibValueError: it is not known which tensors of the inputs belong to the images one by one.
            CamlibRuntimeError: a score is not finite, or the outputs have no row for each image.
        """
        run = _LaidOut(self.network, self.device)
        self.inputs = with_known_rows(self.network, self.inputs)

        def outputs(rows: slice) -> Any:
            index = image_index[rows]
            inputs = self.inputs.pick(index, self.count)
            if len(inputs.images) != len(index):
                raise CamlibRuntimeError(
                    f"the outputs have {self.count} rows for {len(self.inputs.images)} images; return one row for each "
                    "image: a number for the whole batch has no score of a single image"
                )
            return run(inputs.with_images(run.laid_out(change(inputs.images, rows))))

        _ = self.inputs.floats
        return self.of_outputs(image_index, outputs)

    def of_outputs(self, image_index: Tensor, outputs: Callable[[slice], Any]) -> Tensor:
        """Return the scores, (rows,) or (rows, K), of outputs that are computed in slices of rows.

        Raises:
            CamlibRuntimeError: the outputs of a slice have another number of rows.
        """

        def work(rows: slice) -> Tensor:
            index = image_index[rows]
            with restored(self.precision):
                found = outputs(rows)
                check_rows(Outputs(found), len(index))
                return targets.score(self.target, found, index)

        scores = in_chunks(work, len(image_index), self.chunks, self.device, self.what)
        self.check(scores, image_index)
        return single_or_double(scores)

    def check(self, scores: Tensor, image_index: Tensor) -> None:
        """Check that the scores of all rows are finite.

        Raises:
            CamlibRuntimeError: naming the images whose rows are not, unless the check is added to others.
        """
        checks = Checks() if self.checks is None else self.checks
        checks.finite("score of a perturbed image", scores, image_index)
        if self.checks is None:
            checks.evaluate()


class _LaidOut:
    """Forward passes of images in the fastest memory layout, which on a CPU is channels-last.

    A network that cannot take it, because it calls ``view`` across the channels, gets contiguous images.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._network = network
        self._channels_last = device.type == "cpu"

    def laid_out(self, images: Tensor) -> Tensor:
        """Return the images in the memory layout to use."""
        if not self._channels_last or images.dim() != 4:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def __call__(self, inputs: Inputs) -> Any:
        try:
            return self._network.scored(inputs)
        except RuntimeError as error:
            if not self._channels_last or "view size is not compatible" not in str(error):
                raise
        self._channels_last = False
        return self._network.scored(inputs.with_images(inputs.images.contiguous()))
