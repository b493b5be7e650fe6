"""A call leaves the model, the process and the memory as they were, whether it succeeds or fails."""

from __future__ import annotations

import copy
import gc
import linecache
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import camlib
from camlib.passes import hooks
from camlib.passes.hooks import tap
from tests.networks import Network, small_cnn


class Boom(Exception):
    """Raised by the tests' own code."""


class Counts(nn.Module):
    """Returns integers, which no gradient reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).sum((1, 2, 3))


class Noisy(Network):
    """Draws random numbers in its forward pass, even in eval mode; optionally fails after the layer."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.twice = Counts(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.counts(x)
        outputs = super().forward(self.twice(self.twice(x + 0.01 * torch.randn_like(x))))
        if self.fails:
            raise Boom
        return outputs


def failing_target(outputs: Tensor) -> Tensor:
    raise Boom


def failing_reshape(features: Tensor) -> Tensor:
    raise Boom


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a call must leave alone."""
    return {
        "hooks": {
            name: (
                list(m._forward_hooks),
                list(m._forward_pre_hooks),
                list(m._backward_hooks),
                list(m._backward_pre_hooks),
                list(m._forward_hooks_always_called),
            )
            for name, m in model.named_modules()
        },
        "training": {name: m.training for name, m in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "values": {name: t.clone() for name, t in model.state_dict().items()},
        "versions": {name: t._version for name, t in model.state_dict(keep_vars=True).items()},
        "rng": torch.get_rng_state(),
        "numpy rng": np.random.get_state()[1].copy(),
        "python rng": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
    }


def assert_same(before: Any, after: Any, where: str = "state") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), where
        for key in before:
            assert_same(before[key], after[key], f"{where}[{key!r}]")
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), where
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), where
    else:
        assert before == after, where


def model_in_some_state() -> Noisy:
    """Partly frozen, partly training, with gradients and a user's own hook."""
    model = Noisy().train()
    model.norm.eval()
    model.features[0].weight.requires_grad_(False)
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    model.head.register_forward_hook(lambda module, args, output: None)
    return model


CALLS: dict[str, Callable[[Noisy, Tensor], Any]] = {
    "layer given": lambda model, x: camlib.GradCAM(model, "norm")(x),
    "layer found": lambda model, x: camlib.GradCAM(model)(x),
    "several layers and classes": lambda model, x: camlib.GradCAM(model, ["features", "norm"])(x, camlib.TopK(2)),
    "find_layer": lambda model, x: camlib.find_layer(model, x),
    "list_layers": lambda model, x: camlib.list_layers(model, x),
}

FAILURES: dict[str, Callable[[Noisy, Tensor], Any]] = {
    "target raises": lambda model, x: camlib.GradCAM(model, "norm")(x, failing_target),
    "target out of range": lambda model, x: camlib.GradCAM(model, "norm")(x, 99),
    "reshape raises": lambda model, x: camlib.GradCAM(model, "norm", reshape=failing_reshape)(x),
    "layer is a classifier": lambda model, x: camlib.GradCAM(model, "head")(x),
    "hook raises at a layer of integers": lambda model, x: camlib.GradCAM(model, "counts")(x),
    "hook raises at a layer called twice": lambda model, x: camlib.GradCAM(model, ["norm", "twice"])(x),
    "unreached second layer": lambda model, x: camlib.GradCAM(model, ["norm", "unused"])(x),
}


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_success_leaves_no_trace(call: Callable[[Noisy, Tensor], Any], mode: Callable[[], Any]) -> None:
    model, images = model_in_some_state(), torch.rand(2, 3, 8, 8)
    with mode():
        before = state(model)
        call(model, images)
        assert_same(before, state(model))


