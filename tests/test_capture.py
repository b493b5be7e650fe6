"""The cut works wherever a forward pass works, and says clearly where it cannot."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import camlib
from tests.networks import Network, small_cnn


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8)


def maps_of(model: nn.Module, images: Tensor, layer: str | None = "norm") -> Tensor:
    return camlib.GradCAM(model, layer, relu=False)(images, 1).maps


def reference(images: Tensor) -> tuple[Network, Tensor]:
    """A network in eval mode and its maps, by the definition: features, pooled gradient, sum."""
    model = Network().eval()
    with torch.no_grad():
        features = model.norm(model.features(images))
    leaf = features.clone().requires_grad_()
    model.head(leaf.relu().mean((2, 3)))[:, 1].sum().backward(inputs=[leaf])
    return model, torch.einsum("nc,nchw->nhw", leaf.grad.mean((2, 3)), features)


def test_frozen_parameters(images: Tensor) -> None:
    model, expected = reference(images)
    torch.testing.assert_close(maps_of(model.requires_grad_(False), images), expected)


def test_under_no_grad(images: Tensor) -> None:
    model, expected = reference(images)
    with torch.no_grad():
        torch.testing.assert_close(maps_of(model, images), expected)


def test_under_inference_mode(images: Tensor) -> None:
    model, expected = reference(images)
    with torch.inference_mode():
        maps = maps_of(model, images)
        assert torch.is_inference_mode_enabled()
    assert not maps.is_inference()
    torch.testing.assert_close(maps, expected)


def test_inputs_that_are_inference_tensors(images: Tensor) -> None:
    model, expected = reference(images)
    with torch.inference_mode():
        made_there = images.clone()
    torch.testing.assert_close(maps_of(model, made_there), expected)
    with torch.inference_mode():
        torch.testing.assert_close(maps_of(model, made_there), expected)


def test_inputs_that_require_grad_get_none(images: Tensor) -> None:
    model, expected = reference(images)
    watched = images.clone().requires_grad_()
    torch.testing.assert_close(maps_of(model, watched), expected)
    assert watched.grad is None


def test_models_created_in_inference_mode_are_refused(images: Tensor) -> None:
    with torch.inference_mode():
        model = Network()
    with pytest.raises(camlib.CamlibRuntimeError, match=r"created in torch\.inference_mode"):
        maps_of(model, images)


def test_train_mode_is_explained_as_eval_mode(images: Tensor) -> None:
    model, expected = reference(images)
    torch.testing.assert_close(maps_of(model.train(), images), expected)


def test_double_precision_stays_double(images: Tensor) -> None:
    model, expected = reference(images)
    maps = maps_of(model.double(), images.double())
    assert maps.dtype == torch.float64
    torch.testing.assert_close(maps.float(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_single_precision_maps(images: Tensor, dtype: torch.dtype) -> None:
    model, expected = reference(images)
    maps = maps_of(model.to(dtype), images.to(dtype))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


def test_autocast_applies_to_the_network_and_not_to_the_map(images: Tensor) -> None:
    model = Network().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explanation = camlib.GradCAM(model, "features", relu=False)(images, 1)
        assert explanation.outputs.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with camlib.capture(model, "features") as captured:
            outputs = model(images)
    activations, gradients = captured.activations, captured.gradients(outputs[:, 1])
    assert activations.dtype == torch.bfloat16
    by_hand = camlib.functional.grad_cam(activations.float(), gradients.float())
    torch.testing.assert_close(explanation.maps, by_hand, rtol=0, atol=0)


def test_autocast_region_can_still_be_trained_in_afterwards(images: Tensor) -> None:
    model = Network().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps_of(model, images)
        model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_channels_last(images: Tensor) -> None:
    model, expected = reference(images)
    maps = maps_of(model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("layer", ["features.1", "features.3", "norm", "features"])
def test_activations_survive_in_place_layers_behind_them(images: Tensor, layer: str) -> None:
    model = Network().eval()
    out_of_place = copy.deepcopy(model)
    out_of_place.features[2].inplace = False
    with torch.no_grad(), camlib.capture(model, layer) as captured:
        model(images)
    seen: list[Tensor] = []
    handle = out_of_place.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    out_of_place(images)
    handle.remove()
    torch.testing.assert_close(captured.activations, seen[0])


def test_data_parallel_is_unwrapped_and_says_so(images: Tensor) -> None:
    model, expected = reference(images)
    with pytest.warns(camlib.CamlibWarning, match="DataParallel"):
        torch.testing.assert_close(maps_of(nn.DataParallel(model), images), expected)


@pytest.mark.slow
def test_compiled_model_is_unwrapped_and_says_so(images: Tensor) -> None:
    model, expected = reference(images)
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(camlib.CamlibWarning, match=r"torch\.compile.*eagerly"):
        torch.testing.assert_close(maps_of(compiled, images), expected)
    plain = compiled(images)
    with pytest.warns(camlib.CamlibWarning, match="eagerly"):
        torch.testing.assert_close(maps_of(compiled, images), expected)
    torch.testing.assert_close(compiled(images), plain)


@pytest.mark.slow
def test_model_compiled_in_place_runs_eagerly(images: Tensor) -> None:
    model, expected = reference(images)
    model.compile(backend="eager")
    model(images)
    with pytest.warns(camlib.CamlibWarning, match="eagerly"):
        torch.testing.assert_close(maps_of(model, images), expected)


def test_inputs_on_another_device_name_both(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"inputs are on meta but the model is on cpu.*inputs\.to\('cpu'\)"):
        camlib.GradCAM(Network())(images.to("meta"))


def test_no_float64_is_made_on_the_way(images: Tensor) -> None:
    """MPS has no float64: every operation on single-precision inputs yields single precision or integers."""
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                    made.append(str(func))
            return result

    model = Network().eval()
    with Watch():
        explanation = camlib.GradCAM(model, ["features.0", "norm"])(images, camlib.TopK(2))
        camlib.GradCAM(model)(images)
        explanation.heatmaps((16, 16))
        explanation.heatmaps((16, 16), normalize="percentile")
    assert not made


def test_layer_called_twice_is_an_error_that_names_it(images: Tensor) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x)).mean((2, 3)))

    with pytest.raises(RuntimeError, match="layer 'conv'.*more than once"):
        camlib.GradCAM(Shared(), "conv")(images)


def test_layer_never_reached_is_an_error_that_names_it(images: Tensor) -> None:
    model = Network()
    model.auxiliary = nn.Conv2d(3, 3, 1)
    with pytest.raises(RuntimeError, match="layer 'auxiliary' was not reached"):
        camlib.GradCAM(model, "auxiliary")(images)
    model.blocks = nn.ModuleList([nn.Identity()])
    with pytest.raises(RuntimeError, match="ModuleList only holds modules"):
        camlib.GradCAM(model, "blocks")(images)


def test_layer_that_does_not_lead_to_the_score_is_an_error_that_names_it(images: Tensor) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x.mean((2, 3))) + 0 * self.side(x).detach().mean()

    model = Detached()
    for layer in ("side", ["stem", "side"]):
        with pytest.raises(RuntimeError, match="'side' does not lead to the score"):
            camlib.GradCAM(model, layer)(images)
    with pytest.raises(RuntimeError, match="'side' does not lead to the score"):
        camlib.GradCAM(model, "side")(images, camlib.TopK(2))


def test_layer_that_returns_no_feature_map_is_an_error_that_names_it(images: Tensor) -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1, keepdim=True)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Counts(), nn.Flatten())
    with pytest.raises(TypeError, match=r"layer '1' returns a torch\.int64 tensor"):
        camlib.GradCAM(model, "1", forward=lambda m, x: m(x).float())(images)


def test_layer_whose_batch_is_not_the_images_is_an_error(images: Tensor) -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).flatten(0, 2)
            return self.head(self.conv(windows).mean((2, 3))).unflatten(0, (len(x), -1)).mean(1)

    with pytest.raises(ValueError, match="layer 'conv' returns shape .*its rows are not the images, but parts of them"):
        camlib.GradCAM(Windows(), "conv")(images)


def test_output_changed_in_place_behind_our_back_is_an_error(images: Tensor) -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.same, self.head = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.same(x)
            x += 1
            return self.head((x + y).mean((2, 3)))

    with pytest.raises(RuntimeError, match="'same' was changed in place"):
        camlib.GradCAM(Aliased(), "same")(images)


@pytest.mark.parametrize("what", ["activation", "gradient"])
def test_non_finite_values_are_an_error_that_names_the_layer(images: Tensor, what: str) -> None:
    model = Network().eval()
    if what == "activation":
        images[0, 0, 0, 0] = torch.inf
    else:
        with torch.no_grad():
            model.head.weight[1, 2] = torch.nan
    with pytest.raises(RuntimeError, match=f"the {what} at layer 'norm' is not finite"):
        maps_of(model, images)


class Divided(camlib.methods.ActivationMethod):
    name = "divided"

    def maps(self, activations: Tensor) -> Tensor:
        return activations.mean(1) / 0


class OfInputs(camlib.methods.Method):
    name = "of_inputs"
    reads = "inputs"

    def maps_by_layer(self, forward_pass: Any) -> dict[str, Tensor]:
        return {"": forward_pass.repeated(forward_pass.inputs.images.mean(1) / 0)}


@pytest.mark.parametrize(("kind", "what"), [(Divided, "map at layer 'norm'"), (OfInputs, "map")])
def test_non_finite_maps_are_an_error_that_names_the_layer(images: Tensor, kind: Any, what: str) -> None:
    with pytest.raises(RuntimeError, match=f"the {what} is not finite"):
        kind(Network().eval(), *["norm"] * (kind is Divided))(images)


def test_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"inputs are empty: shape \(0, 3, 8, 8\)"):
        camlib.GradCAM(Network())(torch.rand(0, 3, 8, 8))


def test_two_explainers_on_one_model(images: Tensor) -> None:
    model = Network().eval()
    first, second = camlib.GradCAM(model, "features"), camlib.GradCAM(model, "norm")
    once = first(images).maps, second(images).maps
    again = second(images).maps, first(images).maps
    assert torch.equal(once[0], again[1])
    assert torch.equal(once[1], again[0])


def test_threads_explain_and_run_one_model_at_once(images: Tensor) -> None:
    """A plain forward in another thread is bit-identical, and so are the maps, while both go on."""
    model = small_cnn().eval()
    cam = camlib.GradCAM(model, "2")
    with torch.no_grad():
        plain = model(images)
    expected = cam(images, 0).maps
    wrong: list[str] = []
    start = threading.Barrier(4)

    def explain() -> None:
        start.wait()
        for _ in range(150):
            if not torch.equal(cam(images, 0).maps, expected):
                wrong.append("map")

    def run() -> None:
        start.wait()
        for _ in range(600):
            with torch.no_grad():
                outputs = model(images)
            if not torch.equal(outputs, plain) or outputs.requires_grad:
                wrong.append("forward")

    def guarded(work) -> None:
        try:
            work()
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (explain, explain, run, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_overlapping_calls_restore_train_mode_when_the_last_one_ends(images: Tensor) -> None:
    model = Network().train()
    inside, leave = threading.Event(), threading.Event()

    def slow(model: nn.Module, inputs: Tensor) -> Tensor:
        inside.set()
        assert leave.wait(20)
        assert not model.training, "the other call ended, but this one still runs"
        return model(inputs)

    thread = threading.Thread(target=lambda: camlib.GradCAM(model, "norm", forward=slow)(images))
    thread.start()
    assert inside.wait(20)
    camlib.GradCAM(model, "norm")(images)
    assert not model.training
    leave.set()
    thread.join()
    assert all(module.training for module in model.modules())


class TestOwnForward:
    """``camlib.capture`` around the user's own forward pass."""

    def test_training_step_is_unchanged(self, images: Tensor) -> None:
        model = Network().eval()
        plain = copy.deepcopy(model)
        plain(images).sum().backward()
        with camlib.capture(model, "features.0") as captured:
            outputs = model(images)
        gradients = captured.gradients(outputs.sum(1))
        outputs.sum().backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        bias = model.features[0].bias.grad
        torch.testing.assert_close(gradients.sum((0, 2, 3)), bias)

    def test_without_autograd_only_the_tail_is_recorded(self, images: Tensor) -> None:
        model = Network().eval()
        with torch.no_grad():
            with camlib.capture(model, "norm") as captured:
                outputs = model(images)
            assert not torch.is_grad_enabled()
        captured.gradients(outputs.sum(1))
        with pytest.raises(RuntimeError, match="unused|not have been used"):
            torch.autograd.grad(outputs.sum(), [model.features[0].weight])

    def test_several_layers_and_classes(self, images: Tensor) -> None:
        model = Network().eval()
        with torch.no_grad(), camlib.capture(model, [model.features, "norm"]) as captured:
            outputs = model(images)
        assert [tuple(a.shape) for a in captured.activations] == [(2, 6, 8, 8)] * 2
        per_class = captured.gradients(outputs)
        assert [tuple(g.shape) for g in per_class] == [(2, 3, 6, 8, 8)] * 2
        for layer in range(2):
            alone = captured.gradients(outputs[:, 2])[layer]
            torch.testing.assert_close(per_class[layer][:, 2], alone)

    def test_inference_mode_is_an_error_with_advice(self, images: Tensor) -> None:
        model = Network().eval()
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
            with torch.inference_mode(), camlib.capture(model, "norm"):
                model(images)
        assert not model.norm._forward_hooks

    def test_reading_before_the_forward_is_an_error(self) -> None:
        with camlib.capture(Network(), "norm") as captured:
            pass
        with pytest.raises(RuntimeError, match="'norm' was not reached"):
            _ = captured.activations


