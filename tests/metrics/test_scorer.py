"""The scorer: one quantity evaluates all heatmaps, the model is left as it was, and what scored heatmaps share."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib import targets
from camlib.metrics import ScoredHeatmaps, Scorer
from camlib.metrics.readings import checked_heatmaps, in_unit_range
from tests.networks import Network, signal_cnn, small_cnn, volume_cnn


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 6, 7, dtype=torch.float64)


def as_they_are(pictures: Tensor, rows: slice) -> Tensor:
    return pictures


class Rows(nn.Module):
    """A network that counts the pictures it has run on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x)


# The quantity -------------------------------------------------------------------------------------------------------


def test_the_score_is_the_probability_of_the_class() -> None:
    model, x = small_cnn().double(), images()
    with torch.no_grad():
        probabilities = model(x).softmax(1)
    torch.testing.assert_close(Scorer(model, x).clean, probabilities.amax(1))
    torch.testing.assert_close(Scorer(model, x, 2).clean, probabilities[:, 2])
    torch.testing.assert_close(Scorer(model, x, [0, 2, 1]).clean, probabilities[[0, 1, 2], [0, 2, 1]])


@pytest.mark.parametrize("squeeze", [False, True])
def test_of_a_binary_network_it_is_the_sigmoid(squeeze: bool) -> None:
    model, x = small_cnn(1).double(), images()
    whole = nn.Sequential(model, nn.Flatten(0)) if squeeze else model
    with torch.no_grad():
        positive = model(x)[:, 0].sigmoid()
    torch.testing.assert_close(Scorer(whole, x, 1).clean, positive)
    torch.testing.assert_close(Scorer(whole, x, 0).clean, 1 - positive)
    torch.testing.assert_close(Scorer(whole, x).clean, torch.maximum(positive, 1 - positive))


def test_a_confident_network_warns_of_nothing() -> None:
    """A gradient of this probability would be useless, and is not asked for; a warning would be an error here."""
    scorer = Scorer(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 99 * torch.eye(3)[..., None, None])
    assert scorer.clean.tolist() == [1.0, 1.0, 1.0]


def test_a_given_score_replaces_the_probability_of_the_class() -> None:
    model, x = small_cnn().double(), images()
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(Scorer(model, x, 2, score=targets.Classes).clean, logits[:, 2])
    torch.testing.assert_close(Scorer(model, x, score=targets.Classes).clean, logits.amax(1))
    contrast = Scorer(model, x, 2, score=lambda classes: targets.Contrast(classes, against=0)).clean
    torch.testing.assert_close(contrast, logits[:, 2] - logits[:, 0])


def margin(outputs: Tensor) -> Tensor:
    return outputs[:, 2] - outputs[:, 1]


@pytest.mark.parametrize("score", [targets.Confidence, targets.Classes])
def test_a_callable_or_a_target_is_scored_as_it_is(score: Callable[[Any], targets.Target]) -> None:
    model, x = small_cnn().double(), images()
    with torch.no_grad():
        logits = model(x)
    torch.testing.assert_close(Scorer(model, x, margin, score=score).clean, logits[:, 2] - logits[:, 1])
    torch.testing.assert_close(Scorer(model, x, targets.Output(1), score=score).clean, logits[:, 1])


