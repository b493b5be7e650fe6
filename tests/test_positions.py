"""Positions followed through a pass: a map is shown only where its cells were seen to come from the images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

import camlib
from camlib.discovery import rules
from camlib.discovery.confirmation import followed, layout_by_positions
from camlib.discovery.positions import Positions
from camlib.inputs import Inputs
from camlib.layers.layouts import ChannelsFirst, ChannelsLast, Tokens, Transposed


def own_places(positions: Positions, features: Tensor, axis: int) -> Tensor:
    """The coordinates of a tensor along an axis of the first input, in full."""
    return positions.of(features)[0, axis].values.expand(features.shape)


def centres(features: Tensor, image: Tensor, cell: tuple[int, ...]) -> tuple[float, float]:
    """The mean place of the pixels that a cell of (1, C, h, w) reads, weighted by the gradient of a linear network."""
    (gradient,) = torch.autograd.grad(features[(0, slice(None), *cell)].sum(), image, retain_graph=True)
    weights = gradient.abs().sum((0, 1))
    rows, columns = torch.arange(float(weights.shape[0])), torch.arange(float(weights.shape[1]))
    total = weights.sum()
    return float((weights.sum(1) * rows).sum() / total), float((weights.sum(0) * columns).sum() / total)


@pytest.mark.parametrize(
    "network",
    [
        nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 5, 3), nn.Conv2d(1, 1, 3, 2, 2, dilation=2),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 1, 3, 2)), nn.ConvTranspose2d(1, 1, 3, 1, 1),
        nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d((4, 6)), nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 1, 3, 2, 1)),
        nn.Conv2d(1, 1, 3, 2, 1, padding_mode="circular"), nn.Conv2d(1, 1, 5, 2, 2, padding_mode="reflect"),
        nn.PixelUnshuffle(2), nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 1, 1)),
    ],
)  # fmt: skip
def test_cells_are_where_the_gradient_says(network: nn.Module) -> None:
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    image = torch.rand(1, 1, 24, 36, requires_grad=True)
    with Positions([image]) as positions:
        features = network(image)
    rows, columns = own_places(positions, features, 2), own_places(positions, features, 3)
    for cell in ((1, 2), (2, 3)):  # padding does not reach them
        place = float(rows[(0, 0, *cell)]), float(columns[(0, 0, *cell)])
        assert place == pytest.approx(centres(features, image, cell), abs=1e-3)


def test_rearrangements_move_the_places() -> None:
    image = torch.arange(48.0).view(1, 1, 6, 8)
    with torch.no_grad(), Positions([image]) as positions:
        rolled = image.roll((1, -2), (2, 3)).unfold(2, 3, 3).unfold(3, 4, 4).flatten(2, 3).permute(0, 2, 3, 4, 1)
        chosen = torch.cat([torch.zeros(1, 1, 1), rolled.flatten(1, 3)[:, [3, 1, 40]]], 1)
    for features in (rolled, chosen[:, 1:]):
        with torch.no_grad(), Positions([image]) as positions:
            again = image.roll((1, -2), (2, 3)).unfold(2, 3, 3).unfold(3, 4, 4).flatten(2, 3).permute(0, 2, 3, 4, 1)
            again = again if features is rolled else again.flatten(1, 3)[:, [3, 1, 40]]
        assert torch.equal(own_places(positions, again, 2) * 8 + own_places(positions, again, 3), features)


def test_a_batch_filled_image_by_image_keeps_the_places() -> None:
    image = torch.rand(3, 6, 8)
    with torch.no_grad(), Positions([image]) as positions:
        batch = image.new_zeros(1, 3, 8, 8)
        batch[0, :, :6, :8].copy_(image)
        features = nn.Conv2d(3, 2, 1)(batch)
    assert own_places(positions, features, 1)[0, 0, :, 0].tolist() == list(range(8))


def test_mixing_all_positions_leaves_none() -> None:
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), Positions([image]) as positions:
        tokens = image.flatten(2)
        mixed = nn.Linear(64, 64)(tokens)
        residual = tokens + mixed
        pooled = image.mean((2, 3))
    assert {axis for _, axis in positions.of(mixed)} & {2, 3} == set()
    assert {axis for _, axis in positions.of(residual)} >= {2, 3}
    assert {axis for _, axis in positions.of(pooled)} & {2, 3} == set()


class TestLayoutByPositions:
    inputs = Inputs(torch.rand(1, 3, 32, 48))

    def layout(self, change: Callable[[Tensor], Tensor]) -> Any:
        """The layout of features that a function makes from a map (1, 4, 4, 6)."""
        with torch.no_grad(), followed(self.inputs) as positions:
            features = change(nn.Conv2d(3, 4, 8, 8)(self.inputs.raw))
        return layout_by_positions(positions.of(features), tuple(features.shape), self.inputs, self.inputs.axes)

    @staticmethod
    def tokens(maps: Tensor, *, first: int = 0, last: int = 0) -> Tensor:
        return torch.cat([torch.zeros(1, first, 4), maps.flatten(2).mT, torch.zeros(1, last, 4)], 1)

    @pytest.mark.parametrize(
        ("change", "layout"),
        [
            (lambda maps: maps + 1, ChannelsFirst((4, 6))),
            (lambda maps: maps.permute(0, 2, 3, 1), ChannelsLast((4, 6))),
            (lambda maps: maps.transpose(2, 3), Transposed((4, 6), (-1, -2))),
            (lambda maps: maps.permute(0, 3, 2, 1), Transposed((4, 6), (-2, -3))),
            (lambda maps: TestLayoutByPositions.tokens(maps), Tokens((4, 6), 0)),
            (lambda maps: TestLayoutByPositions.tokens(maps, first=2, last=5), Tokens((4, 6), 2)),
        ],
    )
    def test_it_brings_the_cells_back_to_their_places(self, change: Any, layout: Any) -> None:
        maps = torch.rand(2, 4, 4, 6)
        assert self.layout(change) == layout
        features = change(maps[:1])
        assert torch.equal(layout.to_grid(features), maps[:1] + (1 if layout == ChannelsFirst((4, 6)) else 0))

    def test_a_grid_of_a_single_row(self) -> None:
        inputs = Inputs(torch.rand(1, 3, 8, 48))
        for last in (False, True):
            with torch.no_grad(), followed(inputs) as positions:
                features = nn.Conv2d(3, 4, 8, 8)(inputs.raw)
                features = features.permute(0, 2, 3, 1) if last else features
            expected = ChannelsLast((1, 6)) if last else ChannelsFirst((1, 6))
            assert layout_by_positions(positions.of(features), tuple(features.shape), inputs, inputs.axes) == expected

    @pytest.mark.parametrize(
        "order", [torch.arange(24).flip(0), torch.arange(24).view(6, 4).mT.flatten(), torch.randperm(24)]
    )
    def test_tokens_in_another_order_are_put_in_order(self, order: Tensor) -> None:
        layout = self.layout(lambda maps: self.tokens(maps)[:, order])
        maps = torch.rand(2, 4, 4, 6)
        assert torch.equal(layout.to_grid(maps.flatten(2).mT[:, order]), maps)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda maps: TestLayoutByPositions.tokens(maps)[:, [0, 2, 3, 5, 18, 20, 21, 23]], "not spaced evenly"),
            (lambda maps: TestLayoutByPositions.tokens(maps)[:, [0, 5, 18]], "not a whole 2 x 2"),
            (lambda maps: maps.mean(3, keepdim=True).expand(1, 4, 4, 6).clone(), "follow axis 3"),
            (lambda maps: maps.flip(3), "do not progress evenly"),
            (lambda maps: maps[..., [0, 1, 2, 3, 5]], "do not progress evenly"),
            (lambda maps: maps.view(1, 4, 4, 2, 3).permute(0, 3, 1, 2, 4).flatten(0, 1), "its rows are not the images"),
        ],
    )
    def test_what_is_no_grid_over_the_images_has_none(self, change: Any, problem: str) -> None:
        assert re.search(problem, self.layout(change))


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1), nn.ReLU())


class LevelsAsRows(nn.Module):
    """A detection head that returns (N, 84, anchors)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(16, 84, 1), nn.Conv2d(16, 84, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return torch.cat([self.fine(fine).flatten(2), self.coarse(coarse).flatten(2)], 2).sigmoid()


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 8, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.head = LevelsAsRows()

    def forward(self, images: Tensor) -> Tensor:
        fine = self.first(images)
        return self.head(fine, self.second(fine))


class WithVitals(nn.Module):
    """A radiograph and 24 hours of vital signs."""

    def __init__(self) -> None:
        super().__init__()
        self.vitals, self.xray = nn.LSTM(8, 16, batch_first=True), trunk()
        self.head = nn.Linear(48, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        vitals, xray = self.vitals(inputs["vitals"])[0].mean(1), self.xray(inputs["xray"]).mean((2, 3))
        return self.head(torch.cat([vitals, xray], 1))


def test_rows_of_classes_are_no_map() -> None:
    explanation = camlib.GradCAM(Detector().eval())(torch.rand(2, 3, 64, 64), lambda out: out[:, 4:].amax((1, 2)))
    assert explanation.layer == "first"


def test_hours_of_vital_signs_are_no_map() -> None:
    inputs = {"vitals": torch.rand(2, 24, 8), "xray": torch.rand(2, 3, 64, 64)}
    explanation = camlib.GradCAM(WithVitals().eval())(inputs, 1)
    assert explanation.layer == "xray"
    with torch.no_grad(), camlib.capture(model := WithVitals().eval(), "xray") as captured:
        outputs = model(inputs)
    weights = captured.gradients(outputs[:, 1]).mean((2, 3))
    expected = torch.einsum("nc,ncij->nij", weights, captured.activations).relu()
    torch.testing.assert_close(camlib.GradCAM(model)(inputs, 1).maps, expected)


def naive(model: nn.Module, layer: str, images: Tensor, grid: tuple[int, int], prefix: int, **options: Any) -> Tensor:
    """Grad-CAM of class 1 by plain autograd, with the layout written out."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    outputs = model(images, **options)
    outputs = outputs if isinstance(outputs, Tensor) else outputs.logits
    handle.remove()
    features = kept[-1] if isinstance(kept[-1], Tensor) else kept[-1][0]
    (gradient,) = torch.autograd.grad(outputs[:, 1].sum(), features)
    features, gradient = (t[:, prefix:].mT.unflatten(2, grid) for t in (features, gradient))
    return (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()


@pytest.mark.parametrize(("size", "cells"), [(112, 3), (240, 7)])
def test_patches_that_do_not_tile_the_image_have_the_grid_of_the_network(size: int, cells: int) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        patch_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model, images = (
        transformers.ViTForImageClassification(config).double().eval(),
        torch.rand(2, 3, size, size).double(),
    )
    explainer = camlib.GradCAM(model, forward=lambda m, x: m(x, interpolate_pos_encoding=True))
    explanation = explainer(images, 1)
    expected = naive(model, explanation.layer, images, (cells, cells), 1, interpolate_pos_encoding=True)
    torch.testing.assert_close(explanation.maps, expected)


@pytest.mark.parametrize(("size", "cells"), [(80, 3), (144, 5), (216, 7)])
def test_merges_that_pad_have_the_grid_of_the_network(size: int, cells: int) -> None:
    torch.manual_seed(0)
    config = transformers.Swinv2Config(
        image_size=size, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=3
    )
    model, images = transformers.Swinv2ForImageClassification(config).double().eval(), torch.rand(2, 3, size, size)
    explanation = camlib.GradCAM(model)(images.double(), 1)
    expected = naive(model, explanation.layer, images.double(), (cells, cells), 0)
    torch.testing.assert_close(explanation.maps, expected)


STAGES = {"image_size": 144, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_labels": 5}
WINDOWS = {"num_heads": [1, 1, 2, 4], "window_size": 4}
PADDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "PiT": (
        lambda: timm.models.pit.PoolingVisionTransformer(
            144, 16, 8, "overlap", (8, 8, 8), (1, 1, 1), (1, 2, 4), 2, num_classes=5
        ),
        1,
    ),
    "FocalNet": (
        lambda: transformers.FocalNetForImageClassification(
            transformers.FocalNetConfig(**STAGES, hidden_sizes=[8, 16, 32, 64], focal_levels=[1] * 4)
        ),
        0,
    ),
    "Donut": (
        lambda: transformers.DonutSwinForImageClassification(transformers.DonutSwinConfig(**STAGES, **WINDOWS)),
        0,
    ),
    "Swin": (lambda: transformers.SwinForImageClassification(transformers.SwinConfig(**STAGES, **WINDOWS)), 0),
}
"""Networks of 5 x 5 cells at 144 px, which could also be read as 4 x 4, and their number of tokens before the cells."""


@pytest.mark.parametrize("name", PADDED)
def test_stages_of_25_cells_are_not_read_as_16(name: str) -> None:
    torch.manual_seed(0)
    build, prefix = PADDED[name]
    model, images = build().double().eval(), torch.rand(2, 3, 144, 144).double()
    explanation = camlib.GradCAM(model)(images, 1)
    expected = naive(model, explanation.layer, images, (5, 5), prefix)
    assert expected.flatten(1).any(1).all()
    torch.testing.assert_close(explanation.maps, expected)


def test_tokens_that_run_window_by_window_are_put_in_order() -> None:
    model, images = timm.create_model("hiera_tiny_224").eval(), torch.rand(1, 3, 224, 224)
    assert camlib.find_stages(model, images) == ["unroll", "blocks.2", "blocks.9", "blocks.11"]
    with camlib.capture(model, "blocks.2") as captured:
        outputs = model(images)
    features, gradient = captured.activations, captured.gradients(outputs[:, 1])
    features, gradient = (model.reroll(tokens, 2).permute(0, 3, 1, 2) for tokens in (features, gradient))
    expected = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    torch.testing.assert_close(camlib.GradCAM(model, "blocks.2")(images, 1).maps, expected)


class TestSpectrograms:
    """Spectrograms and series in any order of the axes."""

    @staticmethod
    def transformer() -> nn.Module:
        torch.manual_seed(0)
        config = transformers.ASTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        return transformers.ASTForAudioClassification(config).double().eval()

    def test_time_before_frequency(self) -> None:
        model, spectrograms = self.transformer(), torch.rand(1, 1024, 128, dtype=torch.double)
        explanation = camlib.GradCAM(model)(spectrograms, 1)
        expected = naive(model, explanation.layer, spectrograms, (12, 101), 2).mT
        torch.testing.assert_close(explanation.maps, expected)
        assert explanation.heatmaps().shape == (1, 1024, 128)
        assert torch.equal(camlib.GradCAM(model, explanation.layer)(spectrograms, 1).maps, explanation.maps)

    def test_reshape_may_return_as_many_axes_as_the_layer_has(self) -> None:
        model, spectrograms = self.transformer(), torch.rand(1, 1024, 128, dtype=torch.double)
        layer = "audio_spectrogram_transformer.layers.1.layernorm_before"
        cam = camlib.GradCAM(model, layer, reshape=lambda tokens: tokens[:, 2:].mT.unflatten(2, (12, 101)))
        torch.testing.assert_close(cam(spectrograms, 1).maps, naive(model, layer, spectrograms, (12, 101), 2))
        assert cam(spectrograms, 1).heatmaps().shape == (1, 128, 1024)  # as the user's grid lies

    @pytest.mark.parametrize(
        ("shape", "to_first"),
        [
            ((2, 300, 6), lambda series: series.mT),
            ((2, 64, 48, 3), lambda frames: frames.permute(0, 3, 1, 2)),
            ((2, 64, 48), lambda grey: grey[:, None]),
            ((2, 4000), lambda sound: sound[:, None]),
        ],
    )
    @pytest.mark.parametrize("named", [False, True])
    def test_a_network_that_moves_the_axes_gives_the_maps_of_one_that_does_not(
        self, shape: tuple[int, ...], to_first: Any, named: bool
    ) -> None:
        torch.manual_seed(0)
        images = torch.rand(shape)
        first = to_first(images)
        conv = (nn.Conv1d, nn.Conv2d)[first.dim() - 3]
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[first.dim() - 3]
        model = nn.Sequential(
            conv(first.shape[1], 8, 5, 4, 2), nn.ReLU(), conv(8, 16, 3, 2, 1), nn.ReLU(), pool(1), nn.Flatten(),
            nn.Linear(16, 3),
        ).eval()  # fmt: skip
        moved = Moved(model, to_first).eval()
        expected = camlib.GradCAM(model)(first, 1)
        for _ in range(2):  # the first pass shows the axes, which later ones know
            explanation = camlib.GradCAM(moved, "network.3" if named else None)(images, 1)
            assert explanation.layer == "network.3"
            assert torch.equal(explanation.maps, expected.maps)
            assert torch.equal(explanation.heatmaps(), expected.heatmaps())
        if shape != (2, 4000):
            rise = camlib.ScoreCAM(moved)(images, 1)
            torch.testing.assert_close(rise.maps, camlib.ScoreCAM(model)(first, 1).maps)
        mirrored, expected = (camlib.TestTimeAugmentation(camlib.GradCAM(one)) for one in (moved, model))
        torch.testing.assert_close(mirrored(images, 1).maps, expected(first, 1).maps)

    def test_a_map_that_is_transposed_is_shown_upright(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), Transpose(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
        images = torch.rand(2, 3, 32, 48)
        with camlib.capture(model, "0.4") as captured:
            outputs = model(images)
        weights = captured.gradients(outputs[:, 1]).mean((2, 3))
        expected = torch.einsum("nc,ncij->nji", weights, captured.activations).relu()
        for layer in ("0.4", None):
            torch.testing.assert_close(camlib.GradCAM(model, layer)(images, 1).maps, expected)


class Transpose(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.transpose(2, 3)


class Moved(nn.Module):
    """A network that moves the axes of its inputs."""

    def __init__(self, network: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.move = network, move

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.move(images))


def test_a_map_of_inner_windows_is_not_the_layer() -> None:
    model = timm.create_model("tnt_s_legacy_patch16_224").eval()
    assert camlib.GradCAM(model)(torch.rand(1, 3, 224, 224)).maps.shape == (1, 14, 14)


def test_a_checkpointed_transformer_has_the_layer_of_the_same_without() -> None:
    model, images = timm.create_model("vit_tiny_patch16_224").eval(), torch.rand(1, 3, 224, 224)
    expected = camlib.find_layer(model, images)
    model.set_grad_checkpointing(True)
    assert camlib.find_layer(model, images) == expected


def test_following_leaves_the_outputs_as_they_are() -> None:
    model, images = torchvision.models.resnet18(num_classes=4).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        with followed(Inputs(images)):
            assert torch.equal(model(images), expected)


def test_an_operation_called_in_an_unforeseen_way_loses_the_places_and_no_more(monkeypatch) -> None:
    def fail(call: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setitem(rules._RULES, "relu", fail)
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), Positions([image]) as positions:
        after, beside = image.relu(), image + 1
    assert not positions.of(after)
    assert positions.of(beside)


class TestNamedLayers:
    images = torch.rand(2, 3, 112, 112, dtype=torch.double)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            patch_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        return transformers.ViTForImageClassification(config).double().eval()

    def test_tokens_have_the_grid_of_the_network(self) -> None:
        model = self.model()
        explainer = camlib.GradCAM(
            model, "vit.layers.0", forward=lambda m, x: m(x, interpolate_pos_encoding=True), relu=True
        )
        expected = naive(model, "vit.layers.0", self.images, (3, 3), 1, interpolate_pos_encoding=True)
        torch.testing.assert_close(explainer(self.images, 1).maps, expected)

    def test_the_places_are_followed_in_the_first_pass_of_each_size(self) -> None:
        model, passes = self.model(), []
        model.register_forward_pre_hook(lambda module, args: passes.append(args))
        explainer = camlib.GradCAM(model, "vit.layers.0", forward=lambda m, x: m(x, interpolate_pos_encoding=True))
        counts = []
        for size in (112, 112, 240):
            explainer(torch.rand(1, 3, size, size, dtype=torch.double), 1)
            counts.append(len(passes))
        assert counts == [1, 2, 3]

    def test_several_layers_are_followed_in_one_pass(self) -> None:
        model, passes = self.model(), []
        model.register_forward_pre_hook(lambda module, args: passes.append(args))
        layers = ["vit.layers.0", "vit.layers.1.layernorm_before"]
        cam = camlib.GradCAM(model, layers, forward=lambda m, x: m(x, interpolate_pos_encoding=True))
        explanation = cam(self.images)
        assert len(passes) == 1
        assert {tuple(maps.shape) for maps in explanation.layers.values()} == {(2, 3, 3)}

    def test_a_choice_of_tokens_is_refused(self) -> None:
        config = transformers.ViTMAEConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        model = transformers.ViTMAEModel(config).eval()
        with pytest.raises(camlib.CamlibValueError, match="its 49 cells are not.*pass reshape="):
            camlib.GradCAM(model, "layers.1")(
                torch.rand(1, 3, 224, 224), lambda out: out.last_hidden_state.mean((1, 2))
            )

    def test_reshape_is_the_way_out(self) -> None:
        model = self.model()
        explainer = camlib.GradCAM(
            model, "vit.layers.0", forward=lambda m, x: m(x, interpolate_pos_encoding=True),
            reshape=lambda tokens: tokens[:, 1:].mT.unflatten(2, (3, 3)),
        )  # fmt: skip
        expected = naive(model, "vit.layers.0", self.images, (3, 3), 1, interpolate_pos_encoding=True)
        torch.testing.assert_close(explainer(self.images, 1).maps, expected)

    def test_detection_tokens_behind_the_patches_are_left_out(self) -> None:
        config = transformers.YolosConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 64],
            num_detection_tokens=10,
        )  # fmt: skip
        model = transformers.YolosForObjectDetection(config).eval()
        explanation = camlib.GradCAM(model, "vit.encoder.layer.0")(torch.rand(1, 3, 64, 64), 1)
        assert explanation.maps.shape == (1, 4, 4)


def test_a_padded_map_is_no_stage() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    assert camlib.find_stages(model.eval(), torch.rand(1, 3, 32, 32)) == ["1", "4"]


@pytest.mark.parametrize("in_place", [lambda view: view.index_add_(2, torch.tensor([1]), torch.rand(1, 3, 1, 4))])
def test_a_change_of_a_view_that_is_not_followed_loses_the_places_of_the_whole(in_place) -> None:
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), Positions([image]) as positions:
        features = image + 1
        assert positions.of(features)
        in_place(features[..., :4])
    assert not positions.of(features)


class TestBranches:
    """Trunks side by side: none is explained without a word, and each can be explained by its name."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frontal, self.lateral, self.head = trunk(), trunk(), nn.Linear(64, 3)

        def forward(self, frontal: Tensor, lateral: Tensor) -> Tensor:
            return self.head(torch.cat([self.frontal(frontal).mean((2, 3)), self.lateral(lateral).mean((2, 3))], 1))

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3, affine=False)
            self.members = nn.ModuleList([torchvision.models.resnet18(num_classes=3) for _ in range(2)])

        def forward(self, images: Tensor) -> Tensor:
            images = self.norm(images)
            return (self.members[0](images) + self.members[1](images)) / 2

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = trunk(), nn.Linear(64, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.head(torch.cat([self.trunk(left).mean((2, 3)), self.trunk(right).mean((2, 3))], 1))

    @staticmethod
    def pair() -> tuple[Tensor, Tensor]:
        return torch.rand(2, 3, 64, 64), torch.rand(2, 3, 32, 48)

    @pytest.mark.parametrize(
        ("build", "layers"),
        [(Two, ("frontal", "lateral")), (Siamese, ("trunk#1", "trunk#2"))],
    )
    def test_two_images(self, build: Any, layers: tuple[str, str]) -> None:
        model, pair = build().eval(), self.pair()
        expected = (
            f"'{layers[0]}' of input 0, '{layers[1]}' of input 1. Explain one of them, such as layer='{layers[1]}'"
        )
        with pytest.raises(camlib.CamlibRuntimeError, match=expected):
            camlib.GradCAM(model)(pair, 1)
        kept: list[Tensor] = []
        for name in dict.fromkeys(layer.split("#")[0] for layer in layers):
            model.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
        gradients = torch.autograd.grad(model(*pair)[:, 1].sum(), kept)
        own = list(kept)
        for layer, image, features, gradient in zip(layers, pair, own, gradients, strict=True):
            maps = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()
            explanation = camlib.GradCAM(model, layer)(pair, 1)
            torch.testing.assert_close(explanation.maps, maps)
            assert explanation.heatmaps().shape == (2, *image.shape[2:])
        with pytest.raises(camlib.CamlibValueError, match="maps of different inputs.*separate calls"):
            camlib.GradCAM(model, list(layers))(pair, 1)

    def test_an_ensemble(self) -> None:
        model, images = self.Ensemble().eval(), torch.rand(1, 3, 64, 64)
        expected = r"or all in one map: layer=\['members.0.layer4', 'members.1.layer4'\]"
        with pytest.raises(camlib.CamlibRuntimeError, match=expected):
            camlib.GradCAM(model)(images, 1)
        both = camlib.GradCAM(model, ["members.0.layer4", "members.1.layer4"])(images, 1)
        assert list(both.layers) == ["members.0.layer4", "members.1.layer4"]

    def test_what_is_one_trunk(self) -> None:
        """A mask, a gate, a skip from the image to the outputs, and images that are joined before a last map."""
        images, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
        assert camlib.GradCAM(Masked().eval())((images, mask), 1).layer == "trunk"
        restored = camlib.GradCAM(Restored().eval())(images, lambda outputs: outputs.mean((1, 2, 3)))
        assert restored.layer == "features"
        assert camlib.GradCAM(Joined().eval())((images, images), 1).layer == "joined"

    def test_a_series_beside_an_image_has_its_own_layer(self) -> None:
        class ImageAndSeries(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk, self.head = trunk(), nn.Linear(40, 3)
                self.series = nn.Sequential(nn.Conv1d(4, 8, 3, 2, 1), nn.ReLU())

            def forward(self, images: Tensor, series: Tensor) -> Tensor:
                return self.head(torch.cat([self.trunk(images).mean((2, 3)), self.series(series).mean(2)], 1))

        model, inputs = ImageAndSeries().eval(), (torch.rand(1, 3, 64, 64), torch.rand(1, 4, 24))
        assert camlib.GradCAM(model)(inputs, 1).layer == "trunk"
        assert camlib.GradCAM(model, "series")(inputs, 1).heatmaps().shape == (1, 24)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(32, 3)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        features = self.trunk(images)
        return self.head((features * nn.functional.interpolate(mask, features.shape[2:])).mean((2, 3)))


class Restored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU()), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.out(self.features(images))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = trunk(), trunk(), nn.Linear(8, 3)
        self.joined = nn.Sequential(nn.Conv2d(64, 8, 3, 1, 1), nn.ReLU())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.joined(torch.cat([self.left(left), self.right(right)], 1)).mean((2, 3)))


class TestTheLastMap:
    """Neither the outputs, nor a map far ahead of the last one."""

    images = torch.rand(1, 3, 64, 64)

    class Experts(nn.Module):
        def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.experts, self.reduce = nn.ModuleList([nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3)]), reduce

        def forward(self, features: Tensor) -> Tensor:
            return self.reduce(torch.stack([expert(features).relu() for expert in self.experts]))

    class MeanOfBlocks(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))

    def layer(self, last: nn.Module) -> str:
        tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        return camlib.find_layer(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), last, *tail).eval(), self.images)

    @pytest.mark.parametrize("reduce", [lambda x: x.sum(0), lambda x: x.mean(0), lambda x: x.amax(0)])
    def test_a_sum_of_branches_is_a_map(self, reduce: Any) -> None:
        assert self.layer(self.Experts(reduce)) == "2"

    def test_a_mean_over_windows_is_pooling(self) -> None:
        assert self.layer(self.MeanOfBlocks()) == "1"

    def test_outputs_are_not_the_layer(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.skip = nn.Conv2d(8, 2, 3, 1, 1), nn.Conv2d(8, 2, 1)

            def forward(self, features: Tensor) -> Tensor:
                return self.conv(features).relu() + self.skip(features)

        model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Residual()).eval()
        for scale in (lambda model, x: model(x), lambda model, x: 3 * model(x).sigmoid()[:, :, 1:]):
            assert camlib.find_layer(model, self.images, forward=scale) == "1"

    def test_a_graph_of_torch_fx_has_the_call_of_its_last_activation(self) -> None:
        model = torchvision.models.resnet18(num_classes=3).eval()
        explanation = camlib.GradCAM(torch.fx.symbolic_trace(model))(self.images, 1)
        assert explanation.layer == "layer4.1.relu#2"
        assert torch.equal(explanation.maps, camlib.GradCAM(model, "layer4")(self.images, 1).maps)

    def test_a_trunk_without_modules_for_its_sums_is_refused(self) -> None:
        class ByHand(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)
                self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1) for _ in range(6)])

            def forward(self, features: Tensor) -> Tensor:
                features = self.stem(features)
                for conv in self.convs:
                    features = (features + conv(features)).relu()
                return self.head(features.mean((2, 3)))

        with pytest.raises(camlib.CamlibRuntimeError, match="returned by no module; the last one before it, 'stem'"):
            camlib.find_layer(ByHand().eval(), self.images)


