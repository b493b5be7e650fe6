"""The papers' equations in float64, restated as naively as they can be: loops over images, channels and positions.

Nothing here imports camlib. Unless it says otherwise, a function takes A and G, (N, C, *grid) with any number of
spatial dimensions, and returns the map before its final ReLU, (N, *grid), and the scale of its rounding errors,
(N, *grid): sum_k |w_k A_k|, or more where the weights themselves are differences of larger numbers. A
function is named after its method; ``breaks`` says which laws the method breaks, and why.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray
MapsAndScale = tuple[Tensor, Tensor]
Score = Callable[[Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., object])

BROKEN_LAWS: dict[tuple[str, str], str] = {}
"""By method and law of ``methods/test_laws.py``: why the method breaks it. A method obeys every other law."""


def breaks(**reasons: str) -> Callable[[Function], Function]:
    """Name the laws that the method of this equation breaks, each with its reason."""

    def register(equation: Function) -> Function:
        BROKEN_LAWS.update({(equation.__name__, law): reason for law, reason in reasons.items()})
        return equation

    return register


def assert_close(maps: Tensor, expected: Tensor, scale: Tensor, tolerance: float) -> None:
    """Compare maps relative to sum_k |w_k A_k|: the maps themselves may cancel."""
    assert maps.shape == expected.shape
    error = (maps.double() - expected).abs()
    bound = tolerance * scale.flatten(1).amax(1).view(-1, *[1] * (scale.dim() - 1))
    assert (error <= bound).all(), f"error {error.max():.3g}, allowed {bound.min():.3g}"


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()


def _over_channels(products: Array, sizes: Array | None = None) -> MapsAndScale:
    """Sum (N, C, *grid) over the channels; ``sizes`` are the sizes of what was subtracted to get the products."""
    sizes = products if sizes is None else sizes
    return torch.from_numpy(products.sum(1)), torch.from_numpy(np.abs(sizes).sum(1))


# Gradient methods: maps of A and G ------------------------------------------------------------------------------------


def grad_cam(activations: Tensor, gradients: Tensor) -> MapsAndScale:
    """Selvaraju 2017, equations 1 and 2: alpha_k is the mean of G_k over positions; the map is sum_k alpha_k A_k."""
    a, g = _array(activations), _array(gradients)
    products = np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            alpha = 0.0
            for position in np.ndindex(a.shape[2:]):
                alpha += g[n, k][position] / a[n, k].size
            products[n, k] = alpha * a[n, k]
    return _over_channels(products)


@breaks(logits="its score is the exponential of the logit: test_laws.py has the limits")
def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> MapsAndScale:
    """Chattopadhyay 2018, equation 19 with Y = exp(S), whose derivatives are exp(S) G, exp(S) G^2 and exp(S) G^3.

    alpha_ij = G^2 / (2 G^2 + sum_ab A_ab G^3), exp(S) cancelling, and w = sum_ij alpha_ij ReLU(G). The factor exp(S)
    that w keeps is one positive number for each image, and left out. Where G = 0, ReLU(G) is 0 too.
    """
    a, g = _array(activations), _array(gradients)
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            weight = size = 0.0
            for position in np.ndindex(a.shape[2:]):
                d = g[n, k][position]
                if d > 0:
                    denominator = 2 * d**2 + a[n, k].sum() * d**3
                    weight += d**2 / denominator * d
                    condition = (2 * d**2 + np.abs(a[n, k]).sum() * d**3) / abs(denominator)
                    size += d**2 / abs(denominator) * d * condition
            products[n, k], sizes[n, k] = weight * a[n, k], size * a[n, k]
    return _over_channels(products, sizes)


@breaks(logits="as Grad-CAM++", shift="the noise stays where it is", mirror="the noise is not mirrored")
def smooth_grad_cam_plus_plus(activations: Tensor, gradients: Sequence[Tensor]) -> MapsAndScale:
    """Omeiza 2019: Grad-CAM++ of the clean A, with derivatives averaged over the noisy samples' G, G^2 and G^3.

    ``gradients`` has one (N, C, *grid) per noisy sample. Where every sample's G is 0, the position adds nothing.
    """
    a = _array(activations)
    samples = [_array(g) for g in gradients]
    first = sum(samples) / len(samples)
    second = sum(g**2 for g in samples) / len(samples)
    third = sum(g**3 for g in samples) / len(samples)
    third_size = sum(np.abs(g) ** 3 for g in samples) / len(samples)
    first_size = sum(np.abs(g) for g in samples) / len(samples)
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            weight = size = 0.0
            for p in np.ndindex(a.shape[2:]):
                d1, d2, d3 = first[n, k][p], second[n, k][p], third[n, k][p]
                if d2 > 0:
                    denominator = 2 * d2 + a[n, k].sum() * d3
                    weight += d2 / denominator * max(d1, 0.0)
                    condition = (2 * d2 + np.abs(a[n, k]).sum() * third_size[n, k][p]) / abs(denominator)
                    size += d2 / abs(denominator) * first_size[n, k][p] * condition
            products[n, k], sizes[n, k] = weight * a[n, k], size * a[n, k]
    return _over_channels(products, sizes)


def pole_distance(activations: Tensor, gradients: Tensor | Sequence[Tensor]) -> float:
    """Return how near Grad-CAM++ (or, of several samples, its smooth form) comes to its pole: 0 at it, 1 for A >= 0.

    It is the smallest |2 D2 + D3 sum A| / (2 D2 + |D3| |sum A|) over the positions that count.
    """
    samples = [gradients] if isinstance(gradients, Tensor) else gradients
    a = _array(activations)
    first, second, third = (sum(_array(g) ** power for g in samples) / len(samples) for power in (1, 2, 3))
    nearest = 1.0
    for n in range(len(a)):
        for k in range(a.shape[1]):
            for p in np.ndindex(a.shape[2:]):
                d2, shift = 2 * second[n, k][p], third[n, k][p] * a[n, k].sum()
                if first[n, k][p] > 0:
                    nearest = min(nearest, abs(d2 + shift) / (d2 + abs(shift)))
    return nearest


def x_grad_cam(activations: Tensor, gradients: Tensor) -> MapsAndScale:
    """Fu 2020: w_k = sum_ij (A_ij / sum_ab A_ab) G_ij; no weight where the channel sums to 0."""
    a, g = _array(activations), _array(gradients)
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            total = a[n, k].sum()
            if total != 0:
                weight = size = 0.0
                for position in np.ndindex(a.shape[2:]):
                    weight += a[n, k][position] / total * g[n, k][position]
                    size += abs(a[n, k][position] / total * g[n, k][position])
                products[n, k] = weight * a[n, k]
                sizes[n, k] = size * np.abs(a[n, k]).sum() / abs(total) * a[n, k]
    return _over_channels(products, sizes)


def hires_cam(activations: Tensor, gradients: Tensor, pool: int = 1) -> MapsAndScale:
    """Draelos 2020: sum_k G_k A_k, position by position; Hasany 2023: G_k as the mean over the window around it."""
    a, g = _array(activations), _array(gradients)
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for n, k, *position in np.ndindex(a.shape):
        window = g[(n, k, *(slice(i // pool * pool, i // pool * pool + pool) for i in position))]
        products[(n, k, *position)] = window.mean() * a[(n, k, *position)]
        sizes[(n, k, *position)] = np.abs(window).mean() * a[(n, k, *position)]
    return _over_channels(products, sizes)


def grad_cam_element_wise(activations: Tensor, gradients: Tensor) -> MapsAndScale:
    """Pillai 2021: sum_k ReLU(G_k A_k), position by position."""
    a, g = _array(activations), _array(gradients)
    products = np.zeros_like(a)
    for index in np.ndindex(a.shape):
        products[index] = max(g[index] * a[index], 0.0)
    return _over_channels(products)


def layer_cam(activations: Tensor, gradients: Tensor) -> MapsAndScale:
    """Jiang 2021: sum_k ReLU(G_k) A_k, position by position."""
    a, g = _array(activations), _array(gradients)
    products = np.zeros_like(a)
    for index in np.ndindex(a.shape):
        products[index] = max(g[index], 0.0) * a[index]
    return _over_channels(products)


# Activation methods ---------------------------------------------------------------------------------------------------


def cam(activations: Tensor, weights: Tensor) -> MapsAndScale:
    """Zhou 2016: sum_k w_k A_k; ``weights`` (N, C) are each image's row of the linear head."""
    a, w = _array(activations), _array(weights)
    products = np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            products[n, k] = w[n, k] * a[n, k]
    return _over_channels(products)


