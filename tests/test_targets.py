"""What is explained: every kind of target, and a clear refusal of what cannot be one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import targets
from tests.networks import Network, small_cnn


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8)


def test_default_is_the_predicted_class_of_each_image(images: Tensor) -> None:
    model = Network(5).eval()
    outputs = model(images)
    explanation = camlib.GradCAM(model)(images)
    assert torch.equal(explanation.target, outputs.argmax(1))
    torch.testing.assert_close(explanation.scores, outputs.amax(1).detach())
    torch.testing.assert_close(explanation.outputs, outputs.detach())


@pytest.mark.parametrize(
    "target", [2, np.int64(2), torch.tensor(2), [2, 2], (2, 2), np.array([2, 2]), torch.tensor([2, 2])]
)
def test_one_class_in_every_spelling(images: Tensor, target: object) -> None:
    cam = camlib.GradCAM(small_cnn().eval(), "2")
    explanation = cam(images, target)
    assert explanation.target.tolist() == [2, 2]
    assert torch.equal(explanation.maps, cam(images, [2, 2]).maps)


def test_classes_per_image(images: Tensor) -> None:
    cam = camlib.GradCAM(small_cnn().eval(), "2")
    mixed = cam(images, [2, 0])
    torch.testing.assert_close(mixed.maps[0], cam(images[:1], 2).maps[0])
    torch.testing.assert_close(mixed.maps[1], cam(images[1:], 0).maps[0])


def test_topk_is_the_highest_outputs_first(images: Tensor) -> None:
    model = small_cnn(7).eval()
    explanation = camlib.GradCAM(model, "2")(images, camlib.TopK(3))
    top = model(images).detach().topk(3)
    assert torch.equal(explanation.target, top.indices)
    torch.testing.assert_close(explanation.scores, top.values)
    assert explanation.maps.shape == (2, 3, 8, 8)


class Binary(Network):
    """One logit: (N, 1), or (N,) where squeezed."""

    def __init__(self, squeeze: bool) -> None:
        super().__init__(1)
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs.squeeze(1) if self.squeeze else outputs


@pytest.mark.parametrize("squeeze", [False, True])
def test_binary_network_has_two_classes_with_opposite_logits(images: Tensor, squeeze: bool) -> None:
    model = Binary(squeeze).eval()
    cam = camlib.GradCAM(model, "norm", relu=False)
    logit = model(images).detach().reshape(-1)
    both = cam(images, [[1, 0], [1, 0]])
    torch.testing.assert_close(both.scores, torch.stack([logit, -logit], 1))
    torch.testing.assert_close(both.maps[:, 0], -both.maps[:, 1])
    assert torch.equal(cam(images).target, (logit > 0).long())
    with pytest.raises(ValueError, match="class index 2, but the outputs have classes 0 to 1"):
        cam(images, 2)


def test_regression_output_is_explained_as_it_is(images: Tensor) -> None:
    model = Binary(squeeze=True).eval()
    cam = camlib.GradCAM(model, "norm", relu=False)
    explanation = cam(images, targets.Output(0))
    torch.testing.assert_close(explanation.scores, model(images).detach())
    torch.testing.assert_close(explanation.maps, cam(images, 1).maps)
    assert explanation.target == "output 0"
    with pytest.raises(ValueError, match="class index 3"):
        cam(images, targets.Output(3))


def test_multi_label_network_explains_every_label_by_its_logit(images: Tensor) -> None:
    model = Network(4).eval()
    present = torch.tensor([[0, 3], [1, 2]])
    explanation = camlib.GradCAM(model)(images, present)
    torch.testing.assert_close(explanation.scores, model(images).detach().gather(1, present))


def test_callable_target(images: Tensor) -> None:
    model = Network().eval()
    cam = camlib.GradCAM(model, "norm", relu=False)

    def margin(outputs: Tensor) -> Tensor:
        return outputs[:, 2] - outputs[:, 0]

    explanation = cam(images, margin)
    torch.testing.assert_close(explanation.maps, cam(images, 2).maps - cam(images, 0).maps)
    assert explanation.target == "margin"
    per_class = cam(images, lambda outputs: outputs[:, :2])
    assert per_class.has_class_axis
    torch.testing.assert_close(per_class.maps[:, 1], cam(images, 1).maps)


def test_target_object_receives_the_image_of_each_row(images: Tensor) -> None:
    class Favourite(targets.BoundTarget):
        def scores(self, outputs: Tensor, image_index: Tensor) -> Tensor:
            assert image_index.tolist() == [0, 1]
            return outputs[torch.arange(len(outputs)), torch.tensor([2, 0])[image_index]]

    cam = camlib.GradCAM(Network().eval(), "norm")
    explanation = cam(images, Favourite())
    torch.testing.assert_close(explanation.maps, cam(images, [2, 0]).maps)
    assert explanation.target == "Favourite"


def test_class_targets_follow_enlarged_batches() -> None:
    outputs = torch.arange(12.0).view(4, 3)
    resolved = targets.bind([2, 0], outputs[:2])
    assert targets.score(resolved, outputs, torch.tensor([0, 0, 1, 1])).tolist() == [2.0, 5.0, 6.0, 9.0]


def test_forward_picks_from_dict_outputs_and_takes_several_inputs(images: Tensor) -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def forward(self, image: Tensor, age: Tensor) -> dict[str, Tensor]:
            return {"scores": self.network(image) + age[:, None], "other": image.mean()}

    model, age = TwoInputs().eval(), torch.tensor([1.0, 2.0])
    cam = camlib.GradCAM(model, forward=lambda m, inputs: m(inputs["image"], inputs["age"])["scores"])
    explanation = cam({"image": images, "age": age}, 1)
    assert explanation.layer == "network.norm"
    assert explanation.input_size == (8, 8)
    torch.testing.assert_close(explanation.maps, camlib.GradCAM(model.network)(images, 1).maps)
    plain = camlib.GradCAM(model, "network.norm", forward=lambda m, inputs: m(*inputs))
    with pytest.raises(TypeError, match=r"returns a dict with keys \['other', 'scores'\].*forward=lambda"):
        plain((images, age))


def test_a_loss_next_to_the_logits_does_not_count_as_images(images: Tensor) -> None:
    model = Network().eval()

    def forward(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        logits = model(images)
        return {"loss": logits.square().mean(), "logits": logits}

    explanation = camlib.GradCAM(model, "norm", forward=forward)(images, lambda outputs: outputs["logits"][:, 1])
    torch.testing.assert_close(explanation.maps, camlib.GradCAM(model, "norm")(images, 1).maps)


def test_a_score_that_is_not_finite_is_an_error(images: Tensor) -> None:
    model = Network().eval()
    with torch.no_grad():
        model.head.bias[1] = torch.nan
    with pytest.raises(RuntimeError, match="the score .*is not finite"):
        camlib.GradCAM(model, "norm")(images, 1)


def test_output_is_one_column() -> None:
    with pytest.raises(TypeError, match=r"takes one column, got \[0, 1\]"):
        targets.Output([0, 1])


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, "class index 3, but the outputs have classes 0 to 2"),
        (-1, ValueError, "class index -1, but the outputs have classes 0 to 2"),
        ([0, 5], ValueError, "class index 5"),
        (True, TypeError, r"torch\.bool"),
        ([True, False], TypeError, r"torch\.bool"),
        ([True, 2], TypeError, r"torch\.bool"),
        ([[0, 1], [True, 2]], TypeError, r"torch\.bool"),
        (1.0, TypeError, r"torch\.float32"),
        (np.array([0.0, 1.0]), TypeError, r"torch\.float64"),
        ([0, 1, 2], ValueError, r"shape \(3,\) for 2 images"),
        ([], TypeError, r"torch\.float32"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, r"shape \(2, 0\)"),
        (torch.zeros(2, 1, 1, dtype=torch.long), ValueError, r"shape \(2, 1, 1\)"),
        ([[0, 1]], ValueError, r"shape \(1, 2\) for 2 images"),
        ("cat", TypeError, "'cat' is not understood"),
        ([[0], [1, 2]], TypeError, "not understood"),
        (camlib.TopK(9), ValueError, r"TopK\(9\) asks for more classes than the outputs' 3"),
        (targets.Output, TypeError, "the class Output itself"),
        (lambda outputs: outputs.sum(), ValueError, r"returned shape \(\) for 2 rows"),
        (lambda outputs: outputs[:1, 0], ValueError, r"returned shape \(1,\) for 2 rows"),
        (lambda outputs: outputs.argmax(1), TypeError, r"torch\.int64"),
        (lambda outputs: 1.0, TypeError, "returned a float"),
    ],
)
def test_what_cannot_be_a_target_is_refused(
    images: Tensor, target: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        camlib.GradCAM(small_cnn().eval(), "2")(images, target)
    assert isinstance(caught.value, camlib.CamlibError)


@pytest.mark.parametrize("k", [0, -2])
def test_topk_needs_a_positive_number(k: int) -> None:
    with pytest.raises(ValueError, match="k must be an int of at least 1"):
        camlib.TopK(k)


@pytest.mark.parametrize("k", [1.0, True, "2"])
def test_topk_needs_an_integer(k: object) -> None:
    with pytest.raises(TypeError, match="k must be an int of at least 1"):
        camlib.TopK(k)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), ()])
def test_outputs_without_classes_need_another_target(shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"class targets need \(N, C\)"):
        targets.bind(0, torch.zeros(shape))


@given(st.integers(1, 5), st.integers(2, 6), st.data())
def test_class_scores_are_the_outputs_at_the_indices(rows: int, classes: int, data: st.DataObject) -> None:
    outputs = torch.rand(rows, classes)
    chosen = data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    resolved = targets.bind(chosen, outputs)
    scores = targets.score(resolved, outputs, torch.arange(rows))
    assert scores.tolist() == [outputs[n, c].item() for n, c in enumerate(chosen)]
