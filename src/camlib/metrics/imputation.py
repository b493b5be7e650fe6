"""Missing pixels filled in from what is around them: ROAD's linear imputation (Rong et al. 2022)."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from camlib.errors import CamlibRuntimeError, CamlibTypeError, CamlibValueError, positive_number
from camlib.passes.numbers import single_or_double
from camlib.targets.base import image_list

ITERATIONS = 400
"""The most iterations, after which the imputation gives up; it seldom takes a tenth of them."""

HAT = 3.0
"""The energy that is assumed for the hat function of a coarse cell, far from known pixels. The true one is 4.4 on the
coarsest grid to 5.9 on the finest; as the grids overlap, a smaller value saves one or two iterations."""

Levels: TypeAlias = list[tuple[Tensor, Tensor]]
"""For each grid, from the image's to a single cell: sums of weights (1, 1, h, w), and 1 / energies (R, 1, h, w)."""


def impute(images: Tensor, known: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    r"""Fill in unknown pixels, each with the weighted mean of its eight neighbours, all at the same time.

    .. math::
        x_p = \frac{\sum_{q \in N(p)} w_{pq} x_q}{\sum_{q \in N(p)} w_{pq}}, \qquad
        w_{pq} = \tfrac{1}{6} \text{ beside, above or below}, \; \tfrac{1}{12} \text{ diagonally}

    for each unknown p; neighbours beyond the border are left out. Rong et al. 2022, "A Consistent and Efficient
    Evaluation Strategy for Attribution Methods" (ROAD), https://arxiv.org/abs/2202.00449, without the
    noise. The imputed values are smooth and lie between the values around them, so they reveal little of what was
    removed.

    The equations of all images are solved together, by conjugate gradients with a coarse-to-fine first guess and a
    multilevel preconditioner (Bramble, Pasciak and Xu 1990, https://doi.org/10.2307/2008789), so that wide gaps need
    hardly more iterations than narrow ones.

    Args:
        images: (R, C, H, W), floating point. The values of unknown pixels are ignored.
        known: (R, H, W) bool, for all channels of an image.
        tolerance: how far a pixel may be from the mean of its neighbours, as a share of the range of the image's
            known pixels. Its distance from the exact solution is larger, as such errors add up across a gap: by default
            about a thousandth of the range where four fifths of an image of 224 x 224 are missing.

    Returns:
        (R, C, H, W), the known pixels as they are. Half precision is computed in single.

    Raises:
        CamlibTypeError: ``images`` is not a floating-point tensor, or ``known`` is not a bool tensor.
        CamlibValueError: shapes do not fit, an image has no known pixel or one that is not finite, or the tolerance is
            not positive, or less than rounding allows.
        CamlibRuntimeError: the tolerance is not met after 400 iterations.

    Example:
        >>> import torch
        >>> from camlib.metrics import impute
        >>> image = torch.tensor([[0.0, 0.0, 0.0], [6.0, torch.nan, 6.0], [0.0, 12.0, 0.0]])
        >>> round(float(impute(image[None, None], ~image.isnan()[None])[0, 0, 1, 1]), 3)  # (6 + 6 + 12) / 6
        4.0
    """
    _check(images, known)
    seen, values = known[:, None], single_or_double(images.detach())
    finest = 32 * torch.finfo(values.dtype).eps
    if positive_number("tolerance", tolerance) < finest:
        raise CamlibValueError(f"tolerance must be at least {finest:.1g} in {values.dtype}, got {tolerance:g}")
    low = torch.where(seen, values, torch.inf).amin((1, 2, 3), keepdim=True)
    span = torch.where(seen, values, -torch.inf).amax((1, 2, 3), keepdim=True) - low
    if not bool(span.isfinite().all()):
        raise CamlibValueError(f"a known pixel of {image_list(~span.isfinite())} is not finite, or their range is not")
    span = torch.where(span > 0, span, 1)
    found = _solved(torch.where(seen, (values - low) / span, 0), (~seen).to(values), tolerance)
    return torch.where(seen, images.detach(), (low + span * found).to(images.dtype))


def _check(images: Tensor, known: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise CamlibTypeError(f"images must be a floating-point tensor (R, C, H, W), got {kind}")
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        kind = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise CamlibTypeError(f"known must be a bool tensor (R, H, W), got {kind}; mask > 0 makes one from numbers")
    if images.dim() != 4 or known.shape != (len(images), *images.shape[2:]):
        raise CamlibValueError(
            f"images have shape {tuple(images.shape)} and known {tuple(known.shape)}; they must be (R, C, H, W) "
            "and (R, H, W)"
        )
    if images.device != known.device or images.is_meta:
        raise CamlibValueError(f"images are on {images.device} and known on {known.device}; they must be on one device")
    nothing = ~known.flatten(1).any(1)
    if bool(nothing.any()):
        raise CamlibValueError(f"no pixel of {image_list(nothing)} is known; at least one must be, to fill in others")


def _solved(values: Tensor, unknown: Tensor, tolerance: float) -> Tensor:
    """Return values (R, C, H, W) with the unknown ones (R, 1, H, W) filled in; a converged channel stays as it is.

    With S the sum over a pixel and its neighbours, weighted by 4, 2 and 1, and n its value for an image of ones, the
    equations are n x = S x at the unknown pixels, which is symmetric and positive definite.
    """
    levels = _levels(unknown)
    sums, _ = levels[0]
    found = _guess(values, 1 - unknown, levels)
    residual = unknown * (_spread(found) - sums * found)
    allowed = tolerance * (sums - 4)
    direction, before = torch.zeros_like(found), torch.ones_like(found[..., :1, :1])
    for _ in range(ITERATIONS):
        active = residual.abs().sub_(allowed).amax((2, 3), keepdim=True) > 0
        if not bool(active.any()):
            return found
        better = _preconditioned(residual, levels).mul_(unknown)
        product = _dot(residual, better)
        direction = torch.addcmul(better, torch.where(active, product / before, 0), direction)
        applied = (sums * direction).sub_(_spread(direction)).mul_(unknown)
        step = torch.where(active, product / _dot(direction, applied), 0)
        found.addcmul_(step, direction)
        residual.addcmul_(step, applied, value=-1)
        before = product
    raise CamlibRuntimeError(
        f"after {ITERATIONS} iterations the imputation of {image_list(active)} is not within the tolerance of "
        f"{tolerance:g}; allow a larger one, or give images in double precision"
    )


def _levels(unknown: Tensor) -> Levels:
    """Return the grids of the preconditioner.

    The energy of a pixel is n - 4. That of a coarse cell's hat function is the energy of its slopes, plus the weights
    of its known neighbours, which do not change.
    """
    sums = _spread(torch.ones_like(unknown[:1]))
    ground = unknown * _spread(1 - unknown)
    levels = [(sums, 1 / (sums - 4))]
    while max(ground.shape[2:]) > 1:
        ground = _restricted(ground, sums)
        sums = _spread(torch.ones_like(ground[:1]))
        levels.append((sums, 1 / (HAT + ground)))
    return levels


def _guess(values: Tensor, known: Tensor, levels: Levels) -> Tensor:
    """Return values with the unknown ones filled in from the coarser grids (pull-push)."""
    (sums, _), *coarser = levels
    if not coarser:
        return values
    count = _pooled(known)
    means = _pooled(known * values) / torch.where(count > 0, count, 1)
    return torch.lerp(_prolonged(_guess(means, count.clamp(max=1), coarser), sums), values, known)


def _preconditioned(residual: Tensor, levels: Levels) -> Tensor:
    """Return an estimate of the error from its residual: on each grid, the residual divided by the energy."""
    (sums, inverse), *coarser = levels
    own = inverse * residual
    if not coarser:
        return own
    return own.add_(_prolonged(_preconditioned(_restricted(residual, sums), coarser), sums))


def _prolonged(coarse: Tensor, sums: Tensor) -> Tensor:
    """Return coarse cells on the next finer grid, smoothed; a constant stays one."""
    height, width = sums.shape[2:]
    return _spread(F.interpolate(coarse, scale_factor=2, mode="nearest")[..., :height, :width]).div_(sums)


def _restricted(fine: Tensor, sums: Tensor) -> Tensor:
    """Return fine cells on the next coarser grid: the transpose of :func:`_prolonged`."""
    return _pooled(_spread(fine / sums))


def _pooled(fine: Tensor) -> Tensor:
    """Return the sums over two by two cells."""
    height, width = fine.shape[2:]
    even = F.pad(fine, (0, width % 2, 0, height % 2))
    rows = even[:, :, ::2] + even[:, :, 1::2]
    return rows[..., ::2] + rows[..., 1::2]


def _spread(cells: Tensor) -> Tensor:
    """Return the sums over each cell and its neighbours, weighted 1 2 1 along both sides; zeros beyond the border.

    By shifts, as a convolution would round under autocast and, on a GPU, to TF32.
    """
    for axis in (2, 3):
        spread, others = 2 * cells, cells.shape[axis] - 1
        spread.narrow(axis, 1, others).add_(cells.narrow(axis, 0, others))
        spread.narrow(axis, 0, others).add_(cells.narrow(axis, 1, others))
        cells = spread
    return cells


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the dot product of each channel with the other, (R, C, 1, 1)."""
    return (one * other).sum((2, 3), keepdim=True)
