"""Networks whose last map is one of several, or is followed by others: the right one is found, or all are named."""

from __future__ import annotations

import contextlib
import cProfile
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camlib


def trunk(channels: int = 3, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, 4, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 4, 1), nn.ReLU())


def pooled(features: Tensor) -> Tensor:
    return features.mean((2, 3))


class Fused(nn.Module):
    """Two trunks behind a common layer; their pooled features are joined."""

    def __init__(self, common: nn.Module) -> None:
        super().__init__()
        self.common, self.left, self.right, self.head = common, trunk(), trunk(), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        images = self.common(images)
        return self.head(torch.cat([pooled(self.left(images)), pooled(self.right(images))], 1))


class Averaged(Fused):
    """Two members of an ensemble behind a common layer, whose scores are averaged."""

    def __init__(self, common: nn.Module) -> None:
        super().__init__(common)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, images: Tensor) -> Tensor:
        images = self.common(images)
        return (self.heads[0](pooled(self.left(images))) + self.heads[1](pooled(self.right(images)))) / 2


class TwoDecoders(nn.Module):
    """The sum of the scores of two decoders of one encoder."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.first, self.second = (nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()) for _ in range(2))
        self.heads, self.end = nn.ModuleList([nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)]), end

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        return self.end(self.heads[0](self.first(features)) + self.heads[1](self.second(features)))


COMMON = {
    "grey to RGB": (nn.Conv2d(1, 3, 1), 1),
    "batch norm": (nn.BatchNorm2d(3), 3),
    "a stem": (nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()), 3),
}


@pytest.mark.parametrize("common", COMMON)
@pytest.mark.parametrize("kind", [Fused, Averaged])
def test_trunks_behind_a_common_layer_are_all_named(kind: type[Fused], common: str) -> None:
    layer, channels = COMMON[common]
    model, images = kind(layer).eval(), torch.rand(2, channels, 64, 64)
    with pytest.raises(
        camlib.CamlibRuntimeError, match=r"several branches.*'left', 'right'.*layer=\['left', 'right'\]"
    ):
        camlib.GradCAM(model)(images, 1)
    assert camlib.GradCAM(model, ["left", "right"])(images, 1).maps.shape == (2, *model.left(layer(images)).shape[2:])


@pytest.mark.parametrize("end", [lambda scores: scores, pooled, lambda scores: pooled(scores).softmax(1)])
def test_decoders_whose_scores_are_added_are_all_named(end: Callable[[Tensor], Tensor]) -> None:
    target = (lambda outputs: outputs[:, 1].mean((1, 2))) if end(torch.ones(1, 3, 2, 2)).dim() == 4 else 1
    with pytest.raises(camlib.CamlibRuntimeError, match=r"several branches.*'first', 'second'"):
        camlib.GradCAM(TwoDecoders(end).eval())(torch.rand(2, 3, 32, 32), target)


def test_scores_from_levels_of_one_trunk_name_the_last_ones() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.ReLU()) for c in (3, 8, 8, 8))
            self.head = nn.Linear(32, 3)

        def forward(self, images: Tensor) -> Tensor:
            found = []
            for level in self.levels:
                images = level(images)
                found.append(pooled(images))
            return self.head(torch.cat(found, 1))

    with pytest.raises(camlib.CamlibRuntimeError, match="'levels.0'.*several layers ahead of the last one, 'levels.3'"):
        camlib.GradCAM(Pyramid().eval())(torch.rand(2, 3, 64, 64), 1)


class Residual(nn.Module):
    """A residual stream whose sums no module returns."""

    def __init__(self, stem: nn.Module, blocks: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)) for _ in range(blocks)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for block in self.blocks:
            features = features + block(features)
        return self.head(pooled(features))


@pytest.mark.parametrize(
    "stem", [nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1))]
)
def test_map_several_layers_ahead_of_the_last_is_refused(stem: nn.Module) -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="'stem'.*several layers ahead"):
        camlib.GradCAM(Residual(stem, 6).eval())(torch.rand(2, 3, 32, 32), 1)


def test_traced_convnext_is_refused_since_no_module_returns_its_sums() -> None:
    traced = torch.fx.symbolic_trace(torchvision.models.convnext_tiny().eval())
    with pytest.raises(camlib.CamlibRuntimeError, match="several layers ahead"):
        camlib.GradCAM(traced)(torch.rand(1, 3, 64, 64), 1)


def test_tokens_several_layers_ahead_of_the_last_are_refused() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 3)
            self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).mT
            for mlp in self.mlp:
                tokens = tokens + mlp(tokens)
            return self.head(tokens.mean(1))

    with pytest.raises(camlib.CamlibRuntimeError, match="'patches'.*several layers ahead of the last one, 'mlp.2"):
        camlib.GradCAM(ByHand().eval())(torch.rand(2, 3, 64, 64), 1)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gated_sum_of_experts_is_no_pooling(gate: str) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.experts = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))
            self.gate, self.mixed, self.head = nn.Linear(8, 2), nn.Identity(), nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = self.trunk(images)
            weights = self.gate(pooled(features))
            weights = weights.softmax(1) if gate == "softmax" else weights.sigmoid()
            stacked = torch.stack([expert(features).relu() for expert in self.experts], 1)
            return self.head(pooled(self.mixed((stacked * weights[:, :, None, None, None]).sum(1))))

    assert camlib.find_layer(Experts().eval(), torch.rand(1, 3, 32, 32)) == "mixed"


class Sum(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 4, 3, 4) for _ in range(count))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(pooled(sum(branch(images) for branch in self.branches)))


class Chain(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem, self.names = nn.Conv2d(3, 4, 3, 4), nn.ModuleList(nn.Identity() for _ in range(count))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for name in self.names:
            features = features + torch.relu(name(features))
        return self.head(pooled(features))


@pytest.mark.parametrize("kind", [Sum, Chain])
def test_work_grows_with_the_number_of_branches(kind: Callable[[int], nn.Module]) -> None:
    def calls(count: int) -> int:
        model, profile = kind(count).eval(), cProfile.Profile()
        with profile, contextlib.suppress(camlib.CamlibRuntimeError):
            camlib.find_layer(model, torch.rand(1, 3, 16, 16))
        return sum(entry.callcount for entry in profile.getstats())

    calls(20)
    assert calls(800) < 10 * calls(100)  # 8 times if linear, 64 times if quadratic


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), trunk(8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        return self.head(pooled(checkpoint(self.body, self.stem(images), use_reentrant=self.reentrant)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("layer", [None, "stem", "body", "body.1"])
@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.EigenCAM])
def test_reentrant_checkpoints_are_refused_by_name(method: type[camlib.methods.Method], layer: str | None) -> None:
    images = torch.rand(2, 3, 64, 64)
    if method is camlib.GradCAM or layer is None:
        with pytest.raises(camlib.CamlibRuntimeError, match=r"checkpoint.*use_reentrant"):
            method(Checkpointed(True).eval(), layer)(images, 1)
    else:
        assert method(Checkpointed(True).eval(), layer)(images, 1).layer == layer
    assert method(Checkpointed(False).eval(), layer)(images, 1).layer == (layer or "body")


@pytest.mark.parametrize("script", [torch.jit.script, lambda module: torch.jit.trace(module, torch.rand(1, 3, 64, 64))])
def test_scripted_trunk_is_refused_by_name(script: Callable[[nn.Module], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls both deprecated
        scripted = script(trunk())
    model = nn.Sequential(scripted, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    with pytest.raises(camlib.CamlibTypeError, match="contains a ScriptModule"):
        camlib.GradCAM(model)(torch.rand(1, 3, 64, 64), 1)


class Siamese(nn.Module):
    """Two inputs that run through one trunk in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(8, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = pooled(self.trunk(torch.cat([first, second]))).chunk(2)
        return self.head((one - other).abs())


def test_rows_of_one_of_two_inputs_are_picked_by_reshape() -> None:
    torch.manual_seed(0)
    model = Siamese().double().eval()
    inputs = torch.rand(2, 2, 3, 64, 64, dtype=torch.double).unbind()
    with pytest.raises(camlib.CamlibValueError, match="another input that runs in the same batch.*reshape= may pick"):
        camlib.GradCAM(model, "trunk")(inputs, 1)
    features = model.trunk(torch.cat(inputs)).detach().requires_grad_()
    one, other = pooled(features).chunk(2)
    (gradient,) = torch.autograd.grad(model.head((one - other).abs())[:, 1].sum(), features)
    expected = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()
    for rows in (slice(0, 2), slice(2, 4)):
        found = camlib.GradCAM(model, "trunk", reshape=lambda tensor, rows=rows: tensor[rows])(inputs, 1)
        torch.testing.assert_close(found.maps, expected[rows])
        several = camlib.GradCAM(model, "trunk", reshape=lambda tensor, rows=rows: tensor[rows])(
            inputs, torch.tensor([[0, 1]] * 2)
        )
        torch.testing.assert_close(several.maps[:, 1], expected[rows])
