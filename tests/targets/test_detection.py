"""The similarity of D-RISE: its equation, what each form of outputs gives, and evidence that is planted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import targets
from camlib.methods.masks import RandomMasks

CAT, DOG = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 30.0]
Found = tuple[Sequence[float], Sequence[float], float]
"""Box, probabilities, objectness."""


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two boxes, by their corners."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def similarity(wanted: Found, detections: Sequence[Found]) -> float:
    """Petsiuk 2021, equations 4 and 5: the largest product of IoU, cosine and objectness; 0 without detections."""
    best = 0.0
    for box, chances, there in detections:
        lengths = math.sqrt(sum(p**2 for p in chances)) * math.sqrt(sum(p**2 for p in wanted[1]))
        cosine = sum(p * q for p, q in zip(chances, wanted[1], strict=True)) / lengths if lengths else 0.0
        best = max(best, iou(wanted[0], box) * cosine * there)
    return best


def reported(*detections: tuple[list[float], int], **more: Tensor) -> dict[str, Tensor]:
    """What a detector reports for an image: boxes with labels, and scores that do not count."""
    boxes = torch.tensor([box for box, _ in detections]).reshape(-1, 4)
    labels = torch.tensor([label for _, label in detections], dtype=torch.long)
    return {"boxes": boxes, "scores": torch.linspace(0.9, 0.3, len(labels)), "labels": labels, **more}


def scored(target: Any, clean: Any, outputs: Any, image_index: Sequence[int] | None = None) -> Tensor:
    index = torch.arange(len(outputs)) if image_index is None else torch.tensor(image_index)
    return targets.score(targets.bind(target, clean), outputs, index)


coordinates = st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(coordinates, coordinates).map(lambda sides: [*map(float, itertools.chain(*zip(*sides, strict=True)))])
chances = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(boxes, chances, st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=5), boxes, chances)
def test_the_score_is_the_papers_equation(detections: list[Found], box: list[float], wanted: list[float]) -> None:
    def outputs(found: Sequence[Found]) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.tensor([one for one, _, _ in found]),
                "scores": torch.tensor([of_classes for _, of_classes, _ in found]),
                "objectness": torch.tensor([there for _, _, there in found]),
            }
        ]

    bound = targets.bind(targets.Detection(box), outputs([(box, wanted, 1.0)]))
    found = targets.score(bound, outputs(detections), torch.tensor([0]))
    assert found.item() == pytest.approx(similarity((box, wanted, 1.0), detections), abs=1e-6)
    assert targets.score(bound, outputs([(box, wanted, 1.0)]), torch.tensor([0])).item() == pytest.approx(
        float(any(wanted))
    )


def test_labels_alone_are_probabilities_of_one_and_scores_do_not_count() -> None:
    clean = [reported((CAT, 1), (DOG, 2))]
    later = [reported(([0.0, 0, 5, 10], 1), (CAT, 2)), reported((DOG, 1)), reported(), reported((CAT, 1))]
    assert scored(targets.Detection(), clean, later, [0] * 4).tolist() == [0.5, 0.0, 0.0, 1.0]
    assert scored(targets.Detection(DOG), clean, [reported((DOG, 2)), reported((DOG, 1))], [0, 0]).tolist() == [1, 0]
    both = scored(targets.Detection([[CAT, DOG]]), clean, later, [0] * 4)
    assert both.tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]


def test_an_objectness_in_the_mappings_counts() -> None:
    clean = [reported((CAT, 1))]
    later = [reported((CAT, 1), objectness=torch.tensor([0.25]))]
    assert scored(targets.Detection(CAT), clean, later).tolist() == [0.25]


def test_an_object_that_was_missed_is_named_by_its_label() -> None:
    clean, later = [reported((CAT, 1))], [reported((DOG, 2))]
    assert scored(targets.Detection(DOG, 2), clean, later).tolist() == [1.0]
    assert scored(targets.Detection(DOG, 2), clean, clean).tolist() == [0.0]
    with pytest.raises(camlib.CamlibValueError, match="none of the 1 detections of image 0"):
        targets.bind(targets.Detection(DOG), clean)


def test_boxes_without_labels_are_compared_by_their_overlap() -> None:
    clean = [{"boxes": torch.tensor([CAT]), "scores": torch.tensor([0.4])}]
    later = [{"boxes": torch.tensor([[0.0, 0, 10, 5]]), "scores": torch.tensor([0.1])}]
    assert scored(targets.Detection(), clean, later).tolist() == [0.5]
    with pytest.raises(camlib.CamlibTypeError, match="detections hold only 'boxes' and 'scores'"):
        scored(targets.Detection(CAT, 1), clean, later)


def test_candidates_of_all_classes_count_by_their_highest_score() -> None:
    """As of YOLO, (N, 4 + C, A): boxes by centre and sides."""
    table = torch.tensor([[[5.0, 30], [5, 25], [10, 20], [10, 10], [0.8, 0.0], [0.6, 0.2]]])
    later = table.clone()
    later[0, 4:, 0] = torch.tensor([0.0, 0.5])
    cosine = 0.6 / math.hypot(0.8, 0.6)
    found = scored(targets.Detection(), table, later)
    assert found.item() == pytest.approx(0.5 * cosine)
    assert scored(targets.Detection(CAT, 1), table, later).item() == pytest.approx(0.5)
    with pytest.raises(camlib.CamlibValueError, match="label"):
        targets.bind(targets.Detection(CAT, 2), table)


def test_boxes_are_mirrored_and_images_picked() -> None:
    clean = [reported((CAT, 1)), reported((DOG, 2))]
    bound = targets.bind(targets.Detection(), clean)
    other_way = [reported(([40.0, 0, 50, 10], 1)), reported(([10.0, 20, 30, 30], 2))]
    assert targets.score(bound.mirrored(50), other_way, torch.arange(2)).tolist() == [1.0, 1.0]
    second = bound.pick(torch.tensor([1]))
    assert targets.score(second, clean, torch.tensor([0, 0])).tolist() == [0.0, 1.0]
    assert (bound.explained, bound.quantity) == ("Detection", "detection similarity")


def test_other_outputs_are_refused_by_the_targets_name() -> None:
    with pytest.raises(camlib.CamlibTypeError, match="Detection needs detections: a list"):
        targets.bind(targets.Detection(), torch.zeros(2, 3))


# Evidence that is planted -------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """One object: bright pixels at P make its box as wide as it is, and those at Q make it a cat (1), not a dog (2).

    Its score is always the same, so :class:`camlib.targets.Box` of half an overlap finds nothing to explain at P.
    """

    P, Q = (slice(4, 10), slice(4, 10)), (slice(18, 24), slice(20, 26))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            wide, cat = (image[0][place].mean() > 0.6 for place in (self.P, self.Q))
            box = torch.tensor([[0.0, 0.0, 32.0 if wide else 20.0, 32.0]])
            found.append({"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1 if cat else 2])})
        return found


def test_the_map_of_d_rise_shows_what_makes_the_box_and_the_class() -> None:
    images = [torch.ones(3, 32, 32), torch.ones(3, 32, 32)]
    cam = camlib.RISE(Planted(), samples=1000, cells=8, chunk_size=200)
    explanation = cam(images, targets.Detection())
    assert torch.equal(explanation.maps[0], explanation.maps[1])
    assert explanation.scores.tolist() == [1.0, 1.0]
    maps, elsewhere = explanation.maps[0], torch.ones(32, 32, dtype=torch.bool)
    for rows, columns in (Planted.P, Planted.Q):  # a mask's cells are 4 pixels wide, and blurred
        elsewhere[rows.start - 4 : rows.stop + 4, columns.start - 4 : columns.stop + 4] = False
    narrow, dog = (maps[place].mean() for place in (Planted.P, Planted.Q))
    assert dog > narrow > maps[elsewhere].max()  # a dog is worth nothing, and a narrow box 5/8
    of_box = cam(images, targets.Box()).maps[0]
    assert of_box[Planted.Q].mean() > of_box[elsewhere].max() > of_box[Planted.P].mean()


def test_the_map_is_the_papers_sum_over_masks_less_the_mean_score() -> None:
    images = [torch.ones(3, 32, 32)]
    masks = RandomMasks((32, 32), 20, 4, 0.5, torch.Generator().manual_seed(0), torch.empty(0))[:]
    scores = []
    for mask in masks:
        (found,) = Planted()([images[0] * mask])
        chances = [[float(label == found["labels"].item()) for label in (1, 2)], [1.0, 0.0]]
        detections = [(found["boxes"][0].tolist(), chances[0], 1.0)]
        scores.append(similarity(([0.0, 0, 32, 32], chances[1], 1.0), detections))
    total = sum(score * mask.double() for score, mask in zip(scores, masks, strict=True))
    expected = total / masks.double().sum(0) - sum(scores) / len(scores)
    found = camlib.RISE(Planted(), samples=20, cells=4)(images, targets.Detection())
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=0, atol=1e-6)
