"""What every target is: a score of outputs, bound once to the clean ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs


class Target(ABC):
    """What is explained. It scores nothing until it is bound to the outputs of the images as they are.

    Binding fixes everything that the target takes from those outputs: predicted classes, a region, a box. What
    perturbed images are scored by then no longer depends on the perturbation. A target is never changed: it can be
    bound to other outputs, and in several threads at once.
    """

    spatial: ClassVar[bool] = False
    """Whether the score depends on places in the image, so that it must move with them."""

    @abstractmethod
    def bind(self, outputs: Any) -> BoundTarget:
        """Return the target bound to the model's outputs for N images.

        Raises:
            CamlibTypeError, CamlibValueError: the target does not fit the outputs.
        """


class BoundTarget(Target):
    """A score that knows which image each row of the outputs comes from.

    Perturbation methods run an image many times, so the outputs have more rows than there were images. A target that
    takes nothing from the outputs is a subclass of this; it needs no binding.

    Example:
        >>> import camlib, torch
        >>> class Margin(camlib.targets.BoundTarget):
        ...     def scores(self, outputs, image_index):
        ...         best = outputs.topk(2).values
        ...         return best[:, 0] - best[:, 1]
        >>> camlib.targets.score(Margin(), torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0]))
        tensor([3.])
    """

    explained: Tensor | str
    """What :attr:`camlib.Explanation.target` shows: class indices (N,) or (N, K), or a name; the class's by default."""
    images: int | None = None
    """N, the number of images that it is bound to; None if it fits any number."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "explained" not in vars(cls):
            cls.explained = cls.__name__

    @abstractmethod
    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores to explain.

        Args:
            outputs: what the model returned.
            image_index: (rows,) the image that each row comes from.

        Returns:
            (rows,), or (rows, K) for K maps of each image.
        """

    def bind(self, outputs: Any) -> Self:
        """Return the target itself, which is bound.

        Raises:
            CamlibValueError: it is bound to another number of images.
        """
        if self.images is not None and (rows := Outputs(outputs).rows) != self.images:
            raise CamlibValueError(
                f"{type(self).__name__} is bound to {self.images} images, and the outputs are of {rows}; give the "
                "target itself instead of the bound one"
            )
        return self

    def mirrored(self, width: int) -> Self:
        """Return the target for the same images, ``width`` pixels wide, mirrored left to right.

        Raises:
            CamlibTypeError: it is :attr:`spatial`, and does not say how it moves.
        """
        if self.spatial:
            raise CamlibTypeError(
                f"{type(self).__name__} depends on places but does not say how they are mirrored; give it a "
                "mirrored(width) method, or explain without mirroring"
            )
        return self


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

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self._function = function
        self.explained = getattr(function, "__name__", type(function).__name__)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the function's value."""
        return self._function(outputs)


def score(target: BoundTarget, outputs: Any, image_index: Tensor) -> Tensor:
    """Return the target's scores, checked: a floating-point tensor (rows,) or (rows, K).

    Args:
        target: what :func:`bind` returned.
        outputs: what the model returned.
        image_index: (rows,) the image that each row comes from.

    Raises:
        CamlibTypeError: the target returned something else.
        CamlibValueError: not one score for each row.
    """
    scores = target.scores(outputs, image_index)
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
