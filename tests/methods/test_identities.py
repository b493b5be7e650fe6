"""Methods agree with each other, and with the score, where algebra says that they must."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import camlib
from tests import equations, networks, oracles
from tests.networks import RELUS, Drawn, cnns
from tests.oracles import Case


def signed(name: str, drawn: Drawn, target: object = 0, **options: object) -> Tensor:
    return camlib.create(name, drawn.model, str(drawn.cut), relu=False, **options)(drawn.images, target).maps


def case_of(drawn: Drawn, target: int = 0) -> Case:
    return Case(oracles.sequential_split(drawn.model, drawn.cut), drawn.images, [target] * len(drawn.images))


def before_the_pool(drawn: Drawn) -> Drawn:
    return dataclasses.replace(drawn, cut=len(drawn.model) - 4)


# Pooled linear heads ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(drawn=cnns(heads=["pool"]).map(before_the_pool))
def test_on_pooled_linear_heads_x_grad_cam_hires_cam_and_cam_are_grad_cam(drawn: Drawn) -> None:
    a, g = case_of(drawn).features
    positions = a[0, 0].numel()
    expected, scale = equations.grad_cam(a, g)
    oracles.assert_close(signed("grad_cam", drawn), expected, scale, 1e-12)
    oracles.assert_close(signed("x_grad_cam", drawn), expected, equations.x_grad_cam(a, g)[1] + scale, 1e-12)
    oracles.assert_close(signed("hires_cam", drawn), expected, scale, 1e-12)
    oracles.assert_close(signed("cam", drawn) / positions, expected, scale, 1e-12)
    cut_off = camlib.CAM(drawn.model, str(drawn.cut))(drawn.images, 0).maps
    oracles.assert_close(cut_off / positions, expected.clamp(min=0), scale, 1e-12)


@settings(max_examples=40, deadline=None)
@given(drawn=cnns(heads=["pool"]).map(before_the_pool))
def test_hires_cam_sums_to_the_logit_without_the_bias_on_pooled_linear_heads(drawn: Drawn) -> None:
    with torch.no_grad():
        logits = drawn.model(drawn.images) - drawn.model[-1].bias
    for c in range(drawn.classes):
        torch.testing.assert_close(signed("hires_cam", drawn, c).sum((1, 2)), logits[:, c])


def test_cam_is_positions_times_grad_cam_on_a_resnet() -> None:
    model = oracles.randomize(oracles.resnet18().model)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    maps = camlib.CAM(model)(images, camlib.TopK(5)).maps
    assert (maps > 0).any()
    torch.testing.assert_close(3 * 2 * camlib.GradCAM(model, "layer4")(images, camlib.TopK(5)).maps, maps)


def test_cam_explains_both_classes_of_a_single_logit() -> None:
    model = networks.small_cnn(classes=1).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    maps = camlib.CAM(model, "3", relu=False)(images, [[0, 1], [1, 0]]).maps
    torch.testing.assert_close(maps[:, 0], -maps[:, 1])
    torch.testing.assert_close(maps, 64 * camlib.GradCAM(model, "3", relu=False)(images, [[0, 1], [1, 0]]).maps)


def test_cam_reads_a_convolution_that_is_the_classifier() -> None:
    linear = networks.small_cnn().double()
    model = nn.Sequential(*linear[:5], nn.Conv2d(4, 3, 1), nn.Flatten()).double()
    model[5].load_state_dict({"weight": linear[6].weight[..., None, None], "bias": linear[6].bias})
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(camlib.CAM(model, "3")(images, 1).maps, camlib.CAM(linear, "3")(images, 1).maps)


def test_cam_reads_a_classifier_without_bias() -> None:
    model = networks.small_cnn().double()
    model[6] = nn.Linear(4, 3, bias=False).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(camlib.CAM(model, "3")(images, 1).maps, 64 * camlib.GradCAM(model, "3")(images, 1).maps)


@pytest.mark.parametrize("spoilt", ["the layer", "the logits", "one class"])
def test_cam_is_refused_where_the_logits_are_not_linear_in_the_mean(spoilt: str) -> None:
    model = networks.small_cnn().double()
    layer = "2" if spoilt == "the layer" else "3"  # a ReLU lies between

    def forward(module: nn.Module, inputs: Tensor) -> Tensor:
        outputs = module(inputs)
        if spoilt == "the logits":
            return outputs.softmax(1)
        return outputs + torch.tensor([0, 0, 1e-3]) if spoilt == "one class" else outputs

    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) - 0.5
    with pytest.raises(camlib.CamlibRuntimeError, match=rf"CAM needs .* layer '{layer}', shape \(2, 4, 8, 8\)"):
        camlib.CAM(model, layer, forward=forward)(images, 0)


@pytest.mark.parametrize("name", ["cam", "finer_cam"])
def test_methods_of_classes_refuse_other_scores(name: str) -> None:
    with pytest.raises(camlib.CamlibTypeError, match=r"use camlib\.GradCAM"):
        camlib.create(name, networks.small_cnn(), "3")(torch.rand(2, 3, 8, 8), lambda outputs: outputs.sum(1))


# Signs of features and gradients ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_layer_cam_of_the_score_less_that_of_its_negative_is_hires_cam(drawn: Drawn) -> None:
    a, g = case_of(drawn).features
    scale = equations.hires_cam(a, g)[1]
    for name in ("layer_cam", "grad_cam_element_wise"):
        difference = signed(name, drawn) - signed(name, drawn, lambda outputs: -outputs[:, 0])
        oracles.assert_close(difference, signed("hires_cam", drawn), scale, 1e-12)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=RELUS), data=st.data())
def test_element_wise_is_layer_cam_where_features_are_positive(drawn: Drawn, data: st.DataObject) -> None:
    after_convolutions = [i for i, module in enumerate(drawn.model[:-3]) if isinstance(module, nn.ReLU)]
    drawn = dataclasses.replace(drawn, cut=data.draw(st.sampled_from(after_convolutions)))
    torch.testing.assert_close(signed("grad_cam_element_wise", drawn), signed("layer_cam", drawn))


# Noise and contrast that vanish -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=[nn.Tanh, nn.SiLU], heads=["pool", "flatten"]))
def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus(drawn: Drawn) -> None:
    a, g = case_of(drawn).features
    assume(equations.pole_distance(a, g) > 1e-3)
    assume(not any(isinstance(module, nn.MaxPool2d) for module in drawn.model))  # its kinks see the least noise
    _, scale = equations.grad_cam_plus_plus(a, g)
    quiet = signed("smooth_grad_cam_plus_plus", drawn, sigma=1e-13, samples=2)
    oracles.assert_close(quiet, signed("grad_cam_plus_plus", drawn), scale, 1e-6)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_finer_cam_without_contrast_is_grad_cam(drawn: Drawn) -> None:
    _, scale = equations.grad_cam(*case_of(drawn).features)
    oracles.assert_close(signed("finer_cam", drawn, weight=0.0), signed("grad_cam", drawn), scale, 1e-12)


def test_refine_cam_of_one_layer_is_grad_cam_plus_plus() -> None:
    model, images = networks.small_cnn(), torch.rand(2, 3, 8, 8)
    expected = camlib.GradCAMPlusPlus(model, "1")(images, 1).maps
    torch.testing.assert_close(camlib.RefineCAM(model, "1")(images, 1).maps, expected, rtol=0, atol=0)


# Principal components -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_eigen_cam_is_the_best_rank_one_approximation(drawn: Drawn) -> None:
    """|A v| is the largest singular value, and the map's own direction is v: u_1 of numpy's full decomposition."""
    a, _ = case_of(drawn).features
    assume(equations.singular_gap(a) > 1.01)
    for image, found in zip(a, signed("eigen_cam", drawn), strict=True):
        left, sigma, _ = torch.linalg.svd(image.flatten(1).T)
        torch.testing.assert_close(found.norm(), sigma[0])
        torch.testing.assert_close((left[:, 0] @ found.flatten()).abs(), sigma[0])


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam", "eigen_grad_cam", "seg_eigen_cam"])
def test_sign_of_a_component_is_the_same_however_its_matrix_is_laid_out(name: str) -> None:
    """Permuted channels and positions, a batch or one image, more channels than positions or fewer."""
    function = getattr(camlib.functional, name)
    for channels, grid in ((3, (4, 5)), (30, (2, 3)), (6, (2, 3))):
        tensors = [torch.randn(8, channels, *grid, dtype=torch.float64) for _ in range(2)]
        tensors = tensors[:1] if name in ("eigen_cam", "kpca_cam") else tensors
        maps = function(*tensors)
        order = torch.randperm(channels)
        torch.testing.assert_close(function(*[tensor[:, order] for tensor in tensors]), maps)
        flipped = function(*[tensor.flip(2, 3) for tensor in tensors]).flip(1, 2)
        torch.testing.assert_close(flipped, maps)
        alone = torch.cat([function(*[tensor[n : n + 1] for tensor in tensors]) for n in range(8)])
        torch.testing.assert_close(alone, maps)
        torch.testing.assert_close(function(*[tensor.clone() for tensor in tensors]), maps, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["eigen_grad_cam", "kpca_cam", "centred eigen_cam"])
def test_components_follow_the_mean_of_the_channels(name: str) -> None:
    a, g = torch.randn(2, 20, 5, 4, 6, dtype=torch.float64)
    functions = {"eigen_grad_cam": lambda: camlib.functional.eigen_grad_cam(a, g)}
    functions["kpca_cam"] = lambda: camlib.functional.kpca_cam(a)
    functions["centred eigen_cam"] = lambda: camlib.functional.eigen_cam(a, center=True)
    maps = functions[name]()
    mean = (a * g if name == "eigen_grad_cam" else a).mean(1)
    for own, other in zip(maps, mean, strict=True):
        assert torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1] > 0


@pytest.mark.parametrize("name", ["eigen_cam", "fem"])
@pytest.mark.parametrize("shift", [-30.0, -1.0, 0.0, 1.0])
def test_most_of_a_map_of_signed_features_is_positive(name: str, shift: float) -> None:
    """The paper has no ReLU; where camlib has one, it must not remove what the features have in common."""
    a = torch.randn(50, 5, 4, 6, dtype=torch.float64) + shift
    maps = getattr(camlib.functional, name)(a).flatten(1)
    maps = maps[maps.any(1)]  # of few cells, FEM may find none that is rare
    assert len(maps) > 25
    assert (maps.relu().sum(1) >= (-maps).relu().sum(1)).all()
    assert (maps.amax(1) > 0).all()


def test_the_map_of_features_that_are_not_negative_is_not_negative() -> None:
    """Their first vector has one sign (Perron and Frobenius), also where the mean of the channels falls as it rises."""
    strong = torch.tensor([[3.0, 4.0, 5.0]], dtype=torch.float64)
    weak = torch.tensor([[1.0, 0.6, 0.0]], dtype=torch.float64)
    a = torch.stack([strong, weak, weak, weak], 0)[None]
    assert a.mean(1)[0, 0, 0] > a.mean(1)[0, 0, 2]
    maps = camlib.functional.eigen_cam(a)
    assert (maps > 0).all()
    assert maps[0, 0, 0] < maps[0, 0, 2]
    evidence = camlib.functional.eigen_grad_cam(a, torch.ones_like(a))  # all of it is for the class
    torch.testing.assert_close(evidence, maps)
    torch.testing.assert_close(camlib.functional.eigen_grad_cam(a, -torch.ones_like(a)), -maps)


def test_the_extremum_of_seg_eigen_cam_is_positive() -> None:
    a, g = torch.randn(2, 20, 5, 4, 6, dtype=torch.float64)
    cells = camlib.functional.seg_eigen_cam(a, g).flatten(1)
    assert (cells.amax(1) >= -cells.amin(1)).all()
    assert (camlib.functional.seg_eigen_cam(a[:, :, :1, :1], g[:, :, :1, :1]) > 0).all(), "of a single position too"


@pytest.mark.parametrize("grid", [(1, 1), (3, 7)])
def test_constant_features_have_a_positive_component(grid: tuple[int, int]) -> None:
    """Not one whose sign the rounding of a mean decides."""
    a = torch.rand(50, 5, 1, 1).expand(-1, -1, *grid)
    assert (camlib.functional.eigen_cam(a) > 0).all()
    assert (camlib.functional.eigen_cam(-a) > 0).all()


def test_component_of_channels_that_cancel_has_a_positive_sum() -> None:
    """Their mean is constant, up to rounding: it says nothing of the sign."""
    share = torch.rand(50, 1, 3, 7) * 0.8
    a = torch.cat([share, 1 - share], 1)
    assert (camlib.functional.eigen_cam(a).sum((1, 2)) > 0).all()


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_linear_kernel_pca_is_the_centred_eigen_cam(drawn: Drawn) -> None:
    a, _ = case_of(drawn).features
    assume(equations.singular_gap(a, center=True) > 1.01)
    expected, scale = equations.eigen_cam(a, center=True)
    assume(equations.orientation(expected, a) > 1e-6)
    assume(expected.flatten(1).norm(dim=1).min() > 1e-2 * a.flatten(1).norm(dim=1).max())  # the kernel squares the mean
    oracles.assert_close(signed("kpca_cam", drawn, kernel="linear"), expected, scale, 1e-9)
    oracles.assert_close(signed("eigen_cam", drawn, center=True), expected, scale, 1e-9)


@pytest.mark.parametrize("kernel", ["rbf", "sigmoid", "linear"])
def test_features_that_are_the_same_everywhere_have_no_centred_component(kernel: str) -> None:
    """Not one made of the rounding of their means, which min-max would blow up to a heatmap."""
    a = torch.rand(50, 5, 1, 1).expand(-1, -1, 3, 7)
    for maps in (
        camlib.functional.kpca_cam(a, kernel),
        camlib.functional.eigen_cam(a, center=True),
        camlib.functional.random_cam(a, torch.Generator().manual_seed(0)),
    ):
        assert torch.equal(maps, torch.zeros(50, 3, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "poly"}, "kernel must be one of rbf, sigmoid, linear, got 'poly'"),
        ({"gamma": 0}, 'gamma, if not None or "1/C", must be a positive number, got 0'),
    ],
)
def test_kernels_are_known_and_gamma_is_positive(options: dict[str, object], message: str) -> None:
    with pytest.raises(camlib.CamlibValueError, match=message):
        camlib.functional.kpca_cam(torch.rand(1, 2, 3, 3), **options)


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("finer_cam", {"weight": "0.6"}, camlib.CamlibTypeError, "weight must be a finite number, got '0.6'"),
        ("finer_cam", {"weight": float("nan")}, camlib.CamlibValueError, "weight must be a finite number, got nan"),
        ("finer_cam", {"nearest": 2.0}, camlib.CamlibTypeError, "nearest must be an int of at least 1, got 2.0"),
        ("finer_cam", {"nearest": 0}, camlib.CamlibValueError, "nearest must be an int of at least 1, got 0"),
        ("kpca_cam", {"kernel": "poly"}, camlib.CamlibValueError, "kernel must be one of rbf, sigmoid, linear"),
        ("kpca_cam", {"kernel": ["rbf"]}, camlib.CamlibValueError, "kernel must be one of rbf, sigmoid, linear"),
        ("kpca_cam", {"gamma": "1"}, camlib.CamlibTypeError, "gamma, .* must be a positive number, got '1'"),
        ("kpca_cam", {"gamma": -1.0}, camlib.CamlibValueError, "gamma, .* must be a positive number, got -1.0"),
        ("kpca_cam", {"gamma": float("inf")}, camlib.CamlibValueError, "gamma, .* must be a positive number, got inf"),
        ("fem", {"deviations": None}, camlib.CamlibTypeError, "deviations must be a number .* got None"),
        ("fem", {"deviations": -1}, camlib.CamlibValueError, r"deviations must be a number of at least 0, got -1"),
        ("fem", {"deviations": float("nan")}, camlib.CamlibValueError, "deviations must be a number .* got nan"),
        ("refine_cam", {"fuse": "mean"}, camlib.CamlibValueError, "RefineCAM multiplies .* got fuse='mean'"),
        ("refine_cam", {"relu": False}, camlib.CamlibValueError, "it needs relu=True"),
    ],
)
def test_impossible_options_are_refused_before_the_first_call(
    name: str, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        camlib.create(name, networks.small_cnn(), **options)


def test_refine_cam_accepts_fuse_product() -> None:
    model, images = networks.small_cnn(), torch.rand(2, 3, 8, 8)
    told = camlib.RefineCAM(model, ["1", "3"], fuse="product")(images, 1).maps
    assert torch.equal(told, camlib.RefineCAM(model, ["1", "3"])(images, 1).maps)


@pytest.mark.parametrize("deviations", [1, 2, 3])
def test_no_cell_of_a_small_grid_is_rare_for_fem(deviations: int) -> None:
    """Of n values none is more than the root of n - 1 deviations above their mean, and one alone is just that."""
    for cells in range(2, 20):
        peak = torch.zeros(1, 1, 1, cells, dtype=torch.float64)
        peak[..., 0] = 16
        noise = torch.rand(50, 6, 1, cells, dtype=torch.float64)
        if cells < 1 + deviations**2:
            assert not camlib.functional.fem(peak, deviations).any()
            assert not camlib.functional.fem(noise, deviations).any()
        elif cells > 1 + deviations**2:
            assert camlib.functional.fem(peak, deviations)[0, 0].tolist() == [16 / cells] + [0] * (cells - 1)


# Curvature ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(drawn=cnns(activations=RELUS))
def test_shapley_cam_is_grad_cam_on_piecewise_linear_tails(drawn: Drawn) -> None:
    for target in (0, camlib.TopK(2)):
        torch.testing.assert_close(
            signed("shapley_cam", drawn, target), signed("grad_cam", drawn, target), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("power", [2, 3, 4])
def test_shapley_cam_of_a_homogeneous_score_is_a_multiple_of_grad_cam(power: int) -> None:
    """Euler: H A = (p - 1) G for a score of degree p, so that the weight is (3 - p) / 2 times Grad-CAM's."""

    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**power

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Power(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = (3 - power) / 2 * camlib.GradCAM(model, "0", relu=False)(images, camlib.TopK(3)).maps
    torch.testing.assert_close(camlib.ShapleyCAM(model, "0", relu=False)(images, camlib.TopK(3)).maps, expected)


def rest(c: int, outputs: Tensor) -> Tensor:
    """Cai 2025: y_c + log softmax(y)_c."""
    return outputs[:, c] + outputs[:, c] - torch.logsumexp(outputs, 1)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_shapley_cam_of_rest_has_the_whole_hessian(drawn: Drawn) -> None:
    tiny = dataclasses.replace(drawn, images=drawn.images[:, :, :4, :5])
    split = oracles.sequential_split(tiny.model, tiny.cut)
    with torch.no_grad():
        activations = split.trunk(tiny.images)
    expected, scale = equations.shapley_cam(split.tail, activations, lambda outputs: rest(1, outputs))
    oracles.assert_close(signed("shapley_cam", tiny, camlib.targets.ReST(1)), expected, scale, 1e-9)


def test_shapley_cam_of_a_vision_transformer_has_the_whole_hessian() -> None:
    """Attention is curved: Grad-CAM will not do, and its fast kernels cannot be differentiated twice."""
    split = oracles.vit()
    oracles.randomize(split.model)
    images = torch.randn(2, 3, *split.size, dtype=torch.float64)
    found = camlib.ShapleyCAM(split.model, relu=False)(images, 3)
    assert found.layer == split.layer
    for n in range(2):
        with torch.no_grad():
            activations = split.trunk(images[n : n + 1])
        with sdpa_kernel(SDPBackend.MATH):
            expected, scale = equations.shapley_cam(
                split.tail, activations, lambda outputs: outputs[:, 3], to_grid=split.to_grid
            )
        oracles.assert_close(found.maps[n : n + 1], expected, scale, 1e-9)
    flat = camlib.GradCAM(split.model, relu=False)(images, 3).maps
    assert (found.maps - flat).abs().max() > 1e-2 * flat.abs().max()
