"""Continuity, of shifted images, and consistency, of images with the same explanation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import camlib
from camlib.metrics import consistency, continuity
from tests import metric_equations as equations
from tests.metrics.test_oracles import assert_close
from tests.metrics.test_robustness import Recorded, images, pixels
from tests.networks import signal_cnn, small_cnn, volume_cnn


def moved(image: Tensor, shift: int, fill: list[float]) -> Tensor:
    """Pixel by pixel."""
    found = image.clone()
    for column in range(image.shape[-1]):
        for channel in range(len(image)):
            inside = 0 <= column - shift < image.shape[-1]
            found[channel, ..., column] = image[channel, ..., column - shift] if inside else fill[channel]
    return found


@pytest.mark.parametrize(
    ("shifts", "at"),
    [(None, [-8, -7, -6, -4, -3, -2, -1, 1, 2, 3, 4, 6, 7, 8]), ((3, -8), [3, -8])],
    ids=["default", "given"],
)
@pytest.mark.parametrize("baseline", ["mean", 0.25])
def test_continuity_is_the_equation_on_shifted_images(shifts: Any, at: list[int], baseline: Any) -> None:
    x = images(3)
    x[2] = 0.25  # nothing changes, however it is shifted
    recorded = Recorded(camlib.GradCAM(small_cnn().double(), "3"))
    found = continuity(recorded, x, shifts=shifts, baseline=baseline)
    assert len(recorded.inputs) == 1 + len(at)
    for n in range(3):
        fill = x[n].flatten(1).mean(1).tolist() if baseline == "mean" else [baseline] * 3
        for shift, seen in zip(at, recorded.inputs[1:], strict=True):
            torch.testing.assert_close(seen[n], moved(x[n], shift, fill), rtol=0, atol=1e-15)
        steps = [(seen[n] - x[n]).numpy() for seen in recorded.inputs[1:]]
        copies = [heatmaps[n].numpy() for heatmaps in recorded.heatmaps[1:]]
        assert_close(found[n : n + 1], [equations.continuity(recorded.heatmaps[0][n].numpy(), copies, steps)], 1e-10)
    assert found.isnan().tolist() == [False, False, True]


def test_continuity_is_about_the_class_of_the_images_as_they_are() -> None:
    recorded = Recorded(camlib.GradCAM(small_cnn().double(), "3"))
    continuity(recorded, images(), [2, 0], shifts=[1])
    assert recorded.targets[0] == [2, 0]
    assert recorded.targets[1].explained.tolist() == [2, 0]


def test_continuity_of_a_heatmap_that_does_not_look_at_the_picture_is_zero() -> None:
    assert continuity(camlib.CenterGaussian(small_cnn().double()), images()).tolist() == [0, 0]


@pytest.mark.parametrize(("network", "size"), [(signal_cnn, (2, 2, 9)), (volume_cnn, (2, 1, 4, 5, 6))])
def test_continuity_shifts_signals_and_volumes(network: Any, size: tuple[int, ...]) -> None:
    found = continuity(camlib.EigenCAM(network(channels=16), "3"), torch.rand(size))
    assert found.dtype == torch.float32
    assert bool((found > 0).all())


@pytest.mark.parametrize(
    ("shifts", "error", "message"),
    [
        ([], camlib.CamlibValueError, "shifts is empty"),
        ([0], camlib.CamlibValueError, "between -8 and 8, and not 0, got 0"),
        ([9], camlib.CamlibValueError, "got 9"),
        ([1.5], camlib.CamlibTypeError, "shifts must be ints, got float"),
        (3, camlib.CamlibTypeError, "shifts"),
    ],
    ids=str,
)
def test_shifts_that_do_not_fit_are_refused(shifts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        continuity(pixels, images(), shifts=shifts)


def test_a_single_column_cannot_be_shifted() -> None:
    with pytest.raises(camlib.CamlibValueError, match="width 1 cannot be shifted"):
        continuity(pixels, images()[..., :1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12))
def test_consistency_is_the_share_of_the_same_class(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heatmaps = torch.rand(count, 1, 3, generator=generator, dtype=torch.float64)
    classes = torch.randint(3, (count,), generator=generator)
    for discretise in (lambda h: h.flatten(1).argmax(1), lambda h: h > 0.5):
        kinds = [discretise(one[None]).tolist() for one in heatmaps]
        expected = [equations.consistency(kinds, classes.tolist(), n) for n in range(count)]
        assert_close(consistency(heatmaps, classes, discretise), expected)


def test_consistency_by_hand() -> None:
    found = consistency(torch.tensor([[[1.0]], [[1.0]], [[1.0]], [[0.0]]]), [3, 3, 5, 5], lambda h: h)
    assert found[:3].tolist() == [0.5, 0.5, 0.0]
    assert bool(found[3].isnan())


@pytest.mark.parametrize(
    ("classes", "discretise", "error", "message"),
    [
        ([0.5, 1], torch.sign, camlib.CamlibTypeError, "classes must be integers"),
        ([1], torch.sign, camlib.CamlibValueError, r"classes must be \(2,\), one of each heatmap, got \(1,\)"),
        ([1, 1], "sign", camlib.CamlibTypeError, "discretise must be a function of heatmaps, got str"),
        ([1, 1], list, camlib.CamlibTypeError, "discretise returned list"),
        ([1, 1], torch.sum, camlib.CamlibValueError, r"a row for each of the 2 heatmaps"),
    ],
    ids=["floats", "number", "text", "list", "sum"],
)
def test_consistency_refuses_by_name(classes: Any, discretise: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        consistency(torch.rand(2, 1, 3), classes, discretise)
