"""Scores of detections: the one that overlaps with a box, at any place in the list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Outputs
from camlib.targets.base import BoundTarget, Target
from camlib.targets.indices import image_indices, integers

Detection = Mapping[str, Tensor]


class Box(Target):
    """The score of the detection d that overlaps best with a box b: score of argmax over d of IoU(d, b).

    Outputs are a list with, for each image, a mapping of boxes (M, 4) as (x1, y1, x2, y2), scores (M,) and labels
    (M,), as torchvision's detectors return them. The detection is found by its overlap, so its place in the list
    does not matter. Of the perturbed images that some methods run, one where no detection overlaps enough scores 0: the
    object has vanished.

    Args:
        boxes: (4,), (N, 4), or (N, K, 4) for K maps of each image, in the detections' pixels; None for the detection
            with the highest score of each image, whose box and label are kept.
        labels: the labels that the detections must have: an int, one per image, or (N, K); None for any.
        iou: the least overlap, intersection over union in (0, 1], of a detection that counts.

    Raises:
        CamlibTypeError: the outputs are no detections, or box, labels or iou are no numbers.
        CamlibValueError: boxes of another shape or without an area, or no detection of an image matches.

    Example:
        >>> import camlib, torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
        >>> found = [{"boxes": boxes, "scores": torch.tensor([0.9, 0.6]), "labels": torch.tensor([1, 7])}]
        >>> target = camlib.targets.bind(camlib.targets.Box([21, 20, 40, 40]), found)
        >>> camlib.targets.score(target, found, torch.tensor([0]))
        tensor([0.6000])
    """

    spatial = True

    def __init__(self, boxes: Any = None, labels: Any = None, iou: float = 0.5) -> None:
        if isinstance(iou, bool) or not isinstance(iou, (int, float)):
            raise CamlibTypeError(f"iou must be a number, got {type(iou).__name__}: {iou!r}")
        if not 0 < iou <= 1:
            raise CamlibValueError(f"iou must be in (0, 1], got {iou}")
        self._boxes = None if boxes is None else _checked_boxes(boxes)
        self._labels = None if labels is None else integers(labels, "label")
        self._iou = iou

    def bind(self, outputs: Any) -> BoundBox:
        """Return the score of the box and label of each image, found among the detections."""
        detections = _detections(outputs)
        boxes, labels = self._best(detections) if self._boxes is None else self._given(detections)
        for image, detection in enumerate(detections):
            overlaps, _ = _match(detection, boxes[image], None if labels is None else labels[image])
            for box, overlap in zip(boxes[image].tolist(), overlaps.tolist(), strict=True):
                if overlap < self._iou:
                    raise CamlibValueError(
                        f"none of the {len(detection['boxes'])} detections of image {image} "
                        f"{'' if labels is None else f'with label {labels[image].tolist()} '}overlaps box {box} with "
                        f"an IoU of {self._iou} or more: the best has {overlap:.3f}; give a box that the model "
                        "finds, or a lower iou="
                    )
        return BoundBox(boxes, labels, self._iou, several=self._boxes is not None and self._boxes.dim() == 3)

    def _best(self, detections: list[Detection]) -> tuple[Tensor, Tensor | None]:
        """Box (N, 1, 4) and label (N, 1) of each image's best detection, among those with the labels given."""
        wanted = None if self._labels is None else image_indices(self._labels, len(detections), None, "label")
        if wanted is not None and wanted.dim() == 2:
            raise CamlibValueError("several labels of each image need a box for each: give boxes= (N, K, 4)")
        boxes, labels = [], []
        for image, detection in enumerate(detections):
            scores = detection["scores"].detach()
            eligible = (detection["boxes"][:, 2:] > detection["boxes"][:, :2]).all(1)
            if wanted is not None:
                eligible = eligible & (_labels_of(detection) == wanted[image].to(scores.device))
            if not bool(eligible.any()):
                which = "" if wanted is None else f" and label {int(wanted[image])}"
                raise CamlibValueError(
                    f"image {image} has no detection with an area{which}, of {len(scores)}; leave it out, or lower the "
                    "model's score threshold"
                )
            best = scores.masked_fill(~eligible, -torch.inf).argmax()
            boxes.append(detection["boxes"][best].detach())
            labels.append(detection["labels"][best] if "labels" in detection else None)
        known = [label for label in labels if label is not None]
        return torch.stack(boxes)[:, None], torch.stack(known)[:, None] if len(known) == len(boxes) else None

    def _given(self, detections: list[Detection]) -> tuple[Tensor, Tensor | None]:
        """The boxes given as (N, K, 4), and their labels as (N, K)."""
        assert self._boxes is not None
        images, device = len(detections), detections[0]["boxes"].device
        boxes = self._boxes.to(device)
        boxes = boxes.expand(images, 4) if boxes.dim() == 1 else boxes
        if len(boxes) != images:
            raise CamlibValueError(f"boxes have shape {tuple(boxes.shape)} for {images} images; give {images} of them")
        boxes = boxes.reshape(images, -1, 4)
        if self._labels is None:
            return boxes, None
        labels = image_indices(self._labels, images, None, "label").to(device)
        if labels.dim() == 2 and labels.shape != boxes.shape[:2]:
            raise CamlibValueError(
                f"labels have shape {tuple(labels.shape)} for boxes {tuple(boxes.shape)}; give a label for each box"
            )
        return boxes, labels.reshape(images, -1).expand(boxes.shape[:2])


