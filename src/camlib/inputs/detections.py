"""The outputs of detectors, read once: boxes, scores and labels of each image, whatever library made them.

Three forms are read.

- **Lists of mappings**, one for each image, of "boxes" and "scores" and usually "labels", as torchvision's detectors
  return them; an "objectness" is read, too.
- **Hugging Face's outputs** with logits (N, Q, C) and boxes (N, Q, 4). Whether their scores are a softmax, whose last
  class is "no object", or sigmoids, is what the model's post-processor does; no tensor says it, so the class of the
  outputs decides.
- **The outputs of ultralytics' networks in eval mode**, a pair of the decoded predictions and the raw ones, before or
  after the choice of the best that end-to-end heads make. The library is never imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError
from camlib.inputs import links
from camlib.inputs.inputs import Inputs
from camlib.inputs.nested import named_entries

SOFTMAX = frozenset(
    {
        "DetrObjectDetectionOutput",
        "DetrSegmentationOutput",
        "TableTransformerObjectDetectionOutput",
        "YolosObjectDetectionOutput",
    }
)
"""Hugging Face's outputs whose post-processor takes a softmax and drops the last class, "no object"."""
SIGMOID = frozenset(
    {
        "ConditionalDetrObjectDetectionOutput",
        "ConditionalDetrSegmentationOutput",
        "DFineObjectDetectionOutput",
        "DabDetrObjectDetectionOutput",
        "DeformableDetrObjectDetectionOutput",
        "Deimv2ObjectDetectionOutput",
        "GroundingDinoObjectDetectionOutput",
        "LwDetrObjectDetectionOutput",
        "MMGroundingDinoObjectDetectionOutput",
        "OwlViTObjectDetectionOutput",
        "Owlv2ObjectDetectionOutput",
        "PPDocLayoutV2ForObjectDetectionOutput",
        "RTDetrObjectDetectionOutput",
        "RTDetrV2ObjectDetectionOutput",
        "RfDetrInstanceSegmentationOutput",
        "RfDetrObjectDetectionOutput",
    }
)
"""Those whose post-processor takes the sigmoid of each logit; labels are columns: classes, or words searched for."""
SIZES = "image_sizes_of_inputs"
"""The attribute by which a network's outputs remember the sizes of their images: see :func:`remember_sizes`."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image.

    Args:
        boxes: (M, 4) as (x1, y1, x2, y2); None if they are rotated.
        scores: (M,); or (M, C), the scores of all classes, where each box is a candidate for each class.
        labels: (M,), the class of each score; None if there are none, or if the scores are of all classes.
        relative: whether the boxes are in units of the image's width and height, not in pixels.
        size: (2,), the image's height and width, if the boxes may reach beyond it and are reported without that part.
        objectness: (M,), the probability that there is an object at all; None if the detector reports none.
    """

    boxes: Tensor | None
    scores: Tensor
    labels: Tensor | None = None
    relative: bool = False
    size: Tensor | None = None
    objectness: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def classes(self) -> int | None:
        """C, the number of classes; None if it cannot be told from the detections."""
        return self.scores.shape[1] if self.scores.dim() == 2 else None

    @property
    def corners(self) -> Tensor:
        """The boxes.

        Raises:
            CamlibTypeError: they are rotated.
        """
        if self.boxes is None:
            raise CamlibTypeError(
                "the model's boxes are rotated, and camlib.targets.Box compares upright ones; explain a class, or pass "
                "forward= to make a list with, for each image, a mapping of 'boxes' (x1, y1, x2, y2), 'scores' and "
                "'labels'"
            )
        return self.boxes

    @property
    def inside(self) -> Tensor | None:
        """The parts of the boxes inside the image, which the post-processing reports; None if these are the boxes."""
        if self.size is None:
            return None
        return self.corners.clamp(min=0).minimum(self.size.to(self.corners.device).flip(0).repeat(2))

    def best(self) -> tuple[Tensor, Tensor | None]:
        """Return the score (M,) of each box and its label (M,), which is None if the boxes have none."""
        if self.scores.dim() == 1:
            return self.scores, self.labels
        best = self.scores.max(1)
        return best.values, best.indices

    def of_labels(self, labels: Tensor | None, count: int = 1) -> tuple[Tensor, Tensor]:
        """Return the scores of the boxes for each of some labels, and whether a box has that label at all.

        Args:
            labels: (K,); None for any label.
            count: K, if there are no labels.

        Returns:
            Two tensors (K, M).

        Raises:
            CamlibTypeError: the detections have no labels.
        """
        if labels is None:
            scores, _ = self.best()
            rows = scores.expand(count, -1)
            return rows, torch.ones_like(rows, dtype=torch.bool)
        labels = labels.to(self.scores.device)
        if self.scores.dim() == 2:
            rows = self.scores.T[labels]
            return rows, torch.ones_like(rows, dtype=torch.bool)
        if self.labels is None:
            raise CamlibTypeError("labels are given, and the detections have only boxes, scores")
        return self.scores.expand(len(labels), -1), self.labels == labels[:, None]


