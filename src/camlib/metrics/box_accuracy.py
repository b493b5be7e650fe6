"""Weakly supervised object localisation (Choe et al. 2020): do the boxes of a heatmap's regions fit the true ones?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, items, positive_int
from camlib.metrics.masks import checked_boxes, checked_share
from camlib.metrics.readings import checked_heatmaps, in_unit_range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REGIONS = ("largest", "all")
"""Which connected regions of a heatmap get a box."""


def max_box_acc(heatmaps: Any, boxes: Any, *, iou: float = 0.5, thresholds: int = 100) -> Tensor:
    r"""Whether the box of the heatmap's largest region fits a true one, at the best threshold for all images.

    .. math::
        \left[\max_b \operatorname{IoU}(\operatorname{box}(H \ge t^*), b) \ge \delta\right], \quad
        t^* = \operatorname{argmax}_t \sum_n \left[\max_b \operatorname{IoU}(\operatorname{box}(H_n \ge t), b) \ge
        \delta\right]

    with thresholds t = 0, 1/T, ..., (T - 1)/T; the lowest one if several are best. The mean over images is MaxBoxAcc;
    Choe et al. 2020, https://arxiv.org/abs/2007.04178. All images share the threshold, so that each result depends on
    the others: for a data set in several batches collect :func:`box_hits`. Higher is better. No forward pass.

    The authors' code compares heatmaps of 8 bits by >, adds a pixel to each box, counts the contours of holes as boxes
    and takes the largest by the area of its polygon. An IoU differs by 0.01 on average at 224 pixels and by 0.03 to
    0.05 at 64, so compare only numbers from the same code.

    Args:
        heatmaps: as for :func:`box_overlaps`.
        boxes: as for :func:`box_overlaps`.
        iou: :math:`\delta`, the intersection over union that is a hit, in (0, 1].
        thresholds: T, how many.

    Returns:
        (N,), 1 or 0.

    Raises:
        CamlibError: as for :func:`box_overlaps`.
        CamlibValueError: ``iou`` is not in (0, 1].

    Example:
        >>> import torch
        >>> heatmaps = torch.zeros(2, 8, 8)
        >>> heatmaps[:, 2:5, 3:6] = 0.7
        >>> max_box_acc(heatmaps, torch.tensor([[3, 2, 6, 5], [0, 0, 2, 2]]))
        tensor([1., 0.])
    """
    wanted = checked_share("iou", iou)
    overlaps = box_overlaps(heatmaps, boxes, thresholds=thresholds)
    return _at_best_threshold(overlaps >= wanted).to(overlaps)


def max_box_acc_v2(
    heatmaps: Any, boxes: Any, *, ious: Sequence[float] = (0.3, 0.5, 0.7), thresholds: int = 100
) -> Tensor:
    r"""Share of the IoUs at which a box of any of the heatmap's regions fits a true one.

    As :func:`max_box_acc`, but the best fitting box of all regions counts, and the mean is taken over several
    :math:`\delta`, each at its own best threshold. The mean over images is MaxBoxAccV2; Choe et al. 2020,
    https://arxiv.org/abs/2007.04178. Higher is better. No forward pass.

    Args:
        heatmaps: as for :func:`box_overlaps`.
        boxes: as for :func:`box_overlaps`.
        ious: :math:`\delta`, the intersections over union that are hits, each in (0, 1].
        thresholds: T, how many.

    Returns:
        (N,), in [0, 1].

    Raises:
        CamlibError: as for :func:`box_overlaps`.
        CamlibValueError: ``ious`` are empty, or not in (0, 1].

    Example:
        >>> import torch
        >>> heatmaps = torch.zeros(1, 8, 8)
        >>> heatmaps[:, 0:4, 0:4] = 0.7
        >>> max_box_acc_v2(heatmaps, torch.tensor([[0, 0, 4, 6]]))
        tensor([0.6667])
    """
    given = items("ious", ious, "a list of intersections over union in (0, 1]")
    if not given:
        raise CamlibValueError("ious are empty; give at least one intersection over union in (0, 1]")
    wanted = [checked_share("each of ious", value) for value in given]
    overlaps = box_overlaps(heatmaps, boxes, thresholds=thresholds, regions="all")
    return torch.stack([_at_best_threshold(overlaps >= value) for value in wanted]).to(overlaps).mean(0)


def box_hits(heatmaps: Any, boxes: Any, *, iou: float = 0.5, thresholds: int = 100, regions: str = "largest") -> Tensor:
    """Whether a box of the heatmap fits a true one, for each threshold.

    For a data set in several batches: ``torch.cat(tables).float().mean(0).max()`` is its MaxBoxAcc. No forward pass.

    Args:
        heatmaps: as for :func:`box_overlaps`.
        boxes: as for :func:`box_overlaps`.
        iou: the intersection over union that is a hit, in (0, 1].
        thresholds: as for :func:`box_overlaps`.
        regions: as for :func:`box_overlaps`.

    Returns:
        (N, T), bool.

    Raises:
        CamlibError: as for :func:`box_overlaps`.
        CamlibValueError: ``iou`` is not in (0, 1].

    Example:
        >>> import torch
        >>> heatmaps = torch.zeros(1, 8, 8)
        >>> heatmaps[:, 2:5, 3:6] = 0.7
        >>> box_hits(heatmaps, torch.tensor([[3, 2, 6, 5]]), thresholds=4)
        tensor([[False,  True,  True, False]])
    """
    wanted = checked_share("iou", iou)
    return box_overlaps(heatmaps, boxes, thresholds=thresholds, regions=regions) >= wanted


def box_overlaps(heatmaps: Any, boxes: Any, *, thresholds: int = 100, regions: str = "largest") -> Tensor:
    """How well the heatmap's boxes fit the true ones, for each threshold.

    A region is a set of pixels that reach the threshold, connected along sides or diagonals. No forward pass.

    Args:
        heatmaps: (N, H, W) in [0, 1], a tensor or an array.
        boxes: (N, 4), or a list of N tensors (M, 4), as for :func:`camlib.metrics.box_masks`.
        thresholds: T, how many; they are 0, 1/T, ..., (T - 1)/T.
        regions: "largest", the box of the region with most pixels (the uppermost, then leftmost, if several have as
            many); or "all".

    Returns:
        (N, T), the highest intersection over union of such a box and a true one; 0 if no pixel reaches the threshold.

    Raises:
        CamlibTypeError: not tensors or arrays of real numbers.
        CamlibValueError: heatmaps not of images or not in [0, 1], boxes not within the images, an image without a box,
            ``thresholds`` is not a positive int, or unknown regions.

    Example:
        >>> import torch
        >>> heatmaps = torch.zeros(1, 8, 8)
        >>> heatmaps[:, 0:4, 0:4] = 0.7
        >>> box_overlaps(heatmaps, torch.tensor([[0, 0, 4, 8]]), thresholds=4)
        tensor([[0.5000, 0.5000, 0.5000, 0.0000]])
    """
    if not isinstance(regions, str) or regions not in REGIONS:
        raise CamlibValueError(f'regions must be "largest" or "all", got {regions!r}')
    steps = positive_int("thresholds", thresholds)
    maps = in_unit_range(checked_heatmaps(heatmaps))
    if maps.dim() != 3:
        raise CamlibValueError(f"heatmaps have shape {tuple(maps.shape)}; boxes need heatmaps of images (N, H, W)")
    corners = checked_boxes(boxes, tuple(maps.shape[1:]), len(maps))
    without = (~(corners[..., 2] > 0).any(1)).nonzero().flatten().tolist()
    if without:
        raise CamlibValueError(f"images {without} have no box, so no heatmap is right there: leave these images out")
    sweep = [step / steps for step in range(steps)]
    pairs = zip(maps.detach().cpu().numpy(), corners.detach().cpu().double().numpy(), strict=True)
    # cv2 finds connected regions in one heatmap at one threshold.
    best = [[_best_overlap(_regions(values >= least, regions), true) for least in sweep] for values, true in pairs]
    return torch.tensor(best, dtype=torch.float64).to(maps)


def _at_best_threshold(hits: Tensor) -> Tensor:
    """Return the column of hits (N, T) with the most of them."""
    counts = hits.sum(0).tolist()
    return hits[:, counts.index(max(counts))]


def _regions(above: NDArray[np.bool_], regions: str) -> NDArray[np.float64]:
    """Return the boxes (R, 4) of regions."""
    import cv2
    import numpy as np

    _, _, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    left, top, width, height, area = stats[1:].astype(np.float64).T  # the first is what is not above
    boxes: NDArray[np.float64] = np.stack([left, top, left + width, top + height], axis=1)
    return boxes if regions == "all" else boxes[np.lexsort((left, top, -area))[:1]]


def _best_overlap(boxes: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the highest intersection over union of boxes (R, 4) and others (M, 4)."""
    import numpy as np

    sides = np.minimum(boxes[:, None, 2:], true[:, 2:]) - np.maximum(boxes[:, None, :2], true[:, :2])
    shared = sides.clip(min=0).prod(-1)
    areas, true_areas = ((of[:, 2:] - of[:, :2]).prod(-1) for of in (boxes, true))
    return float((shared / (areas[:, None] + true_areas - shared)).max(initial=0))
