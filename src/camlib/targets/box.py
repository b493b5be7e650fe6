"""Scores of detections: the one that overlaps best with a box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number
from camlib.inputs import Outputs
from camlib.targets.base import BoundTarget, Target
from camlib.targets.indices import as_tensor, image_indices, integers

Detection = Mapping[str, Tensor]


class Box(Target):
    """The score of the detection d that overlaps best with a box b: score of argmax over d of IoU(d, b).

    Outputs are a list with, for each image, a mapping of boxes (M, 4) as (x1, y1, x2, y2), scores (M,) and labels
    (M,), as torchvision's detectors return them. The detection is found by its overlap, so its place in the list
    does not matter. A perturbed image in which no detection overlaps enough scores 0: the object has vanished.

    Args:
        boxes: (4,), (N, 4), or (N, K, 4) for K maps of each image, in the detections' pixels; None for the box
            and the label of the detection with the highest score in each image.
        labels: the labels that the detections must have: an int, one per image, or (N, K); None for any.
        iou: the smallest overlap of a detection that counts, as intersection over union in (0, 1].

    Raises:
        CamlibTypeError: the outputs are not detections, or boxes, labels or iou are not numbers.
        CamlibValueError: boxes of another shape or without an area, or an image without a matching detection.

    Example:
        >>> import camlib, torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
        >>> found = [{"boxes": boxes, "scores": torch.tensor([0.9, 0.6]), "labels": torch.tensor([1, 7])}]
        >>> target = camlib.targets.bind(camlib.targets.Box([21, 20, 40, 40]), found)
        >>> camlib.targets.score(target, found, torch.tensor([0]))
        tensor([0.6000])
    """

    def __init__(self, boxes: Any = None, labels: Any = None, iou: float = 0.5) -> None:
        self._boxes = None if boxes is None else _checked_boxes(boxes)
        self._labels = None if labels is None else integers(labels, "label")
        self._iou = number("iou", iou, above=0, at_most=1)

    def bind(self, outputs: Any) -> BoundBox:
        """Return the scores of the detections that match the boxes; without boxes, of the best detections."""
        detections = _detections(outputs)
        labels = None if self._labels is None else image_indices(self._labels, len(detections), None, "label")
        boxes, labels = _best(detections, labels) if self._boxes is None else _given(self._boxes, detections, labels)
        bound = BoundBox(boxes, labels, self._iou)
        for image, detection in enumerate(detections):
            overlaps, _ = bound.match(detection, image)
            for box, overlap in zip(boxes[image].reshape(-1, 4).tolist(), overlaps.tolist(), strict=True):
                if overlap < self._iou:
                    raise CamlibValueError(
                        f"none of the {len(detection['boxes'])} detections of image {image} "
                        f"{'' if labels is None else f'with label {labels[image].tolist()} '}overlaps box {box} with "
                        f"an IoU of {self._iou} or more: the best has {overlap:.3f}; give a box that the model "
                        "finds, or a lower iou="
                    )
        return bound


@dataclass(frozen=True, eq=False)
class BoundBox(BoundTarget):
    """The scores of the detections that overlap best with the boxes of each image.

    Args:
        boxes: (N, 4) or (N, K, 4).
        labels: (N, K), which the detections must have, where K is 1 for boxes (N, 4); None for any.
        iou: the smallest overlap of a detection that counts.
    """

    boxes: Tensor
    labels: Tensor | None
    iou: float

    spatial = True
    explained = Box.__name__

    @property
    def images(self) -> int:
        """N."""
        return len(self.boxes)

    def mirrored(self, width: int) -> Self:
        """Return the target with mirrored boxes: x becomes width - x."""
        left, top, right, bottom = self.boxes.unbind(-1)
        return replace(self, boxes=torch.stack([width - right, top, width - left, bottom], -1))

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores of the matching detections, (rows,) or (rows, K); 0 where there is none."""
        rows = []
        for detection, image in zip(_detections(outputs), image_index.tolist(), strict=True):
            overlaps, scores = self.match(detection, image)
            rows.append(torch.where(overlaps >= self.iou, scores, 0))
        return torch.stack(rows).reshape(len(rows), *self.boxes.shape[1:-1])

    def match(self, detection: Detection, image: int) -> tuple[Tensor, Tensor]:
        """Return the IoU and the score, (K,) each, of the detection that overlaps best with each box of an image."""
        from torchvision.ops import box_iou

        overlaps = box_iou(self.boxes[image].reshape(-1, 4).double(), detection["boxes"].detach().double())
        if self.labels is not None:
            overlaps = overlaps.masked_fill(self.labels[image][:, None] != _labels_of(detection), 0)
        # a detection with IoU 0 and score 0 is added, which is the best where there is no other
        overlaps = torch.cat([overlaps, overlaps.new_zeros(len(overlaps), 1)], 1)
        scores = torch.cat([detection["scores"], detection["scores"].new_zeros(1)])
        most = overlaps.amax(1)
        # of detections that overlap equally, such as one box with two labels, the highest score counts
        best = scores.detach().expand_as(overlaps).masked_fill(overlaps < most[:, None], -torch.inf).argmax(1)
        return most, scores[best]


