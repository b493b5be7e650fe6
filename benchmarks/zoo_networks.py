"""The networks of :mod:`benchmarks.zoo`: how to build each, with random weights, and how to explain it.

Sizes are small, but each network keeps its architecture. No weights are loaded and nothing is downloaded. A package is
imported when the first of its networks is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from benchmarks import zoo_own as own
from benchmarks.zoo_checks import Axes

PACKAGES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "Hugging Face": "transformers",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "MONAI": "monai",
    "ultralytics": "ultralytics",
    "open_clip": "open_clip_torch",
    "own": "torch-camlib",
}
"""The distribution of each source."""
CLASS = 1
LABELS = 5

Score = Callable[[Any], Tensor]
Builder = Callable[[], nn.Module]


def logits(outputs: Any) -> Tensor:
    """The logits of what a network returns."""
    for name in ("logits", "out"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if found is not None:
            outputs = found
    assert isinstance(outputs, Tensor)
    return outputs


def class_score(outputs: Any) -> Tensor:
    """The logit of the class, (N,)."""
    return logits(outputs)[:, CLASS]


@dataclass(frozen=True)
class Network:
    """A network and how it is explained.

    Args:
        source: a key of :data:`PACKAGES`.
        build: makes it, after ``torch.manual_seed(0)``.
        inputs: makes what it takes, after ``torch.manual_seed(0)``.
        forward: as for :class:`camlib.methods.Method`.
        target: what camlib is asked to explain.
        score: the same score as a plain function of the outputs.
        axes: the picture's axes along the axes of the grid that is right; None for its last ones.
        trunks: how many trunks lead to the score side by side: as many layers must be shown, or a warning given.
        grid: of the last map that leads to the score, where another one could be taken for it.
        features: from the layer's output to features (N, *grid, C), where no usual reading of its axes is right.
    """

    source: str
    build: Builder
    inputs: Callable[[], Any]
    forward: Callable[[Any, Any], Any] | None = None
    target: Any = CLASS
    score: Score = class_score
    axes: Axes | None = None
    trunks: int = 1
    grid: tuple[int, ...] | None = None
    features: Callable[[Tensor], Tensor] | None = None

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the network."""
        return model(inputs) if self.forward is None else self.forward(model, inputs)


def random(*shape: int) -> Callable[[], Tensor]:
    """Random inputs."""
    return partial(torch.rand, shape)


def pictures(height: int, width: int) -> Callable[[], Tensor]:
    """A random picture."""
    return random(1, 3, height, width)


def picked(pick: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A ``forward=`` that calls the network and picks something of what it returns."""
    return lambda model, inputs: pick(model(inputs))


def named(pick: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A ``forward=`` that gives the network a dictionary's entries by name and picks something of what it returns."""
    return lambda model, inputs: pick(own.wrapped(model, inputs))


def left(*size: int) -> dict[str, Any]:
    """The mean logit of category 1 over the left half of an output of this size: target and score."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[..., : size[-1] // 2] = True

    def score(outputs: Any) -> Tensor:
        return logits(outputs)[:, CLASS][:, mask].mean(1)

    return {"target": camlib.targets.Region(CLASS, mask), "score": score}


def best_detection(outputs: Any) -> Tensor:
    """The highest score of each image's detections that have an area."""
    have_area = [(found["boxes"][:, 2:] > found["boxes"][:, :2]).all(1) for found in outputs]
    return torch.stack([found["scores"][area].max() for found, area in zip(outputs, have_area, strict=True)])


def entry(package: str, name: str) -> Any:
    """A name of a package, such as a class or a function that builds a network."""
    return getattr(importlib.import_module(package), name)


def called(package: str, name: str, *arguments: Any, **options: Any) -> Builder:
    """Builds a network by calling a name of a package."""
    return lambda: entry(package, name)(*arguments, **options)


# torchvision

TORCHVISION = """alexnet densenet121 efficientnet_b0 efficientnet_v2_s mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t
    convnext_tiny vgg11 vgg11_bn wide_resnet50_2"""
FEW_REGIONS = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
FEW_ANCHORS = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 10}
RESIZED = {"min_size": 128, "max_size": 160}
DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": FEW_REGIONS | RESIZED,
    "fasterrcnn_mobilenet_v3_large_fpn": FEW_REGIONS | RESIZED,
    "maskrcnn_resnet50_fpn": FEW_REGIONS | RESIZED,
    "keypointrcnn_resnet50_fpn": FEW_REGIONS | RESIZED,
    "retinanet_resnet50_fpn": FEW_ANCHORS | RESIZED,
    "fcos_resnet50_fpn": FEW_ANCHORS | RESIZED,
    "ssd300_vgg16": FEW_ANCHORS,
    "ssdlite320_mobilenet_v3_large": FEW_ANCHORS,
}
SEGMENTERS = "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large"


