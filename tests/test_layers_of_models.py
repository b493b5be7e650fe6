"""The layer that is found in models of every kind, and its grid: by reading the models' code."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models import detection, segmentation, video
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

import camlib
from camlib.inputs import Inputs
from camlib.layers.layouts import channel_axis, layout_of
from tests.networks import signal_cnn, volume_cnn

pytestmark = pytest.mark.slow

OUT_OF_PLACE = ("aux", "patch", "pool", "fpn", "rpn", "roi", "extra", "embed")
"""No layer that is found has these in its name: heads on the side, stems, poolings, pyramids."""


def grid_at(model: nn.Module, layer: str, inputs: Any) -> tuple[int, ...]:
    """The grid of a layer's output, as the methods will read it."""
    (shape,) = (listed.shape for listed in camlib.list_layers(model, inputs) if listed.name == layer)
    size = None if isinstance(inputs, list) else Inputs(inputs).size
    layout = layout_of(model, model.get_submodule(layer), shape, size)
    assert layout is not None
    return layout.grid


def assert_found(model: nn.Module, inputs: Any, layer: str, grid: tuple[int, ...]) -> None:
    model.eval()
    assert camlib.find_layer(model, inputs) == layer
    assert grid_at(model, layer, inputs) == grid
    assert not isinstance(model.get_submodule(layer), (nn.Linear, nn.Flatten, nn.Dropout))
    assert not any(part in layer for part in OUT_OF_PLACE)
    gc.collect()


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size)


FEW_REGIONS = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
FEW_ANCHORS = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 10}
SMALL = {"min_size": 128, "max_size": 160}

DETECTORS: list[tuple[str, dict[str, Any], str, tuple[int, int]]] = [
    ("fasterrcnn_resnet50_fpn", FEW_REGIONS | SMALL, "backbone.body.layer4", (4, 5)),
    ("fasterrcnn_resnet50_fpn_v2", FEW_REGIONS | SMALL, "backbone.body.layer4", (4, 5)),
    ("fasterrcnn_mobilenet_v3_large_fpn", FEW_REGIONS | SMALL, "backbone.body.16", (4, 5)),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", FEW_REGIONS | SMALL, "backbone.body.16", (4, 5)),
    ("maskrcnn_resnet50_fpn", FEW_REGIONS | SMALL, "backbone.body.layer4", (4, 5)),
    ("keypointrcnn_resnet50_fpn", FEW_REGIONS | SMALL, "backbone.body.layer4", (4, 5)),
    ("retinanet_resnet50_fpn", FEW_ANCHORS | SMALL, "backbone.body.layer4", (4, 5)),
    ("retinanet_resnet50_fpn_v2", FEW_ANCHORS | SMALL, "backbone.body.layer4", (4, 5)),
    ("fcos_resnet50_fpn", FEW_ANCHORS | SMALL, "backbone.body.layer4", (4, 5)),
    ("ssd300_vgg16", FEW_ANCHORS, "backbone.features", (38, 38)),
    ("ssdlite320_mobilenet_v3_large", FEW_ANCHORS, "backbone.features.0", (20, 20)),
]


def detector(name: str, **options: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)


def test_table_covers_every_detector() -> None:
    covered = {name for name, *_ in DETECTORS} | {"maskrcnn_resnet50_fpn_v2"}  # the same but for its layers' details
    assert covered == set(torchvision.models.list_models(module=detection))


@pytest.mark.parametrize(("name", "options", "layer", "grid"), DETECTORS, ids=[name for name, *_ in DETECTORS])
def test_detectors_are_explained_at_the_last_map_that_all_levels_descend_from(name, options, layer, grid) -> None:
    assert_found(detector(name, **options), [torch.rand(3, 128, 160)] * 2, layer, grid)


def test_detector_without_detections_is_an_error_that_asks_for_a_layer() -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="nothing was detected in the first image.*give layer="):
        camlib.find_layer(detector("ssdlite320_mobilenet_v3_large", score_thresh=0.99).eval(), [torch.rand(3, 64, 64)])


