"""The overhead of a call: walks over the modules, waits for the device, and passes for several classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import camlib
from camlib.passes import isolation
from camlib.passes.tail_gradients import tail_gradients

CLASSES = 12


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64)


class Waits(TorchDispatchMode):
    """Counts the reads of numbers, for each of which a GPU's host waits."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        self.count += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(waits: Waits) -> Iterator[Waits]:
    """Count the waits, also those of ``tolist``, which copies the numbers to the host."""
    original = Tensor.tolist

    def tolist(tensor: Tensor) -> list[object]:
        waits.count += 1
        return original(tensor)

    with pytest.MonkeyPatch.context() as patch, waits:
        patch.setattr(Tensor, "tolist", tolist)
        yield waits


@pytest.mark.parametrize("target", [None, 1, camlib.TopK(3)], ids=str)
@pytest.mark.parametrize("network", ["resnet18", "densenet121", "vit_b_16"])
def test_a_call_waits_once_for_the_device(network: str, target: object) -> None:
    size = 224 if network.startswith("vit") else 64
    model, inputs = torchvision.models.get_model(network).eval(), torch.rand(2, 3, size, size)
    cam = camlib.GradCAM(model)
    cam(inputs, target)
    with counted(Waits()) as waits:
        cam(inputs, target)
    assert waits.count <= 1


@pytest.mark.parametrize(
    ("name", "waits_of"), [("full_grad", 1), ("guided_backprop", 1), ("smooth_grad_cam_plus_plus", 3)]
)
def test_methods_of_many_terms_wait_once_and_those_of_copies_once_more_for_each_chunk(
    name: str, waits_of: int, images: Tensor
) -> None:
    cam = camlib.create(name, torchvision.models.resnet18().eval())
    cam(images, 1)
    with counted(Waits()) as waits:
        cam(images, 1)
    assert waits.count <= waits_of


def calls_between_files(call: Callable[[], object]) -> list[str]:
    """The functions of camlib that are called from another of its files, or from outside."""
    root, found = str(Path(camlib.__file__).parent), []

    def note(frame: FrameType | None, event: str, argument: object) -> None:
        if event != "call" or frame is None or not frame.f_code.co_filename.startswith(root):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(root):
            caller = caller.f_back
        if caller is None or caller.f_code.co_filename != frame.f_code.co_filename:
            found.append(f"{frame.f_code.co_filename}: {frame.f_code.co_qualname}")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_stranger_can_follow_a_call_from_images_to_maps(images: Tensor) -> None:
    cam = camlib.GradCAM(torchvision.models.resnet18().eval())
    cam(images)
    assert 10 < len(calls_between_files(lambda: cam(images))) < 35


def test_a_call_walks_over_the_modules_once(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.resnet18().eval()
    cam = camlib.GradCAM(model)
    cam(images)
    walks = []
    walk = isolation.modules_of
    monkeypatch.setattr(isolation, "modules_of", lambda module: walks.append(module) or walk(module))
    for name in ("modules", "named_modules", "parameters", "buffers", "named_parameters", "children"):
        monkeypatch.setattr(nn.Module, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    cam(images)
    assert walks == [model]


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "pool and linear": lambda c: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES)),
    "a hidden layer": lambda c: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 9), nn.Hardswish(), nn.Linear(9, CLASSES)
    ),
    "an activation before": lambda c: nn.Sequential(
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES)
    ),
    "a permutation before": lambda c: nn.Sequential(Permuted(), nn.Linear(c, CLASSES)),
    "the largest cell": lambda c: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES)),
    "a second path": lambda c: TwoPaths(c),
    "no pooling": lambda c: nn.Sequential(nn.Flatten(), nn.Linear(16 * c, CLASSES)),
}


class Permuted(nn.Module):
    """A mean over the grid of a map with the channels last."""

    def forward(self, features: Tensor) -> Tensor:
        return features.permute(0, 2, 3, 1).mean((1, 2))


