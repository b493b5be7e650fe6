"""Every method's map is its paper's equation: on drawn networks, real architectures, signals and volumes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

import camlib
from camlib.methods.fusion import fuse
from tests import equations, networks, oracles
from tests.equations import MapsAndScale
from tests.networks import Drawn, cnns
from tests.oracles import Case

# The oracles: what each method's map is before its ReLU, and where rounding has no say in it -----------------------

TOLERANCE = 1e-9
"""Of the scale, sum_k |w_k A_k|; principal components too, where the leading one stands out (``singular_gap``)."""


def _always(_: Case) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A method's equation in float64, the cases where it is well-posed, and networks that it is made for."""

    equation: Callable[[Case], MapsAndScale]
    well_posed: Callable[[Case], bool] = _always
    drawn: Callable[[Drawn], Drawn] = lambda drawn: drawn
    heads: tuple[str, ...] = ("pool", "flatten", "hidden")
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def explainer(self, name: str, case: Case, **options: object) -> camlib.methods.Method:
        return camlib.create(name, case.split.model, case.split.layer, **self.options, **options)


def of_both(
    equation: Callable[..., MapsAndScale], well_posed: Callable[[Tensor, Tensor], bool] | None = None
) -> Oracle:
    """The oracle of a function of A and G."""
    posed = _always if well_posed is None else lambda case: well_posed(*case.features)
    return Oracle(lambda case: equation(*case.features), posed)


def of_activations(equation: Callable[..., MapsAndScale], well_posed: Callable[[Tensor], bool] | None = None) -> Oracle:
    """The oracle of a function of A alone."""
    posed = _always if well_posed is None else lambda case: well_posed(case.features[0])
    return Oracle(lambda case: equation(case.features[0]), posed)


def stands_out(features: Tensor) -> bool:
    """Whether the first singular vector is apart from the second, and its projection has a sign."""
    return equations.singular_gap(features) > 1.01 and equations.sum_margin(equations.eigen_cam(features)[0]) > 1e-6


def product_stands_out(a: Tensor, g: Tensor) -> bool:
    if equations.singular_gap(a * g) < 1.01:
        return False
    return equations.orientation(equations.eigen_grad_cam(a, g)[0], a * g) > 1e-6


def is_of_some_sign(a: Tensor) -> bool:
    maps = equations.fem(a)[0]
    return equations.fem_margin(a) > 1e-9 and (
        not maps.any() or equations.sum_margin(maps[maps.flatten(1).any(1)]) > 1e-6
    )


def extremum_stands_out(a: Tensor, g: Tensor) -> bool:
    if equations.singular_gap(a * g.abs()) < 1.01:
        return False
    return equations.extremum_margin(equations.seg_eigen_cam(a, g)[0]) > 1e-6


def component_stands_out(a: Tensor, gamma: float | None = None) -> bool:
    if equations.kernel_gap(a, gamma=gamma) < 1e-5:
        return False
    return equations.orientation(equations.kpca_cam(a, gamma=gamma)[0], a) > 1e-6


@functools.lru_cache(maxsize=1)
def noisy_gradients(case: Case) -> list[Tensor]:
    """G of three noisy copies: the noise is a tenth of each image's range, drawn by one generator for all images."""
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for _ in range(3):
        noise = torch.randn(case.images.shape[1:], generator=generator, dtype=torch.float64)
        noisy = torch.stack([image + 0.1 * (image.max() - image.min()) * noise for image in case.images])
        gradients.append(case.features_of(case.score, noisy)[1])
    return gradients


def shapley_cam(case: Case) -> MapsAndScale:
    """One image at a time: the Hessian of all of them together is too large."""
    found = []
    for image, target in zip(case.images, case.target, strict=True):
        with torch.no_grad():
            activations = case.split.trunk(image[None])
        found.append(
            equations.shapley_cam(
                case.split.tail, activations, lambda out, c=target: out[:, c], to_grid=case.split.to_grid
            )
        )
    maps, scales = zip(*found, strict=True)
    return torch.cat(maps), torch.cat(scales)


