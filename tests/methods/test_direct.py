"""Direct calls give the explanations of ordinary calls, bit by bit, and leave everything else to ordinary calls."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlib
from camlib.methods import base, direct
from tests.networks import small_cnn

SIMPLE = sorted(name for name, method in camlib.METHODS.items() if base._is_simple(method.__new__(method)))
"""The methods that have direct calls."""


def small_vit(num_classes: int = 5) -> nn.Module:
    torch.manual_seed(1)
    vit = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=num_classes)
    nn.init.normal_(vit.heads.head.weight)
    return vit.eval()


def small_swin() -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": small_cnn, "vit": small_vit, "swin": small_swin}
TARGETS: dict[str, Any] = {
    "predicted": None,
    "one": 2,
    "one per image": [1, 2],
    "tensor": torch.tensor([2, 0]),
    "array": np.array([0, 1]),
    "several per image": [[1, 2], [0, 2]],
    "highest": camlib.TopK(2),
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def equal(one: camlib.Explanation, other: camlib.Explanation) -> None:
    """Check that all fields of two explanations are the same, and what was noted on their outputs."""
    assert vars(one).keys() == vars(other).keys()
    for name, value in vars(one).items():
        expected = vars(other)[name]
        if name == "layers":
            assert value.keys() == expected.keys()
            assert all(torch.equal(value[layer], expected[layer]) for layer in value)
        elif isinstance(value, Tensor):
            assert torch.equal(value, expected)
            assert value.dtype == expected.dtype
            assert not value.requires_grad
        else:
            assert value == expected
    assert camlib.inputs.links.noted(one.outputs) == camlib.inputs.links.noted(other.outputs)


class Counted:
    """Counts ordinary calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ordinary = 0
        together = base.explain_together

        def explain_together(*args: Any, **named: Any) -> Any:
            self.ordinary += 1
            return together(*args, **named)

        monkeypatch.setattr(base, "explain_together", explain_together)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_most_methods_of_one_layer_have_direct_calls() -> None:
    assert {"grad_cam", "hires_cam", "layer_cam", "x_grad_cam", "grad_cam_plus_plus", "eigen_cam", "fem"} <= {*SIMPLE}
    assert not {"finer_cam", "guided_grad_cam", "refine_cam", "random_cam", "score_cam", "le_grad"} & {*SIMPLE}


CASES = [("cnn", target) for target in TARGETS] + [
    (name, t) for name in ("vit", "swin") for t in ("predicted", "highest")
]


@pytest.mark.parametrize(("network", "target"), CASES)
@pytest.mark.parametrize("name", SIMPLE)
def test_direct_calls_equal_ordinary_ones(
    name: str, network: str, target: str, images: Tensor, counted: Counted
) -> None:
    model = NETWORKS[network]()
    cam = camlib.create(name, model)
    expected = cam(images, TARGETS[target])
    assert counted.ordinary == 1
    found = cam(images, TARGETS[target])
    assert counted.ordinary == 1
    equal(found, expected)
    others = 1 - images
    equal(cam(others, TARGETS[target]), camlib.create(name, model)(others, TARGETS[target]))
    assert counted.ordinary == 2  # that of the new method


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn().to(dtype), relu=False)
    expected = cam(images.to(dtype), 1)
    equal(cam(images.to(dtype), 1), expected)
    assert counted.ordinary == 1


@pytest.mark.parametrize(
    "named",
    [{"layer": "3"}, {"relu": False}, {"forward": lambda model, x: 2 * model(x)}],
    ids=["layer", "relu", "forward"],
)
def test_options(named: dict[str, Any], images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn(), **named)
    expected = cam(images)
    equal(cam(images), expected)
    assert counted.ordinary == 1


def test_options_that_change_are_read_in_each_call(images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn())
    cam(images)
    cam.relu = False
    assert bool((cam(images).maps < 0).any())


def test_a_batch_is_proved_before_it_is_direct(images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn())
    calls = []
    for given in (images[:1], images[:1], images, images, images[1:]):
        before = counted.ordinary
        cam(given)
        calls.append(counted.ordinary - before)
    assert calls == [1, 0, 1, 0, 0]


