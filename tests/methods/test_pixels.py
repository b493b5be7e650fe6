"""Attributions of pixels: their papers' equations, captum's numbers, completeness, chunks, and pooling to cells."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camlib
from camlib.methods.integrated_gradients import gauss_legendre
from camlib.methods.pixels import PixelMethod, pooled
from camlib.passes.memory import Peak
from tests import equations, networks
from tests.few_passes import cheap
from tests.networks import Drawn, cnns

TOLERANCE = 1e-9
PIXELS = ("input_x_gradient", "integrated_gradients", "expected_gradients")


def of_class(model: nn.Module, c: int) -> equations.Score:
    return lambda images: model(images)[:, c]


def draws(baselines: Tensor, samples: int, seed: int) -> tuple[list[Tensor], list[float]]:
    """The baselines that a generator draws, and the points on their lines."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(baselines), (samples,), generator=generator)
    return list(baselines[drawn]), torch.rand(samples, generator=generator, dtype=torch.float64).tolist()


def expected(name: str, model: nn.Module, images: Tensor, c: int, baselines: Tensor) -> equations.MapsAndScale:
    """The equation: of the first of the baselines, with three steps; or with four draws of all of them."""
    if name == "input_x_gradient":
        return equations.input_x_gradient(images, of_class(model, c))
    if name == "integrated_gradients":
        return equations.integrated_gradients(images, of_class(model, c), baselines[:1].expand_as(images), 3)
    return equations.expected_gradients(images, of_class(model, c), *draws(baselines, 4, 7))


def explainer(name: str, model: nn.Module, baselines: Tensor, **options: object) -> PixelMethod:
    own = {
        "input_x_gradient": {},
        "integrated_gradients": {"steps": 3, "baseline": baselines[0]},
        "expected_gradients": {
            "samples": 4, "baselines": baselines, "generator": torch.Generator().manual_seed(7)
        },
    }[name]  # fmt: skip
    return camlib.create(name, model, **own, **options)


# The equations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIXELS)
@settings(max_examples=10, deadline=None)
@given(drawn=cnns(), chunk=st.integers(1, 9))
def test_maps_are_the_papers_equation_on_random_networks(name: str, drawn: Drawn, chunk: int) -> None:
    model, images = drawn.model, drawn.images
    baselines = torch.randn(3, *images.shape[1:], dtype=torch.float64)
    options = {} if name == "input_x_gradient" else {"chunk_size": chunk}
    target = [[0, drawn.classes - 1]] * len(images)
    signed = explainer(name, model, baselines, relu=False, **options)(images, target)
    assert signed.maps.dtype == torch.float64
    for k, c in enumerate(target[0]):
        maps, scale = expected(name, model, images, c, baselines)
        equations.assert_close(signed.maps[:, k], maps, scale, TOLERANCE)
    alone = explainer(name, model, baselines, **options)(images, 0)
    equations.assert_close(alone.maps, *(one.clamp(min=0) for one in expected(name, model, images, 0, baselines)), 1e-9)