def torchvision_model(name: str, **options: Any) -> Builder:
    """One of torchvision's models without weights."""
    return called("torchvision.models", "get_model", name, weights=None, **options)


def mvit() -> nn.Module:
    """The second version of torchvision's MViT with few blocks: its builders take 16 x 224 x 224 alone."""
    module = importlib.import_module("torchvision.models.video.mvit")
    block = partial(module.MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    model: nn.Module = module.MViT(
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
    return model


def torchvision_networks() -> dict[str, Network]:
    """At least one network of each family of classifiers, segmentation, detection, video and optical flow."""
    network = partial(Network, "torchvision")
    found = {name: network(torchvision_model(name), pictures(128, 128)) for name in TORCHVISION.split()}
    small_vit = {"image_size": 96, "patch_size": 16, "num_layers": 3, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 192}
    found |= {
        "vit_b_32": network(torchvision_model("vit_b_32", image_size=128), pictures(128, 128)),
        "VisionTransformer": network(called("torchvision.models", "VisionTransformer", **small_vit), pictures(96, 96)),
        "googlenet": network(torchvision_model("googlenet", init_weights=False), pictures(160, 160)),
        "inception_v3": network(torchvision_model("inception_v3", init_weights=False), pictures(224, 224)),
        "maxvit_t": network(torchvision_model("maxvit_t"), pictures(224, 224)),
    }
    for name in SEGMENTERS.split():
        build = torchvision_model(name, weights_backbone=None, num_classes=LABELS)
        found[name] = network(build, pictures(96, 128), **left(96, 128))
    for name, options in DETECTORS.items():
        build = torchvision_model(name, weights_backbone=None, num_classes=LABELS, **options)
        box: dict[str, Any] = {"target": camlib.targets.Box(), "score": best_detection}
        found[name] = network(build, lambda: [torch.rand(3, 128, 160)], **box)
    videos: dict[str, tuple[Builder, tuple[int, int, int]]] = {
        "r3d_18": (torchvision_model("r3d_18"), (8, 64, 64)),
        "mc3_18": (torchvision_model("mc3_18"), (4, 64, 64)),
        "r2plus1d_18": (torchvision_model("r2plus1d_18"), (8, 64, 64)),
        "s3d": (torchvision_model("s3d"), (16, 224, 224)),
        "mvit_v2": (mvit, (8, 64, 64)),
        "swin3d_t": (torchvision_model("swin3d_t"), (4, 64, 96)),
    }
    found |= {name: network(build, random(1, 3, *size)) for name, (build, size) in videos.items()}

    def flow(outputs: Tensor) -> Tensor:
        return outputs.square().mean((1, 2, 3))

    found["raft_small"] = network(
        called("torchvision.models.optical_flow", "raft_small", weights=None),
        lambda: (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)),
        lambda model, pair: model(*pair)[-1],
        flow,
        flow,
    )
    return found


# timm

TIMM = {
    112: "convmixer_1024_20_ks9_p14",
    128: """caformer_s18 convformer_s18 convnext_atto convnextv2_atto cspresnet50 darknet53 davit_tiny densenet121 dla34
        dpn48b eca_nfnet_l0 edgenext_xx_small efficientnet_b0 efficientvit_b0 ese_vovnet19b_dw fasternet_t0
        fastvit_t8 focalnet_tiny_srf gernet_s ghostnet_050 ghostnetv2_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small
        inception_next_atto mambaout_femto mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
        mobileone_s0 mobilevit_xxs mobilevitv2_050 nextvit_small nf_resnet26 poolformer_s12 poolformerv2_s12
        pvt_v2_b0 rdnet_tiny regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
        resnest14d resnet18 resnetv2_50 rexnet_100 selecsls42b seresnet18 skresnet18 starnet_s1 swiftformer_xs
        tresnet_m twins_pcpvt_small vovnet39a xception41""",
    224: """efficientformer_l1 efficientformerv2_s0 efficientvit_m0 gcvit_xxtiny inception_resnet_v2 levit_128s
        levit_conv_128s nest_tiny shvit_s1 tiny_vit_5m_224 twins_svt_small visformer_tiny volo_d1_224""",
    240: "crossvit_tiny_240",
    256: "botnet26t_256",
}
"""The names by the size of the picture."""
TIMM_SIZED = {
    96: "gmlp_ti16_224 resmlp_12_224 tnt_s_patch16_224",
    112: "swin_tiny_patch4_window7_224 swinv2_cr_tiny_224",
    128: """coat_lite_tiny coatnet_nano_rw_224 maxvit_nano_rw_256 mvitv2_tiny pit_ti_224 pit_ti_distilled_224
        resnet50_clip vitamin_small_224""",
    144: "swinv2_tiny_window8_256",
}
"""Those that are built for the size."""
TIMM_OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (224, {"depth": 3, "embed_dim": 192, "num_heads": 3}),
    "cait_xxs24_224": (128, {"img_size": 128, "depth": 6}),
    "convit_tiny": (96, {"img_size": 96, "depth": 6, "local_up_to_layer": 4}),
    "deit_tiny_distilled_patch16_224": (96, {"img_size": 96, "depth": 4}),
    "deit3_small_patch16_224": (96, {"img_size": 96, "depth": 4}),
    "eva02_tiny_patch14_224": (84, {"img_size": 84, "depth": 4}),
    "hiera_tiny_224": (224, {"embed_dim": 48}),
    "samvit_base_patch16": (128, {"img_size": 128, "embed_dim": 96, "depth": 4, "num_heads": 3}),
    "sequencer2d_s": (112, {"img_size": 112, "layers": [1, 1, 1, 1]}),
    "vit_tiny_patch16_224": (96, {"img_size": 96, "depth": 4}),
    "vit_tiny_patch16_224 pooled": (96, {"img_size": 96, "depth": 4, "global_pool": "avg"}),
    "vit_small_patch14_reg4_dinov2": (84, {"img_size": 84, "depth": 3}),
    "vit_base_patch16_siglip_224": (96, {"img_size": 96, "depth": 2}),
    "vit_relpos_small_patch16_224": (96, {"img_size": 96, "depth": 3}),
    "vit_tiny_r_s16_p8_224": (224, {"depth": 3}),
    "xcit_nano_12_p16_224": (128, {"depth": 6}),
}
"""The size and the options of the others; what stands behind a name tells variants apart."""


