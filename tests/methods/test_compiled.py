"""Compiled calls give the maps of eager ones, for every method and kind of call, and run eagerly where they cannot."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import pickle
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import camlib
from tests.networks import Network, small_cnn

COMPILED = sorted(name for name, method in camlib.METHODS.items() if method.compiles and name != "random_cam")


def compiled(cam: Any) -> Any:
    """The method, compiled without generated code, so that the test needs no C++ compiler; a graph break fails."""
    return cam.compile(backend="eager")


def small_vit(num_classes: int) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=num_classes)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def same(one: camlib.Explanation, other: camlib.Explanation) -> None:
    torch.testing.assert_close(one.maps, other.maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.scores, other.scores, equal_nan=True)
    torch.testing.assert_close(one.outputs, other.outputs)
    assert one.layers.keys() == other.layers.keys()
    for layer in one.layers:
        torch.testing.assert_close(one.layers[layer], other.layers[layer], rtol=1e-4, atol=1e-6)
    assert type(one.target) is type(other.target)
    if isinstance(one.target, Tensor):
        assert torch.equal(one.target, other.target)
    else:
        assert one.target == other.target
    for name in ("method", "layer", "input_size", "extent", "origin", "class_agnostic", "quantity", "relu"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_every_method_of_gradients_and_activations(name: str, images: Tensor) -> None:
    model = small_cnn()
    eager, fast = camlib.METHODS[name](model), compiled(camlib.METHODS[name](model))
    for given in (images, images.flip(0) + 0.1):
        same(fast(given, [2, 0]), eager(given, [2, 0]))


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize("target", [None, camlib.TopK(2), torch.tensor([[0, 1], [2, 0]]), camlib.targets.Classes(1)])
def test_several_classes_and_target_objects(target: Any, images: Tensor) -> None:
    model = Network().eval()
    eager, fast = camlib.GradCAM(model, "norm"), compiled(camlib.GradCAM(model, "norm"))
    for given in (images, 2 * images):
        same(fast(given, target), eager(given, target))


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize(
    "target",
    [
        camlib.targets.Probability(1),
        camlib.targets.Probability(),
        camlib.targets.ReST(1),
        lambda outputs: outputs[:, 1] - outputs[:, 0],
        lambda outputs: outputs[:, :2],
    ],
)
def test_other_targets(target: Any, images: Tensor) -> None:
    model = Network().eval()
    eager, fast = camlib.GradCAM(model, "norm"), compiled(camlib.GradCAM(model, "norm"))
    for given in (images, 0.5 * images):
        same(fast(given, target), eager(given, target))


CLASS, ARRAY = 1, np.array([1])


def test_equal_targets_share_a_graph_and_variables_that_functions_read_are_noticed(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Network().eval()
    eager = camlib.GradCAM(copy.deepcopy(model), "norm")
    fast = compiled(camlib.GradCAM(model, "norm"))
    targets: dict[str, Any] = {
        "object": lambda: camlib.targets.Probability(1),
        "closure": lambda index=0: lambda outputs: outputs[:, index],
        "global": lambda: lambda outputs: [outputs[:, CLASS]][0],
    }
    settings = {"class": 0}
    targets["dictionary"] = lambda: lambda outputs: outputs[:, settings["class"]]
    for name, make in targets.items():
        fast(images, make())
        passes = model.passes
        same(fast(images, make()), eager(images, make()))
        assert model.passes == passes, f"a new graph was recorded for the same {name}"
    same(fast(images, targets["closure"](2)), eager(images, targets["closure"](2)))
    settings["class"] = 2
    same(fast(images, targets["dictionary"]()), eager(images, targets["dictionary"]()))
    monkeypatch.setattr(f"{__name__}.CLASS", 2)
    same(fast(images, targets["global"]()), eager(images, targets["global"]()))


@dataclasses.dataclass(frozen=True)
class OfGlobal(camlib.targets.Target):
    """A target of equal fields whose method reads a variable."""

    def bind(self, outputs: Any) -> camlib.targets.BoundTarget:
        return camlib.targets.Classes(CLASS).bind(outputs)


@functools.wraps(torch.relu)
def wrapper(outputs: Tensor) -> Tensor:
    return outputs[:, CLASS]


def of_attribute(outputs: Tensor) -> Tensor:
    return outputs[:, of_attribute.index]


INDEX = torch.zeros((), dtype=torch.int64)


@pytest.mark.filterwarnings("ignore:the call is not compiled")
@pytest.mark.parametrize(
    "target",
    [OfGlobal(), lambda outputs: wrapper(outputs), of_attribute, lambda outputs: outputs[:, INDEX]],
    ids=["a method's variable", "a wrapper of torch's function", "a function's attribute", "a tensor as an index"],
)
def test_what_a_target_reads_elsewhere_is_noticed(target: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network().eval()
    fast, eager = compiled(camlib.GradCAM(model, "norm")), camlib.GradCAM(model, "norm")
    for index in (0, 2):
        monkeypatch.setattr(f"{__name__}.CLASS", index)
        monkeypatch.setattr(of_attribute, "index", index, raising=False)
        INDEX.fill_(index)
        same(fast(images, target), eager(images, target))


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
def test_a_target_may_mention_a_variable_that_is_not_assigned(images: Tensor) -> None:
    def target(outputs: Tensor) -> Tensor:
        return outputs[:, 1] if len(outputs) else never(outputs)

    if len(images) == 0:
        never = torch.relu
    model = Network().eval()
    same(compiled(camlib.GradCAM(model, "norm"))(images, target), camlib.GradCAM(model, "norm")(images, target))


def test_many_different_targets_run_eagerly(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camlib.methods.compiled.MAX_GRAPHS", 2)
    fast = compiled(camlib.GradCAM(Network().eval(), "norm"))

    def explain(scale: int) -> None:
        fast(images, lambda outputs: scale * outputs[:, 1])

    explain(1)
    explain(2)
    with pytest.warns(camlib.CamlibWarning, match="2 graphs, of other targets"):
        explain(3)
    explain(4)


def test_ints_lists_and_arrays_share_one_graph(images: Tensor) -> None:
    model = Network().eval()
    fast = compiled(camlib.GradCAM(model, "norm"))
    fast(images, 1)
    passes = model.passes
    for target in (0, 2, [1, 2], torch.tensor([0, 2]), torch.tensor([1, 1]).numpy()):
        same(fast(images, target), camlib.GradCAM(copy.deepcopy(model), "norm")(images, target))
    assert model.passes == passes, "a new graph was recorded for another class"


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize("kind", ["list of layers", "options", "mapping", "tuple", "forward", "reshape", "bfloat16"])
def test_kinds_of_calls(kind: str, images: Tensor) -> None:
    model: nn.Module = Network().eval()
    inputs: Any = images
    options: dict[str, Any] = {"layer": "norm"}
    if kind == "list of layers":
        options = {"layer": ["features.0", "norm"], "fuse": "max"}
    elif kind == "options":
        options["relu"] = False
    elif kind == "mapping":
        inputs = {"x": images}
    elif kind == "tuple":
        options["forward"], inputs = (lambda model, pair: model(pair[0] + pair[1])), (images, images)
    elif kind == "forward":
        options["forward"] = lambda model, x: {"logits": model(x)}
    elif kind == "reshape":
        options["reshape"] = lambda t: t.flip(1)
    else:
        model, inputs = model.bfloat16(), images.bfloat16()
    eager, fast = camlib.GradCAM(model, **options), compiled(camlib.GradCAM(model, **options))
    for _ in range(2):
        same(fast(inputs, 1), eager(inputs, 1))


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize(
    ("make", "size"), [(torchvision.models.mobilenet_v3_small, 64), (torchvision.models.swin_t, 64), (small_vit, 32)]
)
def test_architectures(make: Any, size: int) -> None:
    torch.manual_seed(0)
    model = make(num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.05)
    given = torch.rand(2, 3, size, size)
    same(compiled(camlib.GradCAM(model))(given, 1), camlib.GradCAM(model)(given, 1))


def test_each_shape_dtype_and_layout_has_its_graph(images: Tensor) -> None:
    model = Network().eval()
    eager, fast = camlib.GradCAM(model, "norm"), compiled(camlib.GradCAM(model, "norm"))
    for given in (images, images[:1], images[..., :12], images.contiguous(memory_format=torch.channels_last)):
        same(fast(given, 1), eager(given, 1))
    with torch.autocast("cpu", torch.bfloat16):
        same(fast(images, 1), eager(images, 1))
    same(fast(images, 1), eager(images, 1))
    with torch.inference_mode():
        same(fast(images.clone(), 1), eager(images.clone(), 1))


def test_changes_of_the_model_and_the_method_are_noticed(images: Tensor) -> None:
    model = Network().eval()
    fast = compiled(camlib.GradCAM(model, "norm"))

    def check() -> None:
        same(fast(images, 1), camlib.GradCAM(model, "norm", relu=fast.relu)(images, 1))

    check()
    with torch.no_grad():
        model.features[0].weight.mul_(-1)
    check()
    model.features[0].weight = nn.Parameter(torch.rand_like(model.features[0].weight))
    check()
    model.head = nn.Linear(6, 3)
    check()
    model.features[2] = nn.SiLU()
    check()
    handle = model.features.register_forward_hook(lambda module, args, output: 2 * output)
    check()
    handle.remove()
    check()
    fast.relu = False
    check()
    model.double()
    images = images.double()
    check()


def test_the_model_and_the_inputs_stay_as_they_were(images: Tensor) -> None:
    model = Network().train()
    before, given = copy.deepcopy(model.state_dict()), images.clone()
    fast = compiled(camlib.GradCAM(model, "norm"))
    for _ in range(2):
        fast(images, 1)
    assert all(module.training for module in model.modules())
    assert torch.equal(images, given)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_number_that_is_not_finite_is_an_error_that_names_the_image(images: Tensor) -> None:
    fast = compiled(camlib.GradCAM(Network().eval(), "norm"))
    fast(images, 1)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(camlib.CamlibRuntimeError, match="not finite .* for image 1"):
        fast(images, 1)
    with pytest.raises(camlib.CamlibValueError, match="class index 3"):
        fast(images, 3)


class Counting(Network):
    """A network that counts its images in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


