"""What a map explains, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from camlib.errors import CamlibValueError, check_class_names

NO_CLASS = "no particular class"
"""What the map of a class-agnostic method explains."""


def explained(
    target: Tensor | str, class_agnostic: bool, class_names: Sequence[str] | None = None, place: int = 0
) -> str:
    """Name what a map of the first image explains: a class, another target, or :data:`NO_CLASS`.

    Args:
        target: as in :class:`camlib.Explanation`.
        class_agnostic: as in :class:`camlib.Explanation`.
        class_names: names for the class indices.
        place: which of the K maps of the image.

    Raises:
        CamlibTypeError: ``class_names`` is a single string.
        CamlibValueError: the class has no name.

    Example:
        >>> import torch
        >>> explained(torch.tensor([1]), False, ["cat", "dog"]), explained(torch.tensor([1]), True)
        ('dog', 'no particular class')
    """
    check_class_names(class_names)
    if class_agnostic:
        return NO_CLASS
    if not isinstance(target, Tensor):
        return target
    index = int(target[0].flatten()[place])
    if index < 0:
        raise CamlibValueError(f"class {index} was explained; class indices are not negative")
    if class_names is not None and index >= len(class_names):
        raise CamlibValueError(f"class_names has {len(class_names)} names, but class {index} was explained")
    return f"class {index}" if class_names is None else str(class_names[index])


def title(
    target: Tensor | str,
    scores: Tensor,
    class_agnostic: bool,
    class_names: Sequence[str] | None = None,
    place: int = 0,
) -> str:
    """Return what :func:`explained` names, with its score if there is one.

    Example:
        >>> import torch
        >>> title(torch.tensor([1]), torch.tensor([2.5]), False, ["cat", "dog"])
        'dog: score 2.50'
    """
    what, score = explained(target, class_agnostic, class_names, place), float(scores[0].flatten()[place])
    if class_agnostic or math.isnan(score):
        return what
    return f"{what}: score {score:.2f}" if isinstance(target, Tensor) else f"{what}: {score:.2f}"
