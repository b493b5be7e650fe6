"""Copies of the images in chunks: Smooth Grad-CAM++, noise averaging and test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camlib
from camlib import targets
from camlib.passes.memory import Peak
from tests import networks

COPIES = 5
Smooth = Callable[..., Any]
SMOOTH: dict[str, Smooth] = {
    "smooth_grad_cam_plus_plus": lambda model, layer, **options: camlib.SmoothGradCAMPlusPlus(
        model, layer, samples=COPIES, relu=False, **options
    ),
    "noise averaging": lambda model, layer, **options: camlib.NoiseAveraging(
        camlib.GradCAM(model, layer, relu=False), COPIES, **options
    ),
    "augmentation": lambda model, layer, **options: camlib.TestTimeAugmentation(
        camlib.GradCAM(model, layer, relu=False), (0.5, 0.7, 0.9, 1.1, 1.3), mirror=False, **options
    ),
}
"""Five copies of each image, none of them the clean one."""

each_smooth = pytest.mark.parametrize("smooth", SMOOTH.values(), ids=SMOOTH)


class Counted(nn.Module):
    """Keeps account of the rows that went through, and runs out of memory above so many."""

    def __init__(self, network: nn.Module, most: float = math.inf) -> None:
        super().__init__()
        self.network = network
        self.most = most
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} rows")
        self.rows.append(len(images))
        return self.network(images)


def images(count: int) -> Tensor:
    scale = torch.arange(1, count + 1, dtype=torch.float64).view(-1, 1, 1, 1)
    return scale * torch.rand(count, 3, 8, 9, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


# Chunks ---------------------------------------------------------------------------------------------------------------


@each_smooth
@pytest.mark.parametrize(
    "target",
    [1, [2, 0, 1], [[0, 2], [1, 0], [2, 1]], lambda outputs: outputs[:, 1] ** 2],
    ids=["one class", "one of each", "several", "a callable"],
)
def test_the_map_does_not_depend_on_the_chunks(smooth: Smooth, target: Any) -> None:
    model, x = networks.small_cnn().double().eval(), images(3)
    one_by_one = [smooth(model, "2", chunk_size=1)(x, target).maps, smooth(model, "2", chunk_size=3)(x, target).maps]
    for size in (2, 4, 7, 3 * COPIES, 100, "auto"):
        for expected in one_by_one:
            close(smooth(model, "2", chunk_size=size)(x, target).maps, expected)


@each_smooth
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [1, 4, 8, 100])
def test_a_chunk_is_one_forward_pass_of_that_many_rows(smooth: Smooth, count: int, size: int) -> None:
    model, rows = Counted(networks.small_cnn()).double().eval(), count * COPIES
    smooth(model, "network.2", chunk_size=size)(images(count))
    whole, rest = divmod(rows, size)
    assert model.rows == [count] + [size] * whole + ([rest] if rest else [])


def test_eight_noisy_samples_of_an_image_are_one_pass_in_chunks_of_eight() -> None:
    model = Counted(networks.small_cnn()).double().eval()
    camlib.SmoothGradCAMPlusPlus(model, "network.2", samples=8, chunk_size=8)(images(1))
    assert model.rows == [1, 8]


@each_smooth
def test_by_default_a_row_is_measured_and_the_others_follow_together(smooth: Smooth) -> None:
    model = Counted(networks.small_cnn()).double().eval()
    smooth(model, "network.2")(images(2))
    assert model.rows == [2, 1, 2 * COPIES - 1]


@each_smooth
def test_memory_that_runs_out_halves_the_chunk_and_changes_nothing_else(smooth: Smooth) -> None:
    network, x = networks.small_cnn(), images(2)
    limited = Counted(network, most=3).double().eval()
    found = smooth(limited, "network.2")(x, 1).maps
    assert sum(limited.rows) == 2 + 2 * COPIES
    assert max(limited.rows) <= 3
    close(found, smooth(network, "2", chunk_size=1)(x, 1).maps)


@each_smooth
def test_auto_takes_what_the_budget_allows_and_no_more(smooth: Smooth, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 2**20
    monkeypatch.setattr("camlib.passes.chunks.budget", lambda device: budget)
    coarse = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )
    x, peaks = torch.rand(8, 3, 64, 64), []
    for size in (1, "auto", 8 * COPIES):
        model = Counted(coarse).eval()
        with Peak() as peak:
            smooth(model, "network.2", chunk_size=size)(x, 1)
        peaks.append(peak.bytes)
        if size == "auto":
            assert 8 * COPIES > max(model.rows) > 2, "chunks are larger than a row"
    one, auto, together = peaks
    assert auto <= budget + one < together


@each_smooth
@pytest.mark.parametrize("size", [0, 2.0, "big"])
def test_wrong_chunk_sizes_are_refused(smooth: Smooth, size: Any) -> None:
    with pytest.raises(camlib.CamlibError, match='chunk_size must be "auto" or an int of at least 1, got'):
        smooth(networks.small_cnn(), "2", chunk_size=size)


# Rows -----------------------------------------------------------------------------------------------------------------


class Listed(nn.Module):
    """Takes a list of images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = networks.small_cnn()

    def forward(self, pictures: list[Tensor]) -> Tensor:
        return self.network(torch.stack(pictures))


