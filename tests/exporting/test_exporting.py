from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.exporting import Preprocessing, proof
from camlib.exporting.program import program_of

BATCHES = (1, 2, 5, 32)
CLASSES = 4
CLOSE = 1e-5
TARGETS = {
    "predicted": None,
    "fixed": 2,
    "top-k": camlib.TopK(3),
    "input": "class_index",
}


def network() -> nn.Sequential:
    """A trunk, and a tail of convolutions, pooling, norms and activations."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()


LAYER = "1"


def images(rows: int, seed: int = 7, side: int = 32) -> Tensor:
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))


def classes(rows: int) -> Tensor:
    return torch.arange(rows) % CLASSES


def expected(explainer: camlib.methods.Method, given: Tensor, target: object) -> tuple[Tensor, Tensor]:
    explanation = explainer(given, classes(len(given)) if target == "class_index" else target)
    return explanation.outputs, explanation.heatmaps()


def inputs_of(rows: int, target: object) -> tuple[Tensor, ...]:
    return (images(rows), classes(rows)) if target == "class_index" else (images(rows),)


def assert_same(found: object, wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        one = torch.as_tensor(one)
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= CLOSE * max(1.0, float(other.abs().max()))


@pytest.fixture(scope="module", params=TARGETS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, runtimes: None):
    """A method, its target and the file."""
    target = TARGETS[request.param]
    explainer = camlib.GradCAM(network(), LAYER)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return explainer, target, camlib.export_onnx(explainer, images(2), path, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_module_and_the_program_give_what_eager_calls_give(target):
    explainer = camlib.GradCAM(network(), LAYER)
    module = camlib.as_module(explainer, images(2), target=target)
    program = program_of(module).module()
    for rows in BATCHES:
        wanted = expected(explainer, images(rows), target)
        assert_same(module(*inputs_of(rows, target)), wanted)
        with torch.no_grad():
            assert_same(program(*inputs_of(rows, target)), wanted)


def test_a_program_can_be_saved_and_says_what_it_is(tmp_path):
    explainer = camlib.GradCAM(network(), LAYER)
    program = camlib.export(explainer, images(2), target=1)
    assert program.graph_module.meta["camlib"]["layer"] == LAYER
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert_same(loaded(images(3)), expected(explainer, images(3), 1))


@pytest.mark.slow
def test_onnx_runtime_and_openvino_give_what_eager_calls_give(exported):
    import onnxruntime
    import openvino

    explainer, target, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [one.name for one in session.get_inputs()]
    assert names == ["images", "class_index"][: len(names)]
    assert [one.name for one in session.get_outputs()] == ["outputs", "heatmaps"]
    for rows in BATCHES:
        wanted = expected(explainer, images(rows), target)
        given = {name: one.numpy() for name, one in zip(names, inputs_of(rows, target), strict=True)}
        assert_same(session.run(["outputs", "heatmaps"], given), wanted)
        assert_same(list(compiled(given).values()), wanted)


@pytest.mark.slow
def test_the_heatmap_of_a_new_image_is_its_own(exported):
    import onnxruntime

    explainer, target, path = exported
    session = onnxruntime.InferenceSession(str(path))
    names = [one.name for one in session.get_inputs()]
    found = []
    for seed in (21, 22):
        given = (images(1, seed), *inputs_of(1, target)[1:])
        (heatmap,) = session.run(["heatmaps"], {n: t.numpy() for n, t in zip(names, given, strict=True)})
        explanation = explainer(given[0], given[1] if len(given) > 1 else target)
        assert_same([heatmap], (explanation.heatmaps(),))
        found.append(heatmap)
    assert np.abs(found[0] - found[1]).max() > 0.1


WITHOUT_TORCH = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "camlib"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refused())
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
given = numpy.load(sys.argv[2])
outputs, heatmaps = session.run(["outputs", "heatmaps"], dict(given))
numpy.savez(sys.argv[3], outputs=outputs, heatmaps=heatmaps)
try:
    import torch
except ImportError:
    print("without torch", "torch" in sys.modules)
"""