def finer_cam(case: Case) -> MapsAndScale:
    return equations.grad_cam(*case.features_of(lambda outputs: equations.finer_score(outputs, case.target)))


def cam(case: Case) -> MapsAndScale:
    *_, head = (module for module in case.split.model.modules() if isinstance(module, nn.Linear))
    return equations.cam(case.features[0], head.weight[list(case.target)])


SPECIAL: dict[str, Oracle] = {
    "grad_cam_plus_plus": of_both(
        equations.grad_cam_plus_plus, lambda a, g: equations.pole_distance(a, g) > 1e-6
    ),
    "smooth_grad_cam_plus_plus": Oracle(
        lambda case: equations.smooth_grad_cam_plus_plus(case.features[0], noisy_gradients(case)),
        lambda case: equations.pole_distance(case.features[0], noisy_gradients(case)) > 1e-6,
        options={"samples": 3},
    ),
    "eigen_grad_cam": of_both(equations.eigen_grad_cam, product_stands_out),
    "seg_eigen_cam": of_both(equations.seg_eigen_cam, extremum_stands_out),
    "shapley_cam": Oracle(
        shapley_cam, drawn=lambda drawn: dataclasses.replace(drawn, images=drawn.images[:, :, :4, :5])
    ),
    "finer_cam": Oracle(finer_cam),
    "cam": Oracle(
        cam, drawn=lambda drawn: dataclasses.replace(drawn, cut=len(drawn.model) - 4), heads=("pool",)
    ),
    "eigen_cam": of_activations(equations.eigen_cam, stands_out),
    "kpca_cam": of_activations(equations.kpca_cam, component_stands_out),
    "fem": of_activations(equations.fem, is_of_some_sign),
}  # fmt: skip
"""Methods that read more than A and G, or whose equation is ill-posed somewhere."""

OF_SEVERAL_LAYERS = {"refine_cam"}
OF_PICTURES = {"sobel", "center_gaussian"}
ELSEWHERE = {
    "full_grad": "test_full_grad.py",
    "guided_backprop": "test_guided.py",
    "guided_grad_cam": "test_guided.py",
    "le_grad": "test_le_grad.py",
    "libra_grad": "test_libra_grad.py",
    **dict.fromkeys(("input_x_gradient", "integrated_gradients", "expected_gradients"), "test_pixels.py"),
    "grad_eclip": "test_grad_eclip.py",
    **dict.fromkeys(("generic_attention", "attention_rollout"), "test_generic_attention.py"),
    **dict.fromkeys(
        ("score_cam", "ss_cam", "is_cam", "ablation_cam", "recipro_cam", "rise", "occlusion"), "test_perturbation.py"
    ),
}
"""Methods whose oracles are in another file."""
PLAIN = {
    name: (of_both if method.needs_gradients else of_activations)(getattr(equations, name))
    for name, method in camlib.METHODS.items()
    if name not in SPECIAL.keys() | OF_SEVERAL_LAYERS | OF_PICTURES | ELSEWHERE.keys() and hasattr(equations, name)
}
"""The others: functions of A and G, or of A if the method needs no gradients, found by name in ``equations``."""
ORACLES = PLAIN | SPECIAL


@pytest.mark.parametrize("name", camlib.METHODS)
def test_every_method_has_an_oracle(name: str) -> None:
    if name in ELSEWHERE:
        assert (Path(__file__).parent / ELSEWHERE[name]).exists(), ELSEWHERE[name]
    elif name not in OF_SEVERAL_LAYERS | OF_PICTURES:
        assert name in ORACLES, f"restate the equation of {name} in tests/equations.py, in a function of that name"


# Drawn networks -----------------------------------------------------------------------------------------------------


