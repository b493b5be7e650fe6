"""Continuity: how much an explanation changes when the image is shifted (Montavon et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError, items
from camlib.metrics.declaration import metric
from camlib.metrics.fills import Baseline, baseline_images
from camlib.metrics.readings import Explained
from camlib.metrics.robustness import largest_ratio, norms

PARTS = 8
"""By default the image is shifted by multiples of this part of its width."""


@metric(Explained, "lower", "not negative, per unit of the inputs; NaN where no shift changes the image")
def continuity(explained: Explained, *, shifts: Sequence[int] | None = None, baseline: Baseline = "mean") -> Tensor:
    r"""Largest ratio of the change of the heatmap to that of the image, while the image is shifted.

    .. math::
        \max_t \frac{\|H(T_t x) - H(x)\|_1}{\|T_t x - x\|_2}

    where :math:`T_t` shifts the image by t pixels along its last axis, the width. Montavon et al. 2018, section 7.1,
    https://arxiv.org/abs/1706.07979, with the shifts of Quantus. Lower is better. The heatmap does not move with the
    image: a method whose heatmap follows the object changes, too. So compare methods by it on the same images, and
    not with 0. The shifted images are explained for the class of the images as they are.

    ``1 + T`` explanations for T shifts.

    Args:
        shifts: t, in pixels, to the right if positive; by default 14, all multiples of an eighth of the width.
        baseline: what appears at the border: "mean" of the image's channels, "zero", "blur", a number or a tensor
            (C, 1, 1); see :func:`camlib.metrics.fills.baseline_images`.

    Raises:
        CamlibTypeError: ``shifts`` that are no ints, or a ``baseline`` of another type.
        CamlibValueError: no shift, or one by 0 or by the whole width; or a ``baseline`` that cannot be broadcast.
    """
    images, heatmaps = explained.images, explained.heatmaps
    instead = baseline_images(images, baseline)
    of_heatmaps, of_images = [], []
    for shift in _checked(shifts, images.shape[-1]):
        moved = shifted(images, shift, instead)
        of_heatmaps.append(norms(explained.again(moved) - heatmaps, 1))
        of_images.append(norms(moved.double() - images.double()).to(heatmaps))
    return largest_ratio(torch.stack(of_heatmaps), torch.stack(of_images))


def shifted(images: Tensor, shift: int, instead: Tensor) -> Tensor:
    """Return images (N, C, ...) shifted along their last axis, with other images where nothing is left.

    Example:
        >>> import torch
        >>> shifted(torch.tensor([[[1.0, 2.0, 3.0]]]), 1, torch.zeros(1, 1, 3))
        tensor([[[0., 1., 2.]]])
    """
    kept = images.shape[-1] - abs(shift)
    if shift > 0:
        return torch.cat([instead[..., :shift], images[..., :kept]], -1)
    return torch.cat([images[..., -shift:], instead[..., kept:]], -1)


def _checked(shifts: Sequence[int] | None, width: int) -> list[int]:
    if shifts is None:
        sizes = sorted({round(width * part / PARTS) for part in range(1, PARTS)} - {0, width})
        if not sizes:
            raise CamlibValueError(f"images of width {width} cannot be shifted")
        return [*(-size for size in reversed(sizes)), *sizes]
    given = items("shifts", shifts, "a sequence of ints such as (-8, 8)")
    for shift in given:
        if isinstance(shift, bool) or not isinstance(shift, int):
            raise CamlibTypeError(f"shifts must be ints, got {type(shift).__name__}: {shift!r}")
        if not 0 < abs(shift) < width:
            raise CamlibValueError(f"each shift must be between -{width - 1} and {width - 1}, and not 0, got {shift}")
    if not given:
        raise CamlibValueError("shifts is empty; give at least one number of pixels")
    return given