class BoundBox(BoundTarget):
    """The scores of the detections that overlap best with the boxes of each image.

    Args:
        boxes: (N, K, 4).
        labels: (N, K), which the detections must have; None for any.
        iou: the least overlap of a detection that counts.
        several: whether scores have an axis for K.
    """

    spatial = True
    explained = "Box"

    def __init__(self, boxes: Tensor, labels: Tensor | None, iou: float, *, several: bool) -> None:
        self.boxes = boxes
        self.labels = labels
        self.images = len(boxes)
        self._iou = iou
        self._several = several

    def mirrored(self, width: int) -> BoundBox:
        """Return the target with its boxes mirrored: x becomes width - x."""
        left, top, right, bottom = self.boxes.unbind(-1)
        mirrored = torch.stack([width - right, top, width - left, bottom], -1)
        return BoundBox(mirrored, self.labels, self._iou, several=self._several)

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores of the matching detections, (rows,) or (rows, K); 0 where there is none."""
        rows = []
        for detection, image in zip(_detections(outputs), image_index.tolist(), strict=True):
            labels = None if self.labels is None else self.labels[image]
            overlaps, scores = _match(detection, self.boxes[image], labels)
            rows.append(torch.where(overlaps >= self._iou, scores, 0))
        scores = torch.stack(rows)
        return scores if self._several else scores.squeeze(1)


def _match(detection: Detection, boxes: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return for each of (K, 4) boxes the best detection's IoU and score, both (K,); both 0 where there is none."""
    overlaps = _iou(boxes, detection["boxes"].detach())
    if labels is not None:
        overlaps = overlaps.masked_fill(labels[:, None] != _labels_of(detection), 0)
    # one more detection, with neither overlap nor score, stands for none
    overlaps = torch.cat([overlaps, overlaps.new_zeros(len(boxes), 1)], 1)
    scores = torch.cat([detection["scores"], detection["scores"].new_zeros(1)])
    most = overlaps.amax(1)
    # of several that lie alike, as one box with two labels, the one with the highest score, in whatever order
    best = scores.detach().expand_as(overlaps).masked_fill(overlaps < most[:, None], -torch.inf).argmax(1)
    return most, scores[best]


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, (K, M), of boxes (K, 4) and (M, 4) as (x1, y1, x2, y2)."""
    one, other = one.double()[:, None], other.double()
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    shared = sides.clamp(min=0).prod(-1)
    return shared / ((one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - shared)


def _detections(outputs: Any) -> list[Detection]:
    if not Outputs(outputs).is_detections:
        raise CamlibTypeError(
            f"Box needs a list with a mapping of 'boxes' and 'scores' for each image; the model returns a "
            f"{type(outputs).__name__}. Put a detector in eval mode, or pass forward= to make such a list"
        )
    return list(outputs)


def _labels_of(detection: Detection) -> Tensor:
    if "labels" not in detection:
        raise CamlibTypeError(f"labels are asked for, and the detections have only {', '.join(detection)}")
    return detection["labels"]


def _checked_boxes(given: Any) -> Tensor:
    try:
        boxes = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CamlibTypeError(f"boxes {given!r} are not understood; give numbers (x1, y1, x2, y2)") from error
    if boxes.dim() not in (1, 2, 3) or boxes.shape[-1] != 4 or not boxes.numel():
        raise CamlibValueError(f"boxes have shape {tuple(boxes.shape)}; give (4,), (N, 4) or (N, K, 4)")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise CamlibTypeError(f"boxes hold {boxes.dtype} values; give numbers (x1, y1, x2, y2)")
    if not bool((boxes[..., 2:] > boxes[..., :2]).all()):
        flat = boxes.reshape(-1, 4)
        wrong = flat[~(flat[:, 2:] > flat[:, :2]).all(1)][0].tolist()
        raise CamlibValueError(f"box {wrong} has no area as (x1, y1, x2, y2); convert it from (x, y, width, height)?")
    return boxes