def draw_case(oracle: Oracle, data: st.DataObject) -> Case:
    """Draw a network that the oracle is made for, and a class for each image."""
    drawn = oracle.drawn(data.draw(cnns(heads=oracle.heads)))
    target = data.draw(
        st.lists(st.integers(0, drawn.classes - 1), min_size=len(drawn.images), max_size=len(drawn.images))
    )
    return Case(oracles.sequential_split(drawn.model, drawn.cut), drawn.images, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_maps_are_the_papers_equation_on_random_networks(name: str, data: st.DataObject) -> None:
    oracle = ORACLES[name]
    case = draw_case(oracle, data)
    assume(oracle.well_posed(case))
    expected, scale = oracle.equation(case)

    signed = oracle.explainer(name, case, relu=False)(case.images, case.target)
    assert signed.maps.dtype == torch.float64
    oracles.assert_close(signed.maps, expected, scale, TOLERANCE)
    cut_off = oracle.explainer(name, case)(case.images, case.target)
    oracles.assert_close(cut_off.maps, expected.clamp(min=0), scale, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_many_classes_are_each_the_papers_equation(name: str, data: st.DataObject) -> None:
    oracle = ORACLES[name]
    case = draw_case(oracle, data)
    explanation = oracle.explainer(name, case, relu=False)(case.images, camlib.TopK(2))
    with torch.no_grad():
        assert torch.equal(explanation.target, case.split.model(case.images).topk(2).indices)
    for k in range(2):
        of_class = Case(case.split, case.images, explanation.target[:, k].tolist())
        assume(oracle.well_posed(of_class))
        oracles.assert_close(explanation.maps[:, k], *oracle.equation(of_class), TOLERANCE)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_refine_cam_is_the_product_of_its_layers(data: st.DataObject) -> None:
    drawn = data.draw(cnns())
    last = next(i for i, module in enumerate(drawn.model) if "Adaptive" in type(module).__name__) - 1
    cuts = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=3, unique=True))
    layers = [
        Case(oracles.sequential_split(drawn.model, cut), drawn.images, [1] * len(drawn.images)).features for cut in cuts
    ]
    assume(all(equations.pole_distance(*layer) > 1e-6 for layer in layers))
    explanation = camlib.RefineCAM(drawn.model, [str(cut) for cut in cuts])(drawn.images, 1)
    for (name, maps), layer in zip(explanation.layers.items(), layers, strict=True):
        expected, scale = equations.grad_cam_plus_plus(*layer)
        assert int(name) in cuts
        oracles.assert_close(maps, expected.clamp(min=0), scale, TOLERANCE)
    grids = {tuple(layer[0].shape[2:]) for layer in layers}
    assume(len(cuts) > 1 and len({h * w for h, w in grids}) == len(grids))
    expected, scale = equations.refine_cam(layers)
    assume(scale.max() < 1e3)  # maps that are nearly constant have no min-max form
    oracles.assert_close(explanation.maps, expected, scale, TOLERANCE)


def test_layers_meet_on_the_grid_of_the_most_cells() -> None:
    """Not on that of the most rows or of the longest side."""
    grids = [(3, 4), (2, 9), (1, 10)]
    layers = [torch.rand(1, *grid, dtype=torch.float64) for grid in grids]
    expected = torch.ones(2, 9, dtype=torch.float64)
    for maps in layers:
        expected *= torch.from_numpy(equations.minmax(equations.resize_bilinear(maps[0].numpy(), (2, 9))))
    torch.testing.assert_close(fuse(layers, "product")[0], expected)


# The functions themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("name", sorted(ORACLES.keys() - {"shapley_cam", "finer_cam"}))
def test_functions_are_the_equations_on_any_grid(name: str, grid: tuple[int, ...]) -> None:
    positive = torch.rand(2, 5, *grid, dtype=torch.float64)
    signed = torch.randn(2, 5, *grid, dtype=torch.float64)
    g = torch.randn(2, 5, *grid, dtype=torch.float64)
    others = [torch.randn_like(g) for _ in range(3)]
    function = getattr(camlib.functional, name)
    for a in (positive, signed):
        if name == "smooth_grad_cam_plus_plus":
            found, expected = function(a, iter(others)), equations.smooth_grad_cam_plus_plus(a, others)
        elif name == "cam":
            weights = torch.randn(2, 5, dtype=torch.float64)
            found, expected = function(a, weights), equations.cam(a, weights)
        elif name == "random_cam":
            found, expected = function(a, torch.Generator().manual_seed(7)), equations.random_cam(a, seed=7)
        elif not camlib.METHODS[name].needs_gradients:
            found, expected = function(a), getattr(equations, name)(a)
        else:
            found, expected = function(a, g), getattr(equations, name)(a, g)
        oracles.assert_close(found, *expected, TOLERANCE)


