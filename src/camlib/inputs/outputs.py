"""What models return: the tensor of scores in it, and the number of images it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from camlib.inputs.nested import named_entries, tensors_in

NAMES = ("logits", "out", "pooler_output", "image_embeds", "last_hidden_state")
"""Where models keep what they are about, the first present counts: Hugging Face's names and torchvision's "out"."""


def main_tensor(outputs: Any, names: Sequence[str] = NAMES) -> Tensor | None:
    """Return the tensor that a model's outputs are about.

    Args:
        outputs: what a model returned.
        names: the keys or fields to look for, in this order.

    Returns:
        ``outputs`` itself if it is a tensor; of a mapping, dataclass or named tuple the first of ``names`` that
        holds a tensor; otherwise None. Other objects are not looked into: what they hold could not be detached.

    Example:
        >>> import torch
        >>> main_tensor({"aux": torch.zeros(2, 4), "out": torch.ones(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    entries = named_entries(outputs)
    found = (entries.get(name) for name in names)
    return next((value for value in found if isinstance(value, Tensor)), None)


def row_count(outputs: Any) -> int | None:
    """Return how many images the outputs are about.

    Returns:
        The length of a list of mappings (detections), else the first axis of :func:`main_tensor`, else that of
        the first tensor with axes (a loss has none); None where there is no such thing.

    Example:
        >>> import torch
        >>> row_count({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)}), row_count("nothing")
        (2, None)
    """
    if _is_list_of_mappings(outputs):
        return len(outputs)
    tensors = (main_tensor(outputs), *tensors_in(outputs))
    return next((len(tensor) for tensor in tensors if tensor is not None and tensor.dim()), None)


def is_detections(outputs: Any) -> bool:
    """Whether the outputs are a list of mappings with "boxes" and "scores", one for each image.

    Example:
        >>> import torch
        >>> is_detections([{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}]), is_detections([])
        (True, False)
    """
    return _is_list_of_mappings(outputs) and all("boxes" in found and "scores" in found for found in outputs)


def _is_list_of_mappings(outputs: Any) -> bool:
    return isinstance(outputs, (list, tuple)) and bool(outputs) and all(isinstance(one, Mapping) for one in outputs)
