"""An image whose score is 0 or not finite costs only itself, in metrics and in evaluate."""

import pytest
import torch
from torch import nn

import camlib
from camlib import metrics
from camlib.evaluation import Failure
from tests.networks import small_cnn

METRICS = {
    "average_drop": {},
    "average_increase": {},
    "deletion": {"steps": 4},
    "insertion": {"steps": 4},
    "road_combined": {"shares": [0.5]},
    "region_perturbation": {"regions": 3},
    "irof": {"regions": 3},
    "infidelity": {"samples": 3},
    "faithfulness_correlation": {"samples": 4},
    "sensitivity_n": {"samples": 3, "shares": [0.3]},
}


def pictures(count=4):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def heatmaps(count=4):
    return torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(6))


def with_a_bad_one(value):
    images = pictures()
    images[2, 1, 3, 3] = value
    return images


class Underflows(nn.Module):
    """The probability of class 0 is 0 in float32 for images that are brighter than any other."""

    def __init__(self):
        super().__init__()
        self.model = small_cnn()

    def forward(self, images):
        gap = (images.amax((1, 2, 3)) > 2).to(images) * 500
        return self.model(images) - gap[:, None] * torch.eye(3)[0]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("chunk_size", ["auto", 3])
def test_image_that_is_not_finite_costs_only_itself_in_metrics(name, value, chunk_size):
    model, options = small_cnn().eval(), {**METRICS[name], "chunk_size": chunk_size}
    found = metrics.METRICS[name](model, with_a_bad_one(value), heatmaps(), 1, **options)
    expected = metrics.METRICS[name](model, pictures(), heatmaps(), 1, **options)
    assert found.isnan().tolist() == [False, False, True, False]
    torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_image_of_probability_0_costs_only_itself_in_the_average_drop():
    model, images = Underflows().eval(), pictures()
    images[1, 0, 0, 0] = 3
    found = metrics.average_drop(model, images, heatmaps(), 0)
    expected = metrics.average_drop(model, pictures(), heatmaps(), 0)
    assert found.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_image_whose_changed_copy_has_no_finite_score_costs_only_itself():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_cnn()

        def forward(self, images):
            black = (images[:, 0, 0, 0] == 0).to(images)
            bright = (images[:, 1, 7, 7] > 1).to(images)
            return self.model(images) / (1 - black * bright)[:, None]

    model, images = Fragile().eval(), pictures()
    expected = metrics.deletion(model, images, heatmaps(), 1, steps=4)
    images[3, 1, 7, 7] = 1.5
    fragile = heatmaps()
    fragile[3, 0, 0] = 2
    fragile[3, 7, 7] = -1  # the first pixel is removed before the last one
    found = metrics.deletion(model, images, fragile, 1, steps=4)
    assert found.isnan().tolist() == [False, False, False, True]
    torch.testing.assert_close(found[:3], expected[:3])


def test_batch_without_a_finite_score_is_an_error():
    with pytest.raises(camlib.CamlibRuntimeError, match="the score is not finite .*for any of the 4 images"):
        metrics.deletion(small_cnn(), pictures() * torch.nan, heatmaps(), 1)


def test_error_of_an_explanation_names_the_images():
    images = with_a_bad_one(torch.nan)
    images[0] = torch.inf
    with pytest.raises(camlib.CamlibRuntimeError, match="not finite .*for images 0, 2; look"):
        camlib.GradCAM(small_cnn(), "3")(images, 1)
    with pytest.raises(camlib.CamlibRuntimeError, match="score of a perturbed image is not finite .*for image 2; look"):
        camlib.Occlusion(small_cnn(), window=4, stride=4)(with_a_bad_one(torch.nan), 1)


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_image_that_is_not_finite_costs_only_itself_in_an_evaluation(bad):
    model, images = small_cnn().eval(), pictures(6)
    masks = heatmaps(6) > 0.5
    names = ["average_drop", "deletion", "sparseness", "pointing_game"]
    asked = {"methods": ["grad_cam", "ablation_cam"], "layers": ["3"], "metrics": names, "target": 1}
    expected = camlib.evaluate(model, images.split(4), masks=masks, **asked)
    images[bad, 1, 2, 3] = torch.nan
    found = camlib.evaluate(model, images.split(4), masks=masks, **asked)
    others = [image for image in range(6) if image != bad]
    assert not expected.failures
    assert found.rows == expected.rows
    assert not found.left_out
    for row in found.rows:
        for name in names:
            assert found.values[row][name].isnan().tolist() == [image == bad for image in range(6)]
            torch.testing.assert_close(found.values[row][name][others], expected.values[row][name][others])
    assert {(failure.row, failure.images) for failure in found.failures} == {(row, (bad,)) for row in found.rows}


@pytest.mark.parametrize("value", [torch.nan, 3.0])
def test_first_image_in_a_batch_of_its_own_costs_only_itself(value):
    """Not finite, or of probability 0, in a loader of batches of one."""
    model, images = Underflows().eval(), pictures(3)
    images[0, 0, 0, 0] = value
    asked = {"methods": ["grad_cam"], "layers": ["model.3"], "metrics": ["average_drop", "deletion"], "target": 0}
    found = camlib.evaluate(model, images.split(1), **asked)
    expected = camlib.evaluate(model, images[1:].split(1), **asked)
    assert found.rows == expected.rows
    assert not found.left_out
    for row in found.rows:
        for name in asked["metrics"]:
            torch.testing.assert_close(found.values[row][name][1:], expected.values[row][name])
        assert bool(found.values[row]["average_drop"][0].isnan())
        assert {failure.images for failure in found.failures if failure.row == row} == {(0,)}


def test_image_of_probability_0_is_listed_with_its_number():
    model, images = Underflows().eval(), pictures(5)
    images[4, 0, 0, 0] = 3
    found = camlib.evaluate(
        model, images.split(3), ["grad_cam"], ["model.3"], ["average_drop", "deletion"], target=0, max_images=5
    )
    for row in found.rows:
        assert found.values[row]["average_drop"].isnan().tolist() == [False] * 4 + [True]
        assert not found.values[row]["deletion"].isnan().any()
        why = "the score of the image, or of a changed copy of it, is 0 or not finite"
        assert Failure(row, "average_drop", (4,), why) in found.failures
    assert len(found.failures) == len(found.rows)
