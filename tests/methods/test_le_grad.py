"""LeGrad: the gradient of the attention of every block, however the model computes it, on the grid of the patches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import camlib
from camlib.methods.attention import Attention
from camlib.methods.le_grad import LeGrad
from tests import equations
from tests.networks import small_cnn


def vit(size: int = 32, layers: int = 2) -> nn.Module:
    """torchvision's, whose head begins at zero."""
    model = torchvision.models.VisionTransformer(size, 8, layers, 2, 16, 32, num_classes=4)
    nn.init.normal_(model.heads.head.weight)
    nn.init.normal_(model.class_token)
    return model.double().eval()


def timm_vit(**options: Any) -> nn.Module:
    size = options.pop("img_size", 32)
    kind = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    model = timm.models.VisionTransformer(img_size=size, **kind, **options)
    nn.init.normal_(model.head.weight)
    return model.double().eval()


def images(count: int = 2, *size: int) -> Tensor:
    return torch.randn(count, 3, *(size or (32, 32)), dtype=torch.float64)


@pytest.mark.parametrize("blocks", [None, 1, 2, 3])
def test_the_map_is_the_equation_over_all_blocks_or_the_last(blocks: int | None) -> None:
    model, inputs = vit(layers=3), images(3)
    explanation = LeGrad(model, blocks=blocks)(inputs, [1, 2, 0])
    gradients = equations.vit_attention_gradients(model, inputs, lambda outputs: outputs[range(3), [1, 2, 0]])
    read = gradients[-blocks:] if blocks else gradients
    equations.assert_close(explanation.maps, *equations.le_grad(read, (4, 4)), 1e-12)
    assert explanation.maps.amin() >= 0
    assert explanation.maps.std() > 0
    assert explanation.layer == ""
    assert explanation.layers == {}
    assert explanation.method == "le_grad"
    with torch.no_grad():
        torch.testing.assert_close(explanation.outputs, model(inputs))


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}])
def test_timm_with_fused_attention_and_without_is_the_equation(options: dict[str, Any]) -> None:
    model, inputs = timm_vit(**options), images()
    fused = LeGrad(model)(inputs, 1)
    attention: list[Tensor] = []
    for block in model.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    eager = LeGrad(model)(inputs, 1)
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: attention.append(output))
    gradients = torch.autograd.grad(model(inputs)[:, 1].sum(), attention)
    expected, scale = equations.le_grad(gradients, (4, 4), prefix=attention[0].shape[3] - 16)
    equations.assert_close(fused.maps, expected, scale, 1e-10)
    equations.assert_close(eager.maps, expected, scale, 1e-10)
    assert expected.std() > 0


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hugging_face_with_fused_attention_and_without_is_the_equation(implementation: str) -> None:
    def build(implementation: str) -> nn.Module:
        torch.manual_seed(0)
        kind = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        shape = {"image_size": 32, "patch_size": 8, "num_labels": 4, "initializer_range": 0.5}
        return ViTForImageClassification(ViTConfig(**kind, **shape, attn_implementation=implementation)).eval()

    inputs = images().float()
    explanation = LeGrad(build(implementation))(inputs, 1)
    outputs = build("eager")(inputs, output_attentions=True)
    gradients = torch.autograd.grad(outputs.logits[:, 1].sum(), outputs.attentions)
    equations.assert_close(explanation.maps, *equations.le_grad(gradients, (4, 4)), 1e-4)
    assert (explanation.outputs.logits - outputs.logits).abs().max() < 1e-5
    assert explanation.maps.std() > 0


def test_a_real_vit_keeps_its_outputs() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4).eval()
    inputs = torch.randn(2, 3, 64, 64)
    explanation = LeGrad(model)(inputs)
    with torch.no_grad():
        assert (explanation.outputs - model(inputs)).abs().max() < 1e-5
    assert explanation.maps.shape == (2, 4, 4)
    assert explanation.heatmaps().shape == (2, 64, 64)


