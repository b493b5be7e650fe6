"""Models are called as their users call them, and a slip in the call is named."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

import camlib
from camlib.inputs import Inputs
from camlib.passes.calling import Arguments
from tests.networks import Network, small_cnn

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VISION = {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TEXT = {"vocab_size": 60, "num_hidden_layers": 2, "max_position_embeddings": 32}


def clip(attention: str = "sdpa") -> nn.Module:
    """CLIP with 4 x 4 patches, in float64."""
    torch.manual_seed(0)
    special = {"bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={**SMALL, **TEXT, **special}, vision_config={**SMALL, **VISION}, projection_dim=8
    )
    config._attn_implementation = attention
    return transformers.CLIPModel(config).double().eval()


def siglip() -> nn.Module:
    """SigLIP with 4 x 4 patches and no class token, in float64."""
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config={**SMALL, **TEXT}, vision_config={**SMALL, **VISION})
    return transformers.SiglipModel(config).double().eval()


def llava() -> nn.Module:
    """A vision tower of 4 x 4 patches, whose projected tokens stand inside the text of a language model."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **SMALL, **VISION, "num_hidden_layers": 3},
        text_config={"model_type": "llama", **SMALL, **TEXT, "num_key_value_heads": 2, "bos_token_id": 1},
        image_token_id=50,
        image_seq_length=16,
    )
    return transformers.LlavaForConditionalGeneration(config).double().eval()


def prompts(count: int, tokens: int = 5) -> Tensor:
    """Different texts, which end in CLIP's last token."""
    ids = torch.arange(1, count * tokens + 1).reshape(count, tokens) % 57 + 1
    ids[:, -1] = 59
    return ids


def by_autograd(model: nn.Module, layer: str, run: Callable[[], Tensor]) -> Tensor:
    """Grad-CAM of tokens on 4 x 4 patches, by plain autograd."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    score = run().sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    patches, slopes = kept[0].detach()[:, -16:], gradient[:, -16:]
    return (patches * slopes.mean(1, keepdim=True)).sum(-1).relu().unflatten(1, (4, 4))


class Dense(nn.Module):
    """A picture and a table of numbers, both required."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(6, 3)

    def forward(self, image: Tensor, vitals: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk(image).mean((2, 3)), vitals], 1))


