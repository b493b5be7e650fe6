"""LibraGrad (Mehri et al. 2025, https://arxiv.org/abs/2411.16760): balanced gradients for any method, and alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from camlib.discovery.finding import find_entry_in
from camlib.errors import CamlibTypeError
from camlib.inputs import Inputs
from camlib.methods.base import GradientMethod, Layer, Method
from camlib.methods.guided import GuidedBackprop, GuidedGradCAM
from camlib.methods.hires_cam import hires_cam
from camlib.passes.balancing import BalancedGradients

AnyMethod = TypeVar("AnyMethod", bound=Method)


def balanced(method: AnyMethod) -> AnyMethod:
    r"""Return a method with balanced gradients, which suit transformers: LibraGrad.

    Mehri et al. 2025, https://arxiv.org/abs/2411.16760. In a transformer, activation times gradient does not sum to
    the score, because attention weights, the scales of norms and the gates of activations also depend on the features.
    Balanced gradients treat these factors as constants:

    * an activation is :math:`\operatorname{act}(x) = x \, g(x)` with a constant gate g (GELU, SiLU, Mish, Hardswish,
      ELU, powers; also written by hand, as :math:`x \, \sigma(1.702 x)`);
    * LayerNorm and RMSNorm multiply by a constant scale; so do group and instance norms, and every other division;
    * attention weights are constant, so gradients reach tokens only through their values;
    * a product of two features, as in SwiGLU, passes half of the gradient to each; but a factor that ends in a sigmoid,
      a softmax, an exponential, a root, a norm or a deviation is constant. A gate that is written with ReLU6 or a
      clamp, as :math:`x \, \operatorname{relu6}(x + 3) / 6`, counts as a feature; that of ``nn.Hardswish`` and
      ``nn.Hardsigmoid`` is constant.

    Then the sum of activation times gradient over a layer through which everything passes, plus that of all constants
    added behind it (biases, position embeddings, class tokens), is the score. The forward pass and the scores are
    unchanged, to the last bit. The authors' code has these rules for LayerNorm, attention, GELU, SiLU, gated MLPs and
    the normalisation of embeddings; the others follow from the same principle. ReLU, pooling, convolutions and batch
    norms keep their gradients, so for most convolutional networks nothing changes.

    An operation without a rule on a path from the layer to the outputs is an error that names it: a tanh or sigmoid as
    an activation, recurrent layers, custom kernels and autograd functions, scripted modules. What the target computes
    from the outputs keeps its gradient.

    It takes as many passes as the method. The rules are hooks on the graph of the backward pass. They compute the
    gradient of each norm and activation again, which costs about as much as the operation itself.

    Args:
        method: a method that reads gradients at layers or at the input, such as ``camlib.HiResCAM(model)``.

    Returns:
        A copy of the method, whose name in results begins with "balanced".

    Raises:
        CamlibTypeError: the method reads no gradients at layers or at the images themselves (such as LeGrad, Score-CAM
            and integrated gradients), or changes gradients itself (guided backpropagation).
        CamlibRuntimeError: when called, if an operation has no rule, or the method differentiates twice.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> cam = camlib.balanced(camlib.HiResCAM(vit))
        >>> cam(torch.rand(2, 3, 32, 32))
        Explanation(balanced hires_cam at 'encoder.layers.encoder_layer_1.ln_1': maps (2, 4, 4) ...)
    """
    if not isinstance(method, Method):
        raise CamlibTypeError(
            f"camlib.balanced takes a method such as camlib.HiResCAM(model), got {method!r}; wrap what it returns to "
            "average its maps: camlib.NoiseAveraging(camlib.balanced(method))"
        )
    if (
        not method.needs_gradients
        or method.reads not in ("layers", "input gradient")
        or isinstance(method, (GuidedBackprop, GuidedGradCAM))
    ):
        raise CamlibTypeError(
            f"camlib.balanced changes the gradients at layers or at the images; {type(method).__name__} reads no such "
            "gradients, or changes them itself; balance another method, such as camlib.HiResCAM"
        )
    other = copy.copy(method)
    other._compiled = copy.copy(method._compiled)
    other._found = dict(method._found)
    other.network = method.network.with_gradients(BalancedGradients)
    return other


def libra_grad(activations: Tensor, gradients: Tensor) -> Tensor:
    r"""Sum activation times balanced gradient over the channels, position by position: :math:`\sum_k G_k A_k`.

    The function is that of HiResCAM; G is the balanced gradient, whose rules :func:`camlib.balanced` describes.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...), balanced, of the scores with respect to the activations.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.libra_grad(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]]))
        tensor([[[ 4., -3.]]])
    """
    return hires_cam(activations, gradients)


class LibraGrad(GradientMethod):
    """LibraGrad: how much each token that enters a transformer's first block contributes to the score.

    See :func:`camlib.functional.libra_grad` for the equation, and :func:`camlib.balanced` for the gradients; Mehri et
    al. 2025, https://arxiv.org/abs/2411.16760. The paper applies balanced gradients to several methods; this one is
    input times gradient, where the input is the tokens with their position embeddings. The sum of the signed map
    (``relu=False``), plus the terms of the class token and of all biases behind the layer, is the score. At a given
    layer, the method is balanced HiResCAM.

    Without ``layer``, the method reads the last feature map before the network's first branch: in a vision transformer,
    the input of the first block. In convolutional networks that map is early and fine, and most of them have ordinary
    gradients; use HiResCAM or LayerCAM there.

    One forward pass and one tail gradient (K for K classes); the tail is nearly the whole network.

    Raises:
        CamlibRuntimeError: when called, as for :func:`camlib.balanced`.

    Example:
        >>> import camlib, torch, torchvision
        >>> vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
        >>> camlib.LibraGrad(vit)(torch.rand(2, 3, 32, 32))
        Explanation(libra_grad at 'encoder.dropout': maps (2, 4, 4) ...)
    """

    name: ClassVar[str] = "libra_grad"
    finds_one_layer: ClassVar[bool] = False

    def __init__(self, model: nn.Module, layer: Layer = None, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.network = self.network.with_gradients(BalancedGradients)

    @property
    def title(self) -> str:
        """Its name alone, which already says that its gradients are balanced."""
        return self.name

    def __repr__(self) -> str:
        return super().__repr__().removeprefix(self.network.gradients.label)

    def find_layers(self, inputs: Inputs) -> Sequence[str]:
        """Return the last feature map before the first branch."""
        return [find_entry_in(self.network, inputs)]

    def maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return :func:`camlib.functional.libra_grad`."""
        return libra_grad(activations, gradients)