@pytest.mark.parametrize("build", [networks.signal_cnn, networks.volume_cnn])
@pytest.mark.parametrize("name", PIXELS)
def test_signals_and_volumes_too(name: str, build: Callable[[], nn.Sequential]) -> None:
    shape = (2, 13) if build is networks.signal_cnn else (1, 4, 5, 6)
    model, images, baselines = build().double(), torch.randn(2, *shape).double(), torch.randn(3, *shape).double()
    found = explainer(name, model, baselines, relu=False)(images, 1)
    equations.assert_close(found.maps, *expected(name, model, images, 1, baselines), TOLERANCE)


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)], ids=str)
def test_functions_are_the_equations_of_a_score_that_is_known(grid: tuple[int, ...]) -> None:
    """The sum of the cubes of the pixels, times random weights: its gradient is known, too."""
    images, baselines, weights = torch.randn(3, 2, 4, *grid, dtype=torch.float64)

    def score(images: Tensor) -> Tensor:
        return (weights[0] * images**3).flatten(1).sum(1)

    def gradient(points: Tensor) -> Tensor:
        return 3 * weights[0] * points**2

    function = camlib.functional
    found = function.input_x_gradient(images, gradient(images))
    equations.assert_close(found, *equations.input_x_gradient(images, score), TOLERANCE)
    nodes, _ = gauss_legendre(3)
    found = function.integrated_gradients(
        images, baselines, (gradient(baselines + node * (images - baselines)) for node in nodes)
    )
    equations.assert_close(found, *equations.integrated_gradients(images, score, baselines, 3), TOLERANCE)
    exact = (weights[0] * (images**3 - baselines**3)).sum(1)
    torch.testing.assert_close(found, exact)
    fractions = [0.2, 0.9]
    found = function.expected_gradients(
        images, baselines, [gradient(one + at * (images - one)) for one, at in zip(baselines, fractions, strict=True)]
    )
    equations.assert_close(found, *equations.expected_gradients(images, score, list(baselines), fractions), TOLERANCE)


def test_the_rule_is_exact_for_polynomials_of_twice_its_degree() -> None:
    for steps in (1, 2, 5, 50):
        nodes, weights = gauss_legendre(steps)
        assert ((nodes > 0) & (nodes < 1)).all()
        for power in (0, 1, 2 * steps - 1):
            assert math.isclose(float(weights @ nodes**power), 1 / (power + 1), rel_tol=1e-12)


# captum -------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_captum() -> None:
    import captum.attr

    model = torchvision.models.resnet18(num_classes=6).double().eval()
    images, blurred, target = torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 32, 32).double(), [1, 3]
    values = camlib.InputXGradient(model).attributions(images, target).values
    reference = captum.attr.InputXGradient(model).attribute(images.clone().requires_grad_(), target=target).detach()
    torch.testing.assert_close(values, reference, rtol=0, atol=1e-6 * float(reference.abs().max()))
    found = camlib.IntegratedGradients(model, baseline=lambda _: blurred).attributions(images, target)
    reference, residual = captum.attr.IntegratedGradients(model).attribute(
        images, blurred, target, return_convergence_delta=True
    )
    torch.testing.assert_close(found.values, reference, rtol=0, atol=1e-6 * float(reference.abs().max()))
    torch.testing.assert_close(found.residual, -residual, rtol=0, atol=1e-6 * float(found.scores.abs().max()))


def test_expected_gradients_with_the_same_draws_are_those_of_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    import captum.attr

    model = networks.small_cnn().double()
    images, baselines = torch.randn(1, 3, 6, 5).double(), torch.randn(4, 3, 6, 5).double()
    cam = explainer("expected_gradients", model, baselines)
    drawn, points = draws(baselines, 4, 7)
    chosen = [next(i for i, one in enumerate(baselines) if torch.equal(one, own)) for own in drawn]
    monkeypatch.setattr("numpy.random.choice", lambda *_: torch.tensor(chosen).numpy())
    monkeypatch.setattr("numpy.random.uniform", lambda *_: torch.tensor(points).numpy())
    reference = captum.attr.GradientShap(model).attribute(images, baselines, n_samples=4, stdevs=0.0, target=1)
    values = cam.attributions(images, 1).values
    torch.testing.assert_close(values, reference, rtol=0, atol=1e-6 * float(reference.abs().max()))


# Completeness -------------------------------------------------------------------------------------------------------


class Curved(nn.Module):
    """Two logits, each a polynomial of the images."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.stack([(flat**2).sum(1), (flat**3).sum(1) + flat.prod(1) + 5], 1)


@given(steps=st.integers(2, 6), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_integrated_gradients_are_complete_with_enough_steps(steps: int, seed: int) -> None:
    """The gradient's degree on a line is at most 3 here: the product of 4 pixels, and 2 steps are exact to degree 3."""
    images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    baseline = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    found = camlib.IntegratedGradients(Curved(), steps=steps, baseline=baseline).attributions(images, [[0, 1]] * 3)
    torch.testing.assert_close(found.scores, Curved()(images))
    torch.testing.assert_close(found.baseline_scores, Curved()(baseline[None]).expand(3, -1))
    torch.testing.assert_close(found.values.flatten(2).sum(2), found.scores - found.baseline_scores)
    assert found.residual.abs().max() < 1e-12 * (1 + found.values.abs().sum())


