"""Concepts: a non-negative factorisation of a set's features, each part scored by the network that follows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from camlib import deep_feature_factorization
from camlib.concepts import Concepts, nonnegative_factors
from tests import equations, networks, oracles
from tests.oracles import Split


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(kind: str) -> Tensor:
    """Matrices (P, C), not negative: dense, sparse as features are, wide, tall, nearly of low rank."""
    generator = seeded(7)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    if kind == "dense":
        return uniform(24, 12)
    if kind == "sparse":
        return torch.randn(50, 20, generator=generator, dtype=torch.float64).relu()
    if kind == "wide":
        return torch.randn(12, 100, generator=generator, dtype=torch.float64).relu()
    if kind == "tall":
        return uniform(200, 6) ** 4
    return uniform(30, 3) @ uniform(3, 20) + 0.05 * uniform(30, 20)


KINDS = ("dense", "sparse", "wide", "tall", "low rank")


def error(matrix: Tensor, left: Tensor, right: Tensor) -> float:
    return float((matrix - left @ right).norm() / matrix.norm())


# The factorisation ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_factors_leave_no_more_than_scikit_learns_do(kind):
    matrix, rank = drawn(kind), 3
    _, _, reference = equations.deep_feature_factorization(matrix[:, :, None, None], rank)
    least = equations.least_factorization_error(matrix[:, :, None, None], rank)
    for seed in (0, 1):
        found = error(matrix, *nonnegative_factors(matrix, rank, 300, seeded(seed)))
        assert least * (1 - 1e-9) <= found <= 1.02 * reference  # some reach the least, to rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_not_negative_in_unit_rows_and_in_order(kind, dtype):
    matrix = drawn(kind).to(dtype)
    left, right = nonnegative_factors(matrix, 5, 30, seeded())
    assert left.dtype == right.dtype == dtype
    assert (left.shape, right.shape) == ((len(matrix), 5), (5, matrix.shape[1]))
    assert (left >= 0).all()
    assert (right >= 0).all()
    lengths = [math.sqrt(sum(float(value) ** 2 for value in row)) for row in right]
    assert lengths == pytest.approx([1] * 5)
    columns = left.norm(dim=0).tolist()
    assert columns == sorted(columns, reverse=True)


def test_every_iteration_brings_the_product_closer():
    matrix = drawn("sparse")
    left_over = [error(matrix, *nonnegative_factors(matrix, 4, count, seeded())) for count in (1, 2, 5, 20, 80)]
    assert left_over == sorted(left_over, reverse=True)


def test_factors_depend_on_the_generator_alone():
    matrix, state = drawn("dense"), torch.random.get_rng_state()
    first, second = (nonnegative_factors(matrix, 3, 20, seeded(1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.allclose(first[0], nonnegative_factors(matrix, 3, 20, seeded(2))[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_factors_scale_with_the_matrix(scale):
    matrix = drawn("sparse")
    left, right = nonnegative_factors(matrix, 3, 50, seeded())
    scaled = nonnegative_factors(scale * matrix, 3, 50, seeded())
    torch.testing.assert_close(scaled[0] / scale, left, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scaled[1], right, rtol=1e-6, atol=1e-9)


def planted(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Three concepts that can be told apart: each has a position, and a channel, of its own."""
    left = torch.rand(40, 3, generator=seeded(5), dtype=torch.float64)
    right = torch.rand(3, 12, generator=seeded(6), dtype=torch.float64)
    left[:3] = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0])
    right[:, :3] = torch.eye(3)
    right = right / right.norm(dim=1, keepdim=True)
    return left.to(dtype), right.to(dtype)


def matched(right: Tensor, expected: Tensor) -> list[int]:
    """The permutation that brings the rows closest to those expected."""
    orders = itertools.permutations(range(len(right)))
    return list(min(orders, key=lambda order: float((right[list(order)] - expected).norm())))


@pytest.mark.parametrize("seed", range(2))
def test_planted_factors_are_recovered_up_to_their_order(seed):
    left, right = planted()
    found, vectors = nonnegative_factors(left @ right, 3, 150, seeded(seed))
    order = matched(vectors, right)
    torch.testing.assert_close(vectors[order], right, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[:, order], left, rtol=0, atol=1e-2)