def is_listed(raw: Any) -> bool:
    """Whether outputs are a list of mappings of "boxes" and "scores", one for each image."""
    return is_list_of_mappings(raw) and all("boxes" in found and "scores" in found for found in raw)


def is_list_of_mappings(raw: Any) -> bool:
    """Whether outputs are a list, or a tuple, of mappings."""
    return isinstance(raw, (list, tuple)) and bool(raw) and all(isinstance(one, Mapping) for one in raw)


def detections_in(raw: Any) -> list[Detections] | None:
    """Return the detections of each image; None if the outputs are no detections.

    Args:
        raw: what a model returned.

    Raises:
        CamlibTypeError: they are, but how their scores are meant cannot be told.

    Example:
        >>> import torch
        >>> found = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([0.5])}
        >>> [len(of_image) for of_image in detections_in([found, found])]
        [1, 1]
        >>> detections_in(torch.zeros(2, 10)) is None
        True
    """
    if is_listed(raw):
        return [
            Detections(found["boxes"], found["scores"], found.get("labels"), objectness=found.get("objectness"))
            for found in raw
        ]
    if (queries := _queries(raw)) is not None:
        return queries
    decoded = _decoded(raw)
    return None if decoded is None else list(decoded.detections())


def class_scores_in(raw: Any) -> Tensor | None:
    """Return the tensor that holds all scores of an ultralytics network's outputs; None for other outputs."""
    decoded = _decoded(raw)
    return None if decoded is None else decoded.scores


def candidates_in(raw: Tensor) -> list[Detections] | None:
    """Return the detections in a bare tensor of predictions; None if its values are no predictions.

    The decoded predictions of an ultralytics network, picked by ``forward=``, come without the rest by which
    :func:`detections_in` knows them, so their values must show what they are: (N, 4 + C, A) with boxes (x, y, width,
    height) in pixels and scores in [0, 1], or (N, M, 6) with boxes (x1, y1, x2, y2), a score in [0, 1] and a label.

    Example:
        >>> import torch
        >>> boxes, scores = torch.tensor([[[8.0], [8], [4], [4]]]), torch.tensor([[[0.9], [0.1]]])
        >>> candidates_in(torch.cat([boxes, scores], 1))[0].corners
        tensor([[ 6.,  6., 10., 10.]])
    """
    if raw.dim() != 3 or not raw.numel() or not raw.is_floating_point():
        return None
    clean = raw.detach()
    if clean.shape[2] == 6 and bool((clean[..., 2:4] >= clean[..., :2]).all()):
        labels = clean[..., 5]
        if _are_scores(clean[..., 4]) and bool((labels == labels.round()).all()) and bool((labels >= 0).all()):
            return list(_Decoded(raw, chosen=True).detections())
    if clean.shape[1] > 4 and _are_scores(clean[:, 4:]):
        sides = clean[:, 2:4]
        if bool((sides >= 0).all()) and bool(clean[:, :4].amax() > 1):
            return list(_Decoded(raw, chosen=False).detections())
    return None


