"""Smoothing: maps averaged over mirrored, brightened, noisy or enlarged copies, of one class fixed once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib import MultiScale, NoiseAveraging, targets
from camlib import TestTimeAugmentation as Augmented  # pytest collects what is called Test
from tests import equations, networks
from tests.few_passes import OF_ATTENTION, cheap

FACTORS = (1.0, 0.9, 1.1)
ALL = {
    "test-time augmentation": lambda cam: Augmented(cam, (1.0, 0.8)),
    "noise averaging": lambda cam: NoiseAveraging(cam, samples=2),
    "multi-scale": lambda cam: MultiScale(cam, (1.0, 1.5)),
}
"""Each of the three, quick."""

each_smoothing = pytest.mark.parametrize("smoothed", ALL.values(), ids=ALL.keys())


def spatial_cnn(classes: int = 3, size: tuple[int, int] = (6, 8)) -> nn.Sequential:
    """A network whose head reads places: mirrored, an image may well be of another class."""
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(5 * math.prod(size), classes),
        )
        .double()
        .eval()
    )


def images(count: int = 2, size: tuple[int, int] = (6, 8)) -> Tensor:
    return torch.rand(count, 3, *size, dtype=torch.float64)


def mean(maps: list[Tensor]) -> Tensor:
    return sum(maps[1:], maps[0]) / len(maps)


def close(maps: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-12)


def fickle(change: Callable[[Tensor], Tensor], count: int = 2) -> tuple[nn.Sequential, Tensor, list[int]]:
    """A network, images, and their predicted classes, each of which the change makes another."""
    model = spatial_cnn()
    for _ in range(200):
        x = torch.randn(count, 3, 6, 8, dtype=torch.float64)
        before, after = model(x).argmax(1), model(change(x)).argmax(1)
        if bool((before != after).all()):
            return model, x, before.tolist()
    raise AssertionError("no image was found that changes its class")


# All three -----------------------------------------------------------------------------------------------------------


@each_smoothing
def test_scores_outputs_target_and_layer_are_those_of_the_clean_images(smoothed):
    model, x = spatial_cnn(), images()
    clean, result = camlib.GradCAM(model, "3", relu=False)(x), smoothed(camlib.GradCAM(model, "3", relu=False))(x)
    assert torch.equal(result.scores, clean.scores)
    assert torch.equal(result.outputs, clean.outputs)
    assert torch.equal(result.target, clean.target)
    assert (result.layer, result.input_size) == (clean.layer, clean.input_size)
    assert result.method.startswith("grad_cam, ")
    assert not torch.equal(result.heatmaps(), clean.heatmaps())


@each_smoothing
@pytest.mark.parametrize("kind", [camlib.GradCAM, camlib.EigenCAM])
def test_smoothed_maps_are_as_class_agnostic_as_the_methods(smoothed, kind):
    assert smoothed(kind(spatial_cnn(), "3"))(images()).class_agnostic == kind.class_agnostic


@each_smoothing
@pytest.mark.parametrize("relu", [True, False])
def test_k_classes_are_each_of_them_alone(smoothed, relu):
    cam, x = smoothed(camlib.GradCAM(spatial_cnn(), "3", relu=relu)), images()
    together = cam(x, [[0, 2], [1, 0]])
    assert together.has_class_axis
    close(together.maps[:, 0], cam(x, [0, 1]).maps)
    close(together.maps[:, 1], cam(x, [2, 0]).maps)


@each_smoothing
def test_a_batch_gives_what_its_images_give(smoothed):
    cam, x = smoothed(camlib.GradCAM(spatial_cnn(), "3", relu=False)), images(3)
    close(cam(x).maps, torch.cat([cam(one[None]).maps for one in x]))


@pytest.mark.slow
@each_smoothing
@pytest.mark.parametrize("name", camlib.METHODS)
def test_every_method_can_be_smoothed(smoothed, name):
    if name in OF_ATTENTION:
        model: nn.Module = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4).eval()
        nn.init.normal_(model.heads.head.weight)
        x = torch.rand(2, 3, 32, 32)
    else:
        model, x = networks.small_cnn(4).eval(), torch.rand(2, 3, 12, 10)
    result = smoothed(cheap(name)(model))(x, [1, 3])
    assert len(result) == 2
    assert result.maps.isfinite().all()
    assert result.heatmaps().shape == x[:, 0].shape
    assert result.target.tolist() == [1, 3]
    assert name == "random_cam" or not result.degenerate.all()


@each_smoothing
def test_smoothings_nest(smoothed):
    model, x = spatial_cnn(), images()
    inner = smoothed(camlib.GradCAM(model, "3", relu=False))
    result = Augmented(inner, (1.0,))(x)
    close(result.maps, mean([inner(x, result.target).maps, inner(x.flip(-1), result.target).maps.flip(-1)]))


@each_smoothing
def test_the_model_and_the_random_numbers_of_torch_are_left_alone(smoothed):
    model = networks.Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cam, x = smoothed(camlib.GradCAM(model)), torch.rand(2, 3, 12, 10)
    given = x.clone()
    state = torch.random.get_rng_state()
    cam(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x, given)


@each_smoothing
def test_maps_are_ordinary_tensors_under_inference_mode_and_of_inputs_in_a_graph(smoothed):
    cam = smoothed(camlib.GradCAM(spatial_cnn(), "3", relu=False))
    x = images().requires_grad_()
    maps = cam(x).maps
    assert not maps.requires_grad
    with torch.inference_mode():
        result = cam(x * 1)
        assert not result.maps.is_inference()
        assert torch.is_inference_mode_enabled()
    close(result.maps, maps)


@each_smoothing
def test_methods_that_explain_no_class_go_without_one(smoothed):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double().eval()
    result = smoothed(camlib.EigenCAM(model, "1"))(images())
    assert result.target == "features"
    assert result.scores.isnan().all()
    assert result.maps.isfinite().all()


@each_smoothing
@pytest.mark.parametrize("given", [camlib.GradCAM, "grad_cam", nn.ReLU(), None])
def test_values_that_are_not_explainers_are_refused(smoothed, given):
    with pytest.raises(camlib.CamlibTypeError, match=r"method must be an explainer such as camlib.GradCAM\(model\)"):
        smoothed(given)


def test_repr_names_the_method_inside():
    cam = camlib.GradCAM(spatial_cnn(), "3", relu=False)
    assert repr(NoiseAveraging(cam)) == "NoiseAveraging(GradCAM(Sequential, layer='3'))"


# Test-time augmentation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [FACTORS, (1.0,), (0.5, 2)])
@pytest.mark.parametrize("mirror", [True, False])
def test_augmented_map_is_the_mean_over_copies_mirrored_back(factors, mirror):
    model, x = spatial_cnn(), images()
    cam = camlib.GradCAM(model, "3", relu=False)
    expected = []
    for factor in factors:
        expected.append(cam(factor * x, [0, 2]).maps)
        if mirror:
            reversed_columns = torch.stack([x[..., 7 - column] for column in range(8)], -1)
            there = cam(factor * reversed_columns, [0, 2]).maps
            expected.append(torch.stack([there[..., 7 - column] for column in range(8)], -1))
    close(Augmented(cam, factors, mirror=mirror)(x, [0, 2]).maps, mean(expected))


@pytest.mark.parametrize(
    ("options", "calls"),
    [({}, 6), ({"mirror": False}, 3), ({"factors": (0.9, 1.1)}, 5), ({"factors": (2,), "mirror": False}, 2)],
)
def test_augmentation_makes_two_calls_for_each_factor_and_one_for_the_clean_images(options, calls):
    """In chunks of the size of the batch."""
    model = networks.Network().eval()
    Augmented(camlib.GradCAM(model, "norm"), **options, chunk_size=2)(torch.rand(2, 3, 12, 10))
    assert model.passes == calls


def test_augmentation_explains_the_class_of_the_clean_image_in_all_copies():
    model, x, predicted = fickle(lambda x: x.flip(-1))
    cam = camlib.GradCAM(model, "3", relu=False)
    result = Augmented(cam, (1.0,))(x)
    assert result.target.tolist() == predicted
    close(result.maps, Augmented(cam, (1.0,))(x, predicted).maps)
    of_their_own = mean([cam(x).maps, cam(x.flip(-1)).maps.flip(-1)])
    assert not torch.allclose(result.maps, of_their_own)


def test_the_mirrored_pictures_explanation_is_the_mirrored_explanation():
    cam, x = Augmented(camlib.GradCAM(spatial_cnn(), "3", relu=False)), images()
    close(cam(x.flip(-1), 1).maps, cam(x, 1).maps.flip(-1))
    plain = camlib.GradCAM(spatial_cnn(), "3", relu=False)
    assert not torch.allclose(plain(x.flip(-1), 1).maps, plain(x, 1).maps.flip(-1))


def test_mirroring_adds_nothing_to_a_network_that_is_symmetric_itself():
    model = networks.small_cnn().double().eval()
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.weight.data += module.weight.data.flip(-1)
    cam, x = camlib.GradCAM(model, "3", relu=False), images()
    assert not torch.allclose(cam(x).maps, cam(x).maps.flip(-1))  # the pictures are not symmetric
    close(Augmented(cam, (1.0,))(x).maps, cam(x).maps)


def dense_cnn() -> nn.Sequential:
    """Logits (N, 3, H, W) of a segmentation."""
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3, padding=1)
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("shared", [True, False])
def test_a_given_region_is_mirrored_with_the_picture(shared):
    model, x = dense_cnn(), images()
    mask = torch.zeros(6, 8, dtype=torch.bool) if shared else torch.rand(2, 6, 8) < 0.3
    mask[..., 1:4, 0:3] = True
    cam = camlib.GradCAM(model, "1", relu=False)
    there = cam(x.flip(-1), targets.Region(2, mask.flip(-1))).maps.flip(-1)
    close(Augmented(cam, (1.0,))(x, targets.Region(2, mask)).maps, mean([cam(x, targets.Region(2, mask)).maps, there]))
    assert not torch.allclose(there, cam(x.flip(-1), targets.Region(2, mask)).maps.flip(-1))


def test_the_predicted_region_is_that_of_the_clean_image_mirrored():
    model, x = dense_cnn(), images()
    category = int(model(x).argmax(1).flatten().mode().values)
    region = model(x).argmax(1) == category
    assert not torch.equal(model(x.flip(-1)).argmax(1) == category, region.flip(-1))
    cam = camlib.GradCAM(model, "1", relu=False)
    there = cam(x.flip(-1), targets.Region(category, region.flip(-1))).maps.flip(-1)
    expected = mean([cam(x, targets.Region(category, region)).maps, there])
    close(Augmented(cam, (1.0,))(x, targets.Region(category)).maps, expected)


class Detector(nn.Module):
    """Finds in a list of pictures what is above 0.5 in the red, and in the green, channel; the leftmost comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for picture, features in zip(pictures, self.features(torch.stack(pictures)), strict=True):
            one = []
            for channel in (0, 1):
                rows, columns = (picture[channel] > 0.5).nonzero().unbind(1)
                top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
                score = features[channel, top:bottom, left:right].sum()
                one.append((int(left), torch.stack([left, top, right, bottom]).double(), score, channel + 1))
            one.sort(key=lambda detection: detection[0])
            found.append(
                {
                    "boxes": torch.stack([box for _, box, _, _ in one]),
                    "scores": torch.stack([score for _, _, score, _ in one]),
                    "labels": torch.tensor([label for _, _, _, label in one]),
                }
            )
        return found


