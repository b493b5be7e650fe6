"""Balanced gradients: the equation, completeness, the rule of each operation, and what has no rule."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import camlib
from camlib.passes.balancing import BalancedGradients
from tests import equations
from tests.networks import small_cnn


class RMSNorm(nn.Module):
    """Written by hand, as in Hugging Face's language models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.scale = nn.Parameter(torch.randn(width))
        self.gate, self.up = nn.Linear(width, 2 * width, bias=bias), nn.Linear(width, 2 * width, bias=bias)
        self.down = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.scale * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class SmallTransformer(nn.Module):
    """A class token and patches; LayerNorm, RMSNorm, attention, LayerScale and SwiGLU."""

    def __init__(self, bias: bool = True, width: int = 6) -> None:
        super().__init__()
        self.grid = (2, 3)
        self.patches = nn.Conv2d(3, width, 2, stride=2, bias=bias)
        self.token, self.positions = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(7, width))
        self.entry = nn.Identity()
        self.blocks = nn.ModuleList([Block(width, 2, bias), Block(width, 3, bias)])
        self.norm, self.head = nn.LayerNorm(width, bias=bias), nn.Linear(width, 4, bias=bias)

    def tokens(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).mT
        return torch.cat([self.token.expand(len(images), 1, -1), patches], 1) + self.positions

    def forward(self, images: Tensor) -> Tensor:
        x = self.entry(self.tokens(images))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def small_transformer(bias: bool = True) -> SmallTransformer:
    model = SmallTransformer(bias).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def images(count: int = 2, *size: int) -> Tensor:
    return torch.randn(count, 3, *(size or (4, 6)), dtype=torch.float64)