def test_the_class_is_bound_to_the_images_as_they_are() -> None:
    """Changed so that another class would be predicted, they are still scored by the first."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])[..., None, None].expand(2, 3, 4, 4).contiguous()
    scorer = Scorer(model, x)
    found = scorer.scores(torch.tensor([0, 1]), lambda pictures, rows: -pictures)
    torch.testing.assert_close(found, (-x[..., 0, 0]).softmax(1)[[0, 1], [0, 1]])


def test_a_target_receives_the_image_of_each_row() -> None:
    class Numbers(targets.BoundTarget):
        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            return image_index.double()

    scorer = Scorer(small_cnn().double(), images(), Numbers())
    assert scorer.clean.tolist() == [0.0, 1.0, 2.0]
    assert scorer.scores(torch.tensor([2, 0, 0, 1, 2]), as_they_are).tolist() == [2.0, 0.0, 0.0, 1.0, 2.0]


# Changed pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100, "auto"])
def test_rows_are_scored_of_the_pictures_that_change_makes(chunk_size: Any) -> None:
    model, x, factors = small_cnn().double(), images(), torch.rand(7, 1, 1, 1, dtype=torch.float64)
    image = torch.tensor([0, 2, 2, 1, 0, 1, 2])
    scorer = Scorer(model, x, 1, chunk_size=chunk_size)
    sizes = []

    def change(pictures: Tensor, rows: slice) -> Tensor:
        assert torch.equal(pictures, x[image[rows]])
        sizes.append(len(pictures))
        return pictures * factors[rows]

    found = scorer.scores(image, change)
    with torch.no_grad():
        expected = model(x[image] * factors).softmax(1)[:, 1]
    torch.testing.assert_close(found, expected)
    assert sum(sizes) == 7
    assert max(sizes) <= (6 if chunk_size == "auto" else chunk_size)


def test_it_costs_a_pass_an_image_and_one_a_row() -> None:
    model, x = Rows(small_cnn().double()), images()
    scorer = Scorer(model, x)
    assert model.rows == 3
    scorer.scores(torch.tensor([0, 0, 1, 2, 2]), as_they_are)
    assert model.rows == 8
    with torch.no_grad():
        outputs = model.model(x)
    known = Scorer(model, x, outputs=outputs)
    assert model.rows == 8, "the outputs were known"
    assert torch.equal(known.clean, scorer.clean)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(signal_cnn, (2, 2, 20)), (small_cnn, (2, 3, 5, 6)), (volume_cnn, (2, 1, 4, 5, 6))],
    ids=["signals", "pictures", "volumes"],
)
def test_pictures_have_any_number_of_sides(network: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    x, masks = torch.randn(shape), torch.rand(shape[0], *shape[2:])
    scorer = Scorer(network(), x)
    assert scorer.size == shape[2:]
    assert torch.equal(scorer.images, x)
    assert scorer.image_index.tolist() == [0, 1]
    scored = ScoredHeatmaps(scorer, masks)
    with torch.no_grad():
        expected = scorer.model(x * masks[:, None]).softmax(1)[[0, 1], scorer.model(x).argmax(1)]
    torch.testing.assert_close(scored.masked_scores, expected)


class Sums(nn.Module):
    """Takes its pictures out of a dict, with numbers that belong to the images."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_cnn().double()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(inputs["pixels"]) * inputs["factor"][:, None]