class TestCalls:
    """Inputs reach the model as one argument, by name, or by position."""

    vitals = torch.rand(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    @pytest.mark.parametrize(
        "given",
        [
            lambda image, vitals: (image, vitals),
            lambda image, vitals: {"vitals": vitals, "image": image},
            lambda image, vitals: UserDict(vitals=vitals, image=image),
            lambda image, vitals: transformers.BatchFeature({"image": image, "vitals": vitals}),
        ],
    )
    def test_two_inputs_in_a_tuple_or_by_name(self, given: Callable[..., Any]) -> None:
        model = Dense().double().eval()
        expected = camlib.GradCAM(model, "trunk", forward=lambda m, x: m(x, self.vitals))(PIXELS, 1)
        inputs = given(PIXELS, self.vitals)
        for cam in (camlib.GradCAM(model), copy.deepcopy(camlib.GradCAM(model))):
            found = cam(inputs, 1)
            assert found.layer == "trunk"
            torch.testing.assert_close(found.maps, expected.maps, rtol=1e-12, atol=0)
        occluded = camlib.Occlusion(model, window=8)(inputs, 1).maps  # copies of the images, made from the container
        first = self.vitals[:1]
        alone = camlib.Occlusion(model, window=8, forward=lambda m, x: m(x, first.expand(len(x), 2)))(PIXELS[:1], 1)
        torch.testing.assert_close(occluded[:1], alone.maps)

    def test_a_method_that_has_run_can_be_pickled(self) -> None:
        cam = camlib.GradCAM(Dense().double().eval())
        maps = cam((PIXELS, self.vitals), 1).maps
        torch.testing.assert_close(pickle.loads(pickle.dumps(cam))((PIXELS, self.vitals), 1).maps, maps)

    @pytest.mark.parametrize(
        ("forward", "raw", "args", "names"),
        [
            (lambda self, batch: 0, {"image": 1}, 1, ""),
            (lambda self, batch, extra=None: 0, {"image": 1}, 1, ""),
            (lambda self, pair: 0, (1, 2), 1, ""),
            (lambda self, pair, mask=None: 0, (1, 2), 1, ""),
            (lambda self, pair=None: 0, (1, 2), 1, ""),
            (lambda self, *pairs: 0, (1, 2), 1, ""),
            (lambda self, *args, **kwargs: 0, {"image": 1}, 1, ""),
            (lambda self, *args, **kwargs: 0, UserDict(image=1), 0, "image"),
            (lambda self, image, **kwargs: 0, {"image": 1, "other": 2}, 0, "image other"),
            (lambda self, image=None, mask=None: 0, {"image": 1, "other": 2}, 1, ""),
            (lambda self, image=None, mask=None: 0, {"mask": 1, "image": 2}, 0, "mask image"),
            (lambda self, image=None, mask=None: 0, (1, 2), 2, ""),
            (lambda self, image=None, mask=None: 0, (1, 2, 3), 1, ""),
            (lambda self, image, mask: 0, (1, 2), 2, ""),
            (lambda self, image, mask, scale=1: 0, (1, 2, 3), 3, ""),
        ],
    )
    def test_the_signature_decides(self, forward: Any, raw: Any, args: int, names: str) -> None:
        model = type("Model", (nn.Module,), {"forward": forward})()
        found, named = Arguments(model).of(raw)
        assert (len(found), " ".join(named)) == (args, names)

    def test_a_parameter_annotated_as_a_mapping_gets_the_mapping(self) -> None:
        def forward(self: Any, x: dict[str, Tensor]) -> int:
            return 0

        def strict(self: Any, x: Mapping[str, Tensor]) -> int:
            return 0

        for one in (forward, strict):
            model = type("Model", (nn.Module,), {"forward": one})()
            assert Arguments(model).of({"x": 1}) == (({"x": 1},), {})

    def test_models_of_one_container_are_called_as_before(self) -> None:
        class Pair(NamedTuple):
            image: Tensor
            scale: Tensor

        class OfMapping(Network):
            def forward(self, batch: Any) -> Tensor:
                return super().forward(batch["image"] * batch["scale"])

        class OfPair(Network):
            def forward(self, pair: Any) -> Tensor:
                return super().forward(pair[0] * pair[1])

        images, scale = PIXELS.float(), torch.ones(2, 1, 1, 1)
        of_mapping, of_pair = OfMapping().eval(), OfPair().eval()
        of_pair.load_state_dict(of_mapping.state_dict())
        found = camlib.GradCAM(of_mapping)({"image": images, "scale": scale}, 0).maps
        for pair in ((images, scale), Pair(images, scale)):
            torch.testing.assert_close(camlib.GradCAM(of_pair)(pair, 0).maps, found, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"image": PIXELS}, r"Dense.forward\(image, vitals\) requires image, vitals, and the mapping has image"),
            ((PIXELS,) * 3, "requires image, vitals, and the tuple has 3 items"),
            (PIXELS, "requires image, vitals; give a tuple or a mapping of them as the inputs, or forward="),
        ],
    )
    def test_what_does_not_fit_names_the_parameters(self, inputs: Any, message: str) -> None:
        with pytest.raises(camlib.CamlibTypeError, match=message):
            camlib.GradCAM(Dense().double(), "trunk")(inputs)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"pixel_values": PIXELS}, r"no parameters pixel_values; .* such as inputs\[\"pixel_values\"\]"),
            (transformers.BatchFeature({"pixel_values": PIXELS}), "got the BatchFeature as its one argument"),
            ((PIXELS, PIXELS), "got the tuple as its one argument; pass the item that it takes"),
        ],
    )
    def test_containers_for_a_model_of_tensors_name_the_mend(self, inputs: Any, message: str) -> None:
        with pytest.raises(camlib.CamlibTypeError, match=message):
            camlib.GradCAM(torchvision.models.resnet18(num_classes=2).double())(inputs)

    def test_an_error_of_the_models_own_is_not_explained_away(self) -> None:
        class Broken(Network):
            def forward(self, x: Tensor) -> Tensor:
                raise TypeError("my own mistake")

        with pytest.raises(TypeError, match="my own mistake") as caught:
            camlib.GradCAM(Broken(), "features")(PIXELS.float())
        assert not isinstance(caught.value, camlib.CamlibError)


