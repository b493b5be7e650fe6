r"""Balanced gradients: the backward rules of LibraGrad (Mehri et al. 2025, https://arxiv.org/abs/2411.16760).

The rules make each part of a network locally linear, so that the sum of input times gradient, over all that the network
adds up, is the score. They are those of an ordinary backward pass in which some factors are constants:

* an activation is its input times a gate, :math:`\operatorname{act}(x) = x \, g(x)`, and g is constant;
* a norm subtracts the mean and multiplies by a scale, which is constant; so is every divisor;
* attention multiplies values by weights, which are constant;
* a product of two features, as in SwiGLU, passes half of the gradient to each.

They are hooks on the nodes of autograd's graph. So the forward pass is untouched, to the last bit, and it does not
matter how the network calls an operation. Each node between the layer and the outputs must have a rule or be linear, at
least piece by piece; other nodes raise an error that names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from camlib.errors import CamlibRuntimeError
from camlib.passes.checkpoints import no_checkpoints
from camlib.passes.nodes import Paths, operation

Gradients = Sequence[Tensor | None]
Hook = Callable[[Gradients, Gradients], tuple[Tensor | None, ...] | None]
"""From the gradients of a node's inputs and of its outputs to other gradients of its inputs."""


class PlainGradients:
    """The gradients of one forward pass, as autograd computes them.

    Args:
        points: the tensors by which scores are differentiated: layers' outputs, or the images.
    """

    label: ClassVar[str] = ""
    """What comes before the name of a method with such gradients."""

    def __init__(self, points: Sequence[Tensor]) -> None:
        self._points = points

    def prepare(self, scores: Tensor, outputs: Iterable[Tensor]) -> None:
        """Prepare the graph of scores, which are a function of the outputs, for backward passes."""

    def allow_second_derivatives(self) -> None:
        """Raise an error if the gradients must not be differentiated again."""


class NoRuleError(CamlibRuntimeError):
    """An operation of the network has no balanced gradient."""


class BalancedGradients(PlainGradients):
    """The balanced gradients of one forward pass; those of the scores by the outputs are ordinary.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, -2.0, 4.0]], requires_grad=True)
        >>> scores = torch.nn.functional.gelu(x).sum(1)
        >>> BalancedGradients([x]).prepare(scores, [scores])
        >>> (gradient,) = torch.autograd.grad(scores.sum(), x)
        >>> torch.allclose((x * gradient).sum(1), scores)
        True
    """

    label: ClassVar[str] = "balanced "

    def __init__(self, points: Sequence[Tensor]) -> None:
        super().__init__(points)
        self._balanced: set[Node] = set()

    def prepare(self, scores: Tensor, outputs: Iterable[Tensor]) -> None:
        """Put hooks on the nodes between the points and the outputs.

        Raises:
            CamlibRuntimeError: a node has no rule; it is named. Or a point has no path but through constants.
        """
        paths = Paths(scores, outputs, self._points)
        factors = _Factors(paths)
        waiting = list(paths.ends)
        seen = set(waiting)
        with no_checkpoints():
            while waiting:
                node = waiting.pop()
                inputs = paths.inputs(node)
                if not inputs:
                    continue
                constant = _constant(node, inputs, factors)
                if node not in self._balanced:
                    hook = _hook(node, inputs, constant)
                    self._balanced.add(node)
                    if hook is not None:
                        node.register_hook(hook)
                new = [below for number, below in inputs.items() if number not in constant and below not in seen]
                seen.update(new)
                waiting += new
        starts = {get_gradient_edge(point).node for point in self._points}
        if any(node in paths.nodes and node not in seen for node in starts):
            raise CamlibRuntimeError(
                "a layer leads to the score only through weights, gates or scales, such as those of squeeze-and-"
                "excitation or the queries of attention, which are constant for balanced gradients; choose another "
                "layer, or use the method without camlib.balanced"
            )

    def allow_second_derivatives(self) -> None:
        """Refuse them.

        Raises:
            CamlibRuntimeError: always.
        """
        raise CamlibRuntimeError(
            "balanced gradients are those of a network whose gates, scales and weights are constant, so they have no "
            "second derivatives; use the method without camlib.balanced"
        )