class WithAges(nn.Module):
    """Takes images, an age of each, and prototypes that all share."""

    def __init__(self) -> None:
        super().__init__()
        self.network = networks.small_cnn()

    def forward(self, pictures: Tensor, ages: Tensor, prototypes: Tensor) -> Tensor:
        return self.network(pictures) * (1 + ages) + prototypes.mean()


@each_smooth
@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_list_of_images_is_explained_as_a_batch(smooth: Smooth, size: int) -> None:
    model, x = Listed().double().eval(), images(3)
    found = smooth(model, "network.2", chunk_size=size)(list(x), [2, 0, 1])
    close(found.maps, smooth(model.network, "2", chunk_size=3)(x, [2, 0, 1]).maps)


@each_smooth
@pytest.mark.parametrize("size", [1, 4, 100])
def test_other_inputs_go_with_their_image(smooth: Smooth, size: int) -> None:
    model, x = WithAges().double().eval(), images(3)
    ages, prototypes = torch.rand(3, 1, dtype=torch.float64), torch.rand(7, 3, 8, 9, dtype=torch.float64)
    together = smooth(model, "network.2", chunk_size=size)((x, ages, prototypes), [2, 0, 1]).maps
    for one, target in enumerate([2, 0, 1]):
        alone = smooth(model, "network.2", chunk_size=1)((x[one, None], ages[one, None], prototypes), target).maps
        close(together[one, None], alone)


