"""The tail behind the layer that is found needs that layer alone, in every family of classifiers but one."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import camlib

FAMILIES = [
    "alexnet", "vgg11", "squeezenet1_1", "resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t",
]  # fmt: skip


def rows_through(model: nn.Module) -> list[int]:
    """How many images each forward pass of the model holds, from now on."""
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_cam_runs_the_trunk_once_in_every_family(family: str) -> None:
    torch.manual_seed(0)
    model, images = torchvision.models.get_model(family, weights=None, num_classes=5).eval(), torch.rand(2, 3, 64, 64)
    layer = camlib.find_layer(model, images)
    rows = rows_through(model)
    explanation = camlib.AblationCAM(model, layer, relu=False)(images, 1)  # a warning would be an error
    assert sum(rows) == 2
    assert (explanation.maps.flatten(1).std(1) > 0).all()


@pytest.mark.parametrize("images", [1, 3])
def test_behind_the_norm_of_a_vision_transformers_block_the_whole_network_is_needed(images: int) -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4).double().eval()
    nn.init.normal_(model.heads.head.weight)
    pictures = torch.rand(images, 3, 32, 32, dtype=torch.float64)
    rows = rows_through(model)
    explainer = camlib.AblationCAM(model, "encoder.layers.encoder_layer_1.ln_1", relu=False)
    with pytest.warns(camlib.CamlibWarning, match="needs more than that layer's output"):
        maps = explainer(pictures, 1).maps
    assert sum(rows) == images * (1 + 1 + 8)  # as they are, to check the tail, and each of 8 channels
    with pytest.warns(camlib.CamlibWarning):
        alone = torch.cat([explainer(one[None], 1).maps for one in pictures])
    torch.testing.assert_close(maps, alone, rtol=1e-9, atol=1e-12)
