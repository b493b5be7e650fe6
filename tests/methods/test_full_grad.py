"""FullGrad: the decomposition is the paper's and complete, the map is made of it, what is incomplete is told."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import weakref

import pytest
import torch
import torchvision
from hypothesis import given
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camlib
from camlib.methods import full_grad
from camlib.methods.full_grad import FullGrad, full_gradients
from tests import equations
from tests.networks import RELUS, Drawn, Network, cnns, signal_cnn, small_cnn, volume_cnn


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with running statistics and biases that matter."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.bias)
    return model.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def summed(parts: camlib.methods.full_grad.FullGradients) -> Tensor:
    """The terms together, naively."""
    return parts.input_term.flatten(1).sum(1) + sum(term.flatten(1).sum(1) for term in parts.bias_terms.values())


def assert_complete(model: nn.Module, inputs: Tensor, scores: Tensor) -> None:
    parts = full_gradients(model, inputs, 1)
    assert torch.equal(parts.scores, scores)
    assert scores.abs().min() > 1e-6
    assert ((summed(parts) - scores).abs() <= 1e-8 * scores.abs()).all()
    assert (parts.residual.abs() <= 1e-8 * scores.abs()).all()


@given(cnns(activations=RELUS))
def test_the_terms_are_the_papers_and_sum_to_the_score(drawn: Drawn) -> None:
    parts = full_gradients(drawn.model, drawn.images, 1)
    source, biases = equations.full_gradients(drawn.model, drawn.images, lambda outputs: outputs[:, 1])
    torch.testing.assert_close(parts.input_term, source)
    assert list(parts.bias_terms) == list(biases)
    for name, term in biases.items():
        torch.testing.assert_close(parts.bias_terms[name], term, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        scores = drawn.model(drawn.images)[:, 1]
    assert torch.equal(parts.scores, scores)
    assert ((summed(parts) - scores).abs() <= 1e-12 * parts.magnitude).all()


@given(cnns(activations=RELUS))
def test_the_map_is_the_papers(drawn: Drawn) -> None:
    explanation = FullGrad(drawn.model)(drawn.images, 1)
    parts = equations.full_gradients(drawn.model, drawn.images, lambda outputs: outputs[:, 1])
    equations.assert_close(explanation.maps, *equations.full_grad(parts), 1e-10)
    assert (explanation.maps >= 0).all()
    assert explanation.layer == ""
    assert explanation.layers == {}
    assert explanation.method == "full_grad"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg11_bn", "densenet121"])
def test_the_decomposition_of_real_networks_is_complete(name: str) -> None:
    model = randomised(torchvision.models.get_model(name, num_classes=3))
    inputs = images(2, 3, 40, 48)
    with torch.no_grad():
        scores = model(inputs)[:, 1]
    assert_complete(model, inputs, scores)


class NormAct(nn.BatchNorm2d):
    """A batch norm that goes on with its activation, as timm's do: a hook on it would come too late."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(super().forward(x))


