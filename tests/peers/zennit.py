"""zennit's tests of integrated gradients, SmoothGrad, occlusion and pictures of heatmaps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import camlib
from tests.peers.captum import refused
from tests.peers.case import Case

PEER = "zennit 6204e31"
IMAGES = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
SEQUENCES = "a sequence has one number for each side; another number of sides is refused when the size is known"
CLEAN = "camlib refuses a noise of 0, which would give the map itself"
ALONE = "camlib covers the window; the score of the window alone would be a function of the images"


class Sums(nn.Module):
    """Two classes, the sum of the image and its double; keeps the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        total = x.flatten(1).sum(1)
        return torch.stack([total, 2 * total], 1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).double().eval()


def one_step_is_exact(baseline: Any) -> None:
    """Of a linear network, one node gives the gradient times the difference to the baseline."""
    model = linear()
    start = 0.0 if baseline is None else baseline
    found = camlib.IntegratedGradients(model, steps=1, baseline=start).attributions(IMAGES, 1).values
    weight = next(iter(model.parameters()))[1].reshape(2, 8, 8)
    expected = weight * (IMAGES - (start(IMAGES) if callable(start) else start))
    torch.testing.assert_close(found.reshape(expected.shape), expected.detach())


def steps_lie_on_the_path() -> None:
    """All images on the line to zero are multiples of the image, and the identity's attributions are the image."""
    model = Sums()
    found = camlib.IntegratedGradients(model, steps=20).attributions(IMAGES[:1], 0).values
    seen = torch.cat(model.seen).flatten(1)
    directions = seen[seen.any(1)]  # without the baseline itself
    expected = (IMAGES[:1] / IMAGES[:1].norm()).flatten(1)
    torch.testing.assert_close(directions / directions.norm(dim=1, keepdim=True), expected.expand(len(directions), -1))
    assert len(directions.unique(dim=0)) == 21
    torch.testing.assert_close(found.reshape(IMAGES[:1].shape), IMAGES[:1])


def noise_has_the_level(level: float) -> None:
    """The standard deviation of the copies is a share of each image's range."""
    for image in IMAGES.split(1):
        model = Sums()
        camlib.NoiseAveraging(camlib.InputXGradient(model), samples=100, sigma=level)(image, 0)
        copies = torch.cat([seen for seen in model.seen if not torch.equal(seen[:1], image)])
        assert len(copies) == 100
        spread = float(copies.var(0).mean().sqrt())
        assert 0.667 < spread / (level * float(image.max() - image.min())) < 1.5, spread


def windows_that_meet_sum_to_the_image(window: Any) -> None:
    """What the windows cover, added up, is the image."""
    model = Sums()
    camlib.Occlusion(model, window=window, stride=window)(IMAGES, 0)
    covered = [IMAGES[n] - one for seen in model.seen for one in seen for n in range(3) if fits(one, IMAGES[n])]
    torch.testing.assert_close(torch.stack(covered).sum(0), IMAGES.sum(0))


def fits(seen: Tensor, image: Tensor) -> bool:
    """Whether it is this image with some pixels at zero."""
    return bool(((seen == 0) | (seen == image)).all()) and bool((seen != image).any())


def a_whole_window(fill: float) -> None:
    """A window of the image's size leaves the fill alone."""
    model = linear()
    found = camlib.Occlusion(model, window=8, baseline=fill, relu=False)(IMAGES, 1).maps
    drop = (model(IMAGES) - model(torch.full_like(IMAGES, fill)))[:, 1]
    torch.testing.assert_close(found, drop.detach()[:, None, None].expand(3, 8, 8))


def sizes(argument: str, value: Any) -> Callable[[], None]:
    """A check that the sizes are refused, at once or when the image is known."""
    return refused(lambda: camlib.Occlusion(linear(), **{"window": 4, argument: value})(IMAGES, 1))


