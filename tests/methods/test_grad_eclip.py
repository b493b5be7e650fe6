"""Grad-ECLIP on vision transformers and CLIP's image tower, in terms of queries, keys, values and outputs."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import camlib
from tests import equations
from tests.methods.test_le_grad import images, timm_vit, vit


def last_of_vit(model: nn.Module, inputs: Tensor, classes: list[int], blocks: int = 1) -> equations.MapsAndScale:
    """The equation for torchvision's transformer, written out, at the last blocks; added over them."""
    tokens = model.conv_proj(inputs).flatten(2).mT
    tokens = torch.cat([model.class_token.expand(len(inputs), -1, -1), tokens], 1) + model.encoder.pos_embedding
    parts, outputs = [], []
    for block in model.encoder.layers:
        mixer = block.self_attention
        packed = block.ln_1(tokens) @ mixer.in_proj_weight.T + mixer.in_proj_bias
        parts.append(packed.chunk(3, 2))
        query, key, value = (one.unflatten(2, (mixer.num_heads, -1)).transpose(1, 2) for one in parts[-1])
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(3)
        outputs.append((attention @ value).transpose(1, 2).flatten(2))
        tokens = tokens + mixer.out_proj(outputs[-1])
        tokens = tokens + block.mlp(block.ln_2(tokens))
    logits = model.heads(model.encoder.ln(tokens)[:, 0])
    score = logits[range(len(inputs)), classes].sum()
    maps = []
    for gradient, (q, k, v) in list(zip(torch.autograd.grad(score, outputs), parts, strict=True))[-blocks:]:
        maps.append(equations.grad_eclip(gradient[:, 0], v[:, 1:], q[:, 0], k[:, 1:], (4, 4)))
    summed, scales = (torch.stack(one).sum(0) for one in zip(*maps, strict=True))
    return summed, scales


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_map_is_the_papers_in_terms_of_values(blocks: int) -> None:
    model, inputs = vit(layers=3), images(3)
    expected, scale = last_of_vit(model, inputs, [1, 2, 0], blocks)
    signed = camlib.GradECLIP(model, blocks=blocks, relu=False)(inputs, [1, 2, 0])
    equations.assert_close(signed.maps, expected, scale, 1e-12)
    assert expected.amin() < 0 < expected.amax()
    if blocks == 1:
        assert torch.equal(camlib.GradECLIP(model)(inputs, [1, 2, 0]).maps, signed.maps.relu())
    several = camlib.GradECLIP(model, blocks=blocks, relu=False)(inputs, [[0, 1], [1, 2], [2, 0]]).maps
    torch.testing.assert_close(several[:, 1], signed.maps)


def test_the_image_tower_of_clip_is_explained_by_its_similarity_with_a_text() -> None:
    torch.manual_seed(0)
    kind = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPVisionConfig(**kind, image_size=32, patch_size=8, projection_dim=6, initializer_range=0.5)
    model, inputs, text = CLIPVisionModelWithProjection(config).double().eval(), images(), torch.randn(6).double()
    found: dict[str, Tensor] = {}
    *_, attention = (module for name, module in model.named_modules() if name.endswith("self_attn"))
    for name in ("q_proj", "k_proj", "v_proj"):
        attention.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: found.update({name: out}))
    attention.out_proj.register_forward_pre_hook(lambda m, args: found.update(output=args[0]))
    score = torch.cosine_similarity(model(inputs).image_embeds, text, 1).sum()
    (gradient,) = torch.autograd.grad(score, found["output"])
    query, key, value = (found[name] for name in ("q_proj", "k_proj", "v_proj"))
    expected, scale = equations.grad_eclip(gradient[:, 0], value[:, 1:], query[:, 0], key[:, 1:], (4, 4))
    for module in attention.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    explanation = camlib.GradECLIP(model, relu=False)(inputs, camlib.targets.Similarity(text))
    equations.assert_close(explanation.maps, expected, scale, 1e-10)
    model.set_attn_implementation("eager")
    with pytest.raises(camlib.CamlibRuntimeError, match='cannot see queries and keys.*attn_implementation="sdpa"'):
        camlib.GradECLIP(model)(inputs, camlib.targets.Similarity(text))


@pytest.mark.parametrize("options", [{"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}])
def test_registers_are_no_patches_and_all_tokens_read_are_added(options: dict[str, object]) -> None:
    model, inputs = timm_vit(**options), images()
    block = model.blocks[-1].attn
    with torch.no_grad():
        block.fused_attn = True
    found = camlib.GradECLIP(model, relu=False)(inputs, 1).maps
    packed: list[Tensor] = []
    outputs: list[Tensor] = []
    block.qkv.register_forward_hook(lambda module, args, output: packed.append(output))
    block.proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    (gradient,) = torch.autograd.grad(model(inputs)[:, 1].sum(), outputs)
    query, key, value = packed[0].chunk(3, 2)
    prefix = key.shape[1] - 16
    rows = range(16) if prefix == 0 else [0]
    of_rows = [
        equations.grad_eclip(gradient[:, row], value[:, prefix:], query[:, row], key[:, prefix:], (4, 4))
        for row in rows
    ]
    expected, scale = (torch.stack(one).sum(0) for one in zip(*of_rows, strict=True))
    equations.assert_close(found, expected, scale, 1e-10)


def test_a_user_may_lay_out_the_tokens() -> None:
    model, inputs = vit(), images()
    cam = camlib.GradECLIP(model, reshape=lambda tokens: tokens[:, 1:].mT.unflatten(2, (4, 4)))
    assert torch.equal(cam(inputs, 1).maps, camlib.GradECLIP(model)(inputs, 1).maps)


def test_a_model_that_writes_its_attention_out_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=1)
    model.blocks[-1].attn.fused_attn = False
    with pytest.raises(camlib.CamlibRuntimeError, match="writes its attention out.*fused_attn"):
        camlib.GradECLIP(model)(torch.rand(1, 3, 32, 32), 1)


def test_the_function_refuses_other_shapes() -> None:
    square = torch.rand(2, 3, 4, 4)
    for query, key in ((square[:, :, :3], square), (square, square[:, :2]), (square, square[..., :3])):
        with pytest.raises(camlib.CamlibValueError, match=r"(query|key) must be \(N, heads"):
            camlib.functional.grad_eclip(square, query, key)
