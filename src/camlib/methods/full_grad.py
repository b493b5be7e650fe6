"""FullGrad (Srinivas and Fleuret 2019, https://arxiv.org/abs/1905.00780)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlib.errors import CamlibRuntimeError, CamlibValueError, NotFiniteError, number
from camlib.imaging.normalization import as_maps, is_constant
from camlib.imaging.resizing import interpolated
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.base import Layer, Method, Reads, one_pass
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.leaf import gradient
from camlib.passes.numbers import not_finite, single_or_double

TOLERANCE = 1e-5
"""The largest residual allowed, as a share of the sum of all absolute terms, in single and double precision.

On torchvision's piecewise linear classifiers, rounding in float32 leaves 2e-8 of that sum. The other classifiers, with
random weights and statistics, leave 4e-4 or more, which is between a hundredth of the score and all of it.
"""


@dataclass(frozen=True, eq=False)
class FullGradients:
    """A decomposed score: ``scores = input_term + all bias_terms + residual``, each summed over all axes but the first.

    For K scores per image, every tensor has a class axis after the first.
    """

    input_term: Tensor
    """(N, C, ...), input times gradient."""
    bias_terms: Mapping[str, Tensor]
    """By module, the bias times the gradient where it is added; (N, C, ...) for convolutions and batch norms,
    (N, ..., C) for linear layers. From a module's second call on, the name has a number, as in ``"conv (2)"``."""
    scores: Tensor
    """(N,), the scores that are decomposed."""
    residual: Tensor
    """(N,), the scores minus all terms; only rounding if the network is piecewise linear."""
    magnitude: Tensor
    """(N,), the sum of all absolute terms, to which the residual's rounding error is proportional."""