def _are_scores(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


@dataclass(frozen=True, eq=False)
class _Decoded:
    """The decoded predictions of an ultralytics network.

    Args:
        table: (N, 4 + C + extra, A), all candidates, with boxes (x, y, width, height); or, if they are ``chosen``,
            (N, M, 6 + extra), the best ones, with boxes (x1, y1, x2, y2), a score and a label. In pixels of the inputs.
        chosen: whether an end-to-end head has chosen the best ones.
        classes: C; None for all entries behind the box.
        rotated: whether an angle belongs to each box.
    """

    table: Tensor
    chosen: bool
    classes: int | None = None
    rotated: bool = False

    @property
    def scores(self) -> Tensor:
        """(N, M), or (N, C, A) of all candidates."""
        if self.chosen:
            return self.table[..., 4]
        return self.table[:, 4:] if self.classes is None else self.table[:, 4 : 4 + self.classes]

    def detections(self) -> Iterator[Detections]:
        """Yield the detections of each image."""
        boxes = self.table[..., :4] if self.chosen else _corners(self.table[:, :4].mT)
        sizes = sizes_of(self.table)
        for image, scores in enumerate(self.scores):
            yield Detections(
                boxes=None if self.rotated else boxes[image],
                scores=scores if self.chosen else scores.T,
                labels=self.table[image, :, 5].detach().long() if self.chosen else None,
                size=None if sizes is None else sizes[min(image, len(sizes) - 1)],
            )


def _decoded(raw: Any) -> _Decoded | None:
    """Recognise the pair (predictions, raw predictions) that ultralytics' networks return in eval mode.

    The raw predictions are a mapping with "boxes" and "scores" (N, C, A), or one with two such heads; those of older
    versions are a list of maps (N, ..., h, w), or a mapping with two such lists. They say how many candidates there
    are, and so which axis of the predictions they are.
    """
    if not isinstance(raw, (tuple, list)) or len(raw) != 2 or hasattr(raw, "_fields"):
        return None
    table, rest = raw
    if isinstance(table, (tuple, list)) and table and isinstance(table[0], Tensor):
        table = table[0]  # a segmentation network's second tensor makes masks
    if not isinstance(table, Tensor) or table.dim() != 3 or not table.is_floating_point():
        return None
    if isinstance(rest, Mapping) and {"one2many", "one2one"} & rest.keys():
        heads = [rest[name] for name in ("one2one", "one2many") if rest.get(name)]
        return next((found for head in heads if (found := _of_head(table, head)) is not None), None)
    return _of_head(table, rest)


def _of_head(table: Tensor, head: Any) -> _Decoded | None:
    """The predictions that belong to the raw predictions of one head; None if they do not fit."""
    classes, extra, rotated = None, 0, False
    if isinstance(head, Mapping):
        scores = head.get("scores")
        if not isinstance(scores, Tensor) or scores.dim() != 3 or not isinstance(head.get("boxes"), Tensor):
            return None
        _, classes, candidates = scores.shape
        rotated = "angle" in head
        extra = sum(
            own.shape[1]
            for name, own in head.items()
            if name in ("mask_coefficient", "kpts", "angle") and isinstance(own, Tensor)
        )
    elif _are_maps(head):
        candidates = sum(math.prod(level.shape[2:]) for level in head)
    else:
        return None
    if table.shape[2] == candidates and (classes is None or table.shape[1] == 4 + classes + extra):
        return _Decoded(table, chosen=False, classes=classes, rotated=rotated)
    if table.shape[2] == 6 + extra and table.shape[1] <= candidates:
        return _Decoded(table, chosen=True, rotated=rotated)
    return None


def _are_maps(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(x, Tensor) and x.dim() == 4 for x in value)


def _queries(raw: Any) -> list[Detections] | None:
    """The detections in Hugging Face's outputs with logits (N, Q, C) and boxes (N, Q, 4), relative to the image."""
    entries = named_entries(raw)
    logits, boxes = entries.get("logits"), entries.get("pred_boxes")
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor) or logits.dim() != 3 or boxes.dim() != 3:
        return None
    if boxes.shape != (*logits.shape[:2], 4):
        return None
    kinds = {kind.__name__ for kind in type(raw).__mro__}
    objectness: list[Tensor | None]
    if kinds & SOFTMAX:
        scores = logits.softmax(-1)[..., :-1]
        objectness = list(scores.sum(-1))  # all but the last class, "no object"
    elif kinds & SIGMOID:
        scores, objectness = logits.sigmoid(), [None] * len(logits)
    else:
        raise CamlibTypeError(
            f"the model returns a {type(raw).__name__} with logits {tuple(logits.shape)} and pred_boxes, and nothing "
            "says whether its scores are a softmax with a last class for no object, or sigmoids. Pass forward= that "
            "returns, for each image, a mapping of 'boxes' (M, 4) as (x1, y1, x2, y2), 'scores' (M,) and 'labels' "
            "(M,): for sigmoids, 'scores': logits.sigmoid().amax(1) and 'labels': logits.argmax(1)"
        )
    return [
        Detections(corners, of_image, relative=True, objectness=there)
        for corners, of_image, there in zip(_corners(boxes), scores, objectness, strict=True)
    ]


def _corners(boxes: Tensor) -> Tensor:
    """(..., 4) as (x1, y1, x2, y2), from the centre, the width and the height."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def remember_sizes(raw: Any, inputs: Inputs) -> None:
    """Note the sizes of the images on the outputs of detectors, which hold no other trace of them.

    Boxes that are fractions of the image need the sizes, and boxes in pixels are reported up to the image's border. The
    sizes become an attribute of Hugging Face's outputs, or of the tensor of an ultralytics network's predictions. Other
    outputs are left alone.

    Args:
        raw: what a model returned.
        inputs: what it took. A "pixel_mask" (N, H, W) in it says which pixels are no padding: the boxes are relative to
            these.
    """
    decoded = _decoded(raw)
    if decoded is None and not {kind.__name__ for kind in type(raw).__mro__} & (SOFTMAX | SIGMOID):
        return
    size = inputs.size
    if size is None or len(size) != 2:
        return
    mask = named_entries(inputs.raw).get("pixel_mask")
    if isinstance(mask, Tensor) and tuple(mask.shape[1:]) == size:
        inside = mask.detach() != 0
        sizes = torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1)
    else:
        sizes = torch.tensor([list(size)])
    setattr(raw if decoded is None else decoded.table, SIZES, sizes)


def sizes_of(raw: Any) -> Tensor | None:
    """Return the sizes that :func:`remember_sizes` noted, (N, 2), or (1, 2) if all are the same; None without them."""
    sizes = getattr(raw, SIZES, None)
    return sizes if isinstance(sizes, Tensor) else None


def detached(tensor: Tensor) -> Tensor:
    """Return a tensor detached, with what :func:`remember_sizes` and :func:`camlib.inputs.links.note` noted on it."""
    found = tensor.detach()
    if (known := links.noted(tensor)) is not None:
        logits = None if known[1] is None else known[1].detach()
        links.note(found, known[0], logits, doubtful=links.is_doubtful(tensor))
    if (sizes := sizes_of(tensor)) is not None:
        setattr(found, SIZES, sizes)
    return found