def test_shapley_cam_is_its_equation_on_any_grid() -> None:
    a, g, product = torch.randn(3, 2, 4, 3, 2, dtype=torch.float64)
    expected, scale = equations.grad_cam(a, g - product / 2)
    oracles.assert_close(camlib.functional.shapley_cam(a, g, product), expected, scale, TOLERANCE)


def test_options_are_those_of_the_equations() -> None:
    a, g = torch.randn(2, 2, 4, 3, 4, dtype=torch.float64) + 0.5
    oracles.assert_close(camlib.functional.eigen_cam(a, center=True), *equations.eigen_cam(a, center=True), TOLERANCE)
    oracles.assert_close(
        camlib.functional.eigen_grad_cam(a, g, center=True), *equations.eigen_grad_cam(a, g, center=True), TOLERANCE
    )
    oracles.assert_close(camlib.functional.fem(a, deviations=0.5), *equations.fem(a, k=0.5), TOLERANCE)
    for kernel, gamma in itertools.product(("rbf", "linear", "sigmoid"), (None, 0.3)):
        expected, scale = equations.kpca_cam(a, kernel=kernel, gamma=gamma)
        oracles.assert_close(camlib.functional.kpca_cam(a, kernel, gamma), expected, scale, TOLERANCE)


def test_options_reach_the_functions() -> None:
    model = networks.small_cnn().double()
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    a, g = Case(oracles.sequential_split(model, 0), images, [1, 1]).features

    def maps(name: str, **options: object) -> Tensor:
        return camlib.create(name, model, "0", relu=False, **options)(images, 1).maps

    for found, expected in (
        (maps("eigen_cam", center=True), equations.eigen_cam(a, center=True)),
        (maps("eigen_grad_cam", center=True), equations.eigen_grad_cam(a, g, center=True)),
        (maps("fem", deviations=1.0), equations.fem(a, k=1.0)),
        (maps("kpca_cam", kernel="linear"), equations.kpca_cam(a, kernel="linear")),
        (maps("kpca_cam", gamma=3.0), equations.kpca_cam(a, gamma=3.0)),
        (maps("random_cam", generator=torch.Generator().manual_seed(5)), equations.random_cam(a, seed=5)),
    ):
        oracles.assert_close(found, *expected, TOLERANCE)


def test_finer_cam_contrasts_with_the_given_number_of_classes_by_the_given_weight() -> None:
    model = networks.small_cnn(classes=6).double()
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    case = Case(oracles.sequential_split(model, 2), images, [4, 1])
    expected = equations.grad_cam(
        *case.features_of(lambda out: equations.finer_score(out, case.target, gamma=0.9, references=2))
    )
    maps = camlib.FinerCAM(model, "2", weight=0.9, nearest=2, relu=False)(images, case.target).maps
    oracles.assert_close(maps, *expected, TOLERANCE)