def timm_networks() -> dict[str, Network]:
    """Networks of timm's families, and one that keeps activation checkpointing on."""
    wanted: dict[str, tuple[int, dict[str, Any]]] = {
        name: (side, {}) for side, names in TIMM.items() for name in names.split()
    }
    wanted |= TIMM_OPTIONS | {
        name: (side, {"img_size": side}) for side, names in TIMM_SIZED.items() for name in names.split()
    }
    found = {}
    for name, (side, options) in sorted(wanted.items()):
        build = called("timm", "create_model", name.split()[0], pretrained=False, num_classes=LABELS, **options)
        found[f"timm {name}"] = Network("timm", build, pictures(side, side))

    def checkpointed() -> nn.Module:
        built: Any = found["timm vit_tiny_patch16_224"].build()
        built.set_grad_checkpointing(True)
        model: nn.Module = built
        return model

    found["timm vit_tiny_patch16_224 checkpointed"] = Network("timm", checkpointed, pictures(96, 96))
    mixer = {"img_size": 96, "num_blocks": 4, "embed_dim": 96, "num_classes": LABELS}
    found["timm MlpMixer"] = Network("timm", called("timm.models.mlp_mixer", "MlpMixer", **mixer), pictures(96, 96))
    return found


# Hugging Face

TRANSFORMER: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DINO = {key: value for key, value in TRANSFORMER.items() if key != "intermediate_size"}
LABELLED: dict[str, Any] = {"num_labels": LABELS}
PYRAMID: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
STAGES_OF_FOUR: dict[str, Any] = {"num_attention_heads": [1, 1, 2, 2]}
SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}
FORMER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WORDS = torch.tensor([[1, 5, 7, 9, 11, 2], [1, 6, 8, 3, 4, 2]])


def hugging_face(name: str, configuration: Callable[[], Any] | None = None, **options: Any) -> Builder:
    """A model of a class, from a small configuration."""

    def build() -> nn.Module:
        cls = entry("transformers", name)
        config = cls.config_class(**options) if configuration is None else configuration()
        config._attn_implementation = "eager"
        model: nn.Module = cls(config)
        return model

    return build


def config(name: str, **options: Any) -> Any:
    """A configuration of transformers."""
    return entry("transformers", name)(**options)


def small_resnet() -> Any:
    """The configuration of a small ResNet as a backbone."""
    depths = {"depths": [1, 1, 1, 1], "out_features": ["stage4"]}
    return config("ResNetConfig", embedding_size=8, **PYRAMID | depths)


def small_swin() -> Any:
    """The configuration of a small Swin as a backbone of four stages."""
    four = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "out_features": [f"stage{i}" for i in range(1, 5)]}
    return config("SwinConfig", **SWIN | four)


def detr(name: str) -> Any:
    """The configuration of a detector of DETR's kind with a small ResNet."""
    options = FORMER | {"backbone_config": small_resnet(), "num_queries": 5, "num_labels": LABELS}
    return entry("transformers", name).config_class(**options)


def upernet() -> Any:
    """The configuration of a small UperNet."""
    options = {"hidden_size": 16, "num_labels": LABELS, "use_auxiliary_head": False}
    return config("UperNetConfig", backbone_config=small_swin(), **options)


