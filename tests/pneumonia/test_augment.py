"""Pictures altered as if taken elsewhere show the same content."""

from __future__ import annotations

import pytest
import torch

from pneumonia.augment import coarser, taken_elsewhere
from pneumonia.phantoms import generate


@pytest.fixture(scope="module")
def pictures():
    return generate(40, size=48, seed=0).images


def test_a_seed_determines_the_changes(pictures):
    once = taken_elsewhere(pictures, 3)
    assert torch.equal(once, taken_elsewhere(pictures, 3))
    assert not torch.equal(once, taken_elsewhere(pictures, 4))
    assert once.shape == pictures.shape
    assert once.dtype == torch.uint8


def test_the_global_random_state_is_unchanged(pictures):
    state = torch.random.get_rng_state()
    taken_elsewhere(pictures, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_altered_picture_is_most_similar_to_its_original(pictures):
    changed = taken_elsewhere(pictures, 0)
    flat = torch.stack([pictures, changed]).float().flatten(2)
    flat = (flat - flat.mean(2, keepdim=True)) / flat.std(2, keepdim=True)
    likeness = flat[1] @ flat[0].T / flat.shape[2]
    others = (likeness.sum(1) - likeness.diagonal()) / 39
    assert (likeness.diagonal() > others).float().mean() > 0.9


def test_each_picture_is_changed_in_its_own_way(pictures):
    same = pictures[:1].expand(12, -1, -1)
    assert len({tuple(picture.flatten().tolist()) for picture in taken_elsewhere(same, 0)}) == 12


def test_lost_sharpness_smooths_and_keeps_the_mean():
    noise = torch.rand(2, 1, 48, 48)
    for share in (0.8, 0.5, 0.35):
        coarse = coarser(noise, share)
        assert coarse.std() < noise.std() * (share + 0.1)
        assert coarse.mean() == pytest.approx(noise.mean().item(), abs=0.01)