@pytest.mark.parametrize("call", FAILURES.values(), ids=FAILURES)
def test_failure_of_target_or_hook_leaves_no_trace(call: Callable[[Noisy, Tensor], Any]) -> None:
    model, images = model_in_some_state(), torch.rand(2, 3, 8, 8)
    model.unused = nn.Conv2d(1, 1, 1)
    before = state(model)
    with pytest.raises((Boom, camlib.CamlibError)):
        call(model, images)
    assert_same(before, state(model))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_failure_of_the_model_leaves_no_trace(call: Callable[[Noisy, Tensor], Any]) -> None:
    model, images = model_in_some_state(), torch.rand(2, 3, 8, 8)
    model.fails = True
    before = state(model)
    with pytest.raises(Boom):
        call(model, images)
    assert_same(before, state(model))


def test_failure_inside_capture_leaves_no_trace() -> None:
    model = model_in_some_state()
    before = state(model)
    with pytest.raises(Boom), camlib.capture(model, "norm"), torch.no_grad():
        raise Boom
    assert_same(before, state(model))


def tensors_alive() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def test_captured_activation_dies_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Network().eval(), []

    def watched(output: Any, layer: str) -> tuple[Tensor, Any]:
        point, passed_on = tap(output, layer)
        seen.extend([weakref.ref(point), weakref.ref(passed_on)])
        return point, passed_on

    monkeypatch.setattr(sys.modules["camlib.passes.hooks"], "tap", watched)

    def like_it() -> int:
        return sum(tensor.shape == (2, 6, 8, 8) for tensor in tensors_alive())

    cam = camlib.GradCAM(model, "norm")
    gc.collect()
    before = like_it()
    gc.disable()
    try:
        explanation = cam(torch.rand(2, 3, 8, 8), camlib.TopK(2))
        assert len(seen) == 2
        assert [reference() for reference in seen] == [None, None], "the activation outlives the call"
        assert like_it() == before, "something like it outlives the call"
        maps = weakref.ref(explanation.maps)
        del explanation
        assert maps() is None, "the maps outlive the explanation"
    finally:
        gc.enable()


@pytest.mark.slow
def test_number_of_live_tensors_is_constant_over_a_thousand_calls() -> None:
    model = small_cnn().eval()
    cam = camlib.GradCAM(model)

    with torch.no_grad():
        model(torch.rand(1, 3, 6, 6))
    gc.collect()
    before = len(tensors_alive())
    gc.disable()
    try:
        for _ in range(1000):
            cam(torch.rand(1, 3, 6, 6))
            with torch.no_grad():
                model(torch.rand(1, 3, 6, 6))
        after = len(tensors_alive())
    finally:
        gc.enable()
    assert after == before, "tensors are kept, or wait for the cycle collector"