def picture_of(width: int, height: int, kind: Any) -> None:
    picture = camlib.colorize(np.ones((height, width), kind), "gray")
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def signed_range() -> None:
    """Symmetric limits put zero in the middle."""
    values = torch.tensor([[[-1.0, 0.0, 3.0]]])
    torch.testing.assert_close(camlib.normalize(values, "signed"), values / 3)


def own_range() -> None:
    """The limits of the values themselves."""
    values = torch.tensor([[[-1.0, 0.0, 3.0]]])
    torch.testing.assert_close(camlib.normalize(values, "minmax"), (values + 1) / 4)


def _cases() -> list[Case]:
    checks: dict[str, Callable[[], object]] = {}
    for name, baseline in (("None", None), ("zeros_like", torch.zeros_like), ("ones_like", torch.ones_like)):
        checks[f"test_attribution.integrated_gradients_single.{name}"] = functools.partial(one_step_is_exact, baseline)
    checks["test_attribution.integrated_gradients_path"] = steps_lie_on_the_path
    for level in (0.1, 0.3, 0.5):
        checks[f"test_attribution.smooth_grad_distribution.{level}"] = functools.partial(noise_has_the_level, level)
    for window in (1, 2, 4):
        check = functools.partial(windows_that_meet_sum_to_the_image, window)
        checks[f"test_attribution.occlusion_disjunct.{window}"] = check
    for name, fill in (("zeros_like", 0.0), ("ones_like", 1.0)):
        checks[f"test_attribution.occlusion_single.{name}-True"] = functools.partial(a_whole_window, fill)
    words = {"monkey": "monkey", "set": {3}, "words": ("you", "are", "breathtaking")}
    for argument in ("window", "stride"):
        for name, value in words.items():
            checks[f"test_attribution.occlusion_typecheck.{argument}-{name}"] = sizes(argument, value)
    for dims in (1, 4, 5, 6):
        check = refused(functools.partial(camlib.colorize, np.zeros((1,) * dims)))
        checks[f"test_image.imgify_wrong_dim.{dims}"] = check
    for width in (5, 10):
        for height in (5, 10):
            check = functools.partial(picture_of, width, height, np.float64)
            checks[f"test_image.imgify_container.{width}-{height}-float64"] = check
    checks["test_image.imgify_normalization.None-None-True"] = signed_range
    checks["test_image.imgify_normalization.None-None-False"] = own_range
    cases = [Case(PEER, test, "pass", check) for test, check in checks.items()]
    for argument in ("window", "stride"):
        for name, value in (("range", range(3)), ("list", [3])):
            test = f"test_attribution.occlusion_typecheck.{argument}-{name}"
            cases.append(Case(PEER, test, "by design", sizes(argument, value), SEQUENCES))
    for window in ((1,), (2,), (4,)):
        test = f"test_attribution.occlusion_disjunct.{window[0]}-tuple"
        cases.append(Case(PEER, test, "by design", sizes("window", window), SEQUENCES))
    no_noise = refused(lambda: camlib.NoiseAveraging(camlib.InputXGradient(linear()), sigma=0.0))
    cases.append(Case(PEER, "test_attribution.smooth_grad_distribution.0.0", "by design", no_noise, CLEAN))
    cannot = {
        "test_attribution.occlusion_single.None-False": ALONE,
        "test_attribution.occlusion_single.zeros_like-False": ALONE,
        "test_attribution.smooth_grad_single": "camlib averages gradients times the image, not gradients",
        "test_attribution.smooth_grad_single_grad": "maps have no gradient of their own",
        "test_attribution.integrated_gradients_single_grad": "maps have no gradient of their own",
        "test_attribution.gradient_attributor_grad": "maps have no gradient of their own",
    }
    for low in ("None", "1.0"):
        for high in ("None", "2.0"):
            for symmetric in (True, False) if (low, high) != ("None", "None") else ():
                cannot[f"test_image.imgify_normalization.{low}-{high}-{symmetric}"] = (
                    "limits are those of each map; a heatmap in [0, 1] is coloured as it is"
                )
    return cases + [Case(PEER, test, "cannot", None, why) for test, why in cannot.items()]


CASES = _cases()
