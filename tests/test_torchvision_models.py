"""The classifiers of torchvision: the layer that is found, and Grad-CAM there.

``make test`` builds one network of each of torchvision's modules, ``--all-models`` (as in ``.ci/run``) all 80.
"""

from __future__ import annotations

import gc

import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from camlib.layers.layouts import layout_of

pytestmark = pytest.mark.slow

EXPECTED = {
    "alexnet": ("features.11", (13, 13)),
    "convnext_base": ("features", (7, 7)),
    "convnext_large": ("features", (7, 7)),
    "convnext_small": ("features", (7, 7)),
    "convnext_tiny": ("features", (7, 7)),
    "densenet121": ("features", (7, 7)),
    "densenet161": ("features", (7, 7)),
    "densenet169": ("features", (7, 7)),
    "densenet201": ("features", (7, 7)),
    "efficientnet_b0": ("features", (7, 7)),
    "efficientnet_b1": ("features", (7, 7)),
    "efficientnet_b2": ("features", (7, 7)),
    "efficientnet_b3": ("features", (7, 7)),
    "efficientnet_b4": ("features", (7, 7)),
    "efficientnet_b5": ("features", (7, 7)),
    "efficientnet_b6": ("features", (7, 7)),
    "efficientnet_b7": ("features", (7, 7)),
    "efficientnet_v2_l": ("features", (7, 7)),
    "efficientnet_v2_m": ("features", (7, 7)),
    "efficientnet_v2_s": ("features", (7, 7)),
    "googlenet": ("inception5b", (7, 7)),
    "inception_v3": ("Mixed_7c", (5, 5)),
    "maxvit_t": ("blocks.3", (7, 7)),
    "mnasnet0_5": ("layers", (7, 7)),
    "mnasnet0_75": ("layers", (7, 7)),
    "mnasnet1_0": ("layers", (7, 7)),
    "mnasnet1_3": ("layers", (7, 7)),
    "mobilenet_v2": ("features", (7, 7)),
    "mobilenet_v3_large": ("features", (7, 7)),
    "mobilenet_v3_small": ("features", (7, 7)),
    "regnet_x_16gf": ("trunk_output", (7, 7)),
    "regnet_x_1_6gf": ("trunk_output", (7, 7)),
    "regnet_x_32gf": ("trunk_output", (7, 7)),
    "regnet_x_3_2gf": ("trunk_output", (7, 7)),
    "regnet_x_400mf": ("trunk_output", (7, 7)),
    "regnet_x_800mf": ("trunk_output", (7, 7)),
    "regnet_x_8gf": ("trunk_output", (7, 7)),
    "regnet_y_128gf": ("trunk_output", (7, 7)),
    "regnet_y_16gf": ("trunk_output", (7, 7)),
    "regnet_y_1_6gf": ("trunk_output", (7, 7)),
    "regnet_y_32gf": ("trunk_output", (7, 7)),
    "regnet_y_3_2gf": ("trunk_output", (7, 7)),
    "regnet_y_400mf": ("trunk_output", (7, 7)),
    "regnet_y_800mf": ("trunk_output", (7, 7)),
    "regnet_y_8gf": ("trunk_output", (7, 7)),
    "resnet101": ("layer4", (7, 7)),
    "resnet152": ("layer4", (7, 7)),
    "resnet18": ("layer4", (7, 7)),
    "resnet34": ("layer4", (7, 7)),
    "resnet50": ("layer4", (7, 7)),
    "resnext101_32x8d": ("layer4", (7, 7)),
    "resnext101_64x4d": ("layer4", (7, 7)),
    "resnext50_32x4d": ("layer4", (7, 7)),
    "shufflenet_v2_x0_5": ("conv5", (7, 7)),
    "shufflenet_v2_x1_0": ("conv5", (7, 7)),
    "shufflenet_v2_x1_5": ("conv5", (7, 7)),
    "shufflenet_v2_x2_0": ("conv5", (7, 7)),
    "squeezenet1_0": ("features", (13, 13)),
    "squeezenet1_1": ("features", (13, 13)),
    "swin_b": ("norm", (7, 7)),
    "swin_s": ("norm", (7, 7)),
    "swin_t": ("norm", (7, 7)),
    "swin_v2_b": ("norm", (7, 7)),
    "swin_v2_s": ("norm", (7, 7)),
    "swin_v2_t": ("norm", (7, 7)),
    "vgg11": ("features.19", (14, 14)),
    "vgg11_bn": ("features.27", (14, 14)),
    "vgg13": ("features.23", (14, 14)),
    "vgg13_bn": ("features.33", (14, 14)),
    "vgg16": ("features.29", (14, 14)),
    "vgg16_bn": ("features.42", (14, 14)),
    "vgg19": ("features.35", (14, 14)),
    "vgg19_bn": ("features.51", (14, 14)),
    "vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", (14, 14)),
    "vit_b_32": ("encoder.layers.encoder_layer_11.ln_1", (7, 7)),
    "vit_h_14": ("encoder.layers.encoder_layer_31.ln_1", (16, 16)),
    "vit_l_16": ("encoder.layers.encoder_layer_23.ln_1", (14, 14)),
    "vit_l_32": ("encoder.layers.encoder_layer_23.ln_1", (7, 7)),
    "wide_resnet101_2": ("layer4", (7, 7)),
    "wide_resnet50_2": ("layer4", (7, 7)),
}
"""The layer for each builder and its grid for pictures of 224 x 224, by reading the models' code."""