class TestTwoTowers:
    """CLIP and SigLIP: images and texts embedded apart."""

    @pytest.mark.parametrize("build", [clip, siglip])
    @pytest.mark.parametrize("wrap", [dict, transformers.BatchFeature, transformers.BatchEncoding])
    def test_a_processors_output_is_explained_text_by_text(self, build: Any, wrap: Any) -> None:
        model, texts = build(), prompts(3)
        found = camlib.GradCAM(model)(wrap({"input_ids": texts, "pixel_values": PIXELS}), 2)
        assert found.layer.startswith("vision_model.")
        expected = by_autograd(model, found.layer, lambda: model(texts, PIXELS).logits_per_image[:, 2])
        torch.testing.assert_close(found.maps, expected)
        torch.testing.assert_close(found.scores, model(texts, PIXELS).logits_per_image[:, 2].detach())

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("target", [None, 0, torch.tensor([0, 0])])
    def test_a_single_text_is_the_only_class(self, target: Any) -> None:
        model, texts = clip(), prompts(1)
        inputs = {"input_ids": texts, "pixel_values": PIXELS}
        found = camlib.GradCAM(model)(inputs, target)
        expected = by_autograd(model, found.layer, lambda: model(texts, PIXELS).logits_per_image[:, 0])
        torch.testing.assert_close(found.maps, expected)
        assert found.target.tolist() == [0, 0]
        with pytest.raises(camlib.CamlibValueError, match="class index 1, but the outputs have classes 0 to 0"):
            camlib.GradCAM(model)(inputs, 1)
        with pytest.raises(camlib.CamlibValueError, match="a single text, whose softmax is 1"):
            camlib.metrics.deletion(model, inputs, found.heatmaps(), 0)
        chance = camlib.metrics.Scorer(model, inputs, 0, link="sigmoid").clean
        torch.testing.assert_close(chance, model(texts, PIXELS).logits_per_image[:, 0].detach().sigmoid())

    def test_without_a_target_the_text_that_fits_best_is_explained(self) -> None:
        model, inputs = clip(), {"input_ids": prompts(3), "pixel_values": PIXELS}
        best = model(**inputs).logits_per_image.argmax(1)
        assert camlib.GradCAM(model)(inputs).target.tolist() == best.tolist()

    @pytest.mark.parametrize("build", [clip, siglip])
    def test_similarity_to_the_embedding_of_a_text(self, build: Any) -> None:
        model, texts = build(), prompts(2)
        text = model(texts, PIXELS).text_embeds[1].detach()
        found = camlib.GradCAM(model)({"input_ids": texts, "pixel_values": PIXELS}, camlib.targets.Similarity(text))

        def run() -> Tensor:
            return F.cosine_similarity(model(texts, PIXELS).image_embeds, text[None])

        torch.testing.assert_close(found.scores, run().detach())
        torch.testing.assert_close(found.maps, by_autograd(model, found.layer, run))

    @pytest.mark.parametrize(("images", "texts"), [(1, 1), (2, 2), (1, 2), (2, 1)])
    def test_perturbed_copies_of_images_meet_the_same_texts(self, images: int, texts: int) -> None:
        model, ids = clip(), prompts(texts)
        found = camlib.Occlusion(model, window=16, stride=16)(
            {"input_ids": ids, "pixel_values": PIXELS[:images]}, [0] * images
        )
        with torch.no_grad():
            embedded = model(ids, PIXELS[:1]).text_embeds

        def ours(model: nn.Module, images: Tensor) -> Tensor:
            return model.logit_scale.exp() * model(ids[:1], images).image_embeds @ embedded.T

        for image in range(images):
            alone = camlib.Occlusion(model, window=16, stride=16, forward=ours)(
                PIXELS[image : image + 1], camlib.targets.Output(0)
            )
            torch.testing.assert_close(found.maps[image], alone.maps[0])

    def test_texts_of_the_images_themselves_are_copied_with_them(self) -> None:
        texts = torch.arange(2)[:, None]
        own = Inputs({"input_ids": texts, "pixel_values": PIXELS}).pick(torch.tensor([1, 1, 0]), 2).raw
        assert own["input_ids"].flatten().tolist() == [1, 1, 0]
        apart = Inputs({"input_ids": texts, "pixel_values": PIXELS}, shared=(texts,)).map(Tensor.clone)
        picked = apart.pick(torch.tensor([1, 1, 0]), 2).raw
        assert picked["input_ids"].flatten().tolist() == [0, 1]
        torch.testing.assert_close(picked["pixel_values"], PIXELS[[1, 1, 0]])

    def test_a_text_tower_that_comes_first_is_no_place_in_the_image(self) -> None:
        class TextFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.both = clip()

            def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
                text = self.both.text_projection(self.both.text_model(input_ids).pooler_output)
                image = self.both.visual_projection(self.both.vision_model(pixel_values).pooler_output)
                return image @ text.T

        found = camlib.find_layer(TextFirst(), (prompts(1, 17), PIXELS[:1]))  # as many tokens as patches
        assert found == "both.vision_model.encoder.layers.1.layer_norm1"

    @pytest.mark.parametrize("tokens", [16, 17])  # as many as patches, with and without CLIP's class token
    def test_a_named_layer_of_the_text_tower_is_refused(self, tokens: int) -> None:
        inputs = {"input_ids": prompts(1, tokens), "pixel_values": PIXELS[:1]}
        with pytest.raises(camlib.CamlibValueError, match="the tokens of a text, whose places are not those of the im"):
            camlib.GradCAM(clip(), "text_model.encoder.layers.0.layer_norm1")(inputs, [0])

    @pytest.mark.parametrize("tokens", [5, 16, 17])
    @pytest.mark.parametrize("count", [1, 2])
    def test_le_grad_reads_the_attention_of_the_image_tower(
        self, tokens: int, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, texts = clip(), prompts(count, tokens)
        with monkeypatch.context() as patch:  # transformers computes the softmax in single precision
            patch.setattr(F, "softmax", lambda x, dim, dtype: x.softmax(dim))
            outputs = clip("eager")(texts, PIXELS[:1], output_attentions=True)
        attention = outputs.vision_model_output.attentions
        slopes = torch.autograd.grad(outputs.logits_per_image[:, 0].sum(), attention)
        expected = torch.stack([slope.relu().mean((1, 2)) for slope in slopes]).mean(0)[:, 1:].unflatten(1, (4, 4))
        for cam in (
            camlib.LeGrad(model, forward=lambda m, x: m(texts, x).logits_per_image)(
                PIXELS[:1], camlib.targets.Output()
            ),
            camlib.LeGrad(model)({"input_ids": texts, "pixel_values": PIXELS[:1]}, camlib.targets.Output()),
        ):
            assert expected.max() > 0
            torch.testing.assert_close(cam.maps, expected)

    @pytest.mark.parametrize("tokens", [5, 16, 17])
    def test_le_grad_of_siglip_does_not_depend_on_the_length_of_the_text(self, tokens: int) -> None:
        model, texts = siglip(), prompts(2, tokens)
        embedded = model(texts, PIXELS).text_embeds[0].detach()
        whole = camlib.LeGrad(model)({"input_ids": texts, "pixel_values": PIXELS}, camlib.targets.Similarity(embedded))
        tower = camlib.LeGrad(model.vision_model)(PIXELS, camlib.targets.Similarity(embedded))
        torch.testing.assert_close(whole.maps, tower.maps)

    def test_images_alone_for_a_model_of_texts_and_images_are_refused(self) -> None:
        with pytest.raises(camlib.CamlibTypeError, match="takes images as pixel_values, not as its first argument"):
            camlib.GradCAM(clip())(PIXELS)


class Fused(nn.Module):
    """ViLT in small: the words, then the patches, in one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches = nn.Embedding(60, 16), nn.Conv2d(3, 16, 8, 8)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        tokens = torch.cat([self.words(words), self.patches(image).flatten(2).mT], 1)
        return self.head(self.attention(tokens, tokens, tokens)[0][:, 0])


class TestLeGradBesideText:
    """Attention to a text and an image together has no map without ``reshape``."""

    @pytest.mark.parametrize("closed_over", [False, True])
    def test_without_reshape_it_is_refused(self, closed_over: bool) -> None:
        words = torch.ones(2, 9, dtype=torch.int64)  # 16 + 9 tokens, which are also a grid of 5 x 5
        options = {"forward": lambda model, images: model(images, words)} if closed_over else {}
        cam = camlib.LeGrad(Fused().double(), **options)
        with pytest.raises(camlib.CamlibRuntimeError, match="attends to a text and the image together.*pass reshape="):
            cam(PIXELS if closed_over else (PIXELS, words))

    def test_with_reshape_it_is_explained(self) -> None:
        model, words = Fused().double(), torch.ones(2, 9, dtype=torch.int64)
        cam = camlib.LeGrad(model, reshape=lambda tokens: tokens[:, 9:].mT.unflatten(2, (4, 4)))
        assert cam((PIXELS, words)).maps.shape == (2, 4, 4)

    def test_attention_that_no_image_enters_is_left_out(self) -> None:
        class Queries(Fused):
            def __init__(self, fixed: Tensor | None = None) -> None:
                super().__init__()
                self.queries, self.fixed = nn.Parameter(torch.randn(1, 5, 16)), fixed
                self.among = nn.MultiheadAttention(16, 2, batch_first=True)

            def attended(self) -> Tensor:
                return self.among(self.queries, self.queries, self.queries)[0]

            def forward(self, image: Tensor) -> Tensor:
                queries = self.attended() if self.fixed is None else self.fixed
                patches = self.patches(image).flatten(2).mT
                return self.head(self.attention(queries.expand(len(image), -1, -1), patches, patches)[0][:, 0])

        model = Queries().double()
        fixed = Queries(model.attended().detach())
        fixed.load_state_dict(model.state_dict())
        maps = camlib.LeGrad(model)(PIXELS[:1]).maps
        torch.testing.assert_close(maps, camlib.LeGrad(fixed.double())(PIXELS[:1]).maps)

    def test_attention_behind_a_change_in_place_is_still_of_the_image(self) -> None:
        class InPlace(Fused):
            def forward(self, image: Tensor) -> Tensor:
                tokens = torch.zeros(len(image), 17, 16, dtype=image.dtype)
                tokens[:, 1:].copy_(self.patches(image).flatten(2).mT)
                return self.head(self.attention(tokens, tokens, tokens)[0][:, 0])

        assert camlib.LeGrad(InPlace().double())(PIXELS).maps.shape == (2, 4, 4)


class TestVisionLanguage:
    """LLaVA: the image's tokens stand inside a text."""

    @staticmethod
    def inputs(words: int) -> dict[str, Tensor]:
        ids = torch.cat([torch.tensor([1]), torch.full((16,), 50), torch.arange(2, 2 + words)])
        return {"input_ids": ids[None], "pixel_values": PIXELS[:1]}

    @staticmethod
    def next_word(outputs: Any) -> Tensor:
        return outputs.logits[:, -1, 7]

    @pytest.mark.parametrize("words", [3, 8])  # with eight words there are 25 tokens, as of a grid of 5 x 5
    def test_the_image_tokens_are_found_ahead_of_the_text(self, words: int) -> None:
        model, inputs = llava(), self.inputs(words)
        found = camlib.GradCAM(model)(inputs, self.next_word)
        assert found.layer == "model.multi_modal_projector"
        expected = by_autograd(model, found.layer, lambda: self.next_word(model(**inputs)))
        torch.testing.assert_close(found.maps, expected)

    @pytest.mark.parametrize("layer", ["model.language_model.layers.1.input_layernorm", "lm_head"])
    def test_tokens_of_the_text_are_refused_unless_reshape_picks_the_image(self, layer: str) -> None:
        model, inputs = llava(), self.inputs(8)
        with pytest.raises(camlib.CamlibValueError, match="the tokens of a text"):
            camlib.GradCAM(model, layer)(inputs, self.next_word)
        if layer != "lm_head":
            picked = camlib.GradCAM(model, layer, reshape=lambda tokens: tokens[:, 1:17].mT.unflatten(2, (4, 4)))
            assert picked(inputs, self.next_word).maps.shape == (1, 4, 4)

    def test_patches_that_a_processor_cut_out_are_no_signal(self) -> None:
        assert Inputs({"pixel_values": torch.rand(2, 16, 192)}).size is None
        assert Inputs({"input_values": torch.rand(2, 16, 192)}).size == (192,)


class TestFinding:
    """The first image finds the layer, if the model runs it alone."""

    def test_a_forward_that_closes_over_data_of_each_image(self) -> None:
        model, vitals = Dense().double().eval(), torch.rand(2, 2, dtype=torch.float64)
        found = camlib.GradCAM(model, forward=lambda m, x: m(x, vitals))(PIXELS, 0)
        assert found.layer == "trunk"
        torch.testing.assert_close(found.maps, camlib.GradCAM(model, "trunk")((PIXELS, vitals), 0).maps)

    def test_one_image_is_run_where_that_is_possible(self) -> None:
        rows = []
        camlib.find_layer(Network().double(), PIXELS, forward=lambda m, x: rows.append(len(x)) or m(x))
        assert rows == [1]

    def test_an_error_of_all_images_is_the_one_that_is_raised(self) -> None:
        def fails(model: nn.Module, images: Tensor) -> Tensor:
            raise ValueError(f"{len(images)} images")

        with pytest.raises(ValueError, match="2 images") as caught:
            camlib.find_layer(Network(), PIXELS, forward=fails)
        assert caught.value.__context__ is None


class Parts(nn.Module):
    """A network whose parts the tests script."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.conv, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.stem(x)).mean((2, 3)))


class Anchored(nn.Module):
    """A detector's habit: tensors that depend on the size are made in the first run, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.anchors = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), {"scale": [None]}

    def forward(self, x: Tensor) -> Tensor:
        if self.anchors["scale"][0] is None:
            self.anchors["scale"][0] = torch.arange(4.0)
        return self.head(self.conv(x).mean((2, 3))) * self.anchors["scale"][0]


class TestModels:
    """Models that cannot be explained as they are."""

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    @pytest.mark.parametrize("part", ["stem", "head"])
    def test_a_scripted_submodule_is_passed_over_where_the_layer_is_elsewhere(self, part: str) -> None:
        plain, images = Parts(), PIXELS.float()
        model = copy.deepcopy(plain)
        setattr(model, part, torch.jit.script(getattr(model, part)))
        for _ in range(3):  # torch optimises a scripted module after two runs
            assert camlib.find_layer(model, images) == camlib.find_layer(plain, images) == "conv"
            listed = {info.name for info in camlib.list_layers(plain, images)}
            assert {info.name for info in camlib.list_layers(model, images)} == {
                name for name in listed if not name.startswith(part)
            }
            expected = camlib.GradCAM(plain)(images, 0).maps
            torch.testing.assert_close(camlib.GradCAM(model)(images, 0).maps, expected)
        if part == "head":
            with pytest.raises(camlib.CamlibRuntimeError, match="no linear classifier reads the mean"):
                camlib.CAM(model, "conv")(images, 0)
        assert not any(module._forward_hooks for module in model.modules() if not hasattr(module, "original_name"))

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_a_scripted_submodule_that_may_return_the_layer_is_refused(self) -> None:
        model, images = Parts(), PIXELS.float()
        model.conv = torch.jit.script(model.conv)
        for run in (camlib.GradCAM(model), camlib.GradCAM(model, "conv"), lambda x: camlib.find_layer(model, x)):
            with pytest.raises(camlib.CamlibTypeError, match="a ScriptModule, Conv2d, which takes no hooks.*layer="):
                run(images)
        assert camlib.GradCAM(model, "stem")(images, 0).maps.shape == (2, 30, 30)
        assert not any(module._forward_hooks for module in model.modules() if not hasattr(module, "original_name"))

    @pytest.mark.parametrize("options", [{}, {"layer": "conv"}])
    def test_inference_tensors_in_plain_attributes_do_no_harm(self, options: dict[str, Any]) -> None:
        model, images = nn.Sequential(Anchored()).eval(), PIXELS.float()
        options = {name: f"0.{layer}" for name, layer in options.items()}
        fresh = camlib.GradCAM(copy.deepcopy(model), **options)(images).maps
        with torch.inference_mode():
            model(images)
        torch.testing.assert_close(camlib.GradCAM(model, **options)(images).maps, fresh)


class TestSlips:
    """Common mistakes, each with an error that says what to write instead."""

    @pytest.mark.parametrize("options", [{}, {"layer": "0"}])
    @pytest.mark.parametrize(
        "build",
        [
            lambda: small_cnn(),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1)),  # which torch runs without a batch
            lambda: nn.Sequential(torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=4)),
        ],
    )
    def test_an_image_without_the_axis_of_the_batch(self, build: Any, options: dict[str, Any]) -> None:
        model = build()
        with pytest.raises(camlib.CamlibValueError, match=r"shape \(3, 32, 32\).*\(N, C, H, W\).*image\[None\]"):
            camlib.GradCAM(model, **options)(PIXELS[0].float(), lambda outputs: outputs.flatten(1).sum(1))
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_spectrograms_that_the_model_gives_a_channel_are_no_images(self) -> None:
        class Spectrogram(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x[:, None])

        model = Spectrogram(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        explanation = camlib.GradCAM(model, "1", reshape=lambda maps: maps.mean(3))(torch.rand(2, 32, 16))
        assert explanation.maps.shape == (2, 30)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (
                (255 * PIXELS).byte(),
                "the images are torch.uint8, and the .* computes in torch.float32; convert and norm",
            ),
            (PIXELS, r"the images are torch.float64, and the .* computes in torch.float32; give images.float\(\)"),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"layer": "3"}, {"forward": lambda m, x: m(x)}])
    def test_images_of_another_dtype(self, images: Tensor, message: str, options: dict[str, Any]) -> None:
        with pytest.raises(camlib.CamlibTypeError, match=message):
            camlib.GradCAM(small_cnn(), **options)(images)

    def test_single_images_for_a_model_in_double(self) -> None:
        with pytest.raises(camlib.CamlibTypeError, match=r"give images.to\(torch.float64\)"):
            camlib.GradCAM(small_cnn().double())(PIXELS.float())

    def test_models_that_convert_their_images_take_any(self) -> None:
        class Converts(Network):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.float() / 255)

        model, images = Converts().eval(), (255 * PIXELS).byte()
        torch.testing.assert_close(
            camlib.GradCAM(model)(images, 0).maps, camlib.GradCAM(model)(images.double(), 0).maps
        )

    def test_autocast_takes_images_of_another_precision(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert camlib.GradCAM(small_cnn())(PIXELS.bfloat16(), 0).maps.shape == (2, 32, 32)

    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("target_layers", "layer="),
            ("target_layer", "layer="),
            ("reshape_transform", "reshape="),
            ("rellu", "relu="),
        ],
    )
    def test_options_of_other_libraries_name_their_own(self, given: str, meant: str) -> None:
        with pytest.raises(camlib.CamlibTypeError, match=f"GradCAM has no option '{given}'; use {meant}"):
            camlib.GradCAM(small_cnn(), **{given: None})

    def test_options_of_a_method_are_suggested_too(self) -> None:
        with pytest.raises(camlib.CamlibTypeError, match="ScoreCAM has no option 'batch_size'; use chunk_size="):
            camlib.ScoreCAM(small_cnn(), batch_size=4)
        with pytest.raises(camlib.CamlibTypeError, match="RISE has no option 'target_layers'; it has "):
            camlib.RISE(small_cnn(), target_layers=[])

    def test_the_signature_of_a_method_is_still_the_options_it_has(self) -> None:
        assert list(inspect.signature(camlib.GradCAM).parameters)[:4] == ["model", "layer", "forward", "reshape"]

    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("GradCAMpp", "GradCAMPlusPlus"),
            ("SmoothGradCAMpp", "SmoothGradCAMPlusPlus"),
            ("ScoreCam", "ScoreCAM"),
            ("GradCam", "GradCAM"),
            ("KPCA_CAM", "KPCACAM"),
            ("grad_cam", "GradCAM"),
        ],
    )
    def test_names_of_other_libraries_suggest_the_class(self, given: str, meant: str) -> None:
        with pytest.raises(AttributeError, match=f"no attribute '{given}'; did you mean '{meant}'"):
            getattr(camlib, given)
        assert not hasattr(camlib, "nothing_like_it")

    @pytest.mark.parametrize("name", ["GradCAM", "gradcam", "GradCam"])
    def test_a_class_given_by_name_names_its_key(self, name: str) -> None:
        with pytest.raises(camlib.CamlibValueError, match=f"there is no method '{name}'; did you mean 'grad_cam'"):
            camlib.create(name, small_cnn())

    def test_an_embedding_has_no_predicted_class(self) -> None:
        config = transformers.ViTConfig(**SMALL, **VISION)
        model = transformers.ViTModel(config).double().eval()
        with pytest.raises(camlib.CamlibTypeError, match="an embedding, whose entries are no classes.*Similarity"):
            camlib.GradCAM(model)(PIXELS)
        reference = model(PIXELS).pooler_output[0].detach()
        assert camlib.GradCAM(model)(PIXELS, camlib.targets.Similarity(reference)).maps.shape == (2, 4, 4)
        assert camlib.EigenCAM(model)(PIXELS).maps.shape == (2, 4, 4)  # no class, no target