class _Factors:
    """Which values are factors rather than features: weights, gates, scales, and what is linear in these alone."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._ranks: dict[Node, int] = {}

    def rank(self, node: Node) -> int:
        """Return 2 for weights, gates and scales, 1 for a tanh or an error function, which may be either, else 0."""
        waiting = [node]
        while waiting:
            one = waiting[-1]
            below = self._followed(one)
            missing = [other for other in below if other not in self._ranks]
            is_scale = _is_factor(one) or (_name(one) == "Div" and not below)  # constants, divided by features
            if is_scale or not below or _name(one) not in _FOLLOWED:
                self._ranks[waiting.pop()] = 2 if is_scale else _EITHER.get(_name(one), 0)
            elif missing:
                waiting += missing
            else:
                self._ranks[waiting.pop()] = min(self._ranks[other] for other in below)
        return self._ranks[node]

    def _followed(self, node: Node) -> list[Node]:
        """The nodes that a node's value depends on, without divisors."""
        inputs = self._paths.inputs(node)
        return [below for number, below in inputs.items() if number == 0 or _name(node) != "Div"]


def _name(node: Any) -> str:
    """The operation of a node; CopySlices is one in place on a part of a tensor, of which newer versions of torch tell.

    An arrangement or a sum is the same on a part of a tensor; what else is done there has no rule. A custom function
    may have the name of an operation of torch, so it keeps its ending, as in MulBackward.
    """
    on_part = getattr(node, "_wrapped_node", None)
    if on_part is not None and _name(on_part) in _LINEAR:
        return _name(on_part)
    of_torch, full = operation(node), node.name()
    return full if isinstance(node, BackwardCFunction) else of_torch


def _is_factor(node: Any) -> bool:
    """Whether an operation returns a weight, a gate or a scale."""
    exponent = getattr(node, "_saved_exponent", None)
    is_root = _name(node) == "Pow" and isinstance(exponent, (int, float)) and exponent < 1
    return is_root or _name(node) in _FACTORS


def _constant(node: Node, inputs: Mapping[int, Node], factors: _Factors) -> list[int]:
    """The inputs of a node that count as constants.

    Raises:
        CamlibRuntimeError: the node has no rule.
    """
    name = _name(node)
    if getattr(node, "_saved_rounding_mode", None) is not None:
        raise _no_rule(f"{name} with rounding")
    if name in _PRODUCTS:
        multiplied = [number for number in _PRODUCTS[name] if number in inputs]
        ranks = [factors.rank(inputs[number]) for number in multiplied]
        return [number for number, rank in zip(multiplied, ranks, strict=True) if rank > min(ranks)]
    if name in _OF_ONE_INPUT and _OF_ONE_INPUT[name] in inputs:
        return [
            number for number, (below, _) in enumerate(node.next_functions) if below and number != _OF_ONE_INPUT[name]
        ]
    if name in _EITHER or name == "Div" or _is_factor(node):
        raise NoRuleError(
            f"the score depends on {name} (as autograd names it) otherwise than as a factor of features, and balanced "
            "gradients have rules only for weights, gates and scales. If it turns the outputs into probabilities, "
            "explain the model without it, with forward=; if the layer computes a gate or weights, choose the layer "
            "that these multiply; else use ordinary gradients, as camlib.HiResCAM does"
        )
    if name not in _RULES and name not in _LINEAR:
        raise _no_rule(name)
    return []


def _no_rule(name: str) -> NoRuleError:
    return NoRuleError(
        f"the score depends on {name} (as autograd names it), for which balanced gradients have no rule. "
        "Switch off custom attention kernels (flash-attn, xformers, flex), replace scripted and compiled modules by "
        "the original ones and in-place operations by others, or use ordinary gradients, as camlib.HiResCAM does"
    )


def _hook(node: Node, inputs: Mapping[int, Node], constant: Sequence[int]) -> Hook | None:
    """The hook that balances the gradient of a node; None if the ordinary gradient is balanced."""
    name = _name(node)
    if name in _RULES:
        return _RULES[name](node)
    shared = [number for number in _PRODUCTS.get(name, ()) if number in inputs and number not in constant]
    factors = {**dict.fromkeys(constant, 0.0), **dict.fromkeys(shared if len(shared) == 2 else (), 0.5)}
    return _scaled(factors) if factors else None


def _scaled(factors: Mapping[int, float]) -> Hook:
    """Multiply the gradients of some inputs; a factor of zero leaves it out."""

    def hook(of_inputs: Gradients, of_outputs: Gradients) -> tuple[Tensor | None, ...]:
        pairs = [(one, factors.get(number, 1.0)) for number, one in enumerate(of_inputs)]
        return tuple(one if one is None or factor == 1 else factor * one if factor else None for one, factor in pairs)

    return hook


