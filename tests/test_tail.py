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


def hugging_face(name: str) -> tuple[nn.Module, int]:
    """A small network of this kind, with the size of its images."""
    import transformers as hf

    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    stages = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "hidden_sizes": [8, 8, 16, 16]}
    windows = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    torch.manual_seed(0)
    made = {
        "Swin": lambda: (hf.SwinForImageClassification(hf.SwinConfig(image_size=32, **windows)), 32),
        "Swin V2": lambda: (hf.Swinv2ForImageClassification(hf.Swinv2Config(image_size=32, **windows)), 32),
        "BEiT": lambda: (hf.BeitForImageClassification(hf.BeitConfig(image_size=32, patch_size=8, **vit)), 32),
        "DINOv2": lambda: (hf.Dinov2ForImageClassification(hf.Dinov2Config(image_size=56, **vit)), 56),
        "SegFormer": lambda: (hf.SegformerForImageClassification(hf.SegformerConfig(**stages)), 64),
        "PVT v2": lambda: (hf.PvtV2ForImageClassification(hf.PvtV2Config(image_size=64, **stages)), 64),
        "MobileViT": lambda: (
            hf.MobileViTForImageClassification(
                hf.MobileViTConfig(
                    image_size=64, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 16, 16, 16],
                    num_attention_heads=2,
                )
            ),
            64,
        ),
    }  # fmt: skip
    model, size = made[name]()
    for parameter in model.parameters():  # as initialised, the logits are nearly the same for all images
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.double().eval(), size


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["Swin", "Swin V2", "BEiT", "DINOv2", "SegFormer", "PVT v2", "MobileViT"])
def test_ablation_cam_runs_the_trunk_of_a_transformer_once(name: str, images: int) -> None:
    """Which reshape by the number of rows, as in ``x.reshape(len(x), 24, -1)``: an error for no rows."""
    model, size = hugging_face(name)
    pictures = torch.rand(images, 3, size, size, dtype=torch.float64)
    layer = "dinov2.layernorm" if name == "DINOv2" else camlib.find_layer(model, pictures)  # which all passes through
    computed = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, args, output: computed.append(args[0]))
    found = camlib.AblationCAM(model, layer, relu=False)(pictures, 1)  # a warning would be an error
    assert sum(len(batch) for batch in computed if type(batch) is torch.Tensor) == images
    assert_ablated(found, model, layer, pictures)


def assert_ablated(found: camlib.Explanation, model: nn.Module, layer: str, pictures: torch.Tensor) -> None:
    """The maps are Ablation-CAM's: each channel is set to zero by a hook, and the whole network runs again."""
    module, size = model.get_submodule(layer), found.maps.shape[1] * found.maps.shape[2]
    with camlib.capture(model, layer) as captured:
        scores = model(pictures).logits[:, 1].detach()
    activations = captured.activations
    tokens = activations.dim() == 3  # (N, tokens, C), the patches last
    channels = activations.shape[-1 if tokens else 1]
    expected = torch.zeros(found.maps.shape, dtype=torch.float64)
    for channel in range(channels):

        def ablate(module, args, output, channel=channel):
            (tensor := (output[0] if isinstance(output, tuple) else output).clone())
            if tokens:
                tensor[:, -size:, channel] = 0
            else:
                tensor[:, channel] = 0
            return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

        hook = module.register_forward_hook(ablate)
        with torch.no_grad():
            lost = scores - model(pictures).logits[:, 1]
        hook.remove()
        own = activations[:, -size:, channel].reshape(expected.shape) if tokens else activations[:, channel]
        expected += (lost / scores.abs())[:, None, None] * own.detach()
    torch.testing.assert_close(found.maps, expected, rtol=1e-6, atol=1e-9 * float(activations.abs().max()))
