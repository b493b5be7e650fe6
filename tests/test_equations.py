"""The oracles themselves are right: they agree with each other, and with torch, where identities say they must."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import equations, networks, oracles
from tests.networks import RELUS, Drawn, cnns


def logit(c: int) -> Callable[[Tensor], Tensor]:
    return lambda outputs: outputs[:, c]


def drawn_features(drawn: Drawn, cut: int | None = None) -> tuple[oracles.Split, Tensor, Tensor]:
    split = oracles.sequential_split(drawn.model, drawn.cut if cut is None else cut)
    return split, *split.activations_and_gradients(drawn.images, logit(0))


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=RELUS, heads=["pool"]))
def test_on_pooled_linear_heads_the_weights_of_the_head_are_the_gradient(drawn: Drawn) -> None:
    """x_grad_cam = grad_cam, h w grad_cam = cam, and hires_cam sums to the logit minus the bias."""
    head = drawn.model[-1]
    split, a, g = drawn_features(drawn, len(drawn.model) - 4)
    expected, scale = equations.grad_cam(a, g)
    oracles.assert_close(equations.x_grad_cam(a, g)[0], expected, scale, 1e-12)
    positions = a[0, 0].numel()
    cam, scale = equations.cam(a, head.weight[:1].expand(len(a), -1))
    oracles.assert_close(positions * expected, cam, scale, 1e-12)
    evidence = equations.hires_cam(a, g)[0].sum((1, 2))
    torch.testing.assert_close(evidence, split.tail(a)[:, 0].detach() - head.bias[0].detach())


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_every_weighting_is_hires_cam_where_there_is_one_position(drawn: Drawn) -> None:
    _, a, g = drawn_features(drawn)
    a, g = a[:, :, :1, :1], g[:, :, :1, :1]
    expected, scale = equations.hires_cam(a, g)
    oracles.assert_close(equations.grad_cam(a, g)[0], expected, scale, 1e-12)
    oracles.assert_close(equations.x_grad_cam(a, g)[0], expected, scale, 1e-12)
    positive = g.clamp(min=0)
    expected, scale = equations.hires_cam(a, positive)
    oracles.assert_close(equations.layer_cam(a, g)[0], expected, scale, 1e-12)
    difference = equations.layer_cam(a, g)[0] - equations.layer_cam(a, -g)[0]
    torch.testing.assert_close(difference, equations.hires_cam(a, g)[0])


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=RELUS))
def test_element_wise_is_layer_cam_where_features_are_positive(drawn: Drawn) -> None:
    _, a, g = drawn_features(drawn)
    a = a.relu()
    expected, scale = equations.layer_cam(a, g)
    oracles.assert_close(equations.grad_cam_element_wise(a, g)[0], expected, scale, 1e-12)
    both = equations.grad_cam_element_wise(a, g)[0] - equations.grad_cam_element_wise(a, -g)[0]
    torch.testing.assert_close(both, equations.hires_cam(a, g)[0])


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_grad_cam_plus_plus_has_a_stable_form_and_one_clean_sample_is_its_smooth_form(drawn: Drawn) -> None:
    _, a, g = drawn_features(drawn)
    assume(equations.pole_distance(a, g) > 1e-3)
    expected, scale = equations.grad_cam_plus_plus(a, g)
    weights = (g.relu() / (2 + g * a.sum((2, 3), keepdim=True))).sum((2, 3))
    oracles.assert_close(torch.einsum("nk,nkij->nij", weights, a), expected, scale, 1e-12)
    oracles.assert_close(equations.smooth_grad_cam_plus_plus(a, [g])[0], expected, scale, 1e-12)
    oracles.assert_close(equations.smooth_grad_cam_plus_plus(a, [g, g, g])[0], expected, scale, 1e-12)


def test_grad_cam_plus_plus_tends_to_its_limits_as_the_score_is_scaled() -> None:
    """To 0: half the sum of ReLU(G); to infinity: the number of positive gradients over sum A."""
    a = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    g = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    small, scale = equations.grad_cam_plus_plus(a, 1e-9 * g)
    halves = torch.einsum("nk,nkij->nij", g.relu().sum((2, 3)) / 2, a)
    oracles.assert_close(small * 1e9, halves, scale * 1e9, 1e-7)
    large, scale = equations.grad_cam_plus_plus(a, 1e9 * g)
    counts = torch.einsum("nk,nkij->nij", (g > 0).sum((2, 3)) / a.sum((2, 3)), a)
    oracles.assert_close(large, counts, scale, 1e-6)


def test_smooth_grad_cam_plus_plus_averages_the_powers_not_the_maps() -> None:
    """One channel, one position, A = 1, samples G = 1 and 2: D = 3/2, 5/2, 9/2; alpha = 5/2 / (5 + 9/2)."""
    one = torch.ones(1, 1, 1, 1)
    maps, _ = equations.smooth_grad_cam_plus_plus(one, [one, 2 * one])
    assert maps.item() == pytest.approx(2.5 / 9.5 * 1.5)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=RELUS))
def test_shapley_cam_is_grad_cam_on_piecewise_linear_tails(drawn: Drawn) -> None:
    tiny = dataclasses.replace(drawn, images=drawn.images[:, :, :4, :5])
    split, a, g = drawn_features(tiny)
    expected, scale = equations.grad_cam(a, g)
    oracles.assert_close(equations.shapley_cam(split.tail, a, logit(0))[0], expected, scale, 1e-12)


def test_shapley_cam_subtracts_half_the_curvature() -> None:
    """Where s = sum c A^2: G = 2 c A and H A = 2 c A, so that the weight is half Grad-CAM's."""
    a, c = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    half, scale = equations.shapley_cam(lambda x: (c * x**2).flatten(1), a, lambda out: out.sum(1))
    oracles.assert_close(2 * half, equations.grad_cam(a, 2 * c * a)[0], scale, 1e-12)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns())