class TestUnknownOperations:
    """Where an operation is not followed, the image is perturbed."""

    class Unknown(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.change = change

        def forward(self, features: Tensor) -> Tensor:
            return self.change(torch.fft.irfft2(torch.fft.rfft2(features), s=features.shape[2:]))

    def model(self, change: Callable[[Tensor], Tensor]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), self.Unknown(change), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 3),
        ).eval()  # fmt: skip

    @pytest.mark.parametrize("layer", [None, "2"])
    def test_a_map_in_place_is_shown(self, layer: str | None) -> None:
        images = torch.rand(2, 3, 48, 48)
        explanation = camlib.GradCAM(self.model(lambda features: features), layer)(images, 1)
        assert explanation.layer == "2"
        assert explanation.maps.shape == (2, 12, 12)

    @pytest.mark.parametrize(
        "change",
        [
            lambda features: features.mT, lambda features: features.flip(2), lambda features: features.flip(3),
            lambda features: features.flatten(2)[..., torch.randperm(144)].view_as(features),
        ],
    )  # fmt: skip
    def test_a_map_out_of_place_is_not(self, change: Any) -> None:
        with pytest.raises(camlib.CamlibValueError, match="changes most with the image at the place of cell"):
            camlib.GradCAM(self.model(change), "2")(torch.rand(1, 3, 48, 48), 1)


