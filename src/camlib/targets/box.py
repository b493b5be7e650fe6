"""Scores of detections: the one that overlaps best with a box."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, number
from camlib.inputs import Detections, detections_in
from camlib.inputs.detections import candidates_in, sizes_of
from camlib.targets.base import BoundTarget, Target
from camlib.targets.indices import as_tensor, check_range, image_indices, integers

RELATIVE = 2.0
"""Where the model's boxes are fractions of the image, given boxes up to this are fractions, too, and others pixels."""


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
        self._boxes = None if boxes is None else _checked_boxes(boxes)
        self._labels = None if labels is None else integers(labels, "label")
        self._iou = number("iou", iou, above=0, at_most=1)

    def bind(self, outputs: Any) -> BoundBox:
        """Return the scores of the detections that match the boxes; without boxes, of the best detections."""
        detections = _detections(outputs)
        labels = None if self._labels is None else image_indices(self._labels, len(detections), None, "label")
        if labels is not None and (classes := detections[0].classes) is not None:
            check_range(labels, classes, "label")
        if self._boxes is None:
            boxes, labels = _best(detections, labels)
        else:
            given = _in_units_of(outputs, detections, self._boxes)
            boxes, labels = _given(given, detections, labels)
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
        left, top, right, bottom = self.boxes.unbind(-1)
        end = 1 if self.relative else width
        return replace(self, boxes=torch.stack([end - right, top, end - left, bottom], -1))

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores of the matching detections, (rows,) or (rows, K); 0 where there is none."""
        rows = []
        for detection, image in zip(_detections(outputs), image_index.tolist(), strict=True):
            overlaps, scores = self.match(detection, image)
            rows.append(torch.where(overlaps >= self.iou, scores, 0))
        return torch.stack(rows).reshape(len(rows), *self.boxes.shape[1:-1])

    def match(self, detection: Detections, image: int) -> tuple[Tensor, Tensor]:
        """Return the IoU and the score, (K,) each, of the detection that overlaps best with each box of an image."""
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
        best = scores.detach().masked_fill(overlaps < most[:, None], -torch.inf).argmax(1)
        return most, scores.gather(1, best[:, None])[:, 0]


def _best(detections: list[Detections], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the box (N, 4) and label (N, 1) of each image's best detection, among those with the labels given."""
    if labels is not None and labels.dim() == 2:
        raise CamlibValueError("several labels of each image need a box for each: give boxes= (N, K, 4)")
    boxes, found = [], []
    for image, detection in enumerate(detections):
        scores, own = detection.best()
        eligible = _have_area(detection.corners)
        if labels is not None:
            of_label, has_label = detection.of_labels(labels[image : image + 1])
            scores, own, eligible = of_label[0], labels[image].expand(len(detection)), eligible & has_label[0]
        if not bool(eligible.any()):
            which = "" if labels is None else f" and label {int(labels[image])}"
            raise CamlibValueError(
                f"image {image} has no detection with an area{which}, of {len(scores)}; leave it out, or lower the "
                "model's score threshold"
            )
        place = scores.detach().masked_fill(~eligible, -torch.inf).argmax()
        boxes.append(detection.corners[place].detach())
        found.append(None if own is None else own.to(scores.device)[place])
    known = [label for label in found if label is not None]
    return torch.stack(boxes), torch.stack(known)[:, None] if len(known) == len(found) else None


def _given(boxes: Tensor, detections: list[Detections], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the boxes of each image, (N, 4) or (N, K, 4), and their labels (N, K)."""
    images, device = len(detections), detections[0].corners.device
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


def _in_units_of(outputs: Any, detections: list[Detections], boxes: Tensor) -> Tensor:
    """Return given boxes in the units of the model's boxes: as they are, or divided by the size of each image.

    Raises:
        CamlibValueError: the sizes are not known.
    """
    if not detections[0].relative or bool(boxes.abs().amax() <= RELATIVE):
        return boxes
    sizes = sizes_of(outputs)
    if sizes is None:
        raise CamlibValueError(
            f"boxes go up to {boxes.abs().amax().item():g}, and this model's are fractions of the image's width and "
            "height; outside of a call of camlib, where the size of the image is not known, divide x by the width and "
            "y by the height"
        )
    sides = sizes.to(boxes.device).flip(-1).repeat(1, 2)  # (N or 1, 4), as (w, h, w, h)
    if boxes.dim() == 1:
        boxes = boxes.expand(len(detections), 4)
    if len(sides) not in (1, len(boxes)):
        return boxes  # not one for each image, which is refused later
    return boxes / (sides if boxes.dim() == 2 else sides[:, None])


def _detections(outputs: Any) -> list[Detections]:
    found = candidates_in(outputs) if isinstance(outputs, Tensor) else detections_in(outputs)
    if found is None:
        what = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise CamlibTypeError(
            f"Box needs detections: a list with a mapping of 'boxes' and 'scores' for each image, or the outputs of a "
            f"detector of Hugging Face or ultralytics; the model returns {what}. Put a detector in eval mode, or pass "
            "forward= to make such a list"
        )
    return found


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
