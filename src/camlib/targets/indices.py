"""Class indices in every form that a user can give, and the outputs that they index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, CamlibWarning, positive_int
from camlib.inputs import Outputs
from camlib.inputs.detections import class_scores_in
from camlib.inputs.links import ending_of, has_one_column, is_doubtful, logits_of, noted
from camlib.inputs.outputs import CLASSES, EMBEDDINGS

Link = Literal["softmax", "sigmoid", "identity"] | None
"""The function from outputs to probabilities; None to establish it from the outputs."""
LINKS = ("softmax", "sigmoid", "identity", None)


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
        positive_int("k", self.k)


def class_indices(classes: Any, logits: Tensor) -> Tensor:
    """Return class indices (N,) or (N, K), checked against logits (N, C).

    Args:
        classes: None for the predicted class of each image; an int; one int per image; (N, K) ints; :class:`TopK`.
        logits: (N, C), the scores of the classes.

    Raises:
        CamlibTypeError: bools, floats, or something that is no index.
        CamlibValueError: indices out of range, or not one for each image.
    """
    rows, count = logits.shape
    if classes is None:
        return logits.argmax(1)
    if type(classes) is int and 0 <= classes < count:
        return torch.full((rows,), classes, device=logits.device)  # without a copy from the host, and its wait
    if isinstance(classes, TopK):
        if classes.k > count:
            raise CamlibValueError(f"TopK({classes.k}) asks for more classes than the outputs' {count}")
        return logits.topk(classes.k, dim=1).indices
    indices = image_indices(classes, rows, count)
    if count > 2 and indices.shape == (rows, count) and bool(((indices == 1).sum(1) == 1).all() & (indices <= 1).all()):
        raise CamlibValueError(
            f"target has shape {tuple(indices.shape)} and a single 1 in each row, as one-hot labels; give the class of "
            "each image: target.argmax(1)"
        )
    return indices.to(logits.device, non_blocking=True)


def class_scores(classes: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`class_indices`, and the logits of these classes, in the graph."""
    indices = class_indices(classes, logits.detach())
    return indices, picked(logits, indices)


def image_indices(given: Any, rows: int, count: int | None = None, what: str = "target") -> Tensor:
    """Return one index (N,) or several (N, K) for each of ``rows`` images, all of them in [0, ``count``).

    Raises:
        CamlibTypeError: bools, floats, or something that is no index.
        CamlibValueError: indices out of range, or not one for each image.
    """
    indices = integers(given, what)
    check_range(indices, count, what)
    if indices.dim() == 0:
        return indices.expand(rows)
    if indices.shape[0] != rows or indices.dim() > 2 or not indices.numel():
        instead = f", here [{indices.tolist()}]" if rows == 1 and indices.dim() == 1 and indices.numel() else ""
        raise CamlibValueError(
            f"{what} has shape {tuple(indices.shape)} for {rows} images; give one class (an int), one per image "
            f"({rows},), or several per image ({rows}, K){instead}"
        )
    return indices


def integers(given: Any, what: str = "target") -> Tensor:
    """Return a tensor of int64 from ints, sequences, arrays or tensors of them; bools and floats are errors."""
    wanted = "an int, one int per image, or (N, K) ints"
    if what == "target":
        wanted += ", None, camlib.TopK(k), a callable, or a camlib.targets.Target"
    indices = as_tensor(given, f"{what} {given!r} is not understood; give {wanted}")
    kind = torch.bool if _holds_bool(given) else indices.dtype
    if kind == torch.bool or kind.is_floating_point or kind.is_complex:
        raise CamlibTypeError(
            f"{what} holds {kind} values ({given!r}); class indices are integers (for a mask or "
            "weights over the outputs, pass a callable)"
        )
    return indices.long()