def gradients(scores: Tensor, outputs: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
    """Balanced gradients of scores (N,); zero for a tensor on which the scores do not depend."""
    BalancedGradients(points[:1]).prepare(scores, [outputs])
    return torch.autograd.grad(scores.sum(), points, materialize_grads=True, allow_unused=True)


# The equation -------------------------------------------------------------------------------------------------------


def test_the_map_is_the_equation_with_each_jacobian_written_out() -> None:
    model, inputs, target = small_transformer(), images(3), [1, 3, 0]
    explanation = camlib.LibraGrad(model, relu=False)(inputs, target)
    equations.assert_close(explanation.maps, *equations.libra_grad(model, inputs, target), 1e-12)
    assert explanation.layer == "entry"
    assert explanation.method == "libra_grad"
    plain = camlib.HiResCAM(model, "entry", relu=False)(inputs, target)
    assert (plain.maps - explanation.maps).abs().amax() > 0.1 * explanation.maps.abs().amax()
    assert torch.equal(plain.scores, explanation.scores)


def test_it_is_balanced_hires_cam_and_classes_together_equal_each_alone() -> None:
    model, inputs = small_transformer(), images()
    together = camlib.LibraGrad(model)(inputs, camlib.TopK(3))
    hires = camlib.balanced(camlib.HiResCAM(model, "entry"))
    for k in range(3):
        torch.testing.assert_close(
            hires(inputs, together.target[:, k]).maps, together.maps[:, k], rtol=1e-12, atol=1e-12
        )


# Completeness -------------------------------------------------------------------------------------------------------

ADDED = ("bias", "token", "positions", "pos_embed", "pos_embedding", "position_embeddings")
"""How the names of parameters end that a network adds to its features."""


def vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    return model


def timm_network(name: str, **options: Any) -> nn.Module:
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 4}
    return timm.create_model(name, **size | options)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OF_IMAGES = {"image_size": 32, "patch_size": 8, "num_labels": 4}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": vit,
    "timm": lambda: timm_network("vit_tiny_patch16_224"),
    "timm, attention by hand, registers": lambda: timm_network("vit_tiny_patch16_224", reg_tokens=2, qk_norm=True),
    "timm, SwiGLU": lambda: timm_network("eva02_tiny_patch14_224"),
    "timm, talking heads": lambda: timm_network("cait_xxs24_224"),
    "timm, without attention": lambda: MlpMixer(
        4,
        img_size=32,
        patch_size=8,
        num_blocks=2,
        embed_dim=16,
        mlp_ratio=2,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
    ),
    "Hugging Face": lambda: ViTForImageClassification(ViTConfig(**SMALL, **OF_IMAGES)),
    "Hugging Face, attention by hand, SwiGLU, LayerScale": lambda: Dinov2ForImageClassification(
        Dinov2Config(**SMALL, **OF_IMAGES, use_swiglu_ffn=True, attn_implementation="eager")
    ),
    "windows": lambda: torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=4),
    "ConvNeXt V2": lambda: timm.create_model(
        "convnextv2_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_classes=4
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_input_times_gradient_and_all_that_is_added_sum_to_the_score(name: str) -> None:
    model = NETWORKS[name]().double().eval()
    for parameter in model.parameters():
        if parameter.dim() < 2 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    added = [
        one
        for name, one in model.named_parameters()
        if name.endswith(ADDED) and "relative" not in name and "mask_token" not in name
    ]
    inputs = images(2, 32, 32).requires_grad_()
    outputs = model(inputs)
    outputs = outputs if isinstance(outputs, Tensor) else outputs.logits
    scores = outputs[:, 2]
    of_plain = torch.autograd.grad(scores.sum(), [inputs, *added], retain_graph=True, allow_unused=True)
    of_balanced = gradients(scores, outputs, inputs, *added)

    def residual(found: tuple[Tensor | None, ...]) -> float:
        terms = [(a * b).sum() for a, b in zip([inputs, *added], found, strict=True) if b is not None]
        return abs(scores.sum() - sum(terms)).item() / sum(abs(term) for term in terms).item()

    assert residual(of_balanced) < 1e-12
    assert residual(of_plain) > 1e-4


def test_a_map_sums_to_the_score_if_nothing_is_added() -> None:
    model, inputs = small_transformer(bias=False), images(3)
    nn.init.zeros_(model.token)
    nn.init.zeros_(model.positions)
    explanation = camlib.LibraGrad(model, relu=False)(inputs, 2)
    torch.testing.assert_close(explanation.maps.sum((1, 2)), explanation.scores, rtol=1e-12, atol=1e-12)


def test_a_language_models_embeddings_times_gradient_sum_to_the_score() -> None:
    """RMSNorm by hand, in single precision; rotary positions, grouped queries, SwiGLU, and no biases."""
    sizes = {"vocab_size": 20, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **sizes)).double().eval()
    words = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    logits = model(inputs_embeds=words).logits
    scores = logits[:, -1, 3]
    (found,) = gradients(scores, logits, words)
    torch.testing.assert_close((words * found).sum((1, 2)), scores, rtol=1e-5, atol=1e-8)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 6, bias=False),
    "layer norm": lambda: nn.LayerNorm(6, bias=False),
    "rms norm": lambda: RMSNorm(6),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "swiglu": lambda: Written(lambda x: F.silu(x.flip(-1)) * x.roll(1, -1)),
    "attention": lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True, bias=False),
    "attention by hand": lambda: Written(lambda x: (x @ x.mT).softmax(-1) @ x),
    "skip": lambda: Written(lambda x: x + F.mish(x)),
}


class Written(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_sequence_of_parts_without_biases_is_complete(names: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(*(PARTS[name]() for name in names)).double().eval()
    tokens = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    outputs = model(tokens)
    scores = outputs[:, 1, 2]
    (found,) = gradients(scores, outputs, tokens)
    products = (tokens * found).flatten(1)
    torch.testing.assert_close(products.sum(1), scores, rtol=0, atol=1e-11 * (1 + products.abs().sum().item()))


# Each rule ----------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu by hand": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu by hand, tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0)))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, alpha=0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "square": lambda x: x**2,
    "squared relu": lambda x: F.relu(x).square(),
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2], dtype=x.dtype)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_of_an_activation_is_its_gate(name: str) -> None:
    x = torch.tensor([[-30.0, -2.0, -0.3, -1e-9, 1e-9, 0.4, 2.0, 30.0]], dtype=torch.float64, requires_grad=True)
    outputs = ACTIVATIONS[name](x)
    (found,) = gradients(outputs.sum(1), outputs, x)
    torch.testing.assert_close(found, (outputs / x).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if "relu" not in name])
