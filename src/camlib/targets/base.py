"""What a target is, and the step that binds it to the outputs of the clean images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs


class Target(ABC):
    """What to explain, before the outputs are known.

    Each call binds the target to the outputs of the clean images, once. What depends on these outputs (the predicted
    classes, a region, a box) is chosen then, so that it is the same for perturbed images. Binding does not change the
    target: one object can be used in any number of calls and threads.

    Example:
        >>> import camlib, torch, torchvision
        >>> class LeastLikely(camlib.targets.Target):
        ...     def bind(self, outputs):
        ...         return camlib.targets.bind(outputs.argmin(1), outputs)
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64), LeastLikely()).maps.shape
        torch.Size([2, 2, 2])
    """

    quantity: str = "score"
    """What kind of score it is, such as "logit", shown as :attr:`camlib.Explanation.quantity`."""

    @abstractmethod
    def bind(self, outputs: Any) -> BoundTarget:
        """Return the score to explain, for the N images that these are the outputs of.

        Args:
            outputs: what the model returned for the clean images.
        """


class BoundTarget(Target):
    """A score of outputs: what a target becomes when it is bound, and the only thing that scores.

    Perturbation methods run each image many times, so that the outputs can have more rows than there are images;
    ``image_index`` says which image each row came from. A bound target is also a target: binding it again only checks
    the number of images. For a custom score that needs nothing from the clean outputs, write a subclass with
    :meth:`scores`, and with ``explained`` and ``images`` where the defaults do not fit.

    Example:
        >>> import camlib, torch
        >>> class Margin(camlib.targets.BoundTarget):
        ...     def scores(self, outputs, image_index):
        ...         best = outputs.topk(2).values
        ...         return best[:, 0] - best[:, 1]
        >>> camlib.targets.score(Margin(), torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0]))
        tensor([3.])
    """

    spatial: bool = False
    """Whether the score depends on places in the image, so that it must be mirrored with the image."""

    @abstractmethod
    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores to explain.

        Args:
            outputs: what the model returned.
            image_index: (rows,) the image that each row came from.

        Returns:
            (rows,), or (rows, K) for K maps of each image.
        """

    @property
    def explained(self) -> Tensor | str:
        """What :attr:`camlib.Explanation.target` shows: class indices (N,) or (N, K), or a name."""
        return type(self).__name__

    @property
    def images(self) -> int | None:
        """The number N of images that the target is bound to; None if it is the same for any images."""
        return None

    def warn_if_flat(self) -> None:
        """Warn if the score has next to no gradient at the clean outputs; called where gradients are needed.

        By default there is no warning.
        """

    def bind(self, outputs: Any) -> Self:
        """Return the target itself.

        Raises:
            CamlibValueError: it is bound to another number of images.
        """
        rows = Outputs(outputs).rows
        if self.images is not None and rows != self.images:
            raise CamlibValueError(
                f"the target is bound to {self.images} images, and the outputs are of {rows}; bind it to these "
                "outputs, or pass a target that is not bound"
            )
        return self

    def pick(self, index: Tensor) -> BoundTarget:
        """Return the target for a selection of its images, which may repeat; they are numbered from 0 again.

        Args:
            index: (rows,), the number of each selected image.

        Example:
            >>> import camlib, torch
            >>> target = camlib.targets.BoundLogits(torch.tensor([4, 5, 6])).pick(torch.tensor([0, 2]))
            >>> target.explained, target.images
            (tensor([4, 6]), 2)
        """
        return Picked(self, index)

    def mirrored(self, width: int) -> BoundTarget:
        """Return the target for the same images, ``width`` pixels wide, mirrored left to right.

        Raises:
            CamlibTypeError: it is ``spatial``, and does not define how it is mirrored.
        """
        if self.spatial:
            raise CamlibTypeError(
                f"{type(self).__name__} is spatial but does not define how it is mirrored; give it a mirrored(width) "
                "method, or explain without mirroring"
            )
        return self