ONE_OF_EACH = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
)
"""A small network of each module of torchvision.models."""

NEVER = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Linear,
    nn.Flatten,
    nn.Dropout,
)


def build(name: str) -> nn.Module:
    """A builder's network with random weights; heads that torchvision initialises with zeros get some too."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the networks of the tests that take a ``builder``."""
    if "builder" in metafunc.fixturenames:
        metafunc.parametrize("builder", EXPECTED if metafunc.config.getoption("--all-models") else ONE_OF_EACH)


def test_table_covers_every_classification_builder() -> None:
    builders = torchvision.models.list_models(module=torchvision.models)
    assert len(builders) == 80
    assert sorted(EXPECTED) == sorted(builders)


def test_one_of_each_covers_every_module_of_torchvision() -> None:
    modules = [torchvision.models.get_model_builder(name).__module__ for name in ONE_OF_EACH]
    assert len(modules) == len(set(modules))
    assert set(modules) == {torchvision.models.get_model_builder(name).__module__ for name in EXPECTED}


def test_grad_cam_on_the_layer_that_is_found(builder: str) -> None:
    model = build(builder)
    layer, grid = EXPECTED[builder]
    cam = camlib.GradCAM(model, relu=False)
    explanation = cam(torch.rand(1, 3, 224, 224), 7)
    assert explanation.layer == layer
    assert explanation.maps.shape == (1, *grid)
    assert explanation.maps.isfinite().all()
    assert explanation.maps.abs().amax() > 0, "the gradient is zero"
    assert explanation.maps.amax() > explanation.maps.amin(), "the map is the same everywhere"
    found = model.get_submodule(layer)
    assert not isinstance(found, NEVER)
    assert not any(part in layer for part in ("aux", "classifier", "head", "fc", "conv_proj", "patch", "pool"))
    del cam, model, found, explanation
    gc.collect()


def test_zero_initialised_head_does_not_mislead() -> None:
    """torchvision's ViT starts with a head of zeros: every gradient is zero, the connections are not."""
    model = torchvision.models.vit_b_32(weights=None)
    assert not model.heads.head.weight.any()
    assert camlib.find_layer(model, torch.rand(1, 3, 224, 224)) == EXPECTED["vit_b_32"][0]


@pytest.mark.parametrize(
    ("name", "size", "layer", "grid"),
    [
        ("resnet18", (32, 32), "layer3", (2, 2)),
        ("resnet50", (32, 32), "layer3", (2, 2)),
        ("resnet18", (224, 320), "layer4", (7, 10)),
        ("vgg11", (96, 160), "features.19", (6, 10)),
        ("swin_t", (96, 160), "norm", (3, 5)),
        ("swin_v2_t", (160, 96), "norm", (5, 3)),
        ("convnext_tiny", (64, 96), "features", (2, 3)),
        ("mobilenet_v2", (64, 96), "features", (2, 3)),
        ("densenet121", (96, 64), "features", (3, 2)),
    ],
)
def test_small_and_oblong_pictures(name: str, size: tuple[int, int], layer: str, grid: tuple[int, int]) -> None:
    explanation = camlib.GradCAM(build(name), relu=False)(torch.rand(2, 3, *size), 7)
    assert explanation.layer == layer
    assert explanation.maps.shape == (2, *grid)
    assert explanation.heatmaps().shape == (2, *size)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_transformer_grids_have_the_patches_where_they_are_in_the_picture(name: str) -> None:
    """Features of a patch change most where the picture was changed: the grid is not transposed or shifted."""
    model = build(name)
    layer = "encoder.layers.encoder_layer_0.ln_1" if name == "vit_b_32" else EXPECTED[name][0]
    picture = torch.rand(1, 3, 224, 224)
    changed = picture.clone()
    changed[..., 0:32, 160:192] = 1 - changed[..., 0:32, 160:192]  # row 0, column 5 of 7 x 7
    cells = []
    for x in (picture, changed):
        with torch.no_grad(), camlib.capture(model, layer) as captured:
            model(x)
        layout = layout_of(model, model.get_submodule(layer), tuple(captured.activations.shape), (224, 224))
        cells.append(layout.to_grid(captured.activations))
    difference = (cells[1] - cells[0]).abs().sum(1)[0]
    assert divmod(int(difference.argmax()), 7) == (0, 5)


def test_gray_stems_and_double_precision() -> None:
    model = build("resnet18")
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3)
    model.double()
    explanation = camlib.GradCAM(model)(torch.rand(2, 1, 96, 96, dtype=torch.float64))
    assert explanation.layer == "layer4"
    assert explanation.maps.dtype == torch.float64


def test_headless_networks_that_return_embeddings() -> None:
    def norm(embedding: Tensor) -> Tensor:
        return embedding.square().sum(1)

    model = build("resnet18")
    model.fc = nn.Identity()
    assert camlib.GradCAM(model)(torch.rand(2, 3, 64, 64), norm).layer == "layer4"