def test_the_gradient_at_zero_is_the_limit(name: str) -> None:
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    outputs = ACTIVATIONS[name](x)
    (found,) = gradients(outputs.sum(1), outputs, x)
    nearby = torch.tensor(-1e-8, dtype=torch.float64)
    torch.testing.assert_close(found, (ACTIVATIONS[name](nearby) / nearby).expand(1, 1), rtol=0, atol=1e-6)


def centred(x: Tensor, *axes: int) -> Tensor:
    return x - x.mean(axes, keepdim=True)


def deviation(x: Tensor, *axes: int) -> Tensor:
    return (centred(x, *axes) ** 2).mean(axes, keepdim=True).add(1e-5).sqrt().detach()


WEIGHT = torch.arange(1.0, 7).double()

NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer": (lambda x: F.layer_norm(x, (4,)), lambda x: centred(x, -1) / deviation(x, -1)),
    "layer, weighted, two axes": (
        lambda x: F.layer_norm(x, (3, 4), WEIGHT.repeat(2).view(3, 4)),
        lambda x: WEIGHT.repeat(2).view(3, 4) * centred(x, -2, -1) / deviation(x, -2, -1),
    ),
    "rms": (
        lambda x: F.rms_norm(x, (4,), WEIGHT[:4], 1e-6),
        lambda x: WEIGHT[:4] * x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt().detach(),
    ),
    "rms, a power": (
        lambda x: x * torch.pow(x.pow(2).mean(-1, keepdim=True), -0.5),
        lambda x: x * x.pow(2).mean(-1, keepdim=True).pow(-0.5).detach(),
    ),
    "group": (
        lambda x: F.group_norm(x, 3, WEIGHT),
        lambda x: (
            WEIGHT.view(6, 1, 1)
            * (centred(x.unflatten(1, (3, 2)), 2, 3, 4) / deviation(x.unflatten(1, (3, 2)), 2, 3, 4)).flatten(1, 2)
        ),
    ),
    "instance": (
        lambda x: F.instance_norm(x, weight=WEIGHT),
        lambda x: WEIGHT.view(6, 1, 1) * centred(x, 2, 3) / deviation(x, 2, 3),
    ),
    "unit vectors": (lambda x: F.normalize(x, dim=1), lambda x: x / x.norm(dim=1, keepdim=True).detach()),
    "global response": (
        lambda x: x * (x.norm(dim=(2, 3), keepdim=True) / x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True)),
        lambda x: (
            x * (x.norm(dim=(2, 3), keepdim=True) / x.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True)).detach()
        ),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_a_norm_is_constant(name: str) -> None:
    norm, by_hand = NORMS[name]
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    start = torch.randn_like(x)
    (expected,) = torch.autograd.grad((by_hand(x) * start).sum(), x)
    outputs = norm(x)
    scores = (outputs * start).flatten(1).sum(1)
    (found,) = gradients(scores, outputs, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def half(x: Tensor) -> Tensor:
    """The same value, with half of the gradient."""
    return x.detach() + (x - x.detach()) / 2


PRODUCTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "of features": (lambda x: x[:, :2] * x[:, 2:], lambda x: half(x[:, :2] * x[:, 2:])),
    "of matrices": (lambda x: x @ x.mT, lambda x: half(x @ x.mT)),
    "of a sum": (
        lambda x: torch.einsum("ntc,nsc->nts", x, x.flip(1)),
        lambda x: half(torch.einsum("ntc,nsc->nts", x, x.flip(1))),
    ),
    "with a sigmoid of pooled features": (
        lambda x: x * x.mean(2, keepdim=True).relu().sigmoid(),
        lambda x: x * x.mean(2, keepdim=True).relu().sigmoid().detach(),
    ),
    "gated": (lambda x: F.glu(x, 1), lambda x: x[:, :2] * x[:, 2:].sigmoid().detach()),
    "of a tanh and its gate": (
        lambda x: x[:, :2] * (x[:, :2].tanh() * x[:, 2:].sigmoid()).sigmoid(),
        lambda x: x[:, :2] * (x[:, :2].tanh() * x[:, 2:].sigmoid()).sigmoid().detach(),
    ),
    "with weights, mixed": (
        lambda x: ((x @ x.mT).softmax(-1) @ torch.ones(4, 4).double().tril() / 2 - 1) @ x,
        lambda x: (((x @ x.mT).softmax(-1) @ torch.ones(4, 4).double().tril() / 2 - 1).detach()) @ x,
    ),
    "quotient": (lambda x: x[:, :2] / (x[:, 2:] ** 2 + 1), lambda x: x[:, :2] / (x[:, 2:] ** 2 + 1).detach()),
    "softmax by hand": (
        lambda x: (x.exp() / x.exp().sum(1, keepdim=True) * x).sum(1),
        lambda x: (x.softmax(1).detach() * x).sum(1),
    ),
    "padding in circles": (lambda x: F.pad(x, (1, 1), mode="circular"), lambda x: x[..., [3, 0, 1, 2, 3, 0]]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_features_share_a_product_and_weights_and_gates_are_constant(name: str) -> None:
    function, by_hand = PRODUCTS[name]
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    outputs = function(x)
    start = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad((by_hand(x) * start).sum(), x)
    (found,) = gradients((outputs * start).flatten(1).sum(1), outputs, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", [None, "boolean", "additive", "causal"])
def test_attention_passes_gradients_through_its_values_alone(mask: str | None) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    given = {
        None: None,
        "boolean": ~allowed,
        "additive": torch.randn(5, 5).double(),
        "causal": torch.zeros(5, 5).double().masked_fill(~allowed, -torch.inf),
    }[mask]
    _, _, value_weight = attention.in_proj_weight.chunk(3)
    with torch.no_grad():
        weights = attention(x, x, x, attn_mask=given, average_attn_weights=False)[1]
    start = torch.randn_like(x)
    values = F.linear(x, value_weight).unflatten(2, (2, 4)).transpose(1, 2)
    by_hand = F.linear((weights @ values).transpose(1, 2).flatten(2), attention.out_proj.weight)
    (expected,) = torch.autograd.grad((by_hand * start).sum(), x)
    for options in ({"need_weights": False}, {}):
        outputs = attention(x, x, x, attn_mask=given, **options)[0]
        (found,) = gradients((outputs * start).flatten(1).sum(1), outputs, x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# What stays as it was -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [camlib.GradCAM, camlib.HiResCAM, camlib.LayerCAM, camlib.FullGrad])
def test_convolutional_networks_have_their_ordinary_gradients(kind: type[camlib.methods.Method]) -> None:
    model, inputs = small_cnn(), torch.rand(2, 3, 32, 32)
    assert torch.equal(camlib.balanced(kind(model))(inputs).maps, kind(model)(inputs).maps)


def test_outputs_and_scores_are_the_plain_ones_to_the_last_bit() -> None:
    model, inputs = vit().eval(), torch.randn(2, 3, 32, 32)
    plain, balanced = camlib.HiResCAM(model)(inputs), camlib.balanced(camlib.HiResCAM(model))(inputs)
    assert torch.equal(plain.outputs, balanced.outputs)
    assert torch.equal(plain.scores, balanced.scores)
    assert (plain.maps - balanced.maps).abs().amax() > 0.01 * plain.maps.amax()


METHODS = ["grad_cam_plus_plus", "smooth_grad_cam_plus_plus", "x_grad_cam", "eigen_grad_cam", "finer_cam"]


@pytest.mark.parametrize("name", METHODS)
def test_any_method_of_gradients_reads_the_balanced_ones(name: str) -> None:
    """The maps are those of a network whose factors are constants in the forward pass as well."""

    class Frozen(nn.Module):
        """A network that multiplies by the gates of the given images."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
            self.last, self.head = nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(F.relu(self.stem(x)))
            gate = x.sigmoid() if self.plain else x.sigmoid().detach()
            return self.head(self.last(x * gate).mean((2, 3)))

    model = Frozen().eval()
    explainer = camlib.balanced(camlib.create(name, model, "layer"))
    inputs = torch.randn(2, 3, 8, 8)
    model.plain = True
    found, plain = explainer(inputs, 1), explainer.on(model)
    plain.network = camlib.create(name, model, list(explainer.layers)).network
    ordinary = plain(inputs, 1)
    model.plain = False
    torch.testing.assert_close(plain(inputs, 1).maps, found.maps)
    assert not torch.allclose(ordinary.maps, found.maps)
    assert found.method == f"balanced {name}"


def test_a_balanced_method_is_a_copy_that_keeps_its_gradients() -> None:
    model, inputs = vit(), torch.randn(2, 3, 32, 32)
    plain = camlib.LayerCAM(model, relu=False)
    balanced = camlib.balanced(plain)
    assert repr(balanced) == "balanced LayerCAM(VisionTransformer, layer=to be found)"
    assert repr(camlib.LibraGrad(balanced.model)) == "LibraGrad(VisionTransformer, layer=to be found)"
    expected = balanced(inputs).maps
    for other in (balanced.on(vit()), pickle.loads(pickle.dumps(balanced)), camlib.balanced(balanced)):
        other.model.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(inputs).maps, expected)
    comparison = camlib.compare(model, inputs, ["hires_cam", plain, balanced, "libra_grad"])
    assert list(comparison) == ["hires_cam", "layer_cam", "balanced layer_cam", "libra_grad"]
    torch.testing.assert_close(comparison["layer_cam"].maps, plain(inputs).maps)
    torch.testing.assert_close(comparison["balanced layer_cam"].maps, expected)
    averaged = camlib.NoiseAveraging(balanced, samples=1)(inputs)
    assert averaged.method == "balanced layer_cam, noise averaging"


def test_frozen_parameters_and_targets_do_not_matter() -> None:
    model, inputs = small_transformer(), images()
    cam = camlib.LibraGrad(model, relu=False)
    expected = cam(inputs, 1).maps
    by_function = cam(inputs, lambda outputs: 2 * outputs[:, 1]).maps
    torch.testing.assert_close(by_function, 2 * expected)
    model.requires_grad_(False)
    torch.testing.assert_close(cam(inputs, 1).maps, expected, rtol=1e-12, atol=1e-12)


def test_the_layer_is_what_enters_the_first_block() -> None:
    found = {
        "torchvision": camlib.LibraGrad(vit())(torch.rand(1, 3, 32, 32)).layer,
        "timm": camlib.LibraGrad(NETWORKS["timm"]())(torch.rand(1, 3, 32, 32)).layer,
        "Hugging Face": camlib.LibraGrad(NETWORKS["Hugging Face"]())(torch.rand(1, 3, 32, 32)).layer,
        "no branches": camlib.LibraGrad(small_cnn())(torch.rand(1, 3, 32, 32)).layer,
    }
    assert found == {
        "torchvision": "encoder.dropout",
        "timm": "pos_drop",
        "Hugging Face": "vit.embeddings",
        "no branches": camlib.find_layer(small_cnn(), torch.rand(1, 3, 32, 32)),
    }


# What has no rule ---------------------------------------------------------------------------------------------------


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Mul(torch.autograd.Function):
    """A custom function that has the name of an operation of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a hidden tanh": (torch.tanh, "depends on Tanh .* otherwise than as a factor"),
    "a hidden sigmoid": (torch.sigmoid, "depends on Sigmoid .* otherwise than as a factor"),
    "an exponential": (torch.exp, "depends on Exp"),
    "a square root": (lambda x: x.abs() ** 0.5, "depends on Pow .* otherwise than as a factor"),
    "a power of a tensor": (lambda x: x.abs() ** torch.ones(1), "Pow with a tensor"),
    "a reciprocal": (lambda x: 1 / (x + 9), "depends on (Reciprocal|Div)"),
    "a rounded quotient": (lambda x: torch.div(x, 0.1, rounding_mode="floor"), "Div with rounding .*no rule"),
    "a sine": (torch.sin, "depends on Sin .*no rule"),
    "a custom kernel": (Custom.apply, "depends on CustomBackward .*no rule.*flash-attn"),
    "a custom kernel with the name of a product": (Mul.apply, "depends on MulBackward .*no rule.*flash-attn"),
    "an ELU in place": (lambda x: F.elu(x.clone(), inplace=True), "Elu in place"),
    "a part in place": (lambda x: in_place(x.clone()), "depends on CopySlices"),
    "weights that are features": (lambda x: x.flatten(1).softmax(1), "depends on Softmax"),
    "recurrence": (lambda x: nn.LSTM(8, 8)(x.mean((2, 3)))[0], "no rule|otherwise"),
}


def in_place(x: Tensor) -> Tensor:
    x[:, :2].tanh_()
    return x


class After(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Conv2d(3, 8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x)).flatten(1)[:, :4]


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_a_rule_is_named(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(camlib.CamlibRuntimeError, match=message):
        camlib.balanced(camlib.HiResCAM(After(function), "layer"))(
            torch.rand(2, 3, 8, 8), lambda outputs: outputs[:, 0]
        )


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return (x * self.gate(x).sigmoid()).mean((2, 3))


def test_backward_hooks_of_modules_change_nothing() -> None:
    block, images = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU()), torch.rand(2, 3, 8, 8)
    cam = camlib.balanced(camlib.HiResCAM(After(block), "layer", relu=False))
    expected = cam(images, 1).maps
    block.register_full_backward_hook(lambda module, of_inputs, of_outputs: None)
    assert torch.equal(cam(images, 1).maps, expected)


def test_layers_of_gates_are_refused_with_the_reason() -> None:
    for layers, why in (("gate", "computes a gate"), (["layer", "gate"], "only through weights, gates or scales")):
        with pytest.raises(camlib.CamlibRuntimeError, match=why):
            camlib.balanced(camlib.HiResCAM(Gated(), layers))(torch.rand(2, 3, 8, 8), 1)


def test_a_constant_divided_by_features_is_a_scale() -> None:
    gain = nn.Parameter(torch.rand(8, 1, 1))
    cam = camlib.balanced(camlib.HiResCAM(After(lambda x: x * (gain / x.norm(dim=1, keepdim=True))), "layer"))
    plain = camlib.balanced(camlib.HiResCAM(After(lambda x: gain * x / x.norm(dim=1, keepdim=True)), "layer"))
    plain.model.load_state_dict(cam.model.state_dict())
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(cam(images, 1).maps, plain(images, 1).maps)


def test_operations_behind_weights_and_outputs_need_no_rule() -> None:
    """Cosines of positions in the query; and a target that is not linear."""

    def function(x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return ((tokens.cos() @ tokens.sin().mT).softmax(-1) @ tokens).mean(1)

    cam = camlib.balanced(camlib.HiResCAM(After(function), "layer"))
    assert cam(torch.rand(2, 3, 8, 8), camlib.targets.Probability(1)).maps.any()
    assert cam(torch.rand(2, 3, 8, 8), lambda outputs: outputs[:, 0].tanh()).maps.any()


def test_outputs_inside_the_network_change_nothing() -> None:
    """Attention weights among the outputs are no end of a path, though the score depends on them."""
    model, inputs = NETWORKS["Hugging Face, attention by hand, SwiGLU, LayerScale"](), torch.rand(1, 3, 32, 32)
    cam = camlib.LibraGrad(model, forward=lambda model, inputs: model(inputs, output_attentions=True))
    torch.testing.assert_close(cam(inputs).maps, camlib.LibraGrad(model)(inputs).maps)


def test_methods_without_gradients_or_with_others_are_refused() -> None:
    model = vit()
    refused = "eigen_cam", "score_cam", "le_grad", "integrated_gradients", "guided_backprop", "guided_grad_cam", "sobel"
    for name in refused:
        with pytest.raises(camlib.CamlibTypeError, match="reads no such gradients, or changes them itself"):
            camlib.balanced(camlib.create(name, model))
    for wrong in (camlib.GradCAM, model, "grad_cam", camlib.NoiseAveraging(camlib.GradCAM(model))):
        with pytest.raises(camlib.CamlibTypeError, match="takes a method"):
            camlib.balanced(wrong)
    with pytest.raises(camlib.CamlibRuntimeError, match="no second derivatives"):
        camlib.balanced(camlib.ShapleyCAM(model))(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_balanced_or_refused(reentrant: bool) -> None:
    class Checkpointed(SmallTransformer):
        def forward(self, images: Tensor) -> Tensor:
            x = self.entry(self.tokens(images))
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.head(self.norm(x)[:, 0])

    model, inputs = Checkpointed().double().eval(), images()
    cam = camlib.LibraGrad(model, "entry", relu=False)
    if reentrant:
        with pytest.raises(camlib.CamlibRuntimeError, match="checkpoint"):
            cam(inputs, 1)
    else:
        equations.assert_close(cam(inputs, 1).maps, *equations.libra_grad(model, inputs, [1, 1]), 1e-12)