class Branching(Network):
    """A network whose Python code depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize(
    ("make", "target", "why"),
    [
        (lambda: camlib.ScoreCAM(Network().eval(), "norm"), 1, "ScoreCAM cannot be compiled; Ablation-CAM"),
        (lambda: camlib.RandomCAM(Network().eval(), "norm"), 1, "random numbers"),
        (lambda: camlib.GradCAM(Network().eval(), "norm"), lambda y: y[:, int(y[0, 0] > 9)], "not a fixed sequence"),
        (lambda: camlib.GradCAM(Network().eval(), "norm"), lambda y: y[:, ARRAY[0]], "reads a ndarray"),
        (lambda: camlib.GradCAM(Network().eval(), "norm"), nn.Linear(3, 2), "reads a Linear, whose changes"),
        (lambda: camlib.GradCAM(Counting().eval(), "norm"), 1, "changes its own state"),
        (lambda: camlib.GradCAM(Branching().eval(), "norm"), 1, "not a fixed sequence"),
    ],
)
def test_calls_that_cannot_be_compiled_run_eagerly_with_one_warning(
    make: Any, target: Any, why: str, images: Tensor
) -> None:
    fast, eager = compiled(make()), make()
    with pytest.warns(camlib.CamlibWarning, match=f"runs eagerly: .*{why}"):
        found = fast(images, target)
    assert found.maps.shape == eager(images, target).maps.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error", camlib.CamlibWarning)
        fast(images, target)


def test_a_compiler_that_fails_is_reported_once(images: Tensor) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand more")

    model = Network().eval()
    fast = camlib.GradCAM(model, "norm").compile(backend=broken)
    with pytest.warns(camlib.CamlibWarning, match="torch.compile failed: .*no C"):
        found = fast(images, 1)
    same(found, camlib.GradCAM(model, "norm")(images, 1))


def test_a_compiler_that_computes_something_else_is_not_used(images: Tensor) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        def run(*tensors: Tensor) -> Any:
            maps, *others = graph(*tensors)
            return (1.1 * maps, *others)

        return run

    model = Network().eval()
    fast = camlib.GradCAM(model, "norm").compile(backend=wrong)
    with pytest.warns(camlib.CamlibWarning, match="torch.compile gives other maps than an eager call"):
        found = fast(images, 1)
    same(found, camlib.GradCAM(model, "norm")(images, 1))


def test_a_compiled_graph_that_fails_later_is_given_up(images: Tensor) -> None:
    runs = []

    def fails_later(graph: Any, inputs: Any) -> Any:
        def run(*tensors: Tensor) -> Any:
            runs.append(1)
            if len(runs) == 2:
                raise RuntimeError("out of memory")
            return graph(*tensors)

        return run

    model = Network().eval()
    fast, eager = camlib.GradCAM(model, "norm").compile(backend=fails_later), camlib.GradCAM(model, "norm")
    fast(images, 1)
    with pytest.warns(camlib.CamlibWarning, match="torch.compile failed: out of memory"):
        same(fast(images, 1), eager(images, 1))
    same(fast(images, 1), eager(images, 1))
    assert len(runs) == 2


def test_copies_are_compiled_for_their_own_model(images: Tensor) -> None:
    model = Network().eval()
    fast = compiled(camlib.GradCAM(model, "norm"))
    fast(images, 1)
    other = Network(5).eval()
    same(fast.on(other)(images, 4), camlib.GradCAM(other, "norm")(images, 4))
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        same(again(images, 1), fast(images, 1))


def test_options_are_those_of_torch() -> None:
    with pytest.raises(camlib.CamlibValueError, match="torch.compile does not take the options"):
        camlib.GradCAM(Network()).compile(mode="fastest")
    with pytest.raises(camlib.CamlibValueError, match="torch.compile does not take the options"):
        camlib.GradCAM(Network()).compile(speed=3)


def test_images_that_are_not_finite_cost_only_themselves(images: Tensor) -> None:
    model = Network().eval()
    fast = compiled(camlib.GradCAM(model, "norm", on_nonfinite="nan"))
    clean = fast(images, 1)
    images[1, 0, 0, 0] = torch.nan
    with pytest.warns(camlib.CamlibWarning, match="no map for image 1"):
        found = fast(images, 1)
    assert found.missing.tolist() == [False, True]
    torch.testing.assert_close(found.maps[0], clean.maps[0])


class Pair(Network):
    """A network of two inputs."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return super().forward(x) + other.mean((1, 2, 3))[:, None] * super().forward(other)


