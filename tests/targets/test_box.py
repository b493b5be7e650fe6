"""Detection: the score of the detection that stays with a box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib import targets
from camlib.inputs import detections_in

CAT, DOG = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 30.0]


def found(*detections: tuple[list[float], float, int]) -> dict[str, Tensor]:
    """One image's detections: (box, score, label) each."""
    boxes = torch.tensor([box for box, _, _ in detections]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in detections])
    return {"boxes": boxes, "scores": scores, "labels": torch.tensor([n for _, _, n in detections], dtype=torch.long)}


OUTPUTS = [found((CAT, 0.9, 1), (DOG, 0.6, 2)), found((DOG, 0.8, 2), (CAT, 0.7, 1))]


def scores(target: targets.BoundTarget, outputs: Any = OUTPUTS, image_index: Any = None) -> Any:
    index = torch.arange(len(outputs)) if image_index is None else torch.tensor(image_index)
    return [round(score, 6) for score in targets.score(target, outputs, index).flatten().tolist()]


def bound(*args: Any, outputs: Any = OUTPUTS, **options: Any) -> targets.BoundTarget:
    return targets.bind(targets.Box(*args, **options), outputs)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (CAT, [0.9, 0.7]),
        ([1, 0, 11, 10], [0.9, 0.7]),
        ([CAT, DOG], [0.9, 0.8]),
        (torch.tensor([[CAT], [DOG]]), [0.9, 0.8]),
    ],
)
def test_score_is_that_of_the_box_that_overlaps_best(boxes, expected):
    assert scores(bound(boxes)) == expected


def test_k_boxes_of_each_image_are_each_of_them_alone():
    target = bound([[CAT, DOG], [DOG, CAT]])
    together = targets.score(target, OUTPUTS, torch.arange(2))
    torch.testing.assert_close(together, torch.tensor([[0.9, 0.6], [0.8, 0.7]]))
    torch.testing.assert_close(targets.score(bound([[CAT], [DOG]]), OUTPUTS, torch.arange(2)), together[:, :1])


def test_without_a_box_it_is_the_best_detection_and_stays_with_it():
    target = bound()
    assert scores(target) == [0.9, 0.8]
    later = [found((DOG, 0.95, 2), (CAT, 0.3, 1)), found((CAT, 0.99, 1), (DOG, 0.2, 2))]
    assert scores(target, later) == [0.3, 0.2]


def test_without_a_box_the_label_is_kept_too():
    later = [found((CAT, 0.8, 5), (CAT, 0.1, 1)), found((DOG, 0.9, 2))]
    assert scores(bound(), later) == [0.1, 0.9]


def test_a_label_alone_is_its_best_detection():
    assert scores(bound(labels=2)) == [0.6, 0.8]
    assert scores(bound(labels=[2, 1])) == [0.6, 0.7]


@given(st.permutations(range(5)))
def test_order_does_not_matter(order):
    boxes = [CAT, DOG, [2.0, 0.0, 12.0, 10.0], [50.0, 50.0, 60.0, 60.0], CAT]
    detections = list(zip(boxes, [0.5, 0.4, 0.9, 0.8, 0.7], [1, 2, 1, 3, 4], strict=True))
    outputs = [found(*(detections[place] for place in order))]
    assert scores(bound(CAT, outputs=outputs), outputs) == [0.7]  # of two in one place, the higher score
    assert scores(bound(CAT, 1, outputs=outputs), outputs) == [0.5]
    assert scores(bound(outputs=outputs), outputs) == [0.9]
    assert scores(bound([[CAT, DOG, [3, 0, 13, 10]]], outputs=outputs), outputs) == [0.7, 0.4, 0.9]


def test_labels_choose_among_overlapping_detections():
    outputs = [found((CAT, 0.9, 1), ([1.0, 0, 11, 10], 0.4, 2))]
    assert scores(bound(CAT, outputs=outputs), outputs) == [0.9]
    assert scores(bound(CAT, 2, outputs=outputs), outputs) == [0.4]
    both = bound([[CAT, CAT]], [[2, 1]], outputs=outputs)
    assert scores(both, outputs) == [0.4, 0.9]


def test_enlarged_batches_are_followed_and_what_has_vanished_scores_zero():
    target = bound([CAT, DOG])
    later = [
        found((CAT, 0.1, 1), (DOG, 0.2, 2)),
        found((CAT, 0.3, 1), (DOG, 0.4, 2)),
        found((CAT, 0.5, 1)),
        found(),
        found(([0.0, 0.0, 10.0, 21.0], 0.6, 1)),
        found(([0.0, 0.0, 10.0, 20.0], 0.7, 1)),
    ]
    assert scores(target, later, [1, 0, 1, 0, 0, 0]) == [0.2, 0.3, 0.0, 0.0, 0.0, 0.7]


def test_a_bound_target_keeps_its_boxes():
    target = bound([CAT, DOG])
    assert target.explained == "Box"
    vanished = [found((DOG, 0.5, 2)), found((DOG, 0.5, 2))]
    again = targets.bind(target, vanished)
    assert scores(again, vanished) == [0.0, 0.5]
    with pytest.raises(camlib.CamlibValueError, match="bound to 2 images, and the outputs are of 1"):
        targets.bind(target, vanished[:1])


