"""CAM, the class activation map (Zhou et al. 2016, https://arxiv.org/abs/1512.04150)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.methods.arithmetic import check_alike, check_tensor, over_channels
from camlib.methods.base import LayerMethod
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.hooks import hooked


def cam(activations: Tensor, weights: Tensor) -> Tensor:
    r"""Weight each channel as the classifier does: :math:`\sum_k w_k^c A_k`.

    Args:
        activations: (N, C, ...); the classifier reads their mean over the positions.
        weights: (N, C), the classifier's weights for each image's class.

    Returns:
        (N, ...), signed; its mean is the logit without the bias.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.cam(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[2.0, -3.0]]))
        tensor([[[ 2., -3.]]])
    """
    check_alike(activations)
    check_tensor("weights", weights, "(N, C)", activations, 2)
    return over_channels(weights, activations)


class CAM(LayerMethod):
    """CAM: the classifier's own weights, for classifiers that are linear in the mean of the features.

    See :func:`camlib.functional.cam` for the equation; Zhou et al. 2016, https://arxiv.org/abs/1512.04150. It is
    defined only where ``logits = W mean(A) + b``, which every call checks on its input. There ReLU(CAM) equals Grad-CAM
    times the number of positions. Grad-CAM generalises CAM to other networks.

    One forward pass, no gradient.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.CAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "cam"
    needs_gradients: ClassVar[bool] = False

    def around(self) -> contextlib.AbstractContextManager[list[_Classifier]]:
        """Return a context that records the calls of linear layers."""
        return _noting_classifiers(self.model)

    def layer_maps(self, forward_pass: ForwardPass, layer: str) -> Tensor:
        """Return :func:`camlib.functional.cam` for each class.

        Raises:
            CamlibTypeError: the target is not a class.
            CamlibRuntimeError: the logits are not linear in the mean of the layer's output.
        """
        if not isinstance(forward_pass.target, targets.BoundLogits):
            raise CamlibTypeError(
                f"CAM explains classes, got target {forward_pass.target.explained!r}; use camlib.GradCAM for other "
                "scores"
            )
        activations = forward_pass.activations(layer)
        logits = targets.class_outputs(forward_pass.outputs.raw).detach()
        means = activations.flatten(2).mean(2)
        reading = [one for one in forward_pass.noted[self.name] if one.reads(means) and one.returns(logits)]
        if not reading:
            raise CamlibRuntimeError(
                f"CAM needs logits = W mean(A) + b, but no linear classifier reads the mean of layer {layer!r}, shape "
                f"{tuple(activations.shape)}, and returns the outputs: something lies between them, or the "
                "network is quantised; use camlib.GradCAM on the floating-point network"
            )
        weights = reading[-1].weights.to(means.dtype)
        weights = torch.cat([-weights, weights]) if len(weights) == 1 else weights
        classes = forward_pass.target.classes
        of_class = classes.unbind(1) if classes.dim() == 2 else (classes,)
        return forward_pass.stacked([cam(activations, weights[one]) for one in of_class])


@dataclass(frozen=True, eq=False)
class _Classifier:
    """A linear layer, or a convolution over one cell, with its input and output."""

    weights: Tensor  # (classes, C)
    read: Tensor  # (N, C)
    returned: Tensor  # (N, classes)

    def reads(self, means: Tensor) -> bool:
        """Whether it read the means (N, C), up to rounding."""
        return _equal(self.read, means)

    def returns(self, logits: Tensor) -> bool:
        """Whether it returned the logits (N, classes), up to rounding."""
        return _equal(self.returned, logits)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors (N, ...) are equal up to the rounding of the less precise one."""
    if one.shape != other.shape:
        return False
    rounding = 8 * max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps)
    one, other = one.double(), other.double()
    return bool(((one - other).abs() <= rounding * other.abs().amax(1, keepdim=True)).all())


@contextlib.contextmanager
def _noting_classifiers(model: nn.Module) -> Iterator[list[_Classifier]]:
    """Record this thread's calls of modules that map (N, C) to (N, classes) by a matrix."""
    noted: list[_Classifier] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if not args or not isinstance(output, Tensor):
            return
        weight: Any = module.weight
        matrix, read = weight.full_tensor() if hasattr(weight, "full_tensor") else weight, args[0]  # sharded by FSDP
        if not isinstance(matrix, Tensor) or not isinstance(read, Tensor) or not read.is_floating_point():
            return
        if read.dim() > 1 and read.shape[2:].numel() == 1 and output.shape[2:].numel() == 1:
            weights, cells, returned = (one.detach().flatten(1) for one in (matrix, read, output))
            if weights.shape == (returned.shape[1], cells.shape[1]):
                noted.append(_Classifier(weights, cells, returned))

    linear = [
        module
        for module in model.modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) >= 2
        and not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    with hooked((module, note) for module in linear):
        yield noted