def test_tuple_outputs_keep_their_rest(images: Tensor) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.conv(x), "extra"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.head = Pair(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            maps, extra = self.pair(x)
            assert extra == "extra"
            return self.head(maps.mean((2, 3)))

    model = Model()
    torch.testing.assert_close(maps_of(model, images, "pair"), maps_of(model, images, "pair.conv"))


def test_no_warning_in_ordinary_use(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        camlib.GradCAM(Network())(images, camlib.TopK(2))


@pytest.mark.parametrize("side", [64, 512])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_gradients_in_half_precision_neither_vanish_nor_overflow(side: int, scale: float) -> None:
    """The mean over a large map has gradients below the smallest number of float16; large weights have large ones."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    nn.init.normal_(model[2].weight, std=0.02)
    images = torch.rand(1, 3, side, side)

    def score(outputs: Tensor) -> Tensor:
        return scale * outputs[:, 1].float().mean((1, 2))

    expected = camlib.GradCAM(model, "1", relu=False)(images, score).maps
    with torch.autocast("cpu", torch.float16):
        maps = camlib.GradCAM(model, "1", relu=False)(images, score).maps
    assert (maps - expected).abs().max() < 0.01 * expected.abs().max()


def test_gradient_of_the_sum_of_the_scores_is_that_of_each() -> None:
    """What a Grad-CAM written by hand asks for first."""
    model = Network().eval()
    with torch.no_grad(), camlib.capture(model, "norm") as captured:
        outputs = model(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(captured.gradients(outputs[:, 1].sum()), captured.gradients(outputs[:, 1]))
    with pytest.raises(ValueError, match=r"must be \(N,\), \(N, K\) or a single number, got \(2, 3, 1\)"):
        captured.gradients(outputs[..., None])


def compiled_parts() -> dict[str, Callable[[nn.Module], Any]]:
    """The ways to compile a part of a network."""

    def by_method(model: nn.Module) -> None:
        model.features.compile(backend="aot_eager")
        model.norm.compile(backend="aot_eager")

    def wrapped(model: nn.Module) -> None:
        model.norm = torch.compile(model.norm, backend="aot_eager")

    def function(model: nn.Module) -> None:
        model.head.forward = torch.compile(model.head.forward, backend="aot_eager")

    return {"by method": by_method, "wrapped": wrapped, "function": function}


@pytest.mark.parametrize("name", ["grad_cam", "shapley_cam", "full_grad", "smooth_grad_cam_plus_plus"])
@pytest.mark.parametrize("part", compiled_parts())
def test_a_model_with_compiled_parts_is_explained_eagerly(images: Tensor, part: str, name: str) -> None:
    from torch._dynamo import eval_frame

    model = Network().eval()
    plain = copy.deepcopy(model)
    compiled_parts()[part](model)
    with torch.no_grad():
        model(images)
    for layer in (None, "features") if name != "full_grad" else (None,):
        found, expected = (camlib.create(name, one, layer)(images, 1) for one in (model, plain))
        torch.testing.assert_close(found.maps, expected.maps)
    assert eval_frame._stance.stance == "default"


def test_calls_that_overlap_in_threads_restore_the_compiler(images: Tensor) -> None:
    from torch._dynamo import eval_frame

    first, second, over = threading.Event(), threading.Event(), []

    def outer(outputs: Tensor) -> Tensor:
        first.set()
        second.wait(20)
        return outputs[:, 0]

    def inner(outputs: Tensor) -> Tensor:
        second.set()
        thread.join(20)  # the other call ends first
        over.append(eval_frame._stance.stance)
        return outputs[:, 0]

    thread = threading.Thread(target=lambda: camlib.GradCAM(Network(), "norm")(images, outer))
    thread.start()
    first.wait(20)
    camlib.GradCAM(Network(), "norm")(images, inner)
    assert set(over) == {"force_eager"}
    assert eval_frame._stance.stance == "default"


class TestInGraph:
    """A map that is part of a loss."""

    def loss_and_gradients(self, model: nn.Module, run: Any) -> tuple[Tensor, list[Tensor]]:
        loss = run().square().mean()
        return loss, list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    @pytest.mark.parametrize("function", ["grad_cam", "hires_cam", "layer_cam", "x_grad_cam", "grad_cam_plus_plus"])
    def test_the_gradient_of_the_map_is_that_of_plain_autograd(self, function: str) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.Softplus(), nn.Conv2d(5, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        ).double()
        images, equation = torch.rand(2, 3, 8, 8).double(), getattr(camlib.functional, function)

        def captured() -> Tensor:
            with camlib.capture(model, "1") as read:
                outputs = model(images)
            return equation(*read.in_graph(outputs[:, 1]))

        def plain() -> Tensor:
            features = model[:2](images)
            score = model[2:](features)[:, 1].sum()
            return equation(features, *torch.autograd.grad(score, features, create_graph=True))

        loss, found = self.loss_and_gradients(model, captured)
        expected_loss, expected = self.loss_and_gradients(model, plain)
        torch.testing.assert_close(loss, expected_loss)
        assert found[0].abs().max() > 0
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_several_layers(self) -> None:
        model, images = small_cnn(), torch.rand(2, 3, 8, 8)
        with camlib.capture(model, ["0", "2"]) as read:
            outputs = model(images)
        assert all(a.requires_grad and g.shape == a.shape for a, g in read.in_graph(outputs[:, 1]))

    def test_without_a_graph(self) -> None:
        model, images = small_cnn(), torch.rand(2, 3, 8, 8)
        with torch.no_grad(), camlib.capture(model, "2") as read:
            outputs = model(images)
        with pytest.raises(camlib.CamlibRuntimeError, match="'2' has no graph: the forward pass ran without autograd"):
            read.in_graph(outputs[:, 1])
        with camlib.capture(model, "2") as read:
            outputs = model(images)
        with pytest.raises(camlib.CamlibValueError, match=r"must be \(N,\) or a single number"):
            read.in_graph(outputs)


def test_a_call_of_camlib_inside_a_capture_does_not_count(images: Tensor) -> None:
    model, expected = reference(images)
    with torch.no_grad(), camlib.capture(model, "norm") as captured:
        outputs = model(images)
        torch.testing.assert_close(maps_of(model, images), expected)
    gradients = captured.gradients(outputs[:, 1])
    maps = torch.einsum("nc,nchw->nhw", gradients.mean((2, 3)), captured.activations)
    torch.testing.assert_close(maps, expected)


def test_captures_in_asynchronous_tasks_do_not_meet(images: Tensor) -> None:
    model = Network().eval()

    async def captured(given: Tensor) -> Tensor:
        with camlib.capture(model, "norm") as found:
            await asyncio.sleep(0)
            model(given)
            await asyncio.sleep(0)
        return found.activations

    async def both() -> list[Tensor]:
        return list(await asyncio.gather(captured(images), captured(2 * images)))

    with ThreadPoolExecutor(1) as thread:  # tests of the browser leave a running event loop in this one
        one, other = thread.submit(asyncio.run, both()).result()
    with camlib.capture(model, "norm") as alone:
        model(images)
    torch.testing.assert_close(one, alone.activations)
    assert not torch.equal(one, other)
    assert not model.norm._forward_hooks


def test_scores_taken_under_no_grad_are_refused_with_the_reason(images: Tensor) -> None:
    model = Network().eval()
    with torch.no_grad():
        with camlib.capture(model, "norm") as captured:
            outputs = model(images)
        for scores in (outputs[:, 1], outputs.max(1).values):
            with pytest.raises(camlib.CamlibRuntimeError, match=r"taken from the outputs under torch.no_grad"):
                captured.gradients(scores)
        with torch.enable_grad():
            inside = captured.gradients(outputs[:, 1])
    torch.testing.assert_close(inside, captured.gradients(outputs[:, 1]))


def test_a_model_that_calls_camlib_is_explained_at_the_same_layer(images: Tensor) -> None:
    class Explaining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network().eval()

        def forward(self, given: Tensor) -> Tensor:
            camlib.GradCAM(self.network, "norm")(given, 0)
            return self.network(given)

    model = Explaining().eval()
    found = camlib.GradCAM(model, "network.norm", relu=False)(images, 1).maps
    torch.testing.assert_close(found, maps_of(model.network, images))
