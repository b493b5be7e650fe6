"""A target is bound once, to the clean outputs, however many copies of the images are explained."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import camlib
from camlib import targets
from tests.networks import Network


class Best(targets.Target):
    """A custom target: the best class of the clean outputs. It counts how often it is bound."""

    times = 0

    def bind(self, outputs: Tensor) -> targets.BoundTarget:
        type(self).times += 1
        return Taken(outputs.argmax(1))


@dataclass(frozen=True)
class Taken(targets.BoundTarget):
    classes: Tensor

    @property
    def images(self) -> int:
        return len(self.classes)

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
def test_a_custom_target_is_bound_once_for_each_explanation(name: str) -> None:
    model, images = Network(5).eval(), torch.rand(4, 3, 8, 8)
    target, Best.times = Best(), 0
    explainer = explainers(model)[name]
    explanation = explainer(images, target)
    # A smoothing binds it for its clean images, then once for all copies.
    assert Best.times <= 2 if name in ("noise", "augmented", "compare") else Best.times == 1
    torch.testing.assert_close(explanation.scores, model(images).amax(1).detach())
    with_classes = explainer(images, model(images).argmax(1))
    torch.testing.assert_close(explanation.maps, with_classes.maps)


def test_a_bound_target_is_refused_for_another_number_of_images() -> None:
    outputs = torch.rand(3, 4)
    bound = targets.bind(Best(), outputs)
    assert targets.bind(bound, torch.rand(3, 4)) is bound
    with pytest.raises(ValueError, match="bound to 3 images, and the outputs are of 2"):
        targets.bind(bound, outputs[:2])


def test_one_target_serves_batches_of_any_size_in_several_threads() -> None:
    model, target = Network(5).eval(), targets.Region(1)
    dense = [torch.rand(n, 2, 6, 6) for n in (1, 3, 2)]
    with ThreadPoolExecutor(3) as pool:
        bound = list(pool.map(lambda outputs: targets.bind(target, outputs), 8 * dense))
    for one, outputs in zip(bound, 8 * dense, strict=True):
        assert torch.equal(one.region[:, 0], outputs.argmax(1) == 1)
    cam = camlib.GradCAM(model)
    for images in (torch.rand(2, 3, 8, 8), torch.rand(4, 3, 8, 8)):
        torch.testing.assert_close(cam(images, Best()).scores, model(images).amax(1).detach())


def test_nothing_is_set_on_a_target() -> None:
    for target, outputs in (
        (targets.Contrast(0), torch.rand(2, 4)),
        (targets.MultiLabel([[0], [1]]), torch.rand(2, 4)),
        (targets.Region(1), torch.rand(2, 2, 5, 5)),
        (targets.Similarity(torch.rand(4)), torch.rand(2, 4)),
        (targets.Box(), [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.rand(1)}] * 2),
    ):
        before = dict(vars(target))
        bound = targets.bind(target, outputs)
        assert vars(target) == before
        assert bound is not target
        assert not hasattr(target, "scores")


def test_targets_that_depend_on_places_must_say_how_they_are_mirrored() -> None:
    class Corner(targets.BoundTarget):
        spatial = True

        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            return outputs[:, 0]

    cam = camlib.TestTimeAugmentation(camlib.GradCAM(Network().eval()))
    with pytest.raises(TypeError, match="does not say how they are mirrored"):
        cam(torch.rand(2, 3, 8, 8), Corner())