SEGMENTERS = {
    "deeplabv3_mobilenet_v3_large": ("classifier.3", (4, 6)),
    "deeplabv3_resnet50": ("classifier.3", (8, 12)),
    "deeplabv3_resnet101": ("classifier.3", (8, 12)),
    "fcn_resnet50": ("classifier.2", (8, 12)),
    "fcn_resnet101": ("classifier.2", (8, 12)),
    "lraspp_mobilenet_v3_large": ("backbone.16", (4, 6)),
}


def test_table_covers_every_segmentation_network() -> None:
    assert set(SEGMENTERS) == set(torchvision.models.list_models(module=segmentation))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_is_explained_ahead_of_the_main_heads_class_scores(name: str) -> None:
    auxiliary = {} if "lraspp" in name else {"aux_loss": True}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=7, **auxiliary)
    assert_found(model, pictures(64, 96), *SEGMENTERS[name])


def small_mvit(weights: None) -> nn.Module:
    """The second version of torchvision's MViT with few blocks: its builders take 16 x 224 x 224 alone."""
    block = partial(video.mvit.MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    return video.mvit.MViT(
        spatial_size=(64, 64),
        temporal_size=8,
        block_setting=[
            block(num_heads=1, input_channels=16, output_channels=16, stride_q=[1, 1, 1]),
            block(num_heads=2, input_channels=16, output_channels=32, stride_q=[1, 2, 2]),
            block(num_heads=2, input_channels=32, output_channels=32, stride_q=[1, 1, 1]),
        ],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
    )


VIDEO: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], str, tuple[int, int, int]]] = {
    "r3d_18": (video.r3d_18, (8, 64, 64), "layer4", (1, 4, 4)),
    "mc3_18": (video.mc3_18, (4, 64, 64), "layer4", (4, 4, 4)),
    "r2plus1d_18": (video.r2plus1d_18, (8, 64, 64), "layer4", (1, 4, 4)),
    "s3d": (video.s3d, (16, 224, 224), "features", (2, 7, 7)),
    "mvit": (small_mvit, (8, 64, 64), "blocks.2.norm1", (4, 8, 8)),
    "swin3d_t": (video.swin3d_t, (4, 64, 96), "norm", (2, 2, 3)),
}


@pytest.mark.parametrize("name", VIDEO)
def test_video_keeps_its_time(name: str) -> None:
    build, size, layer, grid = VIDEO[name]
    assert_found(build(weights=None), pictures(*size)[:1], layer, grid)


TIMM: dict[str, tuple[dict[str, Any], int, str, tuple[int, int]]] = {
    "resnet18": ({}, 64, "layer4", (2, 2)),
    "convnext_atto": ({}, 64, "stages", (2, 2)),
    "efficientnet_b0": ({}, 64, "bn2", (2, 2)),
    "mobilenetv4_conv_small": ({}, 64, "blocks", (2, 2)),
    "regnety_002": ({}, 64, "s4", (2, 2)),
    "fastvit_t8": ({}, 64, "final_conv", (2, 2)),
    "hrnet_w18_small": ({}, 64, "final_layer", (2, 2)),
    "poolformer_s12": ({}, 64, "stages", (2, 2)),
    "resnet50_clip": ({"img_size": 64}, 64, "stages", (2, 2)),
    "vit_tiny_patch16_224": ({"img_size": 64}, 64, "blocks.11.norm1", (4, 4)),
    "vit_tiny_patch16_224 pooled": ({"img_size": 64, "global_pool": "avg"}, 64, "blocks", (4, 4)),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 224}, 224, "blocks.11.norm1", (16, 16)),
    "vit_base_patch16_siglip_224": ({"img_size": 64, "depth": 2}, 64, "norm", (4, 4)),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64}, 64, "blocks.11.norm1", (4, 4)),
    "eva02_tiny_patch14_224": ({"img_size": 56}, 56, "blocks.11", (4, 4)),
    "eva02_tiny_patch14_224 token": ({"img_size": 56, "global_pool": "token"}, 56, "blocks.11.norm1", (4, 4)),
    "cait_xxs24_224": ({"img_size": 64}, 64, "blocks_token_only.1.norm1", (4, 4)),
    "swin_tiny_patch4_window7_224": ({"img_size": 112}, 112, "norm", (4, 4)),
    "maxvit_nano_rw_256": ({"img_size": 64}, 64, "norm", (2, 2)),
    "coatnet_nano_rw_224": ({"img_size": 64}, 64, "norm", (2, 2)),
    "mixer_s16_224": ({"img_size": 64}, 64, "norm", (4, 4)),
    "resmlp_12_224": ({"img_size": 64}, 64, "norm", (4, 4)),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    options, side, layer, grid = TIMM[name]
    model = timm.create_model(name.split()[0], pretrained=False, num_classes=11, **options)
    assert_found(model, pictures(side, side), layer, grid)


