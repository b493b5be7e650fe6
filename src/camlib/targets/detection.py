"""How similar the detections are to a given one: the score of D-RISE (Petsiuk et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, number
from camlib.inputs import Detections
from camlib.targets.base import BoundTarget, Target
from camlib.targets.box import BoundBox, Box
from camlib.targets.boxes import checked_boxes, detections_of, given_boxes, in_units_of, mirrored
from camlib.targets.indices import check_range, image_indices, integers


class Detection(Target):
    r"""The similarity of a detection t to the most similar detection j of the outputs, as in D-RISE.

    .. math:: \max_j \; \operatorname{IoU}(b_t, b_j) \cdot \cos(p_t, p_j) \cdot o_j

    with boxes b, class probabilities p and objectness o; Petsiuk et al. 2021, https://arxiv.org/abs/2006.03204. For the
    paper's method, use RISE: ``camlib.RISE(model, samples=5000, cells=16)``. The score of :class:`Box` falls only when
    the detector becomes less certain; this one also falls when the box moves or the class changes. It needs only what
    the detector reports, and no gradients.

    The outputs are those that :class:`Box` reads. Where a detector reports one label for each detection, as
    torchvision's do, the probabilities are 1 for the label and 0 for all others: the cosine is 1 if the labels are the
    same, else 0, and the detector's own scores do not count. The objectness of such detections is 1, unless the
    mappings of the list have an entry "objectness" (M,). Where each candidate has scores of all classes, these are the
    probabilities. DETR's objectness is then 1 minus the probability of "no object"; YOLO and detectors with sigmoids
    report no objectness; the candidate's highest score is used instead.

    Args:
        boxes: as for :class:`Box`; None for the detection with the highest score in each image.
        labels: the class t: an int, one per image, or (N, K); the probabilities are then 1 for it and 0 for others, and
            the object may be one that the detector has missed. None for the probabilities of the detection that
            overlaps best with the box.
        iou: the smallest overlap of that detection, as intersection over union in (0, 1].

    Raises:
        CamlibTypeError, CamlibValueError: as for :class:`Box`; with ``labels`` and boxes, no detection has to match.

    Example:
        >>> import camlib, torch
        >>> def found(*boxes):
        ...     ones = torch.ones(len(boxes))
        ...     return [{"boxes": torch.tensor(boxes), "scores": ones, "labels": ones.long()}]
        >>> target = camlib.targets.bind(camlib.targets.Detection(), found([0.0, 0, 10, 10]))
        >>> camlib.targets.score(target, found([0.0, 0, 10, 5], [20.0, 0, 30, 10]), torch.tensor([0]))
        tensor([0.5000])
    """

    def __init__(self, boxes: Any = None, labels: Any = None, iou: float = 0.5) -> None:
        self._boxes = None if boxes is None else checked_boxes(boxes)
        self._labels = None if labels is None else integers(labels, "label")
        self._iou = number("iou", iou, above=0, at_most=1)

    def bind(self, outputs: Any) -> BoundDetection:
        """Return the similarity to the detections of these outputs, or to the boxes and labels that were given."""
        detections = detections_of(outputs, Detection.__name__)
        relative = detections[0].relative
        if self._boxes is not None and self._labels is not None:
            labels = image_indices(self._labels, len(detections), None, "label")
            if (classes := detections[0].classes) is not None:
                check_range(labels, classes, "label")
            boxes, known = given_boxes(in_units_of(outputs, detections, self._boxes), detections, labels)
            assert known is not None
            return BoundDetection(boxes, [_one_hot(one, detections[0]) for one in known], relative)
        matching = Box(self._boxes, self._labels, self._iou).bind(outputs)
        each = enumerate(detections)
        return BoundDetection(matching.boxes, [self._classes(matching, one, image) for image, one in each], relative)

    def _classes(self, matching: BoundBox, detection: Detections, image: int) -> Tensor | None:
        """The classes of the detections of an image that overlap best with its boxes, as in :class:`BoundDetection`."""
        if self._labels is not None and matching.labels is not None:
            return _one_hot(matching.labels[image], detection)
        place = matching.places(detection, image)
        found = detection.scores if detection.scores.dim() == 2 else detection.labels
        return None if found is None else found.detach()[place]


@dataclass(frozen=True, eq=False)
class BoundDetection(BoundTarget):
    """The similarity of the detections t of each image to the most similar detection.

    Args:
        boxes: (N, 4) or (N, K, 4).
        classes: for each image (K, C), the probabilities of all classes; (K,), labels, if the detector reports one
            for each detection; or None, if it reports none.
        relative: whether the boxes are fractions of the image's width and height.
    """

    quantity = "detection similarity"

    boxes: Tensor
    classes: list[Tensor | None]
    relative: bool = False

    spatial = True
    explained = Detection.__name__

    @property
    def images(self) -> int:
        """N."""
        return len(self.boxes)

    def mirrored(self, width: int) -> Self:
        """Return the target with mirrored boxes: x becomes width - x, or 1 - x for fractions."""
        return replace(self, boxes=mirrored(self.boxes, 1 if self.relative else width))

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the similarities, (rows,) or (rows, K), in [0, 1]; 0 where nothing is detected."""
        found = detections_of(outputs, Detection.__name__)
        pairs = zip(found, image_index.tolist(), strict=True)
        rows = [self._similarities(detection, image) for detection, image in pairs]
        return torch.stack(rows).reshape(len(rows), *self.boxes.shape[1:-1])

    def _similarities(self, detection: Detections, image: int) -> Tensor:
        """(K,), those of one image."""
        from torchvision.ops import box_iou

        boxes = self.boxes[image].reshape(-1, 4)
        dtype = torch.promote_types(detection.scores.dtype, torch.float32)
        boxes = boxes.to(detection.scores.device, dtype)
        overlaps = box_iou(boxes, detection.corners.to(dtype))
        if (inside := detection.inside) is not None:  # a box is given as it is, or as it is reported
            overlaps = overlaps.maximum(box_iou(boxes, inside.to(dtype)))
        alike = overlaps * _alike(self.classes[image], detection).to(dtype) * _objectness(detection).to(dtype)
        return torch.cat([alike, alike.new_zeros(len(alike), 1)], 1).amax(1)


def _one_hot(labels: Tensor, detection: Detections) -> Tensor:
    """Labels (K,) in the form of :class:`BoundDetection`'s classes."""
    return labels if detection.classes is None else torch.nn.functional.one_hot(labels, detection.classes)


def _alike(classes: Tensor | None, detection: Detections) -> Tensor:
    """The cosine of the class probabilities, (K, M), or (M,) where the detections have no classes."""
    if classes is None:
        return torch.ones_like(detection.scores)
    if detection.scores.dim() == 1:
        if detection.labels is None:
            raise CamlibTypeError(
                "Detection was given labels, but the model's detections hold only 'boxes' and 'scores'; leave labels "
                "out, or return 'labels' (M,) as well, with forward="
            )
        return detection.labels == classes.to(detection.labels.device)[:, None]
    wanted, found = classes.to(detection.scores), detection.scores
    lengths = wanted.norm(dim=1)[:, None] * found.norm(dim=1)
    return torch.where(lengths > 0, wanted @ found.T / lengths.masked_fill(lengths == 0, 1), 0)


def _objectness(detection: Detections) -> Tensor:
    """(M,), the detector's own; else the best score of candidates, and 1 for what the detector reports."""
    if detection.objectness is not None:
        return detection.objectness
    return torch.ones_like(detection.scores) if detection.scores.dim() == 1 else detection.scores.amax(1)