def correlation(projection: Array, reference: Array) -> float:
    """Pearson's; 0 where one of them is constant."""
    p, r = projection - projection.mean(), reference - reference.mean()
    size = np.sqrt((p**2).sum() * (r**2).sum())
    return 0.0 if size == 0 else float((p * r).sum() / size)


def mean_channel(matrix: Array) -> Array:
    """Average (positions x C) over the channels; those that cancel, as behind a LayerNorm, leave zeros, no rounding."""
    mean = matrix.mean(1)
    return np.zeros_like(mean) if np.ptp(mean) <= 1e-12 * np.abs(matrix).max() else mean


def oriented(projection: Array, reference: Array) -> Array:
    """Fix the sign: positive Pearson correlation with the reference; where there is none, as towards the extremum."""
    if np.ptp(projection) <= 1e-12 * np.abs(projection).max():
        return np.abs(projection)
    one_sign = min(projection.max(), -projection.min()) <= 1e-12 * np.abs(projection).max()
    if one_sign and correlation(projection, reference):  # it has a level, and so has the reference
        return projection if projection.sum() * reference.sum() > 0 else -projection
    alike = correlation(projection, reference) or projection.min() + projection.max()
    return -projection if alike < 0 else projection


def with_positive_sum(projection: Array, reference: Array) -> Array:
    """Fix the sign: the sum is positive; as :func:`oriented` where it is zero, as that of centred features."""
    total = projection.sum()
    if abs(total) <= 1e-12 * np.abs(projection).sum():
        return oriented(projection, reference)
    return -projection if total < 0 else projection


def towards_the_extremum(projection: Array, _: Array) -> Array:
    """Chung 2025's sign, equation 13: the value of the largest size is positive, in constant maps too."""
    return -projection if projection.min() + projection.max() < 0 else projection


@breaks(units="a channel in small units has no part in the first component")
def eigen_cam(
    activations: Tensor, *, center: bool = False, sign: Callable[[Array, Array], Array] = with_positive_sum
) -> MapsAndScale:
    """Muhammad 2020: the (positions x C) matrix of each image times its first right-singular vector, by a full SVD.

    ``center`` subtracts each channel's mean first. The paper has no sign; see :func:`with_positive_sum`.
    """
    a = _array(activations)
    maps, scale = np.zeros_like(a[:, 0]), np.zeros_like(a[:, 0])
    for n in range(len(a)):
        matrix = a[n].reshape(a.shape[1], -1).T
        reference = mean_channel(matrix)
        if center:
            matrix = matrix - matrix.mean(0)
        right = np.linalg.svd(matrix, full_matrices=False)[2][0]
        maps[n] = sign(matrix @ right, reference).reshape(a.shape[2:])
        scale[n] = (np.abs(matrix) @ np.abs(right)).reshape(a.shape[2:])
    return torch.from_numpy(maps), torch.from_numpy(scale)


def eigen_grad_cam(activations: Tensor, gradients: Tensor, *, center: bool = False) -> MapsAndScale:
    """EigenCAM of G A, element by element; the sign follows the channels' mean of G A."""
    return eigen_cam(activations.double() * gradients.double(), center=center, sign=oriented)


def seg_eigen_cam(activations: Tensor, gradients: Tensor, *, center: bool = False) -> MapsAndScale:
    """Chung 2025, equations 10 to 13: EigenCAM of |G| A, with the sign of :func:`towards_the_extremum`."""
    return eigen_cam(activations.double() * gradients.double().abs(), center=center, sign=towards_the_extremum)


def singular_gap(features: Tensor, *, center: bool = False) -> float:
    """Return the smallest sigma1 / sigma2 of the images' (positions x C) matrices: near 1 the first vector is anyone's.

    Infinity where there is no second; 1 where the matrix is zero.
    """
    gaps = []
    for image in _array(features):
        matrix = image.reshape(len(image), -1).T
        sigma = np.linalg.svd(matrix - matrix.mean(0) if center else matrix, compute_uv=False)
        if sigma[0] == 0:
            gaps.append(1.0)
        else:
            gaps.append(sigma[0] / sigma[1] if len(sigma) > 1 and sigma[1] > 0 else np.inf)
    return float(min(gaps))


def orientation(maps: Tensor, features: Tensor) -> float:
    """Return the smallest |correlation| of the images' maps with the channels' mean: near 0 the sign is anyone's.

    Where one of them is constant, the smallest :func:`extremum_margin`.
    """
    margins = []
    for image, channels in zip(_array(maps), _array(features), strict=True):
        reference = mean_channel(channels.reshape(len(channels), -1).T)
        margins.append(abs(correlation(image.flatten(), reference)) or extremum_margin(torch.from_numpy(image)[None]))
    return min(margins)


def sum_margin(maps: Tensor) -> float:
    """Return the smallest |sum| / sum|.| of the maps: near 0 :func:`with_positive_sum` is anyone's."""
    return min(abs(image.sum()) / max(np.abs(image).sum(), 1e-300) for image in _array(maps))