def test_eigen_cam_maximizes_the_energy_and_keeps_its_sign(drawn: Drawn) -> None:
    _, a, _ = drawn_features(drawn)
    assume(equations.singular_gap(a) > 1.01)
    maps, scale = equations.eigen_cam(a)
    matrices = a.flatten(2).transpose(1, 2)
    values, vectors = torch.linalg.eigh(matrices.transpose(1, 2) @ matrices)
    torch.testing.assert_close(maps.flatten(1).square().sum(1), values[:, -1])
    projections = (matrices @ vectors[:, :, -1:]).view(maps.shape)
    sign = torch.sign((projections * maps).sum((1, 2), keepdim=True))
    oracles.assert_close(sign * projections, maps, scale, 1e-9)
    assume(equations.sum_margin(maps) > 1e-6)
    assert (maps.flatten(1).sum(1) > 0).all()
    permuted = equations.eigen_cam(a[:, torch.randperm(a.shape[1])])[0]
    oracles.assert_close(permuted, maps, scale, 1e-9)


def test_eigen_cam_of_one_channel_is_the_channel() -> None:
    a = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    signs = a.sum((1, 2, 3)).sign()[:, None, None]
    torch.testing.assert_close(equations.eigen_cam(a)[0], signs * a[:, 0])
    torch.testing.assert_close(equations.eigen_grad_cam(a, 2 * a)[0], 2 * a[:, 0] ** 2)
    centred = a[:, 0] - a[:, 0].mean((1, 2), keepdim=True)
    torch.testing.assert_close(equations.eigen_cam(a, center=True)[0], centred)


def test_a_projection_that_correlates_with_nothing_has_a_positive_sum() -> None:
    torch.testing.assert_close(equations.eigen_cam(torch.ones(1, 4, 2, 2))[0], torch.full((1, 2, 2), 2.0).double())
    low = equations.eigen_cam(-torch.ones(1, 4, 2, 2))[0]
    torch.testing.assert_close(low, torch.full((1, 2, 2), 2.0).double())


def test_seg_eigen_cam_makes_the_extremum_positive() -> None:
    a = torch.tensor([[[[-3.0, 1.0], [1.0, 0.0]]]])
    torch.testing.assert_close(equations.seg_eigen_cam(a, -torch.ones_like(a))[0], -a[:, 0].double())


