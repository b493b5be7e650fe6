"""Scores of classes: the logit, the probability, ReST, and the contrast with other classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, CamlibWarning, number, positive_int
from camlib.inputs import detections_in
from camlib.targets.base import BoundOfClasses, BoundTarget, Score, Target, image_list
from camlib.targets.detected import bind_detected
from camlib.targets.indices import (
    Link,
    TopK,
    check_link,
    class_indices,
    class_log_probabilities,
    class_logits,
    class_outputs,
    class_probabilities,
    has_lost_logits,
    integers,
    is_of_one_text,
    picked,
    two_class_logits,
    warn_if_doubtful,
)

SATURATED = 0.99
"""Above this probability, its gradient is less than a hundredth of the gradient of the log odds."""


Average = Literal["mean", "probability"]
"""How the logits of several other classes become one number."""
Table = Callable[[Any], Tensor]
"""From what the model returned to the scores of all classes (rows, C); (rows, 2) for a network with one output."""


@dataclass(frozen=True, eq=False)
class BoundClasses(BoundOfClasses):
    """A score of the classes of each image.

    Args:
        classes: (N,) or (N, K) indices.
        table: a :data:`Table`, the scores of all classes.
        quantity: what they are.
        chances: (N,) or (N, K), the probabilities on the clean outputs by which the score may be saturated, or None.
        remedy: what to do then, for the warning.
    """

    table: Table
    quantity: str = field(default="score", kw_only=True)
    chances: Tensor | None = field(default=None, kw_only=True)
    remedy: str = field(default="", kw_only=True)

    def warn_if_flat(self) -> None:
        """Warn if the probability of a class is saturated."""
        if self.chances is None or not bool((self.chances > SATURATED).any()):
            return
        most = self.chances.max()
        warnings.warn(
            f"the probability {float(most):.6g} of a class of {image_list(self.chances == most)} is saturated: its "
            f"gradient carries the factor p (1 - p) = {float(most * (1 - most)):.2g}, {self.remedy}",
            CamlibWarning,
            stacklevel=5,  # the caller of a method
        )

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores of the classes, (rows,) or (rows, K)."""
        return picked(self.table(outputs), self.classes[image_index])


class BoundLogits(BoundClasses):
    """The logits of the classes of each image.

    Args:
        classes: (N,) or (N, K) indices.
        chances: their probabilities (N,) or (N, K), if the outputs do not show the logits.
    """

    def __init__(self, classes: Tensor, chances: Tensor | None = None) -> None:
        remedy = (
            "and the model's outputs do not show the logits, whose gradient has no such factor; return the logits, by "
            "forward="
        )
        super().__init__(classes, all_logits, quantity=Classes.quantity, chances=chances, remedy=remedy)

    def pick(self, index: Tensor) -> BoundLogits:
        """Return the logits of the classes of some of the images."""
        return BoundLogits(self.classes[index.to(self.classes.device)])


def all_logits(outputs: Any) -> Tensor:
    """Return the logits of all classes (rows, C); for a single logit y, -y and y, unless it is that of a text."""
    logits = class_logits(outputs)
    return logits if is_of_one_text(outputs) else two_class_logits(logits)


@dataclass(frozen=True, eq=False)
class _OfClasses(Target):
    """A score of each class, taken at the classes of each image.

    Args:
        classes: None for the predicted class of each image; an int; one int per image (N,); (N, K) for K maps of
            each image; or :class:`camlib.TopK`. Checked against the outputs.
    """

    classes: Any = None

    def bind(self, outputs: Any) -> BoundTarget:
        """Return the score of the classes of each image.

        Raises:
            CamlibTypeError: bools, floats, or outputs that are not (N, C), (N, 1) or (N,).
            CamlibValueError: indices out of range, or not one for each image.
        """
        return BoundClasses(self._indices(outputs), self._table, quantity=self.quantity)

    def _indices(self, outputs: Any) -> Tensor:
        return class_indices(self.classes, all_logits(outputs).detach())

    def _table(self, outputs: Any) -> Tensor:
        """The scores of all classes: see :data:`Table`."""
        return all_logits(outputs)