class TwoPaths(nn.Module):
    """Scores that read the mean and the largest cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)) + features.amax((2, 3)))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_gradients_of_several_classes_are_those_of_each(head: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    tail = head(6).double()
    point = torch.randn(3, 6, 4, 4, dtype=torch.double, requires_grad=True)
    scores = tail(point.clone())
    (found,) = tail_gradients(scores, [point], 1.0, retain_graph=True)
    expected = [torch.autograd.grad(one.sum(), point, retain_graph=True)[0] for one in scores.unbind(1)]
    torch.testing.assert_close(found, torch.stack(expected, 1))


@pytest.mark.parametrize("head", ["pool and linear", "a hidden layer", "a permutation before"])
def test_the_gradient_behind_a_mean_takes_the_memory_of_one_cell(head: str) -> None:
    point = torch.randn(3, 6, 4, 4, requires_grad=True)
    (found,) = tail_gradients(HEADS[head](6)(point.clone()), [point], 1.0, retain_graph=True)
    assert found.untyped_storage().nbytes() == found[..., 0, 0].numel() * 4


@pytest.mark.parametrize("method", [m for m in camlib.METHODS.values() if issubclass(m, camlib.methods.GradientMethod)])
def test_maps_of_all_classes_are_made_at_once(method, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, maps = [], method.maps

    def counted_maps(self, *args: Tensor) -> Tensor:
        calls.append(1)
        return maps(self, *args)

    counted_maps.__module__ = method.__module__
    monkeypatch.setattr(method, "maps", counted_maps)
    cam = method(torchvision.models.resnet18(num_classes=CLASSES).double().eval(), "layer4")
    several = cam(images.double(), camlib.TopK(CLASSES))
    assert len(calls) == 1
    for k in range(CLASSES):
        torch.testing.assert_close(several.maps[:, k], cam(images.double(), several.target[:, k]).maps)


def test_maps_that_look_at_numbers_are_made_class_by_class(images: Tensor) -> None:
    class Looking(camlib.methods.GradientMethod):
        name = "looking"

        def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return activations.sum(1) * (1 if bool(gradients.sum() > 0) else 2)

    cam = Looking(torchvision.models.resnet18(num_classes=3).eval(), "layer4")
    several = cam(images, camlib.TopK(3))
    for k in range(3):
        torch.testing.assert_close(several.maps[:, k], cam(images, several.target[:, k]).maps)


def test_custom_maps_may_work_in_place_and_keep_what_they_see(images: Tensor) -> None:
    class Own(camlib.methods.GradientMethod):
        name = "own"

        def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
            gradients *= 2
            self.weights = gradients.mean((2, 3)).numpy()
            return (activations * gradients).sum(1) * (2 if bool(gradients.sum() > 0) else 1)

    cam = Own(torchvision.models.resnet18(num_classes=3).double().eval(), "layer4", relu=False)
    several = cam(images.double(), camlib.TopK(3))
    for k in range(3):
        torch.testing.assert_close(several.maps[:, k], cam(images.double(), several.target[:, k]).maps)


def test_gradients_of_a_capture_may_be_changed_in_place(images: Tensor) -> None:
    model = torchvision.models.resnet18(num_classes=3).eval()
    with torch.no_grad(), camlib.capture(model, "layer4") as captured:
        outputs = model(images)
    gradients = captured.gradients(outputs)
    before = gradients.clone()
    torch.testing.assert_close(gradients.mul_(2), 2 * before)


def test_a_mean_of_another_precision_keeps_that_of_the_layer() -> None:
    point = torch.randn(2, 6, 4, 4, requires_grad=True)
    scores = nn.Linear(6, CLASSES)(point.clone().mean((2, 3), dtype=torch.double).float())
    (found,) = tail_gradients(scores, [point], 1.0, retain_graph=True)
    expected = [torch.autograd.grad(one.sum(), point, retain_graph=True)[0] for one in scores.unbind(1)]
    torch.testing.assert_close(found, torch.stack(expected, 1))