def _best(detections: list[Detection], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the box (N, 4) and label (N, 1) of each image's best detection, among those with the labels given."""
    if labels is not None and labels.dim() == 2:
        raise CamlibValueError("several labels of each image need a box for each: give boxes= (N, K, 4)")
    best = []
    for image, detection in enumerate(detections):
        scores, eligible = detection["scores"].detach(), _have_area(detection["boxes"])
        if labels is not None:
            eligible = eligible & (_labels_of(detection) == labels[image].to(scores.device))
        if not bool(eligible.any()):
            which = "" if labels is None else f" and label {int(labels[image])}"
            raise CamlibValueError(
                f"image {image} has no detection with an area{which}, of {len(scores)}; leave it out, or lower the "
                "model's score threshold"
            )
        best.append((detection, scores.masked_fill(~eligible, -torch.inf).argmax()))
    boxes = torch.stack([detection["boxes"][place].detach() for detection, place in best])
    if not all("labels" in detection for detection in detections):
        return boxes, None
    return boxes, torch.stack([detection["labels"][place] for detection, place in best])[:, None]


def _given(boxes: Tensor, detections: list[Detection], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the boxes of each image, (N, 4) or (N, K, 4), and their labels (N, K)."""
    images, device = len(detections), detections[0]["boxes"].device
    boxes = (boxes.expand(images, 4) if boxes.dim() == 1 else boxes).to(device)
    if len(boxes) != images:
        raise CamlibValueError(f"boxes have shape {tuple(boxes.shape)} for {images} images; give {images} of them")
    if labels is None:
        return boxes, None
    each = boxes.reshape(images, -1, 4).shape[:2]
    if labels.dim() == 2 and labels.shape != each:
        raise CamlibValueError(
            f"labels have shape {tuple(labels.shape)} for boxes {tuple(boxes.shape)}; give a label for each box"
        )
    return boxes, labels.reshape(images, -1).expand(each).to(device)


def _have_area(boxes: Tensor) -> Tensor:
    """Whether each of (..., 4) boxes has a positive width and height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def _detections(outputs: Any) -> list[Detection]:
    if not Outputs(outputs).is_detections:
        raise CamlibTypeError(
            f"Box needs a list with a mapping of 'boxes' and 'scores' for each image; the model returns a "
            f"{type(outputs).__name__}. Put a detector in eval mode, or pass forward= to make such a list"
        )
    return list(outputs)


def _labels_of(detection: Detection) -> Tensor:
    if "labels" not in detection:
        raise CamlibTypeError(f"labels are given, and the detections have only {', '.join(detection)}")
    return detection["labels"]


def _checked_boxes(given: Any) -> Tensor:
    boxes = as_tensor(given, f"boxes {given!r} are not understood; give numbers (x1, y1, x2, y2)").detach()
    if boxes.dim() not in (1, 2, 3) or boxes.shape[-1] != 4 or not boxes.numel():
        raise CamlibValueError(f"boxes have shape {tuple(boxes.shape)}; give (4,), (N, 4) or (N, K, 4)")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise CamlibTypeError(f"boxes hold {boxes.dtype} values; give numbers (x1, y1, x2, y2)")
    if len(empty := boxes[~_have_area(boxes)]):
        raise CamlibValueError(
            f"box {empty[0].tolist()} has no area as (x1, y1, x2, y2); convert it if it is (x, y, width, height)"
        )
    return boxes
