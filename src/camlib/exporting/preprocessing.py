"""The preprocessing of pictures as a part of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number


@dataclass(frozen=True)
class Preprocessing:
    """Pictures as they are read, uint8 (N, H, W, channels), become normalised images (N, channels, H, W).

    A value v becomes (v / 255 - mean) / std. A picture must already have the size that the network takes.

    Args:
        mean: of each channel, for values in [0, 1].
        std: of each channel, positive.

    Raises:
        CamlibTypeError: not sequences of numbers.
        CamlibValueError: not as many of one as of the other, or a deviation that is not positive.

    Example:
        >>> import camlib, torch
        >>> gray = camlib.exporting.Preprocessing(mean=[0.5], std=[0.25])
        >>> gray(torch.full((1, 2, 2, 1), 255, dtype=torch.uint8))
        tensor([[[[2., 2.],
                  [2., 2.]]]])
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
                raise CamlibTypeError(f"{name} must be a sequence with a number for each channel, got {values!r}")
            for value in values:
                number(f"{name} of a channel", value, above=0 if name == "std" else -float("inf"))
        if len(self.mean) != len(self.std):
            raise CamlibValueError(f"mean has {len(self.mean)} channels, and std {len(self.std)}; give one of each")

    def __call__(self, pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the images of pictures.

        Raises:
            CamlibValueError: the pictures are not uint8 (N, H, W, channels).
        """
        channels = len(self.mean)
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[3] != channels:
            raise CamlibValueError(
                f"with preprocessing, inputs must be pictures of uint8 (N, H, W, {channels}), got {pictures.dtype} "
                f"{tuple(pictures.shape)}"
            )
        images = pictures.permute(0, 3, 1, 2).to(dtype)
        factors = [1 / (255 * one) for one in self.std]
        offsets = [-mean / one for mean, one in zip(self.mean, self.std, strict=True)]
        planes = [
            images[:, k : k + 1] * factor + offset
            for k, (factor, offset) in enumerate(zip(factors, offsets, strict=True))
        ]
        return torch.cat(planes, 1) if channels > 1 else planes[0]