def test_a_single_step_leaves_a_residual_that_is_what_the_values_leave_out() -> None:
    images = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    found = camlib.IntegratedGradients(Curved(), steps=1).attributions(images, 1)
    left = Curved()(images)[:, 1] - 5 - found.values.flatten(1).sum(1)
    torch.testing.assert_close(found.residual, left)
    assert (found.residual.abs() > 1e-3).all()


def test_the_residual_tells_of_a_jump_between_the_nodes() -> None:
    """A network that normalises its input: from zero, the score jumps at the start of the line."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.LayerNorm(12, eps=1e-12, elementwise_affine=False), nn.Linear(12, 2)
    ).double()
    images = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    from_zero = camlib.IntegratedGradients(model).attributions(images, 1)
    change = from_zero.scores - from_zero.baseline_scores
    torch.testing.assert_close(from_zero.residual, change, rtol=1e-3, atol=0)
    other = camlib.IntegratedGradients(model, baseline=torch.rand(3, 2, 2)).attributions(images, 1)
    assert (other.residual.abs() < 1e-6 * change.abs()).all()


def test_the_residual_of_input_times_gradient_is_that_of_the_linear_network() -> None:
    """Complete for a linear network; of the sum of squares, twice the score is attributed."""
    images = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    found = camlib.InputXGradient(Curved()).attributions(images, 0)
    torch.testing.assert_close(found.residual, -found.scores)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    found = camlib.InputXGradient(linear).attributions(images, 1)
    torch.testing.assert_close(found.residual, torch.zeros(2).double())
    torch.testing.assert_close(found.baseline_scores, linear[1].bias[1].detach().expand(2))


def test_expected_gradients_of_a_linear_network_leave_no_residual() -> None:
    """Whatever was drawn, to the rounding of float64."""
    linear, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double(), torch.rand(3, 1, 2, 2).double()
    found = camlib.ExpectedGradients(linear, baselines=images, samples=7).attributions(images, 1)
    assert found.residual.abs().max() < 1e-13


def test_expected_gradients_tend_to_the_mean_of_integrated_gradients() -> None:
    images, baselines = torch.rand(2, 1, 2, 2).double(), torch.rand(3, 1, 2, 2).double()
    cam = camlib.ExpectedGradients(Curved(), baselines=baselines, samples=20_000)
    found = cam.attributions(images, 1)
    means = [camlib.IntegratedGradients(Curved(), baseline=one).attributions(images, 1).values for one in baselines]
    torch.testing.assert_close(found.values, torch.stack(means).mean(0), rtol=0, atol=0.03)
    assert found.residual.abs().max() < 0.03
    mean = Curved()(baselines)[:, 1].mean()
    torch.testing.assert_close(found.baseline_scores, mean.expand(2), rtol=0.01, atol=0)


def test_one_baseline_that_is_the_image_leaves_nothing_to_attribute() -> None:
    images = torch.rand(1, 1, 2, 2).double()
    for cam in (
        camlib.IntegratedGradients(Curved(), baseline=lambda images: images),
        camlib.ExpectedGradients(Curved(), baselines=images),
    ):
        found = cam.attributions(images, 1)
        assert torch.equal(found.values, torch.zeros_like(images))
        assert cam(images, 1).degenerate.all()


# Passes and memory --------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return self.network(images)


@pytest.mark.parametrize(
    ("name", "rows"), [("input_x_gradient", 0), ("integrated_gradients", 6), ("expected_gradients", 8)]
)
def test_k_classes_take_the_passes_of_one_and_a_chunk_holds_rows_of_several_images(name: str, rows: int) -> None:
    model = Counted(networks.small_cnn().double())
    images, baselines = torch.rand(2, 3, 8, 9).double(), torch.rand(2, 3, 8, 9).double()
    options = {} if name == "input_x_gradient" else {"chunk_size": 5}
    cam = explainer(name, model, baselines, **options)
    for target in (1, camlib.TopK(3)):
        cam(images, target)
        assert max(model.rows) <= 5
        assert sum(model.rows) == 2 + rows == 2 * cam.forward_passes
        model.rows.clear()


def test_memory_does_not_grow_with_the_steps() -> None:
    model, images = networks.small_cnn(channels=16), torch.rand(2, 3, 64, 64)
    peaks = []
    for steps in (2, 40):
        cam = camlib.IntegratedGradients(model, steps=steps, chunk_size=2)
        with Peak() as peak:
            cam(images, 1)
        peaks.append(peak.bytes)
    assert peaks[1] < 1.1 * peaks[0]


def test_the_model_may_be_in_half_precision_and_keeps_its_parameters() -> None:
    model, images = networks.small_cnn().bfloat16(), torch.rand(2, 3, 8, 9).bfloat16()
    for name in PIXELS:
        maps = explainer(name, model, torch.rand(2, 3, 8, 9).bfloat16())(images, 1).maps
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters())


# Cells --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [1, 2, 3, (2, 5), (7, 6)])
@pytest.mark.parametrize("name", PIXELS)
def test_a_cell_is_the_mean_of_its_signed_pixels(name: str, pool: int | tuple[int, int]) -> None:
    model, images, baselines = networks.small_cnn().double(), torch.randn(2, 3, 7, 6).double(), torch.randn(2, 3, 7, 6)
    pixels = explainer(name, model, baselines, relu=False)(images, [[1, 0]] * 2).maps
    found = explainer(name, model, baselines, pool=pool)(images, [[1, 0]] * 2)
    h, w = (pool, pool) if isinstance(pool, int) else pool
    for i in range(math.ceil(7 / h)):
        for j in range(math.ceil(6 / w)):
            window = pixels[..., i * h : (i + 1) * h, j * w : (j + 1) * w]
            torch.testing.assert_close(found.maps[..., i, j], window.mean((-2, -1)).relu())
    assert found.maps.shape[2:] == (math.ceil(7 / h), math.ceil(6 / w))


def test_cells_that_reach_beyond_the_image_are_drawn_where_their_pixels_are() -> None:
    images = torch.zeros(1, 1, 8, 10).double()
    images[..., 6:, 9:] = 1  # the last cell of three
    cam = camlib.InputXGradient(nn.Sequential(nn.Flatten(), nn.Linear(80, 2)).double(), relu=False, pool=(3, 3))
    nn.init.ones_(cam.model[1].weight)
    found = cam(images, 1)
    assert found.maps.shape == (1, 3, 4)
    assert found.extent == (9.0, 12.0)
    heatmap = found.heatmaps()[0]
    assert heatmap.shape == (8, 10)
    assert heatmap[-1, -1] == heatmap.max() == 1
    assert not heatmap[:4].any()
    assert camlib.InputXGradient(cam.model, pool=2)(images, 1).extent is None


@pytest.mark.parametrize(
    ("pool", "what"),
    [(0, "an int of at least 1"), (2.0, "an int of at least 1"), ("2", "an int of at least 1"), ((2, 0), "at least 1")],
)
def test_a_window_is_made_of_positive_ints(pool: object, what: str) -> None:
    with pytest.raises(camlib.CamlibError, match=f"pool must be.*{what}"):
        camlib.InputXGradient(networks.small_cnn(), pool=pool)


def test_a_window_fits_the_image() -> None:
    images = torch.rand(1, 3, 8, 9)
    with pytest.raises(camlib.CamlibValueError, match=r"pool \(9, 9\) is larger than the image, \(8, 9\)"):
        camlib.InputXGradient(networks.small_cnn(), pool=9)(images, 1)
    with pytest.raises(camlib.CamlibValueError, match="pool has 3 sides"):
        camlib.InputXGradient(networks.small_cnn(), pool=(1, 2, 3))(images, 1)
    assert torch.equal(pooled(torch.tensor([[2.0, 4.0]]), (2,)), torch.tensor([[3.0]]))


# Baselines, and errors ----------------------------------------------------------------------------------------------


def test_expected_gradients_without_data_are_refused_with_what_to_give() -> None:
    with pytest.raises(camlib.CamlibValueError, match="give baselines=.*camlib.IntegratedGradients"):
        camlib.ExpectedGradients(networks.small_cnn())(torch.rand(1, 3, 8, 9), 1)


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("data", "baselines, if not a tensor, must be a finite number"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), "floating-point"),
        (torch.zeros(0, 3, 8, 9), r"\(B, C, ...\), got \(0, 3"),
        (torch.zeros(8), r"\(B, C, ...\), got \(8,"),
        (torch.full((1, 3, 8, 9), math.nan), "not finite"),
        (torch.zeros(2, 3, 8, 9, device="meta"), "meta device"),
    ],
)
def test_wrong_baselines_are_refused(baselines: object, message: str) -> None:
    with pytest.raises(camlib.CamlibError, match=message):
        camlib.ExpectedGradients(networks.small_cnn(), baselines=baselines)


def test_baselines_must_be_like_the_images() -> None:
    model, images = networks.small_cnn(), torch.rand(2, 3, 8, 9)
    with pytest.raises(camlib.CamlibValueError, match=r"\(B, 3, 8, 9\).*got \(2, 3, 8, 8\)"):
        camlib.ExpectedGradients(model, baselines=torch.rand(2, 3, 8, 8))(images, 1)
    for baseline, message in (
        (torch.rand(2, 1, 1), "cannot be broadcast"),
        (lambda images: images[0], r"returned \(3, 8, 9\) for images"),
        (lambda images: None, "returned a NoneType"),
    ):
        with pytest.raises(camlib.CamlibError, match=message):
            camlib.IntegratedGradients(model, baseline=baseline)(images, 1)
    with pytest.raises(camlib.CamlibTypeError, match="baseline, if not a tensor, must be"):
        camlib.IntegratedGradients(model, baseline=nn.Identity())


def test_smooth_grad_is_the_mean_of_signed_maps_of_noisy_images() -> None:
    model, images = networks.small_cnn().double(), torch.rand(2, 3, 8, 9).double()
    cam = camlib.InputXGradient(model, relu=False)
    generator = torch.Generator().manual_seed(3)
    found = camlib.NoiseAveraging(cam, 3, 0.2, generator=generator)(images, 1).maps
    generator.manual_seed(3)
    noise = [torch.randn(1, 3, 8, 9, generator=generator, dtype=torch.float64) for _ in range(3)]
    spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
    maps = [equations.input_x_gradient(images + 0.2 * spread * one, of_class(model, 1)) for one in noise]
    torch.testing.assert_close(found, torch.stack([one for one, _ in maps]).mean(0))


@pytest.mark.parametrize("name", PIXELS)
def test_detectors_lists_of_images_and_other_inputs_are_explained(name: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = networks.small_cnn().double()

        def forward(self, images: Tensor, scale: Tensor) -> Tensor:
            return self.network(images) * scale[:, None]

    model, images, scale = Scaled(), torch.rand(3, 3, 8, 9).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    found = cheap(name)(model, relu=False)((images, scale), 1).maps
    alone = cheap(name)(model.network, relu=False)(images, 1).maps
    torch.testing.assert_close(found, alone * scale.view(3, 1, 1))
    listed = cheap(name)(model.network, relu=False, forward=lambda model, given: model(torch.stack(given)))
    torch.testing.assert_close(listed(list(images), 1).maps, alone)
