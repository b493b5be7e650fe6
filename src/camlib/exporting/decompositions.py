"""Operations that runtimes do not have, as operations that all of them have.

PyTorch decomposes most gradients into plain operations. The others are here: those of convolutions and pooling, the
first eigenvector, and operations that would fix the size of the batch while a graph is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

_ATEN = torch.ops.aten
Decomposition = Callable[..., Any]

SQUARINGS = 14
"""How often the power iteration squares its matrix; 2^14 steps separate eigenvalues whose ratio is 1.001."""


def plain_operations() -> dict[Any, Decomposition]:
    """Return the decompositions with which a graph is recorded, by operation."""
    from torch._decomp import core_aten_decompositions

    return {**dict(core_aten_decompositions().items()), **_OWN}


def convolution_backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> Any:
    """The gradient of a convolution with respect to its input, as a convolution; none with respect to parameters."""
    if output_mask[1] or output_mask[2]:
        return NotImplemented
    dims = images.dim() - 2
    stride, padding, dilation = (list(one) * (dims if len(one) == 1 else 1) for one in (stride, padding, dilation))
    if transposed:
        found = _ATEN.convolution(gradient, weight, None, stride, padding, dilation, False, [0] * dims, groups)
        return found, None, None
    reach = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
    if all(one == 1 for one in stride) and all(full >= pad for full, pad in zip(reach, padding, strict=True)):
        inner = [full - pad for full, pad in zip(reach, padding, strict=True)]
        found = _ATEN.convolution(
            gradient, _mirrored(weight, groups), None, stride, inner, dilation, False, [0] * dims, groups
        )
        return found, None, None
    return _transposed(gradient, images.shape[2:], weight, stride, padding, dilation, groups), None, None


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """The weight of the convolution that is the gradient of a convolution with stride 1."""
    out, of_group, *sides = weight.shape
    swapped = weight.reshape(groups, out // groups, of_group, *sides).transpose(1, 2)
    swapped = swapped.reshape(groups * of_group, out // groups, *sides)
    return swapped if all(side == 1 for side in sides) else swapped.flip(list(range(2, 2 + len(sides))))


def _transposed(
    gradient: Tensor,
    sizes: Sequence[int],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A transposed convolution whose result has the given size, which may be symbolic."""
    dims = len(stride)
    covered = [
        (side - 1) * step - 2 * pad + spread * (kernel - 1) + 1
        for side, step, pad, spread, kernel in zip(
            gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    if not any(isinstance(one, SymInt) for one in (*sizes, *covered)):
        rest = [size - own for size, own in zip(sizes, covered, strict=True)]
        if min(rest) >= 0:  # or the last windows reach beyond the images
            found: Tensor = _ATEN.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups)
            return found
    # A runtime knows the rest of the division by the stride only when it runs, so the largest rest is cut off there.
    whole: Tensor = _ATEN.convolution(gradient, weight, None, stride, [0] * dims, dilation, True, [0] * dims, groups)
    whole = constant_pad_nd(whole, [side for step in reversed(stride) for side in (0, step - 1)])
    for axis, (size, pad) in enumerate(zip(sizes, padding, strict=True), 2):
        whole = _ATEN.slice(whole, axis, pad, pad + size)
    return whole


def max_pool2d_with_indices_backward(
    gradient: Tensor,
    images: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """The gradient of max pooling: each maximum gets the gradients of the windows that it won."""
    *lead, height, width = images.shape
    zeros = gradient.new_zeros([*lead, height * width])
    return zeros.scatter_add(-1, indices.flatten(-2), gradient.flatten(-2)).reshape(images.shape)


def avg_pool2d_backward(
    gradient: Tensor,
    images: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """The gradient of average pooling: each cell gets its share of every window that it lies in."""
    kernel, stride, padding = (list(one) * (2 if len(one) == 1 else 1) for one in (kernel_size, stride, padding))
    stride = stride or kernel
    shares = gradient / (
        divisor_override or _cells_of_windows(images, gradient, kernel, stride, padding, count_include_pad)
    )
    single = shares.reshape(-1, 1, *gradient.shape[-2:])
    found = _transposed(single, images.shape[-2:], gradient.new_ones(1, 1, *kernel), stride, padding, [1, 1], 1)
    return found.reshape(images.shape)


def _cells_of_windows(
    images: Tensor, pooled: Tensor, kernel: list[int], stride: list[int], padding: list[int], with_padding: bool
) -> Tensor:
    """(h, w), the number of cells that each window of a pooling averages."""
    counts = []
    for axis in (0, 1):
        first = torch.arange(pooled.shape[axis - 2], device=images.device) * stride[axis] - padding[axis]
        size, pad = images.shape[axis - 2], padding[axis]
        last = (first + kernel[axis]).clamp(max=size + pad)
        if not with_padding:
            first, last = first.clamp(min=0), last.clamp(max=size)
        counts.append((last - first).to(pooled.dtype))
    return counts[0][:, None] * counts[1]


def adaptive_avg_pool2d(images: Tensor, output_size: list[int]) -> Tensor:
    """Adaptive average pooling, as a product with the shares of the cells."""
    rows, columns = (_shares(images, axis, int(size)) for axis, size in zip((-2, -1), output_size, strict=True))
    return rows @ images @ columns.mT


def adaptive_avg_pool2d_backward(gradient: Tensor, images: Tensor) -> Tensor:
    """The gradient of adaptive average pooling."""
    rows, columns = (_shares(images, axis, int(gradient.shape[axis])) for axis in (-2, -1))
    return rows.mT @ gradient @ columns


def _shares(images: Tensor, axis: int, windows: int) -> Tensor:
    """(windows, cells), the share of each cell in each window along an axis."""
    cells = images.shape[axis]
    window = torch.arange(windows, device=images.device)[:, None]
    cell = torch.arange(cells, device=images.device)
    first, last = window * cells // windows, ((window + 1) * cells + windows - 1) // windows
    inside = (cell >= first) & (cell < last)
    return inside.to(images.dtype) / (last - first).to(images.dtype)


def constant_pad_nd(images: Tensor, pad: list[int], value: float = 0) -> Tensor:
    """Padding by joining constants; PyTorch's own would fix the size of the batch. Negative padding cuts off."""
    found = images.clone()
    for number, axis in enumerate(range(-1, -1 - len(pad) // 2, -1)):
        for side, begins in ((pad[2 * number], True), (pad[2 * number + 1], False)):
            if side > 0:
                shape = list(found.shape)
                shape[axis] = side
                edge = found.new_full(shape, value)
                found = torch.cat([edge, found] if begins else [found, edge], axis)
            elif side < 0:
                found = found.narrow(axis, -side if begins else 0, found.shape[axis] + side)
    return found


def native_batch_norm(
    images: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """A batch norm in eval mode, which changes nothing."""
    if training or mean is None or variance is None:
        return NotImplemented
    return _ATEN._native_batch_norm_legit_no_training(images, weight, bias, mean, variance, momentum, eps)


def leading_eigenvector(matrix: Tensor, uplo: str = "L", compute_v: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices (N, P, P), by power iteration; the last alone, NaN elsewhere.

    The last eigenvalue must have the largest magnitude.
    """
    power = matrix
    for _ in range(SQUARINGS):
        power = power / _or_one(power.abs().amax((-2, -1), keepdim=True))
        power = power @ power
    longest = power.square().sum(-2, keepdim=True).argmax(-1, keepdim=True)
    vector = power.gather(-1, longest.expand(-1, power.shape[-2], 1))
    for _ in range(2):
        vector = vector / _or_one(vector.abs().amax(-2, keepdim=True))
        vector = matrix @ vector
    vector = vector / _or_one(vector.abs().amax(-2, keepdim=True))
    vector = vector / _or_one(vector.square().sum(-2, keepdim=True).sqrt())
    value = (vector * (matrix @ vector)).sum(-2)
    others = matrix[..., 1:] * math.nan
    return torch.cat([others[..., 0, :], value], -1), torch.cat([others, vector], -1)


def _or_one(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 1, divisor)


def cdist_forward(one: Tensor, other: Tensor, p: float, compute_mode: int | None) -> Any:
    """Euclidean distances between positions."""
    if p != 2:
        return NotImplemented
    return (one.unsqueeze(-2) - other.unsqueeze(-3)).square().sum(-1).sqrt()


_OWN: dict[Any, Decomposition] = {
    _ATEN.convolution_backward.default: convolution_backward,
    _ATEN.max_pool2d_with_indices_backward.default: max_pool2d_with_indices_backward,
    _ATEN.avg_pool2d_backward.default: avg_pool2d_backward,
    _ATEN._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    _ATEN._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    _ATEN.constant_pad_nd.default: constant_pad_nd,
    _ATEN.native_batch_norm.default: native_batch_norm,
    _ATEN._linalg_eigh.default: leading_eigenvector,
    _ATEN._cdist_forward.default: cdist_forward,
}
