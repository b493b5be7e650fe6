"""Methods that read no layer find images whose axes are in another order, as methods of layers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camlib


class Series(nn.Module):
    """A network of series (N, L, C)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv1d(6, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.layer(series.mT).relu().mean(2))


class ChannelsLast(nn.Module):
    """A network of images (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images.movedim(-1, 1)).relu().mean((2, 3)))


class Spectrogram(nn.Module):
    """A network of spectrograms (N, time, frequency)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(5, 2)

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.head(self.layer(spectrograms[:, None]).relu().mean((2, 3)))


class Usual(nn.Module):
    """The same network, of inputs with channels first."""

    def __init__(self, model: nn.Module, given: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.given = model, given

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.given(images))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor], Tensor], Any]] = {
    "series": (Series, (2, 20, 6), lambda x: x.mT.contiguous(), lambda x: x.mT),
    "channels last": (ChannelsLast, (2, 9, 10, 4), lambda x: x.movedim(-1, 1).contiguous(), lambda x: x.movedim(1, -1)),
    "spectrograms": (Spectrogram, (2, 12, 9), lambda x: x[:, None], lambda x: x[:, 0]),
}
METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "rise": lambda: {"samples": 32, "cells": 3, "generator": torch.Generator().manual_seed(3)},
    "occlusion": lambda: {"window": 4, "stride": 2},
    "guided_backprop": dict,
    "guided_grad_cam": dict,
    "full_grad": dict,
    "input_x_gradient": lambda: {"pool": 3},
    "integrated_gradients": lambda: {"steps": 2},
    "expected_gradients": lambda: {"baselines": 0.5, "samples": 2},
    "sobel": dict,
    "center_gaussian": dict,
    "grad_cam": dict,
    "score_cam": dict,
}


@pytest.fixture(params=NETWORKS)
def given(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, nn.Module, Tensor]:
    """A network and its inputs, and the same with channels first."""
    build, shape, first, back = NETWORKS[request.param]
    model = build().double().eval()
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    return model, inputs, Usual(model, back), first(inputs)


@pytest.mark.parametrize("name", METHODS)
def test_the_map_is_that_of_the_same_images_with_channels_first(given, name) -> None:
    model, inputs, usual, images = given
    expected = camlib.create(name, usual, **METHODS[name]())(images, 1)
    cam = camlib.create(name, model, **METHODS[name]())
    found = cam(inputs, 1)
    torch.testing.assert_close(found.maps, expected.maps)
    assert found.input_size == expected.input_size == tuple(images.shape[2:])
    torch.testing.assert_close(found.heatmaps(), expected.heatmaps())
    if name != "rise":  # whose generator has drawn other masks by now
        torch.testing.assert_close(cam(inputs, 1).maps, expected.maps)


class Recurrent(nn.Module):
    """A network of series (N, L, 5) without a map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.layer(series)[0][:, -1])


def test_axes_that_no_layer_shows_are_told() -> None:
    model, series = Recurrent().eval(), torch.rand(2, 12, 5)
    occlusion = camlib.Occlusion(model, window=4, stride=4)
    with pytest.warns(camlib.CamlibWarning, match=r"inputs \(2, 12, 5\) are read as signals \(N, C, L\)"):
        assert occlusion(series, 1).maps.shape == (2, 5)


@pytest.mark.filterwarnings("error")
def test_forward_says_where_they_are() -> None:
    occlusion = camlib.Occlusion(Recurrent().eval(), window=4, stride=4, forward=lambda model, x: model(x.mT))
    assert occlusion(torch.rand(2, 12, 5).mT, 1).maps.shape == (2, 12)