@each_smooth
@pytest.mark.parametrize("size", [1, 5])
def test_a_target_of_each_image_goes_with_its_copies(smooth: Smooth, size: int) -> None:
    model, x = networks.small_cnn().double().eval(), images(3)
    references = torch.rand(3, 3, dtype=torch.float64)
    found = smooth(model, "2", chunk_size=size)(x, targets.Similarity(references)).maps
    for one in range(3):
        alone = smooth(model, "2", chunk_size=100)(x[one, None], targets.Similarity(references[one])).maps
        close(found[one, None], alone)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_place_of_each_image_is_mirrored_with_its_copies(size: int) -> None:
    """For each image another region, and a method that chooses by the class."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).double().eval()
    x, mask = images(3), torch.rand(3, 8, 9) < 0.3
    cam = camlib.GradCAM(model, "1", relu=False)
    there = cam(x.flip(-1), targets.Region(2, mask.flip(-1))).maps.flip(-1)
    found = camlib.TestTimeAugmentation(cam, (1.0,), chunk_size=size)(x, targets.Region(2, mask)).maps
    close(found, (cam(x, targets.Region(2, mask)).maps + there) / 2)
    nested = camlib.NoiseAveraging(camlib.TestTimeAugmentation(cam), 2, sigma=1e-14, chunk_size=size)
    plain = camlib.TestTimeAugmentation(cam)(x, targets.Region(2, mask)).maps
    torch.testing.assert_close(nested(x, targets.Region(2, mask)).maps, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", [camlib.CAM, camlib.FinerCAM])
def test_methods_that_need_to_know_the_class_are_told_it_for_each_row(method: type[camlib.methods.Method]) -> None:
    model, x = networks.small_cnn().double().eval(), images(3)
    cam = method(model, "4", relu=False) if method is camlib.FinerCAM else method(model, relu=False)
    together = camlib.NoiseAveraging(cam, COPIES, chunk_size=100)(x, [2, 0, 1]).maps
    close(together, camlib.NoiseAveraging(cam, COPIES, chunk_size=1)(x, [2, 0, 1]).maps)


@each_smooth
def test_a_callable_that_knows_each_image_gets_a_copy_of_each_in_chunks_of_that_size(smooth: Smooth) -> None:
    model, x, classes = networks.small_cnn().double().eval(), images(3), torch.tensor([2, 0, 1])
    found = smooth(model, "2", chunk_size=3)(x, lambda outputs: outputs[torch.arange(3), classes])
    close(found.maps, smooth(model, "2")(x, classes).maps)


class Squeezed(networks.Network):
    """Squeezes the axis of the batch away, for a single image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def test_rows_that_a_model_loses_are_refused_as_by_other_perturbations() -> None:
    model, x = Squeezed().eval(), torch.rand(2, 3, 12, 12)
    for size in (1, "auto"):
        with pytest.raises(camlib.CamlibRuntimeError, match="1 of the perturbed images.*reshape"):
            camlib.SmoothGradCAMPlusPlus(model, "norm", chunk_size=size)(x, 1)
    assert camlib.SmoothGradCAMPlusPlus(model, "norm", chunk_size=2)(x, 1).maps.isfinite().all()


class Fixed(nn.Module):
    """Takes batches of two, whose images it compares."""

    def __init__(self) -> None:
        super().__init__()
        self.network = networks.small_cnn()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.network(x).reshape(2, 3)
        return outputs - outputs.mean(0)


@each_smooth
def test_a_network_that_takes_only_the_batch_itself_gets_it_in_chunks_of_that_size(smooth: Smooth) -> None:
    model, x = Fixed().double().eval(), images(2)
    assert smooth(model, "network.2", chunk_size=2)(x, 1).maps.isfinite().all()
    with pytest.raises(Exception, match="invalid for input of size"):
        smooth(model, "network.2", chunk_size=1)(x, 1)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_numbers_that_are_not_finite_are_said_of_their_image(size: int) -> None:
    class Fragile(nn.Module):
        """Fails at copies of the brightest image."""

        def __init__(self) -> None:
            super().__init__()
            self.network = networks.small_cnn()

        def forward(self, x: Tensor) -> Tensor:
            far = x.amax((1, 2, 3)) > 1.0
            return self.network(x) / torch.where(far, 0.0, 1.0)[:, None]

    x = torch.rand(3, 3, 8, 9) / 2
    x[1] += 0.49
    cam = camlib.SmoothGradCAMPlusPlus(Fragile().eval(), "network.2", samples=3, chunk_size=size)
    with pytest.raises(camlib.CamlibRuntimeError, match=r"not finite \(NaN or infinity\) for image 1;"):
        cam(x, 1)


class Spoiled(networks.Network):
    """A network whose scores overflow for copies, which are brighter than all images."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.amax((1, 2, 3))[:, None] > 1, torch.inf, super().forward(x))


@pytest.mark.parametrize("size", [1, 3, "auto"])
def test_a_copy_that_is_not_finite_is_said_of_its_image(size: Any) -> None:
    x = 0.4 * torch.rand(3, 3, 8, 9)
    x[1] /= x[1].max()
    brighter = camlib.TestTimeAugmentation(camlib.GradCAM(Spoiled().eval(), "norm"), (1.0, 1.1), chunk_size=size)
    with pytest.raises(camlib.errors.NotFiniteError, match="in a copy of image 1;") as caught:
        brighter(x, 1)
    assert caught.value.images == (1,)