def test_one_tensor_given_twice_is_two_inputs(images: Tensor) -> None:
    model = Pair().eval()
    fast, eager = compiled(camlib.GradCAM(model, "norm#1")), camlib.GradCAM(model, "norm#1")
    for given in ((images, images), (images, images.flip(0) - 0.3)):
        same(fast(given, 1), eager(given, 1))


class Doing(Network):
    """A network that does something else with its input first."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change
        self.calls = 0
        self.own = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Any:
        return self.change(self, x, super().forward)


def counted(model: Doing, x: Tensor, forward: Any) -> Tensor:
    model.calls += 1
    return forward(x) + model.calls


DEPENDENT = {
    "percentile": (lambda m, x, f: f(x / float(np.percentile(x.numpy(), 90))), "read into Python"),
    "tolist": (lambda m, x, f: f(x / x.amax().reshape(1).tolist()[0]), "read into Python"),
    "a parameter as a number": (lambda m, x, f: f(x * float(m.own.weight[0])), "read into Python"),
    "nonzero": (lambda m, x, f: f(x * (1 + len((x > 0.9).nonzero()) / 10)), "shape of a tensor depends on numbers"),
    "unique": (lambda m, x, f: f(x * torch.unique((4 * x).round()).numel()), "shape of a tensor depends on numbers"),
    "mask": (lambda m, x, f: f(x - x[x > 0.5].sum() / 100), "shape of a tensor depends on numbers"),
    "counter": (counted, "other outputs"),
    "number among the outputs": (
        lambda m, x, f: {"logits": f(x), "n": 3},
        "a value of type int",
    ),
    "statistics": (
        lambda m, x, f: f(F.batch_norm(x, m.own.running_mean, m.own.running_var, None, None, True)),
        "changes its own state",
    ),
    "data": (lambda m, x, f: (m.own.weight.data.copy_(x.mean()), f(x))[1], "state"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_what_a_graph_would_repeat_silently_is_not_compiled(name: str, images: Tensor) -> None:
    change, why = DEPENDENT[name]
    model = Doing(change).eval()
    with pytest.warns(camlib.CamlibWarning, match=f"runs eagerly: .*{why}"):
        compiled(camlib.GradCAM(model, "norm"))(images, 1)


@pytest.mark.filterwarnings("error::camlib.CamlibWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda m, x, f: f(x[:, [2, 0, 1]]),
        lambda m, x, f: f(x[:, m.own.weight.long().cumsum(0) - 1]),
        lambda m, x, f: f(torch.where(x > 0.5, x, 0.1 * x)),
        lambda m, x, f: f(x * x.topk(3).values.mean()),
    ],
    ids=["index by a list", "index by the model's numbers", "where", "topk"],
)
def test_fixed_sequences_of_operations_are_compiled(change: Any, images: Tensor) -> None:
    model = Doing(change).eval()
    fast, eager = compiled(camlib.GradCAM(model, "norm")), camlib.GradCAM(model, "norm")
    for given in (images, images.flip(0) - 0.2):
        same(fast(given, 1), eager(given, 1))


def test_hooks_of_gradients_and_of_all_modules_are_noticed(images: Tensor) -> None:
    model = Network().eval()
    fast, eager = compiled(camlib.GradCAM(model, "features.0")), camlib.GradCAM(model, "features.0")
    same(fast(images, 1), eager(images, 1))
    handle = model.features[3].register_full_backward_hook(lambda module, given, found: (3 * given[0],))
    same(fast(images, 1), eager(images, 1))
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: 1.5 * output)
    try:
        same(fast(images, 1), eager(images, 1))
    finally:
        handle.remove()
    same(fast(images, 1), eager(images, 1))


def test_calls_that_are_not_compiled_keep_no_inputs(images: Tensor) -> None:
    fast, kept = compiled(camlib.GradCAM(Branching().eval(), "norm")), []
    for _ in range(3):
        given = images.clone()
        kept.append(weakref.ref(given))
        with warnings.catch_warnings(action="ignore"):
            fast(given, 1)
        del given
    gc.collect()
    assert not any(one() is not None for one in kept)


def test_smoothing_around_a_compiled_method_is_compiled(images: Tensor) -> None:
    model = Network().eval()
    fast, eager = compiled(camlib.GradCAM(model, "norm")), camlib.GradCAM(model, "norm")
    with warnings.catch_warnings():
        warnings.simplefilter("error", camlib.CamlibWarning)
        found = camlib.NoiseAveraging(fast, 2, chunk_size=2)(images, [2, 0])
    torch.testing.assert_close(found.maps, camlib.NoiseAveraging(eager, 2, chunk_size=2)(images, [2, 0]).maps)