def rt_detr() -> Any:
    """The configuration of a small RT-DETR."""
    backbone = config(
        "RTDetrResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return config(
        "RTDetrConfig",
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=10,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_labels=LABELS,
        anchor_image_size=None,
    )


def text_and_picture(prefix: str, picture: dict[str, Any], **options: Any) -> Callable[[], Any]:
    """The configuration of two towers."""

    def configuration() -> Any:
        text = config(f"{prefix}TextConfig", **TEXT).to_dict()
        return config(
            f"{prefix}Config",
            text_config=text,
            vision_config=config(f"{prefix}VisionConfig", **picture).to_dict(),
            **options,
        )

    return configuration


def mask_former() -> Any:
    """The configuration of a small MaskFormer."""
    decoder = config("DetrConfig", backbone_config=small_resnet(), num_queries=5, **FORMER)
    return config(
        "MaskFormerConfig",
        backbone_config=small_swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=LABELS,
    )


def mask2former() -> Any:
    """The configuration of a small Mask2Former."""
    return config(
        "Mask2FormerConfig",
        backbone_config=small_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        num_labels=LABELS,
    )


def categories(outputs: Any) -> Tensor:
    """The semantic segmentation of MaskFormer and Mask2Former: classes of queries times their masks."""
    classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", classes, outputs.masks_queries_logits.sigmoid())


def llava() -> Any:
    """The configuration of a small LLaVA."""
    vision = config("CLIPVisionConfig", **TRANSFORMER)
    text = config(
        "LlamaConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=100,
        pad_token_id=0,
    )
    return config("LlavaConfig", vision_config=vision, text_config=text, image_token_index=99, image_seq_length=64)


def blip() -> Any:
    """The configuration of a small BLIP."""
    text = TEXT | {"encoder_hidden_size": 32}
    return config(
        "BlipConfig",
        vision_config=config("BlipVisionConfig", **TRANSFORMER),
        projection_dim=16,
        text_config=config("BlipTextConfig", **text),
    )


def with_words(**more: Any) -> Callable[[], dict[str, Any]]:
    """A picture and two prompts."""
    return lambda: {"pixel_values": torch.rand(1, 3, 64, 64), "input_ids": WORDS} | more