class Encoder(nn.Module):
    """torch's own encoder over patches, which in eval mode would run as one fused kernel."""

    def __init__(self, **attention: Any) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        for name, value in attention.items():
            setattr(layer.self_attn, name, value)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)
        self.recorded: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        self.recorded.append(tokens.requires_grad)
        tokens = self.encoder(tokens)
        self.recorded.append(tokens.requires_grad)
        return self.head(tokens.mean(1))


def test_torchs_encoder_does_not_take_its_fast_path_and_keeps_its_outputs() -> None:
    model, inputs = Encoder().eval(), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = model(inputs)
    explanation = LeGrad(model)(inputs, 1)
    assert explanation.maps.shape == (2, 4, 6)
    assert explanation.maps.std() > 0
    assert (explanation.outputs - expected).abs().max() < 1e-5


def test_one_forward_pass_in_the_graph_from_the_first_attention_on() -> None:
    model = Encoder()
    LeGrad(model)(torch.randn(2, 3, 32, 32), [[0, 1, 2]] * 2)
    assert model.recorded == [False, True]


@pytest.mark.parametrize("blocks", [None, 1])
def test_k_classes_are_one_at_a_time_and_a_batch_is_its_images(blocks: int | None) -> None:
    model, inputs = vit(), images(3)
    cam = LeGrad(model, blocks=blocks)
    both = cam(inputs, [[0, 2], [1, 0], [2, 1]]).maps
    assert both.shape == (3, 2, 4, 4)
    for k, classes in enumerate(([0, 1, 2], [2, 0, 1])):
        one = cam(inputs, classes).maps
        torch.testing.assert_close(both[:, k], one)
        for image, target in enumerate(classes):
            torch.testing.assert_close(cam(inputs[image : image + 1], target).maps[0], one[image])


