"""captum's tests of Grad-CAM, occlusion, input times gradient, guided backpropagation and guided Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import camlib
from tests.peers.case import Case

PEER = "captum faac087"
RAMP = torch.arange(16.0).view(1, 1, 4, 4)
ONES = torch.ones(1, 1, 4, 4)
DENTED = RAMP.clone()
DENTED[0, 0, 1, 1] = -4


class OneConv(nn.Module):
    """A convolution of ones with the biases -50 and -75, a ReLU, and a linear layer of +1 and -1 behind a ReLU."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.before = nn.Identity()
        self.conv1, self.relu1 = nn.Conv2d(1, 2, 3), nn.ReLU(inplace)
        self.fc1, self.relu2 = nn.Linear(8, 4, bias=False), nn.ReLU(inplace)
        nn.init.ones_(self.conv1.weight)
        with torch.no_grad():
            assert self.conv1.bias is not None
            self.conv1.bias.copy_(torch.tensor([-50.0, -75.0]))
            self.fc1.weight.copy_(torch.tensor([[1.0] * 5 + [-1.0] * 3]).expand(4, 8))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.before(x if other is None else x + other)
        score: Tensor = self.relu2(self.fc1(self.relu1(self.conv1(x)).flatten(1)))
        return score


class Signal(nn.Module):
    """A perceptron of three numbers, as a picture of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(3, 4), nn.Linear(4, 2)
        nn.init.ones_(self.linear1.weight)
        nn.init.ones_(self.linear2.weight)
        with torch.no_grad():
            self.linear1.bias.copy_(torch.tensor([-10.0, 1.0, 1.0, 1.0]))
            self.linear2.bias.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear2(self.linear1(x.flatten(1)).relu())
        return logits


def maps(
    expected: Any, method: str, model: Callable[[], nn.Module], inputs: Any, layer: str | None = None, **o: Any
) -> Callable[[], None]:
    """A check that the signed maps of class 0 are these."""

    def check() -> None:
        given = {**o, **forward_of(inputs), **({} if layer is None else {"layer": layer})}
        found = camlib.create(method, model().eval(), **given)(inputs, 0).maps
        torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype).reshape(found.shape))

    return check


def forward_of(inputs: Any) -> dict[str, Any]:
    """The option for several inputs."""
    return {"forward": lambda model, several: model(*several)} if isinstance(inputs, tuple) else {}


def attributions(expected: Any, model: Callable[[], nn.Module], inputs: Any) -> Callable[[], None]:
    """A check of the guided gradients of class 0."""

    def check() -> None:
        found = camlib.GuidedBackprop(model(), **forward_of(inputs))(
            inputs, 0
        ).maps  # of one channel, the sum of magnitudes; the expected values are not negative
        torch.testing.assert_close(found, torch.tensor(expected).reshape(found.shape))

    return check


def frozen() -> nn.Module:
    """Without gradients of parameters."""
    return OneConv().requires_grad_(False)


def in_place() -> nn.Module:
    return OneConv(inplace=True)


signed = {"relu": False}
CONV = [[11.25, 13.5], [20.25, 22.5]]
GUIDED = [[0.0, 1.0, 1.0, 1.0], [1.0, 3.0, 3.0, 2.0], [1.0, 3.0, 3.0, 2.0], [1.0, 2.0, 2.0, 1.0]]
OF_TWO = [[1.0, 2.0, 2.0, 1.0], [2.0, 4.0, 4.0, 2.0], [2.0, 4.0, 4.0, 2.0], [1.0, 2.0, 2.0, 1.0]]
POSITIVE = DENTED.clamp(min=0) * 0.5625
SIGNAL = torch.tensor([[[[20.0, 50.0, 30.0]]]])
TWO_SIGNALS = torch.tensor([[[[2.0, 10.0, 3.0]]], [[[20.0, 50.0, 30.0]]]])
LINEAR = "camlib explains layers with a grid; this one returns (N, C)"
NEURON = "camlib explains scores of the outputs, not neurons of inner layers"
SEVERAL = "camlib makes one map for each image, also if there are several inputs"
NEAREST = "guided Grad-CAM: captum enlarges the map by repetition, camlib linearly with half-pixel centres"


def refused(call: Callable[[], object]) -> Callable[[], None]:
    """A check that a call raises one of camlib's errors."""

    def check() -> None:
        try:
            call()
        except camlib.CamlibError:
            return
        raise AssertionError("no error")

    return check


def occluded(**options: Any) -> Callable[[], None]:
    return refused(lambda: camlib.Occlusion(OneConv(), **options)(RAMP, 0))