class Classes(_OfClasses):
    """The logits y_c of given classes c: what a class index given as a target becomes.

    A binary network with the single logit y has two classes, y_1 = y and y_0 = -y. From outputs that are a mapping or
    a dataclass, "logits" or "out" is read. Of a network that ends in a softmax or a sigmoid, the logits are what this
    last function was given: see :func:`camlib.targets.class_logits`.

    Detections have no logit of a class. Their score of a class is the highest among the detections of that class in the
    image, as the detector reports it; 0 if a perturbed image has none. :class:`Box` reads the same outputs.

    Args:
        classes: None for the predicted class of each image; an int; one int per image (N,); (N, K) for K maps of
            each image; or :class:`camlib.TopK`. Checked against the outputs.

    Warns:
        CamlibWarning: one int, 0, for a network with a single output, since other libraries mean its only column by
            it; a probability whose logit is not known is above 0.99, and the method needs its gradient; or a single
            output lies in [0, 1], and the model does not show whether it is a probability.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64), camlib.targets.Classes([3, 1])).target
        tensor([3, 1])
    """

    quantity = "logit"

    def bind(self, outputs: Any) -> BoundTarget:
        """Return the logits of the classes of each image, or the best detections of these classes."""
        found = None if isinstance(outputs, Tensor) else detections_in(outputs)
        if found is not None:
            return bind_detected(self.classes, found)
        classes = self._indices(outputs)
        warn_if_doubtful(outputs)
        raw = class_outputs(outputs)
        if raw.shape[1] == 1 and _is_zero(self.classes) and not is_of_one_text(outputs):
            warnings.warn(
                "target 0 of a network with a single output y is the negative class, whose logit is -y; for y itself "
                "give 1 or camlib.targets.Output(0), and for -y without this warning "
                "camlib.targets.BinaryLogit(positive=False)",
                CamlibWarning,
                stacklevel=4,
            )
        lost = has_lost_logits(outputs)
        return BoundLogits(classes, picked(class_probabilities(outputs).detach(), classes) if lost else None)


@dataclass(frozen=True, eq=False)
class Confidence(_OfClasses):
    """The probability of a class, p_c = exp(y_c) / sum_j exp(y_j), or 1 / (1 + exp(-y_c)) where there is one logit.

    The score that :mod:`camlib.metrics` use, and RISE in its paper. The scores of detections are probabilities: of
    these, it is the highest of the class. Outputs of a network that ends in a softmax or a sigmoid are probabilities,
    too, and are taken as they are.

    Its gradient is p_c (1 - p_c) times that of the log odds: the factor is close to zero for confident predictions, and
    the logits of all classes contribute. For a method that needs gradients, prefer the logit, which a class given as
    the target means.

    Args:
        classes: as for :class:`Classes`.
        link: the function from logits to probabilities: "softmax"; "sigmoid" for a network with several labels, each
            with a probability of its own; "identity" for outputs that are probabilities; None to establish it from the
            outputs, as :func:`camlib.targets.class_probabilities` does.

    Raises:
        CamlibValueError: another link.

    Warns:
        CamlibWarning: when it is explained by a method that needs gradients, if a probability is above 0.99 on the
            clean outputs.

    Example:
        >>> import camlib, torch
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 99.0]])
        >>> target = camlib.targets.bind(camlib.targets.Confidence(1), logits)
        >>> camlib.targets.score(target, logits, torch.tensor([0, 1]))
        tensor([0.5000, 1.0000])
    """

    quantity = "probability"

    link: Link = None

    def __post_init__(self) -> None:
        check_link(self.link)

    def bind(self, outputs: Any) -> BoundTarget:
        """Return the probability of the classes of each image, or the best detections of these classes."""
        found = detections_in(outputs)
        if found is not None:
            return bind_detected(self.classes, found)
        if self.link is None:
            warn_if_doubtful(outputs)
        classes = self._indices(outputs)
        return BoundClasses(
            classes,
            self._table,
            quantity=self.quantity,
            chances=picked(self._table(outputs).detach(), classes),
            remedy="which makes maps faint and noisy; explain the logit instead, by giving the class itself as the "
            "target",
        )

    def _table(self, outputs: Any) -> Tensor:
        return class_probabilities(outputs, self.link)

    def _indices(self, outputs: Any) -> Tensor:
        return class_indices(self.classes, self._table(outputs).detach()) if self.link else super()._indices(outputs)