CALLS = {
    "Score-CAM": lambda model, images: camlib.ScoreCAM(model)(images, 1),
    "Occlusion": lambda model, images: camlib.Occlusion(model, window=3, stride=3)(images, 1),
    "FullGrad": lambda model, images: camlib.FullGrad(model)(images, 1),
    "three calls": lambda model, images: [cam(images, 1) for cam in [camlib.GradCAM(model)] for _ in range(3)],
    "smoothing": lambda model, images: camlib.TestTimeAugmentation(camlib.GradCAM(model))(images, 1),
    "deletion": lambda model, images: camlib.metrics.deletion(model, images, torch.rand(len(images), 6, 6), 1),
    "coherency": lambda model, images: camlib.metrics.coherency(camlib.GradCAM(model), images, 1),
    "sensitivity": lambda model, images: camlib.metrics.max_sensitivity(camlib.GradCAM(model), images, 1, samples=2),
    "randomization": lambda model, images: camlib.metrics.cascading_randomization(camlib.GradCAM(model), images, 1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_inputs_are_freed_without_the_cycle_collector(call: Callable[[nn.Module, Tensor], Any]) -> None:
    model = small_cnn().eval()
    call(model, torch.rand(1, 3, 6, 6))
    gc.collect()
    gc.disable()
    try:
        before = len(tensors_alive())
        for _ in range(3):
            call(model, torch.rand(1, 3, 6, 6))
        assert len(tensors_alive()) == before
    finally:
        gc.enable()


def interrupted_at(number: int, call: Callable[[], Any]) -> bool:
    """Run a call, with a KeyboardInterrupt at the n-th line of what sets up and undoes its changes; False if over."""
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("isolation.py", "hooks.py", "undoing.py")):
            return None
        # Python runs no signal handler between the last line of a with block and its exit, which is traced as a line
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith(
            "with"
        ):
            lines += 1
            if lines == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return lines >= number


@pytest.mark.parametrize("layer", ["norm", None])
def test_an_interruption_at_any_line_leaves_no_trace_and_no_call_is_counted_for_ever(layer: str | None) -> None:
    images, number = torch.rand(2, 3, 8, 8), 1
    step = 1 if layer else 37  # the search for the layer has thousands of lines
    while True:
        model = model_in_some_state()
        before = state(model)
        more = interrupted_at(number, lambda model=model: camlib.GradCAM(model, layer)(images))
        assert_same(before, state(model), f"line {number}")
        assert not hooks._acting.get()
        assert hooks.CALL.get() is None
        camlib.GradCAM(model, layer)(images)  # a later call must not restore what the interrupted one held
        assert_same(before, state(model), f"after line {number}")
        if not more:
            break
        number += step
    assert number > 100


def test_an_interruption_of_a_direct_call_leaves_no_trace() -> None:
    images, number, more = torch.rand(2, 3, 8, 8), 0, True
    while more:
        number += 1
        model = model_in_some_state()
        cam = camlib.GradCAM(model, "norm")
        cam(images)
        before = state(model)
        more = interrupted_at(number, lambda cam=cam: cam(images))
        assert_same(before, state(model), f"line {number}")
        assert not hooks._acting.get()
        assert hooks.CALL.get() is None
        cam(images)
        assert_same(before, state(model), f"after line {number}")
    assert number > 100


class Counting(nn.Module):
    """Counts its calls in buffers, in place and by assignment, and draws from NumPy and Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_cnn()
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("assigned", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.in_place += 1
        self.assigned = self.assigned + 1
        return self.net(x) + np.random.rand() + random.random()


@pytest.mark.parametrize("training", [True, False])
def test_buffers_that_the_model_changes_and_all_random_numbers_are_restored(training: bool) -> None:
    model, images = Counting().train(training), torch.rand(1, 3, 8, 8)
    model.in_place += 5
    before, buffers = state(model), dict(model.named_buffers())
    del before["versions"]["in_place"], before["versions"]["assigned"]
    camlib.GradCAM(model)(images)
    after = state(model)
    del after["versions"]["in_place"], after["versions"]["assigned"]
    assert_same(before, after)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


class Writing(nn.Module):
    """Writes in eval mode where a call looks, and where it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = small_cnn(), nn.Embedding(4, 3, max_norm=0.1)
        self.register_buffer("counted", torch.zeros(()))
        self.register_buffer("behind", torch.zeros(()))
        self.numbers: dict[int, int] = {}
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.counted += 1
        self.behind.data.copy_(self.behind + 1)
        self.numbers[len(self.numbers)] = 1
        self.calls.append(1)
        return self.net(x) + self.table(torch.arange(4)).sum(0)


@pytest.mark.parametrize("name", ["grad_cam", "score_cam", "eigen_cam"])
def test_what_a_forward_pass_writes_stays_exactly_where_the_guide_says(name: str) -> None:
    def written(model: Writing) -> dict[str, Any]:
        return copy.deepcopy({**model.state_dict(), "numbers": model.numbers, "calls": model.calls})

    def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        pairs = ((key, before[key], after[key]) for key in before)
        return {
            key for key, one, two in pairs if not (torch.equal(one, two) if isinstance(one, Tensor) else one == two)
        }

    torch.manual_seed(0)
    model, images = Writing().eval(), torch.rand(1, 3, 8, 8)
    before = written(model)
    camlib.create(name, model, "net.3")(images, 1)
    stays = {"table.weight", "behind", "calls"}
    assert changed(before, written(model)) == stays
    before = written(model)
    model.table.weight.data += 1
    model(images)
    assert changed(before, written(model)) == stays | {"counted", "numbers"}


@pytest.mark.filterwarnings("ignore")  # torch deprecates some of it
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_observers_of_a_network_that_is_being_quantised_do_not_see_the_images(training: bool, calibrated: bool) -> None:
    from torch.ao import quantization

    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    model = nn.Sequential(*layers).train(training)
    prepare, qconfig = (
        (quantization.prepare_qat, quantization.get_default_qat_qconfig)
        if training
        else (quantization.prepare, quantization.get_default_qconfig)
    )
    model.qconfig = qconfig("x86")
    prepare(model, inplace=True)
    if calibrated:
        model(torch.rand(2, 3, 8, 8))
    before = copy.deepcopy(model.state_dict())
    camlib.GradCAM(model, "1")(10 * torch.rand(1, 3, 8, 8), 1)
    assert_same(before, model.state_dict())
    model(10 * torch.rand(1, 3, 8, 8))
    assert any(not torch.equal(one, before[name]) for name, one in model.state_dict().items())


class Caching(nn.Module):
    """Attention biases as in LeViT: in eval mode they are taken from a cache, which ``train()`` empties."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.biases, self.head = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4)), nn.Linear(4, 2)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Caching:
        if mode:
            self.cache.clear()
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        biases = self.biases * 2 if self.training else self.cache.setdefault("biases", self.biases * 2)
        return self.head(self.trunk(x).relu().mean((2, 3)) * biases)


@pytest.mark.parametrize("name", ["grad_cam", "guided_backprop", "score_cam", "eigen_cam"])
def test_what_a_model_caches_in_eval_mode_is_left_as_it_was(name: str) -> None:
    images = torch.rand(2, 3, 8, 8)
    model = Caching()
    camlib.create(name, model)(images, 1)  # in the middle of an epoch
    assert model.training
    assert not model.cache
    copy.deepcopy(model)
    with torch.no_grad():
        model.biases += 1
    fresh = Caching()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images), fresh.eval()(images))
    kept = model.cache["biases"]
    camlib.create(name, model)(images, 1)
    assert model.cache == {"biases": kept}


ATTENTION_BIASES: dict[str, tuple[dict[str, Any], int]] = {
    "levit_128s": ({"img_size": 64, "embed_dim": (16, 24, 32), "num_heads": (1, 2, 2), "depth": (1, 1, 1)}, 64),
    "levit_conv_128s": ({"img_size": 64, "embed_dim": (16, 24, 32), "num_heads": (1, 2, 2), "depth": (1, 1, 1)}, 64),
    "efficientformer_l1": ({"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 2)}, 224),
    "efficientformerv2_s0": ({"img_size": 64, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 2, 2), "num_vit": 1}, 64),
    "tiny_vit_5m_224": ({"embed_dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, 64),
    "efficientvit_m0": ({"img_size": 128, "embed_dim": (16, 16, 32), "depth": (1, 1, 1), "num_heads": (2, 2, 2)}, 128),
}
"""timm's networks that keep attention biases in eval mode, with few channels, and the size of their images."""


def with_attention_biases(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in ATTENTION_BIASES:
        model = timm.create_model(name, num_classes=3, **ATTENTION_BIASES[name][0])
    else:
        sizes = {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4]}
        config = transformers.LevitConfig(**sizes, key_dim=[8, 8, 8], depths=[1, 1, 1], num_labels=3)
        model = transformers.LevitForImageClassification(config)
    for parameter in model.parameters():
        if not parameter.any():  # such as scales that begin at zero and would hide the attention
            nn.init.normal_(parameter)
    return model.double()


def caches(model: nn.Module) -> list[dict[Any, Tensor]]:
    return [module.attention_bias_cache for module in model.modules() if hasattr(module, "attention_bias_cache")]


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = model.eval()(images)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*ATTENTION_BIASES, "Hugging Face's LeViT"])
def test_a_network_with_cached_attention_biases_predicts_with_new_ones(name: str, training: bool) -> None:
    side = ATTENTION_BIASES.get(name, ({}, 64))[1]
    model, images = with_attention_biases(name).train(training), torch.rand(2, 3, side, side).double()
    assert caches(model)
    camlib.GradCAM(model)(images, 1)
    assert model.training == training
    kept = [tensor for cache in caches(model) for tensor in cache.values()]
    assert not any(tensor.requires_grad for tensor in kept)
    assert not kept or not training
    copy.deepcopy(model)
    before = predicted(model, images)
    model.train()
    camlib.GradCAM(model)(images, 1)  # in the middle of training
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "attention_biases" in parameter_name:
                parameter += torch.randn_like(parameter)
    fresh = with_attention_biases(name)
    fresh.load_state_dict(model.state_dict())
    found = predicted(model, images)
    assert torch.equal(found, predicted(fresh, images))
    assert not torch.equal(found, before)