def test_of_features_that_one_concept_explains_the_rest_explains_nothing():
    matrix = torch.zeros(6, 5)
    matrix[2, 3] = 4.0
    left, right = nonnegative_factors(matrix, 3, 100, seeded())
    torch.testing.assert_close(left @ right, matrix)
    assert left.isfinite().all()
    assert right.isfinite().all()
    lengths = right.norm(dim=1)
    assert torch.allclose(lengths[lengths > 0], torch.ones(()))


# Concepts of a network -----------------------------------------------------------------------------------------------


def swin() -> Split:
    """Channels-last features (N, h, w, C)."""
    m = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5)
    return Split(
        m,
        "features",
        m.features,
        lambda a: m.head(m.norm(a).mean((1, 2))),
        (32, 48),
        lambda features: features.movedim(-1, 1),
    )


@dataclass
class Network:
    """A split network, and how a grid (N, C, h, w) is put in the place of its features."""

    split: Callable[[], Split]
    place: Callable[[Tensor, Tensor], Tensor] = lambda features, grid: grid


NETWORKS = {
    "inside a residual block": Network(oracles.resnet18_bn2),
    "in-place ReLU behind": Network(oracles.densenet),
    "tokens": Network(oracles.vit, lambda tokens, grid: torch.cat([tokens[:, :1], grid.flatten(2).transpose(1, 2)], 1)),
    "channels last": Network(swin, lambda _, grid: grid.movedim(1, -1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_maps_vectors_error_and_scores_are_restated(network):
    split = network.split()
    model = oracles.randomize(split.model)
    x = torch.rand(2, 3, *split.size, dtype=torch.float64)
    found = deep_feature_factorization(model, x, 2, split.layer, iterations=10, generator=seeded(3))
    with torch.no_grad():
        features = split.trunk(x)
        grid = split.to_grid(features)
        assert found.maps.shape == (2, 2, *grid.shape[2:])
        matrix = torch.stack([grid[n, :, i, j].relu() for n, i, j in np.ndindex(2, *grid.shape[2:])])
        left, right = nonnegative_factors(matrix, 2, 10, seeded(3))
        assert found.error == pytest.approx(error(matrix, left, right))
        torch.testing.assert_close(found.vectors, right)
        for row, (n, i, j) in enumerate(np.ndindex(2, *grid.shape[2:])):
            torch.testing.assert_close(found.maps[n, :, i, j], left[row])
        for k in range(2):
            alone = torch.zeros_like(grid)
            for n, i, j in np.ndindex(2, *grid.shape[2:]):
                alone[n, :, i, j] = found.maps[n, k, i, j] * found.vectors[k]
            split.trunk(x)  # of a network with skip connections, what bypasses the layer
            torch.testing.assert_close(found.scores[:, k], split.tail(network.place(features, alone)))
    assert found.layer == split.layer
    assert found.input_size == split.size
    assert found.scores.dtype == found.maps.dtype == torch.float64


def test_scores_of_one_concept_that_says_all_are_the_networks_own():
    class Bright(nn.Module):
        """Features that are one vector, stronger where the picture is brighter."""

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True) * torch.tensor([1.0, 2, 3]).view(3, 1, 1).to(x)

    model = nn.Sequential(Bright(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).double().eval()
    x = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    found = deep_feature_factorization(model, x, 1, "0")
    torch.testing.assert_close(found.scores[:, 0], model(x))
    torch.testing.assert_close(found.vectors[0], torch.tensor([1.0, 2, 3], dtype=torch.float64) / math.sqrt(14))
    torch.testing.assert_close(found.maps[:, 0], math.sqrt(14) * x.mean(1))
    assert found.error < 1e-6


@pytest.mark.slow
def test_negative_features_are_cut_off():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).double().eval()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    features = model[0](x).detach()
    assert (features < 0).any()
    found = deep_feature_factorization(model, x, 6, "0", iterations=300)
    product = torch.einsum("nkhw,kc->nchw", found.maps, found.vectors)
    left_over = (product - features.clamp(min=0)).norm() / features.clamp(min=0).norm()
    assert found.error == pytest.approx(float(left_over))
    assert found.error < 0.02


@pytest.mark.parametrize("concepts", [1, 3])
def test_it_makes_a_forward_pass_for_the_features_and_one_for_each_concept(concepts):
    model = networks.Network().eval()
    deep_feature_factorization(model, torch.rand(2, 3, 8, 8), concepts, "norm", iterations=5)
    assert model.passes == 1 + concepts
    deep_feature_factorization(model, torch.rand(2, 3, 8, 8), concepts, iterations=5)
    assert model.passes == 2 * (1 + concepts) + 1


def test_nothing_is_differentiated(monkeypatch):
    monkeypatch.setattr(torch.autograd, "grad", None)
    found = deep_feature_factorization(networks.small_cnn().eval(), torch.rand(2, 3, 8, 8), 2, "3")
    assert not any(tensor.requires_grad for tensor in (found.maps, found.vectors, found.scores))


def test_the_model_and_the_random_numbers_of_torch_are_left_alone():
    model = networks.Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, state = torch.rand(2, 3, 8, 8), torch.random.get_rng_state()
    given = x.clone()
    first, second = (deep_feature_factorization(model, x, 3, "norm", iterations=5) for _ in range(2))
    assert torch.equal(first.maps, second.maps)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_hook_is_left_when_a_concept_cannot_be_scored():
    calls = []

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return model(x)

    model = networks.Network().eval()
    with pytest.raises(ZeroDivisionError):
        deep_feature_factorization(model, torch.rand(2, 3, 8, 8), 2, "norm", forward=forward, iterations=5)
    assert not any(module._forward_hooks for module in model.modules())


def test_half_precision_is_factored_in_single():
    model = networks.small_cnn().to(torch.bfloat16).eval()
    found = deep_feature_factorization(model, torch.rand(2, 3, 8, 8, dtype=torch.bfloat16), 2, "3")
    assert found.maps.dtype == found.vectors.dtype == found.scores.dtype == torch.float32
    assert found.scores.isfinite().all()


def test_a_layer_may_return_a_tuple_and_outputs_may_hold_more():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.inside(x), "more"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            features, more = self.block(x)
            return {"logits": self.head(features.mean((2, 3))), "more": more}

    model, x = Model().eval(), torch.rand(2, 3, 8, 8)
    found = deep_feature_factorization(model, x, 2, "block", iterations=5)
    expected = model.head(torch.einsum("nkhw,kc->nkchw", found.maps, found.vectors).mean((3, 4)))
    torch.testing.assert_close(found.scores, expected.detach())


@pytest.mark.parametrize("flat", [True, False])
def test_a_binary_network_has_two_classes(flat):
    model, x = networks.small_cnn(1).eval(), torch.rand(2, 3, 8, 8)
    whole = deep_feature_factorization(
        model, x, 2, "3", forward=lambda model, x: model(x).squeeze(1) if flat else model(x), iterations=5
    )
    assert whole.scores.shape == (2, 2, 2)
    assert torch.equal(whole.scores[..., 0], -whole.scores[..., 1])


def test_signals_and_volumes_have_concepts():
    signals = deep_feature_factorization(networks.signal_cnn().eval(), torch.rand(2, 2, 20), 2, "3", iterations=5)
    assert signals.maps.shape == (2, 2, 20)
    assert signals.heatmaps((30,)).shape == (2, 2, 30)
    volumes = deep_feature_factorization(networks.volume_cnn().eval(), torch.rand(2, 1, 4, 5, 6), 2, "3", iterations=5)
    assert volumes.heatmaps().shape == volumes.maps.shape == (2, 2, 4, 5, 6)


# What it refuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concepts": 0}, "concepts must be an int of at least 1, got 0"),
        ({"iterations": 0}, "iterations must be an int of at least 1, got 0"),
        ({"concepts": 5}, "layer '3' gives 128 positions of 4 channels, too few for 5 concepts"),
        ({"layer": ["1", "3"]}, "concepts need exactly one layer, got 1 and 3"),
        ({"layer": "9"}, "9"),
    ],
    ids=str,
)
def test_what_cannot_be_factored_is_refused(options, message):
    model = networks.small_cnn().eval()
    with pytest.raises(camlib.CamlibValueError, match=message):
        deep_feature_factorization(model, torch.rand(2, 3, 8, 8), **{"layer": "3", "concepts": 2} | options)