def test_linear_kernel_pca_is_the_centred_eigen_cam() -> None:
    a = torch.randn(2, 5, 4, 3, dtype=torch.float64) + 1
    expected, scale = equations.eigen_cam(a, center=True)
    oracles.assert_close(equations.kpca_cam(a, kernel="linear")[0], expected, scale, 1e-9)


def test_kpca_cam_is_the_leading_eigenvector_of_the_centred_kernel() -> None:
    a = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    maps, scale = equations.kpca_cam(a)
    for image, features, size in zip(maps, a.flatten(2).transpose(1, 2), scale, strict=True):
        kernel = torch.exp(-(torch.cdist(features, features) ** 2) / features.var(0, correction=0).sum())
        center = torch.eye(12, dtype=torch.float64) - 1 / 12
        values, vectors = torch.linalg.eigh(center @ kernel @ center)
        component = (vectors[:, -1] * values[-1].sqrt()).view(1, 4, 3)
        component = component * torch.sign((component * image).sum())
        oracles.assert_close(component, image[None], size[None], 1e-9)
    narrow = equations.kpca_cam(a, gamma=10.0)[0]
    assert (narrow - maps).abs().max() > 0.1, "gamma matters"


def test_fem_keeps_values_two_deviations_above_the_mean() -> None:
    a = torch.zeros(1, 2, 3, 3)
    a[0, 0, 1, 1], a[0, 1] = 9.0, torch.arange(9.0).view(3, 3)
    expected = torch.zeros(1, 3, 3, dtype=torch.float64)
    expected[0, 1, 1] = 1.0
    torch.testing.assert_close(equations.fem(a)[0], expected)
    assert equations.fem_margin(torch.eye(5)[:1].view(1, 1, 1, 5)) < 1e-15


def test_factorization_finds_the_factors_of_features_that_have_them() -> None:
    maps, concepts = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(3, 8, dtype=torch.float64)
    maps *= torch.rand_like(maps) > 0.5
    features = torch.einsum("nkij,kc->ncij", maps, concepts)
    found, directions, error = equations.deep_feature_factorization(features, 3)
    assert error < 1e-4
    torch.testing.assert_close(torch.einsum("nkij,kc->ncij", found, directions), features, rtol=0, atol=1e-3)
    assert equations.least_factorization_error(features, 3) < 1e-12
    noisy = features + torch.rand_like(features)
    assert equations.deep_feature_factorization(noisy, 3)[2] >= equations.least_factorization_error(noisy, 3) > 0


def test_finer_score_contrasts_with_the_nearest_logits() -> None:
    outputs = torch.tensor([[5.0, 1.0, 4.0, 7.0, 4.5, 12.0], [0.0, 1.0, 2.0, 3.0, 9.0, -1.0]])
    expected = torch.tensor([5 - 0.6 * (4 + 4.5 + 7) / 3, 9 - 0.6 * (1 + 2 + 3) / 3])
    torch.testing.assert_close(equations.finer_score(outputs, [0, 4]), expected)
    torch.testing.assert_close(equations.finer_score(outputs[:1, :2], [1]), torch.tensor([1 - 0.6 * 5]))


@settings(max_examples=15, deadline=None)
@given(drawn=cnns())
def test_finer_cam_is_linear_in_the_classes_and_grad_cam_without_contrast(drawn: Drawn) -> None:
    split, a, g = drawn_features(drawn)
    target = [0] * len(a)
    expected, scale = equations.grad_cam(a, g)
    oracles.assert_close(equations.finer_cam(split.tail, a, target, gamma=0.0)[0], expected, scale, 1e-12)
    assume(drawn.classes <= 4)
    _, others = split.activations_and_gradients(drawn.images, lambda out: out[:, 1:].mean(1))
    contrast = equations.finer_cam(split.tail, a, target)[0]
    rest, more = equations.grad_cam(a, others)
    oracles.assert_close(contrast, expected - 0.6 * rest, scale + more, 1e-12)


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 6)] * 4))
def test_resizing_is_torchs_bilinear(grid: tuple[int, int, int, int]) -> None:
    image = torch.randn(1, 1, *grid[:2], dtype=torch.float64)
    expected = nn.functional.interpolate(image, grid[2:], mode="bilinear")[0, 0]
    torch.testing.assert_close(torch.from_numpy(equations.resize_bilinear(image[0, 0].numpy(), grid[2:])), expected)