RED, GREEN = [1.0, 1, 4, 4], [5.0, 2, 8, 5]


def pictures() -> list[Tensor]:
    found = []
    for _ in range(2):
        picture = 0.4 * torch.rand(3, 6, 9, dtype=torch.float64)
        picture[0, 1:4, 1:4] += 0.5
        picture[1, 2:5, 5:8] += 0.5
        found.append(picture)
    return found


def test_a_box_is_mirrored_with_the_picture():
    model, x = Detector().double().eval(), pictures()
    mirrored = [picture.flip(-1) for picture in x]
    assert model(mirrored)[0]["boxes"].tolist() == [[1, 2, 4, 5], [5, 1, 8, 4]]  # green comes first now
    cam = camlib.GradCAM(model, "features", relu=False)
    for box, there in ((RED, [5.0, 1, 8, 4]), (GREEN, [1.0, 2, 4, 5])):
        expected = mean([cam(x, targets.Box(box)).maps, cam(mirrored, targets.Box(there)).maps.flip(-1)])
        result = Augmented(cam, (1.0,))(x, targets.Box(box))
        close(result.maps, expected)
        assert not result.degenerate.any()


def test_the_best_box_is_that_of_the_clean_picture():
    model, x = Detector().double().eval(), pictures()
    cam = camlib.GradCAM(model, "features", relu=False)
    best = [detections["boxes"][detections["scores"].argmax()].tolist() for detections in model(x)]
    close(Augmented(cam, (1.0,))(x, targets.Box()).maps, Augmented(cam, (1.0,))(x, targets.Box(best)).maps)


