"""The part of a network that runs on changed features of a layer: the tail if that is enough, else all of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibWarning
from camlib.layers.layouts import with_grid
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.numbers import single_or_double
from camlib.passes.precision import restored
from camlib.passes.tail import ShapesOfTrunk, Tail, WholeNetwork, WithoutRowsOfTrunk, is_fake


def tail_of(forward_pass: ForwardPass, layer: str, method: str, change: str) -> tuple[Tail, Tensor]:
    """Return the tail, or the whole network where the layer's output is not enough; and the unchanged features' scores.

    Args:
        forward_pass: the pass.
        layer: the layer's name.
        method: the method's name, for the warning.
        change: what a pass changes, for the warning, such as "channel".

    Warns:
        CamlibWarning: it is the whole network.
    """
    made_of = forward_pass.network, layer, forward_pass.inputs, forward_pass.count
    if forward_pass.checks.recorded:
        tail = Tail(*made_of)
        scores = _scores(tail, forward_pass, forward_pass.features[layer])
        agree = _agree(scores, forward_pass)
        forward_pass.checks.never(~agree, lambda: CamlibRuntimeError("run alone, the tail gives other scores"))
        return tail, scores
    found = tail_alone(forward_pass, layer, forward_pass.features[layer])
    if not isinstance(found, str):
        return found
    forward_pass.checks.finite("score", forward_pass.scores)
    forward_pass.checks.evaluate()  # NaN agrees with nothing
    whole = WholeNetwork(*made_of)
    scores = _scores(whole, forward_pass, forward_pass.features[layer])
    warnings.warn(
        f"The tail of layer {layer!r} needs more than that layer's output (the layer may be parallel to a skip "
        f"connection), so {method} runs the whole network for every {change}; a layer at the end of a block "
        f"needs only one forward pass ({found})",
        CamlibWarning,
        stacklevel=6,
    )
    return whole, scores


def tail_alone(forward_pass: ForwardPass, layer: str, features: Tensor) -> tuple[Tail, Tensor] | str:
    """Return the tail that needs only the layer's output, and its scores; or why there is none.

    Args:
        forward_pass: the pass.
        layer: the layer's name.
        features: (N, ...), what the layer returned in the pass.
    """
    why = ""
    for kind in (Tail, WithoutRowsOfTrunk, ShapesOfTrunk):
        tail = kind(forward_pass.network, layer, forward_pass.inputs, forward_pass.count)
        try:
            scores = _scores(tail, forward_pass, features, copies=1 if kind is ShapesOfTrunk else 2)
            if is_fake(scores):
                why = "run alone, the tail has no score"
            elif bool(_agree(scores, forward_pass)):
                return tail, scores
            else:
                why = "run alone, the tail gives other scores"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # other tensors of the trunk have no rows or no values, which can fail in any way
            why = f"run alone, the tail fails: {error}"
            if any(words in why for words in _COMBINED):
                break
    return why


def with_changed_grid(
    forward_pass: ForwardPass, layer: str, copies: Tensor, change: Callable[[Tensor], object]
) -> Tensor:
    """Return copies of a layer's features after a change of their grid; tokens that are not on the grid stay.

    Args:
        forward_pass: the pass.
        layer: the layer's name.
        copies: (rows, ...), in the layer's own layout; they may change.
        change: changes the grids (rows, C, ...) in place.

    Raises:
        CamlibTypeError: the user's ``reshape`` copies the features.
    """
    grids = forward_pass.to_grid(layer, copies)
    change(grids)
    is_copy = grids.untyped_storage().data_ptr() != copies.untyped_storage().data_ptr()
    if is_copy and forward_pass.network.reshape is None:
        return with_grid(forward_pass.layout(layer), copies, grids)
    if is_copy:
        raise CamlibTypeError(
            f"reshape copies the features of layer {layer!r}, so they cannot be changed through it; make it return a "
            "view, with permute, movedim, unflatten and slices"
        )
    return copies


_COMBINED = ("must match the size of tensor", "Sizes of tensors must match")
"""PyTorch's words where the tail adds features to tensors of the trunk, which have no rows, or joins them."""


def _scores(tail: Tail, forward_pass: ForwardPass, features: Tensor, copies: int = 1) -> Tensor:
    """The scores of the unchanged features.

    A single image is given as ``copies``: one row and no rows could be added.
    """
    image = forward_pass.image_index
    if len(image) == 1 and copies > 1:
        features, image = features.repeat_interleave(copies, 0), image.repeat(copies)
    else:
        features = features.clone()
    return scores_of(tail, forward_pass, features, image)[: forward_pass.count]


def scores_of(tail: Tail, forward_pass: ForwardPass, features: Tensor, image_index: Tensor) -> Tensor:
    """Return the scores of features that replace a layer's output, in the graph if autograd is on.

    Args:
        tail: the tail.
        forward_pass: the pass.
        features: (rows, ...), in the layer's own layout.
        image_index: (rows,), the number of each row's image.
    """
    with restored(forward_pass.precision):
        scores = targets.score(forward_pass.target, tail(features, image_index), image_index)
        return single_or_double(scores)


def _agree(scores: Tensor, forward_pass: ForwardPass) -> Tensor:
    """Whether scores equal those of the pass, up to rounding in the precision of that pass."""
    expected, outputs = forward_pass.scores.detach(), forward_pass.outputs.main
    largest = expected.abs().max() if outputs is None else torch.maximum(expected.abs().max(), outputs.abs().max())
    agree: Tensor = ((scores - expected).abs() <= torch.finfo(expected.dtype).eps ** 0.5 * largest).all()
    return agree
