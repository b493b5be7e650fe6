"""torchcam's tests of faithfulness, of classes that are refused, of chunks, and of overlays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import camlib
from tests.peers.captum import refused
from tests.peers.case import Case
from tests.peers.torchcam import CLIPS, PEER, finite, tiny, video

EXACT = torch.tensor([[[[0.4, 0.3], [0.2, 0.1]]]])
FIVE = torch.tensor([[[[0.3, 0.25, 0.2, 0.15, 0.1]]]])
BLACK = {"baseline": "zero"}
ROUNDED = "camlib removes round(j P / steps) pixels, so that the steps are even; torchcam ceil(P / steps) at a time"
SHARE = "camlib's metrics take one number, or a tensor that is broadcast to the images, as the baseline"
COLOURS = "torchcam squares the mask and weights the picture by alpha; camlib weights the heatmap by alpha"
OPAQUE = "alpha=0 and alpha=1 are the picture and the colours alone, which camlib allows"


class Sums(nn.Module):
    """The sum of the image, and one minus it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        score = x.flatten(1).sum(1)
        return torch.stack([score, 1 - score], 1)


def curve(name: str, images: Tensor, steps: int, expected: list[float]) -> None:
    """The scores while pixels are removed or inserted, most important first; the image is its own heatmap."""
    found = getattr(camlib.metrics, name)(Sums(), images, images[:, 0], 0, steps=steps, **BLACK)
    torch.testing.assert_close(found, torch.tensor([expected]))


def area(name: str, expected: float) -> None:
    found = getattr(camlib.metrics, name)(Sums(), EXACT, EXACT[:, 0], 0, steps=2, **BLACK)
    torch.testing.assert_close(found, torch.tensor([expected]))


def chunks_are_the_same() -> None:
    images, values = EXACT.expand(2, -1, -1, -1), []
    for size in (1, 100):
        found = camlib.metrics.deletion(Sums(), images, images[:, 0], 0, steps=4, chunk_size=size, **BLACK)
        values.append(found)
    torch.testing.assert_close(*values)


def drop_of_the_score() -> None:
    """Only the first pixel is shown: from 1 to 0.4."""
    heatmap = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = camlib.metrics.average_drop(Sums(), EXACT, heatmap, 0)
    torch.testing.assert_close(found, torch.tensor([0.6]))
    assert camlib.metrics.average_increase(Sums(), EXACT, heatmap, 0).tolist() == [0]


def own_baseline() -> None:
    """A number and a tensor are the same baseline; neither the images nor the tensor change."""
    images, fill = EXACT.clone(), torch.tensor(0.05)
    values = [camlib.metrics.deletion(Sums(), images, images[:, 0], 0, steps=2, baseline=one) for one in (fill, 0.05)]
    torch.testing.assert_close(*values)
    assert torch.equal(images, EXACT)
    assert float(fill) == float(torch.tensor(0.05))


def keeps_double_precision() -> None:
    model, images = Sums(), EXACT.double()
    camlib.metrics.deletion(model, images, images[:, 0], 0, steps=2, **BLACK)
    assert all(seen.dtype == torch.float64 for seen in model.seen)


def of_a_volume() -> None:
    images = torch.full((1, 1, 2, 2, 2), 0.125)
    for metric in (camlib.metrics.deletion, camlib.metrics.average_drop):
        assert bool(metric(Sums(), images, torch.rand(1, 2, 2, 2), 0).isfinite().all())


def measured(metric: str, **options: Any) -> Callable[[], None]:
    """A check that a call with these options is refused."""
    return refused(lambda: getattr(camlib.metrics, metric)(Sums(), EXACT, EXACT[:, 0], 0, **options))


def for_classes(classes: Any) -> Callable[[], None]:
    two = EXACT.expand(2, -1, -1, -1)
    return refused(lambda: camlib.metrics.average_drop(Sums(), two, two[:, 0], classes))


def same_in_chunks(name: str, target: Any) -> None:
    model = tiny().double()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [camlib.create(name, model, ["1", "3"], chunk_size=size)(images, target).layers for size in (3, 64)]
    for layer, maps in found[0].items():
        torch.testing.assert_close(maps, found[1][layer])
        assert maps.dtype == torch.float64


def restores_after_an_error(name: str) -> None:
    """A network that fails behind the first pass is in training mode again."""
    model = tiny().train()
    calls = list[int]()

    def fails(net: nn.Module, images: Tensor) -> Any:
        calls.append(len(images))
        if len(calls) > 1:
            raise RuntimeError("boom")
        return net(images)

    message = ""
    try:
        camlib.create(name, model, "2", forward=fails)(torch.rand(2, 3, 8, 8), 1)
    except RuntimeError as error:
        message = str(error)
    assert "boom" in message
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def fully_convolutional() -> None:
    """CAM whose classifier is a convolution of one pixel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.Flatten()
    ).eval()
    assert camlib.CAM(model)(torch.rand(1, 3, 32, 32), 1).maps.shape == (1, 32, 32)


def finds(name: str, expected: str) -> None:
    """The layer that torchcam finds, or the module in it that returns the same."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    found = camlib.find_layer(model, torch.rand(1, 3, 64, 64))
    assert found == expected or found.startswith(expected + "."), found


def keeps_modes() -> None:
    model = tiny().train()
    model.get_submodule("1").eval()
    modes = [module.training for module in model.modules()]
    camlib.find_layer(model, torch.rand(1, 3, 12, 16))
    assert [module.training for module in model.modules()] == modes