def depth_of_the_left(outputs: Tensor) -> Tensor:
    """The mean of a depth map's left half."""
    return outputs[..., : outputs.shape[-1] // 2].mean((1, 2))


def per_query(outputs: Any) -> Tensor:
    """The largest logit of each class over a detector's queries."""
    largest: Tensor = outputs.logits.amax(1)
    return largest


def hugging_face_networks() -> dict[str, Network]:
    """Classifiers, segmentation, detection, depth, video, audio, two towers and language models that see."""
    found: dict[str, Network] = {}

    def add(name: str, options: dict[str, Any] | Callable[[], Any], inputs: Any, *how: Any, **fields: Any) -> None:
        """Add a model of a class by the options of its configuration, or by a function that makes one."""
        cls = name.split()[0]
        build = hugging_face(cls, **options) if isinstance(options, dict) else hugging_face(cls, options)
        found[f"transformers {name}"] = Network("Hugging Face", build, inputs, *how, **fields)

    def interpolated(model: Any, x: Tensor) -> Any:
        return model(x, interpolate_pos_encoding=True)

    def reconstructed(model: Any, x: Tensor) -> Any:
        return model(x, noise=torch.linspace(0, 1, 64).roll(7)[None]).logits

    def mean(outputs: Tensor) -> Tensor:
        return outputs.mean((1, 2))

    picture, clip = pictures(64, 64), random(1, 4, 3, 64, 64)
    vit: dict[str, Any] = TRANSFORMER | LABELLED
    staged, without_patch = PYRAMID | LABELLED, {key: value for key, value in vit.items() if key != "patch_size"}
    for name in ("ViT", "DeiT", "ViTMSN", "IJepa", "Beit", "Data2VecVision"):
        add(f"{name}ForImageClassification", vit, picture)
    add("DeiTForImageClassificationWithTeacher", vit, picture)
    add("Dinov2ForImageClassification", DINO | LABELLED, picture)
    add("Dinov2WithRegistersForImageClassification", DINO | LABELLED, picture)
    add("SwinForImageClassification", SWIN | LABELLED, picture)
    add("Swinv2ForImageClassification", SWIN | LABELLED, picture)
    for name in ("ConvNext", "ConvNextV2", "PoolFormer"):
        add(f"{name}ForImageClassification", staged, pictures(128, 128))
    for name, more in {
        "ResNet": staged | {"embedding_size": 8},
        "RegNet": staged | {"embedding_size": 8, "groups_width": 8},
        "Bit": staged | {"embedding_size": 8, "num_groups": 4},
        "MobileNetV2": LABELLED | {"depth_multiplier": 0.35},
        "MobileViT": LABELLED | {"image_size": 64},
        "MobileViTV2": LABELLED | {"image_size": 64, "width_multiplier": 0.5},
        "EfficientNet": LABELLED | {"width_coefficient": 0.5, "hidden_dim": 640},
        "SwiftFormer": LABELLED | {"depths": [1, 1, 2, 1], "embed_dims": [8, 16, 24, 32]},
        "Pvt": staged | STAGES_OF_FOUR | {"image_size": 128},
        "PvtV2": staged | STAGES_OF_FOUR | {"image_size": 128},
    }.items():
        add(f"{name}ForImageClassification", more, pictures(128, 128))
    focal = {"image_size": 64, "embed_dim": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    add("FocalNetForImageClassification", LABELLED | focal, picture)
    add("SegformerForImageClassification", staged | STAGES_OF_FOUR, pictures(128, 160))
    cvt = {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4]}
    add("CvtForImageClassification", LABELLED | cvt, pictures(128, 160))
    hiera = {"embed_dim": 16, "image_size": [224, 224], "num_heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1]}
    add("HieraForImageClassification", LABELLED | hiera, pictures(224, 224))
    levit = {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
    add("LevitForImageClassification", LABELLED | levit, pictures(224, 224))
    odd = vit | {"image_size": 224, "patch_size": 32}
    for side in (112, 240):
        add(f"ViTForImageClassification {side} px, patch 32", odd, pictures(side, side), interpolated)
    swinv2 = SWIN | LABELLED | {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    add("SwinForImageClassification 80 px", SWIN | LABELLED, pictures(80, 80))
    add("Swinv2ForImageClassification 80 px", swinv2, pictures(80, 80))
    add("Swinv2ForImageClassification 144 px", swinv2, pictures(144, 144))
    gpt = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 17}
    add("ImageGPTForImageClassification", gpt | LABELLED, lambda: torch.randint(0, 16, (1, 64)))

    segformer = staged | STAGES_OF_FOUR | {"decoder_hidden_size": 16}
    add("SegformerForSemanticSegmentation", segformer, pictures(64, 96), **left(16, 24))
    add("UperNetForSemanticSegmentation", upernet, picture, **left(64, 64))
    masks = left(32, 32) | {"target": left(32, 32)["score"]}
    add("MaskFormerForInstanceSegmentation", mask_former, pictures(128, 128), picked(categories), **masks)
    add("Mask2FormerForUniversalSegmentation", mask2former, pictures(128, 128), picked(categories), **masks)

    for name in ("DetrForObjectDetection", "ConditionalDetrForObjectDetection"):
        add(name, partial(detr, name), pictures(128, 160), picked(per_query))
    add("RTDetrForObjectDetection", rt_detr, pictures(128, 128), picked(per_query))
    yolos = vit | {"image_size": [64, 96], "num_detection_tokens": 10}
    add("YolosForObjectDetection", yolos, pictures(64, 96), picked(per_query))
    towers = text_and_picture("OwlViT", TRANSFORMER, projection_dim=32)
    add("OwlViTForObjectDetection", towers, with_words(), named(per_query))

    depth = picked(lambda outputs: outputs.predicted_depth), depth_of_the_left, depth_of_the_left
    dpt = {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 24, 32]}
    dpt |= {"fusion_hidden_size": 16, "is_hybrid": False}
    add("DPTForDepthEstimation", TRANSFORMER | dpt, picture, *depth)
    add("GLPNForDepthEstimation", PYRAMID | STAGES_OF_FOUR | {"decoder_hidden_size": 16}, pictures(64, 96), *depth)

    mae = TRANSFORMER | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    mae |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    add("ViTMAEForPreTraining", mae, picture, reconstructed, mean, mean)
    frames = {"axes": (1, 3, 4)}
    add("VideoMAEForVideoClassification", vit | {"num_frames": 4, "tubelet_size": 2}, clip, **frames)
    add("TimesformerForVideoClassification", vit | {"num_frames": 4}, clip, **frames)
    add("VivitForVideoClassification", without_patch | {"num_frames": 4, "tubelet_size": [2, 16, 16]}, clip, **frames)
    ast = {"num_mel_bins": 64, "max_length": 128, "frequency_stride": 10, "time_stride": 10, "patch_size": 16}
    without_side = {key: value for key, value in vit.items() if key != "image_size"}
    add("ASTForAudioClassification", without_side | ast, random(1, 128, 64), axes=(1, 2))
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    whisper = {"num_mel_bins": 16, "max_source_positions": 40, "vocab_size": 100}
    add("WhisperForAudioClassification", FORMER | LABELLED | ids | whisper, random(1, 16, 80))
    wav2vec: dict[str, Any] = {"conv_dim": [16, 16, 16], "conv_stride": [5, 4, 2], "conv_kernel": [10, 8, 4]}
    wav2vec |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    wav2vec |= {key: TEXT[key] for key in TEXT if key.startswith(("hidden", "num", "inter"))}
    add("Wav2Vec2ForSequenceClassification", LABELLED | wav2vec | {"classifier_proj_size": 16}, random(1, 2000))

    embeds, similarities = picked(lambda outputs: outputs.image_embeds), named(lambda outputs: outputs.logits_per_image)
    last_word = named(lambda outputs: outputs.logits[:, -1])
    add("CLIPVisionModelWithProjection", TRANSFORMER | {"projection_dim": 16}, picture, embeds)
    add("CLIPModel", text_and_picture("CLIP", TRANSFORMER, projection_dim=16), with_words(), similarities)
    add("SiglipModel", text_and_picture("Siglip", TRANSFORMER), with_words(), similarities)
    add("BlipForConditionalGeneration", blip, with_words(input_ids=WORDS[:1]), last_word)
    asked = with_words(input_ids=torch.tensor([[1, *[99] * 64, 5, 6, 7]]))
    add("LlavaForConditionalGeneration", llava, asked, last_word)
    add("Dinov2Model", DINO, picture, picked(lambda outputs: outputs.pooler_output))
    add("DINOv3ViTModel", TRANSFORMER, picture, picked(lambda outputs: outputs.pooler_output))
    return found


# segmentation_models_pytorch, MONAI, ultralytics, open_clip


DECODERS = "Unet UnetPlusPlus FPN DeepLabV3Plus PSPNet Linknet MAnet PAN Segformer UPerNet"


def segmentation_networks() -> dict[str, Network]:
    """Decoders of segmentation_models_pytorch on small encoders."""
    package = "segmentation_models_pytorch"
    found = {}
    for name in DECODERS.split():
        build = called(package, name, "resnet18", encoder_weights=None, classes=LABELS)
        found[f"smp {name}"] = Network(package, build, pictures(128, 192), **left(128, 192))
    build = called(package, "Unet", "mit_b0", encoder_weights=None, classes=LABELS)
    return found | {"smp Unet mit_b0": Network(package, build, pictures(128, 192), **left(128, 192))}


def monai_networks() -> dict[str, Network]:
    """Networks of MONAI for volumes, and its multiple-instance learning."""
    found: dict[str, Network] = {}

    def add(name: str, given: tuple[Any, ...], options: dict[str, Any], inputs: Any, *how: Any, **fields: Any) -> None:
        """Add a network of a class; what stands behind a comma tells variants apart."""
        build = called("monai.networks.nets", name.split(",")[0], *given, **options)
        found[f"monai {name}"] = Network("MONAI", build, inputs, *how, **fields)

    cube, large, square = random(1, 1, 32, 32, 32), random(1, 1, 64, 64, 64), random(1, 1, 64, 64)
    of_cube, of_square = left(32, 32, 32), left(64, 64)
    one: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
    classes = {"in_channels": 1, "out_channels": LABELS}
    unet = one | {"channels": (4, 8, 16), "strides": (2, 2)}
    add("UNet", (3,), unet | {"num_res_units": 0}, cube, **of_cube)
    add("UNet, residual units", (3,), unet | {"num_res_units": 2}, cube, **of_cube)
    add("UNet, residual units, 2-D", (2,), unet | {"num_res_units": 2}, square, **of_square)
    add("AttentionUnet", (2,), unet, square, **of_square)
    add("BasicUNet", (2, 1, 2), {"features": (4, 4, 8, 8, 16, 4)}, square, **of_square)
    add("SegResNet", (3,), one | {"init_filters": 8}, cube, **of_cube)
    small = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2, 2)}
    add("DenseNet, small", (3,), classes | small, cube)
    add("DenseNet121", (3,), classes, large)
    resnet = {"n_input_channels": 1, "num_classes": LABELS, "conv1_t_stride": 2}
    add("ResNet", ("basic", [1, 1, 1, 1], [8, 16, 32, 64]), resnet, large)
    efficientnet = {"pretrained": False, "spatial_dims": 2, "in_channels": 1, "num_classes": LABELS}
    add("EfficientNetBN", ("efficientnet-b0",), efficientnet, random(1, 1, 128, 128))
    transformer = {"in_channels": 1, "img_size": (32, 32, 32), "hidden_size": 48, "mlp_dim": 64, "num_heads": 3}
    vit = transformer | {"patch_size": (8, 8, 8), "num_layers": 2, "classification": True, "num_classes": LABELS}
    add("ViT", (), vit, cube, picked(lambda outputs: outputs[0]))
    add("SwinUNETR", (), one | {"feature_size": 12, "depths": (1, 1, 1, 1)}, large, **left(64, 64, 64))
    add("UNETR", (), transformer | {"out_channels": 2, "feature_size": 8}, cube, **of_cube)
    for mode in ("mean", "att", "att_trans"):
        options = {"num_classes": LABELS, "mil_mode": mode, "pretrained": False}
        add(f"MILModel, {mode}", (), options, random(1, 4, 3, 128, 128), axes=(1, 3, 4), grid=(4, 4, 4))
    return found