def test_refine_cam_of_one_layer_is_its_minmaxed_map_and_of_two_their_product() -> None:
    coarse = torch.rand(2, 3, 2, 3) - 0.5, 0.1 * torch.randn(2, 3, 2, 3)
    fine = torch.rand(2, 4, 6, 6) - 0.5, 0.1 * torch.randn(2, 4, 6, 6)
    assert min(equations.grad_cam_plus_plus(*layer)[0].min() for layer in (coarse, fine)) < 0
    single = []
    for layer in (coarse, fine):
        maps = nn.functional.interpolate(equations.grad_cam_plus_plus(*layer)[0].relu()[None], (6, 6), mode="bilinear")[
            0
        ]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        single.append((maps - low) / (high - low))
    torch.testing.assert_close(equations.refine_cam([fine])[0], single[1])
    torch.testing.assert_close(equations.refine_cam([coarse, fine])[0], single[0] * single[1])


def randomized_vit() -> oracles.Split:
    """torchvision zero-initialises the head."""
    split = oracles.vit()
    for parameter in split.model.parameters():
        nn.init.normal_(parameter, std=0.5)
    split.model.double().eval()
    return split


def test_vit_by_hand_is_torchvisions() -> None:
    split = randomized_vit()
    images = torch.randn(2, 3, *split.size, dtype=torch.float64)
    with torch.no_grad():
        expected = split.model(images)
        tokens = split.trunk(images)
        assert tokens.shape == (2, 17, 8)
        assert split.to_grid(tokens).shape == (2, 8, 4, 4)
        assert (split.to_grid(tokens)[1, :, 2, 3] == tokens[1, 1 + 4 * 2 + 3]).all()
        torch.testing.assert_close(split.tail(tokens), expected)
        reached: list[Tensor] = []
        hook = split.model.get_submodule(split.layer).register_forward_hook(lambda *args: reached.append(args[2]))
        split.model(images)
        hook.remove()
        torch.testing.assert_close(reached[0], tokens)
    logits, attentions, outputs = equations.vit_by_hand(split.model, images)
    torch.testing.assert_close(logits, expected)
    assert [tuple(attention.shape) for attention in attentions] == [(2, 2, 17, 17)] * 2
    torch.testing.assert_close(attentions[0].sum(3), torch.ones(2, 2, 17, dtype=torch.float64))
    torch.testing.assert_close(split.model.heads(split.model.encoder.ln(outputs[-1])[:, 0]), expected)


def test_attention_of_the_last_block_counts_only_where_the_class_token_asks() -> None:
    split = randomized_vit()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first, last = equations.vit_attention_gradients(split.model, images, logit(1))
    assert last[:, :, 0].abs().max() > 0
    assert last[:, :, 1:].abs().max() == 0
    assert first[:, :, 1:].abs().max() > 0
    own = equations.le_grad_layer_gradients(split.model, images, logit(1))
    assert all(block[:, :, 1:].abs().max() > 0 for block in own), "the paper's own score reads every token"


def test_attention_gradient_is_the_finite_difference() -> None:
    """Scaling one attention row of the last block changes the score as the gradient says."""
    split = randomized_vit()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    gradient = equations.vit_attention_gradients(split.model, images, logit(0))[1]
    _, attentions, outputs = equations.vit_by_hand(split.model, images)
    block = split.model.encoder.layers[1]

    def score(attention: Tensor) -> Tensor:
        weights = block.self_attention.in_proj_weight.chunk(3)[2], block.self_attention.in_proj_bias.chunk(3)[2]
        value = (block.ln_1(outputs[0]) @ weights[0].T + weights[1]).unflatten(2, (2, 4)).transpose(1, 2)
        mixed = block.self_attention.out_proj((attention @ value).transpose(1, 2).flatten(2)) + outputs[0]
        return split.model.heads(split.model.encoder.ln(mixed + block.mlp(block.ln_2(mixed)))[:, 0])[0, 0]

    step = 1e-6 * torch.randn_like(attentions[1])
    with torch.no_grad():
        change = score(attentions[1] + step) - score(attentions[1] - step)
    torch.testing.assert_close(change, 2 * (gradient * step).sum(), rtol=1e-5, atol=1e-12)


