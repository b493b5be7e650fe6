"""Perturbation methods: their papers' equations, the passes they take, and what their chunks may not change."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import camlib
from camlib.methods.masks import RandomMasks, SlidingWindows, channel_masks
from camlib.passes.memory import Peak
from tests import equations, networks, oracles
from tests.equations import MapsAndScale
from tests.networks import Drawn, cnns

TOLERANCE = 1e-9

# The oracles, of a model as a whole ---------------------------------------------------------------------------------


def _same(features: Tensor) -> Tensor:
    return features


@contextlib.contextmanager
def returning(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what a module returns."""
    handle = module.register_forward_hook(lambda _, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def features_of(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a layer returns, as it is before anything behind it writes into it."""
    found: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        found.append(features.clone())
        return features

    with torch.no_grad(), returning(model.get_submodule(layer), keep):
        model(images)
    return found[0]


def score_of(model: nn.Module, c: int) -> equations.ScoreOfOne:
    def score(image: Tensor) -> float:
        with torch.no_grad():
            return float(model(image)[0, c])

    return score


def each(images: Tensor, of_one: Callable[[int], MapsAndScale]) -> MapsAndScale:
    """The oracle of every image, one after the other."""
    maps, scales = zip(*(of_one(n) for n in range(len(images))), strict=True)
    return torch.stack(maps), torch.stack(scales)


def masked(
    equation: Callable[..., MapsAndScale],
    model: nn.Module,
    layer: str,
    images: Tensor,
    target: Sequence[int],
    *args: object,
    to_grid: Callable[[Tensor], Tensor] = _same,
    **options: object,
) -> MapsAndScale:
    """Score-CAM or a relative of it."""
    a = to_grid(features_of(model, layer, images))
    return each(images, lambda n: equation(a[n], images[n], score_of(model, target[n]), *args, **options))


def ablated(
    model: nn.Module,
    layer: str,
    images: Tensor,
    target: Sequence[int],
    to_grid: Callable[[Tensor], Tensor] = _same,
    equation: Callable[..., MapsAndScale] = equations.ablation_cam,
) -> MapsAndScale:
    """Ablation-CAM or Recipro-CAM by a hook and the whole network: nothing is cut. ``to_grid`` returns a view."""

    def of_one(n: int) -> MapsAndScale:
        one = images[n : n + 1]
        features = features_of(model, layer, one)

        def score(grid: Tensor) -> float:
            put = features.clone()
            to_grid(put).copy_(grid)
            with returning(model.get_submodule(layer), lambda _: put.clone()):
                return score_of(model, target[n])(one)

        return equation(to_grid(features)[0].clone(), score)

    return each(images, of_one)


def rise(masks: Tensor, model: nn.Module, images: Tensor, target: Sequence[int]) -> MapsAndScale:
    return each(images, lambda n: equations.rise(masks, images[n], score_of(model, target[n])))


def occluded(model: nn.Module, images: Tensor, target: Sequence[int], **options: object) -> MapsAndScale:
    return each(images, lambda n: equations.occlusion(images[n], score_of(model, target[n]), **options))


def noise(samples: int, size: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randn((samples, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_masks(size: tuple[int, ...], samples: int, cells: int, probability: float = 0.5, seed: int = 0) -> Tensor:
    """What RISE lays over pictures; :func:`test_random_masks_are_shifted_grids` says what they are."""
    generator = torch.Generator().manual_seed(seed)
    return RandomMasks(size, samples, cells, probability, generator, torch.empty(0, dtype=torch.float64))[:]


def default_window(size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    window = tuple(max(round(side / 7), 1) for side in size)
    return {"window": window, "stride": tuple(max(side // 2, 1) for side in window)}


FEW = {
    "score_cam": {},
    "ss_cam": {"samples": 3},
    "is_cam": {"samples": 3},
    "ablation_cam": {},
    "recipro_cam": {"gaussian": True},
    "rise": {"samples": 12, "cells": 3},
    "occlusion": {},
}
"""The methods, with options that make few passes."""
LAYERLESS = ("rise", "occlusion")
OF_TAILS = ("ablation_cam", "recipro_cam")


def explain(name: str, model: nn.Module, layer: str | list[str], **options: object) -> camlib.methods.Method:
    return camlib.create(name, model, *([] if name in LAYERLESS else [layer]), **{**FEW[name], **options})


def oracle(
    name: str,
    model: nn.Module,
    layer: str,
    images: Tensor,
    target: Sequence[int],
    to_grid: Callable[[Tensor], Tensor] = _same,
) -> MapsAndScale:
    """The equation of a method with its options in ``FEW``."""
    size = tuple(images.shape[2:])
    of_layer = model, layer, images, target
    if name == "score_cam":
        return masked(equations.score_cam, *of_layer, to_grid=to_grid)
    if name == "ss_cam":
        return masked(equations.ss_cam, *of_layer, noise(3, size), to_grid=to_grid)
    if name == "is_cam":
        return masked(equations.is_cam, *of_layer, samples=3, to_grid=to_grid)
    if name == "ablation_cam":
        return ablated(*of_layer, to_grid=to_grid)
    if name == "recipro_cam":
        return ablated(*of_layer, to_grid=to_grid, equation=functools.partial(equations.recipro_cam, gaussian=True))
    if name == "rise":
        return rise(drawn_masks(size, 12, 3), model, images, target)
    return occluded(model, images, target, **default_window(size))


def well_posed(name: str, drawn: Drawn, target: Sequence[int]) -> bool:
    """Whether rounding has no say: in the mask of a channel that hardly varies, and in a score that is nearly 0."""
    with torch.no_grad():
        scores = drawn.model(drawn.images)[range(len(target)), list(target)]
    if name == "ablation_cam":
        return bool((scores.abs() > 1e-5).all())
    if name == "recipro_cam":
        return True
    return equations.channel_range(features_of(drawn.model, str(drawn.cut), drawn.images)) > 1e-6


# Drawn networks -----------------------------------------------------------------------------------------------------


def draw_target(drawn: Drawn, data: st.DataObject) -> list[int]:
    classes, images = st.integers(0, drawn.classes - 1), len(drawn.images)
    return data.draw(st.lists(classes, min_size=images, max_size=images))


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=15, deadline=None)
@given(drawn=cnns(), data=st.data())
def test_maps_are_the_papers_equation_on_random_networks(name: str, drawn: Drawn, data: st.DataObject) -> None:
    target, layer = draw_target(drawn, data), str(drawn.cut)
    assume(well_posed(name, drawn, target))
    expected, scale = oracle(name, drawn.model, layer, drawn.images, target)
    signed = explain(name, drawn.model, layer, relu=False)(drawn.images, target)
    assert signed.maps.dtype == torch.float64
    oracles.assert_close(signed.maps, expected, scale, TOLERANCE)
    cut_off = explain(name, drawn.model, layer, relu=True)(drawn.images, target)
    oracles.assert_close(cut_off.maps, expected.clamp(min=0), scale, TOLERANCE)


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=8, deadline=None)
@given(drawn=cnns(), chunk=st.sampled_from([1, 2, 5, "auto"]))
def test_many_classes_are_each_the_papers_equation(name: str, drawn: Drawn, chunk: int | str) -> None:
    explainer = explain(name, drawn.model, str(drawn.cut), relu=False, chunk_size=chunk)
    explanation = explainer(drawn.images, camlib.TopK(2))
    with torch.no_grad():
        assert torch.equal(explanation.target, drawn.model(drawn.images).topk(2).indices)
    for k in range(2):
        target = explanation.target[:, k].tolist()
        assume(well_posed(name, drawn, target))
        expected = oracle(name, drawn.model, str(drawn.cut), drawn.images, target)
        oracles.assert_close(explanation.maps[:, k], *expected, TOLERANCE)


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=10, deadline=None)
@given(drawn=cnns(), data=st.data())
def test_neither_the_chunk_nor_the_other_images_change_a_map(name: str, drawn: Drawn, data: st.DataObject) -> None:
    target, layer = draw_target(drawn, data), str(drawn.cut)
    assume(well_posed(name, drawn, target))
    chunk = data.draw(st.integers(1, 40))
    _, scale = oracle(name, drawn.model, layer, drawn.images, target)
    whole = explain(name, drawn.model, layer, relu=False)(drawn.images, target).maps
    parts = explain(name, drawn.model, layer, relu=False, chunk_size=chunk)(drawn.images, target).maps
    oracles.assert_close(parts, whole, scale, TOLERANCE)
    n = data.draw(st.integers(0, len(target) - 1))
    alone = explain(name, drawn.model, layer, relu=False, chunk_size=chunk)(drawn.images[n : n + 1], target[n]).maps
    oracles.assert_close(alone, whole[n : n + 1], scale[n : n + 1], TOLERANCE)


# Options ------------------------------------------------------------------------------------------------------------


class Plus(nn.Module):
    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant


@pytest.fixture
def small() -> tuple[nn.Sequential, Tensor]:
    """Five channels that vary, at layer 3."""
    model = networks.small_cnn(classes=4, channels=5).double().eval()
    return model, torch.rand(2, 3, 12, 14, dtype=torch.float64)


def test_score_cam_looks_at_the_channels_that_vary_most_only(small: tuple[nn.Sequential, Tensor]) -> None:
    model, images = small
    for channels in (1, 2, 5, 99):
        expected = masked(equations.score_cam, model, "2", images, [1, 3], channels=channels)
        maps = camlib.ScoreCAM(model, "2", channels=channels, relu=False)(images, [1, 3]).maps
        oracles.assert_close(maps, *expected, TOLERANCE)


def test_noise_and_steps_are_as_given(small: tuple[nn.Sequential, Tensor]) -> None:
    model, images = small
    expected = masked(equations.ss_cam, model, "2", images, [1, 3], noise(4, (12, 14), seed=5), sigma=0.7)
    generator = torch.Generator().manual_seed(5)
    explainer = camlib.SSCAM(model, "2", samples=4, sigma=0.7, generator=generator, relu=False)
    first = explainer(images, [1, 3]).maps
    oracles.assert_close(first, *expected, TOLERANCE)
    assert not torch.equal(first, explainer(images, [1, 3]).maps), "the generator goes on"
    steps = masked(equations.is_cam, model, "2", images, [1, 3], samples=7)
    oracles.assert_close(camlib.ISCAM(model, "2", samples=7, relu=False)(images, [1, 3]).maps, *steps, 1e-12)
    defaults = camlib.SSCAM(model, "2"), camlib.ISCAM(model, "2"), camlib.RISE(model)
    assert [method.samples for method in defaults] == [35, 10, 4000]
    assert defaults[0].sigma == 2.0
    assert (defaults[2].cells, defaults[2].probability) == (7, 0.5)


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_rise_draws_masks_as_given(probability: float, small: tuple[nn.Sequential, Tensor]) -> None:
    """At the lower probability no mask shows some of the pixels: their evidence is 0."""
    model, images = small
    masks = drawn_masks((12, 14), 9, 5, probability, seed=5)
    assert ((masks.sum(0) == 0).any()) == (probability < 0.1)
    generator = torch.Generator().manual_seed(5)
    explainer = camlib.RISE(model, samples=9, cells=5, probability=probability, generator=generator)
    oracles.assert_close(explainer(images, [1, 3]).maps, *rise(masks, model, images, [1, 3]), TOLERANCE)


def test_occlusion_slides_the_given_window_with_the_given_baseline(small: tuple[nn.Sequential, Tensor]) -> None:
    model, images = small
    for window, stride in (((3, 5), (2, 5)), ((12, 14), (1, 1)), ((5, 5), (5, 5)), ((1, 4), (1, 3))):
        expected = occluded(model, images, [1, 3], window=window, stride=stride, baseline=0.5)
        explainer = camlib.Occlusion(model, window=window, stride=stride, baseline=0.5, relu=False)
        oracles.assert_close(explainer(images, [1, 3]).maps, *expected, TOLERANCE)
    expected = occluded(model, images, [1, 3], window=(4, 4), stride=(3, 3))
    explainer = camlib.Occlusion(model, window=4, stride=3, relu=False)
    oracles.assert_close(explainer(images, [1, 3]).maps, *expected, TOLERANCE)


def test_occlusion_takes_a_baseline_for_each_channel(small: tuple[nn.Sequential, Tensor]) -> None:
    """The same as shifting the images and the network so that the baseline is 0."""
    model, images = small
    baseline = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)
    shifted = nn.Sequential(Plus(baseline.double()), model)
    expected = occluded(shifted, images - baseline, [1, 3], window=(4, 4), stride=(2, 2))
    explainer = camlib.Occlusion(model, window=4, stride=2, baseline=baseline.double(), relu=False)
    oracles.assert_close(explainer(images, [1, 3]).maps, *expected, TOLERANCE)


def drawn_regions(*size: int) -> Tensor:
    """Numbers with gaps, negative ones among them, of regions that need not be connected."""
    return torch.randint(-2, 3, size, generator=torch.Generator().manual_seed(3)) * 7


@pytest.mark.parametrize("shape", [(12, 14), (2, 12, 14)], ids=["shared", "each"])
@pytest.mark.parametrize("size", [1, 4, "auto"])
def test_occlusion_covers_the_given_regions(
    shape: tuple[int, ...], size: int | str, small: tuple[nn.Sequential, Tensor]
) -> None:
    model, images = small
    regions = drawn_regions(*shape)
    if len(shape) == 3:
        regions[0][regions[0] < 0] = 0  # the first image has fewer regions
    each_images = regions.expand(2, 12, 14)

    def expected(target: Sequence[int]) -> MapsAndScale:
        return each(
            images,
            lambda n: equations.occlusion_of_regions(
                images[n], score_of(model, target[n]), regions=each_images[n], baseline=0.5
            ),
        )

    options = {"baseline": 0.5, "relu": False, "chunk_size": size}
    for form in (regions, regions.numpy(), lambda given: regions if torch.equal(given, images) else None):
        explainer = camlib.Occlusion(model, regions=form, **options)
        oracles.assert_close(explainer(images, [1, 3]).maps, *expected([1, 3]), TOLERANCE)
    several = camlib.Occlusion(model, regions=regions, **options)(images, torch.tensor([[1, 3], [3, 0]])).maps
    oracles.assert_close(several[:, 0], *expected([1, 3]), TOLERANCE)
    oracles.assert_close(several[:, 1], *expected([3, 0]), TOLERANCE)


def test_regions_of_signals_and_volumes_are_covered() -> None:
    for network, size in ((networks.signal_cnn, (2, 9)), (networks.volume_cnn, (1, 4, 5, 6))):
        model, images = network().double().eval(), torch.rand(2, *size, dtype=torch.float64)
        regions = drawn_regions(*size[1:])
        expected = each(
            images,
            lambda n, model=model, images=images, regions=regions: equations.occlusion_of_regions(
                images[n], score_of(model, 1), regions=regions
            ),
        )
        oracles.assert_close(camlib.Occlusion(model, regions=regions, relu=False)(images, 1).maps, *expected, TOLERANCE)


@pytest.mark.parametrize("method", [camlib.Occlusion, camlib.RISE])
def test_one_score_of_the_whole_batch_is_refused(method: type[camlib.methods.Method]) -> None:
    cam = method(networks.small_cnn(), forward=lambda model, images: model(images).sum().reshape(1))
    with pytest.raises(camlib.CamlibRuntimeError, match="outputs have 1 rows for 2 images; return one row for each"):
        cam(torch.rand(2, 3, 12, 14))


def test_one_pixel_windows_are_regions_of_one_pixel(small: tuple[nn.Sequential, Tensor]) -> None:
    model, images = small
    pixels = camlib.Occlusion(model, regions=torch.arange(12 * 14).reshape(12, 14), relu=False)(images, 1).maps
    torch.testing.assert_close(pixels, camlib.Occlusion(model, window=1, stride=1, relu=False)(images, 1).maps)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"regions": torch.zeros(12, 14)}, camlib.CamlibTypeError, "regions must be integers .* got torch.float32"),
        ({"regions": "slic"}, camlib.CamlibTypeError, "regions must be integers .* or a function"),
        ({"regions": lambda images: images[:, 0]}, camlib.CamlibTypeError, "got torch.float32"),
        ({"regions": torch.zeros(14, 12).long()}, camlib.CamlibValueError, r"\(14, 12\), and images without channels"),
        ({"regions": torch.zeros(2, 12, 14).long()}, camlib.CamlibValueError, r"one for all images: \(12, 14\)"),
        ({"regions": torch.zeros(12, 14).long(), "window": 3}, camlib.CamlibValueError, "give either regions"),
        ({"regions": torch.zeros(12, 14).long(), "stride": 3}, camlib.CamlibValueError, "give either regions"),
    ],
    ids=["numbers", "a name", "a function of numbers", "another size", "two for many", "a window", "a stride"],
)
def test_regions_that_do_not_fit_are_refused(
    options: dict[str, object], kind: type[camlib.CamlibError], match: str
) -> None:
    with pytest.raises(kind, match=match):
        camlib.Occlusion(networks.small_cnn(), **options)(torch.rand(1, 3, 12, 14))


@pytest.mark.parametrize("name", sorted(FEW.keys() - set(LAYERLESS)))
def test_several_layers_are_each_explained(name: str, small: tuple[nn.Sequential, Tensor]) -> None:
    model, images = small
    explanation = explain(name, model, ["0", "2"])(images, [1, 3])
    for layer, maps in explanation.layers.items():
        expected, scale = oracle(name, model, layer, images, [1, 3])
        oracles.assert_close(maps, expected.clamp(min=0), scale, TOLERANCE)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *[(camlib.ScoreCAM, {"chunk_size": size}) for size in (0, -1, "big", True, 2.0, None)],
        (camlib.ScoreCAM, {"channels": 0}),
        (camlib.ScoreCAM, {"channels": True}),
        (camlib.SSCAM, {"samples": 0}),
        (camlib.SSCAM, {"sigma": -1.0}),
        (camlib.SSCAM, {"sigma": math.nan}),
        (camlib.ISCAM, {"samples": 0}),
        (camlib.AblationCAM, {"chunk_size": 0}),
        *[(camlib.RISE, {"probability": p}) for p in (0, 1, 1.5, -0.1, math.nan, "half", True)],
        (camlib.RISE, {"samples": 0}),
        (camlib.RISE, {"cells": 0}),
        (camlib.Occlusion, {"window": 0}),
        (camlib.Occlusion, {"window": (3, 0)}),
        (camlib.Occlusion, {"window": 2.5}),
        (camlib.Occlusion, {"stride": 0}),
        (camlib.Occlusion, {"baseline": "black"}),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(method: type[camlib.methods.Method], options: dict[str, object]) -> None:
    with pytest.raises((camlib.CamlibValueError, camlib.CamlibTypeError), match=next(iter(options))):
        method(networks.small_cnn(), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 20}, "larger than the image"),
        ({"window": (3, 3, 3)}, "3 sides"),
        ({"window": 3, "stride": 4}, "larger than the window"),
        ({"baseline": torch.zeros(5)}, "broadcast"),
    ],
    ids=str,
)
def test_windows_that_do_not_fit_the_picture_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=match):
        camlib.Occlusion(networks.small_cnn(), **options)(torch.rand(1, 3, 12, 14))


# Masks --------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 5)] * 2), size=st.tuples(*[st.integers(1, 11)] * 2))
def test_channel_masks_are_upsampled_then_minmaxed(grid: tuple[int, int], size: tuple[int, int]) -> None:
    channels = torch.randn(3, *grid, dtype=torch.float64)
    channels[1] = 0.3
    found = channel_masks(channels, size)
    for mask, channel in zip(found, channels, strict=True):
        resized = equations.resize_linear(channel.numpy(), size)
        if resized.max() - resized.min() > 1e-9:
            torch.testing.assert_close(mask, torch.from_numpy(equations.channel_mask(channel.numpy(), size)))
        else:
            assert not mask.any()


@pytest.mark.slow
def test_random_masks_are_shifted_grids() -> None:
    """For each there is one offset at which it is the oracle's, of a grid of zeros and ones."""
    size, cells = (9, 13), 3
    grids = [torch.tensor([i >> b & 1 for b in range(9)]).view(3, 3).double() for i in range(2**9)]
    offsets = [(top, left) for top in range(3) for left in range(5)]
    known = {(i, at): equations.random_mask(grids[i], at, size) for i in range(2**9) for at in offsets}
    everything = torch.stack(list(known.values())).flatten(1)
    seen = []
    masks = drawn_masks(size, 60, cells)
    for mask in masks:
        distance, nearest = (everything - mask.flatten()).abs().amax(1).min(0)
        assert distance < 1e-12
        seen.append(list(known)[nearest][1])
    assert len(set(seen)) >= 12, "offsets are drawn"
    assert 0.4 < masks.mean() < 0.6
    assert 0.1 < drawn_masks(size, 200, cells, probability=0.2).mean() < 0.3


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_windows_cover_every_pixel_and_are_made_at_the_oracles_offsets(data: st.DataObject) -> None:
    size = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    window = [data.draw(st.integers(1, side)) for side in size]
    stride = [data.draw(st.integers(1, side)) for side in window]
    windows = SlidingWindows(tuple(size), tuple(window), tuple(stride), torch.device("cpu"))
    sides = [equations.window_offsets(*along) for along in zip(size, window, stride, strict=True)]
    assert len(windows) == math.prod(map(len, sides))
    assert len(windows) == math.prod(
        math.ceil((side - width) / step) + 1 for side, width, step in zip(size, window, stride, strict=True)
    )
    masks = windows[:]
    assert masks.any(0).all()
    assert (masks.flatten(1).sum(1) == math.prod(window)).all()
    assert len(masks.flatten(1).unique(dim=0)) == len(windows)
    torch.testing.assert_close(windows[torch.tensor([len(windows) - 1])], masks[-1:])


# The functions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)], ids=str)
def test_functions_are_the_equations_on_any_grid(grid: tuple[int, ...]) -> None:
    a, scores = torch.randn(2, 5, *grid, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    clean = torch.tensor([3.0, -2.0], dtype=torch.float64)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    torch.testing.assert_close(camlib.functional.score_cam(a, scores), torch.einsum("nc,nc...->n...", weights, a))
    lost = (clean[:, None] - scores) / torch.tensor([[3.0], [2.0]])
    torch.testing.assert_close(
        camlib.functional.ablation_cam(a, clean, scores), torch.einsum("nc,nc...->n...", lost, a)
    )
    assert not camlib.functional.ablation_cam(a, torch.zeros(2).double(), scores).any()
    masks = torch.rand(5, *grid, dtype=torch.float64)
    masks[:, 0] = 0
    over = torch.einsum("nm,m...->n...", scores - scores.mean(1, keepdim=True), masks)
    torch.testing.assert_close(camlib.functional.rise(masks, scores), torch.nan_to_num(over / masks.sum(0)))
    binary = masks > 0.3
    binary[0] = True
    mean = torch.einsum("nm,m...->n...", scores, binary.double()) / binary.sum(0)
    found = camlib.functional.occlusion(binary, clean, scores)
    torch.testing.assert_close(found, clean.view(2, *[1] * len(grid)) - mean)


def test_scores_as_large_as_can_be_pick_the_best_channel_and_equal_ones_the_mean() -> None:
    a = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    scores = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(camlib.functional.score_cam(a, 1e6 * scores), a[:, 1])
    torch.testing.assert_close(camlib.functional.score_cam(a, 1e-12 * scores), a.mean(1))


# Architectures, signals and volumes ---------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Attention between a class token and 3 x 4 patches; a block's output is the only thing the next one reads."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.first = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True)
        self.last = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.last(self.first(tokens))[:, 0])


def patches_to_grid(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 4))


@pytest.mark.parametrize("name", FEW)
def test_tokens_have_the_same_equations_and_the_class_token_stays(name: str) -> None:
    model = Tokens().double().eval()
    images = torch.rand(2, 3, 12, 16, dtype=torch.float64)
    expected, scale = oracle(name, model, "first", images, [1, 3], to_grid=patches_to_grid)
    found = explain(name, model, "first", relu=False)(images, [1, 3])
    assert found.maps.shape == (2, *((12, 16) if name in LAYERLESS else (3, 4)))
    oracles.assert_close(found.maps, expected, scale, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_maps_are_the_papers_equation_on_a_resnet(name: str) -> None:
    """Its first stage: 64 channels, of which Score-CAM's relatives look at three; 16 cells of a later one."""
    layer = "layer3" if name == "recipro_cam" else "layer1"
    model = oracles.randomize(torchvision.models.resnet18(num_classes=4))
    images, target = torch.rand(1, 3, 64, 64, dtype=torch.float64), [2]
    options: dict[str, object] = {}
    if name == "occlusion":
        options = {"window": 24, "stride": 20}
        expected = occluded(model, images, target, window=(24, 24), stride=(20, 20))
    elif name in ("ss_cam", "is_cam"):
        options = {"channels": 3}
        a = features_of(model, "layer1", images)
        kept = a[:, a[0].flatten(1).var(1).topk(3).indices]
        score = score_of(model, 2)
        one = (
            equations.ss_cam(kept[0], images[0], score, noise(3, (64, 64)))
            if name == "ss_cam"
            else equations.is_cam(kept[0], images[0], score, samples=3)
        )
        expected = one[0][None], one[1][None]
    else:
        expected = oracle(name, model, layer, images, target)
    found = explain(name, model, layer, relu=False, **options)(images, target).maps
    oracles.assert_close(found, *expected, TOLERANCE)


RANKS = {"signal": (networks.signal_cnn, (2, 2, 11)), "volume": (networks.volume_cnn, (2, 1, 4, 5, 6))}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", FEW)
def test_signals_and_volumes_have_the_same_equations(name: str, rank: str) -> None:
    network, shape = RANKS[rank]
    model, images = network(classes=4).double().eval(), torch.randn(shape, dtype=torch.float64)
    if name == "rise":
        expected = rise(drawn_masks(shape[2:], 12, 3), model, images, [2, 1])
    else:
        expected = oracle(name, model, "2", images, [2, 1])
    found = explain(name, model, "2", relu=False)(images, [2, 1]).maps
    assert found.shape == (2, *shape[2:])
    oracles.assert_close(found, *expected, TOLERANCE)


# Passes -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """How many rows each call of a module holds; calls of none are left out."""
    rows: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])) if len(args[0]) else None)
    try:
        yield rows
    finally:
        handle.remove()


