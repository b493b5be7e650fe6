"""The rules by which operations pass positions on, by the names of the operations.

A rule gets one operation with its operands' coordinates, and returns the coordinates of each result; those that it
leaves out are unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from camlib.discovery.coordinates import (
    Axis,
    Coordinate,
    Place,
    Scaled,
    Windows,
    agreed,
    aligned,
    averaged,
    compact,
    full,
    over_windows,
    reshaped,
)


class Call:
    """One operation with its arguments by name, and the coordinates of its operands."""

    def __init__(
        self, of: Callable[[Tensor], Place], func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any
    ):
        self.of, self.func, self.args, self.kwargs = of, func, args, kwargs
        self.name = func._schema.name.split("::")[1]
        self.output = output
        self.results = list(tensors_in_arguments(output if isinstance(output, (tuple, list)) else (output,)))

    def named(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for argument, value in zip(self.func._schema.arguments, self.args, strict=False):
            if argument.name == name:
                return value
        return self.kwargs.get(name, default)


Rule = Callable[[Call], list[dict[Axis, Coordinate | None]]]


def rule_of(name: str, func: Any) -> Rule | None:
    """The rule that passes positions through an operation; None if there is none."""
    name = name.rstrip("_") if not name.startswith("_") else name
    if name in _RULES:
        return _RULES[name]
    for pattern, rule in _PATTERNS:
        if re.fullmatch(pattern, name):
            return rule
    return _pointwise if torch.Tag.pointwise in func.tags else None


def _new(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """A new tensor, whose elements come from nowhere."""
    return []


def _pointwise(call: Call) -> list[dict[Axis, Coordinate | None]]:
    operands = [tensor for tensor in tensors_in_arguments((*call.args, *call.kwargs.values())) if call.of(tensor)]
    return [_joined(operands, call, result) for result in call.results]


def _joined(operands: Sequence[Tensor], call: Call, result: Tensor) -> dict[Axis, Coordinate | None]:
    place: dict[Axis, Coordinate | None] = {}
    for tensor in operands:
        if not _broadcasts(tensor.shape, result.shape):
            continue
        for axis, one in call.of(tensor).items():
            own = aligned(one, result)
            place[axis] = agreed(place[axis], own) if axis in place else own
    return place


def _first(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """Results of the shape of the first operand, at the same places."""
    first = call.args[0]
    return [dict(call.of(first)) if result.shape == first.shape else {} for result in call.results]


def _viewed(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """A change of shape that keeps the order of the elements."""
    first, result = call.args[0], call.results[0]
    return [{axis: reshaped(one, first.shape, result.shape) for axis, one in call.of(first).items()}]


def _rearranged(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """An operation that moves, leaves out or repeats elements: applied to the coordinates themselves."""
    first = call.args[0]
    rest, kwargs = [_on_cpu(arg) for arg in call.args[1:]], {k: _on_cpu(v) for k, v in call.kwargs.items()}
    places: list[dict[Axis, Coordinate | None]] = [{} for _ in call.results]
    for axis, one in call.of(first).items():
        moved = call.func(one.values.expand(first.shape), *rest, **kwargs)
        for place, values in zip(places, moved if isinstance(moved, (tuple, list)) else (moved,), strict=True):
            place[axis] = compact(Coordinate(values, one.pitch * _step(call, one)), look=call.name not in _VIEWS)
    return places


def _step(call: Call, one: Coordinate) -> int:
    """By which factor a slice with a step makes the distance between neighbours larger."""
    step = call.named("step", 1) if call.name == "slice" else 1
    return step if step > 1 and call.named("dim", 0) % one.values.dim() in one.compact().varies else 1


def _windows_as_channels(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """The pixels of windows as channels. Padding is zero, which no place is while the operation moves the places."""
    first = call.args[0]
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        below = one.values[~one.values.isnan()].amin() - 1
        moved = call.func((one.values - below).expand(first.shape), *call.args[1:], **call.kwargs)
        place[axis] = compact(Coordinate(moved.masked_fill(moved == 0, math.nan) + below, one.pitch))
    return [place]


def _rolled(call: Call) -> list[dict[Axis, Coordinate | None]]:
    if call.func._schema.name == "aten::roll" and not call.named("dims"):
        return _rearranged(call)
    return [
        {a: Coordinate(call.func(one.values, *call.args[1:]), one.pitch) for a, one in call.of(call.args[0]).items()}
    ]


def _concatenated(call: Call) -> list[dict[Axis, Coordinate | None]]:
    result, parts, dim = call.results[0], list(call.args[0]), call.named("dim", 0)
    stacked = call.func._schema.name == "aten::stack"
    dim = dim % result.dim()
    parts = [part for part in parts if stacked or part.dim() == result.dim()]  # cat skips empty tensors
    place: dict[Axis, Coordinate | None] = {}
    for axis in {axis for part in parts for axis in call.of(part)}:
        ones = [call.of(part).get(axis) for part in parts]
        values = []
        shape = [
            max(1, *(1 if one is None else size for one in ones for size in [_size(one, d, stacked, dim)]))
            for d in range(result.dim())
        ]
        for part, one in zip(parts, ones, strict=True):
            own = list(shape)
            own[dim] = 1 if stacked else part.shape[dim]
            if one is None:
                values.append(torch.full(own, math.nan))
            else:
                values.append((one.values.unsqueeze(dim) if stacked else one.values).expand(own))
        pitch = max(one.pitch for one in ones if one is not None)
        place[axis] = compact(Coordinate(torch.cat(values, dim), pitch))
    return [place]


def _size(one: Coordinate | None, axis: int, stacked: bool, dim: int) -> int:
    if one is None or axis == dim:
        return 1
    return one.values.shape[axis - (stacked and axis > dim)]


def _padded(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """Padding belongs to no place, along the axes where places change."""
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(call.args[0]).items():
        own = [by if one.values.shape[-1 - side // 2] > 1 else 0 for side, by in enumerate(call.args[1])]
        place[axis] = Coordinate(torch.constant_pad_nd(one.values, own, math.nan), one.pitch)
    return [place]


def _gathered(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """The largest values along an axis, with their indices."""
    first, dim = call.args[0], call.named("dim", -1)
    result, index = call.results[0], call.results[1].cpu()
    place: dict[Axis, Coordinate | None] = {
        axis: compact(Coordinate(one.values.expand(first.shape).gather(dim, index), one.pitch))
        for axis, one in call.of(first).items()
    }
    return [place] if result.shape == call.results[1].shape else [{}]


def _scattered(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """Elements of one tensor written into a copy of another."""
    tensors = [tensor for tensor in tensors_in_arguments(call.args) if tensor.is_floating_point()]
    axes = {axis for tensor in tensors for axis in call.of(tensor)}
    place: dict[Axis, Coordinate | None] = {}
    for axis in axes:
        args = [full(call.of(a).get(axis), a) if isinstance(a, Tensor) and a.is_floating_point() else _on_cpu(a)
                for a in call.args]  # fmt: skip
        pitch = max(one.pitch for tensor in tensors if (one := call.of(tensor).get(axis)))
        place[axis] = compact(Coordinate(call.func(*args, **call.kwargs), pitch))
    return [place]


def _reduced(call: Call) -> list[dict[Axis, Coordinate | None]]:
    first, dim = call.args[0], call.named("dim")
    dims = range(first.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    dims = sorted({d % first.dim() for d in dims}) if first.dim() else []
    kept = bool(call.named("keepdim", False))
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        mean = averaged(one, dims)
        place[axis] = mean if mean is None or kept else Coordinate(_without(mean.values, dims), mean.pitch)
    return [dict(place) for _ in call.results]


def _convolved(call: Call) -> list[dict[Axis, Coordinate | None]]:
    first, weight = call.args[0], call.args[1]
    if isinstance(weight, Tensor):
        stride, padding, dilation = (_each(call.named(name, 1), weight.dim() - 2) for name in _GEOMETRY)
        transposed, groups = bool(call.named("transposed", False)), call.named("groups", 1)
    else:  # the packed parameters of a quantised convolution
        stride, padding, dilation = (list(getattr(weight, name)()) for name in _GEOMETRY)
        transposed, groups, weight = bool(weight.transpose()), weight.groups(), weight.unpack()[0]
    spatial = weight.dim() - 2
    if call.func._schema.name.startswith("torchvision"):
        stride, padding, dilation = (
            [call.named(f"{name}_{side}") for side in "hw"] for name in ("stride", "pad", "dilation")
        )
        groups = call.named("groups")
    windows = [
        Windows(*geometry, transposed=transposed)
        for geometry in zip(weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        own_channel = groups > 1 and groups == first.shape[-1 - spatial] == call.results[0].shape[-1 - spatial]
        one_place = own_channel or one.values.shape[-1 - spatial] == 1
        mixed = one if one_place else averaged(one, [-1 - spatial])
        if mixed is not None:
            place[axis] = over_windows(mixed, windows, call.results[0].shape[-spatial:])
    return [place]


_GEOMETRY = ("stride", "padding", "dilation")


def _pooled(call: Call) -> list[dict[Axis, Coordinate | None]]:
    first, spatial = call.args[0], _spatial_axes(call.name)
    kernel = _each(call.named("kernel_size"), spatial)
    stride = _each(call.named("stride") or kernel, spatial)
    padding, dilation = (_each(call.named(n, b), spatial) for n, b in (("padding", 0), ("dilation", 1)))
    windows = [Windows(*geometry) for geometry in zip(kernel, stride, padding, dilation, strict=True)]
    place: dict[Axis, Coordinate | None] = {
        axis: over_windows(one, windows, call.results[0].shape[-spatial:]) for axis, one in call.of(first).items()
    }
    return [dict(place) for _ in call.results]


def _resized(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """An adaptive pooling, an interpolation, or an exchange of channels for pixels: the same extent in other cells."""
    first, result = call.args[0], call.results[0]
    spatial, shuffled = _spatial_axes(call.name), "shuffle" in call.name
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        mixed = averaged(one, [-1 - spatial]) if shuffled else one
        corners = bool(call.named("align_corners", False))
        windows = [Scaled(first.shape[k], result.shape[k], corners) for k in range(-spatial, 0)]
        if mixed is not None:
            place[axis] = over_windows(mixed, windows, result.shape[-spatial:])
    return [dict(place) for _ in call.results]


def _spatial_axes(name: str) -> int:
    """How many axes an operation works on, by its name: "max_pool3d"; two if the name does not say."""
    found = re.search(r"([123])d", name)
    return int(found[1]) if found else 2


def _product(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """A matrix product: the rows of the first factor and the columns of the second one.

    Where both have a place along an axis, as the queries and the keys of an attention do, that of the columns is kept
    under ``~axis``.
    """
    left, right = [arg for arg in call.args if isinstance(arg, Tensor)][-2:]
    bias = call.args[0] if call.func._schema.name in ("aten::addmm", "aten::baddbmm") else None
    result = call.results[0]
    rows = {axis: averaged(one, [-1]) for axis, one in call.of(left).items()}
    if call.func._schema.name == "aten::linear":
        left, right = call.args[:2]
        rows = {axis: averaged(one, [-1]) for axis, one in call.of(left).items()}
        return [rows]
    columns = {axis: averaged(one, [-2]) for axis, one in call.of(right).items()} if right.dim() > 1 else {}
    place: dict[Axis, Coordinate | None] = {}
    for axis in (*columns, *rows):  # rows come first where both have a place
        if axis[1] < 0:
            continue  # the keys of an attention before
        one = rows.get(axis) or columns.get(axis)
        other = columns.get(axis)
        if one is not None and not one.varies and other is not None and other.varies:
            one = other
        place[axis] = one
        if axis[1] >= 0 and rows.get(axis) is not None and other is not None:
            place[axis[0], ~axis[1]] = other
    if right.dim() == 1:
        place = {axis: one and Coordinate(one.values.squeeze(-1), one.pitch) for axis, one in rows.items()}
    if bias is not None and call.of(bias) and bias.dim() == result.dim():
        for axis, one in call.of(bias).items():
            if place.get(axis) is None:
                place[axis] = one
    return [place]


def _attended(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """Fused attention: the places of the queries."""
    query, result = call.args[0], call.results[0]
    if result.shape[:-1] != query.shape[:-1]:
        return [{}]
    return [{axis: averaged(one, [-1]) for axis, one in call.of(query).items()}]


def _halves(call: Call) -> list[dict[Axis, Coordinate | None]]:
    """A gated linear unit: the product of the two halves along an axis."""
    first, dim = call.args[0], call.named("dim", -1)
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        if one.values.shape[dim] == 1:
            place[axis] = one
        else:
            place[axis] = agreed(*(Coordinate(half, one.pitch) for half in one.values.chunk(2, dim)))
    return [place]


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_VIEWS = _all(
    "permute transpose t expand select slice unfold diagonal split split_with_sizes unbind narrow", _rearranged
)
_RULES: dict[str, Rule] = {
    **_all("native_layer_norm native_group_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit", _first),
    **_all("_native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_with_update", _first),
    **_all("_batch_norm_no_update batch_norm layer_norm group_norm instance_norm _fused_rms_norm rms_norm", _first),
    **_all("_softmax _log_softmax _safe_softmax softmax native_dropout dropout alpha_dropout feature_dropout", _first),
    **_all("relu relu6 hardtanh hardswish hardsigmoid leaky_relu elu celu selu silu mish gelu softplus", _first),
    **_all("hardshrink softshrink threshold masked_fill fill zero bernoulli uniform normal", _first),
    **_all("clone detach alias copy lift lift_fresh _to_copy to contiguous _conj", _first),
    **_all(
        "new_full new_zeros new_ones new_empty zeros_like ones_like empty_like full_like rand_like randn_like", _new
    ),
    **_all("quantize_per_tensor quantize_per_channel dequantize", _first),
    **_all("_native_multi_head_attention _transformer_encoder_layer_fwd", _first),
    **_all("where lerp addcmul addcdiv _prelu_kernel prelu rrelu_with_noise", _pointwise),
    **_all("view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten unflatten", _viewed),
    **_VIEWS,
    **_all(
        "narrow repeat unsafe_split unsafe_chunk chunk tensor_split index index_select gather take_along_dim",
        _rearranged,
    ),
    **_all("masked_select repeat_interleave native_channel_shuffle channel_shuffle movedim swapaxes", _rearranged),
    **_all("triu tril rot90", _rearranged),
    "im2col": _windows_as_channels,
    **_all("roll flip", _rolled),
    **_all("cat stack", _concatenated),
    **_all("topk sort", _gathered),
    **_all("masked_scatter scatter slice_scatter select_scatter index_copy index_put", _scattered),
    **_all("mean sum amax amin max min prod std var var_mean std_mean logsumexp linalg_vector_norm norm", _reduced),
    **_all("nansum median nanmean", _reduced),
    **_all("convolution _convolution convolution_overrideable conv1d conv2d conv3d deform_conv2d", _convolved),
    **_all("mm bmm addmm baddbmm _addmm_activation linear mv addmv", _product),
    "glu": _halves,
}
LOCAL = (_pointwise, _convolved, _pooled, _resized)
"""Rules of operations that do not mix distant places: a place that is lost there could not be followed."""
_PATTERNS: list[tuple[str, Rule]] = [
    (r"_scaled_dot_product_.*|scaled_dot_product_attention", _attended),
    (r"constant_pad_nd|(reflection|replication)_pad\dd", _padded),
    (r"(max|avg)_pool\dd(_with_indices)?|(mkldnn_|quantized_)max_pool\dd", _pooled),
    (r"_?(mkldnn_)?adaptive_(avg|max)_pool\dd|_?upsample_.*|pixel_(un)?shuffle", _resized),
    (r"(mkldnn_|cudnn_|miopen_)convolution.*|conv[123]d_(relu|add|add_relu)", _convolved),
    (r"(add|mul)(_scalar)?(_relu)?|batch_norm([123]d)?(_relu)?|.*elu6?|hardswish|sigmoid", _pointwise),  # quantised
]


def _without(values: Tensor, dims: Sequence[int]) -> Tensor:
    return values.reshape([size for axis, size in enumerate(values.shape) if axis not in dims])


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _broadcasts(shape: Sequence[int], onto: Sequence[int]) -> bool:
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in zip(shape[::-1], onto[::-1], strict=False))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        return [_on_cpu(one) for one in value]
    return value


def tensors_in_arguments(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation, also in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in_arguments(value)