def _of_first_input(change: Callable[[Tensor], Tensor]) -> Hook:
    """Replace the gradient of the first input by a function of that of the output."""

    def hook(of_inputs: Gradients, of_outputs: Gradients) -> tuple[Tensor | None, ...] | None:
        first, start = of_inputs[0], of_outputs[0]
        if first is None or start is None:
            return None
        return (change(start).to(first.dtype), *of_inputs[1:])

    return hook


def _activation(gate: Callable[[Tensor, Any], Tensor]) -> Callable[[Any], Hook]:
    """The rule of an activation whose gate is a function of its input, and of the node, which holds its options."""

    def rule(node: Any) -> Hook:
        if not hasattr(node, "_saved_self"):
            raise _no_rule(f"{_name(node)} in place")
        of_input = gate(node._saved_self.detach(), node)
        return _of_first_input(lambda start: start * of_input)

    return rule


def _gelu_gate(x: Tensor, node: Any) -> Tensor:
    if node._saved_approximate == "tanh":
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def _silu_gate(x: Tensor, node: Any) -> Tensor:
    return x.sigmoid()


def _mish_gate(x: Tensor, node: Any) -> Tensor:
    return F.softplus(x).tanh()


def _hardswish_gate(x: Tensor, node: Any) -> Tensor:
    return F.hardsigmoid(x)


def _elu_gate(x: Tensor, node: Any) -> Tensor:
    """That of ELU and SELU."""
    alpha, scale, of_input = node._saved_alpha, node._saved_scale, node._saved_input_scale
    return torch.where(x > 0, scale, alpha * scale * _expm1_gate(x, of_input))


def _celu_gate(x: Tensor, node: Any) -> Tensor:
    alpha = node._saved_alpha
    return torch.where(x > 0, 1.0, alpha * _expm1_gate(x, 1 / alpha))


def _expm1_gate(x: Tensor, of_input: float) -> Tensor:
    return torch.where(x == 0, of_input, torch.expm1(of_input * x) / x)


def _power(node: Any) -> Hook:
    """A power p of at least 1 is its input times a gate, the power p - 1."""
    exponent = node._saved_exponent
    if not isinstance(exponent, (int, float)):
        raise _no_rule("Pow with a tensor as its exponent")
    return _scaled({0: 1 / exponent})


def _glu(node: Any) -> Hook:
    """The second half of the input, after a sigmoid, is the gate of the first."""
    axis = node._saved_dim
    gate = node._saved_self.detach().chunk(2, axis)[1].sigmoid()
    return _of_first_input(lambda start: torch.cat([start * gate, torch.zeros_like(start)], axis))


def _layer_norm(node: Any) -> Hook:
    scaled, weighted = _times(node._saved_result2), _times(node._saved_weight)
    axes = tuple(range(-len(node._saved_normalized_shape), 0))
    return _of_first_input(lambda start: scaled(_centred(weighted(start), axes)))


def _rms_norm(node: Any) -> Hook:
    scaled, weighted = _times(node._saved_result1), _times(node._saved_weight)
    return _of_first_input(lambda start: scaled(weighted(start)))


def _group_norm(node: Any) -> Hook:
    scaled, weighted = _times(node._saved_result2[..., None]), _times(node._saved_weight, channels=1)
    groups = node._saved_group

    def change(start: Tensor) -> Tensor:
        of_groups = weighted(start).reshape(len(start), groups, -1)
        return scaled(_centred(of_groups, (-1,))).reshape(start.shape)

    return _of_first_input(change)


def _batch_norm(node: Any) -> Hook | None:
    """The rule of instance norms, and of batch norms without running statistics; the others are linear."""
    if not node._saved_training:
        return None
    scaled, weighted = _times(node._saved_result2, channels=1), _times(node._saved_weight, channels=1)

    def change(start: Tensor) -> Tensor:
        return scaled(_centred(weighted(start), tuple(axis for axis in range(start.dim()) if axis != 1)))

    return _of_first_input(change)


def _centred(gradient: Tensor, axes: tuple[int, ...]) -> Tensor:
    return gradient - gradient.mean(axes, keepdim=True)


def _times(factor: Any, channels: int | None = None) -> Callable[[Tensor], Tensor]:
    """Multiply a tensor by a constant, if there is one; the axis of channels is the last one by default."""
    constant: Tensor | None = None if factor is None else factor.detach()

    def multiplied(tensor: Tensor) -> Tensor:
        if constant is None:
            return tensor
        shape = constant.shape if channels is None else (-1, *[1] * (tensor.dim() - channels - 1))
        return tensor * constant.reshape(shape)

    return multiplied


