"""A target is bound once in each explanation, to the outputs of the clean images, and binding leaves it unchanged."""

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

    calls = 0

    def bind(self, outputs: Tensor) -> targets.BoundTarget:
        type(self).calls += 1
        return Picked(outputs.detach().argmax(1))


@dataclass(frozen=True)
class Picked(targets.BoundTarget):
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
def test_custom_target_is_bound_once_for_each_explanation(name: str) -> None:
    model, images = Network(5).eval(), torch.rand(4, 3, 8, 8)
    target, Best.calls = Best(), 0
    explainer = explainers(model)[name]
    explanation = explainer(images, target)
    # A smoothing binds it for the explanation of its clean images, then once for all copies.
    assert Best.calls <= 2 if name in ("noise", "augmented", "compare") else Best.calls == 1
    torch.testing.assert_close(explanation.scores, model(images).amax(1).detach())
    with_classes = explainer(images, model(images).argmax(1))
    torch.testing.assert_close(explanation.maps, with_classes.maps)


DETECTION = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "scores": torch.ones(1)}
LOGITS = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 5.0, 1.0, 2.0], [4.0, 0.0, 1.0, 2.0]])
CASES = [
    (targets.Classes(), LOGITS),
    (targets.Confidence(1), LOGITS),
    (targets.Contrast(), LOGITS),
    (targets.MultiLabel([[0], [1], [2, 3]]), LOGITS),
    (targets.Similarity(torch.ones(4)), LOGITS),
    (targets.Region(1, torch.ones(3, 3, dtype=torch.bool)), LOGITS[:, :, None, None].expand(3, 4, 3, 3)),
    (targets.Box(), [DETECTION] * 3),
    (Best(), LOGITS),
]


@pytest.mark.parametrize(("target", "outputs"), CASES)
def test_binding_changes_neither_the_target_nor_what_is_bound(target: targets.Target, outputs: Any) -> None:
    before = dict(vars(target))
    bound = targets.bind(target, outputs)
    assert vars(target) == before
    assert targets.bind(bound, outputs) is bound
    for attribute in vars(bound):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(bound, attribute, None)


@pytest.mark.parametrize(("target", "outputs"), [*CASES, (None, LOGITS), (1, LOGITS)])
def test_a_bound_target_is_refused_for_another_number_of_images(target: Any, outputs: Any) -> None:
    bound = targets.bind(target, outputs)
    with pytest.raises(camlib.CamlibValueError, match="bound to 3 images, and the outputs are of 2"):
        targets.bind(bound, outputs[:2])


@pytest.mark.parametrize("target", [lambda outputs: outputs[:, 0], targets.Output(1), targets.BinaryLogit()])
def test_scores_that_do_not_depend_on_the_images_fit_any_number_of_them(target: Any) -> None:
    bound = targets.bind(target, LOGITS)
    assert bound.images is None
    assert targets.bind(bound, LOGITS[:2]) is bound


@pytest.mark.parametrize(("target", "outputs"), CASES)
def test_only_what_is_bound_can_score(target: Any, outputs: Any) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"is not bound to outputs; score camlib\.targets\.bind"):
        targets.score(target, outputs, torch.arange(3))


def test_bind_must_return_a_bound_target() -> None:
    class Forgetful(targets.Target):
        def bind(self, outputs: Tensor) -> Any:
            outputs.argmax(1)

    with pytest.raises(camlib.CamlibTypeError, match=r"Forgetful\.bind returned a NoneType; it must return"):
        targets.bind(Forgetful(), torch.rand(2, 3))


@pytest.mark.parametrize("make", [targets.Classes, targets.ReST, targets.Contrast, Best])
def test_one_target_serves_batches_of_different_sizes(make: Any) -> None:
    cam, images, target = camlib.GradCAM(Network(5).eval()), torch.rand(5, 3, 8, 8), make()
    before = dict(vars(target))
    for batch in (images[:2], images[2:], images[:1]):
        torch.testing.assert_close(cam(batch, target).maps, cam(batch, make()).maps)
    assert vars(target) == before


def test_one_target_serves_several_threads_at_once() -> None:
    cam, images, target = camlib.GradCAM(Network(5).eval()), torch.rand(12, 3, 8, 8), targets.Contrast()
    batches = [images[:1], images[1:4], images[4:6], images[6:]] * 4
    expected = [cam(batch, targets.Contrast()) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: cam(batch, target), batches))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.target, other.target)
        torch.testing.assert_close(one.maps, other.maps)


def test_spatial_targets_must_define_how_they_are_mirrored() -> None:
    class Corner(targets.BoundTarget):
        spatial = True

        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            return outputs[:, 0]

    cam = camlib.TestTimeAugmentation(camlib.GradCAM(Network().eval()))
    with pytest.raises(TypeError, match="Corner is spatial but does not define how it is mirrored"):
        cam(torch.rand(2, 3, 8, 8), Corner())
