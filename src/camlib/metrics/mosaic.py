"""Mosaics of images of different classes, so that the place of each class is known (Böhle et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int
from camlib.inputs.noise import own_generator


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Grids of several images, no two of the same class; see :func:`mosaics`."""

    images: Tensor
    """(M, C, n H, n W)."""
    target: Tensor
    """(M, n²), the class of each tile, row by row."""
    masks: Tensor
    """(n², n H, n W), bool, true where each tile is."""

    def by_tile(self) -> dict[str, Any]:
        """Return the loader, target and masks for :func:`camlib.evaluate`: each mosaic once for each of its tiles.

        Example:
            >>> import camlib, torch, torchvision
            >>> from camlib.metrics import mosaics
            >>> images, classes = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
            >>> model = torchvision.models.resnet18(num_classes=4)
            >>> found = camlib.evaluate(
            ...     model, methods=["grad_cam"], metrics=["grid_pointing_game"], **mosaics(images, classes, 1).by_tile()
            ... )
            >>> found.images
            4
        """
        tiles = len(self.masks)
        loader = [mosaic.expand(tiles, *mosaic.shape).contiguous() for mosaic in self.images]
        return {
            "loader": loader,
            "target": self.target.flatten(),
            "masks": self.masks.repeat(len(self.images), 1, 1),
        }


def mosaics(
    images: Tensor, classes: Any, count: int, *, side: int = 2, generator: torch.Generator | None = None
) -> Mosaics:
    """Build mosaics of images of different classes, for :func:`camlib.metrics.grid_pointing_game`.

    The papers take images that the network classifies correctly and with confidence.

    Args:
        images: (N, C, H, W).
        classes: (N,), the class of each image.
        count: M, how many mosaics.
        side: n, how many images stand side by side: 2 or 3 in the papers.
        generator: draws the classes of each mosaic, then an image of each; without one, every call draws the same.

    Returns:
        The mosaics with the classes and the places of their tiles.

    Raises:
        CamlibTypeError: images that are not a tensor, or classes that are not integers.
        CamlibValueError: images of another shape, classes of another number, ``count`` or ``side`` not a positive int,
            or fewer than n² classes.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import grid_pointing_game, mosaics
        >>> images, classes = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
        >>> drawn = mosaics(images, classes, count=5)
        >>> drawn.images.shape, drawn.target.shape, drawn.masks.shape
        (torch.Size([5, 3, 64, 64]), torch.Size([5, 4]), torch.Size([4, 64, 64]))
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4))
        >>> heatmaps = cam(drawn.images, drawn.target).heatmaps()  # (5, 4, 64, 64): of all tiles from one pass
        >>> grid_pointing_game(heatmaps.flatten(0, 1), drawn.masks.repeat(5, 1, 1)).shape
        torch.Size([20])
    """
    if not isinstance(images, Tensor):
        raise CamlibTypeError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    try:
        labels = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CamlibTypeError(f"classes must be integers (N,), got {classes!r}") from error
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise CamlibTypeError(f"classes must be integers (N,), got {labels.dtype}")
    if images.dim() != 4 or labels.shape != images.shape[:1]:
        raise CamlibValueError(
            f"images have shape {tuple(images.shape)} and classes {tuple(labels.shape)}; they must be (N, C, H, W) and "
            "(N,)"
        )
    tiles, known = positive_int("side", side) ** 2, labels.unique().cpu()
    if len(known) < tiles:
        raise CamlibValueError(
            f"a mosaic of {side} x {side} images needs {tiles} classes, and the images have {len(known)}; give "
            "images of more classes, or a smaller side"
        )
    own = own_generator(generator)
    index = torch.stack([_drawn(labels.cpu(), known, tiles, own) for _ in range(positive_int("count", count))])
    height, width = images.shape[2:]
    rows = images[index.to(images.device)].unflatten(1, (side, side))  # (M, n, n, C, H, W)
    place = torch.arange(tiles, device=images.device).reshape(side, side)
    place = place.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return Mosaics(
        images=rows.permute(0, 3, 1, 4, 2, 5).reshape(len(index), -1, side * height, side * width),
        target=labels[index.to(labels.device)],
        masks=place == torch.arange(tiles, device=images.device)[:, None, None],
    )


def _drawn(labels: Tensor, known: Tensor, tiles: int, generator: torch.Generator) -> Tensor:
    """Return the numbers (tiles,) of images of different classes."""
    device = generator.device
    chosen = known[torch.randperm(len(known), generator=generator, device=device)[:tiles].cpu()]
    draws = torch.rand(tiles, generator=generator, device=device, dtype=torch.float64).tolist()
    members = [(labels == one).nonzero().flatten() for one in chosen]
    return torch.stack([of[math.floor(draw * len(of))] for of, draw in zip(members, draws, strict=True)])