def blends(shape: tuple[int, ...], alpha: float, colormap: str) -> None:
    """By camlib's own equation: (1 - alpha) picture + alpha colour, of matplotlib's colours."""
    rng = np.random.default_rng(0)
    picture, heatmap = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), rng.integers(0, 256, (7, 9)) / 255
    grey = len(shape) == 2
    given = Image.fromarray(picture[..., 0] if grey else picture)
    chosen = mpl.colormaps[colormap]
    found = camlib.overlay(given, heatmap, chosen, alpha)
    seen = np.repeat(picture[..., :1], 3, 2) if grey else picture
    expected = (1 - alpha) * seen + alpha * 255 * chosen(heatmap)[..., :3]
    assert np.abs(found - expected).max() <= 1


def overlaid(alpha: Any) -> Callable[[], None]:
    return refused(lambda: camlib.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), alpha=alpha))


def picture_alone() -> None:
    picture = np.full((4, 4, 3), 7, np.uint8)
    assert np.array_equal(camlib.overlay(picture, np.ones((4, 4)), alpha=0), picture)


MASKED = ("score_cam", "ss_cam", "is_cam")


def _cases() -> list[Case]:
    m, a, o = "test_metrics", "test_methods_activation", "test_utils"
    checks: dict[str, Callable[[], object]] = {
        f"{m}.classification_metric_exact_value": drop_of_the_score,
        f"{m}.deletion_curve": functools.partial(curve, "deletion_curve", EXACT, 2, [1.0, 0.3, 0.0]),
        f"{m}.insertion_curve": functools.partial(curve, "insertion_curve", EXACT, 2, [0.0, 0.7, 1.0]),
        f"{m}.deletion_auc": functools.partial(area, "deletion", 0.4),
        f"{m}.insertion_auc": functools.partial(area, "insertion", 0.6),
        f"{m}.deletion_insertion_chunked_parity": chunks_are_the_same,
        f"{m}.deletion_insertion_custom_baselines_and_non_mutation": own_baseline,
        f"{m}.deletion_insertion_preserves_dtype": keeps_double_precision,
        f"{m}.metrics_spatial_inputs.3": of_a_volume,
        f"{m}.rejects_invalid_configuration.steps_0": measured("deletion", steps=0),
        f"{m}.rejects_invalid_configuration.steps_float": measured("deletion", steps=1.5),
        f"{m}.rejects_invalid_configuration.batch_size_0": measured("deletion", chunk_size=0),
        f"{m}.rejects_invalid_configuration.batch_size_float": measured("deletion", chunk_size=1.5),
        f"{m}.rejects_invalid_baseline_result.shape": measured("deletion", baseline=torch.zeros(3, 3)),
        f"{m}.rejects_invalid_baseline_result.function": measured("deletion", baseline=lambda given: 0),
        f"{a}.cam_conv1x1": fully_convolutional,
        "test_methods_utils.locate_candidate_layer.resnet18": functools.partial(finds, "resnet18", "layer4"),
        "test_methods_utils.locate_candidate_layer.mobilenet_v3_large": functools.partial(
            finds, "mobilenet_v3_large", "features"
        ),
        "test_methods_utils.locate_candidate_layer.modes": keeps_modes,
        f"{o}.overlay_mask_errors.colormap": refused(
            lambda: camlib.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), "missing")
        ),
    }
    bad = {"2": [2, 2], "text": "0", "one_of_two": [0], "too_high": [0, 2], "bool": [False, 0]}
    for name, classes in bad.items():
        checks[f"{m}.reject_invalid_class_indices.{name}"] = for_classes(classes)
    for name in MASKED:
        for target in (1, [1, 2]):
            check = functools.partial(same_in_chunks, name, target)
            checks[f"{a}.scorecam_chunk_parity.{name}-{target}"] = check
        checks[f"{a}.scorecam_restores_state_on_error.{name}"] = functools.partial(restores_after_an_error, name)
        checks[f"{a}.video_cams.{name}"] = functools.partial(finite, name, video, "0.3", CLIPS)
    checks[f"{a}.video_cams.cam"] = functools.partial(finite, "cam", video, "0.4", CLIPS)
    for alpha in (-0.1, "0.5", None):
        checks[f"{o}.overlay_mask_invalid_alpha.{alpha}"] = overlaid(alpha)
    cases = [Case(PEER, test, "pass", check) for test, check in checks.items()]
    cases.append(Case(PEER, f"{o}.overlay_mask_invalid_alpha.0", "by design", picture_alone, OPAQUE))
    uneven = functools.partial(curve, "deletion_curve", FIVE, 3, [1.0, 0.45, 0.25, 0.0])
    cases.append(Case(PEER, f"{m}.deletion_insertion_non_divisible_steps", "by design", uneven, ROUNDED))
    number = functools.partial(area_with_a_number, 0)
    cases.append(Case(PEER, f"{m}.rejects_invalid_configuration.baseline_number", "by design", number, SHARE))
    for shape in ((7, 9), (7, 9, 3)):
        for alpha in (0.0, 0.5, 0.999):
            for colormap in ("jet", "viridis"):
                name = f"{o}.overlay_mask_parity.{len(shape)}d-{alpha}-{colormap}"
                cases.append(Case(PEER, name, "by design", functools.partial(blends, shape, alpha, colormap), COLOURS))
    return cases


def area_with_a_number(baseline: float) -> None:
    found = camlib.metrics.deletion(Sums(), EXACT, EXACT[:, 0], 0, steps=2, baseline=baseline)
    torch.testing.assert_close(found, torch.tensor([0.4]))


CASES = _cases()