def full_gradients(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> FullGradients:
    r"""Decompose a score into the contributions of the input and of each bias.

    .. math:: s(x) = \nabla_x s^\top x + \sum_l \nabla_{b_l} s^\top b_l

    (equation 2), which is exact for piecewise linear networks: convolutions, linear layers, batch norm, ReLU
    and LeakyReLU, max and average pooling, and additions. A batch norm's bias is
    :math:`\beta - \gamma \mu / \sqrt{\sigma^2 + \epsilon}` of its running statistics. Other networks leave a residual:
    other activations, gates, softmax, attention and layer norms are not linear, and ReLU6 saturates. Constants that the
    model adds itself (when it normalises its input, for example), inputs other than the images, modules whose rows are
    crops or windows, and scores that are not linear in the outputs leave a residual, too.

    One forward and one backward pass; K backward passes for K classes. The model's state is restored.

    Args:
        model: any module; it runs in eval mode.
        inputs: what the model takes.
        target: as for :class:`camlib.methods.Method`.
        forward: as for :class:`camlib.methods.Method`.

    Returns:
        All terms, and the residual.

    Raises:
        CamlibRuntimeError: the score does not depend on the images, or a term is not finite, or the model uses
            reentrant checkpointing.

    Example:
        >>> import camlib, torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=4).double()
        >>> parts = camlib.functional.full_gradients(model, torch.rand(2, 3, 64, 64, dtype=torch.float64), target=1)
        >>> parts.bias_terms["layer4.0.bn1"].shape
        torch.Size([2, 512, 2, 2])
        >>> bool((parts.residual.abs() < 1e-12 * parts.magnitude).all())
        True
    """
    method = FullGrad(model, forward=forward)
    with one_pass([method], inputs, target) as (forward_pass,):
        forward_pass.target.warn_if_flat()
        terms: dict[str, list[Tensor]] = {}
        sums = [
            method.take_apart(forward_pass, scores, lambda name, term, *_: terms.setdefault(name, []).append(term))
            for scores in _checked_scores(forward_pass)
        ]
        joined = {name: forward_pass.stacked(of_classes) for name, of_classes in terms.items()}
        return FullGradients(
            input_term=joined.pop(""),
            bias_terms=dict(reversed(joined.items())),  # the backward pass yields them last to first
            scores=forward_pass.scores.detach(),
            residual=forward_pass.stacked([one.residual for one in sums]),
            magnitude=forward_pass.stacked([one.magnitude for one in sums]),
        )


def full_grad(input_term: Tensor, bias_terms: Sequence[Tensor]) -> Tensor:
    r"""Sum the post-processed terms: that of the input, and those of biases on a grid.

    .. math:: \sum_c \psi(x \odot \nabla_x s)_c + \sum_l \sum_c \psi(b_l \odot \nabla_{b_l} s)_c, \quad
        \psi = \mathrm{upsample} \circ \mathrm{rescale} \circ \mathrm{abs}

    (equation 6). Each channel is rescaled to [0, 1] separately, then resized bilinearly with half-pixel centres.
    A constant channel carries no spatial information and counts as 0. The authors' code, unlike their equation,
    rescales all channels of a layer together and aligns corners; grad-cam rescales each channel, as here. Both add an
    absolute epsilon (1e-6, 1e-7) to the divisor, which suppresses small gradients.

    Args:
        input_term: (N, C, ...).
        bias_terms: (N, C, ...) for each convolution and batch norm.

    Returns:
        (N, ...), not negative.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.full_grad(torch.tensor([[[[0.0, -2.0]]]]), [torch.tensor([[[[3.0, 1.0]]]])])
        tensor([[[1., 1.]]])
    """
    check_tensor("input_term", input_term, "(N, C, ...)")
    size = tuple(input_term.shape[2:])
    maps = _rescaled(as_maps(input_term, "input_term").abs())
    check_tensors("bias_terms", bias_terms, "(N, C, ...)")
    for term in bias_terms:
        check_tensor("bias_terms", term, "(N, C, ...)")
        if (len(term), term.dim()) != (len(input_term), input_term.dim()):
            raise CamlibValueError(
                f"bias_terms must be (N, C, ...) with the N and the axes of input_term {tuple(input_term.shape)}, got "
                f"{tuple(term.shape)}"
            )
        maps = maps + interpolated(_rescaled(as_maps(term, "bias_terms").abs()), size)
    return maps


def _rescaled(magnitudes: Tensor) -> Tensor:
    """The paper's psi of absolute values before it resizes, summed over the channels: (N, C, ...) -> (N, ...)."""
    cells = magnitudes.flatten(2)
    low, high = torch.aminmax(cells, dim=2, keepdim=True)
    ranges = (high - low).masked_fill(is_constant(torch.cat([low, high], 2), 1)[..., None], torch.inf)
    return ((cells - low) / ranges).sum(1).reshape(-1, *magnitudes.shape[2:])


@dataclass(eq=False)
class Sums:
    """Sums over the terms of (N,) scores."""

    residual: Tensor
    """(N,), the scores minus all terms."""
    magnitude: Tensor
    """(N,), the sum of their absolute values."""


Consume = Callable[[str, Tensor, Tensor, bool], None]
"""Receives a term: the module's name ("" for the input), the term, its absolute values, and whether a grid follows its
channel axis."""
Receive = Callable[[str, Tensor, bool], None]
"""The same, without the absolute values."""


class FullGrad(Method):
    """FullGrad: the contributions of the input and of every bias to the score, added up over the image.

    See :func:`camlib.functional.full_grad` for the map and :func:`camlib.functional.full_gradients` for its terms;
    Srinivas and Fleuret 2019, https://arxiv.org/abs/1905.00780. The terms sum to the score for piecewise linear
    networks (ResNet, VGG, DenseNet and others made of ReLU, convolutions, linear layers, batch norm and pooling). For
    other networks they leave a residual that no map shows, so those are refused unless ``tolerance`` allows it.

    The method reads no layer: the maps (N, ...) have the input's resolution. They are never negative, so ``relu`` has
    no effect.

    One forward and one backward pass of the whole network; K backward passes for K classes. Each term is added to a
    map during the backward pass; they are never all in memory at once.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads the whole network.
        tolerance: the largest residual allowed, as a share of the sum of all absolute terms, to which its rounding
            error is proportional; ``math.inf`` allows any network. By default 1e-5, or for scores in half precision
            one unit in the last place.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibValueError: ``tolerance`` is negative.
        CamlibRuntimeError: when called, if the terms do not sum to the score.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.FullGrad(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str] = "full_grad"
    reads: ClassVar[Reads] = "input gradient"

    def __init__(
        self, model: nn.Module, layer: Layer = None, *, tolerance: float | None = None, **options: Any
    ) -> None:
        super().__init__(model, layer, **options)
        if tolerance is not None and not (isinstance(tolerance, float) and tolerance == math.inf):
            number("tolerance", tolerance, at_least=0)
        self.tolerance = tolerance

    def around(self) -> contextlib.AbstractContextManager[_Biases]:
        """Return a context that records where biases are added."""
        return _Biases(self.model)

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.full_grad` for each class."""
        return {"": forward_pass.stacked([self._map(forward_pass, one) for one in _checked_scores(forward_pass)])}

    def _map(self, forward_pass: ForwardPass, scores: Tensor) -> Tensor:
        """The map of one score per image, after checking that the terms sum to it."""
        leaf = forward_pass.whole_leaf
        of_sizes: dict[tuple[int, ...], Tensor] = {}  # resizing is linear, so that maps of a size are resized together

        def add(name: str, term: Tensor, magnitudes: Tensor, on_grid: bool) -> None:
            if on_grid and term.dim() == leaf.dim():
                size, rescaled = tuple(term.shape[2:]), _rescaled(magnitudes)
                of_sizes[size] = of_sizes[size] + rescaled if size in of_sizes else rescaled

        sums = self.take_apart(forward_pass, scores, add)
        tolerance = max(TOLERANCE, torch.finfo(scores.dtype).eps) if self.tolerance is None else self.tolerance
        far = sums.residual.abs() > tolerance * sums.magnitude

        def incomplete() -> CamlibRuntimeError:
            image = int(far.nonzero()[0])
            residual, magnitude = sums.residual[image].item(), sums.magnitude[image].item()
            return CamlibRuntimeError(
                f"the full gradients do not sum to the score: for image {image} the score is "
                f"{scores[image].item():.6g} and the residual {residual:.6g}, "
                f"{abs(residual) / magnitude if magnitude else float('inf'):.2g} of the sum of the terms' absolute "
                f"values ({tolerance:g} is allowed). FullGrad is complete for piecewise linear networks "
                "(ReLU, convolutions, linear layers, batch norm, pooling) that add no other constants, and for scores "
                "linear in their outputs; explain others with camlib.GradCAM, or accept the residual with tolerance="
            )

        forward_pass.checks.never(far.any(), incomplete)
        return torch.stack([interpolated(maps, tuple(leaf.shape[2:])) for maps in of_sizes.values()]).sum(0)

    def take_apart(self, forward_pass: ForwardPass, scores: Tensor, consume: Consume) -> Sums:
        """Pass each term of scores (N,) to ``consume``: the biases from last to first, then the input."""
        total = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
        leaf = forward_pass.whole_leaf
        names: list[str] = []
        of_terms: list[Tensor] = []
        absolute: list[Tensor] = []

        def receive(name: str, term: Tensor, on_grid: bool) -> None:
            if len(term) != len(total):  # its rows are crops or windows, which belong to no single image
                return
            term = single_or_double(term.detach())
            magnitudes = term.abs()
            names.append(name)
            of_terms.append(term.flatten(1).sum(1))
            absolute.append(magnitudes.flatten(1).sum(1))
            consume(name, term, magnitudes, on_grid)

        with forward_pass.noted[self.name].sent_to(receive):
            found = gradient(scores, leaf)
        receive("", found * leaf.detach(), True)
        magnitudes = torch.stack(absolute)

        def problem() -> NotFiniteError:
            finite = magnitudes.isfinite()
            first = int((~finite.all(1)).nonzero()[0])
            return not_finite(f"term of {names[first]!r}" if names[first] else "term of the input", finite[first])

        forward_pass.checks.never(~magnitudes.isfinite().all(), problem)
        return Sums(total - torch.stack(of_terms).sum(0), magnitudes.sum(0))


def _checked_scores(forward_pass: ForwardPass) -> Sequence[Tensor]:
    """The scores (N,) of each class, which must be finite."""
    forward_pass.checks.finite("score", forward_pass.scores)
    return forward_pass.score_of_each_class


class _Biases(TorchFunctionMode):
    """Records each bias that a forward pass adds, and passes its terms to a function in every backward pass.

    It watches functions, not modules, so it also sees a batch norm inside a module that applies an activation after it,
    and convolutions whose weights are computed in the forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._owners = {
            id(tensor): name
            for name, module in model.named_modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }
        self._calls: dict[str, int] = {}
        self._receive: Receive | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; where it adds a bias, listen to the gradient at its output."""
        output = func(*args, **(kwargs or {}))
        if func in _BIASES:
            with torch.no_grad():  # otherwise a checkpoint would miss, in the backward pass, what is saved here
                owner, bias = _BIASES[func](*args, **(kwargs or {}))
            if bias is not None and output.requires_grad:
                on_grid = func is not F.linear
                values = bias.reshape(-1, *[1] * (output.dim() - 2)) if on_grid else bias
                self._listen(output, self._named(owner, func), values, on_grid)
        return output

    def _named(self, owner: Tensor, func: Any) -> str:
        name = self._owners.get(id(owner), func.__name__)
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name} ({self._calls[name]})"

    def _listen(self, output: Tensor, name: str, bias: Tensor, on_grid: bool) -> None:
        def send(gradient: Tensor) -> None:
            if self._receive is not None:
                self._receive(name, gradient.detach() * bias, on_grid)

        output.register_hook(send)  # in-place operations on the output come after it in the graph

    @contextlib.contextmanager
    def sent_to(self, receive: Receive) -> Iterator[None]:
        """Pass the terms of backward passes to a function; it is dropped afterwards: the graph keeps this object."""
        self._receive = receive
        try:
            yield
        finally:
            self._receive = None


def _affine_bias(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Any:
    return bias, None if bias is None else bias.clone()  # FSDP frees its memory after the module's forward


def _batch_norm_bias(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:  # the batch's own statistics: not linear
        return None, None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return running_mean, -running_mean * scale if bias is None else bias - running_mean * scale


_BIASES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            F.linear,
            F.conv1d,
            F.conv2d,
            F.conv3d,
            F.conv_transpose1d,
            F.conv_transpose2d,
            F.conv_transpose3d,
        ),
        _affine_bias,
    ),
    F.batch_norm: _batch_norm_bias,
}
"""Functions that add a bias, and how to read the module's own tensor and the bias from their arguments."""