def as_tensor(given: Any, error: str) -> Tensor:
    """Return numbers, sequences and arrays as a tensor; raise CamlibTypeError with a message for anything else."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise CamlibTypeError(error) from cause


def check_range(indices: Tensor, count: int | None, what: str = "target") -> None:
    """Raise CamlibValueError unless all indices are in [0, ``count``), or not negative where ``count`` is None."""
    outside = indices < 0 if count is None else (indices < 0) | (indices >= count)
    if bool(outside.any()):
        limits = "class indices are not negative" if count is None else f"the outputs have classes 0 to {count - 1}"
        raise CamlibValueError(f"{what} has class index {int(indices[outside][0])}, but {limits}")


def class_outputs(outputs: Any) -> Tensor:
    """Return the outputs for the classes as they are, (N, C), from what a model returned; (N,) becomes (N, 1).

    From a mapping or dataclass, "logits", "out" or "logits_per_image" is read.

    Raises:
        CamlibTypeError: outputs of another kind; the message says what to pass instead.
    """
    found = _for_classes(outputs)
    return found[:, None] if found.dim() == 1 else found


def class_logits(outputs: Any) -> Tensor:
    """Return the logits of the classes, (N, C), as :func:`class_outputs`.

    Of outputs that are probabilities, they are what the model's last softmax or sigmoid was given. Where that is not
    known, they are log p, the logits up to a constant for each image, or log p - log(1 - p) of a sigmoid.

    Raises:
        CamlibTypeError: as for :func:`class_outputs`.

    Example:
        >>> import torch
        >>> class_logits(torch.tensor([[3.0, 1.0]])), class_logits(torch.tensor([[0.75, 0.25]])).exp()
        (tensor([[3., 1.]]), tensor([[0.7500, 0.2500]]))
    """
    found = logits_of(_for_classes(outputs))
    return found[:, None] if found.dim() == 1 else found


def class_probabilities(outputs: Any, link: Link = None) -> Tensor:
    """Return the probabilities of the classes, (N, C); both, (N, 2), of a network with one output.

    Args:
        outputs: what a model returned.
        link: the function from logits to probabilities, "softmax" or "sigmoid"; "identity" if the outputs are
            probabilities. None for that of the model where its outputs are probabilities already; otherwise a softmax,
            or a sigmoid where there is one output. No function is applied twice.

    Raises:
        CamlibTypeError: as for :func:`class_outputs`.
        CamlibValueError: another link, or a softmax of a single output.

    Example:
        >>> import torch
        >>> class_probabilities(torch.tensor([[0.0]])), class_probabilities(torch.tensor([[0.0, 0.0]]), "sigmoid")
        (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    """
    check_link(link)
    if is_of_one_text(outputs) and link is None:
        raise CamlibValueError(
            "the images are compared with a single text, whose softmax is 1; compare them with several texts, or give "
            'link="sigmoid" if the network is trained with it, as SigLIP is'
        )
    raw = _for_classes(outputs)
    ending, single = ending_of(raw), has_one_column(raw) and not is_of_one_text(outputs)
    if single and link == "softmax":
        raise CamlibValueError(f"the model returns {tuple(raw.shape)}, and a single output has no softmax")
    if link == "identity" or (ending in ("softmax", "sigmoid") and link in (None, ending) and not single):
        chances = class_outputs(outputs)
        return torch.cat([1 - chances, chances], 1) if single else chances
    logits = class_logits(outputs)
    if link == "sigmoid" and is_of_one_text(outputs):
        return logits.sigmoid()
    if link == "sigmoid" or single or (link is None and ending == "log_sigmoid"):
        return two_class_logits(logits).sigmoid()
    return logits.softmax(1)


def is_of_one_text(outputs: Any) -> bool:
    """Return whether images are compared with a single text, which is then the only class: there is no negative one."""
    found = None if isinstance(outputs, Tensor) else Outputs(outputs).named(CLASSES)
    of_texts = None if found is None else Outputs(outputs).named(("logits_per_image",))
    return found is not None and found is of_texts and has_one_column(found)


def has_lost_logits(outputs: Any) -> bool:
    """Whether the outputs are probabilities whose logits are not known."""
    found = _for_classes(outputs)
    known = noted(found)
    return ending_of(found) is not None and (known is None or known[1] is None)


def warn_if_doubtful(outputs: Any) -> None:
    """Warn, in a call of a target's ``bind``, of outputs that may be probabilities but are taken for logits."""
    if is_doubtful(_for_classes(outputs)):
        warnings.warn(
            "the outputs of the model lie in [0, 1], and its last function does not show whether they are "
            'probabilities; they are taken for logits. If they are probabilities, give link="identity" to '
            "camlib.targets.Probability or to the metric, or return the logits, by forward=",
            CamlibWarning,
            stacklevel=5,
        )


def check_link(link: Any) -> None:
    """Raise CamlibValueError for anything but a :data:`Link`."""
    if link is not None and not (isinstance(link, str) and link in LINKS):
        raise CamlibValueError(f'link must be "softmax", "sigmoid", "identity" or None, got {link!r}')


def _for_classes(outputs: Any) -> Tensor:
    """The tensor (N, C) or (N,) that :func:`class_outputs` reads."""
    logits = outputs if isinstance(outputs, Tensor) else Outputs(outputs).named(CLASSES)
    if logits is None and Outputs(outputs).named(EMBEDDINGS) is not None:
        raise CamlibTypeError(
            f"the model returns a {type(outputs).__name__} without logits, an embedding, whose entries are no classes; "
            "give a target: camlib.targets.Similarity(reference) for the likeness to the embedding of another image "
            "or of a text, or a callable of the outputs"
        )
    if logits is None:
        keys = f" with keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
        detector = Outputs(outputs).is_detections or class_scores_in(outputs) is not None
        kind = "a class index or camlib.targets.Box(...) for a detection" if detector else "a callable target"
        raise CamlibTypeError(
            f"the model returns a {type(outputs).__name__}{keys}, which has no class scores; pass "
            f"forward=lambda model, inputs: ... to pick the tensor of logits, or {kind}"
        )
    if logits.dim() not in (1, 2):
        region = "camlib.targets.Region(category) for a segmentation, " if logits.dim() == 4 else ""
        raise CamlibTypeError(
            f"the model returns shape {tuple(logits.shape)}; class targets need (N, C). Pass forward= to reduce "
            f"it, {region}or a callable target that returns one score for each image"
        )
    return logits


def described(tensor: Tensor | None, outputs: Any) -> str:
    """Describe what a model returned, for an error: the tensor that was found in it, or its type."""
    return type(outputs).__name__ if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def two_class_logits(outputs: Tensor) -> Tensor:
    """Return logits (N, C, ...) unchanged; those of a binary network, (N, 1, ...), become (-logit, +logit)."""
    if not isinstance(outputs, Tensor):
        raise CamlibTypeError(f"outputs must be a tensor (N, C, ...), got {type(outputs).__name__}")
    if outputs.dim() < 2 or not outputs.is_floating_point():
        raise CamlibValueError(
            f"outputs must be floating-point numbers (N, C, ...), got {outputs.dtype} {tuple(outputs.shape)}"
        )
    return torch.cat([-outputs, outputs], dim=1) if outputs.shape[1] == 1 else outputs


def class_log_probabilities(outputs: Any) -> Tensor:
    """Return the logarithms of :func:`class_probabilities`, computed from the logits."""
    logits = class_logits(outputs)
    if is_of_one_text(outputs):
        return F.logsigmoid(logits)
    if logits.shape[1] == 1 or ending_of(_for_classes(outputs)) in ("sigmoid", "log_sigmoid"):
        return F.logsigmoid(two_class_logits(logits))
    return logits.log_softmax(1)


def _holds_bool(target: Any) -> bool:
    """Whether there is a bool, also in nested sequences with ints, where torch would turn it into an int."""
    return isinstance(target, bool) or (isinstance(target, (list, tuple)) and any(map(_holds_bool, target)))


def picked(table: Tensor, classes: Tensor) -> Tensor:
    """Take (rows, ...) columns of (rows, C).

    Raises:
        CamlibValueError: the table has another number of rows.
    """
    if len(table) != len(classes):
        raise CamlibValueError(f"the outputs have {len(table)} rows for {len(classes)} images; give one row for each")
    return table.gather(1, classes.reshape(len(classes), -1)).view(classes.shape)
