"""What methods share that run the network on perturbed images, or its tail on perturbed features, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.methods.arithmetic import divided
from camlib.methods.base import Layer, PassMethod, PictureMethod
from camlib.methods.masks import Masks
from camlib.passes.chunks import ChunkSize, checked_chunk_size
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.perturbed import Trials

MASKS_AT_ONCE = 64
"""Masks that are laid over one another at a time, of the many that a map is the mean of."""


class PerturbationMethod(PassMethod):
    """A method that asks how the score changes when something is taken away. It needs no gradients.

    What is perturbed are rows: pairs of an image and a mask, or of an image and a channel. A batch holds rows of
    several images as it comes.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        chunk_size: how many rows run at a time. "auto" measures the first row and takes as many as fit into 96 MiB of
            tensors, on a GPU into 2 GiB or half of its free memory; it halves when memory runs out all the same.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibValueError: ``chunk_size`` is neither a positive int nor "auto".

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.methods import PerturbationMethod, PictureMethod
        >>> class Halves(PerturbationMethod, PictureMethod):  # what each half shows without the other
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
        self, evidence: ForwardPass, image_index: Tensor, perturb: Callable[[Tensor, slice], Tensor]
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
        return self._trials(evidence).of_pictures(image_index, perturb)

    def scores_of(self, evidence: ForwardPass, image_index: Tensor, outputs: Callable[[slice], Any]) -> Tensor:
        """Return the scores, (rows,) or (rows, K), of outputs that are computed for a slice of rows at a time."""
        return self._trials(evidence).of_outputs(image_index, outputs)

    def _trials(self, evidence: ForwardPass) -> Trials:
        return Trials(
            run=self._run,
            inputs=evidence.inputs,
            images=evidence.images,
            target=evidence.target,
            device=evidence.device,
            chunk_size=self.chunk_size,
            progress=self.progress,
            what=self.name,
        )


class MaskMethod(PerturbationMethod, PictureMethod):
    """A method that lays the same masks over every image."""

    def scores_under(
        self, evidence: ForwardPass, masks: Masks, under: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
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