def yolo(name: str) -> Builder:
    """A YOLO from its description."""
    task = "ClassificationModel" if name.endswith("-cls") else "DetectionModel"
    return called("ultralytics.nn.tasks", task, f"{name}.yaml", ch=3, verbose=False)


def rows_of_classes(outputs: Any) -> Tensor:
    """The largest score of each class over a YOLO's anchors; its rows are 4 of the box, then the classes."""
    largest: Tensor = outputs[0][:, 4:].amax(2)
    return largest


def end_to_end_classes(outputs: Any) -> Tensor:
    """The same of a YOLO without non-maximum suppression, from the rows ahead of its choice."""
    largest: Tensor = outputs[1]["one2one"]["scores"].amax(2)
    return largest


def ultralytics_networks() -> dict[str, Network]:
    """YOLOs from their descriptions."""
    network = partial(Network, "ultralytics")
    found = {
        f"{name}": network(yolo(name), pictures(128, 160), picked(rows_of_classes))
        for name in ("yolov5n", "yolov8n", "yolov8n-p2", "yolo11n", "yolo12n")
    }
    return found | {
        "yolov10n": network(yolo("yolov10n"), pictures(128, 160), picked(end_to_end_classes)),
        "yolo26n": network(yolo("yolo26n"), pictures(128, 160), picked(end_to_end_classes)),
        "yolov8n-cls": network(yolo("yolov8n-cls"), pictures(128, 128), picked(lambda outputs: outputs[1])),
        "yolo11n-cls": network(yolo("yolo11n-cls"), pictures(128, 128), picked(lambda outputs: outputs[1])),
    }