def extremum_margin(maps: Tensor) -> float:
    """Return the smallest |max + min| / max|.| of the maps: near 0 :func:`towards_the_extremum` is anyone's."""
    return min(abs(image.max() + image.min()) / max(np.abs(image).max(), 1e-300) for image in _array(maps))


def spread(matrix: Array) -> float:
    """Variance of (positions x C) features, summed over the channels; 1 where they do not vary."""
    return float(matrix.var(0).sum()) or 1.0


@breaks(units="a channel in small units has no part in how far features are apart")
def kpca_cam(activations: Tensor, *, kernel: str = "rbf", gamma: float | None = None) -> MapsAndScale:
    """First kernel principal component of each image's (positions x C) matrix, by scikit-learn.

    The component is scikit-learn's: the first eigenvector of the doubly centred kernel matrix times the square root of
    its eigenvalue. The sign is that of :func:`oriented` to the channels' mean. Gamma is 1 / :func:`spread` if None.
    """
    from sklearn.decomposition import KernelPCA  # takes seconds to import, and few tests need it

    a = _array(activations)
    maps, scale = np.zeros_like(a[:, 0]), np.zeros_like(a[:, 0])
    for n in range(len(a)):
        matrix = a[n].reshape(a.shape[1], -1).T
        pca = KernelPCA(n_components=1, kernel=kernel, gamma=gamma or 1 / spread(matrix), eigen_solver="dense")
        component = pca.fit_transform(matrix)[:, 0]
        maps[n] = oriented(component, mean_channel(matrix)).reshape(a.shape[2:])
        scale[n] = np.abs(component).max()
    return torch.from_numpy(maps), torch.from_numpy(scale)


def kernel_gap(activations: Tensor, *, gamma: float | None = None) -> float:
    """Return the smallest (lambda1 - lambda2) / positions of the images' centred RBF kernels, as :func:`kpca_cam`.

    The kernel's values are at most 1: near 0 rounding decides the component.
    """
    gaps = []
    for image in _array(activations):
        matrix = image.reshape(len(image), -1).T
        apart = ((matrix[:, None] - matrix[None]) ** 2).sum(2)
        center = np.eye(len(matrix)) - 1 / len(matrix)
        values = np.linalg.eigvalsh(center @ np.exp(-(gamma or 1 / spread(matrix)) * apart) @ center)
        gaps.append((values[-1] - (values[-2] if len(values) > 1 else 0)) / len(values))
    return float(min(gaps))


@breaks(units="channels are summed by their means")
def fem(activations: Tensor, *, k: float = 2.0) -> MapsAndScale:
    """Fuad 2020: sum over channels of mean(A_k) [A_k >= mean + k std], with the population's standard deviation.

    Of activations that are not negative, as in the paper; otherwise with the sign that makes the map's sum positive.
    """
    a = _array(activations)
    products = np.zeros_like(a)
    for n in range(len(a)):
        for c in range(a.shape[1]):
            mean = a[n, c].sum() / a[n, c].size
            deviation = np.sqrt(((a[n, c] - mean) ** 2).sum() / a[n, c].size)
            products[n, c] = mean * (a[n, c] >= mean + k * deviation)
        products[n] *= -1 if products[n].sum() < 0 else 1
    return _over_channels(products)


def fem_margin(activations: Tensor, *, k: float = 2.0) -> float:
    """Return the smallest |A - threshold| / max|A_k| over channels that are not zero: near 0 rounding decides the mask.

    A constant channel meets its threshold exactly, and so does one that has a single positive value among five.
    """
    a = _array(activations)
    margins = [np.inf]
    for n in range(len(a)):
        for c in range(a.shape[1]):
            if (largest := np.abs(a[n, c]).max()) > 0:
                margins.append(np.abs(a[n, c] - a[n, c].mean() - k * a[n, c].std()).min() / largest)
    return float(min(margins))


def deep_feature_factorization(activations: Tensor, concepts: int) -> tuple[Tensor, Tensor, float]:
    """Collins 2018: factor the (N * positions x C) matrix of A >= 0 into non-negative W and H, by scikit-learn.

    Returns the concept maps W, (N, concepts, *grid), the concepts H, (concepts, C), and the relative error of the
    reconstruction, ||A - W H|| / ||A||. The factorisation is not unique: compare errors, and W H where it is exact.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    a = np.moveaxis(_array(activations), 1, -1)
    matrix = a.reshape(-1, a.shape[-1])
    factors = NMF(concepts, init="nndsvda", tol=1e-10, max_iter=5000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        left = factors.fit_transform(matrix)
    error = np.linalg.norm(matrix - left @ factors.components_) / np.linalg.norm(matrix)
    maps = np.moveaxis(left.reshape(*a.shape[:-1], concepts), -1, 1)
    return torch.from_numpy(maps.copy()), torch.from_numpy(factors.components_), float(error)


def least_factorization_error(activations: Tensor, rank: int) -> float:
    """Return the relative error of the best factorisation of any sign (Eckart and Young), which bounds every other."""
    a = np.moveaxis(_array(activations), 1, -1)
    sigma = np.linalg.svd(a.reshape(-1, a.shape[-1]), compute_uv=False)
    return float(np.sqrt((sigma[rank:] ** 2).sum() / (sigma**2).sum()))


# Methods that need the tail -------------------------------------------------------------------------------------------


def _same(features: Tensor) -> Tensor:
    return features


def shapley_cam(
    tail: Callable[[Tensor], Tensor], activations: Tensor, score: Score, *, to_grid: Callable[[Tensor], Tensor] = _same
) -> MapsAndScale:
    """Cai 2025: w_k = mean_ij(G - H A / 2), with the whole Hessian H of the score with respect to A. Keep A tiny.

    ``score(tail(a))`` is of one image, (1,); ``to_grid`` turns the layer's own layout into (N, C, *grid).
    """
    products, sizes = [], []
    for image in activations.detach().double():

        def of_image(a: Tensor) -> Tensor:
            return score(tail(a[None].clone())).sum()

        gradient = torch.autograd.functional.jacobian(of_image, image)
        hessian = torch.autograd.functional.hessian(of_image, image)
        curvature = (hessian.reshape(image.numel(), image.numel()) @ image.flatten()).reshape(image.shape)
        a, g, h = (_array(to_grid(tensor[None])[0]) for tensor in (image, gradient, curvature))
        product, size = np.zeros_like(a), np.zeros_like(a)
        for k in range(len(a)):
            product[k] = (g[k] - h[k] / 2).mean() * a[k]
            size[k] = (np.abs(g[k]) + np.abs(h[k]) / 2).mean() * a[k]
        products.append(product)
        sizes.append(size)
    return _over_channels(np.stack(products), np.stack(sizes))


def finer_score(outputs: Tensor, target: Sequence[int], *, gamma: float = 0.6, references: int = 3) -> Tensor:
    """Zhang 2025: s_c - gamma mean_d s_d over the classes d != c whose logits are nearest to s_c; (N,).

    The mean of s_c - gamma s_d over d, which is the same. With fewer other classes than ``references``, all of them.
    """
    scores = []
    for row, c in zip(outputs, target, strict=True):
        others = [d for d in range(len(row)) if d != c]
        others.sort(key=lambda d: abs(row[d].item() - row[c].item()))
        nearest = others[:references]
        scores.append(sum(row[c] - gamma * row[d] for d in nearest) / len(nearest))
    return torch.stack(scores)


@breaks(classes="the new class may be the nearest")
def finer_cam(
    tail: Callable[[Tensor], Tensor],
    activations: Tensor,
    target: Sequence[int],
    *,
    gamma: float = 0.6,
    references: int = 3,
) -> MapsAndScale:
    """Grad-CAM of :func:`finer_score`."""
    leaf = activations.detach().clone().requires_grad_()
    finer_score(tail(leaf.clone()), target, gamma=gamma, references=references).sum().backward(inputs=[leaf])
    assert leaf.grad is not None
    return grad_cam(activations, leaf.grad)


def resize_bilinear(image: Array, size: tuple[int, int]) -> Array:
    """Bilinear with half-pixel centres, the border repeated outside; (h, w) to ``size``, no antialiasing."""

    def source(index: int, old: int, new: int) -> tuple[int, int, float]:
        at = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1)
        low = int(at)
        return low, min(low + 1, old - 1), at - low

    result = np.zeros(size)
    for i in range(size[0]):
        top, bottom, down = source(i, image.shape[0], size[0])
        for j in range(size[1]):
            left, right, along = source(j, image.shape[1], size[1])
            above = (1 - along) * image[top, left] + along * image[top, right]
            below = (1 - along) * image[bottom, left] + along * image[bottom, right]
            result[i, j] = (1 - down) * above + down * below
    return result


def minmax(image: Array) -> Array:
    """To [0, 1]; a constant one to 0."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


