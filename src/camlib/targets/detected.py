"""Scores of classes in detections: the best detection of a class in each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Detections, detections_in
from camlib.targets.base import BoundOfClasses
from camlib.targets.indices import TopK, check_range, image_indices


@dataclass(frozen=True, eq=False)
class BoundDetectedClasses(BoundOfClasses):
    """The highest score of each class among an image's detections; 0 where nothing of the class is detected.

    Args:
        classes: (N,) or (N, K) labels.
    """

    quantity = "detection score"

    def scores(self, outputs: Any, image_index: Tensor) -> Tensor:
        """Return the scores, (rows,) or (rows, K)."""
        found = detections_in(outputs)
        if found is None:
            raise CamlibTypeError(
                f"the target is bound to detections, and the model now returns a {type(outputs).__name__}"
            )
        labels = self.classes[image_index].reshape(len(image_index), -1)
        rows = [_best_of(detections, own) for detections, own in zip(found, labels, strict=True)]
        return torch.stack(rows).reshape(len(rows), *self.classes.shape[1:])


def bind_detected(classes: Any, detections: Sequence[Detections]) -> BoundDetectedClasses:
    """Return the target of the classes of each image's detections.

    Args:
        classes: None for the class of the best detection in each image; an int; one int per image; (N, K) ints; or
            :class:`camlib.TopK`, the K classes with the best detections.
        detections: those of each image.

    Raises:
        CamlibTypeError: bools, floats, or detections without labels; no class is given and nothing is detected.
        CamlibValueError: a class of which nothing is detected, labels out of range, or not one for each image.
    """
    if any(one.scores.dim() == 1 and one.labels is None for one in detections):
        raise CamlibTypeError(
            "the model returns a list of detections without 'labels', so they have no classes; pass forward= to add "
            "them, or camlib.targets.Box(...) as the target"
        )
    device = detections[0].scores.device
    if classes is None or isinstance(classes, TopK):
        count = 1 if classes is None else classes.k
        best = torch.stack([_best_labels(one, count, image) for image, one in enumerate(detections)])
        return BoundDetectedClasses(best[:, 0] if classes is None else best)
    labels = image_indices(classes, len(detections)).to(device)
    if detections[0].classes is not None:
        check_range(labels, detections[0].classes)
    for image, one in enumerate(detections):
        own = labels[image].reshape(-1)
        _, eligible = one.of_labels(own)
        missing = own[~eligible.any(1)].tolist()
        if missing:
            classes_found = "none" if one.labels is None else sorted(set(one.labels.tolist())) or "none"
            raise CamlibValueError(
                f"image {image} has no detection of class {missing[0]}; the classes of its {len(one)} detections: "
                f"{classes_found}. Give one of these, leave the image out, or lower the model's score threshold"
            )
    return BoundDetectedClasses(labels)


def _best_of(detections: Detections, labels: Tensor) -> Tensor:
    """(K,), the highest score of each label; 0 if there is none."""
    scores, eligible = detections.of_labels(labels)
    scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
    eligible = torch.cat([eligible, eligible.new_zeros(len(eligible), 1)], 1)
    eligible[:, -1] |= ~eligible.any(1)
    place = scores.detach().masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)
    return scores.gather(1, place)[:, 0]


def _best_labels(detections: Detections, count: int, image: int) -> Tensor:
    """(K,), the labels with the highest scores, the highest first."""
    if not len(detections):  # outputs without classes: a class-agnostic method explains them all the same
        raise CamlibTypeError(
            f"image {image} has no detections, so no class is predicted; leave it out, or lower the model's score "
            "threshold"
        )
    scores, labels = detections.scores.detach(), detections.labels
    if scores.dim() == 2:
        of_classes = scores.amax(0)
        labels = torch.arange(len(of_classes), device=scores.device)
    else:
        assert labels is not None
        labels = labels.unique()
        of_classes = torch.stack([scores[detections.labels == label].amax() for label in labels])
    if count > len(of_classes):
        raise CamlibValueError(
            f"TopK({count}) asks for more classes than image {image} has in its detections, {len(of_classes)}"
        )
    return labels[of_classes.topk(count).indices]
