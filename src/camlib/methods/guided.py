"""Guided backpropagation (Springenberg et al. 2015, https://arxiv.org/abs/1412.6806), and Guided Grad-CAM."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlib.errors import CamlibRuntimeError
from camlib.explanation import Explanation
from camlib.methods.arithmetic import check_tensor
from camlib.methods.base import Method, Reads, one_pass
from camlib.methods.grad_cam import GradCAM
from camlib.passes.checkpoints import no_checkpoints
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.leaf import gradient
from camlib.passes.nodes import Paths, operation
from camlib.passes.numbers import single_or_double
from camlib.passes.precision import restored


def guided_gradients(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Tensor:
    r"""Differentiate a score with respect to the image, through positive gradients of active ReLUs only.

    .. math:: R^l = [A^l > 0] \, [R^{l+1} > 0] \, R^{l+1}

    backwards through each ReLU with input A; every other operation keeps its ordinary gradient. ReLU6 passes the
    gradient where 0 < A < 6. A ReLU is ``nn.ReLU``, ``F.relu``, ``torch.relu``, ``tensor.relu()``, each in place or
    not, and ``clamp(min=0)``, however the model calls it.

    Any other nonlinear function between the images and the outputs is refused: activations, ``where`` and
    ``masked_fill``, ``maximum`` and ``abs``, exponentials, logarithms, powers and sines, clamps to tensors, and
    scripted or compiled code. Max pooling, softmax, normalisations, products, and clamps to other numbers (of colours,
    boxes and divisors) keep their ordinary gradient; custom autograd functions keep their own backward. Some
    activations therefore cannot be detected: a product with a mask, as ``z * (z > 0)``, or of a tensor with itself;
    operations inside a custom function; in-place operations on a part of a tensor, as ``z[:, :2].abs_()``; and
    assignments to masked positions.

    One forward and one backward pass; K backward passes for K classes. The model's state is restored.

    Args:
        model: any module whose only activations are ReLU and ReLU6; it runs in eval mode.
        inputs: what the model takes.
        target: as for :class:`camlib.methods.Method`.
        forward: as for :class:`camlib.methods.Method`.

    Returns:
        (N, C, ...), signed, or (N, K, C, ...) for K classes.

    Raises:
        CamlibRuntimeError: the model has other activations, or no ReLU, or uses activation checkpointing, or the score
            does not depend on the images.

    Example:
        >>> import camlib, torch, torchvision
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> camlib.functional.guided_gradients(model, images).shape
        torch.Size([2, 3, 64, 64])
    """
    with one_pass([GuidedBackprop(model, forward=forward)], inputs, target) as (forward_pass,):
        forward_pass.target.warn_if_flat()
        return forward_pass.stacked(_guided(forward_pass))


def guided_backprop(gradients: Tensor) -> Tensor:
    r"""Sum the absolute guided gradient over the input's channels: :math:`\sum_c |R_c|`.

    Args:
        gradients: (N, C, ...), :func:`camlib.functional.guided_gradients`.

    Returns:
        (N, ...), not negative.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.guided_backprop(torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]]))
        tensor([[[4., 2.]]])
    """
    check_tensor("gradients", gradients, "(N, C, ...)")
    return gradients.abs().sum(1)


def guided_grad_cam(gradients: Tensor, maps: Tensor) -> Tensor:
    r"""Weight the guided gradient by the Grad-CAM map M: :math:`\sum_c |R_c| M`.

    The paper draws the product itself, in colour: ``gradients * maps[:, None]``.

    Args:
        gradients: (N, C, ...), :func:`camlib.functional.guided_gradients`.
        maps: (N, ...), Grad-CAM maps after the ReLU, resized bilinearly to the input.

    Returns:
        (N, ...).

    Example:
        >>> import camlib, torch
        >>> gradients, maps = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]]), torch.tensor([[[1.0, 0.5]]])
        >>> camlib.functional.guided_grad_cam(gradients, maps)
        tensor([[[4., 1.]]])
    """
    of_inputs = guided_backprop(gradients)
    check_tensor("maps", maps, "(N, ...)", of_inputs)
    return of_inputs * maps


class GuidedBackprop(Method):
    """Guided backpropagation: the pixels that raise the score along positive paths through the ReLUs.

    See :func:`camlib.functional.guided_backprop` for the equation, and :func:`camlib.functional.guided_gradients` for
    the signed gradient (N, C, ...) itself; Springenberg et al. 2015, https://arxiv.org/abs/1412.6806. It shows the
    edges that the network responds to, but hardly depends on the class: compare with :class:`camlib.Sobel`. Networks
    with activations other than ReLU and ReLU6 are refused, since there is no rule for them.

    The method reads no layer: the maps (N, ...) have the input's resolution. They are never negative, so ``relu`` has
    no effect.

    One forward and one backward pass of the whole network; K backward passes for K classes.

    Raises:
        CamlibRuntimeError: when called, as for :func:`camlib.functional.guided_gradients`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GuidedBackprop(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str] = "guided_backprop"
    reads: ClassVar[Reads] = "input gradient"

    @contextlib.contextmanager
    def around(self) -> Iterator[_Guidance]:
        """Run the network with guided ReLUs."""
        with _Guidance() as guidance:
            yield guidance
        if not guidance.met:
            raise CamlibRuntimeError(
                f"{type(self.model).__name__} calls no ReLU, and without one guided backpropagation is the plain "
                "gradient; use camlib.GradCAM. ReLUs inside scripted and compiled submodules cannot be seen"
            )

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.guided_backprop` for each class."""
        return {"": forward_pass.stacked([guided_backprop(one) for one in _guided(forward_pass)])}


class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM: the fine lines of guided backpropagation where Grad-CAM locates the class.

    See :func:`camlib.functional.guided_grad_cam` for the equation; Selvaraju et al. 2017,
    https://arxiv.org/abs/1610.02391. The maps (N, ...) have the input's resolution; ``explanation.layers`` keeps the
    Grad-CAM maps, which are computed from ordinary gradients. With ``relu=False`` the factor is the signed Grad-CAM
    map. The product scales with the square of the score; it is in double precision where single precision does not
    hold it.

    Two forward passes: one cut at the layer, with one tail gradient, and one for the guided gradient, with one
    backward pass of the whole network (for K classes, K tail gradients and K backward passes).

    Raises:
        CamlibRuntimeError: when called, as for :func:`camlib.functional.guided_gradients`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.GuidedGradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> explanation = cam(torch.rand(2, 3, 64, 64))
        >>> explanation.maps.shape, explanation.layers["layer4"].shape
        (torch.Size([2, 64, 64]), torch.Size([2, 2, 2]))
    """

    name: ClassVar[str] = "guided_grad_cam"
    compiles: ClassVar[bool] = False  # it makes two passes

    @property
    def forward_passes(self) -> int:
        """One cut at the layer, and one for the guided gradient."""
        return 2

    def explanation(self, forward_pass: ForwardPass) -> Explanation:
        """Return the guided gradient, from a separate pass, times the Grad-CAM map of the given pass."""
        cam = super().explanation(forward_pass)
        guided = GuidedBackprop(self.model, forward=self.network.forward)
        with (
            restored(forward_pass.precision),
            one_pass([guided], forward_pass.inputs.raw, forward_pass.target) as (guided_pass,),
        ):
            gradients = _guided(guided_pass)
        resized = cam.heatmaps(normalize="none")
        of_classes = resized.unbind(1) if cam.has_class_axis else (resized,)
        pairs = list(zip(gradients, of_classes, strict=True))
        maps = forward_pass.stacked([guided_grad_cam(*pair) for pair in pairs])
        if not _fits(maps, maps.dtype):
            wide = forward_pass.stacked([guided_grad_cam(one.double(), other.double()) for one, other in pairs])
            maps = maps if _fits(wide, maps.dtype) else wide
        forward_pass.checks.finite("map", maps)
        return dataclasses.replace(cam, maps=maps, extent=None, origin=None)


def _fits(maps: Tensor, dtype: torch.dtype) -> bool:
    """Whether the maps of all images that are not zero in double precision are in the range of a type."""
    limits, largest = torch.finfo(dtype), maps.abs().flatten(1).amax(1)
    in_range = (limits.tiny / limits.eps < largest) & (largest <= limits.max)
    return bool((in_range | (largest == 0) if maps.dtype == torch.float64 else in_range).all())


def _guided(forward_pass: ForwardPass) -> list[Tensor]:
    """Each class's guided gradient (N, C, ...)."""
    leaf = forward_pass.whole_leaf
    _check_guided(forward_pass, leaf)
    gradients = [single_or_double(gradient(one, leaf)) for one in forward_pass.score_of_each_class]
    forward_pass.checks.finite("score", forward_pass.scores)
    for one in gradients:
        forward_pass.checks.finite("guided gradient", one)
    return gradients


def _check_guided(forward_pass: ForwardPass, leaf: Tensor) -> None:
    """Look for activations that the guidance missed, on the graph's paths from the images to the outputs.

    Operations of the target on the outputs are not checked, and neither are branches that do not start from the images,
    such as the exponential of a temperature.

    Raises:
        CamlibRuntimeError: naming the first one found.
    """
    with no_checkpoints():
        for node in Paths(forward_pass.scores, forward_pass.outputs.tensors, [leaf]).nodes:
            _check_node(node)


def _check_node(node: Any) -> None:
    name = operation(node)
    if "Clamp" in name:
        bounds = [getattr(node, saved, None) for saved in ("_saved_min", "_saved_max")]
        if any(isinstance(bound, Tensor) for bound in bounds):
            raise _no_rule("clamp with a tensor as its bound")
        if bounds in ([0, None], [0, 6]):
            raise _no_rule("clamp as an activation")
    if name in _NONLINEAR:
        raise _no_rule(f"{name} (as autograd names it)")


class _Rectified(torch.autograd.Function):
    """ReLU, or ReLU6 with a finite upper bound, that passes only positive gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, upper: float, inplace: bool) -> Tensor:
        """Clamp to [0, upper]."""
        output = input.clamp_(0, upper) if inplace else input.clamp(0, upper)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward((output > 0) & (output < upper))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Pass positive gradients where the input was between the bounds."""
        (inside,) = ctx.saved_tensors
        return gradient * (inside & (gradient > 0)), None, None


class _Guidance(TorchFunctionMode):
    """Replaces every ReLU that this thread calls by :class:`_Rectified`; refuses other activations."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False
        """Whether a ReLU was called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or its guided replacement."""
        kwargs = kwargs or {}
        if func in _UNRULED:
            raise _no_rule(_UNRULED[func])
        rectifier = _RECTIFIERS[func](*args, **kwargs) if func in _RECTIFIERS else None
        if rectifier is None or not rectifier[0].is_floating_point():
            return func(*args, **kwargs)
        self.met = True
        return _Rectified.apply(*rectifier)


def _no_rule(name: str) -> CamlibRuntimeError:
    return CamlibRuntimeError(
        f"the model calls {name}, and guided backpropagation has rules only for ReLU and ReLU6; use camlib.GradCAM, "
        "which takes any activation. If the call only turns the outputs into probabilities, explain the model without "
        "it. A ReLU must be called by its name, in Python: not scripted, compiled or written out"
    )


Rectifier = tuple[Tensor, float, bool] | None
"""Input, upper bound, and whether it works in place; None if the function is not a ReLU."""


def _relu(input: Tensor, inplace: bool = False) -> Rectifier:
    return input, math.inf, inplace


def _relu6(input: Tensor, inplace: bool = False) -> Rectifier:
    return input, 6.0, inplace


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Rectifier:
    if (min_val, max_val) != (0, 6):
        raise _no_rule(f"hardtanh between {min_val} and {max_val}")
    return _relu6(input, inplace)


def _clamp(input: Tensor, min: Any = None, max: Any = None, inplace: bool = False, **_: Any) -> Rectifier:
    """Recognise only the bounds of ReLU and ReLU6; other bounds clip colours, boxes and divisors."""
    bounds = tuple(bound for bound in (min, max) if bound is not None and not isinstance(bound, Tensor))
    if bounds == (0,) and max is None:
        return _relu(input, inplace)
    return _relu6(input, inplace) if bounds == (0, 6) else None


def _in_place(rule: Callable[..., Rectifier]) -> Callable[..., Rectifier]:
    return lambda *args, **kwargs: rule(*args, **{**kwargs, "inplace": True})


def _spellings(name: str) -> list[Any]:
    """The functions and methods with that name."""
    return [getattr(place, name) for place in (torch, torch.Tensor, F) if hasattr(place, name)]


_RECTIFIERS: dict[Any, Callable[..., Rectifier]] = {
    spelling: rule
    for name, of_name in (
        ("relu", _relu),
        ("relu6", _relu6),
        ("hardtanh", _hardtanh),
        ("clamp", _clamp),
        ("clip", _clamp),
        ("clamp_min", _clamp),
    )
    for ending, rule in (("", of_name), ("_", _in_place(of_name)))
    for spelling in _spellings(name + ending)
}
"""How to read a ReLU from the arguments of each function that can be one."""

_UNRULED: dict[Any, str] = {
    spelling: name
    for name in (
        *("sigmoid", "hardsigmoid", "logsigmoid", "tanh", "hardswish", "silu", "mish", "gelu", "erf", "glu"),
        *("elu", "celu", "selu", "leaky_relu", "prelu", "rrelu", "threshold", "softplus", "softsign"),
        *("tanhshrink", "softshrink", "hardshrink", "lstm", "gru", "rnn_tanh", "rnn_relu"),
    )
    for ending in ("", "_")
    for spelling in _spellings(name + ending)
}
"""Nonlinear functions without a rule, and their names."""

_NONLINEAR = frozenset({
    "Relu", "LeakyRelu", "Prelu", "PreluKernel", "Rrelu", "RreluWithNoise", "Threshold", "Hardtanh", "Elu", "Celu",
    "Selu", "Gelu", "Silu", "Mish", "Hardswish", "Hardsigmoid", "Sigmoid", "LogSigmoid", "Tanh", "Softplus",
    "Softshrink", "Hardshrink", "Glu", "Where", "MaskedFill", "Maximum", "Minimum", "Fmax", "Fmin", "Abs", "Exp",
    "Exp2", "Expm1", "Log", "Log1P", "Log2", "Log10", "Logaddexp", "Pow", "Sin", "Cos", "Tan", "Asin", "Acos",
    "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Erf", "Erfc", "Erfinv", "CudnnRnn", "MiopenRnn",
    "MkldnnRnnLayer", "DifferentiableGraph", "CompiledFunction",
})  # fmt: skip
"""Nodes of the autograd graph without a rule, by name; the last two mark scripted and compiled code."""