def test_smooth_grad_cam_plus_plus_draws_noise_of_the_given_size_from_the_given_generator() -> None:
    model = networks.small_cnn().double()
    images = torch.rand(2, 3, 8, 9, dtype=torch.float64) * torch.tensor([1.0, 5.0]).double().view(2, 1, 1, 1)
    case = Case(oracles.sequential_split(model, 1), images, [0, 2])
    generator = torch.Generator().manual_seed(11)
    gradients = []
    for _ in range(3):
        noise = torch.randn((1, 3, 8, 9), generator=generator, dtype=torch.float64)
        spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        gradients.append(case.features_of(case.score, images + 0.4 * spread * noise)[1])
    expected, scale = equations.smooth_grad_cam_plus_plus(case.features[0], gradients)
    explainer = camlib.SmoothGradCAMPlusPlus(
        model, "1", samples=3, sigma=0.4, generator=torch.Generator().manual_seed(11), relu=False
    )
    oracles.assert_close(explainer(images, case.target).maps, expected, scale, TOLERANCE)
    once_more = explainer(images, case.target).maps
    assert not torch.equal(once_more, explainer(images, case.target).maps), "the generator goes on"
    default = camlib.SmoothGradCAMPlusPlus(model, "1")
    assert (default.samples, default.sigma) == (8, 0.1)


def test_predicted_class_is_explained_on_noisy_inputs_too() -> None:
    """However the noise moves the prediction."""
    model = networks.small_cnn().double()
    images = torch.rand(3, 3, 8, 9, dtype=torch.float64)
    options = {"sigma": 5.0, "samples": 4}
    free = camlib.SmoothGradCAMPlusPlus(model, "1", **options)(images)
    fixed = camlib.SmoothGradCAMPlusPlus(model, "1", **options)(images, free.target)
    torch.testing.assert_close(free.maps, fixed.maps, rtol=0, atol=0)


def test_fem_keeps_what_meets_its_threshold() -> None:
    """One value with four zeros is two deviations above the mean, exactly."""
    channel = torch.tensor([[[5.0, 0.0, 0.0, 0.0, 0.0]]])
    assert torch.equal(camlib.functional.fem(channel), torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]))


def test_channels_without_weight_or_sum_add_nothing() -> None:
    """Where the papers divide by zero: XGrad-CAM by a channel's sum, Grad-CAM++ by 2 G^2 + G^3 sum A where G = 0."""
    a = torch.tensor([[[[1.0, -1.0]], [[2.0, 1.0]]]])
    g = torch.tensor([[[[5.0, 7.0]], [[1.0, 1.0]]]])
    torch.testing.assert_close(camlib.functional.x_grad_cam(a, g), torch.tensor([[[2.0, 1.0]]]))
    zeros = torch.zeros(1, 2, 1, 2)
    for maps in (
        camlib.functional.grad_cam_plus_plus(a, zeros),
        camlib.functional.smooth_grad_cam_plus_plus(a, [zeros, zeros]),
    ):
        assert torch.equal(maps, torch.zeros(1, 1, 2))


# Real architectures -------------------------------------------------------------------------------------------------

ARCHITECTURES = {**oracles.ARCHITECTURES, **oracles.TRANSFORMERS}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[str, Case]:
    """Two images and one class for both, the likeliest one, in float64."""
    torch.manual_seed(2)
    split = ARCHITECTURES[request.param]()
    oracles.randomize(split.model)
    images = torch.randn(2, 3, *split.size, dtype=torch.float64)
    with torch.no_grad():
        target = int(split.model(images).sum(0).argmax())
    return request.param, Case(split, images, [target] * 2)


@pytest.mark.slow
def test_the_hand_made_split_is_the_network(architecture: tuple[str, Case]) -> None:
    _, case = architecture
    with torch.no_grad():
        torch.testing.assert_close(case.split.tail(case.split.trunk(case.images)), case.split.model(case.images))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ORACLES.keys() - {"cam", "kpca_cam", "shapley_cam"}))
def test_maps_are_the_papers_equation_on_real_architectures(name: str, architecture: tuple[str, Case]) -> None:
    oracle, (_, case) = ORACLES[name], architecture
    assert oracle.well_posed(case)
    expected, scale = oracle.equation(case)
    maps = oracle.explainer(name, case, relu=False)(case.images, case.target[0]).maps
    oracles.assert_close(maps, expected, scale, TOLERANCE)