CHANNELS_LAST = PIXELS.float().movedim(1, 3)
OTHER_CALLS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "channels last": (
        lambda model: camlib.GradCAM(model)(CHANNELS_LAST),
        r"takes 3 channels.*give images.movedim\(-1, 1\)",
    ),
    "gray": (lambda model: camlib.GradCAM(model)(PIXELS.float()[:, :1]), r"shape \(2, 1, .*expand\(-1, 3, -1, -1\)"),
    "two channels": (lambda model: camlib.GradCAM(model, "0")(PIXELS.float()[:, :2]), "give images of 3 channels"),
    "list": (lambda model: camlib.GradCAM(model)([PIXELS.float()]), r"takes no list.*torch.stack\(images\)"),
    "forward": (
        lambda model: camlib.GradCAM(model, forward="logits"),
        "forward must be a function or None, got 'logits'",
    ),
    "no forward": (lambda model: camlib.GradCAM(model, forward=False), "forward must be a function or None, got False"),
    "reshape": (lambda model: camlib.GradCAM(model, reshape=[2]), r"reshape must be a function or None, got \[2\]"),
    "fuse": (lambda model: camlib.GradCAM(model, fuse=["mean"]), "fuse must be one of"),
    "create": (lambda model: camlib.create(["grad_cam"], model), "name of a method must be a str, got list"),
}


@pytest.mark.parametrize(("call", "said"), OTHER_CALLS.values(), ids=OTHER_CALLS)
def test_other_arguments_are_refused_with_what_to_give(call: Callable[[nn.Module], Any], said: str) -> None:
    with pytest.raises(camlib.CamlibError, match=said):
        call(small_cnn())
