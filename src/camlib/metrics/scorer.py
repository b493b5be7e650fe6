"""The network's score of each image, by which metrics evaluate heatmaps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs
from camlib.inputs.links import noted
from camlib.inputs.outputs import CLASSES
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network
from camlib.passes.numbers import not_finite, single_or_double
from camlib.passes.perturbed import PerturbedPasses


class Scorer:
    """A network's score of each image of a batch: of the images as they are, and of perturbed ones.

    Heatmaps are evaluated by one quantity, whatever was explained: by default the probability of the class (softmax, or
    sigmoid for a binary network). The model runs in eval mode; its state is restored afterwards.

    Building it takes ``N`` forward passes of an image, or none if ``outputs`` are given; scoring takes one per row.

    Args:
        model: as for :class:`camlib.methods.Method`.
        inputs: what the model takes, N images.
        target: the class that is scored: None for the one that the model predicts for each image, an int or one int
            per image. A callable of the outputs or a :class:`camlib.targets.Target` is scored as it is.
        score: from classes to the target that is scored, such as :class:`camlib.targets.Classes` for logits; by default
            :class:`camlib.targets.Confidence`, the probability.
        link: the function from logits to the probability, as for :class:`camlib.targets.Confidence`: "sigmoid" for a
            network with several labels, each with a probability of its own. By default it is established from the
            outputs; those of a network that ends in a softmax or a sigmoid are taken as they are.
        forward: as for :class:`camlib.methods.Method`.
        chunk_size: :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        outputs: what the model returned for the inputs, if known. The model runs all the same if they do not show
            whether they are probabilities.

    Raises:
        CamlibTypeError: the inputs hold no images of floats, or the target is not understood.
        CamlibValueError: the target cannot work or names several classes per image, or ``outputs`` has another number
            of rows.
        CamlibRuntimeError: no score is finite. An image alone whose score is not finite has values of NaN.

    Example:
        >>> import torch, torchvision
        >>> from camlib.metrics import Scorer
        >>> scorer = Scorer(torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64), target=1)
        >>> scorer.clean.shape, scorer.scores(torch.tensor([0, 0, 1]), lambda images, rows: 0 * images).shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any = None,
        *,
        score: Callable[[Any], targets.Target] = targets.Confidence,
        link: targets.Link = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        outputs: Any = None,
    ) -> None:
        if not callable(score):
            raise CamlibTypeError(f"score must be a class or function from classes to a target, got {score!r}")
        network = Network.of(model, forward)
        self.model = network.module
        ready = network.ready(inputs)
        self.inputs = ready
        """The inputs, parsed."""
        self.images = ready.floats
        """(N, C, ...), as the model gets them; zeros in place of an image whose score is not finite."""
        if outputs is not None and any(tensor.is_meta for tensor in Outputs(outputs).tensors):
            raise CamlibValueError("outputs on the meta device have no values; omit outputs= to run the model")
        is_target = isinstance(target, targets.Target) or (callable(target) and not isinstance(target, type))
        if link is not None:
            if is_target or score is not targets.Confidence:
                raise CamlibValueError(
                    f"link={link!r} is for the probability of a class, and another score is given; leave out link="
                )
            score = functools.partial(targets.Confidence, link=link)
        with undisturbed(self.model):
            known = Outputs(network.scored(ready) if outputs is None or _may_be_chances(outputs) else outputs)
            if (rows := known.rows) not in (None, len(self.images)):
                raise CamlibValueError(
                    f"the outputs have {rows} rows for {len(self.images)} images; a metric needs one row for each image"
                )
            bound = targets.bind(target if is_target else score(target), known.raw)
            index = torch.arange(len(self.images), device=known.device if known.tensors else self.images.device)
            clean = single_or_double(targets.score(bound, known.raw, index))
        if clean.dim() != 1:
            raise CamlibValueError(
                f"a metric evaluates one heatmap of each image, and the target names {clean.shape[1]} classes of each; "
                "evaluate one at a time: heatmaps[:, k] with target[:, k]"
            )
        self.known = clean.isfinite()
        """(N,), whether all scores of an image have been finite so far; the values of other images are NaN."""
        if not bool(self.known.any()):
            raise not_finite("score", self.known)
        if not bool(self.known.all()):
            usable = self.known.to(self.images.device).reshape(-1, *[1] * (self.images.dim() - 1))
            self.images = self.images.where(usable, 0)
            ready = ready.with_images(self.images)
        self.clean = clean
        """(N,), the scores of the images as they are; NaN or infinity where they are not finite."""
        self.is_probability = not is_target and (link is not None or score is targets.Confidence)
        """Whether the score is the probability of a class."""
        self._passes = _Passes(
            network=network,
            inputs=ready,
            count=len(self.images),
            target=bound,
            device=clean.device,
            chunks=Chunks(chunk_size, progress),
            what="score",
        )

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the images; (L,) of signals, (T, H, W) of volumes and videos."""
        return tuple(self.images.shape[2:])

    @property
    def image_index(self) -> Tensor:
        """(N,), the number of each image."""
        return torch.arange(len(self.images), device=self.images.device)

    def scores(self, image_index: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Return the scores (rows,) of perturbed images, which run in chunks; one forward pass of an image per row.

        Args:
            image_index: (rows,), the image that each row is made from.
            change: from the images (r, C, ...) of a slice of rows, and that slice, to perturbed images. What it makes
                of a row must not depend on the chunk.

        Raises:
            CamlibRuntimeError: every image has a score that is not finite.
        """
        index = image_index.to(self._passes.device)
        with undisturbed(self.model):
            found = self._passes.of_images(index, change)
        if not bool(found.sum().isfinite()) and not bool((finite := found.isfinite()).all()):
            self.known[index[~finite]] = False
            if not bool(self.known.any()):
                raise not_finite("score of a perturbed image", self.known)
            found = found.where(finite, 0)
        return found

    def scores_of_variants(self, count: int, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Return the scores (N, count) of perturbed versions of each image.

        Args:
            count: how many versions of each image.
            change: from the images (r, C, ...) of some rows, the number (r,) of each row's image and that (r,) of its
                version, to perturbed images.
        """
        image = self.image_index.repeat_interleave(count)
        version = torch.arange(count, device=image.device).repeat(len(self.images))
        scores = self.scores(image, lambda images, rows: change(images, image[rows], version[rows]))
        return scores.reshape(len(self.images), count)


class _Passes(PerturbedPasses):
    """Passes whose scores the scorer checks itself, image by image."""

    def check(self, scores: Tensor, image_index: Tensor) -> None:
        """Accept all scores."""


def _may_be_chances(outputs: Any) -> bool:
    """Whether outputs without a note lie in [0, 1], so that they may be probabilities or logits."""
    found = Outputs(outputs).named(CLASSES)
    if found is None or noted(found) is not None or not found.is_floating_point() or not found.numel():
        return False
    low, high = found.aminmax()
    return bool((low >= 0) & (high <= 1))
