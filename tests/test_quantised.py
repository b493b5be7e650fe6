"""Networks without gradients: methods that read activations work on them, the others refuse and say what to do."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import camlib
from tests.few_passes import cheap

pytestmark = pytest.mark.filterwarnings("ignore:.*quantiz")  # torch's own, about the quantised network

REFUSING = sorted(name for name, method in camlib.METHODS.items() if method.needs_gradients)
WORKING = [(name, method) for name, method in camlib.METHODS.items() if not method.needs_gradients]
LAYERLESS = [name for name, method in WORKING if method.layerless]
ACTIVATION_METHODS = [name for name, method in WORKING if issubclass(method, camlib.methods.ActivationMethod)]
PERTURBING = [name for name, method in WORKING if name not in {"cam", *LAYERLESS, *ACTIVATION_METHODS}]


@pytest.fixture(scope="module")
def quantised() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.quantization.resnet18(weights=None, quantize=True, num_classes=5).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 96, 96)


@pytest.mark.parametrize("name", ACTIVATION_METHODS)
def test_activation_methods_read_the_dequantised_features(
    name: str, quantised: nn.Module, images: torch.Tensor
) -> None:
    explanation = camlib.create(name, quantised, "layer3", relu=False)(images)
    kept = []
    handle = quantised.layer3.register_forward_hook(lambda module, args, output: kept.append(output.dequantize()))
    with torch.no_grad():
        outputs = quantised(images)
    handle.remove()
    torch.testing.assert_close(explanation.maps, camlib.create(name, quantised, "layer3").maps(kept[0]))
    assert torch.equal(explanation.target, outputs.argmax(1))


@pytest.mark.parametrize("name", LAYERLESS)
def test_methods_of_the_picture_work(name: str, quantised: nn.Module, images: torch.Tensor) -> None:
    options = {"samples": 20} if name == "rise" else {}
    assert camlib.create(name, quantised, **options)(images).maps.shape == (2, 96, 96)


@pytest.mark.parametrize("name", PERTURBING)
def test_methods_that_perturb_work_on_features_as_coarse_as_the_networks(
    name: str, quantised: nn.Module, images: torch.Tensor
) -> None:
    options = {"channels": 4, "samples": 2} if name in ("ss_cam", "is_cam") else {}
    explanation = camlib.create(name, quantised, "layer4", relu=False, **options)(images[:1])
    assert explanation.maps.shape == (1, 3, 3)
    assert not explanation.degenerate.any()


@pytest.mark.parametrize("name", REFUSING)
def test_gradient_methods_refuse(name: str, quantised: nn.Module, images: torch.Tensor) -> None:
    layerless = camlib.METHODS[name].layerless
    explainer = cheap(name)(quantised, None if layerless else "layer3")
    with pytest.raises(camlib.CamlibError, match="gradient|autograd|attention"):
        explainer(images, 1)


def test_cam_refuses_what_it_cannot_check(quantised: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="floating-point network"):
        camlib.CAM(quantised, "layer4")(images)


GOOGLENET = {"googlenet": {"init_weights": False, "aux_logits": False}}


@pytest.mark.filterwarnings("ignore:must run observer")  # torch's own, about a network without calibration
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "googlenet", "shufflenet_v2_x0_5"])
def test_quantised_operations_are_followed(name: str) -> None:
    model = getattr(torchvision.models.quantization, name)(
        weights=None, quantize=True, **GOOGLENET.get(name, {})
    ).eval()
    layer = {"resnet18": "layer4", "googlenet": "inception5b", "shufflenet_v2_x0_5": "conv5"}.get(name, "features")
    assert camlib.EigenCAM(model, layer)(torch.rand(1, 3, 96, 128)).maps.shape[1:] == (3, 4)
