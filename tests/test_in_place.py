"""Networks that change their inputs in place: the result of the network that does not, and inputs that stay.

torchvision's ``Normalize(inplace=True)`` as a network's first module is such a change.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib.inputs.nested import copied
from tests.few_passes import OF_ATTENTION
from tests.networks import small_cnn

Change = Callable[[Tensor], Tensor]


def in_place(images: Tensor) -> Tensor:
    return images.sub_(0.45).div_(0.22)


def out_of_place(images: Tensor) -> Tensor:
    return (images - 0.45) / 0.22


class Normalizing(nn.Module):
    """Normalises its images, wherever they are in its inputs, then classifies them."""

    def __init__(self, change: Change, pick: Callable[[Any], Any] = lambda given: given) -> None:
        super().__init__()
        self.change, self.pick = change, pick
        self.net = small_cnn().requires_grad_(False)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, given: Any) -> Tensor:
        images = self.pick(given)
        if isinstance(images, list):
            return self.net(torch.stack([self.change(image) for image in images]))
        return self.net(self.change(images))


@dataclasses.dataclass(frozen=True)
class Record:
    images: Tensor
    rows: int = dataclasses.field(init=False, default=0)


class Named(NamedTuple):
    images: Tensor
    flag: bool = True


def drawn() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Any]]] = {
    "tensor": (lambda x: x, lambda given: given),
    "list of images": (list, lambda given: given),
    "list": (lambda x: [x], lambda given: given[0]),
    "tuple": (lambda x: (x,), lambda given: given[0]),
    "dict": (lambda x: {"a": x, "b": 1}, lambda given: given["a"]),
    "dict that the model empties": (lambda x: {"a": x, "b": 1}, lambda given: given.pop("a")),
    "ordered dict": (lambda x: OrderedDict(a=x), lambda given: given["a"]),
    "read-only mapping": (lambda x: MappingProxyType({"a": x}), lambda given: given["a"]),
    "nested": (lambda x: {"a": [{"b": (x,)}]}, lambda given: given["a"][0]["b"][0]),
    "named tuple": (Named, lambda given: given.images),
    "dataclass": (Record, lambda given: given.images),
    "object": (lambda x: SimpleNamespace(images=x), lambda given: given.images),
}


def images_in(given: Any, pick: Callable[[Any], Any]) -> Tensor:
    found = pick(dict(given) if isinstance(given, Mapping) else given)
    return torch.stack(found) if isinstance(found, list) else found


@pytest.mark.parametrize("layer", [None, "net.3"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_maps_are_those_of_the_other_network_and_the_inputs_stay(container: str, layer: str | None) -> None:
    build, pick = CONTAINERS[container]
    given, images = build(drawn()), drawn()
    cam = camlib.GradCAM(Normalizing(in_place, pick), layer)
    expected = camlib.GradCAM(Normalizing(out_of_place), "net.3")(images, 1)
    for _ in range(2):
        found = cam(given, 1)
        torch.testing.assert_close(found.maps, expected.maps)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(images_in(given, pick), images)


FEW = {
    "rise": {"samples": 20},
    "full_grad": {"tolerance": float("inf")},
    "occlusion": {"window": 4, "stride": 2, "relu": False},
    "ss_cam": {"samples": 2},
    "is_cam": {"samples": 2},
    "integrated_gradients": {"steps": 3},
    "expected_gradients": {"baselines": 0.0, "samples": 3},
}


@pytest.mark.filterwarnings("ignore:The tail of layer")  # a list of images has no empty batch, so Ablation-CAM says so
@pytest.mark.parametrize("kind", ["tensor", "list of images"])
@pytest.mark.parametrize("name", sorted(camlib.METHODS))
def test_every_method_explains_what_the_other_network_computes(name: str, kind: str) -> None:
    if name in OF_ATTENTION:
        return  # the network has no attention
    build, pick = CONTAINERS[kind]
    given = build(drawn())
    options = FEW.get(name, {})
    found = camlib.create(name, Normalizing(in_place, pick), **options)(given, 1)
    expected = camlib.create(name, Normalizing(out_of_place, pick), **options)(build(drawn()), 1)
    assert torch.equal(images_in(given, pick), drawn())
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-5 * float(expected.maps.abs().max()))


class Attending(nn.Module):
    """A vision transformer of one block that normalises in place."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(self.change(images)).flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_le_grad_reads_the_attention_of_the_images_as_given() -> None:
    images = drawn()
    found = camlib.LeGrad(Attending(in_place))(images, 1).maps
    torch.testing.assert_close(found, camlib.LeGrad(Attending(out_of_place))(drawn(), 1).maps)
    assert torch.equal(images, drawn())


