"""What is explained: the score, one for each row of the outputs, whose gradient or change a method measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError


class Target(ABC):
    """A score that knows which image each row of the outputs came from.

    Perturbation methods run an image many times, so that the outputs have more rows than there were images.
    """

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
    def resolved(self) -> Tensor | str:
        """What :attr:`camlib.Explanation.target` shows, class indices (N,) or (N, K), or a name."""
        return type(self).__name__


@dataclass(frozen=True)
class TopK:
    """The ``k`` classes with the highest outputs, the highest first: maps (N, k, h, w) from one forward pass.

    Args:
        k: how many classes, at least 1.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=10).eval())
        >>> cam(torch.rand(2, 3, 64, 64), camlib.TopK(3)).maps.shape
        torch.Size([2, 3, 2, 2])
    """

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int):
            raise CamlibTypeError(f"TopK(k) needs an int, got {type(self.k).__name__}: {self.k!r}")
        if self.k < 1:
            raise CamlibValueError(f"TopK(k) needs k >= 1, got {self.k}")


class Classes(Target):
    """The outputs of given classes; of a binary network, the logit for class 1 and minus the logit for class 0.

    Args:
        indices: (N,) or (N, K), class indices for each image, checked against the outputs when scored.
    """

    def __init__(self, indices: Tensor) -> None:
        self._indices = indices

    @property
    def resolved(self) -> Tensor:
        """The class indices."""
        return self._indices

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the chosen outputs, (rows,) or (rows, K)."""
        logits = two_class_logits(class_outputs(outputs))
        indices = self._indices[image_index]
        if indices.dim() == 1:
            return logits.gather(1, indices[:, None]).squeeze(1)
        return logits.gather(1, indices)


class Score(Target):
    """Any function of the outputs that returns one number for each row.

    Args:
        function: ``outputs -> (rows,)``, or (rows, K) for K maps of each image.
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


class Output(Target):
    """One output as it is, by its column: a regression's prediction, a label of a multi-label network.

    Unlike a class index, column 0 of a network with a single output means that output, not its negative.

    Args:
        index: the column of outputs (N, C); outputs (N,) have column 0 alone.

    Example:
        >>> import camlib, torch, torchvision
        >>> age = torchvision.models.resnet18(num_classes=1).eval()
        >>> camlib.GradCAM(age)(torch.rand(2, 3, 64, 64), camlib.targets.Output(0)).target
        'output 0'
    """

    def __init__(self, index: int = 0) -> None:
        column = _indices(index)
        if column.dim():
            raise CamlibTypeError(f"Output(index) takes one column, got {index!r}; give a callable target for several")
        self._index = int(column)

    @property
    def resolved(self) -> str:
        """The column's name."""
        return f"output {self._index}"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the column, (rows,)."""
        columns = class_outputs(outputs)
        _check_range(torch.tensor(self._index), columns.shape[1])
        return columns[:, self._index]


def resolve(target: Any, outputs: Any) -> Target:
    """Turn what the user gave into a target whose classes are fixed.

    Args:
        target: ``None`` for the predicted class of each image; an int; one int per image; (N, K) class indices;
            :class:`TopK`; a callable of the outputs; a :class:`Target`.
        outputs: the model's outputs for the N images.

    Raises:
        CamlibTypeError: bools, floats, or class indices for outputs that are not (N, C), (N, 1) or (N,).
        CamlibValueError: indices out of range, or not one for each image.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, type):
        raise CamlibTypeError(f"target is the class {target.__name__} itself; give an instance")
    if callable(target):
        return Score(target)
    logits = two_class_logits(class_outputs(outputs)).detach()
    rows, classes = logits.shape
    if target is None:
        return Classes(logits.argmax(1))
    if isinstance(target, TopK):
        if target.k > classes:
            raise CamlibValueError(f"TopK({target.k}) asks for more classes than the outputs' {classes}")
        return Classes(logits.topk(target.k, dim=1).indices)
    indices = _indices(target).to(logits.device)
    _check_range(indices, classes)
    if indices.dim() == 0:
        indices = indices.expand(rows)
    elif indices.shape[0] != rows or indices.dim() > 2 or not indices.numel():
        raise CamlibValueError(
            f"target has shape {tuple(indices.shape)} for {rows} images; give one class (an int), one per image "
            f"({rows},), or several per image ({rows}, K)"
        )
    return Classes(indices)


def score(target: Target, outputs: Any, image_index: Tensor) -> Tensor:
    """Return the target's scores, checked: a floating tensor (rows,) or (rows, K).

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


def class_outputs(outputs: Any) -> Tensor:
    """Return outputs that have classes as (N, C); (N,) becomes (N, 1).

    Raises:
        CamlibTypeError: outputs of another kind, with the mend.
    """
    if not isinstance(outputs, Tensor):
        keys = f" with keys {sorted(outputs)}" if isinstance(outputs, dict) else ""
        raise CamlibTypeError(
            f"the model returns a {type(outputs).__name__}{keys}, which has no class scores; pass "
            "forward=lambda model, inputs: ... to pick the tensor of logits, or a callable target"
        )
    if outputs.dim() == 1:
        return outputs[:, None]
    if outputs.dim() != 2:
        raise CamlibTypeError(
            f"the model returns shape {tuple(outputs.shape)}; class targets need (N, C). Pass forward= to reduce "
            "it, or a callable target that returns one score for each image"
        )
    return outputs


def two_class_logits(outputs: Tensor) -> Tensor:
    """Return (N, C) as it is, and a binary network's (N, 1) as (-logit, +logit)."""
    return torch.cat([-outputs, outputs], dim=1) if outputs.shape[1] == 1 else outputs


def _indices(target: Any) -> Tensor:
    try:
        indices = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CamlibTypeError(
            f"target {target!r} is not understood; give None, an int, one int per image, (N, K) ints, "
            "camlib.TopK(k), a callable, or a camlib.targets.Target"
        ) from error
    if _holds_bool(target) or indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        kind = torch.bool if _holds_bool(target) else indices.dtype
        raise CamlibTypeError(
            f"target holds {kind} values ({target!r}); class indices are integers (for a mask or "
            "weights over the outputs, pass a callable)"
        )
    return indices.long()


def _holds_bool(target: Any) -> bool:
    """Whether a bool hides in nested sequences, where torch would make an integer of it."""
    return isinstance(target, bool) or (isinstance(target, (list, tuple)) and any(map(_holds_bool, target)))


def _check_range(indices: Tensor, classes: int) -> None:
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= classes):
        raise CamlibValueError(
            f"target has class index {int(indices.min()) if int(indices.min()) < 0 else int(indices.max())}, "
            f"but the outputs have classes 0 to {classes - 1}"
        )