class Padder(nn.Module):
    """As torchvision's detectors have it: pads at the right and at the bottom to whole multiples of 8."""

    def forward(self, pictures: list[Tensor], _: Any = None) -> tuple[Any, None]:
        return self.batch_images(pictures), None

    def batch_images(self, pictures: list[Tensor]) -> Any:
        batch = torch.stack(pictures)
        height, width = batch.shape[2:]
        padded = nn.functional.pad(batch, (0, -width % 8, 0, -height % 8))
        return torchvision.models.detection.image_list.ImageList(padded, [(height, width)] * len(batch))


class Padded(nn.Module):
    """A network of classes that pads the pictures of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = Padder()
        self.network = networks.small_cnn()

    def forward(self, pictures: list[Tensor]) -> Tensor:
        return self.network(self.transform(pictures)[0].tensors)


def test_pictures_padded_on_one_side_are_not_mirrored():
    cam = camlib.GradCAM(Padded().double().eval(), "network.3")
    with pytest.raises(camlib.CamlibValueError, match=r"maps cover \(8.0, 16.0\) of images of \(6, 9\).*mirror=False"):
        Augmented(cam)(pictures())
    assert Augmented(cam, mirror=False)(pictures()).extent == (8, 16)
    fitting = [torch.rand(3, 8, 16, dtype=torch.float64) for _ in range(2)]
    close(Augmented(cam)([x.flip(-1) for x in fitting], 1).maps, Augmented(cam)(fitting, 1).maps.flip(-1))


def test_of_several_layers_each_ones_own_maps_are_averaged_too():
    model, x = spatial_cnn(), images()
    cam = camlib.GradCAM(model, ["1", "3"], fuse="max", relu=False)
    result = Augmented(cam, (1.0,))(x, 1)
    here, there = cam(x, 1), cam(x.flip(-1), 1)
    close(result.maps, mean([here.maps, there.maps.flip(-1)]))
    for layer in ("1", "3"):
        close(result.layers[layer], mean([here.layers[layer], there.layers[layer].flip(-1)]))
    noisy = NoiseAveraging(cam, 2)(x, 1)
    assert noisy.layers.keys() == {"1", "3"}
    assert not torch.allclose(noisy.layers["1"], here.layers["1"])


def test_signals_are_augmented_without_mirroring():
    model, x = networks.signal_cnn().double().eval(), torch.rand(2, 2, 20, dtype=torch.float64)
    cam = camlib.GradCAM(model, "3", relu=False)
    result = Augmented(cam, (1.0, 0.5), mirror=False)(x, 1)
    close(result.maps, mean([cam(x, 1).maps, cam(x / 2, 1).maps]))


def test_volumes_are_mirrored_along_their_width():
    model, x = networks.volume_cnn().double().eval(), torch.rand(2, 1, 4, 5, 6, dtype=torch.float64)
    cam = camlib.GradCAM(model, "3", relu=False)
    result = Augmented(cam, (1.0,))(x, 1)
    close(result.maps, mean([cam(x, 1).maps, cam(x.flip(-1), 1).maps.flip(-1)]))
    assert NoiseAveraging(cam, 2)(x, 1).maps.shape == (2, 4, 5, 6)


class Conditioned(nn.Module):
    """Takes a picture, uint8 or not, with a mask of it, and a sequence of vectors that is no picture."""

    def __init__(self) -> None:
        super().__init__()
        self.network = spatial_cnn()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        picture = inputs["picture"].double()
        if not inputs["picture"].is_floating_point():
            picture = picture / 255
        return self.network(picture * inputs["mask"]) + inputs["words"].mean((1, 2))[:, None]


def test_only_the_pictures_among_the_inputs_change():
    model = Conditioned().eval()
    inputs = {"picture": images(), "mask": torch.rand(2, 1, 6, 8) < 0.7, "words": torch.rand(2, 4, 5).double()}
    mirrored = inputs | {"picture": inputs["picture"].flip(-1), "mask": inputs["mask"].flip(-1)}
    cam = camlib.GradCAM(model, "network.3", relu=False)
    close(Augmented(cam, (1.0,))(inputs, 1).maps, mean([cam(inputs, 1).maps, cam(mirrored, 1).maps.flip(-1)]))
    dark = inputs | {"picture": inputs["picture"] / 2}
    result = Augmented(cam, (0.5,), mirror=False)(inputs, 1)
    close(result.maps, cam(dark, 1).maps)
    assert NoiseAveraging(cam, 2)(inputs, 1).maps.isfinite().all()


def test_pictures_of_integers_can_be_mirrored_but_neither_brightened_nor_made_noisy():
    picture = torch.randint(256, (2, 3, 6, 8), dtype=torch.uint8)
    inputs = {"picture": picture, "mask": torch.ones(2, 1, 6, 8, dtype=torch.bool), "words": torch.zeros(2, 4, 5)}
    cam = camlib.GradCAM(Conditioned().eval(), "network.3")
    there = cam(inputs | {"picture": picture.flip(-1)}, 1).maps.flip(-1)
    close(Augmented(cam, (1.0,))(inputs, 1).maps, mean([cam(inputs, 1).maps, there]))
    for smoothed in (Augmented(cam), NoiseAveraging(cam)):
        with pytest.raises(camlib.CamlibTypeError, match="the images are torch.uint8; convert them"):
            smoothed(inputs, 1)


@pytest.mark.parametrize("smoothed", [Augmented, NoiseAveraging])
def test_inputs_without_pictures_are_refused(smoothed):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    cam = camlib.GradCAM(model, "0", reshape=lambda features: features[:, :, None, None])
    with pytest.raises(camlib.CamlibTypeError, match="hold neither images"):
        smoothed(cam)(torch.rand(2, 4), 1)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ((), camlib.CamlibValueError, "factors must be one or more numbers"),
        (1.0, camlib.CamlibTypeError, "factors must be a list of numbers, got 1.0"),
        *[
            (wrong, camlib.CamlibValueError, "each of factors must be a positive number, got")
            for wrong in ((0,), (1.0, -1.0), (math.nan,), (math.inf,))
        ],
        *[
            (wrong, camlib.CamlibTypeError, "each of factors must be a positive number, got")
            for wrong in (("1",), (True,))
        ],
    ],
)
def test_wrong_factors_are_refused(factors, error, message):
    with pytest.raises(error, match=message):
        Augmented(camlib.GradCAM(spatial_cnn()), factors)


# Noise averaging -----------------------------------------------------------------------------------------------------


def test_noisy_map_is_the_mean_over_noise_scaled_to_each_images_range():
    model, x = spatial_cnn(), images() * torch.tensor([1.0, 5.0]).double().view(2, 1, 1, 1)
    cam = camlib.GradCAM(model, "3", relu=False)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(4):
        noise = torch.randn(1, 3, 6, 8, generator=generator, dtype=torch.float64)[0]
        noisy = [image + 0.2 * (float(image.max()) - float(image.min())) * noise for image in x]
        expected.append(cam(torch.stack(noisy), [0, 2]).maps)
    result = NoiseAveraging(cam, 4, 0.2, generator=torch.Generator().manual_seed(3))(x, [0, 2])
    close(result.maps, mean(expected))


def test_noisy_pictures_in_a_list_are_those_of_a_batch():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = spatial_cnn()

        def forward(self, pictures: Any) -> Tensor:
            return self.network(torch.stack(list(pictures)))

    x, cam = images(3), NoiseAveraging(camlib.GradCAM(Listed(), "network.3"), 2)
    close(cam(list(x)).maps, cam(x).maps)
    close(cam(list(x)).maps, torch.cat([cam([one]).maps for one in x]))


def test_noise_averaging_makes_a_call_for_each_sample_and_one_for_the_clean_images():
    """In chunks of the size of the batch."""
    model = networks.Network().eval()
    NoiseAveraging(camlib.GradCAM(model, "norm"), 5, chunk_size=2)(torch.rand(2, 3, 12, 10))
    assert model.passes == 6


def test_noise_averaging_explains_the_class_of_the_clean_image_in_all_copies():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 6, 8, generator=generator, dtype=torch.float64)

    def noisy(x: Tensor) -> Tensor:
        return x + 2 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).view(-1, 1, 1, 1) * noise

    model, x, predicted = fickle(noisy, count=1)
    cam = camlib.GradCAM(model, "3", relu=False)
    result = NoiseAveraging(cam, 1, 2.0)(x)
    close(result.maps, cam(noisy(x), predicted).maps)
    assert not torch.allclose(result.maps, cam(noisy(x)).maps)


def test_without_a_generator_every_call_is_the_same_and_with_one_the_next_draws_on():
    cam, x = camlib.GradCAM(spatial_cnn(), "3", relu=False), images()
    assert torch.equal(NoiseAveraging(cam)(x).maps, NoiseAveraging(cam)(x).maps)
    noisy = NoiseAveraging(cam, generator=torch.Generator().manual_seed(5))
    first, second = noisy(x).maps, noisy(x).maps
    assert not torch.allclose(first, second)
    assert torch.equal(NoiseAveraging(cam, generator=torch.Generator().manual_seed(5))(x).maps, first)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"sigma": 0.0}, {"sigma": math.inf}])
def test_wrong_amounts_of_noise_are_refused(wrong):
    with pytest.raises(camlib.CamlibValueError, match=f"{next(iter(wrong))} must be"):
        NoiseAveraging(camlib.GradCAM(spatial_cnn()), **wrong)
    with pytest.raises(camlib.CamlibTypeError, match="samples must be an int"):
        NoiseAveraging(camlib.GradCAM(spatial_cnn()), samples=2.0)


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(camlib.CamlibTypeError, match="generator must be a torch.Generator, got int"):
        NoiseAveraging(camlib.GradCAM(spatial_cnn(), "3", relu=False), generator=7)(images())


# Multi-scale ---------------------------------------------------------------------------------------------------------


def bilinear(grids: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., h, w) one grid at a time, pixel by pixel."""
    flat = [torch.from_numpy(equations.resize_bilinear(grid.numpy(), size)) for grid in grids.flatten(0, -3)]
    return torch.stack(flat).reshape(*grids.shape[:-2], *size)


