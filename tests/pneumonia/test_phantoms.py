"""The phantoms are reproducible and correctly labelled, and no shortcut distinguishes the classes."""

from __future__ import annotations

import dataclasses
import doctest

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumonia import phantoms

TRAIN, TEST, SIZE = 1300, 500, 96


@pytest.fixture(scope="module")
def many():
    """Enough phantoms to train and test a linear model on."""
    return phantoms.generate(TRAIN + TEST, size=SIZE, seed=0)


def planes(made):
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def linear_auroc(features, labels, strength):
    """The test AUROC of a logistic regression trained on the first phantoms."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    model.fit(features[:TRAIN], labels[:TRAIN])
    return roc_auc_score(labels[TRAIN:], model.decision_function(features[TRAIN:]))


def twins(index, size=SIZE, seed=0):
    """One body drawn once without and once with its opacities."""
    return [phantoms._draw(np.random.default_rng([seed, 1, index]), size, label) for label in (0, 1)]


def test_result_has_the_documented_shapes_and_types():
    made = phantoms.generate(5, size=48, seed=3)
    assert len(made) == 5
    assert made.labels.dtype == torch.int64
    assert made.labels.shape == (5,)
    assert made.images.dtype == torch.uint8
    for name in ("images", "masks", "lungs", "distractors", "markers"):
        plane = getattr(made, name)
        assert plane.shape == (5, 48, 48), name
        assert plane.is_contiguous(), name
        assert name == "images" or plane.dtype == torch.bool, name
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.labels = made.labels


def test_docstring_example_is_true():
    assert doctest.testmod(phantoms) == (0, 4)


def test_same_seed_gives_the_same_phantoms():
    first, second = (
        planes(phantoms.generate(6, size=40, seed=11)),
        planes(phantoms.generate(6, size=40, seed=11)),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(5)
    torch.manual_seed(5)
    first = phantoms.generate(3, size=40)
    after = np.random.random(), torch.rand(())
    np.random.seed(5)
    torch.manual_seed(5)
    assert after == (np.random.random(), torch.rand(()))
    assert torch.equal(first.images, phantoms.generate(3, size=40).images)


def test_another_seed_gives_other_bodies_and_another_order():
    first, second = phantoms.generate(40, size=32, seed=1), phantoms.generate(40, size=32, seed=2)
    assert not torch.equal(first.labels, second.labels)
    assert not (first.lungs == second.lungs).flatten(1).all(dim=1).any()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(0, 6), st.integers(0, 2**63))
def test_a_larger_count_does_not_change_the_first_phantoms(count, extra, seed):
    few = planes(phantoms.generate(count, size=32, seed=seed))
    more = planes(phantoms.generate(count + extra, size=32, seed=seed))
    assert all(torch.equal(few[name], more[name][:count]) for name in few)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_classes_are_balanced_in_every_prefix(count, seed):
    labels = phantoms._labels(count, seed)
    ones = np.cumsum(labels)
    assert np.abs(2 * ones - np.arange(1, count + 1)).max() <= 1
    assert set(labels.tolist()) <= {0, 1}


def test_order_of_the_classes_is_shuffled():
    labels = np.concatenate([phantoms._labels(1000, seed) for seed in range(20)])
    assert 0.48 < labels[::2].mean() < 0.52


@pytest.mark.parametrize("size", [32, 33, 64, 150, 224, 320])
def test_any_size_draws_the_same_bodies(size):
    reference = phantoms.generate(6, size=128, seed=4)
    made = phantoms.generate(6, size=size, seed=4)
    for name in ("lungs", "masks"):
        wanted = getattr(reference, name).numpy().astype(np.float32)
        for index, mask in enumerate(getattr(made, name).numpy()):
            scaled = cv2.resize(mask.astype(np.float32), (128, 128), interpolation=cv2.INTER_LINEAR) > 0.5
            union = (scaled | (wanted[index] > 0)).sum()
            overlap = (scaled & (wanted[index] > 0)).sum() / max(union, 1)
            assert union == 0 or overlap > (0.9 if size > 60 else 0.8), (name, index, overlap)
    for image, other in zip(reference.images.numpy(), made.images.numpy(), strict=True):
        coarse = [cv2.resize(x, (16, 16), interpolation=cv2.INTER_AREA).astype(float) for x in (image, other)]
        assert np.abs(coarse[0] - coarse[1]).mean() < 4


def test_masks_are_empty_exactly_for_normal(many):
    assert torch.equal(many.masks.flatten(1).any(dim=1), many.labels == 1)


def test_opacities_lie_inside_the_lungs(many):
    assert not (many.masks & ~many.lungs).any()


def test_opacities_are_large_enough_to_find_and_too_small_to_fill_the_lungs(many):
    sick = many.labels == 1
    areas = many.masks[sick].float().mean(dim=(1, 2))
    assert areas.min() > 0.003
    assert 0.015 < areas.median() < 0.06
    assert areas.max() < 0.15
    assert (areas < many.lungs[sick].float().mean(dim=(1, 2)) * 0.7).all()


def test_opacities_are_found_all_over_both_lungs(many):
    heat = many.masks.float().sum(dim=0)
    heat /= heat.sum()
    left, right = heat[:, : SIZE // 2].sum(), heat[:, SIZE // 2 :].sum()
    upper, lower = heat[: SIZE * 45 // 100].sum(), heat[SIZE * 45 // 100 :].sum()
    assert min(left, right, upper, lower) > 0.3
    assert heat.max() < 12 / (SIZE * SIZE)  # no favourite place: an even spread over the lungs has about 5


def test_lungs_are_two_fields_that_differ(many):
    pieces = [cv2.connectedComponentsWithStats(lung.numpy().astype(np.uint8))[2] for lung in many.lungs[:100]]
    large = [sorted(stats[1:, cv2.CC_STAT_AREA] / SIZE**2)[-2:] for stats in pieces]
    assert all(len(areas) == 2 and areas[0] > 0.05 for areas in large)
    assert np.mean([areas[0] / areas[1] for areas in large]) < 0.95


def test_a_phantom_is_dark_in_air_and_lungs_and_bright_in_the_middle(many):
    images, lungs = many.images[:200].float(), many.lungs[:200]
    middle = images[:, SIZE // 2 :, SIZE * 47 // 100 : SIZE * 53 // 100].mean(dim=(1, 2))
    lung = (images * lungs).sum(dim=(1, 2)) / lungs.sum(dim=(1, 2))
    assert (lung < middle).float().mean() > 0.98
    assert images.amin(dim=(1, 2)).median() < 25
    assert (many.images == 255).float().mean() < 0.02


@pytest.mark.parametrize("kind", ["markers", "look-alikes"])
def test_distractors_occur_equally_in_both_classes(many, kind):
    plane = many.markers if kind == "markers" else many.distractors & ~many.markers
    share = [plane[many.labels == label].flatten(1).any(dim=1).float().mean().item() for label in (0, 1)]
    area = [plane[many.labels == label].float().mean().item() for label in (0, 1)]
    assert min(share) > 0.4
    assert abs(share[0] - share[1]) < 0.08
    assert 0.8 < area[0] / area[1] < 1.25
    assert not (plane & ~many.markers & many.lungs).any()


def test_twins_differ_by_their_opacities_and_not_in_their_mean():
    for index in range(30):
        normal, sick = twins(index)
        assert np.array_equal(normal.lungs, sick.lungs)
        assert np.array_equal(normal.distractors, sick.distractors)
        assert not normal.mask.any()
        gain = sick.image.astype(float) - normal.image
        assert abs(gain.mean()) < 1.0
        assert gain[sick.mask].mean() > 4
        assert gain[sick.lungs & ~sick.mask].mean() < 0
        assert np.abs(gain[cv2.dilate(sick.lungs.astype(np.uint8), np.ones((9, 9))) == 0]).max() <= 1


def test_intensity_histogram_does_not_separate_the_classes(many):
    histograms = np.stack([np.bincount(i.ravel() // 4, minlength=64) for i in many.images.numpy()]) / SIZE**2
    for strength in (0.01, 0.1, 1.0):
        assert linear_auroc(histograms, many.labels.numpy(), strength) < 0.7


def test_mean_intensity_does_not_separate_the_classes(many):
    means = many.images.float().mean(dim=(1, 2)).numpy()
    assert abs(roc_auc_score(many.labels.numpy(), means) - 0.5) < 0.05


def test_coarse_pixels_do_not_separate_the_classes(many):
    pixels = [cv2.resize(i, (32, 32), interpolation=cv2.INTER_AREA).ravel() for i in many.images.numpy()]
    for strength in (0.001, 0.01, 0.1):
        assert linear_auroc(np.stack(pixels).astype(float), many.labels.numpy(), strength) < 0.8


def test_opacities_are_visible_at_their_known_place(many):
    sick = many.labels == 1
    images, masks, lungs = many.images[sick].float(), many.masks[sick], many.lungs[sick]
    inside = (images * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    rest = lungs & ~masks
    outside = (images * rest).sum(dim=(1, 2)) / rest.sum(dim=(1, 2))
    assert ((inside - outside) > 8).float().mean() > 0.98
    assert (inside - outside).median() > 25


def test_the_brightest_patch_of_the_lungs_separates_the_classes(many):
    features = []
    for image, lungs in zip(many.images.numpy()[:800], many.lungs.numpy(), strict=False):
        weight = cv2.GaussianBlur(lungs.astype(np.float32), (0, 0), SIZE / 24)
        local = cv2.GaussianBlur(image * lungs.astype(np.float32), (0, 0), SIZE / 24) / np.maximum(weight, 1e-3)
        inner = cv2.erode(lungs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        features.append(local[inner].max() - np.median(image[lungs]))
    assert roc_auc_score(many.labels.numpy()[:800], features) > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 2.5}, "count must be a whole number of at least 1, got 2.5"),
        ({"count": True}, "count must be a whole number of at least 1, got True"),
        ({"count": 2, "size": 31}, "size must be a whole number of at least 32, got 31"),
        ({"count": 2, "size": "96"}, "size must be a whole number of at least 32, got '96'"),
        ({"count": 2, "seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"count": 2, "seed": None}, "seed must be a whole number of at least 0, got None"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        phantoms.generate(**arguments)


def test_numpy_integers_are_whole_numbers():
    made = phantoms.generate(np.int64(2), size=np.int32(40), seed=np.uint8(3))
    assert torch.equal(made.images, phantoms.generate(2, size=40, seed=3).images)