_RULES: dict[str, Callable[[Any], Hook | None]] = {
    "Gelu": _activation(_gelu_gate),
    "Silu": _activation(_silu_gate),
    "Mish": _activation(_mish_gate),
    "Hardswish": _activation(_hardswish_gate),
    "Elu": _activation(_elu_gate),
    "Celu": _activation(_celu_gate),
    "Pow": _power,
    "Glu": _glu,
    "NativeLayerNorm": _layer_norm,
    "FusedRmsNorm": _rms_norm,
    "NativeGroupNorm": _group_norm,
    "NativeBatchNorm": _batch_norm,
    "CudnnBatchNorm": _batch_norm,
}
"""The rules of activations and norms."""

_PRODUCTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Mul", "Bmm", "Mm", "Mv", "Dot", "LinalgVecdot", "Linear", "Convolution"), (0, 1)),
    **dict.fromkeys(("Addmm", "Addmv", "Baddbmm", "Addbmm", "Addcmul"), (1, 2)),
}
"""Products, and which of their inputs are multiplied."""

_OF_ONE_INPUT: dict[str, int] = {
    "Div": 0,
    "ScaledDotProductFlashAttention": 2,
    "ScaledDotProductFlashAttentionForCpu": 2,
    "ScaledDotProductEfficientAttention": 2,
    "ScaledDotProductCudnnAttention": 2,
    "ScaledDotProductFusedAttentionOverrideable": 2,
}
"""Operations that are linear in one of their inputs, whose others count as constants: quotients, and attention."""

_FACTORS = frozenset({
    "Softmax", "SafeSoftmax", "Sigmoid", "Hardsigmoid", "Exp", "Rsqrt", "Reciprocal", "Sqrt", "LinalgVectorNorm",
    "Norm", "Var", "VarMean", "Std", "StdMean",
})  # fmt: skip
"""Operations that return weights, gates and scales."""

_EITHER: dict[str, int] = {"Tanh": 1, "Erf": 1}
"""Operations whose result is a gate if it multiplies a feature, and a feature if a gate multiplies it."""

_LINEAR = frozenset({
    # arrangements
    "Alias", "AsStrided", "Cat", "ChannelShuffle", "Clone", "Col2Im", "ConstantPadNd", "Copy", "CopyBackwards",
    "Diagonal", "Expand", "Fill", "Flip", "Gather", "Im2Col", "Index", "IndexAdd", "IndexCopy", "IndexPut",
    "IndexSelect", "MaskedFill", "MaskedScatter", "MaskedSelect", "Permute", "PixelShuffle", "PixelUnshuffle",
    "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "Repeat", "ReplicationPad1D", "ReplicationPad2D",
    "ReplicationPad3D", "ReshapeAlias", "Roll", "Scatter", "ScatterAdd", "Select", "SelectScatter", "Slice",
    "SliceScatter", "Split", "SplitWithSizes", "Squeeze", "Stack", "T", "Take", "ToCopy", "Transpose", "Tril",
    "Triu", "Unbind", "Unfold", "UnsafeSplit", "UnsafeSplitWithSizes", "UnsafeView", "Unsqueeze", "View",
    "ViewAsComplex", "ViewAsReal", "Zero",
    "BackwardHookFunctionBackward",  # the identity to which torch ties a module's backward hooks
    # sums and resizing
    "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "Add", "AvgPool2D", "AvgPool3D", "Cumsum", "FftC2C", "FftC2R", "FftR2C",
    "Mean", "NativeDropout", "Neg", "Rsub", "Sub", "Sum", "Trace", "UpsampleBicubic2D", "UpsampleBicubic2DAa",
    "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleLinear1D", "UpsampleNearest1D", "UpsampleNearest2D",
    "UpsampleNearest3D", "UpsampleTrilinear3D",
    # linear piece by piece
    "Abs", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Amax", "Amin", "Clamp", "ClampMax", "ClampMin", "Hardtanh",
    "LeakyRelu", "Max", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Maximum", "Min", "Minimum", "PreluKernel",
    "Relu", "Sort", "Threshold", "Topk", "Where",
})  # fmt: skip
"""Operations whose ordinary gradient is balanced."""

_FOLLOWED = _LINEAR | _PRODUCTS.keys() | {"Div"}
"""Operations whose result is a factor if their inputs are."""