class Twice(nn.Module):
    """Calls one convolution twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        once = nn.functional.max_pool2d(self.conv(x).relu_(), 2)
        return self.head(self.conv(once).relu_().mean((2, 3)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1, inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)
        ),
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), NormAct(4), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ),
        nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 8), nn.ReLU(inplace=True), nn.Flatten()),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 2)),
        nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 8)), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2)
        ),
        Twice(),
    ],
    ids=["leaky relu", "activation inside the norm", "no affine", "transposed", "weight norm", "called twice"],
)
def test_it_is_complete_whatever_a_piecewise_linear_network_is_made_of(model: nn.Module) -> None:
    model, inputs = randomised(model), images(2, 3, 8, 8)
    with torch.no_grad():
        model(inputs)[:, 1]
    parts = full_gradients(model, inputs, 1)
    assert ((summed(parts) - parts.scores).abs() <= 1e-12 * parts.magnitude).all()
    assert (parts.residual.abs() <= 1e-12 * parts.magnitude).all()


def test_a_module_called_twice_contributes_twice() -> None:
    parts = full_gradients(randomised(Twice()), images(2, 3, 8, 8), 1)
    shapes = {name: tuple(term.shape) for name, term in parts.bias_terms.items()}
    assert shapes == {"conv": (2, 3, 8, 8), "conv (2)": (2, 3, 4, 4), "head": (2, 2)}


def test_what_the_model_adds_outside_its_modules_is_the_residual() -> None:
    model, inputs = small_cnn().double(), images(2, 3, 8, 8)
    parts = full_gradients(model, inputs, 1, forward=lambda model, x: model(x) + 7)
    torch.testing.assert_close(parts.residual, torch.full((2,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(summed(parts) + parts.residual, parts.scores)


@pytest.mark.parametrize("module", [nn.GELU(), nn.SiLU(inplace=True), nn.GroupNorm(2, 4), nn.Hardtanh(0, 0.1)])
def test_a_network_that_is_not_piecewise_linear_is_refused_with_its_residual(module: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.Flatten(), nn.Linear(144, 2)).double()
    inputs = images(1, 3, 8, 8)
    parts = full_gradients(model, inputs, 0)
    assert parts.residual.abs() > 1e-3 * parts.magnitude
    residual, score = parts.residual.item(), parts.scores.item()
    with pytest.raises(camlib.CamlibRuntimeError, match="do not sum to the score") as error:
        FullGrad(model)(inputs, 0)
    assert f"{residual:.6g}" in str(error.value)
    assert f"{score:.6g}" in str(error.value)
    assert "GradCAM" in str(error.value)
    assert "tolerance=" in str(error.value)
    assert FullGrad(model, tolerance=math.inf)(inputs, 0).maps.shape == (1, 8, 8)
    share = float(parts.residual.abs() / parts.magnitude)
    assert FullGrad(model, tolerance=1.01 * share)(inputs, 0).maps.amax() > 0
    with pytest.raises(camlib.CamlibRuntimeError):
        FullGrad(model, tolerance=0.99 * share)(inputs, 0)


def test_a_score_that_is_not_linear_in_the_outputs_is_refused() -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="do not sum to the score"):
        FullGrad(small_cnn())(torch.randn(2, 3, 8, 8), camlib.targets.Probability(1))


def test_single_precision_is_accepted_and_close_to_double() -> None:
    model = randomised(torchvision.models.resnet18(num_classes=3))
    inputs = images(2, 3, 48, 48)
    double = FullGrad(model)(inputs, 1).maps
    single = FullGrad(model.float())(inputs.float(), 1).maps
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-3 * double.max()


def test_autocast_in_half_precision_is_accepted() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        maps = FullGrad(small_cnn())(torch.randn(2, 3, 8, 8), 1).maps
    assert maps.dtype == torch.float32
    assert maps.amax() > 0


def test_the_terms_of_k_classes_are_those_of_one_at_a_time() -> None:
    model, inputs = randomised(Network()), images(3, 3, 9, 11)
    parts, second = full_gradients(model, inputs, [[0, 2]] * 3), full_gradients(model, inputs, 2)
    assert parts.residual.shape == parts.magnitude.shape == (3, 2)
    torch.testing.assert_close(parts.bias_terms["norm"][:, 1], second.bias_terms["norm"])
    torch.testing.assert_close(parts.input_term[:, 1], second.input_term)


@pytest.mark.parametrize(
    ("network", "shape"), [(signal_cnn, (2, 2, 30)), (volume_cnn, (2, 1, 6, 7, 8))], ids=["signal", "volume"]
)
def test_signals_and_volumes_have_maps_at_their_own_resolution(network: type, shape: tuple[int, ...]) -> None:
    explanation = FullGrad(network().double())(images(*shape), 1)
    assert explanation.maps.shape == (shape[0], *shape[2:])
    assert explanation.heatmaps().shape == explanation.maps.shape
    assert explanation.maps.amax() > 0


class Video(nn.Module):
    """Takes frames first, (N, T, 3, H, W), as Hugging Face's models do; its convolutions take (N, 3, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.transpose(1, 2)).mean((2, 3, 4)))


@pytest.mark.parametrize("frames", [1, 8])
def test_a_video_with_the_frames_first_has_the_map_that_it_has_with_the_channels_first(frames: int) -> None:
    model, inputs = Video().double(), images(2, frames, 3, 6, 7)
    explanation = FullGrad(model)(inputs, 1)
    assert explanation.maps.shape == (2, frames, 6, 7) == (2, *explanation.input_size)
    assert explanation.heatmaps().shape == explanation.maps.shape
    turned = FullGrad(model, forward=lambda model, x: model(x.transpose(1, 2)))(inputs.transpose(1, 2), 1)
    torch.testing.assert_close(explanation.maps, turned.maps)
    parts = full_gradients(model, inputs, 1)
    assert parts.input_term.shape == (2, 3, frames, 6, 7)
    assert (parts.residual.abs() <= 1e-12 * parts.magnitude).all()


def test_three_frames_of_three_channels_are_taken_as_channels_first() -> None:
    """Nothing in the shape tells which it is; the map has the input's size either way."""
    explanation = FullGrad(Video().double())(images(2, 3, 3, 6, 7), 1)
    assert explanation.maps.shape == (2, 3, 6, 7) == (2, *explanation.input_size)