def classes(count: int, images: int) -> int | list[list[int]]:
    return 1 if count == 1 else [list(range(count))] * images


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [1, 4, 7, "auto"])
@pytest.mark.parametrize("n", [1, 3])
def test_forward_passes_are_those_of_the_docstrings_for_any_number_of_classes(n: int, chunk: int | str, k: int) -> None:
    model = networks.small_cnn(channels=5).eval()
    images = torch.rand(n, 3, 8, 14)
    windows = (math.ceil(7 / 1) + 1) * (math.ceil(12 / 1) + 1)  # of 1 x 2 pixels: 8 x 13
    assert windows == 8 * 13
    each_image = {"score_cam": 5, "ss_cam": 5 * 3, "is_cam": 5 * 3, "ablation_cam": 0, "rise": 12, "occlusion": windows}
    for name, perturbed in each_image.items():
        with rows_through(model) as rows:
            explain(name, model, "2", chunk_size=chunk)(images, classes(k, n))
        assert sum(rows) == n + n * perturbed, name
        assert rows[0] == n
        if chunk != "auto":
            assert max(rows[1:], default=0) <= chunk
            assert len(rows) == 1 + math.ceil(n * perturbed / chunk)
    assert camlib.RISE(model, samples=12).forward_passes == 1 + 12
    assert camlib.AblationCAM(model).forward_passes == 1
    assert camlib.ScoreCAM(model).forward_passes is None
    assert camlib.Occlusion(model).forward_passes is None


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [1, 4, "auto"])
@pytest.mark.parametrize(("name", "changes"), [("ablation_cam", 5), ("recipro_cam", 8 * 9)])
def test_only_the_tail_runs_for_each_channel_or_cell(name: str, changes: int, chunk: int | str, k: int) -> None:
    """N + N C rows of it, or N + N h w, and N in the pass itself; none of the trunk but those."""
    model = networks.small_cnn(channels=5).eval()
    with rows_through(model[0]) as trunk, rows_through(model[6]) as tail:
        explain(name, model, "2", chunk_size=chunk)(torch.rand(3, 3, 8, 9), classes(k, 3))
    assert sum(trunk) == 3
    assert sum(tail) == 3 + 3 + 3 * changes
    if chunk != "auto":
        assert max(tail[2:]) <= chunk


