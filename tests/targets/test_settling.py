"""A target is settled once, on the clean outputs, however many copies of the images are explained."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import camlib
from camlib import targets
from tests.networks import Network


class Best(targets.Target):
    """A user's own: the best class of the clean outputs. It counts how often it is settled."""

    settled = 0

    def fixed(self, outputs: Tensor) -> Best:
        type(self).settled += 1
        fixed = copy.copy(self)
        fixed.classes = outputs.argmax(1)
        return fixed

    def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
        return outputs.gather(1, self.classes[image_index][:, None])[:, 0]


def explainers(model: torch.nn.Module) -> dict[str, Any]:
    cam = camlib.GradCAM(model)
    return {
        "grad_cam": cam,
        "smooth": camlib.SmoothGradCAMPlusPlus(model, samples=3, sigma=2.0),
        "noise": camlib.NoiseAveraging(cam, samples=3, sigma=2.0),
        "augmented": camlib.TestTimeAugmentation(cam),
        "compare": lambda images, target: camlib.compare(
            model, images, ["grad_cam", "guided_backprop", "full_grad", "guided_grad_cam"], target
        )["full_grad"],
    }


@pytest.mark.parametrize("name", explainers(Network()))
def test_users_target_is_settled_once_for_each_explanation(name: str) -> None:
    model, images = Network(5).eval(), torch.rand(4, 3, 8, 8)
    target, Best.settled = Best(), 0
    explainer = explainers(model)[name]
    explanation = explainer(images, target)
    # A smoothing settles it for its clean images, then once for all copies.
    assert Best.settled <= 2 if name in ("noise", "augmented", "compare") else Best.settled == 1
    torch.testing.assert_close(explanation.scores, model(images).amax(1).detach())
    with_classes = explainer(images, model(images).argmax(1))
    torch.testing.assert_close(explanation.maps, with_classes.maps)


def test_settled_target_is_refused_for_another_number_of_images() -> None:
    outputs = torch.rand(3, 4)
    settled = targets.resolve(Best(), outputs)
    assert targets.resolve(settled, torch.rand(3, 4)) is settled
    with pytest.raises(ValueError, match="settled on 3 images, and the outputs are of 2"):
        targets.resolve(settled, outputs[:2])


def test_frozen_dataclasses_can_be_targets() -> None:
    @dataclass(frozen=True)
    class Chosen(targets.Target):
        classes: Any = None

        def fixed(self, outputs: Tensor) -> Chosen:
            return Chosen(outputs.argmin(1))

        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            return outputs.gather(1, self.classes[image_index][:, None])[:, 0]

    outputs = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    settled = targets.resolve(Chosen(), outputs)
    assert targets.resolve(settled, 1 - outputs) is settled
    assert targets.score(settled, outputs, torch.tensor([0, 1])).tolist() == [1.0, 0.0]


def test_targets_that_speak_of_places_must_say_how_they_are_mirrored() -> None:
    class Corner(targets.Target):
        spatial = True

        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            return outputs[:, 0]

    cam = camlib.TestTimeAugmentation(camlib.GradCAM(Network().eval()))
    with pytest.raises(TypeError, match="not of how they are mirrored"):
        cam(torch.rand(2, 3, 8, 8), Corner())
