"""The rule by which a graph is accepted: its error against float64, and that of eager calls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib.exporting import proof
from camlib.exporting.call import Call, call_of

LAYER = "1"


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def call_for(model: nn.Module, layer: str = LAYER) -> Call:
    return call_of(camlib.GradCAM(model, layer), images(), None, None, True, None)


def run_of(call: Call) -> proof.Graph:
    """The call itself, in place of a graph."""

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return call(*given)

    return run


def of_another_layer(model: nn.Module) -> proof.Graph:
    return run_of(call_for(model, "3"))


def changed(change):
    """A graph whose heatmaps are changed."""

    def wrong(model: nn.Module) -> proof.Graph:
        run = run_of(call_for(model))

        def graph(*given: Tensor) -> tuple[Tensor, Tensor]:
            outputs, heatmaps = run(*given)
            return outputs, change(heatmaps)

        return graph

    return wrong


CHANGES = {
    "constant": lambda one: torch.full_like(one, 0.5),
    "mirrored": lambda one: one.flip(-1),
    "of the next image": lambda one: one.roll(1, 0) if len(one) > 1 else one,
    "not finite": lambda one: one * math.nan,
    "of another size": lambda one: one[..., 1:],
}
WRONG = {
    "another layer": of_another_layer,
    "slightly brighter": changed(lambda one: one + 1e-4),
    **{name: changed(change) for name, change in CHANGES.items()},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_graph_is_refused_with_both_errors(wrong):
    model = network()
    trials = proof.trials_of(call_for(model), images(), True, False)
    accepted = trials.prove(run_of(call_for(model)), "the right graph")
    assert accepted.error <= proof.STRICT
    assert accepted.reference == "eager calls in float64"
    with pytest.raises(camlib.CamlibRuntimeError, match=r"other heatmaps .* error .* is .*, that of eager calls \d"):
        trials.prove(wrong(model), "the wrong graph")


def test_other_outputs_are_refused():
    model = network()
    trials = proof.trials_of(call_for(model), images(), True, False)
    run = run_of(call_for(model))
    with pytest.raises(camlib.CamlibRuntimeError, match="other outputs"):
        trials.prove(lambda *given: (run(*given)[0] * 1.001, run(*given)[1]), "the graph")


class Cancelling(nn.Module):
    """A model whose gradients lose digits in float32: they are differences of large numbers."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.convolution, self.head, self.large = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 4), large

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.convolution(x).relu().mean((2, 3))
        return self.head(((pooled + self.large) - self.large).square())


def test_a_graph_is_accepted_if_float32_itself_is_that_far_off():
    torch.manual_seed(0)
    call = call_for(Cancelling(1e3).eval(), "convolution")
    trials = proof.trials_of(call, images(), True, False)
    run = run_of(call)
    found = trials.prove(run, "the graph")
    assert proof.STRICT < found.error <= proof.FACTOR * found.eager_error < proof.MOST
    largest = max(float((one.eager[1] - one.exact[1]).abs().max()) for one in trials.all)
    assert found.eager_error >= largest > proof.STRICT
    for change in CHANGES.values():
        with pytest.raises(camlib.CamlibRuntimeError, match="other heatmaps"):
            trials.prove(lambda *given, change=change: (run(*given)[0], change(run(*given)[1])), "the graph")


def test_a_graph_is_refused_if_float32_means_nothing():
    torch.manual_seed(0)
    call = call_for(Cancelling(3e6).eval(), "convolution")
    trials = proof.trials_of(call, images(), True, False)
    assert max(one.eager_errors[1] for one in trials.all) > proof.MOST
    with pytest.raises(camlib.CamlibRuntimeError, match="export it in float64"):
        trials.prove(run_of(call), "the graph")


class SinglePrecision(nn.Module):
    """A model that works in float32 whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolution(x.float()).relu().mean((2, 3)))


class Uncopied(SinglePrecision):
    """A model that cannot be copied."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise TypeError("there is one of these")


@pytest.mark.parametrize("kind", [SinglePrecision, Uncopied])
def test_a_model_that_cannot_be_made_float64_is_compared_with_eager_calls_by_the_strict_bound(kind):
    call = call_for(kind().eval(), "convolution")
    trials = proof.trials_of(call, images(), True, False)
    found = trials.prove(run_of(call), "the graph")
    assert "cannot be made float64" in found.reference
    assert found.eager_error == 0
    assert found.error <= proof.STRICT
    run = run_of(call)
    with pytest.raises(camlib.CamlibRuntimeError, match="cannot be made float64"):
        trials.prove(lambda *given: (run(*given)[0], run(*given)[1] + 3e-5), "the graph")


def test_the_proof_leaves_the_model_as_it_was():
    model = network()
    before = {name: (id(one), one.dtype) for name, one in model.state_dict(keep_vars=True).items()}
    module = camlib.as_module(camlib.GradCAM(model, LAYER), images())
    assert {name: (id(one), one.dtype) for name, one in model.state_dict(keep_vars=True).items()} == before
    assert float(module.metadata["error"]) <= proof.STRICT
    assert module.metadata["reference"] == "eager calls in float64"