TRANSFORMER = {
    "image_size": 64, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64, "num_labels": 5,
}  # fmt: skip
DINO = {key: value for key, value in TRANSFORMER.items() if key != "intermediate_size"}
PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_labels": 5}
SWIN = {
    "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4,
    "num_labels": 5,
}  # fmt: skip
DETR = {
    "backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 32, "num_queries": 5,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_labels": 5,
}  # fmt: skip
HUGGING_FACE: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "ResNetForImageClassification": (PYRAMID | {"embedding_size": 8}, "resnet.encoder.stages.3", (2, 2)),
    "ConvNextForImageClassification": (PYRAMID, "convnext.encoder.stages.3", (2, 2)),
    "PoolFormerForImageClassification": (PYRAMID, "norm", (2, 2)),
    "SegformerForSemanticSegmentation": (
        PYRAMID | {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}, "decode_head.activation", (16, 16),
    ),
    "SwinForImageClassification": (SWIN, "swin.layernorm", (4, 4)),
    "ViTForImageClassification": (TRANSFORMER, "vit.layers.2.layernorm_before", (8, 8)),
    "DeiTForImageClassificationWithTeacher": (TRANSFORMER, "deit.layers.2.layernorm_before", (8, 8)),
    "Dinov2ForImageClassification": (DINO, "dinov2.encoder.layer.2.norm1", (8, 8)),
    "Dinov2WithRegistersForImageClassification": (DINO, "dinov2_with_registers.encoder.layer.2.norm1", (8, 8)),
    "MobileViTForImageClassification": ({"image_size": 64, "num_labels": 5}, "mobilevit.conv_1x1_exp", (2, 2)),
    "VideoMAEForVideoClassification": (
        TRANSFORMER | {"num_frames": 4, "tubelet_size": 2}, "videomae.encoder.layer.2", (2, 8, 8),
    ),
    "DetrForObjectDetection": (DETR, "model.encoder.layers.0", (2, 2)),
}  # fmt: skip


def hugging_face(name: str) -> nn.Module:
    options = dict(HUGGING_FACE[name][0])
    if name.startswith("Detr"):
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
        options["backbone_config"] = backbone
    model = getattr(transformers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(model.config_class(**options))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str) -> None:
    inputs = torch.rand(1, 4, 3, 64, 64) if "Video" in name else pictures(64, 64)
    assert_found(hugging_face(name), inputs, *HUGGING_FACE[name][1:])


def volo() -> nn.Module:
    """A small one of timm's, whose score is that of the class token plus half of the largest of the patches."""
    sizes = {"img_size": 64, "embed_dims": (24, 32, 32, 32), "num_heads": (2, 2, 2, 2), "stem_hidden_dim": 8}
    return timm.models.volo.VOLO((1, 1, 1, 1), num_classes=5, **sizes)


def dinov2() -> nn.Module:
    return hugging_face("Dinov2ForImageClassification")


