"""Segmentation: the mean logit of a category over a region."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import targets


@dataclass
class Answer:
    logits: Tensor


def scores(target: targets.Target, outputs: object, rows: int = 2) -> Tensor:
    return targets.score(targets.bind(target, outputs), outputs, torch.arange(rows))


def naive_mean(logits: Tensor, category: int, region: Tensor) -> float:
    total, count = 0.0, 0
    for i, j in np.ndindex(*region.shape):
        if region[i, j]:
            total, count = total + float(logits[category, i, j]), count + 1
    return total / count


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 5, 4, dtype=torch.float64)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_score_is_the_mean_logit_over_the_mask(seed, rows, channels, height, width):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, channels, height, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, height, width, generator=generator) < 0.5
    mask[:, 0, 0] = True
    both = torch.cat([-logits, logits], 1) if channels == 1 else logits
    category = torch.randint(both.shape[1], (rows,), generator=generator)
    expected = [naive_mean(both[n], int(category[n]), mask[n]) for n in range(rows)]
    assert scores(targets.Region(category, mask), logits, rows).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: OrderedDict(out=y, aux=-y), lambda y: {"logits": y}, Answer])
def test_outputs_of_every_kind(logits, wrap):
    mask = torch.rand(5, 4) < 0.5
    expected = [naive_mean(logits[n], 1, mask) for n in range(2)]
    assert scores(targets.Region(1, mask), wrap(logits)).tolist() == pytest.approx(expected)
    assert scores(targets.Region(1, mask.numpy()), wrap(logits)).tolist() == pytest.approx(expected)


def test_without_a_mask_the_region_is_where_the_category_is_predicted(logits):
    predicted = logits.argmax(1)
    expected = [naive_mean(logits[n], c, predicted[n] == c) for n, c in enumerate([2, 0])]
    assert scores(targets.Region([2, 0]), logits).tolist() == pytest.approx(expected)


def test_one_channel_is_plus_and_minus_the_logit():
    logits = torch.tensor([[[[1.0, -2.0, 3.0, -5.0]]]])
    assert scores(targets.Region(1), logits, 1).tolist() == [2.0]
    assert scores(targets.Region(0), logits, 1).tolist() == [3.5]
    mask = torch.tensor([[True, True, False, False]])
    assert scores(targets.Region(0, mask), logits, 1).tolist() == [0.5]
    with pytest.raises(
        camlib.CamlibValueError, match="category has class index 2, but the outputs have classes 0 to 1"
    ):
        scores(targets.Region(2), logits, 1)


def test_k_categories_are_each_of_them_alone(logits):
    together = scores(targets.Region([[0, 2], [1, 0]]), logits)
    torch.testing.assert_close(together[:, 0], scores(targets.Region([0, 1]), logits))
    torch.testing.assert_close(together[:, 1], scores(targets.Region([2, 0]), logits))
    mask = torch.rand(2, 5, 4) < 0.5
    together = scores(targets.Region([[0, 2], [1, 0]], mask), logits)
    torch.testing.assert_close(together[:, 1], scores(targets.Region([2, 0], mask), logits))


@pytest.mark.parametrize("category", [1, [0, 2], [[0, 2], [1, 0]]])
def test_the_clean_region_is_kept_in_enlarged_batches(logits, category):
    target = targets.bind(targets.Region(category), logits)
    image_index = torch.tensor([1, 1, 0, 1])
    outputs = torch.randn(4, 3, 5, 4, dtype=torch.float64)
    found = targets.score(target, outputs, image_index).reshape(4, -1)
    predicted = logits.argmax(1)
    categories = torch.as_tensor(category).expand(2) if isinstance(category, int) else torch.tensor(category)
    for row, image in enumerate(image_index.tolist()):
        of_image = categories[image].reshape(-1).tolist()
        expected = [naive_mean(outputs[row], c, predicted[image] == c) for c in of_image]
        assert found[row].tolist() == pytest.approx(expected)
    again = targets.bind(target, logits.flip(1))
    torch.testing.assert_close(targets.score(again, outputs, image_index).reshape(4, -1), found)


def test_signals_and_volumes_have_regions_too():
    logits = torch.randn(2, 3, 2, 3, 4)
    mask = torch.rand(2, 3, 4) < 0.5
    torch.testing.assert_close(scores(targets.Region(1, mask), logits), logits[:, 1, mask].mean(1))
    torch.testing.assert_close(
        scores(targets.Region(1, mask[0, 0]), logits[:, :, 0, 0]), logits[:, 1, 0, 0, mask[0, 0]].mean(1)
    )


def test_gradients_are_one_over_the_region():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    mask = torch.eye(3, dtype=torch.bool)
    scores(targets.Region(1, mask), logits, 1).sum().backward()
    torch.testing.assert_close(logits.grad, torch.stack([torch.zeros(3, 3), torch.eye(3) / 3])[None])


def test_half_precision_holds_the_sum_over_a_large_region():
    logits = torch.full((1, 2, 300, 300), 10.0, dtype=torch.float16)
    assert scores(targets.Region(1, torch.ones(300, 300, dtype=torch.bool)), logits, 1).tolist() == [10.0]


def test_map_is_that_of_the_mean_logit():
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)).eval()
    images = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 1:7] = True
    cam = camlib.GradCAM(network, "1", relu=False)
    explanation = cam(images, targets.Region(2, mask))
    torch.testing.assert_close(explanation.maps, cam(images, lambda outputs: outputs[:, 2, 2:5, 1:7].mean((1, 2))).maps)
    assert explanation.target == "region of category 2"
    assert cam(images, targets.Region([2, 1], mask)).target == "region"
    assert cam(images, targets.Region([[0, 1], [1, 2]], mask)).maps.shape == (2, 2, 8, 8)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            torch.ones(10, 8, dtype=torch.bool),
            ValueError,
            r"shape \(10, 8\), and the outputs \(2, 3, 5, 4\).*interpolate",
        ),
        (torch.ones(1, 5, 4, dtype=torch.bool), ValueError, r"shape \(1, 5, 4\).*give \(5, 4\) or \(2, 5, 4\)"),
        (torch.ones(5, 4), TypeError, r"mask holds torch\.float32 values; give bools"),
        (torch.zeros(5, 4, dtype=torch.bool), ValueError, "the mask is empty in images 0, 1"),
        (torch.stack([torch.ones(5, 4), torch.zeros(5, 4)]).bool(), ValueError, "the mask is empty in image 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(logits, mask, error, message):
    with pytest.raises(error, match=message) as caught:
        targets.bind(targets.Region(1, mask), logits)
    assert isinstance(caught.value, camlib.CamlibError)


def test_a_category_predicted_nowhere_is_an_error_that_names_the_image(logits):
    logits[1, 2] = -100
    with pytest.raises(camlib.CamlibValueError, match=r"category \[2\] is predicted nowhere in image 1"):
        targets.bind(targets.Region(2), logits)


@pytest.mark.parametrize(
    ("category", "error", "message"),
    [
        (None, TypeError, "category None is not understood; give an int, one int per image, or"),
        (camlib.TopK(2), TypeError, "category TopK.* is not understood"),
        (True, TypeError, r"category holds torch\.bool"),
        (3, ValueError, "category has class index 3, but the outputs have classes 0 to 2"),
        ([1, 2, 0], ValueError, r"category has shape \(3,\) for 2 images"),
    ],
)
def test_categories_that_do_not_fit_are_refused(logits, category, error, message):
    with pytest.raises(error, match=message):
        targets.bind(targets.Region(category), logits)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 3), r"float32 of shape \(2, 3\)"),
        ({"scores": torch.zeros(2, 3, 4, 4)}, "the model returns dict"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.long), "int64 of shape"),
    ],
)
def test_outputs_that_are_not_dense_are_refused(outputs, message):
    with pytest.raises(camlib.CamlibTypeError, match=message):
        targets.bind(targets.Region(1), outputs)


def test_a_region_belongs_to_its_images(logits):
    target = targets.bind(targets.Region(1), logits)
    with pytest.raises(camlib.CamlibValueError, match="bound to 2 images, and the outputs are of 1"):
        targets.bind(target, logits[:1])
    with pytest.raises(camlib.CamlibValueError, match=r"bound to outputs of \(5, 4\), and these are of \(3, 4\)"):
        targets.score(target, logits[:, :, 2:], torch.arange(2))


def test_regions_are_mirrored_with_the_pictures(logits):
    for target in (targets.Region([1, 2]), targets.Region(0, torch.rand(5, 4) < 0.5)):
        mirrored = targets.bind(target, logits).mirrored(99)
        other_side = logits.flip(-1)
        again = targets.bind(mirrored, other_side)
        torch.testing.assert_close(targets.score(again, other_side, torch.arange(2)), scores(target, logits))
        assert mirrored.spatial