def naive_multi_scale(
    cam: Any, x: Tensor, target: list[int], scales: list[float], keep: float = 1.0
) -> tuple[Tensor, int]:
    """The map, and how many windows were explained."""
    height, width = x.shape[2:]
    of_scales, calls = [], 0
    for scale in scales:
        large = round(scale * height), round(scale * width)
        windows = math.ceil(2 * scale - 1)
        places, found = [], []
        for i in range(windows):
            for j in range(windows):
                top = round(i * (large[0] - height) / (windows - 1)) if windows > 1 else 0
                left = round(j * (large[1] - width) / (windows - 1)) if windows > 1 else 0
                window = bilinear(x, large)[:, :, top : top + height, left : left + width]
                places.append((top, left))
                found.append(cam(window, target))
                calls += 1
        result = torch.zeros(len(x), *large, dtype=torch.float64)
        for n in range(len(x)):
            ranked = sorted(range(len(found)), key=lambda k, n=n: -float(found[k].scores[n]))
            kept = ranked[: max(1, round(keep * len(found)))]
            for row in range(large[0]):
                for column in range(large[1]):
                    there = []
                    for k in kept:
                        i, j = row - places[k][0], column - places[k][1]
                        if 0 <= i < height and 0 <= j < width:
                            there.append(float(bilinear(found[k].maps[n : n + 1], (height, width))[0, i, j]))
                    if there:
                        result[n, row, column] = sum(there) / len(there)
        of_scales.append(bilinear(result, (height, width)))
    return mean(of_scales), calls


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.01])
@pytest.mark.parametrize("scales", [[1.0, 1.5], [1.3], [2]])
def test_multi_scale_map_is_the_mean_over_windows_and_scales(scales, keep):
    size = (3, 5)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(24, 3)
    )
    cam, x = camlib.GradCAM(model.double().eval(), "2", relu=False), images(2, size)
    expected, _ = naive_multi_scale(cam, x, [0, 2], scales, keep)
    result = MultiScale(cam, scales, keep=keep)(x, [0, 2])
    close(result.maps, expected)
    assert result.layers == {}
    assert result.heatmaps().shape == (2, *size)