def test_reshape_gets_the_relevance_of_all_tokens() -> None:
    model, inputs = vit(), images()
    shapes: list[tuple[int, ...]] = []

    def reshape(tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    assert torch.equal(LeGrad(model, reshape=reshape)(inputs, 1).maps, LeGrad(model)(inputs, 1).maps)
    assert shapes == [(2, 17, 1)]


@pytest.mark.parametrize("relu", [True, False])
def test_relu_changes_nothing(relu: bool) -> None:
    model, inputs = vit(), images()
    assert torch.equal(LeGrad(model, relu=relu)(inputs, 1).maps, LeGrad(model)(inputs, 1).maps)


# The explicit forms are what they replace -----------------------------------------------------------------------------


def random_mask(*shape: int, dtype: torch.dtype) -> Tensor:
    """One that leaves every query something to look at: not the first key for bools, which say what to hide."""
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


SINCE_2_5 = pytest.mark.skipif(
    "enable_gqa" not in (F.scaled_dot_product_attention.__doc__ or ""), reason="torch 2.4 has no grouped queries"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": ~random_mask(6, 6, dtype=torch.bool)},
        {"attn_mask": random_mask(2, 1, 6, 6, dtype=torch.float64)},
        pytest.param({"enable_gqa": True}, marks=SINCE_2_5),
    ],
    ids=["plain", "scale", "causal", "bool mask", "float mask", "grouped"],
)
def test_scaled_dot_product_attention_is_itself(options: dict[str, Any]) -> None:
    query, key, value = (torch.randn(2, 4, 6, 5, dtype=torch.float64) for _ in range(3))
    if "enable_gqa" in options:
        key, value = key[:, :2], value[:, :2]
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with torch.no_grad(), Attention() as attention:
        found = F.scaled_dot_product_attention(query, key, value, **options)
        torch.set_grad_enabled(False)
    torch.testing.assert_close(found, expected)
    assert [tuple(weights.shape) for weights in attention.seen] == [(2, 4, 6, 6)]
    torch.testing.assert_close(attention.seen[0].sum(-1), torch.ones(2, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": random_mask(5, 5, dtype=torch.bool)},
        {"attn_mask": random_mask(6, 5, 5, dtype=torch.float64)},
        {"key_padding_mask": random_mask(3, 5, dtype=torch.bool)},
        {
            "key_padding_mask": random_mask(3, 5, dtype=torch.bool),
            "attn_mask": random_mask(6, 5, 5, dtype=torch.bool),
        },
        {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64), "is_causal": True},
        {"need_weights": False},
    ],
    ids=["plain", "bool mask", "float mask per head", "padding", "padding and mask", "causal", "no weights"],
)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 4, "vdim": 3}], ids=["packed", "no bias", "apart"])
def test_multi_head_attention_is_itself(
    options: dict[str, Any], masks: dict[str, Any], average: bool, batch_first: bool
) -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, dtype=torch.float64, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    widths = (8, options.get("kdim", 8), options.get("vdim", 8))
    inputs = [torch.randn(*((3, 5) if batch_first else (5, 3)), width, dtype=torch.float64) for width in widths]
    with torch.no_grad():
        expected, weights = module(*inputs, average_attn_weights=average, **masks)
        with Attention() as attention:
            found, seen = module(*inputs, average_attn_weights=average, **masks)
        torch.set_grad_enabled(False)
    torch.testing.assert_close(found, expected)
    assert (seen is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(seen, weights)
    assert [tuple(weights.shape) for weights in attention.seen] == [(3, 2, 5, 5)]


# What it cannot read --------------------------------------------------------------------------------------------------


class Detached(Encoder):
    """Reads the head from the patches, past the encoder."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(tokens).detach().mean(1))


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (small_cnn, "Sequential calls no attention.*GradCAM"),
        (swin, r"needs global attention.*found \(8, 1, 16, 16\) for 2 images of 32 x 32.*Swin.*GradCAM"),
        (Detached, "does not lead to the score"),
        (lambda: Encoder(bias_k=nn.Parameter(torch.randn(1, 1, 16)), bias_v=torch.randn(1, 1, 16)), "bias_k.*GradCAM"),
        (lambda: Encoder(add_zero_attn=True), "add_zero_attn.*GradCAM"),
    ],
    ids=["no attention", "windows", "detached", "extra keys", "zero key"],
)
def test_what_is_not_global_attention_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match=message):
        LeGrad(build())(torch.randn(2, 3, 32, 32), 1)


def test_tokens_that_are_no_whole_grid_are_refused_with_their_shape() -> None:
    model = vit(64)
    model.encoder.dropout.register_forward_hook(lambda module, args, tokens: tokens[:, :40])
    with pytest.raises(camlib.CamlibRuntimeError, match=r"found \(2, 2, 40, 40\) for 2 images of 64 x 64.*reshape="):
        LeGrad(model)(images(2, 64, 64), 1)


def test_the_patches_of_an_image_that_the_model_resizes_are_on_its_grid() -> None:
    def resized(model: nn.Module, x: Tensor) -> Tensor:
        return model(F.interpolate(x, (64, 64)))

    model, given = vit(64), images(2, 100, 4)
    maps = LeGrad(model, forward=resized)(given, 1).maps
    assert torch.equal(maps, LeGrad(model)(F.interpolate(given, (64, 64)), 1).maps)


def test_activations_that_are_computed_again_are_refused() -> None:
    model = timm_vit()
    model.set_grad_checkpointing(True)
    with pytest.raises(
        camlib.CamlibRuntimeError, match="activation checkpointing.*(set_grad_checkpointing|switched off)"
    ):
        LeGrad(model)(images(), 1)


def test_a_scripted_module_is_refused_by_name() -> None:
    model = vit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.heads = torch.jit.script(nn.Sequential(nn.Linear(16, 4)).double())
    with pytest.raises(camlib.CamlibTypeError, match="'heads' of VisionTransformer is a ScriptModule.*original module"):
        LeGrad(model)


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (lambda tokens: tokens.movedim(1, 2), r"\(2, 17, 1\).*into \(2, 1, 17\).*\(2, C, h, w\)"),
        (lambda tokens: tokens[:, 1:].unflatten(1, (4, 4)), r"\(2, 17, 1\).*into \(2, 4, 4, 1\).*single channel"),
        (lambda tokens: None, "into NoneType"),
    ],
)
def test_a_reshape_that_gives_no_grid_of_one_channel_is_refused(reshape: Callable[..., Any], message: str) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=message):
        LeGrad(vit(), reshape=reshape)(images(), 1)


def test_a_class_axis_of_probabilities_is_no_attention() -> None:
    model, inputs = vit(), images()
    explanation = LeGrad(model, forward=lambda model, x: model(x).softmax(1))(inputs, 1)
    assert explanation.maps.std() > 0


def test_wrong_options_are_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match="reads no layer"):
        LeGrad(vit(), "encoder")
    with pytest.raises(camlib.CamlibValueError, match="at least 1"):
        LeGrad(vit(), blocks=0)
    for wrong in (1.0, True):
        with pytest.raises(camlib.CamlibTypeError, match="blocks"):
            LeGrad(vit(), blocks=wrong)
    with pytest.raises(camlib.CamlibRuntimeError, match="blocks=3 .*calls attention 2 times"):
        LeGrad(vit(), blocks=3)(images(), 1)


@pytest.mark.parametrize("blocks", [None, 1])
def test_a_pooling_head_that_the_score_does_not_read_is_left_out(blocks: int | None) -> None:
    """SigLIP's, whose attention is the last of the pass; the classifier reads the mean of the patches."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**sizes, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model, pictures = transformers.SiglipForImageClassification(config).eval(), torch.rand(2, 3, 32, 32)
    weights = model(pictures, output_attentions=True)
    gradients = torch.autograd.grad(weights.logits[:, 1].sum(), weights.attentions)
    read = gradients if blocks is None else gradients[-blocks:]
    expected = sum(one.double().relu().mean((1, 2)) for one in read) / len(read)
    found = camlib.LeGrad(model, blocks=blocks)(pictures, 1).maps
    torch.testing.assert_close(found, expected.reshape(2, 4, 4).float(), rtol=1e-4, atol=1e-9)
    assert camlib.GenericAttention(model)(pictures, 1).maps.shape == (2, 4, 4)


# The score of each block, as published -------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_the_score_of_each_block_is_that_of_the_mean_of_its_tokens(blocks: int | None) -> None:
    model, inputs = vit(layers=3), images(3)
    explanation = LeGrad(model, blocks=blocks, score="block")(inputs, [1, 2, 0])
    gradients = equations.le_grad_layer_gradients(model, inputs, lambda outputs: outputs[range(3), [1, 2, 0]])
    read = gradients[-blocks:] if blocks else gradients
    equations.assert_close(explanation.maps, *equations.le_grad(read, (4, 4)), 1e-12)
    final = LeGrad(model, blocks=blocks)(inputs, [1, 2, 0])
    assert (explanation.maps - final.maps).abs().max() > 0.1 * final.maps.max()
    torch.testing.assert_close(explanation.scores, final.scores)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}, {"fc_norm": True}]
)
def test_timms_blocks_are_scored_by_its_own_norms_and_head(options: dict[str, Any], count: int) -> None:
    model, inputs = timm_vit(**options), images(count)
    found = LeGrad(model, score="block")(inputs, [[1, 3]] * count).maps
    attention, outputs = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: attention.append(output))
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(inputs)
    for number, label in enumerate([1, 3]):
        gradients: list[Tensor] = []
        for weights, tokens in zip(attention, outputs, strict=True):
            logits = model.head(model.fc_norm(model.norm(tokens.mean(1))))
            gradients += torch.autograd.grad(logits[:, label].sum(), weights, retain_graph=True)
        expected, scale = equations.le_grad(gradients, (4, 4), prefix=attention[0].shape[3] - 16)
        equations.assert_close(found[:, number], expected, scale, 1e-10)
        assert expected.std() > 0