class TestPartsOfTheImages:
    """Maps behind crops, paddings and convolutions without padding are drawn where their cells are."""

    class Around(nn.Module):
        """A trunk on a part of the images, or on the images and more."""

        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.change, self.head = change, nn.Linear(8, 3)
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.trunk(self.change(images)).mean((2, 3)))

    @pytest.mark.parametrize(
        ("change", "origin", "extent"),
        [
            (lambda x: x[:, :, 16:-16, 16:-16], (16, 16), (32, 32)), (lambda x: x[:, :, :32, 8:], (0, 8), (32, 56)),
            (lambda x: nn.functional.pad(x, (16, 16, 16, 16)), (-16, -16), (96, 96)),
            (lambda x: nn.functional.pad(x, (0, 32, 0, 0)), None, (64, 96)), (lambda x: x, None, None),
        ],
    )  # fmt: skip
    def test_the_hottest_place_is_the_spot(self, change: Any, origin: Any, extent: Any) -> None:
        torch.manual_seed(0)
        model = self.Around(change).eval()
        for parameter in (model.trunk[0].weight, model.head.weight):
            parameter.data.abs_()
        model.trunk[0].bias.data.zero_()
        image = torch.zeros(1, 3, 64, 64)
        image[:, :, 20:24, 24:28] = 1
        for method in (camlib.GradCAM, camlib.EigenCAM, camlib.ScoreCAM):
            explanation = method(model, "trunk")(image, 0)
            assert (explanation.origin, explanation.extent) == (origin, extent)
            heatmap = explanation.heatmaps()[0]
            row, column = divmod(int(heatmap.argmax()), 64)
            assert 20 <= row < 24
            assert 24 <= column < 28
            assert not explanation.degenerate.any()

    def test_what_is_outside_is_zero_and_what_is_inside_is_resized(self) -> None:
        model = self.Around(lambda x: x[:, :, 16:-16, 16:-16]).eval()
        explanation = camlib.GradCAM(model, relu=False)(torch.rand(2, 3, 64, 64), 1)
        expected = torch.zeros(2, 64, 64)
        expected[:, 16:-16, 16:-16] = camlib.resize(explanation.maps, (32, 32))
        torch.testing.assert_close(explanation.heatmaps(normalize="none"), expected)
        assert explanation.heatmaps((128, 128)).shape == (2, 128, 128)

    def test_convolutions_without_padding(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(16, 3),
        ).eval()  # fmt: skip
        explanation = camlib.GradCAM(model)(torch.rand(1, 1, 32, 32), 1)
        assert (explanation.origin, explanation.extent) == ((6.0, 6.0), (20.0, 20.0))

    def test_layers_are_fused_where_they_are(self) -> None:
        model = self.Around(lambda x: x[:, :, 16:-16, 16:-16]).eval()
        explanation = camlib.LayerCAM(model, ["trunk.0", "trunk.1"])(torch.rand(1, 3, 64, 64), 1)
        assert explanation.maps.shape == (1, 64, 64)
        assert not explanation.maps[:, :16].any()

    def test_files_and_joined_explanations_keep_it(self, tmp_path) -> None:
        cam = camlib.GradCAM(self.Around(lambda x: x[:, :, 16:-16, 16:-16]).eval())
        one = cam(torch.rand(1, 3, 64, 64), 1)
        one.save(tmp_path / "one.npz")
        loaded = camlib.Explanation.load(tmp_path / "one.npz")
        assert torch.equal(loaded.heatmaps(), one.heatmaps())
        assert camlib.Explanation.cat([one, one]).origin == one.origin

    def test_mirroring_needs_the_same_on_both_sides(self) -> None:
        images = torch.rand(1, 3, 64, 64)
        both = camlib.TestTimeAugmentation(camlib.GradCAM(self.Around(lambda x: x[:, :, 16:-16, 16:-16]).eval()))
        assert both(images, 1).heatmaps().shape == (1, 64, 64)
        left = camlib.TestTimeAugmentation(camlib.GradCAM(self.Around(lambda x: x[:, :, :, :32]).eval()))
        with pytest.raises(camlib.CamlibValueError, match="more on one side"):
            left(images, 1)


