"""Relative input and output stability."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib.metrics import (
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)
from tests import metric_equations as equations
from tests.metrics.test_oracles import assert_close, cnn
from tests.metrics.test_robustness import explanation_of
from tests.networks import signal_cnn

EACH = [relative_input_stability, relative_output_stability, relative_representation_stability]
each = pytest.mark.parametrize("metric", EACH, ids=lambda metric: metric.name)


class Recorded(camlib.GradCAM):
    """Grad-CAM that keeps the images and its explanations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.images, self.explanations = list[Tensor](), list[camlib.Explanation]()

    def __call__(self, inputs: Any, target: Any = None) -> camlib.Explanation:
        self.explanations.append(super().__call__(inputs, target))
        self.images.append(inputs)
        return self.explanations[-1]


def norm(values: np.ndarray) -> float:
    return math.sqrt(sum(value**2 for value in values.flatten()))


@pytest.mark.parametrize("least", [1e-6, 0.5])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("radius", [0.02, 2.0])
def test_they_are_the_equations(radius: float, relu: bool, least: float) -> None:
    """With the larger radius some copies have another class, and are left out."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 8, 7).double()
    images[0, 0, 0, 0] = 0
    model: Any = cnn()
    with torch.no_grad():
        model[-1].bias -= model(images).mean(0)  # images near the borders between classes
    recorded = Recorded(model, "3", relu=relu)
    found = [metric(recorded, images, radius=radius, samples=6, least=least) for metric in EACH]
    first, others = recorded.explanations[0], recorded.explanations[1:7]
    classes = first.outputs.argmax(1)
    changed = 0
    for n, image in enumerate(images.numpy()):
        same = [k for k, one in enumerate(others) if one.outputs[n].argmax() == classes[n]]
        changed += 6 - len(same)
        maps = [others[k].maps[n].numpy() for k in same]
        divisor = np.where(image == 0, least, image)
        by_image = [norm((recorded.images[1 + k][n].numpy() - image) / divisor) for k in same]
        by_output = [norm((others[k].outputs[n] - first.outputs[n]).numpy()) for k in same]
        features = model[:4](images[n : n + 1])[0].detach().numpy()
        divided = np.where(features == 0, least, features)
        copies = [model[:4](recorded.images[1 + k][n : n + 1])[0].detach().numpy() for k in same]
        by_layer = [norm((copy - features) / divided) for copy in copies]
        for metric, changes in zip(found, (by_image, by_output, by_layer), strict=True):
            whole = first.maps[n].numpy()
            expected = equations.relative_stability(whole, maps, changes, least=least) if maps else math.nan
            assert_close(metric[n : n + 1], [expected], 1e-7)
    assert (changed > 0) == (radius == 2.0)


@pytest.mark.parametrize("metric", EACH[:2])
def test_the_scale_of_the_map_does_not_count(metric: Any) -> None:
    cam, images = camlib.GradCAM(cnn(), "3", relu=False), torch.randn(2, 3, 8, 7).double()

    def scaled(inputs: Any, target: Any = None) -> camlib.Explanation:
        found = cam(inputs, target)
        return dataclasses.replace(found, maps=3 * found.maps)

    torch.testing.assert_close(metric(scaled, images, least=1e-12), metric(cam, images, least=1e-12))


class Alternating(nn.Module):
    """The predicted class changes with the last bits of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1)
        self.clean: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.clean = images if self.clean is None else self.clean
        same = images.shape == self.clean.shape and torch.equal(images, self.clean)
        first = torch.ones(len(images)).to(images) * (1 if same else -1)
        return torch.stack([first, -first], 1) + 0 * self.features(images).mean((2, 3))


@each
def test_without_a_copy_of_the_same_class_there_is_no_value(metric: Any) -> None:
    images = torch.rand(2, 3, 6, 6)
    model = Alternating()
    model(images)
    assert metric(camlib.RandomCAM(model, "features"), images, samples=2).isnan().all()


@each
def test_an_explanation_that_never_changes_is_stable(metric: Any) -> None:
    cam = camlib.CenterGaussian(cnn())
    assert metric(cam, torch.randn(2, 3, 8, 7).double(), samples=3).tolist() == [0, 0]
    assert metric(camlib.GradCAM(signal_cnn()), torch.randn(2, 2, 20), samples=2).shape == (2,)


@each
@pytest.mark.parametrize("wrong", [{"radius": 0}, {"samples": 0}, {"least": 0}, {"least": "little"}])
def test_wrong_options_are_refused(metric: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(camlib.CamlibError, match=next(iter(wrong))):
        metric(camlib.GradCAM(cnn(), "3"), torch.randn(2, 3, 8, 7).double(), **wrong)


@each
def test_outputs_without_classes_are_refused(metric: Any) -> None:
    def pixels(inputs: Tensor, target: Any = None) -> camlib.Explanation:
        return explanation_of(inputs[:, 0])

    with pytest.raises(camlib.CamlibError):
        metric(pixels, torch.rand(2, 3, 6, 6))
