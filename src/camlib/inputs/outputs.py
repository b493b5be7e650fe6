"""What a model returns, parsed once: the tensor of scores in it, and the number of images it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camlib.inputs.nested import map_tensors, named_entries, tensors_in

NAMES = ("logits", "out", "pooler_output", "image_embeds", "last_hidden_state")
"""Where models keep their main tensor; the first present counts: Hugging Face's names and torchvision's "out"."""


class Outputs:
    """What a model returns.

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
        """Every tensor in it, in order. Other objects are not searched, as what they hold cannot be detached."""
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        """Where the first tensor is; the CPU where there is none."""

    @property
    def main(self) -> Tensor | None:
        """The tensor that the outputs are about; :meth:`named` finds it by the names that libraries use."""
        return self.named(NAMES)

    def named(self, names: Sequence[str]) -> Tensor | None:
        """Return the tensor itself, or that of the first key or field present in a mapping, dataclass or named tuple.

        None where no such entry is a tensor.

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
        """How many images the outputs are about; None where nothing tells.

        The length of a list of mappings (detections), or of the first axis of :attr:`main`, or of the first tensor that
        has axes (a loss has none).
        """
        if self._is_list_of_mappings:
            return len(self.raw)
        if isinstance(self.raw, Tensor):
            return len(self.raw) if self.raw.dim() else None
        return next((len(tensor) for tensor in (self.main, *self.tensors) if tensor is not None and tensor.dim()), None)

    @property
    def is_detections(self) -> bool:
        """Whether it is a list of mappings with "boxes" and "scores", one for each image."""
        return self._is_list_of_mappings and all("boxes" in found and "scores" in found for found in self.raw)

    @property
    def _is_list_of_mappings(self) -> bool:
        raw = self.raw
        return isinstance(raw, (list, tuple)) and bool(raw) and all(isinstance(one, Mapping) for one in raw)

    def detached(self) -> Any:
        """Return what the model returned with every tensor detached; None where there are no tensors."""
        if isinstance(self.raw, Tensor):
            return self.raw.detach()
        return map_tensors(Tensor.detach, self.raw) if self.tensors else None