def test_constant_channels_share_a_pass_and_dead_ones_are_not_ablated() -> None:
    model = networks.small_cnn(channels=6).double().eval()
    with torch.no_grad():
        model[2].weight[:3] = 0
        model[2].bias[:3] = torch.tensor([-1.0, -1.0, 2.0])  # behind the ReLU two are dead and one constant
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        alive = int(model[:4](images).flatten(2).any(2).sum())
        varied = int((model[:4](images).flatten(2).var(2) > 0).sum())
    assert alive == varied + 2
    with rows_through(model) as rows:
        camlib.ScoreCAM(model, "3")(images, 1)
    assert sum(rows) == 2 + varied + 2
    with rows_through(model[6]) as tail:
        found = camlib.AblationCAM(model, "3", relu=False)(images, 1).maps
    assert sum(tail) == 2 + 2 + alive
    oracles.assert_close(found, *ablated(model, "3", images, [1, 1]), TOLERANCE)
    expected = masked(equations.score_cam, model, "3", images, [1, 1])
    oracles.assert_close(camlib.ScoreCAM(model, "3", relu=False)(images, 1).maps, *expected, TOLERANCE)


# Recipro-CAM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [False, True])
def test_recipro_cam_behind_a_mean_is_the_signed_cam_less_its_minimum(gaussian: bool) -> None:
    """With Gaussian masks it is smoothed, with zeros around the map."""
    model = networks.small_cnn(channels=5).double().eval()
    images = torch.rand(3, 3, 8, 9, dtype=torch.float64)
    cam = camlib.CAM(model, relu=False)(images, 1)
    found = camlib.ReciproCAM(model, cam.layer, gaussian=gaussian)(images, 1).maps
    signed = cam.maps[:, None]
    if gaussian:
        sides = torch.tensor([0.25, 0.5, 0.25]).double()
        signed = nn.functional.conv2d(signed, sides.outer(sides)[None, None], padding=1)
    expected = (signed - signed.amin((2, 3), keepdim=True))[:, 0] / cam.maps[0].numel()
    torch.testing.assert_close(found, expected)
    raw = camlib.ReciproCAM(model, cam.layer, gaussian=gaussian, relu=False)(images, 1).maps
    assert torch.equal(raw, found)