def test_le_grad_averages_positive_gradients_over_heads_queries_and_blocks() -> None:
    blocks = [torch.randn(2, 3, 7, 7, dtype=torch.float64) for _ in range(4)]
    maps, _ = equations.le_grad(blocks, (2, 3))
    torch.testing.assert_close(maps.flatten(1), torch.stack(blocks).relu().mean((0, 2, 3))[:, 1:])
    assert equations.le_grad(blocks, (1, 5), prefix=2)[0].shape == (2, 1, 5)


@settings(max_examples=40, deadline=None)
@given(drawn=cnns(activations=RELUS), data=st.data())
def test_full_gradients_of_every_piecewise_linear_network_sum_to_the_score(drawn: Drawn, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, drawn.classes - 1))
    parts = equations.full_gradients(drawn.model, drawn.images, logit(target))
    score = logit(target)(drawn.model(drawn.images)).detach()
    torch.testing.assert_close(equations.completeness(parts), score, rtol=1e-10, atol=1e-10)


def test_full_gradients_are_incomplete_without_the_biases_or_with_other_activations() -> None:
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    relu = networks.small_cnn().double().eval()
    whole, biases = equations.full_gradients(relu, images, logit(0))
    score = relu(images)[:, 0].detach()
    assert set(biases) == {"0", "2", "6"}
    assert ((whole.flatten(1).sum(1) - score).abs() > 1e-3).all()
    relu[3] = nn.SiLU()
    gap = equations.completeness(equations.full_gradients(relu, images, logit(0))) - relu(images)[:, 0].detach()
    assert (gap.abs() > 1e-3).all()


def test_full_grad_adds_each_channels_own_picture() -> None:
    images = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    model = networks.small_cnn().double().eval()
    whole, biases = equations.full_gradients(model, images, logit(1))
    expected = torch.zeros(2, 8, 6, dtype=torch.float64)
    for part in (whole, biases["0"], biases["2"]):
        size = part.abs()
        low, high = size.amin((2, 3), keepdim=True), size.amax((2, 3), keepdim=True)
        expected += torch.where(high > low, (size - low) / (high - low), 0.0).sum(1)
    for psi in (equations.psi_paper, equations.psi_resize_first):
        torch.testing.assert_close(equations.full_grad((whole, biases), psi)[0], expected)