@pytest.mark.slow
def test_kpca_cam_is_the_papers_equation_on_real_architectures(architecture: tuple[str, Case]) -> None:
    _, case = architecture
    a, _ = case.features
    assert component_stands_out(a)
    maps = camlib.KPCACAM(case.split.model, case.split.layer, relu=False)(case.images).maps
    oracles.assert_close(maps, *equations.kpca_cam(a), TOLERANCE)


@pytest.mark.slow
def test_shapley_cam_is_the_papers_equation_on_real_architectures(architecture: tuple[str, Case]) -> None:
    """With H A as the slope of G along A, from central differences: no second derivative is taken."""
    _, case = architecture
    step = 1e-4
    with torch.no_grad():
        activations = case.split.trunk(case.images)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(case.score(case.split.tail(leaf.clone())).sum(), leaf)[0]

    ahead, behind = gradient(activations * (1 + step)), gradient(activations * (1 - step))
    a, g = case.features
    product = case.split.to_grid((ahead - behind) / (2 * step))
    expected, _ = equations.grad_cam(a, g - product / 2)
    _, scale = equations.grad_cam(a, g.abs() + product.abs() / 2)
    maps = camlib.ShapleyCAM(case.split.model, case.split.layer, relu=False)(case.images, case.target[0]).maps
    oracles.assert_close(maps, expected, scale, 1e-5)


READS_THE_MEAN = ("resnet18", "efficientnet_b0")


@pytest.mark.slow
def test_cam_is_where_a_linear_head_reads_the_mean_and_an_error_elsewhere(architecture: tuple[str, Case]) -> None:
    name, case = architecture
    explainer = camlib.CAM(case.split.model, case.split.layer, relu=False)
    if name in READS_THE_MEAN:
        expected, scale = cam(case)
        oracles.assert_close(explainer(case.images, case.target[0]).maps, expected, scale, TOLERANCE)
    else:
        with pytest.raises(
            camlib.CamlibRuntimeError, match=r"CAM needs logits = W mean\(A\) \+ b, .* use camlib.GradCAM"
        ):
            explainer(case.images, case.target[0])


@pytest.mark.slow
def test_refine_cam_reads_the_last_two_stages_of_a_resnet() -> None:
    split = oracles.resnet18()
    model = oracles.randomize(split.model)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    third = oracles.Split(model, "layer3", split.trunk[:-1], lambda a: split.tail(model.layer4(a)))
    layers = [Case(one, images, [3, 3]).features for one in (third, split)]
    explanation = camlib.RefineCAM(model)(images, 3)
    assert list(explanation.layers) == ["layer3", "layer4"]
    oracles.assert_close(explanation.maps, *equations.refine_cam(layers), TOLERANCE)


# Signals and volumes ------------------------------------------------------------------------------------------------

RANKS = {"signal": (networks.signal_cnn, (2, 2, 11)), "volume": (networks.volume_cnn, (2, 1, 4, 5, 6))}


@pytest.fixture(params=RANKS)
def of_rank(request: pytest.FixtureRequest) -> Case:
    network, shape = RANKS[request.param]
    model = network(classes=4).double().eval()
    return Case(oracles.sequential_split(model, 3), torch.randn(shape, dtype=torch.float64), [2, 1])


@pytest.mark.parametrize("name", ORACLES)
def test_signals_and_volumes_have_the_same_equations(name: str, of_rank: Case) -> None:
    oracle = ORACLES[name]
    assert oracle.well_posed(of_rank)
    expected, scale = oracle.equation(of_rank)
    maps = oracle.explainer(name, of_rank, relu=False)(of_rank.images, of_rank.target).maps
    assert maps.shape == (2, *of_rank.images.shape[2:])
    oracles.assert_close(maps, expected, scale, TOLERANCE)