@settings(max_examples=12, deadline=None)
@given(st.floats(1, 2.5), st.integers(1, 12), st.integers(1, 12))
def test_multi_scale_makes_as_many_calls_as_there_are_windows_and_they_cover_the_picture(scale, height, width):
    model = networks.Network().eval()
    cam, x = MultiScale(camlib.CenterGaussian(model), (scale,)), torch.rand(1, 3, height, width)
    result = cam(x, 1)
    grown = (round(scale * height), round(scale * width)) != (height, width)
    assert model.passes == 1 + (math.ceil(2 * scale - 1) ** 2 if grown else 0)
    assert (result.maps > 0).all()  # as a Gaussian is everywhere


def test_multi_scale_explains_the_class_of_the_clean_image_in_all_windows():
    model, x, predicted = fickle(lambda x: torch.nn.functional.interpolate(x, (12, 16), mode="bilinear")[..., :6, :8])
    cam = MultiScale(camlib.GradCAM(model, "3", relu=False), (2.0,))
    result = cam(x)
    assert result.target.tolist() == predicted
    assert torch.equal(result.maps, cam(x, predicted).maps)


@pytest.mark.parametrize("target", [targets.Region(1), targets.Region(1, torch.ones(6, 8, dtype=torch.bool))])
def test_windows_do_not_show_the_places_that_a_target_speaks_of(target):
    cam = MultiScale(camlib.GradCAM(dense_cnn(), "1", relu=False))
    with pytest.raises(camlib.CamlibTypeError, match="'region of category 1' depends on positions"):
        cam(images(4, (6, 8)) * 4 - 2, target)