CALLS: dict[str, Callable[[nn.Module, Any, Tensor], Tensor]] = {
    "average_drop": lambda m, x, h: camlib.metrics.average_drop(m, x, h, 1),
    "deletion": lambda m, x, h: camlib.metrics.deletion(m, x, h, 1, steps=4),
    "insertion": lambda m, x, h: camlib.metrics.insertion(m, x, h, 1, steps=4),
    "road": lambda m, x, h: camlib.metrics.road_combined(m, x, h, 1),
    "infidelity": lambda m, x, h: camlib.metrics.infidelity(m, x, h, 1, samples=4),
    "max_sensitivity": lambda m, x, h: camlib.metrics.max_sensitivity(camlib.GradCAM(m, "net.3"), x, 1, samples=3),
    "noise": lambda m, x, h: camlib.NoiseAveraging(camlib.GradCAM(m, "net.3"), samples=2)(x, 1).maps,
    "augmentation": lambda m, x, h: camlib.TestTimeAugmentation(camlib.GradCAM(m, "net.3"))(x, 1).maps,
    "scales": lambda m, x, h: camlib.MultiScale(camlib.GradCAM(m, "net.3"), (1.0, 1.5))(x, 1).maps,
    "compare": lambda m, x, h: torch.cat(
        [one.maps.flatten() for one in camlib.compare(m, x, ["grad_cam", "rise"], target=1).values()]
    ),
    "evaluate": lambda m, x, h: camlib.evaluate(m, [x], ["grad_cam"], ["net.3"], ["deletion"], target=1).values[
        ("grad_cam", "net.3")
    ]["deletion"],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_metrics_and_smoothings_run_the_model_on_the_images_as_given(call: Callable[..., Tensor]) -> None:
    images, heatmaps = drawn(), torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2))
    found = call(Normalizing(in_place), images, heatmaps.clone())
    expected = call(Normalizing(out_of_place), drawn(), heatmaps.clone())
    assert torch.equal(images, drawn())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_forward_that_changes_its_inputs_gets_a_copy() -> None:
    given = {"a": drawn(), "label": 3}

    def forward(model: nn.Module, inputs: Any) -> Tensor:
        inputs.pop("label")
        return model(in_place(inputs["a"]))

    plain = Normalizing(lambda images: images)
    found = camlib.GradCAM(plain, "net.3", forward=forward)(given, 1)
    torch.testing.assert_close(found.maps, camlib.GradCAM(Normalizing(out_of_place), "net.3")(drawn(), 1).maps)
    assert given.keys() == {"a", "label"}
    assert torch.equal(given["a"], drawn())


def test_a_captured_pass_of_the_user_is_cut_behind_the_change() -> None:
    with torch.no_grad(), camlib.capture(model := Normalizing(in_place), "net.3") as captured:
        outputs = model(drawn())
    with torch.no_grad(), camlib.capture(model := Normalizing(out_of_place), "net.3") as other:
        expected = model(drawn())
    torch.testing.assert_close(captured.activations, other.activations)
    torch.testing.assert_close(captured.gradients(outputs[:, 1]), other.gradients(expected[:, 1]))


def test_a_tensor_that_occurs_twice_and_an_array_are_copied_once() -> None:
    shared, array = torch.zeros(2), np.zeros(2)
    copies = copied({"a": shared, "b": [shared], "c": array, "model": (model := nn.Linear(1, 1))})
    copies["a"].add_(1)
    copies["c"] += 1
    assert copies["b"][0] is copies["a"]
    assert copies["model"] is model
    assert shared.sum() == array.sum() == 0
