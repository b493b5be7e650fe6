"""Outputs that are probabilities or their logarithms: which function returned them, and the logits that it was given.

A network's run notes both on its outputs (:mod:`camlib.passes.ending`). For outputs that come from elsewhere, their
graph tells, and otherwise their values, if each row sums to one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Ending = Literal["softmax", "sigmoid", "log_softmax", "log_sigmoid"]
"""The function that returned probabilities, or their logarithms."""
NOTE = "ending_of_outputs"
"""The attribute by which outputs remember their ending: its name, or "" for logits; and the logits, if known."""

_FUNCTIONS: dict[str, Ending] = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}
_PROBABILITIES = {*_FUNCTIONS, "LogSoftmaxBackward0", "LogSigmoidBackward0"}
_REARRANGING = frozenset(
    f"{name}Backward0"
    for name in (
        *("Alias", "AsStrided", "Clone", "Permute", "Select", "Slice", "Squeeze", "T", "ToCopy", "Transpose"),
        *("UnsafeView", "Unsqueeze", "View", "ReshapeAlias"),
    )
) | {"SqueezeBackward1", "SqueezeBackward2"}


def note(outputs: Tensor, ending: Ending | None, logits: Tensor | None = None, *, doubtful: bool = False) -> None:
    """Note on outputs which function returned them.

    Args:
        outputs: what a model returned.
        ending: the function; None if they are logits.
        logits: what it was given, of the same shape, if known.
        doubtful: whether the outputs may be probabilities, though no such function was found.
    """
    setattr(outputs, NOTE, ("?" if doubtful else ending or "", logits))


def noted(outputs: Tensor) -> tuple[Ending | None, Tensor | None] | None:
    """Return what :func:`note` noted on outputs; None if nothing was noted."""
    found = getattr(outputs, NOTE, None)
    return None if found is None else (None if found[0] in ("", "?") else found[0], found[1])


def is_doubtful(outputs: Tensor) -> bool:
    """Whether outputs lie in [0, 1] and may be probabilities or logits, so that they are taken for logits."""
    found = getattr(outputs, NOTE, None)
    return found is not None and found[0] == "?"


def ending_of(outputs: Tensor) -> Ending | None:
    """Return the function that returned the outputs (N, C, ...) or (N,); None for outputs that are logits.

    A single column of a softmax is the probability of one of two classes, as a sigmoid is. Logarithms of probabilities
    are logits, except where a network's run notes that they are not.

    Example:
        >>> ending_of(torch.tensor([[2.0, 3.0]])), ending_of(torch.tensor([[2.0, 3.0]]).softmax(1))
        (None, 'softmax')
    """
    known = noted(outputs)
    found = known[0] if known is not None else _ending_in_graph(outputs)
    if known is None and found is None and sums_to_one(outputs):
        found = "softmax"
    if found is None or not has_one_column(outputs):
        return found
    return "log_sigmoid" if found.startswith("log") else "sigmoid"


def logits_of(outputs: Tensor) -> Tensor:
    """Return the logits: the outputs, or what their final softmax or sigmoid was given.

    Where only the probabilities p are known, these are log p for a softmax, the logits up to a constant for each image,
    and log p - log(1 - p) for a sigmoid.

    Args:
        outputs: (N, C, ...) or (N,).

    Example:
        >>> logits_of(torch.tensor([[0.25, 0.75]])).exp()
        tensor([[0.2500, 0.7500]])
    """
    ending = ending_of(outputs)
    if ending is None:
        return outputs
    known = noted(outputs)
    if known is not None and known[1] is not None:
        return known[1]
    if ending == "log_softmax":
        return outputs
    if ending == "log_sigmoid":
        return outputs - (-outputs.expm1()).clamp(min=torch.finfo(outputs.dtype).tiny).log()
    chances = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    limits = torch.finfo(chances.dtype)
    log = chances.clamp(min=limits.tiny).log()
    return log if ending == "softmax" else log - (-chances).clamp(min=limits.eps - 1).log1p()


def sums_to_one(outputs: Tensor) -> bool:
    """Whether each row of (N, C, ...) holds the probabilities of two or more classes."""
    if not outputs.is_floating_point() or outputs.dim() < 2 or outputs.shape[1] < 2 or not outputs.numel():
        return False
    chances = outputs.detach().float()
    rounding = 64 * torch.finfo(outputs.dtype).eps
    return bool((chances >= 0).all() & ((chances.sum(1) - 1).abs() <= rounding).all())


def has_one_column(outputs: Tensor) -> bool:
    """Whether the outputs are (N,), (N, 1) or (N, 1, ...)."""
    return outputs.dim() == 1 or outputs.shape[1] == 1


def _ending_in_graph(outputs: Tensor) -> Ending | None:
    return _FUNCTIONS.get(_last_function(outputs))


def _last_function(outputs: Tensor) -> str:
    """The node of the last function of the outputs' autograd graph that does more than rearrange, by its name."""
    node = outputs.grad_fn
    while node is not None and node.name() in _REARRANGING:
        node = node.next_functions[0][0]
    return "" if node is None else str(node.name())


def noted_as_logits(outputs: Tensor) -> Tensor | None:
    """Return outputs, detached, with the note that they are logits; None if their graph shows that they are not.

    Example:
        >>> logits = torch.zeros(1, 2, requires_grad=True)
        >>> noted_as_logits(logits), noted_as_logits(logits.softmax(1))
        (tensor([[0., 0.]]), None)
    """
    if _last_function(outputs) in _PROBABILITIES:
        return None
    found = outputs.detach()
    note(found, None)
    return found