@breaks(logits="as Grad-CAM++")
def refine_cam(layers: Sequence[tuple[Tensor, Tensor]]) -> MapsAndScale:
    """Domeniconi 2026: the product over layers, each an (A, G), of Grad-CAM++ maps, on the finest layer's (h, w).

    Each layer's map is ReLU'd, resized, then min-maxed: camlib's order for every fusion (the map is in [0, 1] on the
    grid where it is multiplied); the authors' code min-maxes first.
    """
    finest = max((a.shape[2:] for a, _ in layers), key=lambda grid: grid[0] * grid[1])
    images = len(layers[0][0])
    product, scale = np.ones((images, *finest)), np.zeros((images, *finest))
    for activations, gradients in layers:
        maps, sizes = grad_cam_plus_plus(activations, gradients)
        for n in range(images):
            resized = resize_bilinear(np.maximum(maps[n].numpy(), 0), (finest[0], finest[1]))
            product[n] *= minmax(resized)
            spread = resized.max() - resized.min()
            scale[n] += sizes[n].max().item() / spread if spread > 0 else 1.0
    return torch.from_numpy(product), torch.from_numpy(scale)


# Attention ------------------------------------------------------------------------------------------------------------


def le_grad(gradients: Sequence[Tensor], grid: tuple[int, int], *, prefix: int = 1) -> MapsAndScale:
    """Bousselham 2024: per block ReLU(d s / d attention), mean over heads and queries; mean over blocks; the patches.

    ``gradients`` has one (N, heads, queries, keys) per block; every query counts, the class token's too, and the first
    ``prefix`` keys are dropped. The paper's s is each block's own: the head on the mean of that block's tokens
    (:func:`le_grad_layer_gradients`); d of the final score is :func:`vit_attention_gradients`.
    """
    blocks = [_array(g) for g in gradients]
    images, heads, queries, keys = blocks[0].shape
    relevance = np.zeros((images, keys))
    for block in blocks:
        for n in range(images):
            for h in range(heads):
                for q in range(queries):
                    relevance[n] += np.maximum(block[n, h, q], 0) / (heads * queries * len(blocks))
    maps = torch.from_numpy(relevance[:, prefix:].reshape(images, *grid))
    return maps, maps.abs()


def generic_attention(
    blocks: Sequence[tuple[Tensor, Tensor]], grid: tuple[int, int], rows: Sequence[Sequence[int]], *, prefix: int = 1
) -> MapsAndScale:
    """Chefer 2021, equations 5 and 6, for blocks of (A, d s / d A), each (N, heads, tokens, tokens).

    The paper reads the row of the class token; here the mean over ``rows`` of each image, without the identity, and
    without the first ``prefix`` columns.
    """
    images, _, _, tokens = blocks[0][0].shape
    maps = np.zeros((images, tokens))
    for n in range(images):
        relevance = np.eye(tokens)
        for a, g in blocks:
            relevance = relevance + _positive(a, g, n) @ relevance
        for row in rows[n]:
            maps[n] += (relevance - np.eye(tokens))[row] / len(rows[n])
    found = torch.from_numpy(maps[:, prefix:].reshape(images, *grid))
    return found, found.abs()


def _positive(attention: Tensor, gradient: Tensor, n: int) -> Array:
    """Equation 5 for one image: the mean over the heads of the positive part of gradient times attention."""
    a, g = _array(attention)[n], _array(gradient)[n]
    mean = np.zeros(a.shape[1:])
    for h in range(len(a)):
        for position in np.ndindex(mean.shape):
            mean[position] += max(g[h][position] * a[h][position], 0.0) / len(a)
    return mean


def generic_attention_of_decoder(
    encoder: Sequence[tuple[Tensor, Tensor]],
    decoder: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]],
    rows: Sequence[int],
) -> Tensor:
    """Chefer 2021, equations 5 to 10, for an encoder of the image and blocks of self- and cross-attention of queries.

    ``rows`` has each image's query. Returns (N, image tokens).
    """
    found = []
    for n, row in enumerate(rows):
        tokens, queries = encoder[0][0].shape[2], decoder[0][0][0].shape[2]
        of_image, of_queries, between = np.eye(tokens), np.eye(queries), np.zeros((queries, tokens))
        for block in encoder:
            of_image = of_image + _positive(*block, n) @ of_image
        for own, across in decoder:
            own_positive, positive = _positive(*own, n), _positive(*across, n)
            of_queries, between = of_queries + own_positive @ of_queries, between + own_positive @ between
            left, right = np.eye(queries), np.eye(tokens)
            for normalized, relevance in ((left, of_queries), (right, of_image)):
                added = relevance - np.eye(len(relevance))
                for i, sums in enumerate(added.sum(1)):
                    if sums > 0:
                        normalized[i] += added[i] / sums
            between = between + left.T @ positive @ right
        found.append(torch.from_numpy(between[row]))
    return torch.stack(found)