class Picked(BoundTarget):
    """A target for a selection of the images that another one is bound to; an image may be selected repeatedly.

    Args:
        target: bound to all images.
        index: (rows,), the number of each selected image.
    """

    def __init__(self, target: BoundTarget, index: Tensor) -> None:
        self._target = target
        self._index = index
        self.quantity = target.quantity
        self.spatial = target.spatial

    @property
    def explained(self) -> Tensor | str:
        """What the target shows for these images."""
        explained = self._target.explained
        return explained[self._index.to(explained.device)] if isinstance(explained, Tensor) else explained

    @property
    def images(self) -> int:
        """The number of these images."""
        return len(self._index)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the target's scores."""
        return self._target.scores(outputs, self._index.to(image_index.device)[image_index])

    def mirrored(self, width: int) -> Picked:
        """Return the mirrored target for these images."""
        return Picked(self._target.mirrored(width), self._index)


@dataclass(frozen=True, eq=False)
class BoundOfClasses(BoundTarget):
    """A score of classes of each image.

    Args:
        classes: (N,) or (N, K) class indices.
    """

    classes: Tensor

    @property
    def explained(self) -> Tensor:
        """The class indices."""
        return self.classes

    @property
    def images(self) -> int:
        """N."""
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class Score(BoundTarget):
    """Any function of the outputs that returns one number for each row: what a callable target becomes.

    Args:
        function: ``outputs -> (rows,)``, or (rows, K) for K maps of each image.

    Example:
        >>> import camlib, torch, torchvision
        >>> def margin(outputs):
        ...     return outputs[:, 2] - outputs[:, 0]
        >>> camlib.GradCAM(torchvision.models.resnet18(num_classes=4))(torch.rand(2, 3, 64, 64), margin).target
        'margin'
    """

    function: Callable[[Any], Tensor]

    @property
    def explained(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the function's value.

        Raises:
            CamlibTypeError: it is a module, and fails at the outputs.
        """
        if not isinstance(self.function, nn.Module):
            return self.function(outputs)
        try:
            scores: Tensor = self.function(outputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise CamlibTypeError(
                f"the target is a module, {self.explained}, which fails at the model's outputs: {error}; a target is a "
                "function from the outputs to scores (N,), or a class; the call is cam(images, target)"
            ) from error
        return scores


def score(target: BoundTarget, outputs: Any, image_index: Tensor) -> Tensor:
    """Return the target's scores, checked: a floating tensor (rows,) or (rows, K).

    Args:
        target: what :func:`camlib.targets.bind` returned.
        outputs: what the model returned.
        image_index: (rows,) the image that each row came from.

    Raises:
        CamlibTypeError: the target is not bound, or it returned something else.
        CamlibValueError: not one score for each row.
    """
    if not isinstance(target, BoundTarget):
        raise CamlibTypeError(
            f"{type(target).__name__} is not bound to outputs; score camlib.targets.bind(target, outputs), with the "
            "outputs of the clean images"
        )
    if not isinstance(image_index, Tensor) or image_index.dim() != 1:
        given = tuple(image_index.shape) if isinstance(image_index, Tensor) else type(image_index).__name__
        raise CamlibTypeError(f"image_index must be a tensor (rows,), got {given}")
    if image_index.dtype is not torch.long:
        raise CamlibTypeError(f"image_index must be of dtype torch.long, got {image_index.dtype}")
    try:
        scores = target.scores(outputs, image_index)
    except IndexError as error:
        if target.images is None or not _outside(image_index, target.images):
            raise
        raise CamlibValueError(
            f"image_index must be from 0 to {target.images - 1}, the images that the target is bound to, got "
            f"{image_index.tolist()}"
        ) from error
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        what = f"a {scores.dtype} tensor" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise CamlibTypeError(f"target {target.explained!r} returned {what}; it must return floating-point scores")
    rows = image_index.shape[0]
    if scores.dim() not in (1, 2) or scores.shape[0] != rows or not scores.numel():
        raise CamlibValueError(
            f"target {target.explained!r} returned shape {tuple(scores.shape)} for {rows} rows; it must return "
            f"one score for each, ({rows},), or K, ({rows}, K)"
        )
    return scores


def image_list(chosen: Tensor) -> str:
    """Name the images where (N,) or (N, ...) ``chosen`` is true."""
    images = chosen.reshape(len(chosen), -1).any(1).nonzero().flatten().tolist()
    return f"image {images[0]}" if len(images) == 1 else f"images {', '.join(map(str, images))}"


def _outside(index: Tensor, count: int) -> bool:
    """Whether an index is not from 0 to ``count - 1``."""
    return bool(((index < 0) | (index >= count)).any())