class MeanOfAllTokens(nn.Module):
    """Reads the class token in the same mean as the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk.head(self.trunk.forward_features(x).mean(1))


@pytest.mark.parametrize(
    ("build", "layer", "grid"),
    [
        (volo, "post_network.1.norm1", (4, 4)),
        (dinov2, "dinov2.encoder.layer.2.norm1", (8, 8)),
        (MeanOfAllTokens, "trunk.norm", (4, 4)),
    ],
)
def test_a_class_token_that_is_read_apart_from_the_patches_shows(build, layer, grid) -> None:
    assert_found(build(), pictures(64, 64), layer, grid)


def test_both_halves_of_dinov2s_score_show() -> None:
    for silent in (slice(32), slice(32, None)):  # of the class token, and of the mean of the patches
        model, images = dinov2().eval(), pictures(64, 64)
        nn.init.normal_(model.classifier.weight).data[:, silent] = 0
        assert camlib.GradCAM(model, relu=False)(images, 1).maps.flatten(1).any(1).all()


def test_the_class_tokens_part_of_volos_score_shows() -> None:
    model, images = volo().eval(), pictures(64, 64)
    nn.init.zeros_(model.aux_head.weight)
    found = camlib.GradCAM(model, relu=False)(images, 1)
    assert found.maps.ne(0).flatten(1).all()


@pytest.mark.parametrize(
    ("model", "layer", "size", "changed", "cell"),
    [
        (partial(video.swin3d_t, weights=None), "patch_embed", (4, 32, 48), (2, 8, 20), (1, 2, 5)),
        (partial(small_mvit, weights=None), "blocks.0.norm1", (8, 64, 64), (4, 8, 20), (2, 2, 5)),
    ],
)
def test_cells_of_a_video_are_where_they_are_in_it(model, layer, size, changed, cell) -> None:
    network, clip = model().eval(), torch.rand(1, 3, *size)
    frame, row, column = changed
    other = clip.clone()
    other[:, :, frame : frame + 2, row : row + 4, column : column + 4] += 1
    grids = []
    for inputs in (clip, other):
        with torch.no_grad(), camlib.capture(network, layer) as captured:
            network(inputs)
        features = captured.activations
        layout = layout_of(network, network.get_submodule(layer), tuple(features.shape), Inputs(inputs).size)
        grids.append(layout.to_grid(features))
    difference = (grids[1] - grids[0]).abs().sum(1)[0]
    touched = difference.nonzero()
    assert difference[cell] > 0
    assert (touched - torch.tensor(cell)).abs().amax() <= 1, "kernels reach no further than the cells next to it"


class SignalTransformer(nn.Module):
    """A class token and patches of a signal (N, 2, L)."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.patch = nn.Conv1d(2, 8, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2))
        )
        self.head, self.pooled = nn.Linear(8, 3), pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(1, 2)
        if self.pooled:
            return self.head(self.blocks(x).mean(1))
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))[:, 0])


@pytest.mark.parametrize(
    ("model", "size", "layer", "grid"),
    [
        (signal_cnn, (2, 40), "3", (40,)),
        (volume_cnn, (1, 6, 8, 10), "3", (6, 8, 10)),
        (partial(SignalTransformer, pooled=True), (2, 160), "blocks", (10,)),
        pytest.param(
            partial(SignalTransformer, pooled=False),
            (2, 160),
            "blocks.1.norm1",
            (10,),
            marks=pytest.mark.skipif(torch.__version__ < "2.5", reason="2.4 fuses the block where nothing is recorded"),
        ),
    ],
)
def test_signals_and_volumes(model, size, layer, grid) -> None:
    assert_found(model(), torch.rand(2, *size), layer, grid)