def open_clip_networks() -> dict[str, Network]:
    """Visual towers of open_clip with fewer blocks, and both towers with a prompt for each class."""

    def towers(**vision: Any) -> Builder:
        text = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
        size = {"image_size": 96} | vision
        return called("open_clip.model", "CLIP", embed_dim=16, vision_cfg=size, text_cfg=text)

    def visual(**vision: Any) -> Builder:
        return lambda: towers(**vision)().get_submodule("visual")

    vit = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
    network, prompts = partial(Network, "open_clip"), torch.cat([WORDS, torch.zeros(2, 10, dtype=torch.long)], 1)

    def similarities(model: Any, picture: Tensor) -> Tensor:
        image, text = model.encode_image(picture, normalize=True), model.encode_text(prompts, normalize=True)
        logits: Tensor = image @ text.mT
        return logits

    return {
        "open_clip ViT": network(visual(**vit), pictures(96, 96)),
        "open_clip ViT, pooled": network(visual(pool_type="avg", **vit), pictures(96, 96)),
        "open_clip ViT, attention pool": network(visual(attentional_pool=True, **vit), pictures(96, 96)),
        "open_clip ResNet": network(visual(layers=(1, 1, 1, 1), width=32), pictures(96, 96)),
        "open_clip ConvNeXt": network(
            visual(timm_model_name="convnext_atto", timm_pool="avg", timm_proj="linear", image_size=128),
            pictures(128, 128),
        ),
        "open_clip ViT with prompts": network(towers(**vit), pictures(96, 96), similarities),
    }


# Custom networks


def small_vision_transformer() -> nn.Module:
    """A small timm ViT."""
    model: nn.Module = TIMM_NETWORKS["timm vit_tiny_patch16_224"].build()
    return model


def two_resnets() -> nn.Module:
    """An ensemble of two ResNets."""
    return own.Average(*(torchvision_model("resnet18", num_classes=LABELS)() for _ in range(2)))


def ensemble_of_kinds() -> nn.Module:
    """An ensemble of two architectures."""
    kinds = ("resnet18", "mobilenet_v2")
    return own.Average(*(torchvision_model(name, num_classes=LABELS)() for name in kinds))


def traced() -> nn.Module:
    """A ResNet as a graph of torch.fx."""
    return torch.fx.symbolic_trace(torchvision_model("resnet18", num_classes=LABELS)())


def extracted() -> nn.Module:
    """A ResNet's pooled features, by torchvision's feature extractor."""
    create = entry("torchvision.models.feature_extraction", "create_feature_extractor")
    model: nn.Module = create(torchvision_model("resnet18")(), {"flatten": "out"})
    return model