class Probability(Confidence):
    """:class:`Confidence` by the name of what it is, the probability of a class: the two are the same.

    Args:
        classes: as for :class:`Classes`.
        link: as for :class:`Confidence`.

    Raises:
        CamlibValueError: another link.

    Warns:
        CamlibWarning: as for :class:`Confidence`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> bool(cam(torch.rand(2, 3, 64, 64), camlib.targets.Probability(1)).scores.max() < 1)
        True
    """


def _is_zero(classes: Any) -> bool:
    """Whether the class of all images is given as the number 0."""
    return classes is not None and not isinstance(classes, TopK) and integers(classes).shape == () and not classes


class ReST(_OfClasses):
    """The residual softmax target score, y_c + log p_c, with p_c as for :class:`Probability`.

    The logit alone ignores the other classes, and the probability saturates; the sum, which is the logit minus the
    cross-entropy of the class, does neither. From Cai, "CAMs as Shapley Value-based Explainers" (2025),
    https://arxiv.org/abs/2501.06261.

    Args:
        classes: as for :class:`Classes`.

    Example:
        >>> import camlib, torch
        >>> logits = torch.tensor([[2.0, 1.0]])
        >>> target = camlib.targets.bind(camlib.targets.ReST(0), logits)
        >>> bool(camlib.targets.score(target, logits, torch.tensor([0])) == 2 + logits.softmax(1)[0, 0].log())
        True
    """

    quantity = "ReST"

    def _table(self, outputs: Any) -> Tensor:
        return all_logits(outputs) + class_log_probabilities(outputs)


