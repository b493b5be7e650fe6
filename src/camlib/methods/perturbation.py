"""What methods share that run the network on perturbed images, or its tail on perturbed features, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib import targets
from camlib.chunks import ChunkSize, checked_chunk_size, in_chunks
from camlib.isolation import callers_precision
from camlib.masks import Masks
from camlib.methods.arithmetic import divided
from camlib.methods.base import Layer, PassMethod, PictureMethod
from camlib.methods.evidence import Evidence, check_finite, single_or_double
from camlib.pictures import floating, pick_images, picture_batch, with_pictures

MASKS_AT_ONCE = 64
"""Masks that are laid over one another at a time, of the many that a map is the mean of."""


class PerturbationMethod(PassMethod):
    """A method that asks how the score changes when something is taken away. It needs no gradients.

    What is perturbed are rows: pairs of an image and a mask, or of an image and a channel. A batch holds rows of
    several images as it comes.

    Args:
        model: as for :class:`camlib.Method`.
        layer: as for :class:`camlib.Method`.
        chunk_size: how many rows run at a time. "auto" measures the first row and takes as many as fit into 128 MiB of
            tensors, on a GPU into 2 GiB or half of its free memory; it halves when memory runs out all the same.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.Method`.

    Raises:
        CamlibValueError: ``chunk_size`` is neither a positive int nor "auto".

    Example:
        >>> import camlib, torch, torchvision
        >>> class Halves(camlib.PerturbationMethod, camlib.PictureMethod):  # what each half shows without the other
        ...     name = "halves"
        ...     def maps(self, evidence):
        ...         def cover(pictures, rows):
        ...             return pictures * (torch.arange(64) < 32).roll(32 * (rows.start >= 2))
        ...         left, right = self.scores_of_pictures(evidence, torch.tensor([0, 1, 0, 1]), cover).split(2)
        ...         return torch.stack([left, right], -1)[:, None]
        >>> model = torchvision.models.resnet18(num_classes=4).eval()
        >>> Halves(model, chunk_size=2)(torch.rand(2, 3, 64, 64), 1).maps.shape
        torch.Size([2, 1, 2])
    """

    needs_gradients: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        layer: Layer = None,
        *,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunk_size = checked_chunk_size(chunk_size)
        self.progress = progress

    def scores_of_pictures(
        self, evidence: Evidence, image_index: Tensor, perturb: Callable[[Tensor, slice], Tensor]
    ) -> Tensor:
        """Return the scores of perturbed images.

        Args:
            evidence: of the pass on the images as they are.
            image_index: (rows,) the image that each row is made of.
            perturb: from the pictures (r, C, ...) of a slice of rows, and the slice, to other pictures. It must not
                wait for the device.

        Returns:
            (rows,), or (rows, K) for K classes.

        Raises:
            CamlibTypeError: the pictures are of integers, which a mask cannot make a little smaller.
        """
        run = _LaidOut(self._run, evidence.device)

        def outputs(rows: slice) -> Any:
            inputs = pick_images(evidence.inputs, image_index[rows], evidence.images)
            return run(with_pictures(inputs, run.laid_out(perturb(picture_batch(inputs), rows))))

        floating(picture_batch(evidence.inputs))
        return self.scores_of(evidence, image_index, outputs)

    def scores_of(self, evidence: Evidence, image_index: Tensor, outputs: Callable[[slice], Any]) -> Tensor:
        """Return the scores, (rows,) or (rows, K), of outputs that are computed for a slice of rows at a time."""

        def work(rows: slice) -> Tensor:
            with callers_precision():
                return targets.score(evidence.target, outputs(rows), image_index[rows])

        scores = in_chunks(
            work, len(image_index), self.chunk_size, evidence.device, progress=self.progress, what=self.name
        )
        check_finite({"score of a perturbed image": [scores]})
        return single_or_double(scores)


class MaskMethod(PerturbationMethod, PictureMethod):
    """A method that lays the same masks over every image."""

    def scores_under(self, evidence: Evidence, masks: Masks, under: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Return the scores (N, M) of each class; ``under`` makes pictures of pictures and masks (rows, 1, ...)."""
        count = len(masks)
        image = evidence.image_index.repeat_interleave(count)
        mask = torch.arange(count, device=image.device).repeat(evidence.images)

        def perturb(pictures: Tensor, rows: slice) -> Tensor:
            return under(pictures, masks[mask[rows]][:, None])

        scores = self.scores_of_pictures(evidence, image, perturb)
        scores = scores.reshape(evidence.images, count, *scores.shape[1:])
        return list(scores.unbind(2)) if scores.dim() == 3 else [scores]


def mean_under(masks: Masks, values: Tensor) -> Tensor:
    """Return the mean (N, ...) at each pixel of values (N, M), weighted by the masks there."""
    total = covered = torch.zeros((), dtype=values.dtype, device=values.device)
    for start in range(0, len(masks), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        weights = masks[some].to(values)
        total = total + torch.tensordot(values[:, some], weights, 1)
        covered = covered + weights.sum(0)
    return divided(total, covered)


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