@pytest.mark.parametrize("gaussian", [False, True])
def test_recipro_cam_of_a_transformer_keeps_the_class_token(gaussian: bool) -> None:
    split = oracles.vit()
    model = oracles.randomize(split.model)
    images, target = torch.rand(2, 3, 32, 32, dtype=torch.float64), [2, 0]
    equation = functools.partial(equations.recipro_cam, gaussian=gaussian)
    expected, scale = ablated(model, split.layer, images, target, split.to_grid, equation)
    with pytest.warns(camlib.CamlibWarning, match="Recipro-CAM runs the whole network for every cell"):
        found = camlib.ReciproCAM(model, split.layer, gaussian=gaussian)(images, target).maps
    oracles.assert_close(found, expected, scale, TOLERANCE)


def test_recipro_cam_refuses_wrong_options_and_scores() -> None:
    with pytest.raises(camlib.CamlibTypeError, match="gaussian"):
        camlib.ReciproCAM(networks.small_cnn(), gaussian=1)
    with pytest.raises(camlib.CamlibValueError, match=r"scores must be \(N, ...\)"):
        camlib.functional.recipro_cam(torch.rand(3))


# Ablation-CAM where the tail needs more than the layer --------------------------------------------------------------


class Beside(nn.Module):
    """A layer beside another way to the head: ``join`` is how they meet."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(features, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.head(torch.relu(self.join(self.layer(stem), stem)).mean((2, 3)))


def add_in_place(features: Tensor, stem: Tensor) -> Tensor:
    features += stem
    return features


JOINS = {
    "residual": (torch.add, 4),
    "residual in place": (add_in_place, 4),
    "gate": (lambda features, stem: features * stem.mean((2, 3), keepdim=True).sigmoid(), 4),
    "dense": (lambda features, stem: torch.cat([stem, features], 1), 8),
    "branches": (lambda features, stem: torch.cat([features, nn.functional.max_pool2d(stem, 3, 1, 1)], 1), 8),
    "where": (lambda features, stem: torch.where(stem > 0, features, stem), 4),
}


@pytest.mark.parametrize("target", ["a class", "a callable"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("join", JOINS)
def test_ablation_cam_beside_another_way_runs_the_whole_network_and_says_so(join: str, n: int, target: str) -> None:
    model = Beside(*JOINS[join]).double().eval()
    images = torch.rand(n, 3, 6, 7, dtype=torch.float64)
    expected, scale = ablated(model, "layer", images, [1] * n)
    explained = 1 if target == "a class" else (lambda outputs: outputs[:, 1])
    for chunk in (1, 2, 5, "auto"):
        explainer = camlib.AblationCAM(model, "layer", chunk_size=chunk, relu=False)
        with pytest.warns(camlib.CamlibWarning, match="more than that layer's output"), rows_through(model) as rows:
            found = explainer(images, explained).maps
        oracles.assert_close(found, expected, scale, TOLERANCE)
        assert sum(rows) == n + n + n * 4


@pytest.mark.parametrize("n", [1, 3])
def test_behind_the_other_way_the_tail_is_enough(n: int) -> None:
    """The stem is all that the rest reads, the residual sum included. No warning is given."""
    model = Beside(torch.add).double().eval()
    images = torch.rand(n, 3, 6, 7, dtype=torch.float64)
    for chunk in (1, 2, 5, "auto"):
        with rows_through(model) as rows:
            found = camlib.AblationCAM(model, "stem", chunk_size=chunk, relu=False)(images, 1).maps
        oracles.assert_close(found, *ablated(model, "stem", images, [1] * n), TOLERANCE)
        assert sum(rows) == n


@pytest.mark.parametrize("layer", ["features.denseblock2.denselayer1.conv2", "features.denseblock2.denselayer2.conv2"])
def test_ablation_cam_inside_a_dense_block_of_torchvision(layer: str) -> None:
    model = oracles.randomize(torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with pytest.warns(camlib.CamlibWarning, match="more than that layer's output"):
        found = camlib.AblationCAM(model, layer, relu=False)(images, [0, 2]).maps
    oracles.assert_close(found, *ablated(model, layer, images, [0, 2]), TOLERANCE)


@pytest.mark.parametrize("n", [1, 3])
def test_ablation_cam_at_a_norm_beside_a_transformers_skip(n: int) -> None:
    """The layer that is found for a vision transformer; the class token keeps its features."""
    split = oracles.vit()
    model = oracles.randomize(split.model)
    images, target = torch.rand(n, 3, 32, 32, dtype=torch.float64), [2, 0, 1][:n]
    expected, scale = ablated(model, split.layer, images, target, split.to_grid)
    for chunk in (1, 2, 5, "auto"):
        explainer = camlib.AblationCAM(model, split.layer, chunk_size=chunk, relu=False)
        with pytest.warns(camlib.CamlibWarning, match="more than that layer's output"):
            found = explainer(images, target).maps
        oracles.assert_close(found, expected, scale, TOLERANCE)


class WithAge(nn.Module):
    """A second input joins behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.of_age = nn.Linear(2, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x)).mean((2, 3))) * (1 + self.of_age(age))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", FEW)