class TestRowsAndOrders:
    """What one image shows is not taken for what others show."""

    class Sorted(nn.Module):
        """Tokens in an order that depends on the image."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv2d(3, 16, 16, 16), nn.LayerNorm(16), nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).mT
            order = tokens.mean(-1).argsort(1)
            tokens = tokens.gather(1, order[..., None].expand_as(tokens))
            return self.head(self.norm(tokens).tanh().mean(1))

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = trunk(), nn.Linear(32, 3)

        def forward(self, images: Tensor) -> Tensor:
            order = torch.arange(len(images) - 1, -1, -1)
            return self.head(self.trunk(images[order]).mean((2, 3)))[order]

    def test_an_order_of_each_image_is_shown_alone_and_refused_together(self) -> None:
        torch.manual_seed(0)
        model, images = self.Sorted().eval(), torch.rand(3, 3, 64, 64)
        cam = camlib.HiResCAM(model, "norm", relu=False)
        for image in images.split(1):  # one explainer
            with camlib.capture(model, "norm") as captured:
                outputs = model(image)
            product = (captured.activations * captured.gradients(outputs[:, 1])).sum(-1)
            order = model.patches(image).flatten(2).mT.mean(-1).argsort(1)
            expected = torch.zeros_like(product).scatter(1, order, product).view(1, 4, 4)
            torch.testing.assert_close(cam(image, 1).maps, expected.detach())
        with pytest.raises(camlib.CamlibValueError, match="layer 'norm'"):
            cam(images, 1)

    def test_ablation_cam_of_tokens_in_a_fixed_order(self) -> None:
        class Permuted(nn.Module):
            def __init__(self, order: Tensor) -> None:
                super().__init__()
                self.order = order
                self.patches, self.norm, self.head = nn.Conv2d(3, 8, 16, 16), nn.LayerNorm(8), nn.Linear(8, 3)

            def forward(self, images: Tensor) -> Tensor:
                tokens = self.patches(images).flatten(2).mT[:, self.order]
                return self.head(self.norm(tokens).tanh().mean(1))

        torch.manual_seed(0)
        model, images = Permuted(torch.randperm(16)).eval(), torch.rand(2, 3, 64, 64)
        found = camlib.AblationCAM(model, "norm", relu=False)(images, 1).maps
        model.order = torch.arange(16)
        torch.testing.assert_close(found, camlib.AblationCAM(model, "norm", relu=False)(images, 1).maps)

    @pytest.mark.parametrize("layer", [None, "trunk"])
    def test_rows_in_another_order_are_refused(self, layer: str | None) -> None:
        cam = camlib.GradCAM(self.Shuffled().eval(), layer)
        cam(torch.rand(1, 3, 64, 64), 1)
        with pytest.raises(camlib.CamlibValueError, match="its rows are in another order than the images"):
            cam(torch.rand(2, 3, 64, 64), 1)

    def test_inputs_of_other_sizes_or_names_are_followed_again(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patches, self.norm, self.head = nn.Conv2d(3, 16, 16, 16), nn.LayerNorm(16), nn.Linear(32, 2)

            def forward(self, left: Tensor, right: Tensor) -> Tensor:
                tokens = self.norm(self.patches(right).flatten(2).mT)
                return self.head(torch.cat([self.patches(left).mean((2, 3)), tokens.mean(1)], 1))

        cam, left = camlib.GradCAM(Two().eval(), "norm"), torch.rand(1, 3, 64, 64)
        assert cam((left, torch.rand(1, 3, 32, 96)), 1).maps.shape == (1, 2, 6)
        assert cam((left, torch.rand(1, 3, 96, 32)), 1).maps.shape == (1, 6, 2)
        wide = torch.rand(1, 3, 32, 64)
        assert cam({"left": left, "right": wide}, 1).heatmaps().shape == (1, 32, 64)
        assert cam({"right": wide, "left": left}, 1).heatmaps().shape == (1, 32, 64)

    def test_a_transposing_reshape_is_refused(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )
        with pytest.raises(camlib.CamlibValueError, match="its axes are in another order"):
            camlib.GradCAM(model.eval(), "1", reshape=lambda maps: maps.mT)(torch.rand(1, 3, 64, 64), 1)

    @pytest.mark.parametrize(
        ("change", "layer"),
        [
            (lambda x: (x[:, :, ::2] + x[:, :, 1::2]) / 2, "last"), (lambda x: x[..., ::4, ::4], "last"),
            (lambda x: torch.maximum(x[..., 1:], x[..., :-1]), "last"), (lambda x: x.flip(-1), None),
        ],
    )  # fmt: skip
    def test_a_later_map_is_followed_or_the_call_is_refused(self, change: Any, layer: str | None) -> None:
        class Changed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.head = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), nn.Linear(16, 3)
                self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU())

            def forward(self, images: Tensor) -> Tensor:
                return self.head(self.last(change(self.stem(images))).mean((2, 3)))

        if layer:
            assert camlib.find_layer(Changed().eval(), torch.rand(1, 3, 64, 64)) == layer
        else:
            with pytest.raises(camlib.CamlibRuntimeError, match="the last feature map, 'last'.*cannot be laid"):
                camlib.find_layer(Changed().eval(), torch.rand(1, 3, 64, 64))


class TestBatchSecond:
    """Tokens (T, N, C), as in OpenAI's CLIP."""

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.token = nn.Conv2d(3, 16, 16, 16), nn.Parameter(torch.rand(1, 1, 16))
            block = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True)
            self.blocks, self.head = nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).permute(2, 0, 1)
            tokens = torch.cat([self.token.expand(-1, len(images), -1), tokens])
            return self.head(self.blocks(tokens)[0])

    @pytest.mark.parametrize("layer", [None, "blocks.layers.1.norm1"])
    def test_the_map_of_plain_autograd(self, layer: str | None) -> None:
        torch.manual_seed(0)
        model, images = self.Vision().double().eval(), torch.rand(3, 3, 32, 48, dtype=torch.double)
        kept: list[Tensor] = []
        model.blocks.layers[1].norm1.register_forward_hook(lambda module, args, output: kept.append(output))
        outputs = model(images)
        cam = camlib.GradCAM(model, layer)
        for classes in (1, torch.tensor([[0, 2]] * 3)):
            explanation = cam(images, classes)
            assert explanation.layer == "blocks.layers.1.norm1"
            for k, one in enumerate([1] if isinstance(classes, int) else [0, 2]):
                (gradient,) = torch.autograd.grad(outputs[:, one].sum(), kept[0], retain_graph=True)
                tokens, of_tokens = (t[1:].permute(1, 2, 0).unflatten(2, (2, 3)) for t in (kept[0], gradient))
                expected = (tokens * of_tokens.mean((2, 3), keepdim=True)).sum(1).relu().detach()
                maps = explanation.maps if isinstance(classes, int) else explanation.maps[:, k]
                torch.testing.assert_close(maps, expected)

    def test_methods_that_change_a_layer_refuse_it(self) -> None:
        with pytest.raises(camlib.CamlibRuntimeError, match="images along its second axis.*ScoreCAM cannot read"):
            camlib.ScoreCAM(self.Vision().eval())(torch.rand(2, 3, 32, 48), 1)