def attention_rollout(
    attention: Sequence[Tensor], grid: tuple[int, int], rows: Sequence[int], *, prefix: int = 1
) -> MapsAndScale:
    """Abnar and Zuidema 2020: the product over blocks of half the mean attention and half the identity; one row."""
    found = []
    for n, row in enumerate(rows):
        rollout = np.eye(attention[0].shape[3])
        for weights in attention:
            mean = sum(_array(head) for head in weights[n]) / weights.shape[1]
            rollout = (0.5 * mean + 0.5 * np.eye(len(mean))) @ rollout
        found.append(torch.from_numpy(rollout[row, prefix:].reshape(*grid)))
    maps = torch.stack(found)
    return maps, maps.abs()


def grad_eclip(
    output_gradient: Tensor, values: Tensor, query: Tensor, keys: Tensor, grid: tuple[int, int]
) -> MapsAndScale:
    """Zhao 2024: sum_c w_c lambda_i v_ic for the class token's w (N, C), q (N, C), and v and k (N, patches, C).

    w is the gradient with respect to the attention's output, lambda the cosine of q and k_i, in [0, 1] over patches.
    """
    w, v, q, k = (_array(one) for one in (output_gradient, values, query, keys))
    maps, scale = np.zeros(v.shape[:2]), np.zeros(v.shape[:2])
    for n in range(len(v)):
        cosines = [float(q[n] @ one / (np.sqrt(q[n] @ q[n]) * np.sqrt(one @ one))) for one in k[n]]
        for i, cosine in enumerate(cosines):
            weight = (cosine - min(cosines)) / (max(cosines) - min(cosines))
            for c in range(v.shape[2]):
                maps[n, i] += w[n, c] * weight * v[n, i, c]
                scale[n, i] += abs(w[n, c] * v[n, i, c])
    return torch.from_numpy(maps.reshape(-1, *grid)), torch.from_numpy(scale.reshape(-1, *grid))


def vit_attention(model: nn.Module, images: Tensor, score: Score) -> list[tuple[Tensor, Tensor]]:
    """Each block's attention and the gradient of the network's own score with respect to it."""
    logits, attentions, _ = vit_by_hand(model, images)
    return list(zip(attentions, torch.autograd.grad(score(logits).sum(), attentions), strict=True))


def vit_by_hand(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """torchvision's VisionTransformer with its attention written out.

    Returns the logits, and in the graph each block's softmaxed attention (N, heads, queries, keys) and tokens.
    """
    tokens = model.conv_proj(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(images), -1, -1), tokens], 1) + model.encoder.pos_embedding
    attentions, outputs = [], []
    for block in model.encoder.layers:
        mixer = block.self_attention
        packed = block.ln_1(tokens) @ mixer.in_proj_weight.T + mixer.in_proj_bias
        heads = [part.unflatten(2, (mixer.num_heads, -1)).transpose(1, 2) for part in packed.chunk(3, 2)]
        query, key, value = heads
        attention = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(3).requires_grad_()
        attentions.append(attention)
        tokens = tokens + mixer.out_proj((attention @ value).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.ln_2(tokens))
        outputs.append(tokens)
    return model.heads(model.encoder.ln(tokens)[:, 0]), attentions, outputs


def vit_attention_gradients(model: nn.Module, images: Tensor, score: Score) -> list[Tensor]:
    """Gradients of the network's own score with respect to each block's attention, for :func:`le_grad`."""
    logits, attentions, _ = vit_by_hand(model, images)
    return list(torch.autograd.grad(score(logits).sum(), attentions))


def le_grad_layer_gradients(model: nn.Module, images: Tensor, score: Score) -> list[Tensor]:
    """The paper's: of the score that the head gives the mean of each block's own tokens."""
    _, attentions, outputs = vit_by_hand(model, images)
    gradients = []
    for attention, tokens in zip(attentions, outputs, strict=True):
        logits = model.heads(model.encoder.ln(tokens.mean(1)))
        gradients += torch.autograd.grad(score(logits).sum(), attention, retain_graph=True)
    return gradients


def libra_grad(model: nn.Module, images: Tensor, target: Sequence[int]) -> MapsAndScale:
    """Mehri 2025: token times gradient, where each part's Jacobian is that of the part with constant factors.

    The Jacobian of each part is written out as a matrix, of all tokens together, (T C, T C). The model is
    ``SmallTransformer`` of ``methods/test_libra_grad.py``: attention with LayerNorm and LayerScale, a gated perceptron
    with RMSNorm, and a head that reads the class token after a LayerNorm. Its patches follow the class token.
    """
    maps, scales = [], []
    for image, label in zip(images, target, strict=True):
        x = first = _array(model.tokens(image[None]))[0]
        count, width = x.shape
        identity = np.eye(count * width)
        jacobian = identity
        for block in model.blocks:
            part, y = _attention_part(block, *_layer_norm_part(block.norm1, x))
            scale = np.kron(np.eye(count), np.diag(_array(block.scale)))
            x, jacobian = x + y * _array(block.scale), (identity + scale @ part) @ jacobian
            part, y = _gated_part(block, *_rms_norm_part(block.norm2, x))
            x, jacobian = x + y, (identity + part) @ jacobian
        part, _ = _layer_norm_part(model.norm, x)
        reads_class_token = np.kron(np.eye(count)[0], _array(model.head.weight)[label])
        gradient = (reads_class_token @ part @ jacobian).reshape(count, width)
        products = (first * gradient)[1:].reshape(*model.grid, width)
        maps.append(products.sum(-1))
        scales.append(np.abs(products).sum(-1))
    return torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(scales))


def _layer_norm_part(norm: nn.Module, x: Array) -> tuple[Array, Array]:
    """The Jacobian of a LayerNorm with a constant standard deviation, and its result."""
    (count, width), weight = x.shape, _array(norm.weight)
    jacobian, y = np.zeros((count, width, count, width)), np.zeros_like(x)
    for t in range(count):
        deviation = np.sqrt(x[t].var() + norm.eps)
        jacobian[t, :, t] = np.diag(weight) @ (np.eye(width) - 1 / width) / deviation
        y[t] = weight * (x[t] - x[t].mean()) / deviation + _array(norm.bias)
    return jacobian.reshape(count * width, -1), y


def _rms_norm_part(norm: nn.Module, x: Array) -> tuple[Array, Array]:
    """The same of an RMSNorm with a constant root mean square."""
    (count, width), weight = x.shape, _array(norm.weight)
    jacobian, y = np.zeros((count, width, count, width)), np.zeros_like(x)
    for t in range(count):
        root = np.sqrt((x[t] ** 2).mean() + norm.eps)
        jacobian[t, :, t], y[t] = np.diag(weight / root), weight * x[t] / root
    return jacobian.reshape(count * width, -1), y