def _cases() -> list[Case]:
    def of(test: str, check: Callable[[], object]) -> Case:
        return Case(PEER, test, "pass", check)

    cam, occ, gb, gg = "test_grad_cam", "test_occlusion", "test_guided_backprop", "test_guided_grad_cam"
    passing = [
        of(f"{cam}.simple_input_conv", maps(CONV, "grad_cam", OneConv, RAMP, "conv1", **signed)),
        of(f"{cam}.simple_input_conv_no_grad", maps(CONV, "grad_cam", frozen, RAMP, "conv1", **signed)),
        of(
            f"{cam}.simple_input_conv_relu",
            maps([[0.0, 4.0], [28.0, 32.5]], "grad_cam", OneConv, RAMP, "relu1", **signed),
        ),
        of(
            f"{cam}.simple_input_conv_without_final_relu",
            maps(0.5625 * DENTED, "grad_cam", OneConv, DENTED, "before", **signed),
        ),
        of(f"{cam}.simple_input_conv_fc_with_final_relu", maps(POSITIVE, "grad_cam", OneConv, DENTED, "before")),
        of(
            f"{cam}.simple_multi_input_conv",
            maps([[14.5, 19.0], [32.5, 37.0]], "grad_cam", OneConv, (RAMP, ONES), "conv1", **signed),
        ),
        of(f"{cam}.relu_gradcam_with_unused_layer", refused(lambda: camlib.GradCAM(Unused(), "unused")(RAMP, 0))),
        of(f"{occ}.simple_input", maps([80.0, 200.0, 120.0], "occlusion", Signal, SIGNAL, window=(1, 1), **signed)),
        of(
            f"{occ}.simple_input_larger_shape",
            maps(
                [200.0, 220.0, 240.0],
                "occlusion",
                Signal,
                SIGNAL,
                window=(1, 2),
                stride=(1, 1),
                baseline=10.0,
                **signed,
            ),
        ),
        of(
            f"{occ}.multi_sample_ablation",
            maps([[8.0, 35.0, 12.0], [80.0, 200.0, 120.0]], "occlusion", Signal, TWO_SIGNALS, window=(1, 1), **signed),
        ),
        of(f"{occ}.improper_window", occluded(window=(1, 1, 2))),
        of(f"{occ}.improper_stride", occluded(window=2, stride=(1, 2, 1))),
        of(f"{occ}.too_large_stride", occluded(window=2, stride=3)),
        of(f"{gb}.simple_input_conv_gb", attributions(GUIDED, OneConv, RAMP)),
        of(f"{gb}.simple_multi_input_conv_gb", attributions(OF_TWO, OneConv, (RAMP, ONES))),
    ]
    designed = [
        Case(PEER, f"{gg}.{name}", "by design", upsampled_linearly(model, inputs, layer), NEAREST)
        for name, model, inputs, layer in (
            ("simple_input_conv", OneConv, RAMP, "relu1"),
            ("simple_multi_input_conv", OneConv, (RAMP, ONES), "conv1"),
            ("simple_multi_input_relu_input", in_place, (RAMP, ONES), "conv1"),
            ("simple_multi_input_conv_inplace", in_place, (RAMP, ONES), "conv1"),
        )
    ]
    designed.append(
        Case(
            PEER,
            f"{occ}.simple_input_shape_with_stride",
            "by design",
            maps([280.0, 300.0, 320.0], "occlusion", Signal, SIGNAL, window=(1, 2), stride=(1, 2), **signed),
            "the last window touches the border and keeps its size, where captum's is cut off",
        )
    )
    missing = [
        (f"{cam}.simple_input_non_conv", LINEAR),
        (f"{cam}.simple_multi_input_non_conv", LINEAR),
        (f"{cam}.simple_input_conv_split_channels", "camlib has no maps of single channels"),
        (f"{gb}.simple_input_conv_neuron_gb", NEURON),
        (f"{gb}.simple_input_conv_neuron_gb_agg_neurons", NEURON),
        (f"{gb}.simple_multi_input_conv_neuron_gb", NEURON),
        (f"{gg}.improper_dims_multi_input_conv", SEVERAL),
        (f"{gg}.improper_method_multi_input_conv", "camlib resizes in one way"),
        *((f"{occ}.{name}", SEVERAL) for name in (
            "simple_multi_input", "simple_multi_input_0d", "simple_multi_input_int_to_int",
            "simple_multi_input_int_to_float", "multi_input_ablation_with_mask", "multi_input_ablation_with_baselines",
            "simple_multi_input_conv", "simple_multi_input_conv_diff_shapes",
        )),
    ]  # fmt: skip
    return [*passing, *designed, *(Case(PEER, test, "cannot", None, why) for test, why in missing)]


class Unused(OneConv):
    """With a layer that does not lead to the score."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.ReLU()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        self.unused(self.conv1(x))
        return super().forward(x, other)


def upsampled_linearly(model: Callable[[], nn.Module], inputs: Any, layer: str) -> Callable[[], None]:
    """A check that guided Grad-CAM is the guided gradient times the map, enlarged linearly."""

    def check() -> None:
        options = forward_of(inputs)
        cam = camlib.GradCAM(model(), layer, **options)(inputs, 0).maps
        large = nn.functional.interpolate(cam[:, None], (4, 4), mode="bilinear")[:, 0]
        guided = camlib.GuidedBackprop(model(), **options)(inputs, 0).maps
        torch.testing.assert_close(camlib.GuidedGradCAM(model(), layer, **options)(inputs, 0).maps, large * guided)

    return check


CASES = _cases()