def test_only_a_tensor_of_images_can_be_enlarged():
    with pytest.raises(camlib.CamlibTypeError, match=r"a single tensor \(N, C, H, W\); the inputs are a list"):
        MultiScale(camlib.GradCAM(Padded().double().eval(), "network.3"))(pictures())
    with pytest.raises(camlib.CamlibTypeError, match=r"the inputs are shape \(2, 2, 20\)"):
        MultiScale(camlib.GradCAM(networks.signal_cnn().eval(), "3"))(torch.rand(2, 2, 20))


def test_windows_cannot_be_kept_by_scores_that_there_are_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double().eval()
    with pytest.raises(camlib.CamlibTypeError, match="eigen_cam explains no score of this model"):
        MultiScale(camlib.EigenCAM(model, "1"), keep=0.5)(images())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"scales": ()}, camlib.CamlibValueError, "scales must be one or more numbers"),
        ({"scales": (1.0, 0.5)}, camlib.CamlibValueError, "each of scales must be a number of at least 1, got 0.5"),
        ({"scales": (math.inf,)}, camlib.CamlibValueError, "each of scales must be a number"),
        ({"scales": 2.0}, camlib.CamlibTypeError, "scales must be a list of numbers"),
        ({"keep": 0}, camlib.CamlibValueError, r"keep must be a number in \(0, 1\]"),
        ({"keep": 1.5}, camlib.CamlibValueError, r"keep must be a number in \(0, 1\]"),
        ({"keep": "all"}, camlib.CamlibTypeError, r"keep must be a number in \(0, 1\]"),
    ],
)
def test_wrong_scales_and_shares_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        MultiScale(camlib.GradCAM(spatial_cnn()), **wrong)