@pytest.mark.parametrize("concepts", [2.0, True])
def test_concepts_are_counted_in_ints(concepts):
    with pytest.raises(camlib.CamlibTypeError, match=f"concepts must be an int of at least 1, got {concepts}"):
        deep_feature_factorization(networks.small_cnn(), torch.rand(2, 3, 8, 8), concepts)


def test_features_that_are_nowhere_positive_are_refused():
    model = networks.small_cnn().eval()
    model[2].bias.data -= 1000
    with pytest.raises(camlib.CamlibValueError, match="none of them positive, too few for 2 concepts"):
        deep_feature_factorization(model, torch.rand(2, 3, 8, 8), 2, "3")


def test_outputs_of_other_things_than_classes_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(camlib.CamlibTypeError, match="class targets need"):
        deep_feature_factorization(model, torch.rand(2, 3, 8, 8), 2, "1")


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(camlib.CamlibTypeError, match="generator must be a torch.Generator, got int: 3"):
        deep_feature_factorization(networks.small_cnn().eval(), torch.rand(2, 3, 8, 8), 2, "3", generator=3)


# Heatmaps and the figure ---------------------------------------------------------------------------------------------


def concepts_of(maps: Tensor, scores: Tensor | None = None) -> Concepts:
    count = maps.shape[1]
    scores = torch.zeros(len(maps), count, 3) if scores is None else scores
    return Concepts(maps, torch.eye(count), scores, 0.1, "layer4", (8, 12))