def test_a_second_input_goes_with_its_image(name: str, n: int) -> None:
    model = WithAge().double().eval()
    images, ages = torch.rand(n, 3, 6, 7, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)

    def forward(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return model(*inputs)

    class OfOne(nn.Module):
        def __init__(self, age: Tensor) -> None:
            super().__init__()
            self.layer, self.age = model.layer, age

        def forward(self, x: Tensor) -> Tensor:
            return model(x, self.age)

    def of_one(i: int) -> MapsAndScale:
        maps, scale = oracle(name, OfOne(ages[i : i + 1]), "layer", images[i : i + 1], [1])
        return maps[0], scale[0]

    expected, scale = each(images, of_one)
    for chunk in (1, 2, 5):
        explainer = explain(name, model, "layer", chunk_size=chunk, relu=False, forward=forward)
        expects = pytest.warns(camlib.CamlibWarning) if name in OF_TAILS else contextlib.nullcontext()
        with expects:
            found = explainer((images, ages), 1).maps
        oracles.assert_close(found, expected, scale, TOLERANCE)


class ReadsTheShape(nn.Module):
    """The tail shapes its outputs by the rows of the input, not of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.layer(x))
        return self.head(features.mean((2, 3))).view(len(x), 3)


@pytest.mark.parametrize("n", [1, 3])
def test_a_tail_that_reads_the_shape_of_the_input_runs_alone(n: int) -> None:
    """Of the trunk it needs no values. No warning is given."""
    model = ReadsTheShape().double().eval()
    images = torch.rand(n, 3, 6, 7, dtype=torch.float64)
    found = camlib.AblationCAM(model, "layer", relu=False)(images, 1).maps
    oracles.assert_close(found, *ablated(model, "layer", images, [1] * n), TOLERANCE)


class CentredByTheInput(ReadsTheShape):
    """The tail adds a sum over the input, which is no error where there are no rows: it is 0."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(torch.relu(self.layer(x)).mean((2, 3)))
        return logits + x.sum()


def test_a_sum_over_the_input_is_missed_by_the_tail_and_noticed() -> None:
    """Of one image at a time it is that image's own."""
    model = CentredByTheInput().double().eval()
    images = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    with pytest.warns(camlib.CamlibWarning, match="more than that layer's output"):
        found = camlib.AblationCAM(model, "layer", relu=False, chunk_size=1)(images, 1).maps
    oracles.assert_close(found, *ablated(model, "layer", images, [1]), TOLERANCE)


# Memory -------------------------------------------------------------------------------------------------------------


class Limited(nn.Module):
    """Runs out of memory above so many rows, and keeps account of those that went through."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.network = networks.small_cnn(channels=5)
        self.rows = rows
        self.done: list[int] = []
        self.failed: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.rows:
            self.failed.append(len(x))
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        self.done.append(len(x))
        return self.network(x)


@pytest.mark.parametrize("name", ["score_cam", "ss_cam", "is_cam", "rise", "occlusion"])
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_chunks_halve_when_memory_runs_out_and_finished_rows_stay(name: str, rows: int) -> None:
    limited = Limited(rows).double().eval()
    images = torch.rand(2, 3, 8, 14, dtype=torch.float64)
    expected = explain(name, limited.network, "2", relu=False)(images, 1).maps
    whole = {"score_cam": 5, "ss_cam": 15, "is_cam": 15, "rise": 12, "occlusion": 8 * 13}[name]
    found = explain(name, limited, "network.2", relu=False)(images, 1).maps
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert limited.failed, "memory did run out"
    assert sum(limited.done) == 2 + 2 * whole, "no row ran twice"
    assert max(limited.done) <= rows
    assert limited.failed == sorted(limited.failed, reverse=True)


@pytest.mark.parametrize("name", ["score_cam", "rise", "occlusion"])
def test_memory_that_a_single_row_or_the_chunk_asked_for_takes_is_an_error(name: str) -> None:
    limited = Limited(3).eval()
    with pytest.raises(torch.OutOfMemoryError, match="^4 rows$"):
        explain(name, limited, "network.2", chunk_size=4)(torch.rand(1, 3, 8, 14), 1)
    assert limited.failed == [4]
    hook = limited.register_forward_hook(lambda *_: setattr(limited, "rows", 0))
    with pytest.raises(torch.OutOfMemoryError, match="^1 rows$"):
        explain(name, limited, "network.2")(torch.rand(1, 3, 8, 14), 1)
    hook.remove()


class LimitedTail(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 9, 3)
        self.tail = Limited(rows)
        self.tail.network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.layer(x))


def test_the_tails_chunks_halve_too() -> None:
    model = LimitedTail(3).double().eval()
    images = torch.rand(2, 3, 8, 14, dtype=torch.float64)
    found = camlib.AblationCAM(model, "layer", relu=False)(images, 1).maps
    assert model.tail.failed
    assert sum(model.tail.done) == 2 + 2 + 2 * 9
    oracles.assert_close(found, *ablated(model, "layer", images, [1, 1]), TOLERANCE)


def coarse(channels: int) -> nn.Sequential:
    """Many channels on a grid of 4 x 4, of images 64 x 64."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1),
        nn.ReLU(),
        nn.Conv2d(8, channels, 3, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    ).eval()


def peak(explainer: camlib.methods.Method, images: Tensor) -> int:
    with Peak() as live:
        explainer(images, 1)
    return live.bytes


@pytest.mark.parametrize("name", FEW)
def test_auto_takes_what_the_budget_allows_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 2 * 2**20
    monkeypatch.setattr("camlib.passes.chunks.budget", lambda device: budget)
    model, images = coarse(64), torch.rand(2, 3, 64, 64)
    one = peak(explain(name, model, "2", chunk_size=1), images)
    with rows_through(model[4]) as rows:
        auto = peak(explain(name, model, "2"), images)
    assert max(rows) > 2, "chunks are larger than a row"
    assert auto <= budget + one


def test_the_peak_of_score_cam_is_flat_in_the_number_of_channels() -> None:
    """But for the features themselves, their masks would take 256 times as much."""
    images = torch.rand(1, 3, 64, 64)
    few, many = (peak(camlib.ScoreCAM(coarse(c), "2", chunk_size=4), images) for c in (16, 512))
    features = 512 * 4 * 4 * 4
    masks = 512 * 64 * 64 * 4
    assert many - few < 8 * features < masks / 16


# Layouts, precision and progress ------------------------------------------------------------------------------------


class Views(nn.Module):
    """``view`` across the channels fails where they are last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(3 * 8 * 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.view(len(x), -1)) + self.conv(x).mean((2, 3))[:, :3]


@pytest.mark.parametrize("name", FEW)
def test_networks_that_view_across_the_channels_are_explained(name: str) -> None:
    model = Views().double().eval()
    images = torch.rand(2, 3, 8, 10, dtype=torch.float64)
    expects = pytest.warns(camlib.CamlibWarning) if name in OF_TAILS else contextlib.nullcontext()
    with expects:
        found = explain(name, model, "conv", relu=False)(images, [0, 2]).maps
    oracles.assert_close(found, *oracle(name, model, "conv", images, [0, 2]), TOLERANCE)


def test_score_cam_runs_in_the_callers_precision_and_ablation_cams_tail_in_full() -> None:
    model, images = coarse(64), torch.rand(2, 3, 64, 64)
    dtypes: list[tuple[int, torch.dtype]] = []
    handle = model[6].register_forward_hook(lambda _, args, output: dtypes.append((len(output), output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        camlib.ScoreCAM(model, "2", chunk_size=32)(images, 1)
    assert {dtype for _, dtype in dtypes} == {torch.bfloat16}
    handle.remove()
    full = camlib.AblationCAM(model, "2", relu=False)(images, 1).maps
    with torch.autocast("cpu", torch.bfloat16):
        half = camlib.AblationCAM(model, "2", relu=False)(images, 1).maps
    assert stats.spearmanr(full.flatten(), half.flatten()).statistic >= 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_models_in_half_precision_have_maps_in_single_near_the_double_ones(name: str, dtype: torch.dtype) -> None:
    half, images = networks.small_cnn(channels=6).to(dtype).eval(), torch.rand(2, 3, 12, 14).to(dtype)
    with torch.no_grad():
        half[6].weight.mul_(8)  # scores that differ by more than they are rounded
    double = networks.small_cnn(channels=6).double().eval()
    double.load_state_dict(half.state_dict())
    found = explain(name, half, "2", relu=False)(images, 1).maps
    expected, scale = oracle(name, double, "2", images.double(), [1, 1])
    assert found.dtype == torch.float32
    oracles.assert_close(found, expected, scale, 0.1)


@pytest.mark.parametrize("name", FEW)
def test_rows_are_computed_without_a_graph(name: str) -> None:
    model = networks.small_cnn().eval()
    graphs: list[bool] = []
    model.register_forward_hook(lambda _, args, output: graphs.append(output.requires_grad))
    explain(name, model, "2")(torch.rand(2, 3, 8, 14).requires_grad_(), 1)
    assert graphs.count(True) == 0 < len(graphs) - 1


@pytest.mark.parametrize("name", FEW)
def test_progress_is_a_bar_to_the_last_row_or_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = networks.small_cnn(channels=5).eval(), torch.rand(2, 3, 8, 14)
    explain(name, model, "2", progress=True)(images, 1)
    each_image = {"score_cam": 5, "ss_cam": 15, "is_cam": 15, "ablation_cam": 5, "rise": 12, "occlusion": 8 * 13}
    each_image["recipro_cam"] = 8 * 14
    shown = capsys.readouterr()
    assert f"{2 * each_image[name]}/{2 * each_image[name]}" in shown.err
    assert name in shown.err
    explain(name, model, "2")(images, 1)
    silent = capsys.readouterr()
    assert (shown.out, silent.out, silent.err) == ("", "", "")


@pytest.mark.parametrize("name", ["score_cam", "ss_cam", "is_cam", "rise", "occlusion"])
def test_pictures_of_integers_are_refused(name: str) -> None:
    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = networks.small_cnn()

        def forward(self, images: Tensor) -> Tensor:
            return self.inside(images.float() / 255)

    explainer = camlib.create(name, Bytes(), None if camlib.METHODS[name].layerless else "inside.0")
    with pytest.raises(camlib.CamlibTypeError, match=r"the images are torch.uint8; convert them"):
        explainer(torch.randint(0, 255, (2, 3, 12, 10), dtype=torch.uint8), 1)


class Squeezed(networks.Network):
    """A network that also squeezes the axis of the batch away, for a single image."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze()


Measured = Callable[[nn.Module, Tensor, int | str], Tensor]
OF_CHUNKS: dict[str, Measured] = {
    "Occlusion": lambda model, images, size: (
        camlib.Occlusion(model, window=8, stride=4, chunk_size=size)(images, 1).maps
    ),
    "RISE": lambda model, images, size: camlib.RISE(model, samples=6, chunk_size=size)(images, 1).maps,
    "deletion": lambda model, images, size: camlib.metrics.deletion(
        model, images, torch.ones(2, 12, 12), 1, chunk_size=size
    )[0],
}


@pytest.mark.parametrize("measured", OF_CHUNKS.values(), ids=OF_CHUNKS)
def test_a_model_that_squeezes_the_batch_away_is_refused_where_an_image_runs_alone(measured: Measured) -> None:
    torch.manual_seed(0)
    images, model = torch.rand(2, 3, 12, 12), Squeezed().eval()
    plain = networks.Network().eval()
    plain.load_state_dict(model.state_dict())
    for alone in ("auto", 1):
        with pytest.raises(camlib.CamlibRuntimeError, match="for 1 of the perturbed images.*reshape"):
            measured(model, images, alone)
    torch.testing.assert_close(measured(model, images, 2), measured(plain, images, 2))
