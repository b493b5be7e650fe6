"""Boxes that are given for a detector, or chosen among its detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.inputs import Detections, detections_in
from camlib.inputs.detections import candidates_in, sizes_of
from camlib.targets.indices import as_tensor

RELATIVE = 2.0
"""Where the model's boxes are fractions of the image, given boxes up to this are fractions, too, and others pixels."""


def best_boxes(detections: list[Detections], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the box (N, 4) and label (N, 1) of each image's best detection, among those with the labels given."""
    if labels is not None and labels.dim() == 2:
        raise CamlibValueError("several labels of each image need a box for each: give boxes= (N, K, 4)")
    boxes, found = [], []
    for image, detection in enumerate(detections):
        scores, own = detection.best()
        eligible = have_area(detection.corners)
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


def given_boxes(boxes: Tensor, detections: list[Detections], labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
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


def mirrored(boxes: Tensor, width: float) -> Tensor:
    """Return boxes (..., 4) in an image of this width, mirrored from left to right."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], -1)


def have_area(boxes: Tensor) -> Tensor:
    """Whether each of (..., 4) boxes has a positive width and height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def in_units_of(outputs: Any, detections: list[Detections], boxes: Tensor) -> Tensor:
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


def detections_of(outputs: Any, target: str) -> list[Detections]:
    """Return the detections of each image.

    Args:
        outputs: what the model returned.
        target: the name of the target that needs them, for errors.

    Raises:
        CamlibTypeError: the outputs are no detections.
    """
    found = candidates_in(outputs) if isinstance(outputs, Tensor) else detections_in(outputs)
    if found is None:
        what = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise CamlibTypeError(
            f"{target} needs detections: a list with a mapping of 'boxes' and 'scores' for each image, or the outputs "
            f"of a detector of Hugging Face or ultralytics; the model returns {what}. Put a detector in eval mode, or "
            "pass forward= to make such a list"
        )
    return found


def checked_boxes(given: Any) -> Tensor:
    """Return given boxes as a tensor (4,), (N, 4) or (N, K, 4).

    Raises:
        CamlibTypeError: they are not numbers.
        CamlibValueError: they have another shape, or no area.
    """
    boxes = as_tensor(given, f"boxes {given!r} are not understood; give numbers (x1, y1, x2, y2)").detach()
    if boxes.dim() not in (1, 2, 3) or boxes.shape[-1] != 4 or not boxes.numel():
        raise CamlibValueError(f"boxes have shape {tuple(boxes.shape)}; give (4,), (N, 4) or (N, K, 4)")
    if boxes.dtype == torch.bool or boxes.is_complex():
        raise CamlibTypeError(f"boxes hold {boxes.dtype} values; give numbers (x1, y1, x2, y2)")
    if len(empty := boxes[~have_area(boxes)]):
        raise CamlibValueError(
            f"box {empty[0].tolist()} has no area as (x1, y1, x2, y2); convert it if it is (x, y, width, height)"
        )
    return boxes
