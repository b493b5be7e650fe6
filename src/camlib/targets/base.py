"""What every target is: scores of outputs, settled once on the clean ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError
from camlib.inputs.outputs import row_count

T = TypeVar("T")
_SETTLED_ON = "_settled_on"
"""Where a settled target keeps the number of images."""


class Target(ABC):
    """A score that knows which image each row of the outputs came from.

    Perturbation methods run an image many times, so that the outputs have more rows than there were images.

    Example:
        >>> import camlib, torch
        >>> class Margin(camlib.targets.Target):
        ...     def scores(self, outputs, image_index):
        ...         best = outputs.topk(2).values
        ...         return best[:, 0] - best[:, 1]
        >>> target = camlib.targets.resolve(Margin(), torch.tensor([[1.0, 5.0, 2.0]]))
        >>> camlib.targets.score(target, torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([0]))
        tensor([3.])
    """

    spatial: ClassVar[bool] = False
    """Whether the score speaks of places in the picture, so that it must move with them."""

    @abstractmethod
    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores to explain.

        Args:
            outputs: what the model returned.
            image_index: (rows,) the image that each row came from.

        Returns:
            (rows,), or (rows, K) for K maps of each image.
        """

    def fixed(self, outputs: Any) -> Target:
        """Return the target with what it takes from the clean outputs settled: predicted classes, a region, a box.

        Methods call it once, on the outputs for the N images as they are; what perturbed images are scored by then
        no longer depends on the perturbation. Returns ``self`` where there is nothing to settle.
        """
        return self

    def mirrored(self, width: int) -> Target:
        """Return the target, once settled, for the same pictures of ``width`` pixels mirrored left to right.

        Raises:
            CamlibTypeError: it is :attr:`spatial`, and does not say how it moves.
        """
        if self.spatial:
            raise CamlibTypeError(
                f"{type(self).__name__} speaks of places but not of how they are mirrored; give it a mirrored(width) "
                "method, or explain without mirroring"
            )
        return self

    @property
    def resolved(self) -> Tensor | str:
        """What :attr:`camlib.Explanation.target` shows, class indices (N,) or (N, K), or a name."""
        return type(self).__name__


class Score(Target):
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

    @property
    def resolved(self) -> str:
        """The function's name."""
        return getattr(self._function, "__name__", type(self._function).__name__)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the function's value."""
        return self._function(outputs)


def score(target: Target, outputs: Any, image_index: Tensor) -> Tensor:
    """Return the target's scores, checked: a floating tensor (rows,) or (rows, K).

    Args:
        target: what :func:`resolve` returned.
        outputs: what the model returned.
        image_index: (rows,) the image that each row came from.

    Raises:
        CamlibTypeError: the target returned something else.
        CamlibValueError: not one score for each row.
    """
    scores = target.scores(outputs, image_index)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        what = f"a {scores.dtype} tensor" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise CamlibTypeError(f"target {target.resolved!r} returned {what}; it must return floating-point scores")
    rows = image_index.shape[0]
    if scores.dim() not in (1, 2) or scores.shape[0] != rows or not scores.numel():
        raise CamlibValueError(
            f"target {target.resolved!r} returned shape {tuple(scores.shape)} for {rows} rows; it must return "
            f"one score for each, ({rows},), or K, ({rows}, K)"
        )
    return scores


def settle(target: Target, outputs: Any) -> Target:
    """Return :meth:`Target.fixed` of the outputs; a target that has been settled so already, as it is.

    Raises:
        CamlibValueError: it was settled on another number of images.
    """
    rows, before = row_count(outputs), getattr(target, _SETTLED_ON, None)
    if before is not None:
        if rows != before:
            raise CamlibValueError(
                f"{type(target).__name__} was settled on {before} images, and the outputs are of {rows}; make the "
                "target anew for other images"
            )
        return target
    fixed = target.fixed(outputs)
    if fixed is not target:
        object.__setattr__(fixed, _SETTLED_ON, rows)  # frozen dataclasses, too
    return fixed


def settled(value: T | None, target: Target) -> T:
    """Return what :meth:`Target.fixed` has settled.

    Raises:
        CamlibRuntimeError: nothing has been settled yet.
    """
    if value is None:
        raise CamlibRuntimeError(
            f"{type(target).__name__} depends on the clean outputs; give it to a method, or settle it by "
            "camlib.targets.resolve(target, outputs) before asking for scores"
        )
    return value


def check_same_images(target: Target, images: Tensor, rows: int) -> None:
    """Raise CamlibValueError if a target was settled on another number of images than it is to explain now."""
    if len(images) != rows:
        raise CamlibValueError(
            f"{type(target).__name__} was settled on {len(images)} images, and the outputs are of {rows}; make the "
            "target anew for other images"
        )


def image_list(chosen: Tensor) -> str:
    """Name the images where (N,) or (N, ...) ``chosen`` is true."""
    images = chosen.reshape(len(chosen), -1).any(1).nonzero().flatten().tolist()
    return f"image {images[0]}" if len(images) == 1 else f"images {', '.join(map(str, images))}"
