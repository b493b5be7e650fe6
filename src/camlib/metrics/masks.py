"""Where the objects are: masks, and boxes of the pixels that show them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number
from camlib.imaging.normalization import as_maps
from camlib.imaging.resizing import checked_size


def box_masks(boxes: Any, size: tuple[int, int]) -> Tensor:
    """Return masks that are true at the pixels whose centres lie inside boxes.

    Args:
        boxes: (N, 4), a tensor or an array with one box for each image; or a list of N of them, each (M, 4) with all
            boxes of an image, (0, 4) if it has none. (left, top, right, bottom) in pixels, right and bottom the
            first outside.
        size: (H, W).

    Returns:
        (N, H, W), bool, on the device of the boxes.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: another shape, or a box that is empty or reaches beyond the image.

    Example:
        >>> import torch
        >>> box_masks(torch.tensor([[1, 0, 3, 1]]), (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    height, width = checked_size(size)
    return _inside(checked_boxes(boxes, (height, width)), (height, width))


def checked_boxes(boxes: Any, size: tuple[int, ...], images: int | None = None) -> Tensor:
    """Return boxes (N, M, 4) of floats; images with fewer than M have zeros at the end.

    Args:
        boxes: as for :func:`box_masks`.
        size: (H, W) of the images.
        images: N, if known.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: another shape, or a box that is empty or reaches beyond the image.
    """
    if isinstance(boxes, (list, tuple)):
        corners = [_corners(of_image, f"boxes of image {image}") for image, of_image in enumerate(boxes)]
    else:
        corners = list(_corners(boxes, "boxes")[:, None])
    if not corners or (images is not None and len(corners) != images):
        raise CamlibValueError(
            f"boxes are given for {len(corners)} images, expected {'some' if images is None else images}: a tensor "
            "(N, 4) holds one box for each image; a list one tensor (M, 4) for each, (0, 4) if it has none"
        )
    every = torch.cat([of_image.to(corners[0].device) for of_image in corners])
    height, width = size
    left, top, right, bottom = every.unbind(1)
    wrong = (left < 0) | (top < 0) | (right > width) | (bottom > height) | (left >= right) | (top >= bottom)
    if bool(wrong.any()):
        raise CamlibValueError(
            f"a box is {tuple(every[wrong][0].tolist())}; in images of {height} x {width} pixels (left, top, right, "
            f"bottom) must be such that 0 <= left < right <= {width} and 0 <= top < bottom <= {height}: convert boxes "
            "of another order, such as (left, top, width, height), or of another resolution"
        )
    return torch.nn.utils.rnn.pad_sequence(list(every.split([len(of) for of in corners])), batch_first=True)


def checked_share(name: str, value: object) -> float:
    """Return a number in (0, 1].

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`camlib.errors.number`.
    """
    return number(name, value, above=0, at_most=1)


def _corners(boxes: Any, name: str) -> Tensor:
    if getattr(boxes, "shape", None) == (0, 4):
        return torch.as_tensor(boxes).float()
    corners = as_maps(boxes, name, dims=1)
    if corners.dim() != 2 or corners.shape[1] != 4:
        raise CamlibValueError(
            f"{name} have shape {tuple(boxes.shape)}; each box must be a row of 4 numbers (left, top, right, bottom): "
            "box[None] makes a row of one box; a list of masks must be stacked: torch.stack(masks)"
        )
    return corners


def _inside(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks (N, H, W) of boxes (N, M, 4)."""
    left, top, right, bottom = corners[..., None].unbind(2)  # each (N, M, 1)
    rows, columns = (torch.arange(side, device=corners.device) + 0.5 for side in size)
    down, aside = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return torch.einsum("nmh,nmw->nhw", down.float(), aside.float()) > 0


def masks_of(masks: Any, maps: Tensor) -> Tensor:
    """Return masks (N, ...) of bools of the same shape as heatmaps, from masks or boxes.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: masks of another shape or other values.
    """
    shape = tuple(getattr(masks, "shape", ()))
    if isinstance(masks, (list, tuple)) or (maps.dim() == 3 and len(shape) == 2 and shape[1] == 4):
        if maps.dim() != 3:
            raise CamlibValueError(
                f"boxes need heatmaps of images (N, H, W), and these have shape {tuple(maps.shape)}: give masks of "
                "that shape, a tensor of bools"
            )
        size = (maps.shape[1], maps.shape[2])
        return _inside(checked_boxes(masks, size, len(maps)), size)
    if not shape:
        raise CamlibTypeError(
            f"masks must be a tensor or an array of bools, or boxes: (N, 4), or a list of N tensors (M, 4); got "
            f"{type(masks).__name__}"
        )
    values = as_maps(masks, "masks", dims=1)
    if values.shape == (len(maps), 1, *maps.shape[1:]):
        raise CamlibValueError(f"masks {shape} have an axis of channels; heatmaps {tuple(maps.shape)} need masks[:, 0]")
    if values.shape != maps.shape:
        raise CamlibValueError(
            f"masks have shape {shape}, and heatmaps {tuple(maps.shape)}: they must be the same, or boxes (N, 4), or a "
            "list of N tensors (M, 4); explanation.heatmaps(size) gives heatmaps of any resolution"
        )
    if not bool(((values == 0) | (values == 1)).all()):
        low, high = values.aminmax()
        raise CamlibValueError(
            f"masks are in [{float(low):.3g}, {float(high):.3g}]; they must be bools, or 0 and 1: masks > 0.5, or "
            "masks > 127 for masks of 0 and 255"
        )
    return values == 1
