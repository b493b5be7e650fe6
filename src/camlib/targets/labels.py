"""Scores of single columns of the outputs: regression, binary and multi-label networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.targets.base import BoundTarget, Target, image_list
from camlib.targets.indices import as_tensor, check_range, class_logits, class_outputs, integers


class Output(BoundTarget):
    """One output y_i, unchanged: the prediction of a regression, or one label of a multi-label network.

    Unlike a class index, column 0 of a network with a single output means that output, not its negative.

    Args:
        index: the column i of outputs (N, C); outputs (N,) have column 0 only.

    Raises:
        CamlibTypeError: ``index`` is not an int.
        CamlibValueError: the outputs have no such column.

    Example:
        >>> import camlib, torch, torchvision
        >>> age = torchvision.models.resnet18(num_classes=1).eval()
        >>> camlib.GradCAM(age)(torch.rand(2, 3, 64, 64), camlib.targets.Output(0)).target
        'output 0'
    """

    quantity = "output"

    def __init__(self, index: int = 0) -> None:
        column = integers(index)
        if column.dim():
            raise CamlibTypeError(f"Output(index) takes one column, got {index!r}; pass a callable target for several")
        self._index = int(column)

    @property
    def explained(self) -> str:
        """The column's name."""
        return f"output {self._index}"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the column, (rows,)."""
        columns = class_outputs(outputs)
        check_range(torch.tensor(self._index), columns.shape[1])
        return columns[:, self._index]


@dataclass(frozen=True, eq=False)
class BinaryLogit(BoundTarget):
    """The logit y of a binary network for the positive class, or -y for the negative class.

    Args:
        positive: whether to explain the positive class.

    Raises:
        CamlibTypeError: ``positive`` is not a bool.
        CamlibValueError: the outputs are not (N, 1) or (N,).

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=1).eval())
        >>> cam(torch.rand(2, 3, 64, 64), camlib.targets.BinaryLogit(positive=False)).target
        'negative logit'
    """

    quantity = "logit"

    positive: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.positive, bool):
            raise CamlibTypeError(f"positive must be a bool, got {type(self.positive).__name__}: {self.positive!r}")

    @property
    def explained(self) -> str:
        """The logit's name."""
        return "positive logit" if self.positive else "negative logit"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return plus or minus the logit, (rows,)."""
        logits = class_logits(outputs)
        if logits.shape[1] != 1:
            raise CamlibValueError(
                f"BinaryLogit needs a single logit, (N, 1) or (N,), and the model returns {tuple(logits.shape)}; give "
                "the class index instead"
            )
        return logits[:, 0] if self.positive else -logits[:, 0]


@dataclass(frozen=True, eq=False)
class MultiLabel(Target):
    r"""The sum of the logits of several labels, :math:`\sum_l y_l`: the evidence for all of them together.

    For one map of each label, pass their indices (N, K) as the target instead.

    Args:
        labels: an (N, C) tensor or array of bools or of zeros and ones, or a list with one list of column indices for
            each image.

    Raises:
        CamlibTypeError: labels of another kind.
        CamlibValueError: labels that do not fit the outputs' rows or columns, or an image without a label.

    Example:
        >>> import camlib, torch
        >>> logits = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
        >>> target = camlib.targets.bind(camlib.targets.MultiLabel([[0, 2], [1]]), logits)
        >>> camlib.targets.score(target, logits, torch.tensor([0, 1]))
        tensor([ 5., 16.])
    """

    labels: Any

    def bind(self, outputs: Any) -> BoundLabels:
        """Return the sum of the labels' logits; the labels are checked against the outputs."""
        columns = class_logits(outputs)
        read = _columns_of_lists if isinstance(self.labels, (list, tuple)) else _columns_of_mask
        chosen = read(self.labels, *columns.shape)
        if not bool(chosen.any(1).all()):
            raise CamlibValueError(
                f"no label is given for {image_list(~chosen.any(1))} of {len(chosen)}, so there is nothing to explain; "
                "leave such images out"
            )
        return BoundLabels(chosen.to(columns.device))


@dataclass(frozen=True, eq=False)
class BoundLabels(BoundTarget):
    """The sum of the logits of each image's labels.

    Args:
        chosen: (N, C) bool.
    """

    chosen: Tensor

    explained = MultiLabel.__name__
    quantity = "sum of logits"

    @property
    def images(self) -> int:
        """N."""
        return len(self.chosen)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the sums, (rows,)."""
        return class_logits(outputs).masked_fill(~self.chosen[image_index], 0).sum(1)


def _columns_of_lists(labels: Any, rows: int, count: int) -> Tensor:
    chosen = torch.zeros(rows, count, dtype=torch.bool)
    columns = [torch.tensor([]).long() if _is_empty(of_image) else integers(of_image, "label") for of_image in labels]
    if len(columns) != rows or any(of_image.dim() != 1 for of_image in columns):
        raise CamlibValueError(
            f"MultiLabel({labels!r}) for {rows} images; give a list of column indices for each image, or an "
            f"({rows}, {count}) tensor of bools"
        )
    for image, of_image in enumerate(columns):
        check_range(of_image, count, "label")
        chosen[image, of_image] = True
    return chosen


def _is_empty(of_image: Any) -> bool:
    return isinstance(of_image, (list, tuple)) and not of_image


def _columns_of_mask(labels: Any, rows: int, count: int) -> Tensor:
    mask = as_tensor(
        labels,
        f"labels {labels!r} are not understood; give an (N, C) tensor of bools, or a list of indices for each image",
    )
    if mask.shape != (rows, count):
        raise CamlibValueError(
            f"labels have shape {tuple(mask.shape)}, and the outputs ({rows}, {count}); give one bool for each output "
            "(give column indices as one list for each image)"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise CamlibValueError("labels hold values other than 0 and 1; give column indices as one list for each image")
    return mask == 1
