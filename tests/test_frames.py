"""Layers with a row for each frame, slice or view of an image: maps (N, T, h, w), each laid on its own frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlib


def trunk(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU())


class OfFrames(nn.Module):
    """A trunk that sees each frame as a row, and a head over the frames.

    Args:
        to_rows: from the inputs to rows (N T, C, H, W).
        from_rows: from features (N T, 16) to (N, T, 16).
        head: from features (N, T, 16) to (N, 16).
    """

    def __init__(
        self, channels: int, to_rows: Callable[[Tensor], Tensor], from_rows: Callable[[Tensor], Tensor], head: nn.Module
    ) -> None:
        super().__init__()
        self.cnn, self.to_rows, self.from_rows = trunk(channels), to_rows, from_rows
        self.over_frames, self.head = head, nn.Linear(16, 3)

    def forward(self, frames: Tensor) -> Tensor:
        features = self.cnn(self.to_rows(frames)).mean((2, 3))
        return self.head(self.over_frames(self.from_rows(features)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.lstm(features)[0][:, -1]


class Attention(nn.Module):
    """Attention-based pooling over the instances of a bag."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, features: Tensor) -> Tensor:
        return (self.score(features).softmax(1) * features).sum(1)


class Largest(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.amax(1)


T = 4
NETWORKS = {
    "clips and an LSTM": ((T, 3, 64, 48), 3, lambda x: x.flatten(0, 1), lambda f: f.view(-1, T, 16), Recurrent),
    "bags of instances": ((T, 3, 64, 48), 3, lambda x: x.view(-1, 3, 64, 48), lambda f: f.view(-1, T, 16), Attention),
    "slices of a volume": (
        (1, T, 64, 48), 1, lambda x: x.transpose(1, 2).flatten(0, 1), lambda f: f.view(-1, T, 16), Largest,
    ),
    "grey views": ((T, 64, 48), 1, lambda x: x.flatten(0, 1)[:, None], lambda f: f.view(-1, T, 16), Attention),
    "frames as channels": (
        (T * 3, 64, 48), 3, lambda x: x.view(-1, 3, 64, 48), lambda f: f.view(-1, T, 16), Largest,
    ),
    "time first": (
        (T, 3, 64, 48), 3, lambda x: x.transpose(0, 1).flatten(0, 1), lambda f: f.view(T, -1, 16).transpose(0, 1),
        Recurrent,
    ),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def case(request) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    shape, channels, to_rows, from_rows, head = NETWORKS[request.param]
    model = OfFrames(channels, to_rows, from_rows, head()).double().eval()
    return model, torch.rand(3, *shape, dtype=torch.double)


def naive(model: nn.Module, frames: Tensor, classes: int = 1) -> Tensor:
    """Grad-CAM of each frame by plain autograd, image by image."""
    kept: list[Tensor] = []
    handle = model.cnn.register_forward_hook(lambda module, args, output: kept.append(output))
    maps = []
    for image in frames.split(1):
        outputs = model(image)
        features = kept.pop()
        (gradient,) = torch.autograd.grad(outputs[0, classes], features)
        maps.append((features * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach())
    handle.remove()
    return torch.stack(maps)


@pytest.mark.parametrize("layer", [None, "cnn"])
def test_each_frame_has_the_map_of_plain_autograd(case, layer) -> None:
    model, frames = case
    explanation = camlib.GradCAM(model, layer)(frames, 1)
    assert explanation.layer == "cnn"
    torch.testing.assert_close(explanation.maps, naive(model, frames))
    assert explanation.heatmaps().shape == (3, T, 64, 48)


def test_one_image_first_and_several_later(case) -> None:
    model, frames = case
    cam, expected = camlib.GradCAM(model), naive(model, frames)
    torch.testing.assert_close(cam(frames[:1], 1).maps, expected[:1])
    torch.testing.assert_close(cam(frames, 1).maps, expected)
    torch.testing.assert_close(cam(frames[1:], 1).maps, expected[1:])


def test_several_classes(case) -> None:
    model, frames = case
    maps = camlib.GradCAM(model)(frames, torch.tensor([[0, 2]] * 3)).maps
    assert maps.shape == (3, 2, T, 4, 3)
    for k, one in enumerate((0, 2)):
        torch.testing.assert_close(maps[:, k], naive(model, frames, one))


def test_maps_of_activations_and_of_several_layers(case) -> None:
    model, frames = case
    assert camlib.FEM(model, "cnn.3")(frames).maps.shape == (3, T, 4, 3)
    explanation = camlib.LayerCAM(model, ["cnn.1", "cnn.3"])(frames, 1)
    assert {tuple(maps.shape) for maps in explanation.layers.values()} == {(3, T, 16, 12), (3, T, 4, 3)}
    assert explanation.maps.shape == (3, T, 16, 12)


def test_slices_along_the_last_axis_of_a_volume() -> None:
    model = OfFrames(
        1, lambda x: x.movedim(4, 1).flatten(0, 1), lambda f: f.view(-1, 48, 16), Attention()
    ).double().eval()  # fmt: skip
    volumes = torch.rand(2, 1, 16, 32, 48, dtype=torch.double)
    explanation = camlib.GradCAM(model)(volumes, 1)
    torch.testing.assert_close(explanation.maps, naive(model, volumes).movedim(1, 3))
    assert explanation.heatmaps().shape == (2, 16, 32, 48)


def test_methods_that_change_a_layer_refuse_rows_that_are_frames(case) -> None:
    model, frames = case
    with pytest.raises(camlib.CamlibRuntimeError, match="'cnn' has a row for each of 4 frames, which ScoreCAM cannot"):
        camlib.ScoreCAM(model)(frames, 1)


def test_scores_of_each_frame_are_refused_with_the_way_out() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(camlib.CamlibRuntimeError, match="for 2 images, but the outputs have 8 rows; pass forward="):
        camlib.GradCAM(model)(torch.rand(2, 4, 3, 64, 48), 1)


def test_two_inputs_in_one_batch_are_refused() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cnn, self.head = trunk(), nn.Linear(32, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            features = self.cnn(torch.cat([left, right])).mean((2, 3))
            return self.head(torch.cat(features.chunk(2), 1))

    with pytest.raises(camlib.CamlibRuntimeError, match="some of its rows come from elsewhere, such as another input"):
        camlib.GradCAM(Siamese().eval())((torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)), 1)


def test_crops_that_a_network_makes_itself_are_refused() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cnn, self.head = trunk(), nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            crops = torch.stack([images[..., :32], images[..., 32:]], 1).flatten(0, 1)
            return self.head(self.cnn(crops).mean((2, 3)).view(len(images), 2, -1).mean(1))

    with pytest.raises(camlib.CamlibRuntimeError, match="its rows are not the images, but parts of them"):
        camlib.GradCAM(Crops().eval())(torch.rand(2, 3, 64, 64), 1)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "frames as channels"])
def test_the_frames_that_were_explained_are_drawn(name) -> None:
    shape, channels, to_rows, from_rows, head = NETWORKS[name]
    frames = torch.rand(2, *shape)
    explanation = camlib.GradCAM(OfFrames(channels, to_rows, from_rows, head()).eval())(frames, 1)
    pictures = frames[:, :, None] if frames.dim() == 4 else frames if frames.shape[1] == T else frames.transpose(1, 2)
    expected = explanation.overlays([list(clip) for clip in pictures])
    assert expected.shape == (2, T, 64, 48, 3)
    assert np.array_equal(explanation.overlays(frames), expected)
    assert len(explanation.plot(frames).axes) == 2 * 2 * T + 1
    page = camlib.report(explanation, frames).html
    assert page.count("<article") == 2
    assert 'width="192" height="64"' in page  # the four frames in a line


def test_frames_that_are_channels_must_be_given_as_frames() -> None:
    shape, channels, to_rows, from_rows, head = NETWORKS["frames as channels"]
    frames = torch.rand(2, *shape)
    explanation = camlib.GradCAM(OfFrames(channels, to_rows, from_rows, head()).eval())(frames, 1)
    for draw in (explanation.overlays, explanation.plot, lambda images: camlib.report(explanation, images)):
        with pytest.raises(camlib.CamlibValueError, match=r"a tensor clip must be .*got \(2, 12, 64, 48\)"):
            draw(frames)
    assert explanation.overlays(frames.unflatten(1, (T, 3))).shape == (2, T, 64, 48, 3)


@pytest.mark.parametrize("name", ["clips and an LSTM", "slices of a volume", "time first"])
def test_reshape_may_join_the_frames_of_an_image(name) -> None:
    torch.manual_seed(0)
    shape, channels, to_rows, from_rows, head = NETWORKS[name]
    model, frames = OfFrames(channels, to_rows, from_rows, head()).eval(), torch.rand(3, *shape)
    time_first = name == "time first"

    def joined(rows: Tensor) -> Tensor:
        clips = rows.unflatten(0, (T, 3)).transpose(0, 1) if time_first else rows.unflatten(0, (3, T))
        return clips.transpose(1, 2)

    found = camlib.LayerCAM(model, "cnn", reshape=joined)(frames, 1)
    torch.testing.assert_close(found.maps, camlib.LayerCAM(model, "cnn")(frames, 1).maps)
    with pytest.raises(camlib.CamlibTypeError, match=r"must return a tensor \(3, C, t, h, w\)"):
        camlib.LayerCAM(model, "cnn", reshape=lambda rows: rows)(frames, 1)
