"""Rows that are changed copies of the images: the first copy of each image, then the second of each, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from camlib.inputs import Inputs


@dataclass(frozen=True)
class Copies:
    """Changed copies of the images, made when indexed by a slice of rows.

    Example:
        >>> brighter = torch.tensor([1.0, 2.0, 3.0])
        >>> def change(inputs, copy):
        ...     return inputs.map_rows(lambda images, factor: images * factor.reshape(-1, 1, 1), brighter[copy])
        >>> copies = Copies(Inputs(torch.tensor([[[1.0]], [[10.0]]])), 3, change)
        >>> inputs, image_index = copies[3:6]
        >>> inputs.raw.flatten(), image_index
        (tensor([20.,  3., 30.]), tensor([1, 0, 1]))
        >>> copies.by_copy(inputs.raw.flatten(), slice(3, 6))
        tensor([[ 0., 20.],
                [ 3., 30.]])
    """

    inputs: Inputs
    """The inputs, with the unchanged images."""
    each: int
    """How many copies of each image."""
    change: Callable[[Inputs, Tensor], Inputs]
    """From the inputs of some rows, and the number (rows,) of the copy that each is, to those of the copies."""

    def __len__(self) -> int:
        return self.each * self.inputs.count

    def __getitem__(self, rows: slice) -> tuple[Inputs, Tensor]:
        """Return the inputs of some rows, and the number (rows,) of each row's image."""
        images = self.inputs.count
        number = torch.arange(rows.start, rows.stop, device=self.inputs.tensors[0].device)
        image_index = number % images
        return self.change(self.inputs.pick(image_index, images), number // images), image_index

    def by_copy(self, values: Tensor, rows: slice) -> Tensor:
        """Return values (rows, ...) of a slice of rows as (copies, N, ...); rows outside the slice are 0."""
        return by_copy(values, rows, self.inputs.count)


def by_copy(values: Tensor, rows: slice, images: int) -> Tensor:
    """Return values (rows, ...) of a slice of rows as (copies, N, ...), of N images; rows outside the slice are 0."""
    before, after = rows.start % images, -rows.stop % images
    padded = F.pad(values, (0, 0) * (values.dim() - 1) + (before, after)) if before or after else values
    return padded.reshape(-1, images, *values.shape[1:])