def _attention_part(block: nn.Module, before: Array, x: Array) -> tuple[Array, Array]:
    """The Jacobian of attention with constant weights, after that of what precedes it, and its result."""
    count, width = x.shape
    size = width // block.heads
    projections = np.split(_array(block.qkv.weight), 3)
    (of_q, of_k, of_v), (q_bias, k_bias, v_bias) = projections, np.split(_array(block.qkv.bias), 3)
    q, k, v = x @ of_q.T + q_bias, x @ of_k.T + k_bias, x @ of_v.T + v_bias
    jacobian, mixed = np.zeros((count, width, count, width)), np.zeros_like(x)
    for head in range(block.heads):
        own = slice(head * size, (head + 1) * size)
        for t in range(count):
            logits = np.array([q[t, own] @ k[s, own] for s in range(count)]) / np.sqrt(size)
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            for s in range(count):
                mixed[t, own] += weights[s] * v[s, own]
                jacobian[t, :, s] += _array(block.proj.weight)[:, own] @ (weights[s] * of_v[own])
    y = mixed @ _array(block.proj.weight).T + _array(block.proj.bias)
    return jacobian.reshape(count * width, -1) @ before, y


def _gated_part(block: nn.Module, before: Array, x: Array) -> tuple[Array, Array]:
    """The Jacobian of W (silu(G x) * U x), whose two factors get half each and whose sigmoid is constant."""
    count, width = x.shape
    gate, up, down = (_array(linear.weight) for linear in (block.gate, block.up, block.down))
    jacobian, y = np.zeros((count, width, count, width)), np.zeros_like(x)
    for t in range(count):
        g, u = gate @ x[t] + _array(block.gate.bias), up @ x[t] + _array(block.up.bias)
        sigmoid = 1 / (1 + np.exp(-g))
        jacobian[t, :, t] = down @ (np.diag(sigmoid * u) @ gate + np.diag(sigmoid * g) @ up) / 2
        y[t] = down @ (sigmoid * g * u) + _array(block.down.bias)
    return jacobian.reshape(count * width, -1) @ before, y


# Input gradients ------------------------------------------------------------------------------------------------------


def full_gradients(model: nn.Sequential, images: Tensor, score: Score) -> tuple[Tensor, dict[str, Tensor]]:
    """Srinivas and Fleuret 2019, raw: input gradient * input; and each bias times the gradient where it is added.

    The Sequential, in evaluation mode, holds convolutions, linear layers, BatchNorm (whose implicit bias is
    beta - gamma mean / sqrt(var + eps)), ReLU, pooling and what only reshapes. Everything together sums to the score.

    Returns:
        (N, C, H, W) of the input, and for each module with a bias, by name, a tensor of the shape of its output.
    """
    leaf = images.detach().clone().requires_grad_()
    x = leaf.clone()
    added: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            root = torch.sqrt(module.running_var + module.eps)
            bias = module.bias - module.weight * module.running_mean / root
        else:
            bias = getattr(module, "bias", None)
        if bias is not None:
            added[name] = torch.zeros_like(x, requires_grad=True)
            x = x + added[name]
            biases[name] = bias.detach().view(1, -1, *[1] * (x.dim() - 2))
    gradient, *others = torch.autograd.grad(score(x).sum(), [leaf, *added.values()])
    parts = {name: g * biases[name] for name, g in zip(added, others, strict=True)}
    return (gradient * leaf).detach(), parts