def scripted_trunk() -> nn.Module:
    """A trunk that was compiled by TorchScript, and a plain head."""
    return nn.Sequential(torch.jit.script(own.trunk()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, LABELS))


def own_networks() -> dict[str, Network]:
    """What people write themselves; two images each where rows could be mistaken."""
    network, picture = partial(Network, "own"), random(2, 3, 64, 64)
    pair = [random(2, 3, 64, 64), random(2, 3, 64, 96)]

    def both() -> list[Tensor]:
        return [one() for one in pair]

    def same_size() -> list[Tensor]:
        return [torch.rand(2, 3, 64, 64) for _ in range(2)]

    def patients() -> dict[str, Tensor]:
        return {"xray": torch.rand(2, 1, 64, 64), "vitals": torch.rand(2, 24, 8)}

    def asked() -> dict[str, Tensor]:
        return {"words": WORDS, "picture": torch.rand(2, 3, 64, 64)}

    def mean(outputs: Tensor) -> Tensor:
        return outputs.mean(tuple(range(1, outputs.dim())))

    def of_anchors(outputs: Tensor) -> Tensor:
        return outputs[:, 4:].amax((1, 2))

    bag, frames, slices = random(2, 4, 3, 64, 64), (1, 3, 4), (4, 8, 8)
    found = {
        "CNN": network(
            lambda: own.Average(
                nn.Sequential(own.trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, LABELS))
            ),
            picture,
        ),
        "two trunks": network(own.TwoTrunks, both, trunks=2),
        "siamese": network(own.Siamese, same_size, trunks=2),
        "CNN + LSTM over frames": network(partial(own.Stacked, "lstm"), bag, axes=frames, grid=slices),
        "mean over slices": network(partial(own.Stacked, "mean"), bag, axes=frames, grid=slices),
        "max over views": network(partial(own.Stacked, "max"), bag, axes=frames, grid=slices),
        "attention over a bag": network(partial(own.Stacked, "attention"), bag, axes=frames, grid=slices),
        "X-ray and vitals": network(own.XrayAndVitals, patients),
        "picture and question": network(own.Question, asked),
        "captioner": network(own.Captioner, picture, picked(lambda words: words[:, 3])),
        "CRNN": network(own.TextLine, random(2, 1, 32, 128), picked(lambda letters: letters[:, 5])),
        "spectrogram (time, mel)": network(own.Spectrogram, random(2, 128, 64)),
        "spectrogram (time, mel), transposed inside": network(
            partial(own.Spectrogram, True), random(2, 128, 64), axes=(1, 2)
        ),
        "audio, spectrogram inside": network(own.Audio, random(2, 4096), axes=(None, 1)),
        "audio, 1-D convolutions": network(own.Waveform, random(2, 512)),
        "series (steps, features)": network(own.Series, random(2, 320, 6), axes=(1,)),
        "signal transformer": network(own.SeriesTransformer, random(2, 2, 160)),
        "signal transformer, 250 samples": network(own.SeriesTransformer, random(2, 2, 250)),
        "frames (H, W, 4)": network(own.ChannelsLast, random(2, 80, 64, 4), axes=(1, 2)),
        "experts, stacked and summed": network(own.Experts, picture, grid=(16, 16)),
        "two ResNets averaged": network(two_resnets, pictures(128, 128), trunks=2),
        "ResNet and MobileNet averaged": network(ensemble_of_kinds, pictures(128, 128), trunks=2),
        "slow and fast pathway": network(own.SlowFast, random(2, 3, 16, 64, 64), trunks=2),
        "rows of a detector": network(own.Detector, picture, target=of_anchors, score=of_anchors),
        "depth without channels": network(own.Depth, picture, target=depth_of_the_left, score=depth_of_the_left),
        "autoencoder": network(own.Autoencoder, picture, target=mean, score=mean),
        "sampled tokens": network(own.Sampled, picture),
        "tokens of videos, time first": network(own.TimeFirst, random(2, 3, 4, 48, 64)),
        "tokens by windows": network(own.MaskUnits, picture, features=own.MaskUnits.in_order),
        "torch.fx graph of a ResNet": network(traced, pictures(128, 128), grid=(4, 4)),
        "feature extractor of a ResNet": network(
            extracted, pictures(128, 128), picked(lambda o: o["out"]), grid=(4, 4)
        ),
        "scripted trunk": network(scripted_trunk, picture),
    }
    return {f"own {name}": one for name, one in found.items()}


TIMM_NETWORKS = timm_networks()
NETWORKS: dict[str, Network] = (
    torchvision_networks()
    | TIMM_NETWORKS
    | hugging_face_networks()
    | segmentation_networks()
    | monai_networks()
    | ultralytics_networks()
    | open_clip_networks()
    | own_networks()
)
"""All of them, by name."""
