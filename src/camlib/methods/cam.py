"""CAM, the class activation map (Zhou et al. 2016, https://arxiv.org/abs/1512.04150)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from camlib import targets
from camlib.errors import CamlibRuntimeError, CamlibTypeError
from camlib.methods.arithmetic import over_channels
from camlib.methods.base import LayerMethod
from camlib.methods.evidence import Evidence


def cam(activations: Tensor, weights: Tensor) -> Tensor:
    r"""Weight each channel as the classifier does: :math:`\sum_k w_k^c A_k`.

    Args:
        activations: (N, C, ...), whose mean over the positions the classifier reads.
        weights: (N, C), the classifier's weights for each image's class.

    Returns:
        (N, ...), signed; its mean is the logit without the bias.

    Example:
        >>> import camlib, torch
        >>> camlib.cam(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[2.0, -3.0]]))
        tensor([[[ 2., -3.]]])
    """
    return over_channels(weights, activations)


class CAM(LayerMethod):
    """CAM: the classifier's own weights, where it is linear in the mean of the features.

    See :func:`camlib.cam` for the equation; Zhou et al. 2016, https://arxiv.org/abs/1512.04150. It exists only where
    ``logits = W mean(A) + b``, which every call checks on its input. There the number of positions times Grad-CAM is
    ReLU(CAM); elsewhere Grad-CAM is what CAM became.

    One forward pass, no gradient.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.CAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "cam"
    needs_gradients: ClassVar[bool] = False

    def layer_maps(self, evidence: Evidence, layer: str) -> Tensor:
        """Return :func:`camlib.cam` for each class.

        Raises:
            CamlibTypeError: the target is not a class.
            CamlibRuntimeError: the logits are not linear in the mean of the layer's output.
        """
        if not isinstance(evidence.target, targets.Classes):
            raise CamlibTypeError(
                f"CAM explains classes, got target {evidence.target.resolved!r}; use camlib.GradCAM for other scores"
            )
        activations = evidence.activations(layer)
        weights = _class_weights(self.model, activations, evidence.outputs, layer)
        classes: Tensor = evidence.target.resolved
        of_class = classes.unbind(1) if classes.dim() == 2 else (classes,)
        return evidence.stacked([cam(activations, weights[one]) for one in of_class])


def _class_weights(model: nn.Module, activations: Tensor, outputs: object, layer: str) -> Tensor:
    """The weights (classes, C) of the linear classifier that reads the mean of the activations."""
    logits = targets.class_outputs(outputs)
    means = activations.flatten(2).mean(2)
    tolerance = torch.finfo(logits.dtype).eps ** 0.5
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        weights = weight.detach().flatten(1).to(means.dtype)
        if weights.shape != (logits.shape[1], means.shape[1]):
            continue
        bias = bias.detach().to(means.dtype) if isinstance(bias, Tensor) else means.new_zeros(())
        error = (means @ weights.T + bias - logits).abs()
        if bool((error <= tolerance * (means.abs() @ weights.abs().T + bias.abs())).all()):
            return torch.cat([-weights, weights]) if len(weights) == 1 else weights
    raise CamlibRuntimeError(
        f"CAM needs logits = W mean(A) + b, but no linear classifier reads the mean of layer {layer!r}, shape "
        f"{tuple(activations.shape)}: something lies between them, or the outputs are no logits; use camlib.GradCAM"
    )
