"""Probability, ReST and Contrast against their formulas, in every spelling of classes."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib import targets
from tests.few_passes import OF_ATTENTION, cheap
from tests.networks import Network

LOGITS = torch.tensor([[1.0, 3.0, 2.5, -1.5], [0.5, -2.0, 0.0, 2.0]], dtype=torch.float64)
SPELLINGS = [None, 2, [3, 1], np.array([3, 1]), [[0, 1], [3, 2]], camlib.TopK(3)]


def scores(target: targets.Target, outputs: Tensor = LOGITS) -> Tensor:
    return targets.score(targets.bind(target, outputs), outputs, torch.arange(len(outputs)))


def indices(classes: object, outputs: Tensor = LOGITS) -> list[list[int]]:
    """The classes of each image, as a list for each."""
    return targets.bind(classes, outputs).explained.reshape(len(outputs), -1).tolist()


def naive_probability(logits: list[float], c: int) -> float:
    return math.exp(logits[c]) / sum(math.exp(y) for y in logits)


def naive_rest(logits: list[float], c: int) -> float:
    return logits[c] + math.log(naive_probability(logits, c))


def naive_contrast(logits: list[float], c: int, weight: float, nearest: int) -> float:
    others = sorted((abs(y - logits[c]), y) for d, y in enumerate(logits) if d != c)[:nearest]
    return logits[c] - weight * sum(y for _, y in others) / len(others)


FORMULAS = [
    (targets.Probability, naive_probability),
    (targets.ReST, naive_rest),
    (lambda c: targets.Contrast(c, weight=0.6, nearest=2), lambda y, c: naive_contrast(y, c, 0.6, 2)),
    (targets.Contrast, lambda y, c: naive_contrast(y, c, 1.0, 3)),
    (targets.Classes, lambda y, c: y[c]),
]


@pytest.mark.parametrize(("make", "formula"), FORMULAS)
@pytest.mark.parametrize("classes", SPELLINGS)
def test_scores_are_the_formula_in_every_spelling(make, formula, classes):
    expected = [[formula(y, c) for c in of] for y, of in zip(LOGITS.tolist(), indices(classes), strict=True)]
    found = scores(make(classes))
    assert found.shape == targets.bind(classes, LOGITS).explained.shape
    torch.testing.assert_close(found.reshape(2, -1), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("make", "_formula"), FORMULAS)
@pytest.mark.parametrize("classes", SPELLINGS)
def test_explained_are_the_classes(make, _formula, classes):
    explained = targets.bind(make(classes), LOGITS).explained
    assert torch.equal(explained, targets.bind(classes, LOGITS).explained)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 6), st.integers(1, 8), st.floats(-2, 2))
def test_contrast_is_its_formula_on_any_logits(seed, rows, classes, nearest, weight):
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = scores(targets.Contrast(camlib.TopK(2), weight=weight, nearest=nearest), logits)
    top = logits.topk(2).indices.tolist()
    expected = [[naive_contrast(y, c, weight, nearest) for c in of] for y, of in zip(logits.tolist(), top, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("make", "_formula"), FORMULAS)
@pytest.mark.parametrize("classes", SPELLINGS)
def test_bound_targets_do_not_change_and_score_enlarged_batches(make, _formula, classes):
    """Rows of either image in any order, perturbed so that other classes are now the best and the nearest."""
    target = targets.bind(make(classes), LOGITS)
    image_index = torch.tensor([1, 0, 1, 1, 0])
    outputs = torch.flip(LOGITS, (1,))[image_index] * torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None]
    enlarged = targets.score(target, outputs, image_index)
    for row, image in enumerate(image_index.tolist()):  # two rows at a time, in the images' places
        pair = outputs[row].expand(2, -1)
        torch.testing.assert_close(enlarged[row], targets.score(target, pair, torch.arange(2))[image])
    again = targets.bind(target, LOGITS.flip(1))
    assert again is target
    assert torch.equal(targets.score(again, outputs, image_index), enlarged)


def test_contrast_keeps_the_classes_nearest_on_the_clean_outputs():
    target = targets.bind(targets.Contrast(1, nearest=1), LOGITS)  # nearest to class 1: class 2 in both images
    perturbed = torch.tensor([[9.0, 1.0, 5.0, 1.0]], dtype=torch.float64)
    assert targets.score(target, perturbed, torch.tensor([0])).tolist() == [1.0 - 5.0]


@pytest.mark.parametrize(
    ("classes", "against", "expected"),
    [
        (1, 0, [3.0 - 1.0, -2.0 - 0.5]),
        ([1, 3], [2, 0], [3.0 - 2.5, 2.0 - 0.5]),
        (1, [[0, 2], [3, 0]], [3.0 - (1 + 2.5) / 2, -2.0 - (2 + 0.5) / 2]),
        ([[1, 2], [3, 1]], 0, [[3.0 - 1, 2.5 - 1], [2 - 0.5, -2 - 0.5]]),
        ([[1], [3]], [[0, 2], [2, 0]], [[3.0 - (1 + 2.5) / 2], [2 - (0 + 0.5) / 2]]),
    ],
)
def test_contrast_against_given_classes(classes, against, expected):
    assert scores(targets.Contrast(classes, against)).tolist() == expected


def test_contrast_of_k_classes_is_each_of_them_alone():
    together = scores(targets.Contrast([[0, 3], [1, 2]]))
    torch.testing.assert_close(together[:, 0], scores(targets.Contrast([0, 1])))
    torch.testing.assert_close(together[:, 1], scores(targets.Contrast([3, 2])))


def test_contrast_never_takes_a_class_from_itself_even_among_masked_ones():
    logits = torch.tensor([[2.0, -torch.inf, -torch.inf, 1.0]])
    target = targets.bind(targets.Contrast(0, nearest=3), logits)
    outputs = torch.tensor([[100.0, 3.0, 6.0, 9.0]])
    assert targets.score(target, outputs, torch.tensor([0])).tolist() == [100.0 - 6.0]


@pytest.mark.parametrize(
    ("target", "outputs", "message"),
    [
        (lambda: targets.Contrast(1, 1), LOGITS, "contrasted with itself in images 0, 1"),
        (lambda: targets.Contrast([1, 0], [0, 0]), LOGITS, "contrasted with itself in image 1"),
        (lambda: targets.Contrast(0), LOGITS[:, :1], "needs the logits of two classes or more"),
        (lambda: targets.Contrast(0), LOGITS[:, 0], "needs the logits of two classes or more"),
        (lambda: targets.Contrast(0, 9), LOGITS, "class index 9, but the outputs have classes 0 to 3"),
        (lambda: targets.Contrast(0, weight=math.nan), LOGITS, "weight must be a finite number, got nan"),
        (lambda: targets.Contrast(0, nearest=0), LOGITS, "nearest must be an int of at least 1, got 0"),
        (lambda: targets.Probability(4), LOGITS, "class index 4"),
        (lambda: targets.ReST([1, 2, 3]), LOGITS, r"shape \(3,\) for 2 images"),
        (lambda: targets.Classes(camlib.TopK(5)), LOGITS, r"TopK\(5\) asks for more classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(target, outputs, message):
    with pytest.raises(camlib.CamlibValueError, match=message):
        targets.bind(target(), outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: targets.Contrast(0, weight="1"), "weight must be a finite number, got '1'"),
        (lambda: targets.Contrast(0, weight=True), "weight must be a finite number, got True"),
        (lambda: targets.Contrast(0, nearest=2.0), "nearest must be an int of at least 1, got 2.0"),
        (lambda: targets.bind(targets.Probability(True), LOGITS), r"torch\.bool"),
        (lambda: targets.bind(targets.ReST(0.5), LOGITS), r"torch\.float32"),
    ],
)
def test_options_of_another_type_are_refused(make, message):
    with pytest.raises(camlib.CamlibTypeError, match=message):
        make()


@pytest.mark.parametrize("squeeze", [False, True])
def test_binary_networks_have_the_sigmoid_for_probability(squeeze):
    logits = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    outputs = logits[:, 0] if squeeze else logits
    sigmoid = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(2.0))]
    positive = scores(targets.Probability(1), outputs)
    assert positive.tolist() == pytest.approx(sigmoid)
    assert scores(targets.Probability(0), outputs).tolist() == pytest.approx([1 - p for p in sigmoid])
    rest = scores(targets.ReST([1, 0]), outputs)
    assert rest.tolist() == pytest.approx([0.3 + math.log(sigmoid[0]), 2.0 + math.log(1 - sigmoid[1])])


PROBABILITIES = [targets.Probability, targets.Confidence]


@pytest.mark.parametrize("make", PROBABILITIES)
def test_saturated_probability_warns_with_its_value_and_advice(make):
    logits = torch.tensor([[0.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    p = 1 / (1 + math.exp(-6))
    message = rf"probability {p:.6g} .*image 1 is saturated.*p \(1 - p\) = {p * (1 - p):.2g}.*explain the logit"
    bound = targets.bind(make(1), logits)  # no warning, which would be an error here: it may be a metric's
    with pytest.warns(camlib.CamlibWarning, match=message):
        bound.warn_if_flat()
    targets.bind(make(0), logits).warn_if_flat()  # 0.0025 of class 0


@pytest.mark.parametrize("make", PROBABILITIES)
def test_probability_at_the_threshold_does_not_warn(make):
    below = torch.tensor([[0.0, math.log(0.9899 / 0.0101)]], dtype=torch.float64)
    targets.bind(make(1), below).warn_if_flat()
    above = torch.tensor([[0.0, math.log(0.9901 / 0.0099)]], dtype=torch.float64)
    with pytest.warns(camlib.CamlibWarning, match=r"0\.9901"):
        targets.bind(make(1), above).warn_if_flat()


class Certain(Network):
    """Class 0 has a probability above 0.99."""

    def __init__(self) -> None:
        super().__init__()
        self.head.bias.data[0] += 8


ELSEWHERE = {
    "cam": "explains logits only",
    "finer_cam": "explains logits only",
    "full_grad": "explains scores that are piecewise linear only",
    **dict.fromkeys(OF_ATTENTION, "reads attention"),
    "refine_cam": "reads several stages",
}


@pytest.mark.parametrize("name", sorted(camlib.METHODS.keys() - ELSEWHERE))
def test_exactly_the_methods_that_need_gradients_warn_of_saturation(name):
    model, images = Certain().eval(), torch.rand(2, 3, 8, 8)
    layer = {} if camlib.METHODS[name].layerless else {"layer": "norm"}
    method = cheap(name)(model, **layer)
    bound = targets.bind(targets.Confidence([[0, 1], [1, 0]]), model(images))
    for target in (targets.Probability(0), targets.Confidence([0, 1]), bound):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method(images, target)
        told = [one for one in caught if "saturated" in str(one.message)]
        assert len(told) == camlib.METHODS[name].needs_gradients
        assert all(one.filename == __file__ for one in told)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method(images, targets.Probability(1))
        assert not any("saturated" in str(one.message) for one in caught)


@pytest.mark.parametrize("function", [camlib.functional.guided_gradients, camlib.functional.full_gradients])
def test_gradients_of_the_whole_network_warn_of_saturation(function):
    with pytest.warns(camlib.CamlibWarning, match="saturated"):
        function(Certain().eval(), torch.rand(1, 3, 8, 8), targets.Probability(0))


def test_methods_that_share_a_pass_warn_once_and_metrics_never():
    model, images = Certain().eval(), torch.rand(2, 3, 8, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        camlib.compare(model, images, ["grad_cam", "layer_cam", "eigen_cam"], targets.Confidence(0), layer="norm")
    assert ["saturated" in str(one.message) for one in caught] == [True]
    camlib.compare(model, images, ["eigen_cam", "fem"], targets.Confidence(0), layer="norm")
    camlib.metrics.deletion(model, images, torch.rand(2, 8, 8), 0)  # a warning would be an error here


@pytest.mark.parametrize(
    ("target", "of_logits"),
    [
        (targets.Probability(1), lambda y: y.softmax(1)[:, 1]),
        (targets.ReST(1), lambda y: y[:, 1] + y.softmax(1)[:, 1].log()),
        (targets.Contrast(1, [0, 2], 0.6), lambda y: y[:, 1] - 0.6 * y[torch.arange(2), torch.tensor([0, 2])]),
    ],
)
def test_gradients_reach_the_map(target, of_logits):
    images, model = torch.rand(2, 3, 8, 8), Network().eval()
    cam = camlib.GradCAM(model, "norm", relu=False)
    explanation, expected = cam(images, target), cam(images, of_logits)
    assert explanation.maps.abs().max() > 0
    torch.testing.assert_close(explanation.maps, expected.maps)
    assert explanation.target.tolist() == [1, 1]


def test_binding_does_not_change_the_target():
    target = targets.Contrast()
    before = dict(vars(target))
    first, second = scores(target), scores(target, LOGITS.flip(1))
    torch.testing.assert_close(first, second)
    assert vars(target) == before


def test_rest_is_finite_where_the_probability_underflows():
    logits = torch.tensor([[500.0, -500.0]])
    assert scores(targets.ReST(1), logits).tolist() == [-500.0 - 1000.0]
    assert targets.bind(targets.ReST(0), logits).scores(logits, torch.tensor([0])).tolist() == [500.0]


def test_only_the_logits_are_bound_classes():
    """Methods that are exact for logits alone, such as CAM, ask for this type."""
    assert isinstance(targets.bind(None, LOGITS), targets.BoundLogits)
    for other in (targets.Probability(0), targets.ReST(0), targets.Contrast(0)):
        assert not isinstance(targets.bind(other, LOGITS), targets.BoundLogits)


@pytest.mark.parametrize("target", [1, lambda outputs: outputs[:, 0], targets.Contrast(0), targets.Output(1)])
def test_scores_of_the_whole_picture_are_the_same_in_a_mirror(target):
    bound = targets.bind(target, LOGITS)
    assert bound.mirrored(8) is bound
    assert not bound.spatial