@dataclass(frozen=True, eq=False)
class BoundContrast(BoundClasses):
    """The logits of the classes of each image, minus the weighted mean logit of other classes.

    Args:
        classes: (N,) or (N, K) indices.
        table: the logits of all classes.
        rivals: (N, R) or (N, K, R) indices, the R other classes for each class.
        weight: the factor of their mean.
        average: as for :class:`Contrast`.
    """

    rivals: Tensor
    weight: float
    average: Average = "mean"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the contrasts, (rows,) or (rows, K)."""
        logits, rivals = self.table(outputs), self.rivals[image_index]
        others = picked(logits, rivals)
        if self.average == "probability":
            shares = picked(logits, rivals).softmax(-1)  # the probabilities of the others, divided by their sum
            mean = (shares * others).sum(-1)
        else:
            mean = others.mean(-1)
        return super().scores(outputs, image_index) - self.weight * mean


@dataclass(frozen=True, eq=False)
class Contrast(_OfClasses):
    """A class minus others, y_c - weight * mean over d of y_d: what distinguishes it from them.

    Finer-CAM (Zhang et al., 2025, https://arxiv.org/abs/2501.11309) is Grad-CAM of this score with weight 0.6 and the
    three nearest classes: those whose logits differ least from y_c, in absolute value, on the clean outputs.

    Args:
        classes: the class c, as for :class:`Classes`.
        against: the classes d, in the same forms; with (N, R) indices, the mean is over the R classes of each image.
            None for the ``nearest`` of each c. With several c, each is contrasted with all R.
        weight: the factor of the mean of the other classes.
        nearest: the number of classes to contrast with where ``against`` is None; all others if there are fewer.
        average: "mean" of the other classes; or "probability" to weight each by its softmax probability, as the
            code of Finer-CAM's authors does, with a weight of 1. The gradient also runs through the probabilities.

    Raises:
        CamlibTypeError: ``weight`` is not a number or ``nearest`` not an int.
        CamlibValueError: ``weight`` is not finite, ``nearest`` < 1, ``average`` is unknown, a class is
            contrasted with itself, a class of ``against`` is given twice, or the network has a single logit.

    Example:
        >>> import camlib, torch
        >>> logits = torch.tensor([[5.0, 1.0, 4.0, 3.0]])
        >>> target = camlib.targets.bind(camlib.targets.Contrast(0, nearest=2, weight=0.6), logits)
        >>> camlib.targets.score(target, logits, torch.tensor([0]))  # 5 - 0.6 (4 + 3) / 2
        tensor([2.9000])
    """

    quantity = "difference of logits"

    against: Any = None
    weight: float = 1.0
    nearest: int = 3
    average: Average = "mean"

    def __post_init__(self) -> None:
        number("weight", self.weight)
        positive_int("nearest", self.nearest)
        if not isinstance(self.average, str) or self.average not in get_args(Average):
            raise CamlibValueError(f'average must be "mean" or "probability", got {self.average!r}')

    def bind(self, outputs: Any) -> BoundContrast:
        """Return the contrast of the classes of each image with the others."""
        return self.of_indices(self._indices(outputs), outputs)

    def of_indices(self, classes: Tensor, outputs: Any) -> BoundContrast:
        """Return the contrast of class indices (N,) or (N, K) that fit the outputs, in place of the target's own."""
        logits = class_logits(outputs).detach()
        if logits.shape[1] == 1:
            raise CamlibValueError(
                "Contrast needs the logits of two classes or more, and the outputs have a single logit; explain the "
                "class itself"
            )
        rivals = self._rivals(logits, classes)
        return BoundContrast(classes, self._table, rivals, self.weight, self.average, quantity=self.quantity)

    def _rivals(self, logits: Tensor, classes: Tensor) -> Tensor:
        if self.against is None:
            apart = (picked(logits, classes)[..., None] - (logits if classes.dim() == 1 else logits[:, None])).abs()
            itself = torch.zeros_like(apart, dtype=torch.bool).scatter_(-1, classes[..., None], True)
            # NaN sorts last, behind a class that was masked with -inf
            order = apart.masked_fill(itself, torch.nan).argsort(dim=-1, stable=True)
            return order[..., : min(self.nearest, logits.shape[1] - 1)]
        rivals = class_indices(self.against, logits).reshape(len(logits), -1)
        ordered = rivals.sort(1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise CamlibValueError(
                f"against={self.against!r} has a class twice for an image, which would count twice in the mean; give "
                "each class once"
            )
        rivals = (rivals if classes.dim() == 1 else rivals[:, None]).expand(*classes.shape, -1)
        clash = rivals == classes[..., None]
        if bool(clash.any()):
            raise CamlibValueError(
                f"a class is contrasted with itself in {image_list(clash)}: classes {classes.tolist()} against "
                f"{rivals.tolist()}; leave it out of against="
            )
        return rivals


def bind(target: Any, outputs: Any) -> BoundTarget:
    """Bind what the user gave as a target to the outputs of the clean images.

    Args:
        target: ``None`` for the predicted class of each image; an int; one int per image; (N, K) class indices;
            :class:`TopK`; a callable of the outputs; a :class:`Target`, bound or not.
        outputs: the model's outputs for the N images.

    Raises:
        CamlibTypeError: bools, floats, or class indices for outputs that are not (N, C), (N, 1) or (N,); a ``bind``
            that returns something else.
        CamlibValueError: indices out of range, or not one for each image; a target that is bound to another number of
            images; what the target itself refuses.

    Example:
        >>> import camlib, torch
        >>> clean = torch.tensor([[1.0, 5.0, 2.0]])
        >>> target = camlib.targets.bind(None, clean)
        >>> target.explained
        tensor([1])
        >>> camlib.targets.score(target, torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([0]))  # still of class 1
        tensor([4.])
    """
    if isinstance(target, type):
        raise CamlibTypeError(f"target is the class {target.__name__} itself; give an instance")
    if not isinstance(target, Target):
        target = Score(target) if callable(target) else Classes(target)
    bound = target.bind(outputs)
    if not isinstance(bound, BoundTarget):
        raise CamlibTypeError(
            f"{type(target).__name__}.bind returned a {type(bound).__name__}; it must return a "
            "camlib.targets.BoundTarget"
        )
    return bound
