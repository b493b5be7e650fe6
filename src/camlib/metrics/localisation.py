"""Does the heatmap lie where the object is? Against masks, or boxes, of the pixels that show it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.imaging.normalization import as_maps
from camlib.imaging.resizing import checked_size
from camlib.metrics.ranking import ranked, ranks
from camlib.metrics.scorer import checked_heatmaps, in_unit_range

EMPTY = ("error", "nan")
"""What an empty mask may be: it has no right answer."""


def pointing_game(
    heatmaps: Any,
    masks: Any,
    *,
    tolerance: float = 15,
    empty: str = "error",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Tell whether the highest pixel lies on the object, or close to it.

    .. math::
        \left[\min_{p \in M} |p - \operatorname{argmax}_q H_q| \le \text{tolerance}\right]

    Zhang et al. 2016, https://arxiv.org/abs/1608.00507; the mean over images is the paper's accuracy. Of several
    highest pixels one is drawn at random, so that a constant heatmap points anywhere. Higher is better. No forward
    pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array; with masks, (N, L) or (N, T, H, W), too.
        masks: (N, H, W), bool or 0 and 1; or boxes (N, 4), or a list of N tensors (M, 4) of all boxes of an image, as
            for :func:`box_masks`. Of the heatmaps' resolution.
        tolerance: Euclidean distance in pixels.
        empty: "error", or "nan" for a result of NaN where a mask is empty.
        generator: for the draw; without one, every call draws the same.

    Returns:
        (N,), 1 or 0.

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: masks of another shape or of other values, an empty mask, or a tolerance below 0.

    Example:
        >>> import torch
        >>> pointing_game(torch.eye(3)[None] * torch.arange(3), torch.tensor([[0, 0, 1, 1]]), tolerance=2)
        tensor([0.])
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
        raise CamlibValueError(f"tolerance must be a number of pixels, at least 0, got {tolerance!r}")
    maps, inside = _located(heatmaps, masks, empty)
    size = tuple(maps.shape[1:])
    squares = torch.zeros((), dtype=torch.long, device=maps.device)
    for axis, place in enumerate(torch.unravel_index(ranked(maps, generator)[:, 0], size), 1):
        shape = [len(maps), *[1] * len(size)]
        shape[axis] = size[axis - 1]
        squares = squares + (torch.arange(size[axis - 1], device=maps.device) - place[:, None]).square().reshape(shape)
    near = squares.sqrt() <= tolerance
    return _unless_empty((inside & near).flatten(1).any(1).to(maps.dtype), inside)


def energy_pointing_game(heatmaps: Any, masks: Any, *, empty: str = "error") -> Tensor:
    r"""Return the share of the heatmap that lies on the object: the relevance mass.

    .. math::
        \frac{\sum_{p \in M} H_p}{\sum_p H_p}

    Wang et al. 2020 (Score-CAM), https://arxiv.org/abs/1910.01279; Arras et al. 2022,
    https://arxiv.org/abs/2003.07258. A heatmap of zeros has 0. Higher is better; a heatmap that is spread evenly has
    the mask's share of the picture. No forward pass.

    Args:
        heatmaps: (N, H, W), not negative, a tensor or an array; with masks, (N, L) or (N, T, H, W), too.
        masks: as for :func:`pointing_game`.
        empty: as for :func:`pointing_game`.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: a negative heatmap, masks of another shape or of other values, or an empty mask.

    Example:
        >>> import torch
        >>> energy_pointing_game(torch.tensor([[[0.0, 1.0], [2.0, 1.0]]]), torch.tensor([[[0, 0], [1, 1]]]))
        tensor([0.7500])
    """
    maps, inside = _located(heatmaps, masks, empty)
    lowest = float(maps.min())
    if lowest < 0:
        raise CamlibValueError(
            f"heatmaps reach down to {lowest:.3g}; shares of a sum need values of at least 0: heatmaps.clamp(min=0) "
            "takes the positive evidence, and heatmaps.abs() all"
        )
    energy = maps.flatten(1)
    highest = energy.amax(1, keepdim=True)
    energy = energy / highest.masked_fill(highest == 0, 1)  # or the sum of large values overflows
    total = energy.sum(1)
    share = (energy * inside.flatten(1)).sum(1) / total.masked_fill(total == 0, 1)
    return _unless_empty(share, inside)


def relevance_rank(
    heatmaps: Any, masks: Any, *, empty: str = "error", generator: torch.Generator | None = None
) -> Tensor:
    r"""Return how many of the highest pixels, as many as the object has, lie on it.

    .. math::
        \frac{|\text{top}_K(H) \cap M|}{K}, \quad K = |M|

    The relevance rank accuracy of Arras et al. 2022, https://arxiv.org/abs/2003.07258. Ties are shuffled. Higher is
    better. No forward pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array; with masks, (N, L) or (N, T, H, W), too.
        masks: as for :func:`pointing_game`.
        empty: as for :func:`pointing_game`.
        generator: for the shuffle; without one, every call draws the same.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: masks of another shape or of other values, or an empty mask.

    Example:
        >>> import torch
        >>> relevance_rank(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 0], [1, 1]]]))
        tensor([0.5000])
    """
    maps, inside = _located(heatmaps, masks, empty)
    counts = inside.flatten(1).sum(1)
    chosen = ranks(maps, generator).flatten(1) < counts[:, None]
    found = (chosen & inside.flatten(1)).sum(1).to(maps.dtype)
    return _unless_empty(found / counts.clamp(min=1), inside)


def top_k_intersection(
    heatmaps: Any, masks: Any, *, k: int = 1000, empty: str = "error", generator: torch.Generator | None = None
) -> Tensor:
    r"""Return how many of the k highest pixels lie on the object.

    .. math::
        \frac{|\text{top}_k(H) \cap M|}{k}

    Theiner et al. 2021, https://arxiv.org/abs/2104.14995. Ties are shuffled. Higher is better; an object of fewer than
    k pixels cannot reach 1. No forward pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array; with masks, (N, L) or (N, T, H, W), too.
        masks: as for :func:`pointing_game`.
        k: pixels, at most those of a heatmap.
        empty: as for :func:`pointing_game`.
        generator: for the shuffle; without one, every call draws the same.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: k is not from 1 to the number of pixels, masks of another shape or of other values, or an
            empty mask.

    Example:
        >>> import torch
        >>> top_k_intersection(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 1], [0, 1]]]), k=1)
        tensor([1.])
    """
    maps, inside = _located(heatmaps, masks, empty)
    pixels = maps[0].numel()
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= pixels:
        raise CamlibValueError(f"k must be an int from 1 to the {pixels} pixels of a heatmap, got {k!r}")
    chosen = ranked(maps, generator)[:, :k]
    return _unless_empty(inside.flatten(1).gather(1, chosen).sum(1).to(maps.dtype) / k, inside)


def iou(heatmaps: Any, masks: Any, *, threshold: float = 0.5, empty: str = "error") -> Tensor:
    r"""Return the intersection over union of the object and the pixels that reach a threshold.

    .. math::
        \frac{|\{H \ge t\} \cap M|}{|\{H \ge t\} \cup M|}

    Higher is better. No forward pass.

    Args:
        heatmaps: (N, H, W) in [0, 1], a tensor or an array; with masks, (N, L) or (N, T, H, W), too.
        masks: as for :func:`pointing_game`.
        threshold: t, in (0, 1].
        empty: as for :func:`pointing_game`.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: heatmaps that are not in [0, 1], a threshold that is not in (0, 1], masks of another shape or
            of other values, or an empty mask.

    Example:
        >>> import torch
        >>> iou(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), torch.tensor([[[0, 1], [0, 1]]]))
        tensor([0.3333])
    """
    checked_share("threshold", threshold)
    maps, inside = _located(heatmaps, masks, empty)
    found, inside = (in_unit_range(maps) >= threshold).flatten(1), inside.flatten(1)
    both, either = ((found & inside).sum(1), (found | inside).sum(1))
    return _unless_empty(both.to(maps.dtype) / either.clamp(min=1), inside)


def box_masks(boxes: Any, size: tuple[int, int]) -> Tensor:
    """Return masks that are true inside boxes: at the pixels whose centres lie there.

    Args:
        boxes: (N, 4), a tensor or an array with one box for each image; or a list of N of them, each (M, 4) with all
            boxes of an image, (0, 4) where it has none. (left, top, right, bottom) in pixels, right and bottom the
            first outside.
        size: (H, W).

    Returns:
        (N, H, W), bool, on the device of the boxes.

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: another shape, or a box that is empty or reaches beyond the picture.

    Example:
        >>> import torch
        >>> box_masks(torch.tensor([[1, 0, 3, 1]]), (2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    height, width = checked_size(size)
    return _inside(checked_boxes(boxes, (height, width)), (height, width))


def checked_boxes(boxes: Any, size: tuple[int, ...], images: int | None = None) -> Tensor:
    """Return boxes (N, M, 4) of floats, checked; images of fewer than M have zeros at the end.

    Args:
        boxes: as for :func:`box_masks`.
        size: (H, W) of the pictures.
        images: N, where it is known.

    Raises:
        CamlibTypeError: no tensors or arrays of real numbers.
        CamlibValueError: another shape, or a box that is empty or reaches beyond the picture.
    """
    if isinstance(boxes, (list, tuple)):
        corners = [_corners(of_image, f"boxes of image {image}") for image, of_image in enumerate(boxes)]
    else:
        corners = list(_corners(boxes, "boxes")[:, None])
    if not corners or (images is not None and len(corners) != images):
        raise CamlibValueError(
            f"boxes are given for {len(corners)} images, expected {'some' if images is None else images}: a tensor "
            "(N, 4) holds one box for each image; a list one tensor (M, 4) for each, (0, 4) where it has none"
        )
    every = torch.cat([of_image.to(corners[0].device) for of_image in corners])
    height, width = size
    left, top, right, bottom = every.unbind(1)
    wrong = (left < 0) | (top < 0) | (right > width) | (bottom > height) | (left >= right) | (top >= bottom)
    if bool(wrong.any()):
        raise CamlibValueError(
            f"a box is {tuple(every[wrong][0].tolist())}; in pictures of {height} x {width} pixels (left, top, right, "
            f"bottom) must be such that 0 <= left < right <= {width} and 0 <= top < bottom <= {height}: convert boxes "
            "of another order, such as (left, top, width, height), or of another resolution"
        )
    return torch.nn.utils.rnn.pad_sequence(list(every.split([len(of) for of in corners])), batch_first=True)


def checked_share(name: str, value: object) -> float:
    """Return a number in (0, 1].

    Raises:
        CamlibValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise CamlibValueError(f"{name} must be a number in (0, 1], got {value!r}")
    return float(value)


def _corners(boxes: Any, name: str) -> Tensor:
    if getattr(boxes, "shape", None) == (0, 4):
        return torch.as_tensor(boxes).float()
    corners = as_maps(boxes, name, dims=1)
    if corners.dim() != 2 or corners.shape[1] != 4:
        raise CamlibValueError(
            f"{name} have shape {tuple(boxes.shape)}; each box must be a row of 4 numbers (left, top, right, bottom): "
            "box[None] makes a row of one box; masks are given not as a list, but as torch.stack(masks)"
        )
    return corners


def _inside(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks (N, H, W) of boxes (N, M, 4)."""
    left, top, right, bottom = corners[..., None].unbind(2)  # each (N, M, 1)
    rows, columns = (torch.arange(side, device=corners.device) + 0.5 for side in size)
    down, aside = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return torch.einsum("nmh,nmw->nhw", down.float(), aside.float()) > 0


def _located(heatmaps: Any, masks: Any, empty: str) -> tuple[Tensor, Tensor]:
    """Return heatmaps (N, ...) and masks (N, ...) of bools, checked."""
    if empty not in EMPTY:
        raise CamlibValueError(f'empty must be "error" or "nan", got {empty!r}')
    maps = checked_heatmaps(heatmaps)
    inside = _masks(masks, maps).to(maps.device)
    missing = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if missing and empty == "error":
        raise CamlibValueError(
            f"masks of images {missing} are empty, and no heatmap is right there: leave these images out, or take "
            'empty="nan" for a result of NaN'
        )
    return maps, inside


def _masks(masks: Any, maps: Tensor) -> Tensor:
    shape = tuple(getattr(masks, "shape", ()))
    if isinstance(masks, (list, tuple)) or (maps.dim() == 3 and len(shape) == 2 and shape[1] == 4):
        if maps.dim() != 3:
            raise CamlibValueError(
                f"boxes are of pictures (N, H, W), and heatmaps have shape {tuple(maps.shape)}: give masks of that "
                "shape, a tensor of bools"
            )
        size = (maps.shape[1], maps.shape[2])
        return _inside(checked_boxes(masks, size, len(maps)), size)
    if not shape:
        raise CamlibTypeError(
            f"masks must be a tensor or an array of bools, or boxes: (N, 4), or a list of N tensors (M, 4); got "
            f"{type(masks).__name__}"
        )
    values = as_maps(masks, "masks", dims=1)
    if values.shape != maps.shape:
        raise CamlibValueError(
            f"masks have shape {shape}, and heatmaps {tuple(maps.shape)}: they must be the same, or boxes (N, 4), or a "
            "list of N tensors (M, 4); explanation.heatmaps(size) gives heatmaps of any resolution"
        )
    if not bool(((values == 0) | (values == 1)).all()):
        low, high = values.aminmax()
        raise CamlibValueError(
            f"masks are in [{float(low):.3g}, {float(high):.3g}]; they must be bools, or 0 and 1: masks > 0.5 or, of "
            "255 for yes, masks > 127 makes them so"
        )
    return values == 1


def _unless_empty(results: Tensor, inside: Tensor) -> Tensor:
    return results.masked_fill(~inside.flatten(1).any(1), torch.nan)
