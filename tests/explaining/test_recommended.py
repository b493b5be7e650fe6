"""The recommended method: by the target, by the outputs, and by whether the network computes attention."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import camlib
from camlib.explaining.choice import choose
from camlib.methods.recommended import RECOMMENDED, recommended
from camlib.passes.network import Network

IMAGES = torch.rand(2, 3, 64, 64)


def hugging_face(attention: str) -> nn.Module:
    config = ViTConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = ViTForImageClassification(config)
    model.set_attn_implementation(attention)
    return model


MODELS = {
    "resnet": (lambda: torchvision.models.resnet18(), "convolutional"),
    "convnext": (lambda: timm.create_model("convnext_atto"), "convolutional"),
    "senet": (lambda: timm.create_model("seresnet18"), "convolutional"),
    "torchvision's ViT": (lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32), "transformer"),
    "timm's ViT": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "transformer"),
    "swin": (lambda: torchvision.models.swin_t(), "transformer"),
    "Hugging Face's ViT": (lambda: hugging_face("sdpa"), "transformer"),
    "Hugging Face's ViT, eager": (lambda: hugging_face("eager"), "transformer"),
    "segmentation": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
        "placed",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_class_is_explained_as_the_network_is(name):
    build, kind = MODELS[name]
    assert recommended(Network.of(build().eval()), IMAGES) is RECOMMENDED[kind]


TARGETS = {
    "a box": (camlib.targets.Box(), "box"),
    "a region": (camlib.targets.Region(1), "placed"),
    "a function": (lambda outputs: outputs[:, 0], "function"),
    "classes": (camlib.TopK(2), "convolutional"),
    "a contrast": (camlib.targets.Contrast(1, against=2), "convolutional"),
    "an embedding": (camlib.targets.Similarity(torch.rand(1000)), "convolutional"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_with_a_place_has_its_own_method(name):
    target, kind = TARGETS[name]
    assert recommended(Network.of(torchvision.models.resnet18().eval()), IMAGES, target) is RECOMMENDED[kind]


@pytest.mark.parametrize("kind", RECOMMENDED)
def test_the_recommended_method_is_public_and_its_reason_names_it(kind):
    method, reason = RECOMMENDED[kind].method, RECOMMENDED[kind].reason
    assert camlib.METHODS[method.name] is method
    names = {
        "layer_cam": "LayerCAM",
        "grad_cam": "Grad-CAM",
        "libra_grad": "LibraGrad",
        "eigen_grad_cam": "EigenGradCAM",
    }
    assert names[method.name] in reason


def test_the_reason_is_part_of_the_explanation_only_if_the_method_was_chosen():
    model = torchvision.models.resnet18(num_classes=4).eval()
    assert camlib.explain(model, IMAGES).reason == f"grad_cam, because {RECOMMENDED['convolutional'].reason}"
    assert camlib.explain(model, IMAGES, method="grad_cam").reason == ""


class Tanh(nn.Module):
    """A transformer whose last activation has no balanced gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).mT
        return self.head(self.block(tokens).tanh().mean(1))


def test_a_transformer_without_balanced_gradients_is_explained_by_hires_cam_and_the_reason_says_so():
    model = Tanh().eval()
    with pytest.raises(camlib.CamlibRuntimeError):
        camlib.LibraGrad(model)(IMAGES)
    explainer, reason, first = choose("auto", Network.of(model), IMAGES)
    torch.testing.assert_close(first.maps, camlib.HiResCAM(model)(IMAGES).maps)
    assert explainer.title == "hires_cam"
    assert "libra_grad does not work here" in reason
    assert "Tanh" in reason