def completeness(parts: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    """Sum the raw decomposition: (N,), equal to the score."""
    return parts[0].flatten(1).sum(1) + sum(part.flatten(1).sum(1) for part in parts[1].values())


Psi = Callable[[Array, tuple[int, int]], Array]


def psi_paper(channel: Array, size: tuple[int, int]) -> Array:
    """Post-process one channel as in the paper: bilinearUpsample(rescale(abs(.)))."""
    return resize_bilinear(minmax(np.abs(channel)), size)


def psi_resize_first(channel: Array, size: tuple[int, int]) -> Array:
    """The order that camlib's heatmaps have: rescale(bilinearUpsample(abs(.)))."""
    return minmax(resize_bilinear(np.abs(channel), size))


def full_grad(parts: tuple[Tensor, dict[str, Tensor]], psi: Psi = psi_paper) -> MapsAndScale:
    """Srinivas and Fleuret 2019, the map: sum of psi over the input's channels and the biases' channels.

    Biases with a spatial grid only (convolutions and their BatchNorm). Each channel is rescaled by itself, as the
    equation writes psi(f^b(x)_c); the authors' code rescales all channels of a layer together. The map is at the
    input's size and has no negative values.
    """
    source = _array(parts[0])
    size = (source.shape[2], source.shape[3])
    maps, scale = np.zeros((len(source), *size)), np.zeros((len(source), *size))
    for part in [source, *(_array(p) for p in parts[1].values() if p.dim() == 4)]:
        for n in range(len(part)):
            for channel in part[n]:
                maps[n] += psi(channel, size)
                spread = np.ptp(np.abs(channel))
                scale[n] += np.abs(channel).max() / spread if spread > 0 else 0.0
    return torch.from_numpy(maps), torch.from_numpy(scale)


def guided_gradient(model: nn.Sequential, images: Tensor, score: Score) -> Tensor:
    """Springenberg 2015: the input gradient, passed through a ReLU only where its input and the gradient are positive.

    Layer by layer, backwards; (N, C, H, W). Other activations than ReLU have no rule.
    """
    inputs, x = [], images.detach()
    for module in model:
        inputs.append(x)
        x = module(x.clone()).detach()
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    for module, x in zip(reversed(list(model)), reversed(inputs), strict=True):
        if isinstance(module, nn.ReLU):
            gradient = gradient * (x > 0) * (gradient > 0)
        elif isinstance(module, nn.Tanh | nn.SiLU | nn.GELU | nn.Sigmoid):
            raise TypeError(module)
        else:
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(module(leaf.clone()), leaf, gradient)
    return gradient


def guided_backprop(model: nn.Sequential, images: Tensor, score: Score) -> MapsAndScale:
    """Sum of |:func:`guided_gradient`| over the input's channels; (N, H, W)."""
    maps = guided_gradient(model, images, score).double().abs().sum(1)
    return maps, maps


def guided_grad_cam(guided: Tensor, maps: Tensor) -> MapsAndScale:
    """Selvaraju 2017: the guided gradient (N, C, H, W) times ReLU(Grad-CAM), upsampled from (N, h, w).

    The map is the sum of absolute values over the input's channels, (N, H, W).
    """
    gradient, grids = _array(guided), _array(maps)
    products = np.zeros_like(gradient)
    for n in range(len(gradient)):
        upsampled = resize_bilinear(np.maximum(grids[n], 0), (gradient.shape[2], gradient.shape[3]))
        for c in range(gradient.shape[1]):
            products[n, c] = np.abs(gradient[n, c] * upsampled)
    return _over_channels(products)


def _gradient_at(score: Score, image: Tensor) -> Array:
    """The gradient of the score of one image (C, *size)."""
    leaf = image.detach().clone()[None].requires_grad_()
    (found,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return _array(found[0])


def _along_line(score: Score, image: Tensor, line: Sequence[tuple[float, float, Tensor]]) -> Array:
    """Of each weight, fraction and baseline b: the sum of weight (x - b) times the gradient at b + fraction (x - b)."""
    total = np.zeros(image.shape)
    for weight, fraction, baseline in line:
        difference = image - baseline
        total += weight * _array(difference) * _gradient_at(score, baseline + fraction * difference)
    return total


def input_x_gradient(images: Tensor, score: Score) -> MapsAndScale:
    """Shrikumar 2016: the sum over channels of x_c ds/dx_c. ``score`` is of the images, (rows, C, *size) -> (rows,)."""
    return _over_channels(np.stack([_array(one) * _gradient_at(score, one) for one in images]))


def integrated_gradients(images: Tensor, score: Score, baselines: Tensor, steps: int) -> MapsAndScale:
    """Sundararajan 2017, equation 1, by the Gauss-Legendre rule: its nodes are the roots of the Legendre polynomial."""
    found = []
    polynomial = np.polynomial.legendre.Legendre.basis(steps)
    for image, baseline in zip(images, baselines, strict=True):
        line = [
            (1 / ((1 - root**2) * polynomial.deriv()(root) ** 2), (1 + root) / 2, baseline)
            for root in polynomial.roots().tolist()
        ]
        found.append(_along_line(score, image, line))
    return _over_channels(np.stack(found))


def expected_gradients(
    images: Tensor, score: Score, baselines: Sequence[Tensor], fractions: Sequence[float]
) -> MapsAndScale:
    """Erion 2021, equation 2: the mean over draws of a baseline and a fraction of the line from it to the image."""
    line = [(1 / len(fractions), fraction, one) for one, fraction in zip(baselines, fractions, strict=True)]
    return _over_channels(np.stack([_along_line(score, image, line) for image in images]))


# Baselines ------------------------------------------------------------------------------------------------------------


@breaks(
    channels="the weights are drawn in the order of the channels",
    silent="as channels",
    units="the weights do not follow the units",
)
def random_cam(activations: Tensor, *, seed: int = 0) -> MapsAndScale:
    """sum_k w_k (A_k - mean A_k); the C weights are the first standard normal numbers of a generator with that seed."""
    a = _array(activations)
    weights = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for n in range(len(a)):
        for k in range(a.shape[1]):
            products[n, k] = weights[k].item() * (a[n, k] - a[n, k].mean())
            sizes[n, k] = weights[k].item() * (np.abs(a[n, k]) + np.abs(a[n, k]).mean())
    return _over_channels(products, sizes)


def sobel(images: Tensor) -> MapsAndScale:
    """sqrt(gx^2 + gy^2) of the mean over the channels, with the 3 x 3 Sobel kernels; (N, H, W).

    The image is mirrored at its border without repeating the last pixel ("reflect").
    """
    horizontal = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    maps, scale = [], []
    for grey in _array(images).mean(1):
        padded = np.pad(grey, 1, mode="reflect")
        magnitude, size = np.zeros_like(grey), np.zeros_like(grey)
        for i, j in np.ndindex(grey.shape):
            window = padded[i : i + 3, j : j + 3]
            gx, gy = (window * horizontal).sum(), (window * horizontal.T).sum()
            magnitude[i, j] = np.sqrt(gx**2 + gy**2)
            size[i, j] = (np.abs(window) * (np.abs(horizontal) + np.abs(horizontal.T))).sum()
        maps.append(magnitude)
        scale.append(size)
    return torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(scale))


@breaks(shift="the picture has no part in it")
def center_gaussian(rows: int, columns: int) -> Tensor:
    """exp(-(y - cy)^2 / (2 (H / 4)^2) - (x - cx)^2 / (2 (W / 4)^2)) at the pixels' centres; (H, W)."""
    image = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            down, along = (i + 0.5 - rows / 2) / (rows / 4), (j + 0.5 - columns / 2) / (columns / 4)
            image[i, j] = np.exp(-(down**2) / 2 - along**2 / 2)
    return image


# Perturbations: one image, and what the model says of changed copies of it -------------------------------------------

ScoreOfOne = Callable[[Tensor], float]
"""From a batch of one (1, C, ...) to its score."""


def resize_linear(channel: Array, size: Sequence[int]) -> Array:
    """:func:`resize_bilinear` for any number of dimensions, one after the other."""
    for axis, new in enumerate(size):
        old = channel.shape[axis]
        slices = []
        for index in range(new):
            at = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1)
            low = int(at)
            below, above = channel.take(low, axis), channel.take(min(low + 1, old - 1), axis)
            slices.append((1 - (at - low)) * below + (at - low) * above)
        channel = np.stack(slices, axis)
    return channel


def channel_mask(channel: Array, size: Sequence[int]) -> Array:
    """Upsample a channel and min-max it; a constant one is a mask of zeros."""
    if channel.max() == channel.min():
        return np.zeros(tuple(size))
    return minmax(resize_linear(channel, size))


def channel_range(activations: Tensor) -> float:
    """Return the smallest range / max|A_k| of the channels that vary: near 0 a mask is rounding."""
    channels = _array(activations.flatten(2).flatten(0, 1))
    return min((np.ptp(c) / np.abs(c).max() for c in channels if np.ptp(c) > 0), default=1.0)


def _masked_score(image: Tensor, mask: Array, score: ScoreOfOne) -> float:
    return score((image.double() * torch.from_numpy(mask))[None])


def _softmax_map(activations: Tensor, scores: dict[int, float]) -> MapsAndScale:
    """sum_k w_k A_k with the softmax of the channels' scores; channels without one weigh nothing."""
    a = _array(activations)
    best = max(scores.values())
    total = sum(np.exp(s - best) for s in scores.values())
    products = np.zeros_like(a)
    for k, s in scores.items():
        products[k] = np.exp(s - best) / total * a[k]
    maps, scale = _over_channels(products[None])
    return maps[0], scale[0]


def _most_varied(activations: Tensor, channels: int | None) -> list[int]:
    variances = [channel.var() for channel in _array(activations)]
    return sorted(range(len(variances)), key=lambda k: -variances[k])[:channels]