class ViewChanged(nn.Module):
    """As GhostNet's blocks: a view of what was computed before a layer is changed in place behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ghost, self.shortcut, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost(x).relu()[:, :4]
        y += self.shortcut(x)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "eigen_cam", "score_cam"])
def test_a_view_that_is_changed_in_place_behind_the_layer_is_no_hindrance(name: str) -> None:
    model, images = ViewChanged().double().eval(), torch.rand(2, 3, 8, 8).double()
    found = camlib.create(name, model, "shortcut", relu=False)(images, 1)
    activations = model.shortcut(images).detach()
    assert found.maps.shape == (2, 6, 6)
    if name in ("grad_cam", "hires_cam"):  # the gradient of the mean is the same at all 36 positions
        weights = model.head.weight[1] / 36
        torch.testing.assert_close(found.maps, torch.einsum("c,nchw->nhw", weights, activations).detach())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_the_model_as_it_was() -> None:
    """Another thread's call runs in the parent, not in the child."""
    model = model_in_some_state()
    before = {name: module.training for name, module in model.named_modules()}
    inside, done = threading.Event(), threading.Event()

    def target(outputs: Tensor) -> Tensor:
        inside.set()
        done.wait(20)
        return outputs[:, 0]

    thread = threading.Thread(target=lambda: camlib.GradCAM(model, "norm")(torch.rand(1, 3, 8, 8), target))
    thread.start()
    inside.wait(20)
    assert not model.training
    child = os.fork()
    if child == 0:
        now = {name: module.training for name, module in model.named_modules()}
        os._exit(0 if now == before else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
    assert {name: module.training for name, module in model.named_modules()} == before


def test_buffers_that_are_inference_tensors_are_explained_in_words() -> None:
    class Shifted(Network):
        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.register_buffer("shift", torch.ones(1, 3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + self.shift)

    assert camlib.GradCAM(Shifted().eval(), "norm")(torch.rand(1, 3, 8, 8), 1).maps.shape[0] == 1


def test_a_lazy_module_of_a_users_own_that_has_run_is_explained() -> None:
    class Lazy(nn.modules.lazy.LazyModuleMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.UninitializedParameter()

        def initialize_parameters(self, features: Tensor) -> None:
            if self.has_uninitialized_params():
                self.weight.materialize((features.shape[1],))
                nn.init.ones_(self.weight)

        def forward(self, features: Tensor) -> Tensor:
            return features.mean((2, 3)) * self.weight

    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Lazy()).eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(camlib.CamlibRuntimeError, match="lazy parameters"):
        camlib.GradCAM(model, "1")(images, 1)
    model(images)
    assert camlib.GradCAM(model, "1")(images, 1).maps.shape == (1, 6, 6)


def test_calls_that_overlap_leave_cudnn_as_it_was() -> None:
    from camlib.passes.recurrent import differentiable

    enabled = torch.backends.cudnn.enabled
    first, second = differentiable([nn.LSTM(2, 2)]), differentiable([nn.GRU(2, 2)])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.enabled
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.enabled == enabled
