"""Generic attention attribution and attention rollout, on encoders, towers, attention pooling and DETR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

import camlib
from tests import equations
from tests.methods.test_le_grad import images, swin, timm_vit, vit
from tests.networks import small_cnn

generic_attention, attention_rollout = camlib.functional.generic_attention, camlib.functional.attention_rollout


@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_the_map_is_the_row_of_the_class_token(blocks: int | None) -> None:
    model, inputs = vit(layers=3), images(3)
    read = equations.vit_attention(model, inputs, lambda outputs: outputs[range(3), [1, 2, 0]])[-(blocks or 3) :]
    explanation = camlib.GenericAttention(model, blocks=blocks)(inputs, [1, 2, 0])
    expected, scale = equations.generic_attention(read, (4, 4), [[0]] * 3)
    equations.assert_close(explanation.maps, expected, scale, 1e-11)
    assert explanation.maps.amin() >= 0
    assert explanation.maps.std() > 0
    rollout = camlib.AttentionRollout(model, blocks=blocks)(inputs, [1, 2, 0])
    expected, scale = equations.attention_rollout([one for one, _ in read], (4, 4), [0] * 3)
    equations.assert_close(rollout.maps, expected, scale, 1e-12)
    assert rollout.class_agnostic


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [0]),
        ({"reg_tokens": 3}, [0]),
        ({"reg_tokens": 3, "class_token": False, "global_pool": "avg"}, range(3, 19)),
        ({"global_pool": "avg"}, range(1, 17)),
    ],
)
def test_the_rows_are_the_tokens_that_the_head_reads(options: dict[str, Any], rows: list[int]) -> None:
    model, inputs = timm_vit(**options), images()
    found = camlib.GenericAttention(model)(inputs, 1)
    rollout = camlib.AttentionRollout(model)(inputs, 1)
    attention: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: attention.append(output))
    gradients = torch.autograd.grad(model(inputs)[:, 1].sum(), attention)
    prefix = attention[0].shape[3] - 16
    read = list(zip(attention, gradients, strict=True))
    expected, scale = equations.generic_attention(read, (4, 4), [rows] * 2, prefix=prefix)
    equations.assert_close(found.maps, expected, scale, 1e-10)
    of_rows = [equations.attention_rollout(attention, (4, 4), [row] * 2, prefix=prefix)[0] for row in rows]
    expected = torch.stack(of_rows).mean(0)
    equations.assert_close(rollout.maps, expected, expected, 1e-10)


def test_both_tokens_of_a_distilled_network_are_read() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=4, depth=2).double().eval()
    for head in (model.head, model.head_dist):
        nn.init.normal_(head.weight)
    inputs = images(2, 64, 64)
    maps = [camlib.AttentionRollout(model, forward=forward)(inputs, 1).maps for forward in (
        lambda model, x: model(x),
        lambda model, x: model.head(model.forward_features(x)[:, 0]),
        lambda model, x: model.head_dist(model.forward_features(x)[:, 1]),
    )]  # fmt: skip
    torch.testing.assert_close(maps[0], (maps[1] + maps[2]) / 2)
    assert (maps[1] - maps[2]).abs().max() > 1e-3 * maps[0].max()


def test_a_tower_is_explained_by_the_similarity_with_a_text() -> None:
    torch.manual_seed(0)
    kind = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPVisionConfig(**kind, image_size=32, patch_size=8, projection_dim=6, attn_implementation="eager")
    model, inputs, text = CLIPVisionModelWithProjection(config).eval(), images().float(), torch.randn(6)
    outputs = model(inputs, output_attentions=True)
    similarity = torch.cosine_similarity(outputs.image_embeds, text, 1)
    gradients = torch.autograd.grad(similarity.sum(), outputs.attentions)
    read = list(zip(outputs.attentions, gradients, strict=True))
    expected, scale = equations.generic_attention(read, (4, 4), [[0]] * 2)
    model.set_attn_implementation("sdpa")
    explanation = camlib.GenericAttention(model)(inputs, camlib.targets.Similarity(text))
    equations.assert_close(explanation.maps, expected, scale, 1e-4)
    assert explanation.maps.std() > 0


def test_the_query_of_a_pool_reads_the_patches() -> None:
    model, inputs = timm_vit(global_pool="map", class_token=False), images()
    explanation = camlib.GenericAttention(model)(inputs, 1)
    attention: list[Tensor] = []
    model.attn_pool.fused_attn = False
    for block in model.blocks:
        block.attn.fused_attn = False
    softmax = torch.Tensor.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", lambda x, dim: kept(attention, softmax(x, dim)))
        score = model(inputs)[:, 1].sum()
    *encoder, pool = zip(attention, torch.autograd.grad(score, attention), strict=True)
    assert pool[0].shape == (2, 2, 1, 16)
    nothing = torch.zeros(2, 1, 1, 1)
    expected = equations.generic_attention_of_decoder(encoder, [((nothing, nothing), pool)], [0, 0])
    torch.testing.assert_close(explanation.maps, expected.unflatten(1, (4, 4)), rtol=1e-9, atol=0)
    with pytest.raises(camlib.CamlibRuntimeError, match=r"AttentionRollout needs .*the same tokens.*\(2, 2, 1, 16\)"):
        camlib.AttentionRollout(model)(inputs, 1)


def kept(seen: list[Tensor], tensor: Tensor) -> Tensor:
    seen.append(tensor)
    return tensor


# DETR -----------------------------------------------------------------------------------------------------------------


def detr(queries: int = 5, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_layers": layers, "decoder_layers": layers}
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
        num_queries=queries, num_labels=4, init_std=0.4, **sizes,
    )  # fmt: skip
    model = DetrForObjectDetection(config).double().eval()
    for module in model.model.decoder.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias)  # the values of the first block are its bias
    return model


@pytest.mark.parametrize("layers", [1, 2])
def test_detr_is_explained_from_the_query_of_an_object(layers: int) -> None:
    model, inputs = detr(layers=layers), images(2, 64, 96)
    explanation = camlib.GenericAttention(model)(inputs, lambda outputs: outputs.logits[[0, 1], [3, 1], 2])
    model.set_attn_implementation("eager")
    outputs = model(inputs, output_attentions=True)
    read = [*outputs.encoder_attentions, *outputs.decoder_attentions, *outputs.cross_attentions]
    gradients = torch.autograd.grad(outputs.logits[[0, 1], [3, 1], 2].sum(), read)
    pairs = list(zip(read, gradients, strict=True))
    encoder, own, across = pairs[:layers], pairs[layers : 2 * layers], pairs[2 * layers :]
    expected = equations.generic_attention_of_decoder(encoder, list(zip(own, across, strict=True)), [3, 1])
    assert explanation.maps.shape == (2, 8, 12)
    torch.testing.assert_close(explanation.maps, expected.unflatten(1, (8, 12)), rtol=1e-8, atol=0)
    assert explanation.maps.std() > 0


def test_as_many_queries_as_patches_are_refused() -> None:
    model, inputs = detr(queries=16), images(1, 32, 32)
    for _ in range(2):
        with pytest.raises(camlib.CamlibRuntimeError, match="as many queries as patches"):
            camlib.GenericAttention(model)(inputs, lambda outputs: outputs.logits[:, 3, 2])


# Laws -----------------------------------------------------------------------------------------------------------------


def drawn(seed: int, blocks: int, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, tokens, tokens)
    pairs = [
        (torch.rand(shape, generator=generator).double().softmax(3), torch.randn(shape, generator=generator).double())
        for _ in range(blocks)
    ]
    attention, gradients = zip(*pairs, strict=True)
    return list(attention), list(gradients)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5))
def test_blocks_are_composed_and_tokens_have_no_order(seed: int, blocks: int, tokens: int) -> None:
    attention, gradients = drawn(seed, blocks, tokens)
    whole, rollout = generic_attention(attention, gradients), attention_rollout(attention)
    first, rest = attention[:1], attention[1:]
    if rest:
        parts = generic_attention(rest, gradients[1:]) @ generic_attention(first, gradients[:1])
        torch.testing.assert_close(whole, parts)
        torch.testing.assert_close(rollout, attention_rollout(rest) @ attention_rollout(first))
    torch.testing.assert_close(rollout.sum(2), torch.ones_like(rollout[..., 0]))
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    moved = [[one[:, :, order][..., order] for one in given] for given in (attention, gradients)]
    torch.testing.assert_close(generic_attention(*moved), whole[:, order][..., order])
    torch.testing.assert_close(attention_rollout(moved[0]), rollout[:, order][..., order])
    zero = [torch.zeros_like(one) for one in gradients]
    torch.testing.assert_close(generic_attention(attention, zero), torch.eye(tokens).double().expand(2, -1, -1))


def test_rollout_is_the_same_for_all_classes() -> None:
    model, inputs = vit(), images()
    maps = camlib.AttentionRollout(model)(inputs, camlib.TopK(3)).maps
    assert maps.shape == (2, 3, 4, 4)
    assert torch.equal(maps[:, 0], maps[:, 2])
    generic = camlib.GenericAttention(model)(inputs, [[0, 1, 2]] * 2).maps
    torch.testing.assert_close(generic[:, 1], camlib.GenericAttention(model)(inputs, 1).maps)
    assert not torch.equal(generic[:, 0], generic[:, 2])


# What they cannot read ------------------------------------------------------------------------------------------------


def test_rollout_of_classes_with_tokens_of_their_own_begins_at_each() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        scores: Tensor = model.forward_features(x)[:, :3, 0]
        return scores

    inputs, cam = images(), camlib.AttentionRollout(timm_vit(reg_tokens=2), forward=forward)
    maps = cam(inputs, [[0, 1, 2]] * 2).maps
    each = torch.stack([cam(inputs, token).maps for token in range(3)], 1)
    torch.testing.assert_close(maps, each)
    assert (maps[:, 0] - maps[:, 1]).abs().amax() > 1e-4


@pytest.mark.parametrize("method", [camlib.GenericAttention, camlib.AttentionRollout])
@pytest.mark.parametrize(
    ("build", "message"),
    [(small_cnn, "calls no attention that {} can read"), (swin, "{} needs global attention.*Swin.*GradCAM")],
)
def test_what_is_not_global_attention_is_refused(
    method: Callable[..., Any], build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match=message.format(method.__name__)):
        method(build())(torch.randn(2, 3, 32, 32), 1)


def test_a_head_of_zeros_reads_no_token() -> None:
    model, inputs = vit(), images()
    nn.init.zeros_(model.heads.head.weight)
    assert camlib.GenericAttention(model)(inputs, 1).degenerate.all()
    with pytest.raises(camlib.CamlibRuntimeError, match="the score does not depend on the last attention"):
        camlib.AttentionRollout(model)(inputs, 1)


def test_without_classes_the_tokens_that_the_outputs_hold_are_read() -> None:
    model, inputs = timm_vit(), images()
    each = [
        camlib.AttentionRollout(model, forward=lambda model, x, t=token: {"tokens": model.forward_features(x)[:, t]})(
            inputs
        ).maps
        for token in range(17)
    ]
    whole = camlib.AttentionRollout(model, forward=lambda model, x: {"tokens": model.forward_features(x)})(inputs).maps
    torch.testing.assert_close(each[0], camlib.AttentionRollout(model)(inputs, 1).maps)
    torch.testing.assert_close(whole, torch.stack(each).mean(0))
    with pytest.raises(camlib.CamlibRuntimeError, match="attention does not lead to the score"):
        camlib.AttentionRollout(model, forward=lambda model, x: {"no": model(x).detach()})(inputs)


def test_the_functions_refuse_other_shapes() -> None:
    square, cross = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 3, 4)
    with pytest.raises(camlib.CamlibValueError, match="same shapes"):
        generic_attention([square], [cross])
    with pytest.raises(camlib.CamlibValueError, match="among queries"):
        generic_attention([cross, torch.rand(2, 1, 2, 4)], [cross, torch.rand(2, 1, 2, 4)])
    with pytest.raises(camlib.CamlibValueError, match="tokens, tokens"):
        attention_rollout([square, cross])
    with pytest.raises(camlib.CamlibValueError, match="at least one"):
        attention_rollout([])
