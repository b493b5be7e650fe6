"""Follow positions through a forward pass: which place in the inputs every element of every tensor belongs to.

Each element of an input has a coordinate along each axis. Every operation of the pass passes coordinates on: a
rearrangement moves them, a convolution or a pooling computes those of its windows' centres, a product or a mean over an
axis averages them along that axis, and an element-wise operation joins those of its operands. The rows of an attention
are its queries. Coordinates that an operation mixes beyond recognition, or that this module does not know how to
follow, are dropped, so what is left is proved by the network's own operations, not inferred from shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Axis = tuple[int, int]
"""An axis of an input: the number of the tensor among the inputs, and the axis; ``~axis`` for the keys of attention."""


class Coordinate(NamedTuple):
    """The places of a tensor's elements along one axis of an input."""

    values: Tensor
    """In elements of the input; NaN for elements from elsewhere. As many axes as the tensor, each of its size or 1."""
    pitch: float
    """The distance between neighbours, in elements of the input."""

    @property
    def is_known(self) -> bool:
        """Whether any element has a place."""
        return not bool(self.values.isnan().all())

    @property
    def varies(self) -> tuple[int, ...]:
        """The axes of the tensor along which the coordinate changes."""
        return tuple(axis for axis, size in enumerate(self.values.shape) if size > 1)

    def compact(self) -> Coordinate:
        """Return the same coordinate with size 1 along the axes where it does not change."""
        return _compact(self)


Place = dict[Axis, Coordinate]


