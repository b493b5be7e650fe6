"""The grid pointing game, on mosaics of images of different classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.metrics import energy_pointing_game, grid_pointing_game, mosaics
from tests import metric_equations as equations
from tests.metrics.test_oracles import assert_close


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.sampled_from([1e-3, 1.0, 1e200]))
def test_only_positive_values_count(seed: int, factor: float) -> None:
    torch.manual_seed(seed)
    heatmaps, masks = torch.randn(3, 5, 6).double() * factor, torch.rand(3, 5, 6) < 0.5
    heatmaps[1] = -heatmaps[1].abs()
    masks[:, 0, 0] = True
    scaled = heatmaps / factor
    expected = [equations.grid_pointing_game(h.numpy(), m.numpy()) for h, m in zip(scaled, masks, strict=True)]
    assert_close(grid_pointing_game(heatmaps, masks), expected)
    assert expected[1] == 0
    torch.testing.assert_close(grid_pointing_game(heatmaps, masks), energy_pointing_game(heatmaps.clamp(min=0), masks))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), side=st.integers(1, 3), count=st.integers(1, 4))
def test_every_tile_is_an_image_of_its_class_and_no_class_is_there_twice(seed: int, side: int, count: int) -> None:
    torch.manual_seed(seed)
    images, classes = torch.rand(30, 2, 3, 4), torch.arange(30) % 11 * 7
    drawn = mosaics(images, classes, count, side=side, generator=torch.Generator().manual_seed(seed))
    assert drawn.images.shape == (count, 2, 3 * side, 4 * side)
    assert drawn.target.shape == (count, side**2)
    assert drawn.masks.int().sum(0).unique().tolist() == [1]
    for mosaic, target in zip(drawn.images, drawn.target.tolist(), strict=True):
        assert len(set(target)) == side**2
        for mask, category in zip(drawn.masks, target, strict=True):
            tile = mosaic[:, mask].reshape(2, 3, 4)
            (at,) = (images == tile).all((1, 2, 3)).nonzero().flatten().tolist()
            assert classes[at] == category


def test_every_class_and_every_image_is_drawn() -> None:
    images, classes = torch.arange(12.0).reshape(12, 1, 1, 1), torch.arange(12) // 2
    drawn = mosaics(images, classes, 100)
    assert set(drawn.images.flatten().tolist()) == set(range(12))
    counts = drawn.target.flatten().bincount()
    assert counts.min() > 40
    again = mosaics(images, classes, 100)
    assert torch.equal(again.images, drawn.images)
    other = mosaics(images, classes, 100, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.images, drawn.images)


class Colours(nn.Module):
    """Its classes are the colours red, green, blue and none; its features are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        scores = self.features(images).mean((2, 3))
        return torch.cat([scores, -scores.sum(1, keepdim=True)], 1)


def test_evaluate_plays_the_game_for_each_tile() -> None:
    images = torch.zeros(4, 3, 8, 8)
    for colour in range(3):
        images[colour, colour] = 1
    drawn = mosaics(images, range(4), 3)
    found = camlib.evaluate(Colours(), methods=["hires_cam"], metrics=["grid_pointing_game"], **drawn.by_tile())
    row = next(row for row in found.rows if row.method == "hires_cam")
    expected = [0.0 if category == 3 else 1.0 for category in drawn.target.flatten().tolist()]
    assert found.values[row]["grid_pointing_game"].tolist() == expected
    cam = camlib.HiResCAM(Colours())
    heatmaps = cam(drawn.images, drawn.target).heatmaps().flatten(0, 1)
    assert grid_pointing_game(heatmaps, drawn.masks.repeat(3, 1, 1)).tolist() == expected


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"images": [1]}, camlib.CamlibTypeError, "images must be a tensor"),
        ({"classes": torch.rand(6)}, camlib.CamlibTypeError, "classes must be integers"),
        ({"classes": [0, 1]}, camlib.CamlibValueError, "images have shape"),
        ({"images": torch.rand(6, 8, 8)}, camlib.CamlibValueError, "they must be"),
        ({"side": 3}, camlib.CamlibValueError, "needs 9 classes, and the images have 6"),
        ({"count": 0}, camlib.CamlibValueError, "count must be an int of at least 1"),
    ],
)
def test_mosaics_that_cannot_be_made_are_refused(given: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {"images": torch.rand(6, 3, 8, 8), "classes": torch.arange(6), "count": 2}
    with pytest.raises(error, match=match):
        mosaics(**arguments | given)
