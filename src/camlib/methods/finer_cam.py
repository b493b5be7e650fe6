"""Finer-CAM (Zhang et al. 2025, https://arxiv.org/abs/2501.11309)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from camlib import targets
from camlib.errors import CamlibTypeError, number
from camlib.methods.base import GradientMethod
from camlib.methods.grad_cam import grad_cam
from camlib.passes.forward_pass import ForwardPass


class FinerCAM(GradientMethod):
    r"""Finer-CAM: what distinguishes a class from the most similar classes.

    Grad-CAM of a contrast: :math:`s_c - \gamma \operatorname{mean}_{d \in D} s_d`, where D is the set of classes whose
    logits are nearest to :math:`s_c`; Zhang et al. 2025, https://arxiv.org/abs/2501.11309. Common evidence cancels. The
    options of the authors' code are ``FinerCAM(model, weight=1.0, average="probability")``.

    One forward pass and one tail gradient (K for K classes).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        weight: gamma, the share of the nearest classes' mean score that is subtracted.
        nearest: the number of classes in D.
        average: "mean", or "probability" for a mean that weights each class of D by its probability.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError: ``weight`` is not a number, or ``nearest`` is not an int.
        CamlibValueError: ``weight`` is negative or not finite, or ``nearest`` is less than 1, or ``average``
            is unknown.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.FinerCAM(torchvision.models.resnet18(num_classes=6).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "finer_cam"

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        *,
        weight: float = 0.6,
        nearest: int = 3,
        average: Literal["mean", "probability"] = "mean",
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        number("weight", weight, at_least=0)  # less would add the other classes
        targets.Contrast(weight=weight, nearest=nearest, average=average)  # checks them before the first call
        self.weight = weight
        self.nearest = nearest
        self.average = average

    def about(self, forward_pass: ForwardPass) -> ForwardPass:
        """Return the pass with the contrast as its target.

        Raises:
            CamlibTypeError: the target is not a class.
        """
        if not isinstance(forward_pass.target, targets.BoundLogits):
            raise CamlibTypeError(
                f"Finer-CAM contrasts a class with others, got target {forward_pass.target.explained!r}; use "
                "camlib.GradCAM for other scores"
            )
        contrast = targets.Contrast(weight=self.weight, nearest=self.nearest, average=self.average)
        return forward_pass.about(contrast.of_indices(forward_pass.target.classes, forward_pass.outputs.raw))

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.grad_cam`."""
        return grad_cam(activations, gradients)