def test_inputs_may_be_a_dict_whose_other_entries_go_along() -> None:
    model, x, factor = Sums(), images(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    scorer = Scorer(model, {"pixels": x, "factor": factor}, 1)
    assert torch.equal(scorer.images, x)
    image = torch.tensor([2, 0, 2, 1])
    found = scorer.scores(image, lambda pictures, rows: pictures / 2)
    with torch.no_grad():
        expected = (model.model(x[image] / 2) * factor[image, None]).softmax(1)[:, 1]
    torch.testing.assert_close(found, expected)


def test_forward_stands_in_for_the_call_of_the_model() -> None:
    class Twin(nn.Module):
        """Takes two arguments, and returns something wrapped."""

        def __init__(self) -> None:
            super().__init__()
            self.model = small_cnn().double()

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
            return {"found": {"scores": self.model(left - right)}}

    model, left, right = Twin(), images(), images()
    scorer = Scorer(model, (left, right), 1, forward=lambda twin, pair: twin(*pair)["found"]["scores"])
    with torch.no_grad():
        torch.testing.assert_close(scorer.clean, model.model(left - right).softmax(1)[:, 1])
        found = scorer.scores(torch.tensor([2, 1]), lambda pictures, rows: 3 * pictures)
        expected = model.model(3 * left[[2, 1]] - right[[2, 1]]).softmax(1)[:, 1]
    torch.testing.assert_close(found, expected)


# The model is left alone --------------------------------------------------------------------------------------------


class Noisy(Network):
    """Draws random numbers in its forward pass, even in eval mode; it can fail."""

    fails_at = 99

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        outputs = super().forward(x + 0.01 * torch.randn_like(x))
        if self.passes >= self.fails_at:
            raise KeyError("no more")
        return outputs


def noisy() -> Noisy:
    """Partly frozen, partly training, with a user's own hook."""
    model = Noisy().train()
    model.norm.eval()
    model.features[0].weight.requires_grad_(False)
    model.head.register_forward_hook(lambda module, args, output: None)
    return model


def state(model: nn.Module) -> list[Any]:
    """Everything that a call must leave alone."""
    return [
        {name: module.training for name, module in model.named_modules()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        {name: (t._version, t.tolist()) for name, t in model.state_dict(keep_vars=True).items()},
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
    ]


def evaluated(model: nn.Module, x: Tensor, heatmaps: Tensor) -> None:
    scorer = Scorer(model, x, chunk_size=1)
    scorer.scores(torch.tensor([0, 1, 1]), as_they_are)
    assert not scorer.clean.requires_grad
    assert ScoredHeatmaps(scorer, heatmaps).masked_scores.shape == (2,)


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_flags_random_numbers_and_grad_mode_are_left_alone(mode: Callable[[], Any]) -> None:
    model = noisy()
    with mode():
        x, heatmaps = torch.rand(2, 3, 6, 7), torch.rand(2, 6, 7)
        before = state(model)
        evaluated(model, x, heatmaps)
        assert state(model) == before


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_they_are_left_alone_where_the_model_fails(fails_at: int) -> None:
    model = noisy()
    model.fails_at = fails_at
    x, heatmaps = torch.rand(2, 3, 6, 7), torch.rand(2, 6, 7)
    before = state(model)
    with pytest.raises(KeyError):
        evaluated(model, x, heatmaps)
    assert state(model) == before


def test_inputs_are_left_alone() -> None:
    x = images()
    before, version = x.clone(), x._version
    scorer = Scorer(small_cnn().double(), x)
    scorer.scores(scorer.image_index, lambda pictures, rows: pictures.mul_(0))
    assert torch.equal(x, before)
    assert x._version == version


def test_the_callers_autocast_is_honoured() -> None:
    model, x = small_cnn(), torch.randn(3, 3, 6, 7)
    single = Scorer(model, x, 1).clean
    with torch.autocast("cpu", torch.bfloat16):
        scorer = Scorer(model, x, 1)
        changed = scorer.scores(scorer.image_index, lambda pictures, rows: pictures / 2)
        with torch.no_grad():
            logits, halved = model(x), model(x / 2)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(scorer.clean, logits.softmax(1)[:, 1].float(), rtol=0, atol=1e-2)
    torch.testing.assert_close(changed, halved.softmax(1)[:, 1].float(), rtol=0, atol=1e-2)
    assert scorer.clean.dtype == changed.dtype == torch.float32
    assert not torch.equal(scorer.clean, single)


def test_a_wrapped_model_runs_as_the_one_inside() -> None:
    model, x = small_cnn().double(), images()
    with pytest.warns(camlib.CamlibWarning, match="DataParallel"):
        scorer = Scorer(nn.DataParallel(model), x, 1)
    assert scorer.model is model


# Errors -------------------------------------------------------------------------------------------------------------


PAIR = torch.zeros(2, 3, 6, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((7, PAIR), camlib.CamlibTypeError, "model must be a torch.nn.Module, got int"),
        ((small_cnn(), "picture"), camlib.CamlibTypeError, "hold neither images"),
        ((small_cnn(), PAIR.byte()), camlib.CamlibTypeError, "the images are torch.uint8"),
        ((small_cnn(), PAIR[:0]), camlib.CamlibValueError, "inputs are empty"),
        ((small_cnn(), PAIR, 3), camlib.CamlibValueError, "class index 3, but .* 0 to 2"),
        ((small_cnn(), PAIR, [0, 1, 2]), camlib.CamlibValueError, r"shape \(3,\) for 2 images"),
        ((small_cnn(), PAIR, True), camlib.CamlibTypeError, "torch.bool"),
        ((small_cnn(), PAIR, targets.Probability), camlib.CamlibTypeError, "not understood"),
        (
            (small_cnn(), PAIR, camlib.TopK(2)),
            camlib.CamlibValueError,
            r"2 classes of each; .*heatmaps\[:, k\]",
        ),
        ((small_cnn(), PAIR, [[0, 1], [1, 2]]), camlib.CamlibValueError, "names 2 classes of each"),
        ((small_cnn(), PAIR / 0, 0), camlib.CamlibRuntimeError, "the score is not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_scored_is_refused(arguments: tuple[Any, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Scorer(*arguments)


def test_a_chunk_has_at_least_one_row() -> None:
    with pytest.raises(camlib.CamlibValueError, match='chunk_size must be "auto" or an int of at least 1, got'):
        Scorer(small_cnn(), PAIR, chunk_size=0)
    with pytest.raises(camlib.CamlibTypeError, match='chunk_size must be "auto" or an int of at least 1, got'):
        Scorer(small_cnn(), PAIR, chunk_size="big")


def test_a_changed_picture_whose_score_is_not_finite_is_an_error() -> None:
    scorer = Scorer(small_cnn().double(), images())
    with pytest.raises(camlib.CamlibRuntimeError, match="score of a perturbed image is not finite"):
        scorer.scores(scorer.image_index, lambda pictures, rows: pictures / 0)


# Scored heatmaps ----------------------------------------------------------------------------------------------------


def test_masked_pictures_are_the_pictures_times_their_heatmaps_and_run_once() -> None:
    model, x, heatmaps = Rows(small_cnn().double()), images(), torch.rand(3, 6, 7)
    scored = ScoredHeatmaps(Scorer(model, x, 1, chunk_size=2), heatmaps)
    assert model.rows == 3, "nothing runs before it is asked for"
    with torch.no_grad():
        expected = model.model(x * heatmaps[:, None]).softmax(1)[:, 1]
    torch.testing.assert_close(scored.masked_scores, expected)
    assert scored.masked_scores is scored.masked_scores
    assert model.rows == 6


def test_heatmaps_may_be_arrays_and_of_integers() -> None:
    scorer = Scorer(small_cnn().double(), images())
    array = np.random.default_rng(0).random((3, 6, 7))
    assert torch.equal(ScoredHeatmaps(scorer, array).values, torch.from_numpy(array))
    assert ScoredHeatmaps(scorer, np.ones((3, 6, 7), np.uint8)).values.dtype == torch.float32
    torch.testing.assert_close(ScoredHeatmaps(scorer, torch.ones(3, 6, 7).int()).masked_scores, scorer.clean)


@pytest.mark.parametrize(
    ("heatmaps", "error", "match"),
    [
        ([[0.0]], camlib.CamlibTypeError, "heatmaps must be a tensor or an array, got list"),
        (torch.zeros(3, 6, 7, dtype=torch.cfloat), camlib.CamlibTypeError, "heatmaps must be real"),
        (torch.full((3, 6, 7), torch.nan), camlib.CamlibValueError, "heatmaps hold NaN"),
        (torch.zeros(2, 6, 7), camlib.CamlibValueError, r"shape \(2, 6, 7\); they must be \(3, 6, 7\)"),
        (torch.zeros(3, 2, 2), camlib.CamlibValueError, r"camlib.resize\(maps, size\)"),
        (torch.zeros(6, 7), camlib.CamlibValueError, r"they must be \(3, 6, 7\)"),
        (torch.zeros(3, 4, 6, 7), camlib.CamlibValueError, r"one class at a time: heatmaps\[:, k\] with"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heatmaps_that_do_not_fit_the_images_are_refused(heatmaps: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ScoredHeatmaps(Scorer(small_cnn().double(), images()), heatmaps)


@pytest.mark.parametrize("wrong", [-1e-3, 1.001])
def test_heatmaps_are_masks_only_within_0_and_1(wrong: float) -> None:
    heatmaps = torch.rand(3, 6, 7)
    heatmaps[1, 2, 3] = wrong
    scored = ScoredHeatmaps(Scorer(small_cnn().double(), images()), heatmaps)
    with pytest.raises(camlib.CamlibValueError, match=r"they must be in \[0, 1\]: camlib.normalize"):
        _ = scored.masked_scores
    edges = torch.tensor([[0.0, 1.0]])
    assert in_unit_range(edges) is edges


def test_heatmaps_alone_have_one_to_three_sides_by_default() -> None:
    for size in ((7,), (6, 7), (5, 6, 7)):
        assert checked_heatmaps(torch.rand(2, *size)).shape == (2, *size)
    for shape in ((7,), (2, 3, 4, 5, 6)):
        with pytest.raises(camlib.CamlibValueError, match=r"they must be \(N, H, W\)"):
            checked_heatmaps(torch.rand(shape))
    with pytest.raises(camlib.CamlibValueError, match=r"they must be \(3, H, W\)"):
        checked_heatmaps(torch.rand(2, 6, 7), images=3)
    with pytest.raises(camlib.CamlibValueError, match=r"they must be \(N, 6, 8\)"):
        checked_heatmaps(torch.rand(2, 6, 7), size=(6, 8))


# Known outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 1])
def test_outputs_of_other_images_are_refused(target: Any) -> None:
    model, x = small_cnn().double(), images()
    with torch.no_grad():
        outputs = model(torch.cat([x, x]))
    with pytest.raises(camlib.CamlibValueError, match="the outputs have 6 rows for 3 images; a metric needs one"):
        Scorer(model, x, target, outputs=outputs)


def test_outputs_that_hold_a_graph_lend_it_to_no_score() -> None:
    model, x = small_cnn().double(), images()
    scorer = Scorer(model, x, outputs=OrderedDict(logits=model(x)))
    assert not scorer.clean.requires_grad