def test_heatmaps_share_one_scale_for_all_images_of_a_concept():
    maps = torch.rand(2, 3, 2, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    heatmaps = concepts_of(maps).heatmaps()
    assert heatmaps.shape == (2, 3, 8, 12)
    for k in range(3):
        resized = [torch.from_numpy(equations.resize_bilinear(maps[n, k].numpy(), (8, 12))) for n in range(2)]
        most = max(float(resized[0].max()), float(resized[1].max()))
        for n in range(2):
            torch.testing.assert_close(heatmaps[n, k], resized[n] / most)
    assert concepts_of(maps).heatmaps((4, 6)).shape == (2, 3, 4, 6)


def test_heatmaps_of_inputs_without_a_size_need_one():
    found = Concepts(torch.rand(1, 1, 2, 3), torch.ones(1, 1), torch.zeros(1, 1, 2), 0.0, "0", None)
    with pytest.raises(camlib.CamlibValueError, match=r"give size=\(height, width\)"):
        found.heatmaps()
    assert found.heatmaps((4, 6)).shape == (1, 1, 4, 6)


def test_figure_tints_each_picture_where_its_concepts_are():
    maps = torch.zeros(2, 2, 2, 3)
    maps[0, 0, :, 0], maps[0, 1, :, 2], maps[1, 1, 0] = 1.0, 5.0, 5.0
    scores = torch.zeros(2, 2, 3)
    scores[:, 0, 2], scores[:, 1, 0] = torch.tensor([1.0, 3.0]), 0.5
    pictures = np.zeros((2, 8, 12, 3), np.uint8)
    figure = concepts_of(maps, scores).plot(pictures, class_names=["ant", "bee", "cow"])
    assert len(figure.axes) == 4
    assert [ax.get_title() for ax in figure.axes[:2]] == ["picture", "its strongest concept"]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["concept 0: cow (2.0)", "concept 1: ant (0.5)"]
    assert legend.get_title().get_text() == "layer4: scores of each concept alone"
    first, second = (patch.get_facecolor()[:3] for patch in legend.get_patches())
    tinted = figure.axes[1].images[0].get_array()
    assert tinted[0, 0].tolist() == pytest.approx([0.7 * value for value in first])
    assert tinted[0, -1].tolist() == pytest.approx([0.7 * value for value in second])
    assert (tinted[:, 5:7] == 0).all()  # nothing in the middle
    unnamed = concepts_of(maps, scores).plot(pictures).legends[0].get_texts()
    assert [text.get_text() for text in unnamed] == ["concept 0: class 2 (2.0)", "concept 1: class 0 (0.5)"]


def test_a_dozen_concepts_have_colours_of_their_own():
    figure = concepts_of(torch.rand(1, 12, 2, 3)).plot(np.zeros((1, 8, 12, 3), np.uint8))
    assert len({patch.get_facecolor() for patch in figure.legends[0].get_patches()}) == 12


def test_figures_of_other_things_are_refused():
    found, pictures = concepts_of(torch.rand(2, 2, 2, 3)), np.zeros((2, 8, 12, 3), np.uint8)
    with pytest.raises(camlib.CamlibValueError, match="2 factored images need as many pictures, got 1"):
        found.plot(pictures[:1])
    with pytest.raises(camlib.CamlibTypeError, match="class_names must be a list of names"):
        found.plot(pictures, "ant")
    with pytest.raises(camlib.CamlibValueError, match="class_names has 0 names, but class 0 scored highest"):
        found.plot(pictures, [])
    with pytest.raises(camlib.CamlibValueError, match="are not of images"):
        concepts_of(torch.rand(2, 2, 9)).plot(pictures)