@pytest.mark.slow
def test_the_file_runs_where_torch_cannot_be_imported(exported, tmp_path):
    explainer, target, path = exported
    names = ("images", "class_index")
    np.savez(tmp_path / "in.npz", **dict(zip(names, (t.numpy() for t in inputs_of(3, target)), strict=False)))
    command = [sys.executable, "-c", WITHOUT_TORCH, path, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": ""})
    assert done.stdout.strip() == "without torch False", done.stderr
    found = np.load(tmp_path / "out.npz")
    assert_same([found["outputs"], found["heatmaps"]], expected(explainer, images(3), target))


@pytest.mark.slow
def test_the_file_says_what_it_is(runtimes, tmp_path):
    import onnxruntime

    explainer = camlib.LayerCAM(network(), LAYER)
    path = camlib.export_onnx(explainer, images(2), tmp_path / "m.onnx", target=1, class_names=["a", "b", "c", "ü"])
    found = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert (found["method"], found["layer"], found["target"], found["opset"]) == ("layer_cam", LAYER, "1", "18")
    assert json.loads(found["class_names"]) == ["a", "b", "c", "ü"]
    assert (found["camlib"], found["torch"]) == (camlib.__version__, torch.__version__)
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


METHODS = [
    camlib.GradCAM,
    camlib.GradCAMPlusPlus,
    camlib.XGradCAM,
    camlib.HiResCAM,
    camlib.GradCAMElementWise,
    camlib.LayerCAM,
    camlib.EigenGradCAM,
    camlib.SegEigenCAM,
    camlib.EigenCAM,
    camlib.KPCACAM,
    camlib.FEM,
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.name)
def test_every_method_of_activations_and_gradients_becomes_a_module(method):
    explainer = method(network(), LAYER)
    module = camlib.as_module(explainer, images(2))
    assert_same(module(images(5)), expected(explainer, images(5), None))


def test_cam_becomes_a_module():
    linear = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    explainer = camlib.CAM(linear, "0")
    assert_same(camlib.as_module(explainer, images(2))(images(3)), expected(explainer, images(3), None))


@pytest.mark.slow
def test_several_layers_are_fused():
    explainer = camlib.RefineCAM(network(), ["1", "4"])
    assert_same(camlib.as_module(explainer, images(2))(images(3)), expected(explainer, images(3), None))


@pytest.mark.slow
def test_images_of_any_size():
    explainer = camlib.GradCAM(network(), LAYER)
    module = camlib.as_module(explainer, images(2), dynamic_size=True)
    for side in (32, 45, 70):
        given = images(3, side=side)
        assert_same(module(given), expected(explainer, given, None))


@pytest.mark.slow
@settings(max_examples=6)
@given(data=st.data())
def test_random_networks_with_tails_of_convolutions(data):
    channels = 4
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2, 1)]
    for _ in range(data.draw(st.integers(1, 3))):
        kernel = data.draw(st.sampled_from([1, 2, 3, 5]))
        padding, dilation = data.draw(st.integers(0, kernel)), data.draw(st.integers(1, 2))
        stride, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
        layers.append(
            nn.Conv2d(channels, channels, kernel, stride, padding + kernel // 2, dilation=dilation, groups=groups)
        )
        layers.append(data.draw(st.sampled_from([nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.Tanh]))())
    pooling = data.draw(st.sampled_from([nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(3)]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = nn.Sequential(*layers, pooling, nn.Flatten(), nn.LazyLinear(3)).double().eval()
    given = images(2).double()
    model(given)
    explainer = camlib.LayerCAM(model, "0")
    assert_same(
        camlib.as_module(explainer, given)(images(5, 3).double()), expected(explainer, images(5, 3).double(), None)
    )


def test_pictures_are_preprocessed_inside_the_graph():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    pictures = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    explainer = camlib.GradCAM(network(), LAYER)
    module = camlib.as_module(explainer, pictures[:2], preprocessing=Preprocessing(mean, std))
    normalised = ((pictures / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    assert_same(module(pictures), expected(explainer, normalised, None))
    assert json.loads(module.metadata["preprocessing"])["mean"] == mean


def test_heatmaps_of_another_size_and_maps_that_are_not_normalised():
    explainer = camlib.GradCAM(network(), LAYER)
    module = camlib.as_module(explainer, images(2), heatmap_size=(20, 50), normalize=False)
    explanation = explainer(images(3))
    assert_same(module(images(3)), (explanation.outputs, explanation.heatmaps((20, 50), "none")))


def test_the_module_shares_the_parameters_of_the_model_and_leaves_no_hooks():
    model = network()
    module = camlib.as_module(camlib.GradCAM(model, LAYER), images(2))
    own = {name.removeprefix("graph."): one for name, one in module.named_parameters()}
    assert {name: id(one) for name, one in own.items()} == {name: id(one) for name, one in model.named_parameters()}
    assert not any(one._forward_hooks for one in model.modules())
    with torch.no_grad():
        model[-1].weight.mul_(-2)
    assert_same(module(images(3)), expected(camlib.GradCAM(model, LAYER), images(3), None))


class Counting(nn.Module):
    """A model whose output depends on a number that is read into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        factor = float(x.detach().mean().item())
        return self.head(self.convolution(x).relu().mean((2, 3))) * (1 + factor)


def test_what_cannot_be_exported_is_refused_by_name():
    model = network()
    for method, words in [
        (camlib.AblationCAM(model, LAYER), "AblationCAM cannot be exported"),
        (camlib.FinerCAM(model, LAYER), "FinerCAM cannot be exported"),
        (camlib.RandomCAM(model, LAYER), "RandomCAM draws random numbers"),
        (camlib.RISE(model), "RISE"),
    ]:
        with pytest.raises(camlib.CamlibTypeError, match=words):
            camlib.as_module(method, images(2))
    with pytest.raises(camlib.CamlibValueError, match="the same map for every class"):
        camlib.as_module(camlib.EigenCAM(model, LAYER), images(2), target=1)
    with pytest.raises(camlib.CamlibTypeError, match="class_index"):
        camlib.as_module(camlib.GradCAM(model, LAYER), images(2), target=camlib.targets.Probability(1))
    with pytest.raises(camlib.CamlibRuntimeError, match="Counting with GradCAM cannot be exported"):
        camlib.as_module(camlib.GradCAM(Counting().eval(), "convolution"), images(2))


class Reshaped(nn.Module):
    """A model that reads the length of the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolution(x).relu()
        return self.head(torch.stack([maps[k].mean((1, 2)) for k in range(len(maps))]))


def test_a_model_that_unrolls_the_batch_is_exported_for_one_length():
    explainer = camlib.GradCAM(Reshaped().eval(), "convolution")
    with pytest.raises(camlib.CamlibRuntimeError, match="dynamic_batch=False"):
        camlib.as_module(explainer, images(2))
    module = camlib.as_module(explainer, images(2), dynamic_batch=False)
    assert_same(module(images(2, 9)), expected(explainer, images(2, 9), None))


SAME = ("layer", "side", "nodes", "reference")
"""What a line of the table says that is no rounding."""


@pytest.mark.slow
def test_eight_lines_of_the_table_of_exported_networks_still_hold(runtimes):
    from benchmarks import exporting
    from benchmarks.results import load

    lines = load(exporting.NAME)["networks"]
    for name in (
        "mobilenet_v2",
        "resnet18",
        "resnet18@layer3",
        "squeezenet1_1",
        "alexnet",
        "timm convnext_atto",
        "timm mobilenetv4_conv_small",
        "transformers ViTForImageClassification",
    ):
        found, line = exporting.exported(name), lines[name]
        assert {key: found[key] for key in SAME} == {key: line[key] for key in SAME}
        assert found["error"] <= max(proof.STRICT, proof.FACTOR * found["eager_error"])


def test_every_network_of_the_table_is_known():
    from benchmarks import exporting
    from benchmarks.results import load

    assert set(load(exporting.NAME)["networks"]) <= set(exporting.names())
    assert Path(exporting.__file__).exists()