class Positions(TorchDispatchMode):
    """A context that follows the positions of the elements of some tensors through all operations of this thread.

    Args:
        inputs: the tensors to follow.

    Example:
        >>> import torch
        >>> image, patches = torch.rand(1, 3, 32, 48), torch.nn.Conv2d(3, 8, 16, 16)
        >>> with torch.no_grad(), Positions([image]) as positions:
        ...     tokens = patches(image).flatten(2).mT
        >>> [coordinate.values.flatten().tolist() for coordinate in positions.of(tokens).values()]
        [[0.0], [7.5, 7.5, 7.5, 23.5, 23.5, 23.5], [7.5, 23.5, 39.5, 7.5, 23.5, 39.5]]
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[StorageWeakRef, dict[Any, Place]]] = {}
        self.not_followed: set[str] = set()
        """The operations that were met and that no rule follows."""
        for number, tensor in enumerate(inputs):
            self._set(tensor, {(number, axis): _along(tensor.shape, axis) for axis in range(tensor.dim())})

    def of(self, tensor: Tensor) -> Place:
        """Return the coordinates that are known of a tensor's elements; empty if none are."""
        key = _storage(tensor)
        known = None if key is None else self._known.get(key)
        return {} if known is None else known[1].get(_geometry(tensor), {})

    def _set(self, tensor: Tensor, place: Place) -> None:
        key = _storage(tensor)
        if key is None:
            return
        if key not in self._known:
            if not place:
                return
            # a weak reference keeps the address from being used again for another storage
            self._known[key] = StorageWeakRef(tensor.untyped_storage()), {}
        if place:
            self._known[key][1][_geometry(tensor)] = place
        else:
            self._known[key][1].pop(_geometry(tensor), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, and pass on the positions."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if not any(self.of(tensor) for tensor in _tensors((*args, *kwargs.values()))) and name != "copy_":
            if name.endswith("_") and isinstance(output, Tensor):
                return output
            for tensor in _tensors(output if isinstance(output, (tuple, list)) else (output,)):
                self._set(tensor, {})  # not that of a freed tensor
            return output
        call = _Call(self, func, args, kwargs, output)
        try:
            if name in ("copy_", "index_put_", "masked_scatter_", "scatter_"):
                self._write(name, call)
                return output
            rule = _rule(name, func)
            places = rule(call) if rule else []
        except Exception:  # arguments that the rule does not expect: the places are unknown, and the pass goes on
            rule, places = None, []
        if rule is None:
            self.not_followed.add(name)
        if rule is None and name.endswith("_") and isinstance(args[0], Tensor):
            self._forget(args[0])  # a change in place that is not followed, also of the tensor that this is a view of
        places += [{}] * (len(call.results) - len(places))
        for result, place in zip(call.results, places, strict=False):
            self._set(result, {axis: one for axis, one in place.items() if one is not None and one.is_known})
        return output

    def _forget(self, tensor: Tensor) -> None:
        """Drop what is known of a tensor and of all views of the same values."""
        key = _storage(tensor)
        if key in self._known:
            self._known[key][1].clear()

    def _write(self, name: str, call: _Call) -> None:
        """A write into a tensor or a view of one: into the coordinates of the whole."""
        target = call.args[0]
        source = call.args[2] if name in ("index_put_", "masked_scatter_") else call.args[1 if name == "copy_" else 3]
        written = self.of(source) if isinstance(source, Tensor) else {}
        whole = target if target._base is None else target._base
        if name == "copy_" and whole is target:
            self._set(target, {axis: _aligned(one, target) for axis, one in written.items()})
            return
        place, was = {}, self.of(whole)
        for axis in {*was, *written}:
            values = torch.full(tuple(whole.shape), math.nan)
            if axis in was:
                values.copy_(was[axis].values)
            stored = torch.empty_strided(tuple(whole.shape), whole.stride()).copy_(values)
            part = stored.as_strided(target.shape, target.stride(), target.storage_offset() - whole.storage_offset())
            new = _full(written.get(axis), source) if isinstance(source, Tensor) else torch.tensor(math.nan)
            if name == "copy_":
                part.copy_(new)
            elif name == "index_put_":
                part.index_put_([i if i is None else i.cpu() for i in call.args[1]], new)
            elif name == "masked_scatter_":
                part.masked_scatter_(call.args[1].cpu(), new)
            else:
                part.scatter_(call.args[1], call.args[2].cpu(), new)
            place[axis] = _compact(Coordinate(stored, (written.get(axis) or was[axis]).pitch))
        self._forget(target)
        self._set(whole, place)
        if whole is not target:
            self._set(target, self._seen_by(target, whole, place))

    @staticmethod
    def _seen_by(view: Tensor, whole: Tensor, place: Place) -> Place:
        seen = {}
        for axis, one in place.items():
            stored = torch.empty_strided(tuple(whole.shape), whole.stride()).copy_(one.values.expand(whole.shape))
            part = stored.as_strided(view.shape, view.stride(), view.storage_offset() - whole.storage_offset())
            seen[axis] = _compact(Coordinate(part, one.pitch))
        return seen


class _Call:
    """One operation with its arguments by name, and the coordinates of its operands."""

    def __init__(self, positions: Positions, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any):
        self.of, self.func, self.args, self.kwargs = positions.of, func, args, kwargs
        self.name = func._schema.name.split("::")[1]
        self.output = output
        self.results = list(_tensors(output if isinstance(output, (tuple, list)) else (output,)))

    def named(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for argument, value in zip(self.func._schema.arguments, self.args, strict=False):
            if argument.name == name:
                return value
        return self.kwargs.get(name, default)


Rule = Callable[[_Call], list[dict[Axis, Coordinate | None]]]


def _rule(name: str, func: Any) -> Rule | None:
    """The rule that passes positions through an operation; None if there is none."""
    name = name.rstrip("_") if not name.startswith("_") else name
    if name in _RULES:
        return _RULES[name]
    for pattern, rule in _PATTERNS:
        if re.fullmatch(pattern, name):
            return rule
    return _pointwise if torch.Tag.pointwise in func.tags else None


# --- rules ------------------------------------------------------------------------------------------------------------


def _new(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """A new tensor, whose elements come from nowhere."""
    return []


def _pointwise(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    operands = [tensor for tensor in _tensors((*call.args, *call.kwargs.values())) if call.of(tensor)]
    return [_joined(operands, call, result) for result in call.results]


def _joined(operands: Sequence[Tensor], call: _Call, result: Tensor) -> dict[Axis, Coordinate | None]:
    place: dict[Axis, Coordinate | None] = {}
    for tensor in operands:
        if not _broadcasts(tensor.shape, result.shape):
            continue
        for axis, one in call.of(tensor).items():
            aligned = _aligned(one, result)
            place[axis] = _agreed(place[axis], aligned) if axis in place else aligned
    return place


def _first(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """Results of the shape of the first operand, at the same places."""
    first = call.args[0]
    return [dict(call.of(first)) if result.shape == first.shape else {} for result in call.results]


def _viewed(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """A change of shape that keeps the order of the elements."""
    first, result = call.args[0], call.results[0]
    return [{axis: _reshaped(one, first.shape, result.shape) for axis, one in call.of(first).items()}]


def _rearranged(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """An operation that moves, leaves out or repeats elements: applied to the coordinates themselves."""
    first = call.args[0]
    rest, kwargs = [_on_cpu(arg) for arg in call.args[1:]], {k: _on_cpu(v) for k, v in call.kwargs.items()}
    places: list[dict[Axis, Coordinate | None]] = [{} for _ in call.results]
    for axis, one in call.of(first).items():
        moved = call.func(one.values.expand(first.shape), *rest, **kwargs)
        for place, values in zip(places, moved if isinstance(moved, (tuple, list)) else (moved,), strict=True):
            place[axis] = _compact(Coordinate(values, one.pitch), look=call.name not in _VIEWS)
    return places


def _windows_as_channels(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """The pixels of windows as channels; padding would be read as a place."""
    return [{}] if any(call.named("padding")) else _rearranged(call)


def _rolled(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    if call.func._schema.name == "aten::roll" and not call.named("dims"):
        return _rearranged(call)
    return [
        {a: Coordinate(call.func(one.values, *call.args[1:]), one.pitch) for a, one in call.of(call.args[0]).items()}
    ]


def _concatenated(call: _Call) -> list[dict[Axis, Coordinate | None]]:
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
        place[axis] = _compact(Coordinate(torch.cat(values, dim), pitch))
    return [place]


def _size(one: Coordinate | None, axis: int, stacked: bool, dim: int) -> int:
    if one is None or axis == dim:
        return 1
    return one.values.shape[axis - (stacked and axis > dim)]


def _padded(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """Padding belongs to no place, along the axes where places change."""
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(call.args[0]).items():
        own = [by if one.values.shape[-1 - side // 2] > 1 else 0 for side, by in enumerate(call.args[1])]
        place[axis] = Coordinate(torch.constant_pad_nd(one.values, own, math.nan), one.pitch)
    return [place]


def _gathered(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """The largest values along an axis, with their indices."""
    first, dim = call.args[0], call.named("dim", -1)
    result, index = call.results[0], call.results[1].cpu()
    place: dict[Axis, Coordinate | None] = {
        axis: _compact(Coordinate(one.values.expand(first.shape).gather(dim, index), one.pitch))
        for axis, one in call.of(first).items()
    }
    return [place] if result.shape == call.results[1].shape else [{}]


def _scattered(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """Elements of one tensor written into a copy of another."""
    tensors = [tensor for tensor in _tensors(call.args) if tensor.is_floating_point()]
    axes = {axis for tensor in tensors for axis in call.of(tensor)}
    place: dict[Axis, Coordinate | None] = {}
    for axis in axes:
        args = [_full(call.of(a).get(axis), a) if isinstance(a, Tensor) and a.is_floating_point() else _on_cpu(a)
                for a in call.args]  # fmt: skip
        pitch = max(one.pitch for tensor in tensors if (one := call.of(tensor).get(axis)))
        place[axis] = _compact(Coordinate(call.func(*args, **call.kwargs), pitch))
    return [place]


def _reduced(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    first, dim = call.args[0], call.named("dim")
    dims = range(first.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    dims = sorted({d % first.dim() for d in dims}) if first.dim() else []
    kept = bool(call.named("keepdim", False))
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        mean = _averaged(one, dims)
        place[axis] = mean if mean is None or kept else Coordinate(_without(mean.values, dims), mean.pitch)
    return [dict(place) for _ in call.results]


def _convolved(call: _Call) -> list[dict[Axis, Coordinate | None]]:
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
        _Windows(*geometry, transposed=transposed)
        for geometry in zip(weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        mixed = one if one.values.shape[-1 - spatial] == 1 else None if groups > 1 else _averaged(one, [-1 - spatial])
        place[axis] = mixed and _over_windows(mixed, windows, call.results[0].shape[-spatial:])
    return [place]


_GEOMETRY = ("stride", "padding", "dilation")


def _pooled(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    first, spatial = call.args[0], _spatial_axes(call.name)
    kernel = _each(call.named("kernel_size"), spatial)
    stride = _each(call.named("stride") or kernel, spatial)
    padding, dilation = (_each(call.named(n, b), spatial) for n, b in (("padding", 0), ("dilation", 1)))
    windows = [_Windows(*geometry) for geometry in zip(kernel, stride, padding, dilation, strict=True)]
    place: dict[Axis, Coordinate | None] = {
        axis: _over_windows(one, windows, call.results[0].shape[-spatial:]) for axis, one in call.of(first).items()
    }
    return [dict(place) for _ in call.results]


def _resized(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """An adaptive pooling, an interpolation, or an exchange of channels for pixels: the same extent in other cells."""
    first, result = call.args[0], call.results[0]
    spatial, shuffled = _spatial_axes(call.name), "shuffle" in call.name
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        mixed = _averaged(one, [-1 - spatial]) if shuffled else one
        windows = [_Scaled(first.shape[k], result.shape[k]) for k in range(-spatial, 0)]
        place[axis] = mixed and _over_windows(mixed, windows, result.shape[-spatial:])
    return [dict(place) for _ in call.results]


def _spatial_axes(name: str) -> int:
    """How many axes an operation works on, by its name: "max_pool3d"; two if the name does not say."""
    found = re.search(r"([123])d", name)
    return int(found[1]) if found else 2


def _product(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """A matrix product: the rows of the first factor and the columns of the second one.

    Where both have a place along an axis, as the queries and the keys of an attention do, that of the columns is kept
    under ``~axis``.
    """
    left, right = [arg for arg in call.args if isinstance(arg, Tensor)][-2:]
    bias = call.args[0] if call.func._schema.name in ("aten::addmm", "aten::baddbmm") else None
    result = call.results[0]
    rows = {axis: _averaged(one, [-1]) for axis, one in call.of(left).items()}
    if call.func._schema.name == "aten::linear":
        left, right = call.args[:2]
        rows = {axis: _averaged(one, [-1]) for axis, one in call.of(left).items()}
        return [rows]
    columns = {axis: _averaged(one, [-2]) for axis, one in call.of(right).items()} if right.dim() > 1 else {}
    place: dict[Axis, Coordinate | None] = {}
    for axis in (*columns, *rows):  # rows come first where both have a place
        one = rows.get(axis) or columns.get(axis)
        other = columns.get(axis)
        if one is not None and not one.varies and other is not None and other.varies:
            one = other
        place[axis] = one
        if rows.get(axis) is not None and other is not None:
            place[axis[0], ~axis[1]] = other
    if right.dim() == 1:
        place = {axis: one and Coordinate(one.values.squeeze(-1), one.pitch) for axis, one in rows.items()}
    if bias is not None and call.of(bias) and bias.dim() == result.dim():
        for axis, one in call.of(bias).items():
            if place.get(axis) is None:
                place[axis] = one
    return [place]


def _attended(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """Fused attention: the places of the queries."""
    query, result = call.args[0], call.results[0]
    if result.shape[:-1] != query.shape[:-1]:
        return [{}]
    return [{axis: _averaged(one, [-1]) for axis, one in call.of(query).items()}]


def _halves(call: _Call) -> list[dict[Axis, Coordinate | None]]:
    """A gated linear unit: the product of the two halves along an axis."""
    first, dim = call.args[0], call.named("dim", -1)
    place: dict[Axis, Coordinate | None] = {}
    for axis, one in call.of(first).items():
        if one.values.shape[dim] == 1:
            place[axis] = one
        else:
            place[axis] = _agreed(*(Coordinate(half, one.pitch) for half in one.values.chunk(2, dim)))
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
_PATTERNS: list[tuple[str, Rule]] = [
    (r"_scaled_dot_product_.*|scaled_dot_product_attention", _attended),
    (r"constant_pad_nd|(reflection|replication)_pad\dd", _padded),
    (r"(max|avg)_pool\dd(_with_indices)?|(mkldnn_|quantized_)max_pool\dd", _pooled),
    (r"_?(mkldnn_)?adaptive_(avg|max)_pool\dd|_?upsample_.*|pixel_(un)?shuffle", _resized),
    (r"(mkldnn_|cudnn_|miopen_)convolution.*|conv[123]d_(relu|add|add_relu)", _convolved),
    (r"(add|mul)(_scalar)?(_relu)?|batch_norm([123]d)?(_relu)?|.*elu6?|hardswish|sigmoid", _pointwise),  # quantised
]


# --- coordinates ------------------------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    """The windows of a convolution or a pooling along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    transposed: bool = False

    def centres(self, count: int) -> Tensor:
        """The centre of each window, in cells of what it reads."""
        reach = self.dilation * (self.kernel - 1) / 2 - self.padding
        cells = torch.arange(count)
        return (cells - reach) / self.stride if self.transposed else cells * self.stride + reach

    @property
    def step(self) -> float:
        return 1 / self.stride if self.transposed else self.stride

    @property
    def border(self) -> int:
        """How many cells at each border are not a window's centre, so that a network may take them from elsewhere."""
        return self.dilation * (self.kernel - 1)


class _Scaled(NamedTuple):
    """Cells that share out another number of cells evenly."""

    cells: int
    into: int

    def centres(self, count: int) -> Tensor:
        """The centre of each new cell, in old cells."""
        return (torch.arange(count) + 0.5) * self.step - 0.5

    @property
    def step(self) -> float:
        return self.cells / self.into

    @property
    def border(self) -> int:
        return 0


def _along(shape: Sequence[int], axis: int) -> Coordinate:
    values = torch.arange(shape[axis], dtype=torch.float32)
    return Coordinate(values.view([-1 if axis == other else 1 for other in range(len(shape))]), 1.0)


def _over_windows(one: Coordinate, windows: Sequence[_Windows | _Scaled], out: Sequence[int]) -> Coordinate | None:
    """The coordinate of windows over the last axes; None if it does not progress evenly along a single one of them."""
    first = one.values.dim() - len(windows)
    if sum(axis >= first for axis in one.varies) > 1:
        one = _compact(Coordinate(_without_padding(one.values, first), one.pitch))
    varying = [axis for axis in one.varies if axis >= first]
    if not varying:
        return one
    if len(varying) > 1:
        return None
    axis = varying[0]
    window, count = windows[axis - first], out[axis - first]
    line = _line_but_border(one.values.movedim(axis, -1), one.pitch, window.border)
    if line is None:
        return None
    start, step = line
    values = start[..., None] + step[..., None] * window.centres(count).to(start)
    return Coordinate(values.movedim(-1, axis), one.pitch * window.step)


def _without_padding(values: Tensor, first: int) -> Tensor:
    """Values with size 1 along the axes, from ``first`` on, where they change only into padding (NaN)."""
    for axis in range(first, values.dim()):
        high = values.nan_to_num(-math.inf).amax(axis, keepdim=True)
        low = values.nan_to_num(math.inf).amin(axis, keepdim=True)
        if torch.equal(high.clamp(max=low), high):
            values = high.masked_fill(high.isinf(), math.nan)
    return values


def _line_but_border(values: Tensor, pitch: float, border: int) -> tuple[Tensor, Tensor] | None:
    """:func:`_line`, apart from a border that comes from elsewhere, such as the other side in circular padding."""
    size = values.shape[-1]
    for cells in range(min(border, (size - 1) // 2) + 1):
        for before, after in ((cells, cells), (cells, 0), (0, cells)):
            inner = values.clone()
            inner[..., :before] = inner[..., size - after :] = math.nan
            line = _line(inner, pitch)
            if line is not None or not cells:
                break
        if line is not None:
            return line
    return None


def _line(values: Tensor, pitch: float) -> tuple[Tensor, Tensor] | None:
    """Start and step of an arithmetic progression along the last axis, which padding (NaN) may surround."""
    known = ~values.isnan()
    rows = known.any(-1)
    count = known.sum(-1)
    if not bool(rows.any()) or bool((count[rows] < 2).any()):
        return None
    first = known.int().argmax(-1)
    index = torch.arange(values.shape[-1])
    inside = (index >= first[..., None]) & (index < (first + count)[..., None])
    if not torch.equal(inside, known):
        return None
    a = values.gather(-1, first[..., None])[..., 0]
    b = values.gather(-1, (first + count - 1).clamp(min=0)[..., None])[..., 0]
    step = (b - a) / (count - 1)
    start = a - step * first
    off = (values - (start[..., None] + step[..., None] * index)).abs()
    return (start, step) if bool((off[known] <= pitch / 8).all()) else None


def _averaged(one: Coordinate, dims: Sequence[int]) -> Coordinate | None:
    """The mean along some axes, which are kept with size 1; None if no change along other axes is left."""
    total = one.values.dim()
    dims = [dim % total for dim in dims if one.values.shape[dim] > 1]
    if not dims:
        return one
    if set(dims) == set(one.varies):
        return None
    mean = one.values.nanmean(dims, keepdim=True)
    known = one.values.masked_fill(one.values.isnan(), math.inf).amin(dims, keepdim=True)
    span = one.values.masked_fill(one.values.isnan(), -math.inf).amax(dims, keepdim=True) - known
    finite = span[span.isfinite()]
    grown = one.pitch + float(finite.amax()) if finite.numel() else one.pitch
    averaged = _compact(Coordinate(mean, grown))
    return averaged if averaged.varies else None


def _agreed(one: Coordinate | None, other: Coordinate | None) -> Coordinate | None:
    """The coordinate of elements that are joined; None where they come from different places."""
    if one is None or other is None:
        return None
    if one.values is other.values:
        return one
    if bool(one.varies) != bool(other.varies):  # one is a single place, such as the pooled map of a gate
        return one if one.varies else other
    a, b = one.values, other.values
    pitch = max(one.pitch, other.pitch)
    joined = torch.where(a.isnan(), b, a)
    apart = (a - b).abs() > 0.75 * pitch
    if bool(apart.any()):
        joined = joined.masked_fill(apart.expand(joined.shape), math.nan)
        if bool(joined.isnan().all()):
            return None
    return Coordinate(joined, pitch)


def _aligned(one: Coordinate, result: Tensor) -> Coordinate:
    missing = result.dim() - one.values.dim()
    return one if missing <= 0 else Coordinate(one.values[(None,) * missing], one.pitch)


def _reshaped(one: Coordinate, old: Sequence[int], new: Sequence[int]) -> Coordinate:
    """The coordinate of a tensor that is viewed in another shape, expanded only along the axes that change."""
    expand, shape = [], []
    for before, after in _groups(list(old), list(new)):
        own = [one.values.shape[axis] for axis in before]
        constant = all(size == 1 for size in own)
        expand += [1 if constant else old[axis] for axis in before]
        shape += [1 if constant else new[axis] for axis in after]
    return _compact(Coordinate(one.values.expand(expand).reshape(shape), one.pitch), look=False)


def _groups(old: list[int], new: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [], []
        a = b = 1
        if i < len(old):
            before.append(i)
            a, i = old[i], i + 1
        if j < len(new):
            after.append(j)
            b, j = new[j], j + 1
        while a != b:
            if a < b and i < len(old):
                before.append(i)
                a, i = a * old[i], i + 1
            elif j < len(new):
                after.append(j)
                b, j = b * new[j], j + 1
            else:
                before.append(i)
                a, i = a * old[i], i + 1
        yield before, after


def _compact(one: Coordinate, look: bool = True) -> Coordinate:
    """The same coordinate with size 1 along the axes where it does not change: by its strides, or by a look at it."""
    values = one.values
    for axis, size in enumerate(values.shape):
        if size > 1 and (values.stride(axis) == 0 or (look and _same(values, axis))):
            values = values.narrow(axis, 0, 1)
    return Coordinate(values, one.pitch)


def _same(values: Tensor, axis: int) -> bool:
    """Whether values do not change along an axis."""
    first = values.narrow(axis, 0, 1)
    return bool(((values == first) | (values.isnan() & first.isnan())).all())


def _full(one: Coordinate | None, tensor: Tensor) -> Tensor:
    return torch.full(tuple(tensor.shape), math.nan) if one is None else one.values.expand(tensor.shape).contiguous()


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


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata) if tensor.numel() else None
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without storage
        return None


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