def test_gradients_flow_to_the_matching_score_alone():
    outputs = [found((CAT, 0.9, 1), (DOG, 0.6, 2)), found((DOG, 0.8, 2), (CAT, 0.7, 1))]
    for detection in outputs:
        detection["scores"].requires_grad_()
        detection["boxes"].requires_grad_()
    target = targets.bind(targets.Box(DOG), outputs)
    targets.score(target, outputs, torch.arange(2)).sum().backward()
    assert [detection["scores"].grad.tolist() for detection in outputs] == [[0.0, 1.0], [1.0, 0.0]]
    assert all(detection["boxes"].grad is None for detection in outputs)


def test_detections_without_labels():
    bare = [{key: value for key, value in OUTPUTS[0].items() if key != "labels"}]
    assert scores(bound(outputs=bare), bare) == [0.9]
    with pytest.raises(camlib.CamlibTypeError, match="the detections have only boxes, scores"):
        bound(CAT, 1, outputs=bare)


@pytest.mark.parametrize(
    ("box", "iou"),
    [
        ([0.0, 0, 4, 4], 1.0),
        ([2.0, 2, 6, 6], 4 / 28),
        ([4.0, 0, 8, 4], 0.0),
        ([1.0, 1, 3, 3], 4 / 16),
        ([9.0, 9, 9, 9], 0.0),
        ([5.0, 5, 6, 6], 0.0),
    ],
)
def test_iou_is_intersection_over_union(box, iou):
    target = bound(outputs=[found(([0.0, 0, 4, 4], 0.9, 1))])
    overlaps, _ = target.match(detections_in([found((box, 0.5, 1))])[0], 0)
    assert overlaps.tolist() == pytest.approx([iou])


def test_boxes_without_an_area_are_never_the_best():
    outputs = [found(([5.0, 5, 5, 9], 0.9, 1), (CAT, 0.5, 1))]
    assert scores(bound(outputs=outputs), outputs) == [0.5]
    assert scores(bound(labels=1, outputs=outputs), outputs) == [0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: bound([100, 100, 110, 110]),
            r"none of the 2 detections of image 0 overlaps box \[100, 100, 110, 110\] with an IoU of 0\.5 .*0\.000",
        ),
        (lambda: bound([CAT, [0, 0, 10, 25]]), r"of image 1 overlaps .*the best has 0\.400"),
        (lambda: bound([1, 0, 11, 10], iou=0.9), r"image 0 .*the best has 0\.818"),
        (lambda: bound(CAT, [1, 2]), r"of image 1 with label \[2\] overlaps box.*the best has 0\.000"),
        (lambda: bound(outputs=[OUTPUTS[0], found()]), "image 1 has no detection with an area, of 0"),
        (lambda: bound(labels=[1, 7]), "image 1 has no detection with an area and label 7, of 2"),
        (lambda: bound([CAT, DOG, CAT]), r"boxes have shape \(3, 4\) for 2 images"),
        (lambda: bound([1, 2, 3]), r"boxes have shape \(3,\); give \(4,\), \(N, 4\)"),
        (lambda: bound([20, 20, 5, 5]), r"box \[20, 20, 5, 5\] has no area.*\(x, y, width, height\)"),
        (lambda: bound(labels=[[1, 2], [1, 2]]), "several labels of each image need a box for each"),
        (lambda: bound([CAT, DOG], [[1, 2], [1, 2]]), r"labels have shape \(2, 2\) for boxes \(2, 4\)"),
        (lambda: bound(CAT, [1, 2, 3]), r"label has shape \(3,\) for 2 images"),
        (lambda: bound(CAT, -1), "label has class index -1, but class indices are not negative"),
        (lambda: bound(CAT, iou=0), r"iou must be a number in \(0, 1\], got 0"),
        (lambda: bound(CAT, iou=1.5), r"iou must be a number in \(0, 1\], got 1\.5"),
    ],
)
def test_boxes_that_match_nothing_or_do_not_fit_are_refused(make, message):
    with pytest.raises(camlib.CamlibValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bound(CAT, outputs=torch.zeros(2, 3)), "needs detections: a list with a mapping.*returns a tensor"),
        (lambda: bound(CAT, outputs={"loss": torch.tensor(1.0)}), "returns a dict.*eval mode"),
        (lambda: bound("cat"), "boxes 'cat' are not understood"),
        (lambda: bound([True, False, True, True]), r"boxes hold torch\.bool"),
        (lambda: bound(CAT, 1.0), r"label holds torch\.float32"),
        (lambda: bound(CAT, iou="half"), "iou must be a number .*, got 'half'"),
    ],
)
def test_values_that_are_not_boxes_are_refused(make, message):
    with pytest.raises(camlib.CamlibTypeError, match=message):
        make()


def test_boxes_are_mirrored_with_the_pictures():
    mirrored = bound([CAT, DOG]).mirrored(50)
    cat, dog = [40.0, 0.0, 50.0, 10.0], [10.0, 20.0, 30.0, 30.0]
    outputs = [found((CAT, 0.9, 1), (cat, 0.3, 1)), found((DOG, 0.8, 2), (dog, 0.4, 2))]
    assert scores(targets.bind(mirrored, outputs), outputs) == [0.3, 0.4]
    assert mirrored.spatial