class Changing(nn.Module):
    """A small network whose attributes a test changes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_cnn()
        self.as_mapping = self.fails = self.halves = False

    def forward(self, images: Tensor) -> Any:
        if self.fails:
            raise ValueError("a model that fails")
        outputs = self.network(images[:, :, ::2, ::2] if self.halves else images)
        return {"logits": outputs} if self.as_mapping else outputs


def replaced(cam: Any) -> None:
    cam.model.network[3] = nn.Conv2d(cam.model.network[3].in_channels, cam.model.network[3].out_channels, 1)


UNUSUAL: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "outputs of another kind": (lambda cam: setattr(cam.model, "as_mapping", True), 1),
    "a function": (lambda cam: None, lambda outputs: outputs[:, 1]),
    "a target": (lambda cam: None, camlib.targets.Probability(1)),
    "a grid of another size": (lambda cam: setattr(cam.model, "halves", True), 1),
    "another layer": (lambda cam: setattr(cam, "layers", {"network.0": cam.model.network[0]}), 1),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_different_gets_an_ordinary_call(name: str, images: Tensor, counted: Counted) -> None:
    change, target = UNUSUAL[name]
    cam = camlib.GradCAM(Changing())
    cam(images, 1)
    change(cam)
    found = cam(images, target)
    assert counted.ordinary == 2
    fresh = camlib.GradCAM(cam.model, None if cam.layers is None else list(cam.layers))
    assert torch.equal(found.maps, fresh(images, target).maps)


def test_a_replaced_module_gets_an_ordinary_call(images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn())
    layer = cam(images, 1).layer
    cam.model.add_module("unused", nn.Identity())
    cam(images, 1)
    assert counted.ordinary == 2
    cam(images, 1)
    assert counted.ordinary == 2
    assert layer == cam(images, 1).layer


def test_autocast_and_inference_tensors_get_ordinary_calls(images: Tensor, counted: Counted) -> None:
    model = small_cnn()
    cam = camlib.GradCAM(model)
    cam(images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = cam(images, 1)
        equal(found, camlib.GradCAM(model)(images, 1))
    with torch.inference_mode():
        inference = images.clone()
        counted.ordinary = 0
        assert not cam(inference, 1).maps.is_inference()
    assert counted.ordinary == 1


def test_inference_mode_around_a_direct_call(images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn())
    expected = cam(images, 1)
    with torch.inference_mode():
        found = cam(images, 1)
    assert counted.ordinary == 1
    equal(found, expected)
    assert not found.maps.is_inference()


@pytest.mark.parametrize("target", [7, -1, 1.0, True, [1], "cat", torch.tensor([0.0, 1.0]), camlib.TopK(50)])
def test_wrong_targets_raise_the_errors_of_ordinary_calls(target: Any, images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn())
    with pytest.raises(camlib.CamlibError) as expected:
        cam(images, target)
    cam(images)
    with pytest.raises(camlib.CamlibError) as found:
        cam(images, target)
    assert str(found.value) == str(expected.value)


def test_an_error_of_the_model_is_raised_as_before(images: Tensor) -> None:
    cam = camlib.GradCAM(Changing())
    cam(images, 1)
    cam.model.fails = True
    with pytest.raises(ValueError, match="a model that fails"):
        cam(images, 1)


def test_the_end_of_a_time_limit_ends_the_call(images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn())
    cam(images, 1)
    ends = iter([TimeoutError("after a second")])
    cam.model.register_forward_pre_hook(lambda module, args: throw(next(ends, None)))
    with pytest.raises(TimeoutError, match="after a second"):
        cam(images, 1)


def throw(error: Exception | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize("name", ["grad_cam", "eigen_cam"])
def test_numbers_that_are_not_finite(name: str, images: Tensor) -> None:
    cam = camlib.create(name, small_cnn())
    cam(images, 1)
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(camlib.errors.NotFiniteError, match="image 1"):
        cam(images, 1)
    cam.on_nonfinite = "nan"
    with pytest.warns(camlib.CamlibWarning, match="no map for image 1"):
        found = cam(images, 1)
    assert found.missing.tolist() == [False, True]


def test_an_empty_batch_is_refused(images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn())
    cam(images)
    with pytest.raises(camlib.CamlibValueError, match="empty"):
        cam(images[:0])


class OneToken(nn.Module):
    """A vision transformer whose head reads the patches or, after a switch, only the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.reads_patches = True

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).mT
        tokens = self.norm(torch.cat([self.token.expand(len(images), -1, -1), patches], 1))
        return self.head(tokens.mean(1) if self.reads_patches else tokens[:, 0])


@pytest.mark.parametrize("target", [1, camlib.TopK(2)], ids=["one", "several"])
def test_a_score_that_reads_only_the_class_token_is_refused(target: Any, images: Tensor) -> None:
    cam = camlib.GradCAM(OneToken(), "norm")
    cam(images, target)
    cam.model.reads_patches = False
    with pytest.raises(camlib.CamlibRuntimeError, match="only the class token"):
        cam(images, target)


def test_copies_know_nothing(images: Tensor, counted: Counted) -> None:
    cam = camlib.GradCAM(small_cnn())
    expected = cam(images, 1)
    copies = [pickle.loads(pickle.dumps(cam)), copy.deepcopy(cam), cam.on(copy.deepcopy(cam.model))]
    for number, other in enumerate(copies):
        equal(other(images, 1), expected)
        assert counted.ordinary == 2 + number
    other = copy.copy(cam)
    other.layers = {"0": cam.model[0]}
    assert other(images, 1).layer == "0"
    assert cam(images, 1).layer == expected.layer


def test_few_kinds_of_images_are_remembered() -> None:
    cam = camlib.GradCAM(small_cnn())
    for side in range(16, 16 + 2 * direct.MAX_KINDS + 4, 2):
        cam(torch.rand(1, 3, side, side), 1)
    assert len(cam._direct._known) == direct.MAX_KINDS


class Drawing(nn.Module):
    """A network in training that draws random numbers of all kinds, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        noise = random.random() + float(np.random.default_rng(0).random()) + torch.rand(()).item()
        np.random.rand()
        return self.head(self.network(images + noise).mean((2, 3)))


def test_a_direct_call_leaves_no_trace(images: Tensor, counted: Counted) -> None:
    model = Drawing().train()
    cam = camlib.GradCAM(model, "network.2")
    cam(images, 1)
    model.network[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    generators = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    given = images.clone()
    cam(images, 1)
    assert counted.ordinary == 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert random.getstate() == generators[0]
    assert torch.equal(torch.get_rng_state(), generators[1])
    assert (np.random.get_state()[1] == generators[2]).all()
    assert torch.equal(images, given)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_direct_call_runs_the_network_once(images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn())
    cam(images)
    calls = []
    cam.model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    cam(images, camlib.TopK(3))
    assert calls == [2]
