"""Consistency: whether images with the same explanation have the same class (Dasgupta et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, CamlibValueError
from camlib.metrics.readings import checked_heatmaps
from camlib.targets.indices import as_tensor


def consistency(heatmaps: Any, classes: Any, discretise: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Share of the other images with the same explanation for which the network predicts the same class.

    .. math::
        \frac{|\{m \ne n : e(H_m) = e(H_n), \; c_m = c_n\}|}{|\{m \ne n : e(H_m) = e(H_n)\}|}

    with the class c that the network predicts. Dasgupta et al. 2022, https://arxiv.org/abs/2202.00734, for explanations
    from a finite set; a heatmap becomes one by a function e, such as which quarter of the image is hottest. Higher is
    better. Each result depends on the other images, so give a whole data set. No forward pass.

    Args:
        heatmaps: (N, H, W), a tensor or an array.
        classes: (N,) integers, the predicted classes.
        discretise: e, from heatmaps (N, H, W) to a tensor (N, ...), whose rows are equal for equal explanations.

    Returns:
        (N,), in [0, 1]; NaN for images whose explanation no other image has.

    Raises:
        CamlibTypeError: heatmaps that are not numbers, classes that are no integers, or ``discretise`` that is no
            function or returns no tensor.
        CamlibValueError: another number of classes, or of rows of ``discretise``, than of heatmaps.

    Example:
        >>> import torch
        >>> heatmaps = torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.7, 0.0]], [[0.0, 1.0]]])
        >>> consistency(heatmaps, [3, 3, 5, 5], lambda heatmaps: heatmaps.flatten(1).argmax(1))
        tensor([0.5000, 0.5000, 0.0000,    nan])
    """
    values = checked_heatmaps(heatmaps)
    given = as_tensor(classes, f"classes must be integers (N,), got {classes!r}")
    if given.is_meta:
        raise CamlibTypeError("classes are on the meta device, where tensors have no values")
    given = given.to(values.device)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise CamlibTypeError(f"classes must be integers (N,), got {given.dtype}")
    if given.shape != (len(values),):
        raise CamlibValueError(f"classes must be ({len(values)},), one of each heatmap, got {tuple(given.shape)}")
    if not callable(discretise):
        raise CamlibTypeError(f"discretise must be a function of heatmaps, got {type(discretise).__name__}")
    explained = discretise(values)
    if not isinstance(explained, Tensor):
        raise CamlibTypeError(f"discretise returned {type(explained).__name__}; it must return a tensor (N, ...)")
    if explained.dim() == 0 or len(explained) != len(values):
        raise CamlibValueError(
            f"discretise returned {tuple(explained.shape)}; it must return a row for each of the {len(values)} heatmaps"
        )
    _, kind = explained.reshape(len(values), -1).unique(dim=0, return_inverse=True)
    others = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    alike = (kind == kind[:, None]) & others
    agree = (given == given[:, None]) & alike
    share: Tensor = agree.sum(1).to(values) / alike.sum(1).to(values)
    return share