@breaks(
    silent="a silent channel, whose mask is zero, has its part in the softmax",
    shift="masks end at the picture's border, and do not run on beyond it",
    logits="its weights are a softmax of scores: test_laws.py has the limits",
    units="the channels are summed as they are",
)
def score_cam(activations: Tensor, image: Tensor, score: ScoreOfOne, *, channels: int | None = None) -> MapsAndScale:
    """Wang 2020 of one image (C, *size) and its A (C, *grid): sum_k softmax(s(x mask_k)) A_k.

    ``channels`` keeps those of the highest variance over the positions.
    """
    a, size = _array(activations), image.shape[1:]
    kept = _most_varied(activations, channels)
    return _softmax_map(activations, {k: _masked_score(image, channel_mask(a[k], size), score) for k in kept})


@breaks(
    silent="as Score-CAM",
    shift="as Score-CAM, and the noise stays where it is",
    mirror="the noise is not mirrored",
    logits="as Score-CAM",
    units="as Score-CAM",
)
def ss_cam(activations: Tensor, image: Tensor, score: ScoreOfOne, noise: Tensor, *, sigma: float = 2.0) -> MapsAndScale:
    """Wang 2020 (SS-CAM): Score-CAM with the mean score over mask_k + sigma e_j, for noise (samples, *size)."""
    a, scores = _array(activations), {}
    for k in range(len(a)):
        mask = channel_mask(a[k], image.shape[1:])
        noisy = [_masked_score(image, mask + sigma * e, score) for e in _array(noise)]
        scores[k] = sum(noisy) / len(noisy)
    return _softmax_map(activations, scores)


@breaks(silent="as Score-CAM", shift="as Score-CAM", logits="as Score-CAM", units="as Score-CAM")
def is_cam(activations: Tensor, image: Tensor, score: ScoreOfOne, *, samples: int = 10) -> MapsAndScale:
    """Naidu 2020: Score-CAM with the mean score over x mask_k j / n for j = 1..n."""
    a, scores = _array(activations), {}
    for k in range(len(a)):
        mask = channel_mask(a[k], image.shape[1:])
        scores[k] = sum(_masked_score(image, mask * j / samples, score) for j in range(1, samples + 1)) / samples
    return _softmax_map(activations, scores)


@breaks(
    bias="what is lost is divided by the score, which the constant changes",
    units="what the score loses without a channel does not follow the channel's units",
)
def ablation_cam(activations: Tensor, score: ScoreOfOne) -> MapsAndScale:
    """Desai 2020 of one image's A (C, *grid): sum_k (s - s_k) / |s| A_k, ``score`` taking features (1, C, *grid)."""
    a = _array(activations)
    clean = score(activations[None])
    products, sizes = np.zeros_like(a), np.zeros_like(a)
    for k in range(len(a)):
        ablated = activations.clone()
        ablated[k] = 0
        without = score(ablated[None])
        if clean != 0:
            products[k] = (clean - without) / abs(clean) * a[k]
            sizes[k] = (abs(clean) + abs(without)) / abs(clean) * a[k]
    maps, scale = _over_channels(products[None], sizes[None])
    return maps[0], scale[0]


def recipro_cam(activations: Tensor, score: ScoreOfOne, gaussian: bool = False) -> MapsAndScale:
    """Byun 2022 of one image's A (C, *grid): the score with one cell left, or its Gaussian, less the lowest of them.

    The Gaussian is the product over the axes of 1/4, 1/2, 1/4.
    """
    grid = activations.shape[1:]
    scores = np.zeros(grid)
    for cell in np.ndindex(*grid):
        mask = torch.zeros(grid, dtype=activations.dtype)
        mask[cell] = 1.0
        for apart in itertools.product((-1, 0, 1), repeat=len(grid)) if gaussian else ():
            other = tuple(i + step for i, step in zip(cell, apart, strict=True))
            if all(0 <= i < side for i, side in zip(other, grid, strict=True)):
                mask[other] = math.prod(0.25 if step else 0.5 for step in apart)
        scores[cell] = score((activations * mask)[None])
    maps = torch.from_numpy(scores - scores.min())
    return maps, torch.full_like(maps, float(np.abs(scores).max()))


def random_mask(grid: Tensor, offset: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Petsiuk 2018: a binary grid (cells, cells), upsampled to one cell more than the image, cropped at an offset."""
    rows, columns = (int(np.ceil(side / cells)) for side, cells in zip(size, grid.shape, strict=True))
    enlarged = resize_bilinear(_array(grid), ((grid.shape[0] + 1) * rows, (grid.shape[1] + 1) * columns))
    top, left = offset
    return torch.from_numpy(enlarged[top : top + size[0], left : left + size[1]])


@breaks(shift="the masks stay where they are", mirror="the masks are not mirrored")
def rise(masks: Tensor, image: Tensor, score: ScoreOfOne) -> MapsAndScale:
    """Petsiuk 2018, equation 5, less the mean score: sum_i (s(x m_i) - mean s) m_i / sum_i m_i; 0 where there is no m.

    ``masks`` (M, *size) are the drawn ones, which are the distribution.
    """
    scores = [_masked_score(image, mask, score) for mask in _array(masks)]
    mean = sum(scores) / len(scores)
    total, size, cover = np.zeros(masks.shape[1:]), np.zeros(masks.shape[1:]), np.zeros(masks.shape[1:])
    for mask, s in zip(_array(masks), scores, strict=True):
        total += (s - mean) * mask
        size += (abs(s) + abs(mean)) * mask
        cover += mask
    covered = np.where(cover > 0, cover, 1.0)
    return torch.from_numpy(total / covered), torch.from_numpy(size / covered)


def window_offsets(side: int, window: int, stride: int) -> list[int]:
    """Return 0, stride, 2 stride, ..., and a last window flush with the border."""
    offsets = []
    at = 0
    while at + window < side:
        offsets.append(at)
        at += stride
    return [*offsets, side - window]


@breaks(shift="windows end at the picture's border")
def occlusion(
    image: Tensor, score: ScoreOfOne, *, window: Sequence[int], stride: Sequence[int], baseline: float = 0.0
) -> MapsAndScale:
    """Zeiler 2014: the score less the mean score over the windows that cover a pixel, ``baseline`` inside each."""
    clean, size = score(image[None]), image.shape[1:]
    total, magnitude, cover = np.zeros(size), np.zeros(size), np.zeros(size)
    for corner in itertools.product(*(window_offsets(*along) for along in zip(size, window, stride, strict=True))):
        inside = tuple(slice(at, at + side) for at, side in zip(corner, window, strict=True))
        occluded = image.clone()
        occluded[(slice(None), *inside)] = baseline
        s = score(occluded[None])
        total[inside] += s
        magnitude[inside] += abs(s)
        cover[inside] += 1
    return torch.from_numpy(clean - total / cover), torch.from_numpy(abs(clean) + magnitude / cover)
