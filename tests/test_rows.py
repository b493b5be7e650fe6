"""Which tensors of the inputs and outputs belong to the images one by one is known, not counted."""

import pytest
import torch
from torch import nn

import camlib
from camlib import metrics
from camlib.inputs import Inputs
from camlib.passes.network import Network
from camlib.passes.rows import with_known_rows


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.convolution = nn.Conv2d(3, 6, 3, 2)
            self.relu = nn.ReLU()
            self.embedding = nn.Embedding(20, 6)
            self.linear = nn.Linear(9, 4)
        self.double().eval()

    def features(self, images):
        return self.relu(self.convolution(images)).mean((2, 3))


class Compares(Features):
    """Each image with each text, as CLIP does, but without CLIP's names."""

    def forward(self, pictures, words):
        return 9 * self.features(pictures) @ self.embedding(words).mean(1).T


class ComparesEntries(Compares):
    def forward(self, entries):
        return super().forward(entries["picture"], entries["words"])


class WithAge(Features):
    """Each image with its own three measurements."""

    def forward(self, images, measured):
        return self.linear(torch.cat([self.features(images), measured], 1))


class WithAgeAndWords(Features):
    """Measurements of each image; texts that all images share."""

    def forward(self, images, measured, words):
        return (self.features(images) + measured.sum(1, keepdim=True)) @ self.embedding(words).mean(1).T


COUNT = 3
IMAGES = torch.rand(COUNT, 3, 17, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WORDS = torch.arange(12).reshape(COUNT, 4)
MEASURED = torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

CASES = {
    "by name": (Compares(), lambda n: {"pictures": IMAGES[n], "words": WORDS}),
    "by position": (Compares(), lambda n: (IMAGES[n], WORDS)),
    "one mapping": (ComparesEntries(), lambda n: {"picture": IMAGES[n], "words": WORDS}),
    "of each image": (WithAge(), lambda n: (IMAGES[n], MEASURED[n])),
    "both": (WithAgeAndWords(), lambda n: (IMAGES[n], MEASURED[n], WORDS)),
}
METHODS = {
    "occlusion": lambda model: camlib.Occlusion(model, window=5, stride=5, relu=False),
    "rise": lambda model: camlib.RISE(model, samples=9, relu=False),
    "score_cam": lambda model: camlib.ScoreCAM(model, "relu", relu=False),
    "ablation_cam": lambda model: camlib.AblationCAM(model, "relu", relu=False),
    "grad_cam": lambda model: camlib.GradCAM(model, "relu", relu=False),
}


@pytest.mark.filterwarnings("ignore:The tail of layer")
@pytest.mark.parametrize(("model", "inputs"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("chunk", ["auto", 2])
def test_map_is_that_of_the_image_alone_with_a_function_of_the_image_only(model, inputs, method, chunk):
    """The oracle hands the other tensors to the model inside a function of the image, so nothing can cut them."""
    together = method(model)
    if hasattr(together, "chunks"):
        together.chunks = camlib.passes.chunks.Chunks(chunk)
    found = together(inputs(slice(None)), 1)
    for number in range(COUNT):
        one = inputs(slice(number, number + 1))
        of_image = _with_other_images(model, one)
        alone = method(model)
        alone.network = Network.of(model, forward=of_image)
        expected = alone(IMAGES[number : number + 1], 1)
        torch.testing.assert_close(found.maps[number], expected.maps[0])


def _with_other_images(model, one):
    """The model as a function of images alone, with the rows of one image repeated for each."""

    def forward(model, images):
        rows = len(images)
        if isinstance(one, dict):
            name = next(iter(one))
            given = {**one, name: images}
            return model(given) if isinstance(model, ComparesEntries) else model(**given)
        own = [other.expand(rows, *other.shape[1:]) if len(other) == 1 else other for other in one[1:]]
        return model(images, *own)

    return forward


@pytest.mark.parametrize(("model", "inputs"), CASES.values(), ids=CASES)
def test_metrics_and_evaluate_score_each_image_as_if_it_were_alone(model, inputs):
    heatmaps = torch.rand(COUNT, 17, 17, generator=torch.Generator().manual_seed(2))
    found = metrics.deletion(model, inputs(slice(None)), heatmaps, 1, steps=4)
    for number in range(COUNT):
        forward = _with_other_images(model, inputs(slice(number, number + 1)))
        image = IMAGES[number : number + 1]
        expected = metrics.deletion(model, image, heatmaps[number : number + 1], 1, steps=4, forward=forward)
        torch.testing.assert_close(found[number], expected[0])
    table = camlib.evaluate(
        model, [(inputs(slice(None)),)], ["center_gaussian"], metrics={"deletion": {"steps": 4}}, target=1
    )
    center = camlib.CenterGaussian(model)(inputs(slice(None)), 1).heatmaps()
    again = metrics.deletion(model, inputs(slice(None)), center, 1, steps=4)
    torch.testing.assert_close(table.values[table.rows[0]]["deletion"], again.double())


def test_a_single_image_with_a_single_text_has_one_class():
    forward = _with_other_images(CASES["by name"][0], {"pictures": IMAGES[:1], "words": WORDS[:1]})
    model = CASES["by name"][0]
    found = camlib.Occlusion(model, window=5, stride=5, relu=False)({"pictures": IMAGES[:1], "words": WORDS[:1]}, 1)
    expected = camlib.Occlusion(model, window=5, stride=5, relu=False, forward=forward)(IMAGES[:1], 1)
    torch.testing.assert_close(found.maps, expected.maps)


def test_what_cannot_be_known_is_refused_with_the_way_out():
    class OverTheBatch(Features):
        def forward(self, images, others):
            return (self.features(images) + others.mean()).softmax(0)

    with pytest.raises(camlib.CamlibValueError, match=r"3 images and tensors \(3, 3\).*forward=lambda model, images"):
        camlib.RISE(OverTheBatch(), samples=4)((IMAGES, MEASURED), 1)


def test_nothing_runs_where_no_tensor_is_ambiguous():
    model = Compares()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    for words in (WORDS[:2], torch.cat([WORDS, WORDS])):
        inputs = Inputs((IMAGES, words))
        assert with_known_rows(Network.of(model), inputs) is inputs
    assert not passes


def test_weight_among_the_outputs_is_not_cut_with_the_images():
    class WithWeight(WithAge):
        def forward(self, images):
            hidden = self.features(images)
            return {"logits": hidden[:, :4], "weight": self.linear.weight[:COUNT]}

    explanation = camlib.GradCAM(WithWeight(), "relu")(IMAGES, 1)
    second = explanation[1].outputs
    torch.testing.assert_close(second["logits"], explanation.outputs["logits"][1:2])
    torch.testing.assert_close(second["weight"], explanation.outputs["weight"])


def test_texts_among_the_outputs_are_not_cut_and_their_scores_are():
    class LikeClip(Compares):
        def forward(self, pictures, words):
            embeds, texts = self.features(pictures), self.embedding(words).mean(1)
            scores = embeds @ texts.T
            return {
                "logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": texts, "image_embeds": embeds
            }  # fmt: skip

    explanation = camlib.GradCAM(LikeClip(), "relu")({"pictures": IMAGES, "words": WORDS}, 1)
    second = explanation[1].outputs
    for name in ("logits_per_image", "image_embeds"):
        torch.testing.assert_close(second[name], explanation.outputs[name][1:2])
    for name in ("logits_per_text", "text_embeds"):
        torch.testing.assert_close(second[name], explanation.outputs[name])