@settings(max_examples=25, deadline=None)
@given(drawn=cnns(activations=RELUS))
def test_guided_gradient_is_what_hooks_make_of_every_relu(drawn: Drawn) -> None:
    guided = equations.guided_gradient(drawn.model, drawn.images, logit(0))
    for module in drawn.model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(lambda _, grads, __: (grads[0].clamp(min=0),))
    leaf = drawn.images.clone().requires_grad_()
    (hooked,) = torch.autograd.grad(drawn.model(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(guided, hooked)


def test_guided_gradient_drops_negative_gradients_at_each_relu() -> None:
    """x -> ReLU(x), ReLU(-x), added with weights 1 and -1: the plain gradient is 1 everywhere."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0], [-1.0]]).double()
    model[2].weight.data = torch.tensor([[1.0, -1.0]]).double()
    inputs = torch.tensor([[2.0], [-2.0]]).double()
    guided = equations.guided_gradient(model, inputs, logit(0))
    torch.testing.assert_close(guided, torch.tensor([[1.0], [0.0]]).double())


def test_guided_grad_cam_masks_the_guided_gradient() -> None:
    guided, maps = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    upsampled = nn.functional.interpolate(maps.relu()[None], (6, 6), mode="bilinear")[0]
    torch.testing.assert_close(equations.guided_grad_cam(guided, maps)[0], guided.abs().sum(1) * upsampled)


def test_sobel_is_the_slope_and_the_gaussian_is_centred() -> None:
    ramp = torch.arange(5.0).expand(1, 3, 4, 5)
    expected = torch.full((1, 4, 5), 8.0, dtype=torch.float64)
    expected[:, :, [0, -1]] = 0
    torch.testing.assert_close(equations.sobel(ramp)[0], expected)
    torch.testing.assert_close(equations.sobel(ramp.transpose(2, 3))[0], expected.transpose(1, 2))
    picture = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).double()
    padded = nn.functional.pad(picture, (1, 1, 1, 1), mode="reflect")
    slopes = nn.functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    torch.testing.assert_close(equations.sobel(picture)[0], slopes.square().sum(1).sqrt())

    gaussian = equations.center_gaussian(8, 5)
    torch.testing.assert_close(gaussian, gaussian.flip(0, 1))
    assert gaussian.argmax() in (3 * 5 + 2, 4 * 5 + 2)
    torch.testing.assert_close(equations.center_gaussian(9, 9)[4, 4].item(), 1.0)
    torch.testing.assert_close(equations.center_gaussian(9, 9)[0, 4].item(), float(np.exp(-((4 / 2.25) ** 2) / 2)))


@pytest.mark.parametrize(
    ("network", "shape"), [(networks.signal_cnn, (2, 2, 11)), (networks.volume_cnn, (2, 1, 4, 5, 6))]
)
def test_signals_and_volumes_have_the_same_equations(
    network: Callable[[], nn.Sequential], shape: tuple[int, ...]
) -> None:
    model = network().double().eval()
    split = oracles.sequential_split(model, 3)
    images = torch.randn(shape, dtype=torch.float64)
    a, g = split.activations_and_gradients(images, logit(0))
    expected, scale = equations.grad_cam(a, g)
    assert expected.shape == (2, *shape[2:])
    oracles.assert_close(equations.x_grad_cam(a, g)[0], expected, scale, 1e-12)
    evidence = equations.hires_cam(a, g)[0].flatten(1).sum(1)
    torch.testing.assert_close(evidence, model(images)[:, 0].detach() - model[6].bias[0].detach())
    for oracle in (equations.grad_cam_plus_plus, equations.layer_cam, equations.eigen_grad_cam):
        assert oracle(a, g)[0].shape == expected.shape
    for oracle in (equations.eigen_cam, equations.kpca_cam, equations.fem):
        assert oracle(a)[0].shape == expected.shape
    parts = equations.full_gradients(model, images, logit(0))
    torch.testing.assert_close(equations.completeness(parts), model(images)[:, 0].detach())


# Perturbations --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 6)] * 4))
def test_resizing_one_dimension_after_the_other_is_bilinear(grid: tuple[int, int, int, int]) -> None:
    image = np.random.default_rng(0).normal(size=grid[:2])
    expected = equations.resize_bilinear(image, grid[2:])
    np.testing.assert_allclose(equations.resize_linear(image, grid[2:]), expected, atol=1e-14)


def test_resizing_of_signals_and_volumes_is_torchs_linear_and_trilinear() -> None:
    for shape, size, mode in (((4,), (7,), "linear"), ((2, 3, 4), (5, 3, 9), "trilinear")):
        values = torch.randn(1, 1, *shape, dtype=torch.float64)
        expected = nn.functional.interpolate(values, size, mode=mode)[0, 0]
        torch.testing.assert_close(torch.from_numpy(equations.resize_linear(values[0, 0].numpy(), size)), expected)


def total(images: Tensor) -> float:
    return float(images.sum())


TWO_CHANNELS = torch.tensor([[[0.0, 2.0]], [[3.0, 3.0]]], dtype=torch.float64)
"""Masks (0, 1) and, of the constant channel, (0, 0)."""
TWO_PIXELS = torch.tensor([[[5.0, 1.0]]], dtype=torch.float64)


def test_score_cam_weighs_channels_by_the_softmax_of_the_masked_scores() -> None:
    """The scores are 1 and 0."""
    e = np.e
    maps, scale = equations.score_cam(TWO_CHANNELS, TWO_PIXELS, total)
    expected = torch.tensor([[3.0, 2 * e + 3]], dtype=torch.float64) / torch.tensor([[1 + e, 1 + e]])
    torch.testing.assert_close(maps, expected.double())
    torch.testing.assert_close(scale, maps)
    torch.testing.assert_close(equations.score_cam(TWO_CHANNELS, TWO_PIXELS, total, channels=1)[0], TWO_CHANNELS[0])


def test_ss_cam_without_noise_and_is_cam_of_one_step_are_score_cam() -> None:
    expected, scale = equations.score_cam(TWO_CHANNELS, TWO_PIXELS, total)
    noise = torch.tensor([[[1.0, -1.0]], [[-3.0, 4.0]]], dtype=torch.float64)
    oracles.assert_close(
        equations.ss_cam(TWO_CHANNELS, TWO_PIXELS, total, noise, sigma=0.0)[0][None], expected[None], scale[None], 1e-12
    )
    oracles.assert_close(
        equations.is_cam(TWO_CHANNELS, TWO_PIXELS, total, samples=1)[0][None], expected[None], scale[None], 1e-12
    )


def test_ss_cam_averages_scores_of_noisy_masks_and_is_cam_of_fractions() -> None:
    """Scores of noise that a linear score cannot cancel: squares. IS-CAM's of (0, 1) in two steps: (1/4 + 1) / 2."""

    def energy(images: Tensor) -> float:
        return float(images.square().sum())

    def weighted(first: float, second: float) -> Tensor:
        weights = torch.tensor([first, second], dtype=torch.float64).softmax(0)
        return torch.einsum("k,kij->ij", weights, TWO_CHANNELS)

    noise = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    found = equations.ss_cam(TWO_CHANNELS, TWO_PIXELS, energy, noise, sigma=0.5)[0]
    first = (25 * 0.25 + 1) + (1.5**2)
    torch.testing.assert_close(found, weighted(first / 2, (25 * 0.25 + 0.25) / 2))
    torch.testing.assert_close(
        equations.is_cam(TWO_CHANNELS, TWO_PIXELS, energy, samples=2)[0], weighted((0.25 + 1) / 2, 0.0)
    )


def test_ablation_cam_weighs_channels_by_what_the_score_loses() -> None:
    """s = 2 + 6 = 8 without the first channel 6, without the second 2; of the negated score -1/4 and -3/4."""
    maps, scale = equations.ablation_cam(TWO_CHANNELS, total)
    expected = TWO_CHANNELS[0] / 4 + TWO_CHANNELS[1] * 3 / 4
    torch.testing.assert_close(maps, expected)
    assert (scale >= maps).all()
    torch.testing.assert_close(equations.ablation_cam(TWO_CHANNELS, lambda f: -total(f))[0], -expected)
    assert equations.ablation_cam(TWO_CHANNELS, lambda _: 0.0)[0].abs().max() == 0


def test_random_masks_are_crops_of_an_enlarged_grid() -> None:
    grid = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    enlarged = nn.functional.interpolate(grid[None, None].double(), (9, 6), mode="bilinear")[0, 0]
    torch.testing.assert_close(equations.random_mask(grid, (2, 1), (5, 4)), enlarged[2:7, 1:5])


def test_rise_is_the_mean_score_where_a_pixel_shows_less_that_of_all() -> None:
    """Masks of one pixel each: their scores 5 and 1, less 3. A pixel that no mask shows has no evidence."""
    masks = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]], dtype=torch.float64)
    image = torch.tensor([[[5.0, 1.0, 7.0]]], dtype=torch.float64)
    torch.testing.assert_close(equations.rise(masks, image, total)[0], torch.tensor([[2.0, -2.0, 0.0]]).double())


def test_occlusion_is_what_the_windows_over_a_pixel_cost_on_average() -> None:
    image = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]], dtype=torch.float64)
    assert equations.window_offsets(4, 2, 2) == [0, 2]
    assert equations.window_offsets(5, 2, 2) == [0, 2, 3]
    assert equations.window_offsets(4, 4, 1) == [0]
    found, scale = equations.occlusion(image, total, window=(1, 2), stride=(1, 1))
    torch.testing.assert_close(found, torch.tensor([[3.0, 4.5, 9.0, 12.0]]).double())
    assert (scale >= found).all()
    ones = equations.occlusion(image, total, window=(1, 1), stride=(1, 1), baseline=1.0)[0]
    torch.testing.assert_close(ones, torch.tensor([[0.0, 1.0, 3.0, 7.0]]).double())
