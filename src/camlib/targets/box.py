"""Scores of detections: the one that overlaps best with a box."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, number
from camlib.inputs import Detections
from camlib.targets.base import BoundTarget, Target
from camlib.targets.boxes import best_boxes, checked_boxes, detections_of, given_boxes, in_units_of, mirrored
from camlib.targets.indices import check_range, image_indices, integers


class Box(Target):
    """The score of the detection d that overlaps best with a box b: score of argmax over d of IoU(d, b).

    The outputs of torchvision's detectors are read, and of any other that returns, for each image, a mapping of boxes
    (M, 4) as (x1, y1, x2, y2), scores (M,) and labels (M,); those of Hugging Face's (DETR, RT-DETR, YOLOS, OWL-ViT and
    their kin); and those of ultralytics' networks (YOLO) in eval mode. The score is the one that the model's own
    post-processing reports, a probability. The detection is found by its overlap, so its place in the list does not
    matter. A perturbed image in which no detection overlaps enough scores 0: the object has vanished.

    YOLO and DETR return every candidate, before overlapping or faint ones are dropped. The best overlap with a box
    drawn by hand may then be a faint one of another class: give a box that the model reports, or ``labels``.

    Args:
        boxes: (4,), (N, 4), or (N, K, 4) for K maps of each image, in pixels of the model's inputs. For Hugging Face's
            detectors also as fractions of the image's width and height. None for the box and the label of the detection
            with the highest score in each image.
        labels: the labels that the detections must have: an int, one per image, or (N, K); None for any, of which the
            best counts.
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
        self._boxes = None if boxes is None else checked_boxes(boxes)
        self._labels = None if labels is None else integers(labels, "label")
        self._iou = number("iou", iou, above=0, at_most=1)

    def bind(self, outputs: Any) -> BoundBox:
        """Return the scores of the detections that match the boxes; without boxes, of the best detections."""
        detections = detections_of(outputs, Box.__name__)
        labels = None if self._labels is None else image_indices(self._labels, len(detections), None, "label")
        if labels is not None and (classes := detections[0].classes) is not None:
            check_range(labels, classes, "label")
        if self._boxes is None:
            boxes, labels = best_boxes(detections, labels)
        else:
            given = in_units_of(outputs, detections, self._boxes)
            boxes, labels = given_boxes(given, detections, labels)
        bound = BoundBox(boxes, labels, self._iou, detections[0].relative)
        for image, detection in enumerate(detections):
            overlaps, _ = bound.match(detection, image)
            for box, overlap in zip(boxes[image].reshape(-1, 4).tolist(), overlaps.tolist(), strict=True):
                if overlap < self._iou:
                    units = " (in fractions of the image)" if bound.relative else ""
                    raise CamlibValueError(
                        f"none of the {len(detection)} detections of image {image} "
                        f"{'' if labels is None else f'with label {labels[image].tolist()} '}overlaps box {box}{units} "
                        f"with an IoU of {self._iou} or more: the best has {overlap:.3f}; give a box that the model "
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
        relative: whether the boxes are fractions of the image's width and height.
    """

    quantity = "detection score"

    boxes: Tensor
    labels: Tensor | None
    iou: float
    relative: bool = False

    spatial = True
    explained = Box.__name__

    @property
    def images(self) -> int:
        """N."""
        return len(self.boxes)

    def mirrored(self, width: int) -> Self:
        """Return the target with mirrored boxes: x becomes width - x, or 1 - x for fractions."""
        return replace(self, boxes=mirrored(self.boxes, 1 if self.relative else width))

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores of the matching detections, (rows,) or (rows, K); 0 where there is none."""
        rows = []
        for detection, image in zip(detections_of(outputs, Box.__name__), image_index.tolist(), strict=True):
            overlaps, scores = self.match(detection, image)
            rows.append(torch.where(overlaps >= self.iou, scores, 0))
        return torch.stack(rows).reshape(len(rows), *self.boxes.shape[1:-1])

    def match(self, detection: Detections, image: int) -> tuple[Tensor, Tensor]:
        """Return the IoU and the score, (K,) each, of the detection that overlaps best with each box of an image."""
        overlaps, scores, best = self._best(detection, image)
        return overlaps, scores.gather(1, best[:, None])[:, 0]

    def places(self, detection: Detections, image: int) -> Tensor:
        """Return the number (K,) of the detection that overlaps best with each box of an image."""
        return self._best(detection, image)[2]

    def _best(self, detection: Detections, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best IoU (K,), all scores (K, M + 1), and the place (K,) of the best; place M is that of none."""
        from torchvision.ops import box_iou

        boxes = self.boxes[image].reshape(-1, 4).double()
        overlaps = box_iou(boxes, detection.corners.detach().double())
        if (inside := detection.inside) is not None:  # a box is given as it is, or as it is reported
            overlaps = overlaps.maximum(box_iou(boxes, inside.detach().double()))
        labels = None if self.labels is None else self.labels[image]
        scores, eligible = detection.of_labels(labels, len(overlaps))
        overlaps = overlaps.masked_fill(~eligible, 0)
        # a detection with IoU 0 and score 0 is added, which is the best where there is no other
        overlaps = torch.cat([overlaps, overlaps.new_zeros(len(overlaps), 1)], 1)
        scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
        most = overlaps.amax(1)
        # of detections that overlap equally, such as one box with two labels, the highest score counts
        return most, scores, scores.detach().masked_fill(overlaps < most[:, None], -torch.inf).argmax(1)