class UNet(nn.Module):
    """Two scales down and up again with skips, and class scores for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = self.block(3, 4), self.block(4, 8)
        self.middle, self.joined = self.block(8, 8), self.block(12, 6)
        self.scores = nn.Conv2d(6, 5, 1)

    @staticmethod
    def block(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.middle(self.coarse(nn.functional.max_pool2d(fine, 2)))
        up = nn.functional.interpolate(coarse, scale_factor=2.0)
        return self.scores(self.joined(torch.cat([fine, up], 1)))


class Pyramid(nn.Module):
    """Scores of three levels side by side: the finer ones see the coarser, one is coarser than the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = UNet.block(3, 4), UNet.block(4, 8)
        self.lateral_fine, self.lateral_coarse = nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1)
        self.coarsest = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.smooth, self.score = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(nn.functional.max_pool2d(fine, 2))
        top = self.lateral_coarse(coarse)
        levels = [self.smooth(self.lateral_fine(fine) + nn.functional.interpolate(top, scale_factor=2.0)), top]
        levels.append(self.coarsest(top))
        return torch.cat([self.score(level).flatten(2) for level in levels], 2).amax(2)


class FunctionalResidual(nn.Module):
    """A residual sum that no module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = UNet.block(3, 4), UNet.block(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


class SummedScores(nn.Module):
    """Scores of a coarse map, plus those of a fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = UNet.block(3, 4), UNet.block(4, 8)
        self.of_fine, self.of_coarse = nn.Conv2d(4, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        coarse = self.of_coarse(self.coarse(nn.functional.max_pool2d(fine, 2)))
        return {"out": self.of_fine(fine) + nn.functional.interpolate(coarse, scale_factor=2.0)}


@pytest.mark.parametrize(
    ("model", "layer", "grid"),
    [
        (UNet, "joined", (16, 24)),
        (Pyramid, "coarse", (8, 12)),
        (FunctionalResidual, "stem", (16, 24)),
        (SummedScores, "coarse", (8, 12)),
    ],
)
def test_maps_that_join_later(model, layer, grid) -> None:
    assert_found(model(), pictures(16, 24), layer, grid)


def test_optical_flow_is_explained_at_the_last_of_its_iterations() -> None:
    model = torchvision.models.optical_flow.raft_small(weights=None)
    pair = (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    with pytest.raises(camlib.CamlibTypeError, match="returns a list.*pass forward="):
        camlib.GradCAM(model, forward=lambda m, inputs: m(*inputs))(pair)
    cam = camlib.HiResCAM(model, forward=lambda m, inputs: m(*inputs)[-1])
    explanation = cam(pair, lambda flow: flow.square().mean((1, 2, 3)))
    assert explanation.layer == "update_block.flow_head.relu#12"
    kept: list[torch.Tensor] = []
    model.update_block.flow_head.relu.register_forward_hook(lambda module, args, output: kept.append(output))
    scores = model.eval()(*pair)[-1].square().mean((1, 2, 3))
    (gradient,) = torch.autograd.grad(scores.sum(), kept[11])
    torch.testing.assert_close(explanation.maps, (kept[11] * gradient).sum(1).relu().detach())


STAGES = {
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "vgg11": ["features.1", "features.4", "features.9", "features.14", "features.19"],
    "densenet121": [
        "features.relu0",
        "features.denseblock1",
        "features.denseblock2",
        "features.denseblock3",
        "features",
    ],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features"],
    "swin_t": ["features.1", "features.3", "features.5", "norm"],
    "maxvit_t": ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    "vit_b_32": ["encoder.layers.encoder_layer_11.ln_1"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_last_maps_of_their_size(name: str) -> None:
    size = 224 if name in ("vit_b_32", "maxvit_t") else 64
    model = torchvision.models.get_model(name, weights=None).eval()
    assert camlib.find_stages(model, pictures(size, size)) == STAGES[name]


def test_stages_leave_out_what_is_passed_by() -> None:
    assert camlib.find_stages(UNet().eval(), pictures(16, 24)) == ["joined"]


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (timm.layers.LayerNorm2d(2), "first"),
        (timm.layers.LayerNorm(2), "last"),
        (ConvNextLayerNorm(2, data_format="channels_first"), "first"),
        (ConvNextLayerNorm(2), "last"),
    ],
    ids=("timm, first", "timm, last", "hugging_face, first", "hugging_face, last"),
)
def test_norms_of_other_libraries_say_which_axis_holds_the_channels(layer: nn.Module, axis: str) -> None:
    assert channel_axis(nn.Sequential(layer), layer) == axis
