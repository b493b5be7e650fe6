"""Finding layers in networks of the user's own, and saying what a model has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.inputs import Inputs
from camlib.layers.layouts import ChannelsFirst, ChannelsLast, Tokens, channel_axis, grid_error, infer_layout
from tests.networks import Network, small_cnn


def found(model: nn.Module, *shape: int) -> str:
    return camlib.find_layer(model, torch.rand(*(shape or (2, 3, 16, 16))))


def test_last_activation_ahead_of_the_pooling() -> None:
    assert found(small_cnn()) == "3"


def test_functional_activation_behind_a_module_leaves_the_module() -> None:
    assert found(Network()) == "norm"


def test_the_outermost_module_that_returns_the_map_is_named() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = nn.Sequential(Backbone(), nn.Dropout2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert found(model) == "0"


def test_pooling_between_the_last_map_and_a_flattening_head() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 2)
    )
    assert found(model) == "1"


def test_convolutional_classifier_is_not_a_feature_map() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 7, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    assert found(model) == "1"


def test_auxiliary_head_does_not_distract() -> None:
    class Auxiliary(Network):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            outputs = super().forward(x)
            self.seen = self.auxiliary(self.features(x)).mean()
            return outputs

    model = Auxiliary()
    model.features = nn.Sequential(nn.Conv2d(3, 6, 3))
    assert camlib.find_layer(model, torch.rand(1, 3, 16, 16)) == "norm"


def test_branches_of_a_residual_block_are_not_the_whole_map() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.skip = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.skip(x) + self.main(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert found(model) == "2"


def test_dead_and_zero_initialised_networks_are_understood() -> None:
    model = small_cnn()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert found(model) == "3"
    nn.init.ones_(model[2].bias)  # the last ReLU is open; the head is still zero
    assert found(model) == "3"


def test_map_of_one_cell_is_not_a_map() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    assert found(model) == "1"


class TinyViT(nn.Module):
    """A pre-norm transformer with a class token and registers; all patches meet the score in attention alone."""

    def __init__(self, prefix: int = 1, pooled: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.prefix = nn.Parameter(torch.zeros(1, prefix, 8))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(8), "qkv": nn.Linear(8, 24), "norm2": nn.LayerNorm(8),
                    "mlp": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
                }
            )
            for _ in range(3)
        )  # fmt: skip
        self.norm, self.head, self.pooled = nn.LayerNorm(8), nn.Linear(8, 3), pooled
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).chunk(3, -1)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + block["mlp"](block["norm2"](x))
        x = self.norm(x)
        return self.head(x[:, self.prefix.shape[1] :].mean(1) if self.pooled else x[:, 0])


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_class_token_is_read_through_the_last_attention(prefix: int) -> None:
    model = TinyViT(prefix)
    assert found(model, 1, 3, 16, 24) == "blocks.2.norm1"
    explanation = camlib.GradCAM(model)(torch.rand(2, 3, 16, 24))
    assert explanation.maps.shape == (2, 4, 6)


def test_pooled_tokens_are_read_from_the_final_norm() -> None:
    assert found(TinyViT(1, pooled=True), 1, 3, 16, 24) == "norm"


def test_network_without_feature_maps_is_an_error_that_shows_what_was_seen() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match=r"no layer returns a feature map.*1 \(1, 4\).*Give layer="):
        found(model)


class Named(Network):
    """A network whose outputs have a name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": torch.zeros(()), self.name: super().forward(x)}


def test_outputs_of_unknown_names_need_forward() -> None:
    with pytest.raises(TypeError, match="returns a dict.*pass forward="):
        found(Named("mine"))
    assert camlib.find_layer(Named("mine"), torch.rand(1, 3, 8, 8), forward=lambda m, x: m(x)["mine"]) == "norm"


@pytest.mark.parametrize("name", ["logits", "out", "image_embeds"])
def test_outputs_of_known_names_are_understood(name: str) -> None:
    assert found(Named(name)) == "norm"


def test_listing_shows_names_types_and_shapes_in_order() -> None:
    listed = camlib.list_layers(small_cnn(), torch.rand(2, 3, 8, 8))
    assert [layer.name for layer in listed] == ["0", "1", "2", "3", "4", "5", "6"]
    assert listed[0] == ("0", "Conv2d", (2, 4, 8, 8))
    assert listed[-1] == ("6", "Linear", (2, 3))