class Checkpointed(nn.Module):
    """Computes its convolution again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.reentrant: bool | None = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.head(self.features(x).mean((2, 3)))
        return self.head(checkpoint(self.features, x, use_reentrant=self.reentrant).mean((2, 3)))


def test_activations_that_are_computed_again_give_the_same_map_or_an_error_that_says_so() -> None:
    model, inputs = randomised(Checkpointed(False)), images(2, 3, 8, 8)
    again = FullGrad(model)(inputs, 1).maps
    model.reentrant = None
    assert torch.equal(again, FullGrad(model)(inputs, 1).maps)
    model.reentrant = True
    with pytest.raises(camlib.CamlibRuntimeError, match="activation checkpointing.*switch it off"):
        FullGrad(model)(inputs, 1)


def test_a_densenet_that_saves_memory_gives_the_same_map() -> None:
    frugal = torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3, memory_efficient=True).double()
    plain = torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3).double()
    plain.load_state_dict(frugal.state_dict())
    inputs = images(1, 3, 40, 40)
    assert torch.equal(FullGrad(frugal)(inputs, 1).maps, FullGrad(plain)(inputs, 1).maps)


@pytest.mark.parametrize("relu", [True, False])
def test_relu_changes_nothing(relu: bool) -> None:
    model, inputs = small_cnn().double(), images(2, 3, 8, 8)
    assert torch.equal(FullGrad(model, relu=relu)(inputs, 1).maps, FullGrad(model)(inputs, 1).maps)


def test_one_forward_pass_is_enough_for_all_classes() -> None:
    model = Network()
    FullGrad(model)(torch.randn(2, 3, 8, 8), [[0, 1]] * 2)
    assert model.passes == 1


def test_nothing_keeps_the_graph_after_the_call() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        outputs = model(x)
        seen.append(weakref.ref(x))
        return outputs

    gc.collect()
    gc.disable()
    try:
        FullGrad(small_cnn(), forward=forward)(torch.randn(2, 3, 8, 8), 1)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_the_terms_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    original, memory, alive = full_grad._rescaled, [], []

    def rescaled(magnitudes: Tensor) -> Tensor:
        memory.append(weakref.ref(magnitudes.untyped_storage()))
        alive.append(sum(one() is not None for one in memory))
        return original(magnitudes)

    monkeypatch.setattr(full_grad, "_rescaled", rescaled)
    FullGrad(model.eval())(images(2, 3, 8, 8).float(), 1)
    assert len(alive) == 10
    assert max(alive) <= 2


def test_several_inputs_and_lists_of_pictures_are_differentiated_at_the_images() -> None:
    model, inputs = small_cnn().double(), images(2, 3, 8, 8)
    expected = FullGrad(model)(inputs, 1).maps
    by_name = FullGrad(model, forward=lambda model, batch: model(batch["pixels"]))({"pixels": inputs}, 1)
    as_list = FullGrad(model, forward=lambda model, pictures: model(torch.stack(pictures)))(list(inputs), 1)
    assert torch.equal(by_name.maps, expected)
    assert torch.equal(as_list.maps, expected)


def test_a_score_that_does_not_read_the_images_is_refused() -> None:
    model = small_cnn()
    with pytest.raises(camlib.CamlibRuntimeError, match="does not depend on the images"):
        FullGrad(model, forward=lambda model, x: model(x.detach()))(torch.randn(2, 3, 8, 8), 1)
    with pytest.raises(camlib.CamlibTypeError, match="uint8"):
        FullGrad(model, forward=lambda model, x: model(x / 255))(torch.ones(2, 3, 8, 8, dtype=torch.uint8), 1)
    with pytest.raises(camlib.CamlibRuntimeError, match="not finite"):
        FullGrad(model)(torch.full((2, 3, 8, 8), math.inf), 1)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(camlib.CamlibValueError, match="reads no layer"):
        FullGrad(small_cnn(), "3")
    for wrong in (-1, math.nan):
        with pytest.raises(camlib.CamlibValueError, match="tolerance"):
            FullGrad(small_cnn(), tolerance=wrong)
    for kind in ("1e-3", True):
        with pytest.raises(camlib.CamlibTypeError, match="tolerance"):
            FullGrad(small_cnn(), tolerance=kind)


SHARDED = """
import copy, os, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch before 2.6
    from torch.distributed._composable.fsdp import fully_shard
import camlib
from tests.networks import small_cnn

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh, plain = init_device_mesh("cpu", (1,)), small_cnn().eval()
model = copy.deepcopy(plain)
for part in (*model.children(), model):
    if list(part.parameters()):
        fully_shard(part, mesh=mesh)
images = torch.rand(2, 3, 8, 8)
for name in ("full_grad", "cam", "grad_cam", "guided_grad_cam"):
    found, expected = (camlib.create(name, one)(images, 1).maps for one in (model, plain))
    torch.testing.assert_close(found, expected)
print("equal")
"""


def test_a_network_sharded_by_fsdp_has_the_same_maps() -> None:
    """In another process: freed memory that is read ends the process."""
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip().endswith("equal"), done.stderr