def test_one_module_in_the_place_of_several_blocks_is_each_of_them() -> None:
    """ALBERT's way: the same layer is called again and again."""
    shared, apart = vit(layers=2), vit(layers=2)
    first, second = apart.encoder.layers
    apart.load_state_dict(shared.state_dict())
    second.load_state_dict(first.state_dict())
    shared.encoder.layers = nn.Sequential(*[shared.encoder.layers[0]] * 2)
    inputs = images()
    assert torch.equal(LeGrad(shared, score="block")(inputs, 1).maps, LeGrad(apart, score="block")(inputs, 1).maps)


def test_hugging_faces_clip_scores_each_block_against_the_text() -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model, pictures = transformers.CLIPModel(config).eval(), torch.rand(2, 3, 32, 32)
    words = torch.tensor([[1, 5, 9, 2], [1, 7, 4, 2]])

    def run(model: nn.Module, x: Tensor) -> Tensor:
        return model(pixel_values=x, input_ids=words).logits_per_image

    found = LeGrad(model, score="block", forward=run)(pictures, 1).maps
    outputs = model(pixel_values=pictures, input_ids=words, output_attentions=True, output_hidden_states=True)
    vision_outputs, gradients = outputs.vision_model_output, []
    for weights, tokens in zip(vision_outputs.attentions, vision_outputs.hidden_states[1:], strict=True):
        image = model.visual_projection(model.vision_model.post_layernorm(tokens.mean(1)))
        similar = F.normalize(image, dim=1) @ outputs.text_embeds[1] * model.logit_scale.exp()
        gradients += torch.autograd.grad(similar.sum(), weights, retain_graph=True)
    equations.assert_close(found, *equations.le_grad(gradients, (4, 4)), 1e-4)
    assert found.std() > 0