def test_refine_cam_of_signals_and_volumes_is_the_product_of_its_layers(of_rank: Case) -> None:
    flat, grid = [], of_rank.images.shape[2:]
    for cut in (1, 3):
        split = oracles.sequential_split(of_rank.split.model, cut)
        a, g = Case(split, of_rank.images, of_rank.target).features
        flat.append((a.flatten(2)[:, :, None], g.flatten(2)[:, :, None]))  # the grids agree: nothing is resized
    expected, scale = equations.refine_cam(flat)
    maps = camlib.RefineCAM(of_rank.split.model, ["1", "3"])(of_rank.images, of_rank.target).maps
    oracles.assert_close(maps, expected.view(2, *grid), scale.view(2, *grid), TOLERANCE)


# Pictures alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2, 11), (2, 3, 6, 9), (2, 3, 1, 5), (2, 1, 4, 5, 6)], ids=str)
def test_sobel_is_the_magnitude_of_scipys_filters(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, dtype=torch.float64)
    for found, grey in zip(camlib.functional.sobel(images), images.mean(1).numpy(), strict=True):
        squares = sum(ndimage.sobel(grey, axis, mode="mirror") ** 2 for axis in range(grey.ndim))
        torch.testing.assert_close(found, torch.from_numpy(squares).sqrt())


def test_sobel_is_the_oracles_of_the_input() -> None:
    images = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    model = networks.small_cnn().double()
    explanation = camlib.Sobel(model)(images, camlib.TopK(2))
    expected, scale = equations.sobel(images)
    for k in range(2):
        oracles.assert_close(explanation.maps[:, k], expected, scale, TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(explanation.scores, model(images).topk(2).values)


def test_center_gaussian_is_the_oracles_whatever_the_images() -> None:
    explanation = camlib.CenterGaussian(networks.small_cnn())(torch.randn(2, 3, 8, 5), 1)
    torch.testing.assert_close(explanation.maps.double(), equations.center_gaussian(8, 5).expand(2, 8, 5))
    torch.testing.assert_close(camlib.functional.center_gaussian((8, 5)), equations.center_gaussian(8, 5))
    line = equations.center_gaussian(1, 7)[0]
    torch.testing.assert_close(camlib.functional.center_gaussian((7,)), line / line.max())
    volume = camlib.functional.center_gaussian((3, 8, 5))
    torch.testing.assert_close(volume[1], equations.center_gaussian(8, 5))
    ratio = torch.exp(torch.tensor(-((1 / 0.75) ** 2) / 2)).double()
    torch.testing.assert_close(volume[0], ratio * volume[1])
    assert camlib.functional.center_gaussian((9,), sigma=1 / 9)[5].item() == pytest.approx(
        torch.tensor(-0.5).exp().item()
    )
    narrow = camlib.CenterGaussian(networks.small_cnn(), sigma=0.1)(torch.randn(1, 3, 8, 5)).maps[0]
    torch.testing.assert_close(narrow, camlib.functional.center_gaussian((8, 5), sigma=0.1).float())


# Half precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(ORACLES.keys() | OF_SEVERAL_LAYERS | OF_PICTURES))
def test_models_in_half_precision_have_maps_in_single_near_the_double_ones(name: str, dtype: torch.dtype) -> None:
    double = networks.small_cnn(channels=6).double()
    for parameter in double.parameters():
        parameter.data = parameter.data.to(dtype).double()  # the same network in both
    half = networks.small_cnn(channels=6).to(dtype)
    half.load_state_dict(double.state_dict())
    images = torch.rand(2, 3, 8, 9).to(dtype)
    layer = [] if name in OF_PICTURES else [["1", "3"] if name in OF_SEVERAL_LAYERS else "3"]
    found = camlib.create(name, half, *layer)(images, 1).maps
    expected = camlib.create(name, double, *layer)(images.double(), 1).maps
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert expected.amax() > 0
    torch.testing.assert_close(found.double() / expected.amax(), expected / expected.amax(), rtol=0, atol=0.1)


def test_a_map_too_large_for_kpca_cam_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(camlib.CamlibValueError, match=r"\(512, 512\) are more than 16384; choose a layer"):
        camlib.functional.kpca_cam(torch.rand(1, 1, 512, 512))
