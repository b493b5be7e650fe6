"""What a network thinks of pictures: the score by which heatmaps are judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibValueError
from camlib.imaging.normalization import as_maps
from camlib.inputs import Outputs
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network
from camlib.passes.numbers import check_finite, single_or_double
from camlib.passes.perturbed import PerturbedPasses


class Scorer:
    """A network's score of each image of a batch: of the images as they are, and of changed ones.

    Whatever was explained, heatmaps are judged by one quantity: by default the probability of the class, softmax or
    for a binary network sigmoid. The model runs in eval mode and is left as it was found.

    ``N`` forward passes of an image when it is made, none if ``outputs`` are given; and one for each row asked for.

    Args:
        model: as for :class:`camlib.methods.Method`.
        inputs: what the model takes, N images.
        target: the class whose score is looked at: None for the one that the model predicts for each image, an int or
            one int per image. A callable of the outputs or a :class:`camlib.targets.Target` is scored as it is.
        score: from classes to the target that is scored, such as :class:`camlib.targets.Classes` for logits; by default
            :class:`camlib.targets.Confidence`, the probability.
        forward: as for :class:`camlib.methods.Method`.
        chunk_size: :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        outputs: what the model returned for the inputs, where that is known.

    Raises:
        CamlibTypeError: the inputs hold no pictures of floats, or the target cannot be understood.
        CamlibValueError: the same, there are several classes for each image, or outputs of other images.
        CamlibRuntimeError: a score is not finite.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import Scorer
        >>> scorer = Scorer(torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64), target=1)
        >>> scorer.clean.shape, scorer.scores(torch.tensor([0, 0, 1]), lambda pictures, rows: 0 * pictures).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any = None,
        *,
        score: Callable[[Any], targets.Target] = targets.Confidence,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        outputs: Any = None,
    ) -> None:
        network = Network.of(model, forward)
        self.model = network.module
        ready = network.ready(inputs)
        self.inputs = ready.raw
        """What the model takes."""
        self.pictures = ready.floats
        """(N, C, ...), as the model gets them."""
        named = isinstance(target, targets.Target) or (callable(target) and not isinstance(target, type))
        with undisturbed(self.model):
            known = Outputs(network.run(ready) if outputs is None else outputs)
            if (rows := known.rows) not in (None, len(self.pictures)):
                raise CamlibValueError(
                    f"the outputs are of {rows} images, and the inputs of {len(self.pictures)}; a metric needs a row "
                    "of outputs for each image"
                )
            bound = targets.bind(target if named else score(target), known.raw)
            index = torch.arange(len(self.pictures), device=known.device if known.tensors else self.pictures.device)
            clean = single_or_double(targets.score(bound, known.raw, index))
        if clean.dim() != 1:
            raise CamlibValueError(
                f"a metric judges one heatmap of each image, and the target names {clean.shape[1]} classes of each; "
                "judge one at a time: heatmaps[:, k] with target[:, k]"
            )
        check_finite({"score": [clean]})
        self.clean = clean
        """(N,), the scores of the images as they are."""
        self._trials = PerturbedPasses(
            network=network,
            inputs=ready,
            count=len(self.pictures),
            target=bound,
            device=clean.device,
            chunks=Chunks(chunk_size, progress),
            what="score",
        )

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the pictures; (L,) of signals, (T, H, W) of volumes and videos."""
        return tuple(self.pictures.shape[2:])

    @property
    def image_index(self) -> Tensor:
        """(N,), the number of each image."""
        return torch.arange(len(self.pictures), device=self.pictures.device)

    def scores(self, image_index: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return the scores (rows,) of changed pictures, which run in chunks; a forward pass of an image for each row.

        Args:
            image_index: (rows,), the image that each row is made of.
            change: from the pictures (r, C, ...) of a slice of rows, and that slice, to other pictures. What it makes
                of a row must not depend on the chunk.
        """
        with undisturbed(self.model):
            return self._trials.of_images(image_index.to(self._trials.device), change)


class Trial:
    """Heatmaps on trial before a :class:`Scorer`: what several metrics ask is computed once.

    Args:
        scorer: of the images.
        heatmaps: (N, H, W), a tensor or an array, at the inputs' resolution.

    Raises:
        CamlibTypeError: heatmaps are no tensor or array of real numbers.
        CamlibValueError: heatmaps of another shape, or not finite.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import Scorer, Trial
        >>> scorer = Scorer(torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64), target=1)
        >>> Trial(scorer, torch.rand(2, 64, 64)).masked.shape
        torch.Size([2])
    """

    def __init__(self, scorer: Scorer, heatmaps: Any) -> None:
        self.scorer = scorer
        self.heatmaps = checked_heatmaps(heatmaps, len(scorer.pictures), scorer.size).to(scorer.pictures.device)
        """(N, H, W)."""

    @cached_property
    def masked(self) -> Tensor:
        """(N,), the scores of the pictures multiplied by their heatmaps.

        Raises:
            CamlibValueError: the heatmaps are not in [0, 1].
        """
        masks = in_unit_range(self.heatmaps)[:, None].to(self.scorer.pictures.dtype)
        return self.scorer.scores(self.scorer.image_index, lambda pictures, rows: pictures * masks[rows])


def checked_heatmaps(heatmaps: Any, images: int | None = None, size: tuple[int, ...] | None = None) -> Tensor:
    """Return heatmaps (N, ...) as a tensor of floats, checked.

    Args:
        heatmaps: a tensor or an array.
        images: N, where it is known.
        size: of the pictures, where it is known; else heatmaps of one to three axes will do.

    Raises:
        CamlibTypeError: no tensor or array of real numbers.
        CamlibValueError: another shape, or not finite.
    """
    maps = as_maps(heatmaps, "heatmaps", dims=1).detach()
    wanted = ("N" if images is None else images, *(size or ("H", "W")))
    shape = f"({', '.join(map(str, wanted))})"
    fits = maps.dim() in (2, 3, 4) if size is None else tuple(maps.shape[1:]) == size
    if not fits or (images is not None and len(maps) != images):
        of_classes = size is not None and maps.dim() == 2 + len(size) and tuple(maps.shape[2:]) == size
        mend = (
            "judge one class at a time: heatmaps[:, k] with target[:, k]"
            if of_classes
            else "explanation.heatmaps() has the input's resolution, and camlib.resize(maps, size) gives any other"
        )
        raise CamlibValueError(f"heatmaps have shape {tuple(maps.shape)}; they must be {shape}: {mend}")
    return maps


def in_unit_range(heatmaps: Tensor) -> Tensor:
    """Return the heatmaps.

    Raises:
        CamlibValueError: they are not in [0, 1].
    """
    low, high = heatmaps.aminmax()
    if low < 0 or high > 1:
        raise CamlibValueError(
            f"heatmaps are in [{float(low):.3g}, {float(high):.3g}]; they must be in [0, 1]: "
            "camlib.normalize(heatmaps) brings them there"
        )
    return heatmaps