class TestNames:
    """Layers given by the user."""

    def test_module_and_name_are_the_same(self) -> None:
        model, images = small_cnn(), torch.rand(1, 3, 8, 8)
        by_module = camlib.GradCAM(model, model[2])(images)
        assert by_module.layer == "2"
        assert torch.equal(by_module.maps, camlib.GradCAM(model, "2")(images).maps)

    def test_unknown_name_suggests_close_ones(self) -> None:
        with pytest.raises(ValueError, match=r"has no layer 'feature'; did you mean 'features'"):
            camlib.GradCAM(Network(), "feature")
        with pytest.raises(ValueError, match="it has features, norm, drop, head"):
            camlib.GradCAM(Network(), "zzz")

    @pytest.mark.parametrize(
        ("layer", "error", "message"),
        [
            (nn.ReLU(), ValueError, "not part of the Network"),
            ("", ValueError, "has no layer ''"),
            (-1, TypeError, "must be a name or a module, got int"),
            ([], ValueError, "empty list"),
            (["norm", "norm"], ValueError, "'norm' is given twice"),
            (["norm", 3], TypeError, "got int"),
        ],
    )
    def test_values_that_are_not_layers_are_refused(self, layer: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            camlib.GradCAM(Network(), layer)

    def test_model_must_be_a_module(self) -> None:
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got function"):
            camlib.GradCAM(lambda x: x)

    def test_scripted_models_are_refused(self) -> None:
        with pytest.raises(TypeError, match="ScriptModule, which takes no hooks"):
            camlib.GradCAM(torch.jit.ScriptModule())

    def test_lazy_models_must_run_first(self) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        with pytest.raises(RuntimeError, match="lazy parameters.*run it once"):
            camlib.GradCAM(model)(torch.rand(1, 3, 8, 8))

    def test_product_of_signed_maps_is_refused(self) -> None:
        with pytest.raises(ValueError, match="two negative values into a positive"):
            camlib.GradCAM(Network(), fuse="product", relu=False)

    @pytest.mark.parametrize("spoil", [torch.Tensor.detach, lambda outputs: outputs.argmax(1)])
    def test_outputs_without_gradient_are_an_error(self, spoil: Any) -> None:
        with pytest.raises(RuntimeError, match="detached, not differentiable"):
            camlib.find_layer(Network(), torch.rand(1, 3, 8, 8), forward=lambda m, x: spoil(m(x)))

    def test_fusion_must_be_known(self) -> None:
        with pytest.raises(ValueError, match="fuse must be one of mean, max, product, got 'sum'"):
            camlib.GradCAM(Network(), fuse="sum")


class TestLayouts:
    """Tokens and channels-last maps become grids again."""

    @pytest.mark.parametrize(
        ("shape", "size", "layout"),
        [
            ((2, 512, 7, 7), (224, 224), ChannelsFirst((7, 7))),
            ((2, 512, 7, 10), (224, 320), ChannelsFirst((7, 10))),
            ((2, 7, 7, 768), (224, 224), ChannelsLast((7, 7))),
            ((2, 3, 5, 96), (96, 160), ChannelsLast((3, 5))),
            ((2, 197, 768), (224, 224), Tokens((14, 14), 1)),
            ((2, 196, 768), (224, 224), Tokens((14, 14), 0)),
            ((2, 198, 768), (224, 224), Tokens((14, 14), 2)),
            ((2, 261, 768), (224, 224), Tokens((16, 16), 5)),
            ((2, 25, 8), (16, 24), Tokens((4, 6), 1)),
            ((2, 2048, 8, 8), (299, 299), ChannelsFirst((8, 8))),
            ((2, 29, 8), (56, 84), Tokens((4, 6), 5)),
            ((2, 145, 8), (197, 197), None),  # 12 x 12 patches of 16 pixels, with a rest of 5
            ((2, 206, 8), (224, 224), None),  # 14 x 14 patches, with 10 tokens before them
            ((2, 64), (224, 224), None),
            ((2, 197, 768), None, None),
            ((2, 512, 7, 7), None, ChannelsFirst((7, 7))),
            ((2, 512, 2, 7, 7), None, ChannelsFirst((2, 7, 7))),
            ((2, 64, 125), (1000,), ChannelsFirst((125,))),
            ((2, 125, 2048), (1000,), ChannelsLast((125,))),
            ((2, 512, 2, 7, 7), (16, 112, 112), ChannelsFirst((2, 7, 7))),
            ((2, 512, 16, 7, 7), (16, 112, 112), ChannelsFirst((16, 7, 7))),
            ((2, 8, 7, 7, 768), (16, 224, 224), ChannelsLast((8, 7, 7))),
            ((2, 393, 768), (16, 224, 224), Tokens((8, 7, 7), 1)),
            ((2, 1569, 768), (16, 224, 224), Tokens((8, 14, 14), 1)),
            ((2, 1569, 768), (8, 224, 224), Tokens((8, 14, 14), 1)),
            ((2, 216, 768), (96, 96, 96), Tokens((6, 6, 6), 0)),
            ((2, 4, 512), (16, 224, 224), Tokens((4, 1, 1), 0)),
            ((2, 64), (1000,), None),
        ],
    )
    def test_layout_is_inferred_from_shape_and_image(self, shape, size, layout) -> None:
        assert infer_layout(shape, size) == layout

    @pytest.mark.parametrize(
        ("shape", "size", "channels", "layout"),
        [
            ((2, 50, 64), (800,), "last", ChannelsLast((50,))),
            ((2, 51, 64), (800,), "last", Tokens((50,), 1)),
            ((2, 49, 64), (800,), "last", ChannelsLast((49,))),
            ((2, 64, 50), (800,), "first", ChannelsFirst((50,))),
            ((2, 8, 8, 8), (32, 32), "last", ChannelsLast((8, 8))),
            ((2, 8, 8, 8), (32, 32), "first", ChannelsFirst((8, 8))),
            ((2, 4, 8, 8, 8), (8, 32, 32), "last", ChannelsLast((4, 8, 8))),
        ],
    )
    def test_the_layers_own_axis_decides_where_both_are_possible(self, shape, size, channels, layout) -> None:
        assert infer_layout(shape, size, channels) == layout

    @pytest.mark.parametrize(
        ("layer", "axis"),
        [
            (nn.Conv1d(2, 2, 1), "first"), (nn.BatchNorm3d(2), "first"), (nn.LayerNorm(2), "last"),
            (nn.Linear(2, 2), "last"), (nn.Sequential(nn.Conv2d(2, 2, 1), nn.LayerNorm(2)), None),
            (torchvision.models.convnext.LayerNorm2d(2), "first"),
        ],
    )  # fmt: skip
    def test_axis_of_channels_is_inferred_from_the_layers_modules(self, layer: nn.Module, axis: str | None) -> None:
        assert channel_axis(nn.Sequential(layer), layer) == axis

    @pytest.mark.parametrize(
        ("inputs", "size"),
        [
            (torch.rand(2, 3, 5, 7), (5, 7)),
            (torch.zeros(2, 3, 5, 7, dtype=torch.uint8), (5, 7)),
            ({"signal": torch.rand(2, 3, 9), "picture": torch.rand(2, 3, 5, 7)}, (5, 7)),
            (torch.rand(2, 3, 8, 5, 7), (8, 5, 7)),
            (torch.rand(2, 1, 8, 5, 7), (8, 5, 7)),
            (torch.rand(2, 8, 3, 5, 7), (8, 5, 7)),
            (torch.rand(2, 3, 3, 5, 7), (3, 5, 7)),
            (torch.rand(2, 3, 9), (9,)),
            ((torch.rand(2, 3, 9), torch.rand(2, 4)), (9,)),
            ([torch.rand(3, 5, 7), torch.rand(1, 5, 7)], (5, 7)),
            (torch.zeros(2, 3, 9, dtype=torch.long), None),
            (torch.rand(2, 3), None),
            ([], None),
        ],
    )
    def test_size_of_the_inputs(self, inputs, size) -> None:
        assert Inputs(inputs).size == size

    def test_pictures_of_different_sizes_are_explained_in_separate_calls(self) -> None:
        with pytest.raises(ValueError, match=r"different sizes, \[\(5, 7\), \(5, 8\)\].*in separate calls"):
            _ = Inputs([torch.rand(3, 5, 8), torch.rand(3, 5, 7)]).size

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((9,), r"inputs of 9; .*to \(N, C, l\)"),
            ((4, 4), r"inputs of 4 x 4; .*to \(N, C, h, w\)"),
            ((2, 4, 4), r"inputs of 2 x 4 x 4; .*to \(N, C, t, h, w\)"),
        ],
    )
    def test_shapes_that_are_no_grid_name_what_reshape_must_return(self, size, expected) -> None:
        assert infer_layout((2, 3), size) is None
        with pytest.raises(
            ValueError, match=rf"layer 'head' returns shape \(2, 3\), which is not a grid over {expected}"
        ):
            raise grid_error((2, 3), size, "head")

    def test_anisotropic_poolings_are_no_channels_last(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
        ).eval()  # fmt: skip
        images = torch.rand(2, 1, 64, 128)
        for layer in (None, 3, "2"):
            explanation = camlib.GradCAM(model, model[layer] if isinstance(layer, int) else layer)(images)
            assert explanation.maps.shape == (2, 64, 64), layer

    def test_as_many_channels_as_columns_are_distinguished_by_the_layers_modules(self) -> None:
        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.block = (
                    nn.Conv2d(3, 8, 4, 4),
                    nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()),
                )
                self.head = nn.Linear(8, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.block(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))

        model, images = Last().eval(), torch.rand(1, 3, 32, 32)
        for name in ("block", "block.0", "block.1", "block.2"):
            with camlib.capture(model, name) as captured:
                outputs = model(images)
            weights = captured.gradients(outputs[:, 1]).mean((1, 2))
            expected = torch.einsum("nc,nijc->nij", weights, captured.activations).relu()
            torch.testing.assert_close(camlib.GradCAM(model, name)(images, 1).maps, expected)
        stem = camlib.GradCAM(model, "stem", relu=False)(images, 1)
        with camlib.capture(model, "stem") as captured:
            outputs = model(images)
        weights = captured.gradients(outputs[:, 1]).mean((2, 3))
        torch.testing.assert_close(stem.maps, torch.einsum("nc,ncij->nij", weights, captured.activations))

    def test_layer_behind_the_last_attention_is_an_error_with_advice(self) -> None:
        model = TinyViT(1)
        nn.init.normal_(model.head.weight)
        for layer in ("norm", "blocks.2.norm2"):
            with pytest.raises(RuntimeError, match=f"after layer '{layer}' the score reads only the class token"):
                camlib.GradCAM(model, layer)(torch.rand(2, 3, 16, 24), 0)

    @given(
        patch=st.sampled_from([4, 8, 14, 16, 32]), rows=st.integers(2, 20), columns=st.integers(2, 20),
        prefix=st.sampled_from([0, 1, 2, 5]),
    )  # fmt: skip
    def test_tokens_go_back_to_their_grid(self, patch: int, rows: int, columns: int, prefix: int) -> None:
        grid = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
        tokens = torch.cat([torch.full((prefix,), -1.0), grid.flatten()])[None, :, None]
        size = (rows * patch, columns * patch)
        layout = infer_layout(tuple(tokens.shape), size)
        assert isinstance(layout, Tokens)
        if layout.prefix < prefix:  # another exact tiling by square patches explains the number with fewer of prefix
            assert size[0] * layout.grid[1] == size[1] * layout.grid[0]
            assert layout.prefix + layout.grid[0] * layout.grid[1] == tokens.shape[1]
        else:
            assert torch.equal(layout.to_grid(tokens)[0, 0], grid)

    def test_reshape_overrides_what_is_inferred(self) -> None:
        model, images = TinyViT(1), torch.rand(2, 3, 16, 24)
        inferred = camlib.GradCAM(model, "blocks.1.norm1")(images, 0)
        own = camlib.GradCAM(model, "blocks.1.norm1", reshape=lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (4, 6)))(
            images, 0
        )
        assert torch.equal(inferred.maps, own.maps)

    def test_reshape_must_return_a_grid_for_every_image(self) -> None:
        with pytest.raises(TypeError, match=r"reshape turned \(2, 25, 8\).*must return a tensor \(2, C, h, w\)"):
            camlib.GradCAM(TinyViT(1), "blocks.1.norm1", reshape=lambda t: t)(torch.rand(2, 3, 16, 24), 0)

    def test_features_without_a_grid_are_an_error_with_advice(self) -> None:
        with pytest.raises(ValueError, match=r"layer 'head' returns shape \(2, 3\).*reshape="):
            camlib.GradCAM(TinyViT(1), "head")(torch.rand(2, 3, 16, 24), 0)