def test_a_map_of_the_last_block_is_that_of_the_final_score_where_the_head_reads_the_mean_of_all_tokens() -> None:
    for norm_of_the_mean in (True, False):
        model, inputs = timm_vit(class_token=False, global_pool="avg", fc_norm=norm_of_the_mean), images()
        own, final = (LeGrad(model, blocks=1, score=score)(inputs, 1).maps for score in ("block", "final"))
        assert torch.allclose(own, final, rtol=1e-9, atol=1e-15) == norm_of_the_mean


class Around(Encoder):
    """Adds the patches to what the last block returns."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.encoder(tokens)).mean(1))


class Inline(Encoder):
    """Calls attention in its own forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for _ in range(2):
            tokens = tokens + F.scaled_dot_product_attention(*[tokens[:, None]] * 3)[:, 0]
        return self.head(tokens.mean(1))


class Pooled(Encoder):
    """Reads the patches with a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pool = nn.Parameter(torch.randn(1, 1, 16)), nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(self.pool(self.query.expand(len(x), -1, -1), tokens, tokens)[0][:, 0])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Around, r"last block, 'encoder\.layers\.1', do not give the score.*score=\"final\""),
        (Inline, r"is not called in a block that calls no other.*score=\"final\""),
        (Pooled, r"blocks that return tokens.*all of the same shape.*'pool': \(., 1, 16\).*score=\"final\""),
    ],
)
def test_blocks_without_scores_are_refused(build: Callable[[], nn.Module], message: str, count: int) -> None:
    inputs = torch.randn(count, 3, 32, 32)
    with pytest.raises(camlib.CamlibRuntimeError, match=message):
        LeGrad(build(), score="block")(inputs, 1)
    assert LeGrad(build())(inputs, 1).maps.shape == (count, 4, 4)


def test_other_scores_are_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match='score must be "final" or "block", got \'last\''):
        LeGrad(vit(), score="last")
    with pytest.raises(camlib.CamlibTypeError, match='score must be "final" or "block", got None'):
        LeGrad(vit(), score=None)


def test_blocks_leave_no_hook_and_no_graph() -> None:
    model, inputs = vit(), images()
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    LeGrad(model, score="block")(inputs, 1)
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
