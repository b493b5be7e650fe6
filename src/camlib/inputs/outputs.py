"""The outputs of a model, parsed once: their main tensor, and the number of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from camlib.inputs.detections import class_scores_in, detached, is_list_of_mappings, is_listed
from camlib.inputs.nested import map_tensors, named_entries, tensors_in

NAMES = ("logits", "out", "logits_per_image", "pooler_output", "image_embeds", "last_hidden_state")
"""Names of the main tensor, in order of priority: those of Hugging Face, and torchvision's "out"."""
CLASSES = NAMES[:3]
"""Those of tensors with a score for each class, or for each text that an image is compared with."""
EMBEDDINGS = NAMES[3:]
"""Those of tensors without classes."""
OF_TEXTS = ("text_embeds", "logits_per_text", "text_model_output")
"""Names of tensors with a row for each text, in Hugging Face's outputs."""
SHARED = "shared_by_all_images"
"""The attribute by which a tensor of the outputs remembers that it has no rows of images."""


class Outputs:
    """The outputs of a model.

    Args:
        raw: what the model returned.

    Example:
        >>> import torch
        >>> outputs = Outputs({"loss": torch.tensor(0.5), "logits": torch.zeros(2, 3)})
        >>> outputs.main.shape, outputs.rows, outputs.is_detections
        (torch.Size([2, 3]), 2, False)
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        """What the model returned."""
        self.tensors = (raw,) if isinstance(raw, Tensor) else tuple(tensors_in(raw))
        """All tensors in ``raw``, in order. Unknown objects are not searched, because they cannot be detached."""
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        """The device of the first tensor; the CPU if there is none."""

    @property
    def main(self) -> Tensor | None:
        """The main tensor, which :meth:`named` finds by the names that libraries use; None if there is none.

        Of an ultralytics network, it is the tensor of all scores.
        """
        named = self.named(NAMES)
        return class_scores_in(self.raw) if named is None else named

    def named(self, names: Sequence[str]) -> Tensor | None:
        """Return the outputs if they are a tensor, or else the first of the named entries that is a tensor.

        The outputs may be a mapping, dataclass or named tuple. None if no such entry is a tensor.

        Example:
            >>> import torch
            >>> Outputs({"aux": torch.zeros(2, 4), "out": torch.ones(2, 3)}).named(["logits", "out"]).shape
            torch.Size([2, 3])
        """
        if isinstance(self.raw, Tensor):
            return self.raw
        entries = named_entries(self.raw)
        return next((entries[name] for name in names if isinstance(entries.get(name), Tensor)), None)

    @property
    def rows(self) -> int | None:
        """The number of images that the outputs belong to; None if it cannot be inferred.

        This is the length of a list of mappings (detections), or of the first axis of :attr:`main`, or of the first
        tensor that has axes (a loss has none).
        """
        if isinstance(self.raw, Tensor):
            return len(self.raw) if self.raw.dim() else None
        if is_list_of_mappings(self.raw):
            return len(self.raw)
        return next((len(tensor) for tensor in (self.main, *self.tensors) if tensor is not None and tensor.dim()), None)

    @property
    def is_detections(self) -> bool:
        """Whether it is a list of mappings with "boxes" and "scores", one for each image."""
        return is_listed(self.raw)

    def detached(self, shared: Iterable[Tensor] = ()) -> Any:
        """Return the raw outputs with every tensor detached; None if there are no tensors.

        Args:
            shared: tensors without rows of images. Those of the outputs that share their memory, and those of texts,
                are noted as shared, which ``is_shared`` reads.
        """
        if isinstance(self.raw, Tensor):
            return detached(self.raw)
        entries = named_entries(self.raw)
        of_texts = set(map(id, tensors_in([entries.get(name) for name in OF_TEXTS])))
        memory = {_address(tensor) for tensor in shared} - {None}

        def apart(tensor: Tensor) -> Tensor:
            found = detached(tensor)
            if id(tensor) in of_texts or _address(tensor) in memory:
                setattr(found, SHARED, True)
            return found

        return map_tensors(apart, self.raw) if self.tensors else None


def is_shared(tensor: Tensor) -> bool:
    """Whether a tensor of detached outputs is known to be one of the model's parameters, or of the texts."""
    return getattr(tensor, SHARED, False) is True


def _address(tensor: Tensor) -> int | None:
    """The address of a tensor's memory; None if it has no storage, like a sparse tensor."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None