class Summed(nn.Module):
    """Sums in the network's own forward, n times, and as many classes as channels."""

    def __init__(self, blocks: int, block: Callable[[], nn.Module], *, chained: bool = True) -> None:
        super().__init__()
        self.stem, self.chained = nn.Conv2d(3, 4, 3, padding=1), chained
        self.blocks, self.last = nn.ModuleList(block() for _ in range(blocks)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.stem(x)
        for block in self.blocks:
            x = x + block(x if self.chained else first)
        return self.last(x).mean((2, 3))


def calls_in_the_graph(run: Callable[[], Any]) -> int:
    """How many functions of the module that reads the graph a call makes."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_filename.endswith("discovery/graph.py")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("block", [nn.ReLU, lambda: nn.Conv2d(4, 4, 1)])
@pytest.mark.parametrize("chained", [True, False])
def test_the_graph_is_read_in_linear_time(block: Callable[[], nn.Module], chained: bool) -> None:
    images, found, calls = torch.rand(1, 3, 8, 8), [], []
    for blocks in (40, 640):  # 16 times as many
        model = Summed(blocks, block, chained=chained)
        calls.append(calls_in_the_graph(lambda model=model: found.append(camlib.find_layer(model, images))))
    assert calls[1] < 17 * calls[0]
    assert found[1] == found[0].replace("39", "639")