class TestFollowedOnce:
    """A pass is followed for the first image of a size, and for the first batch of several."""

    @pytest.fixture
    def followed_passes(self, monkeypatch) -> list[int]:
        made: list[int] = []
        original = Positions.__init__

        def counting(self: Positions, inputs: Any) -> None:
            made.append(1)
            original(self, inputs)

        monkeypatch.setattr(Positions, "__init__", counting)
        return made

    def counts(self, made: list[int], cam: Any, sizes: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
        found = []
        for size in sizes:
            made.clear()
            cam(torch.rand(size, *shape), 1)
            found.append(len(made))
        return found

    def test_convolutions(self, followed_passes) -> None:
        model = torchvision.models.resnet18(num_classes=4).eval()
        cam = camlib.GradCAM(model, "layer4")
        assert self.counts(followed_passes, cam, (1, 1, 3, 3, 1, 2), (3, 64, 64)) == [1, 0, 1, 0, 0, 0]

    def test_attention(self, followed_passes) -> None:
        model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
        assert self.counts(followed_passes, camlib.LeGrad(model), (1, 1, 3, 3, 1), (3, 32, 32)) == [1, 0, 1, 0, 0]

    def test_the_images_along_the_second_axis(self, followed_passes) -> None:
        cam = camlib.GradCAM(TestBatchSecond.Vision().eval(), "blocks.layers.1.norm1")
        assert self.counts(followed_passes, cam, (3, 2, 4, 1), (3, 32, 48)) == [1, 0, 0, 0]

    def test_an_order_that_one_image_alone_has_shown(self, followed_passes) -> None:
        passes: list[int] = []
        model = TestRowsAndOrders.Sorted().eval()
        model.register_forward_pre_hook(lambda module, args: passes.append(1))
        cam = camlib.GradCAM(model, "norm")
        assert self.counts(followed_passes, cam, (1, 1, 1), (3, 64, 64)) == [1, 1, 1]
        assert len(passes) == 3

    def test_methods_together_and_alone(self, followed_passes) -> None:
        model, images = torchvision.models.resnet18(num_classes=4).eval(), torch.rand(2, 3, 64, 64)
        methods = [camlib.GradCAM(model, "layer4"), camlib.LayerCAM(model, "layer4")]
        camlib.compare(model, images, methods)
        followed_passes.clear()
        for method in methods:
            method(images)
        assert not followed_passes

    def test_a_tensor_beside_one_image_does_not_count_as_images(self) -> None:
        class Beside(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk, self.head = trunk(), nn.Linear(32, 3)

            def forward(self, images: Tensor, words: Tensor) -> Tensor:
                order = torch.arange(len(images) - 1, -1, -1)
                return self.head(self.trunk(images[order]).mean((2, 3)))[order] + words.sum()

        cam, words = camlib.GradCAM(Beside().eval(), "trunk"), torch.rand(5, 7)
        cam((torch.rand(1, 3, 64, 64), words), 1)
        with pytest.raises(camlib.CamlibValueError, match="in another order than the images"):
            cam((torch.rand(3, 3, 64, 64), words), 1)


def test_a_depthwise_convolution_of_joined_maps_is_followed() -> None:
    """As behind the skip connection of DeepLabV3+."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, 2, 1)
            self.last = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 6, 1), nn.ReLU())
            self.head = nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            fine = self.fine(images)
            up = nn.functional.interpolate(self.coarse(fine), fine.shape[2:], mode="bilinear", align_corners=True)
            return self.head(self.last(torch.cat([up, fine], 1)).mean((2, 3)))

    assert camlib.find_layer(Joined().eval(), torch.rand(1, 3, 64, 96)) == "last"


def test_pooling_that_enlarges_is_not_a_later_map() -> None:
    """AlexNet on small images: its adaptive pooling makes 6 x 6 cells of fewer."""
    model = torchvision.models.alexnet(num_classes=3).eval()
    assert camlib.find_layer(model, torch.rand(1, 3, 64, 64)) == "features.11"


def test_padded_windows_as_channels_are_followed() -> None:
    """As in T2T-ViT."""

    class Unfolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows, self.mix = nn.Unfold(7, stride=4, padding=2), nn.Linear(3 * 49, 8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.norm(self.mix(self.windows(images).mT)).tanh().mean(1))

    torch.manual_seed(0)
    model, images = Unfolded().eval(), torch.rand(2, 3, 32, 48)
    with camlib.capture(model, "norm") as captured:
        outputs = model(images)
    features, gradient = (
        tokens.mT.unflatten(2, (8, 12)) for tokens in (captured.activations, captured.gradients(outputs[:, 1]))
    )
    expected = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    torch.testing.assert_close(camlib.GradCAM(model, "norm")(images, 1).maps, expected)
    assert camlib.GradCAM(model)(images, 1).layer == "norm"
