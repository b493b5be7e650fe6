"""The method that ``method="auto"`` chooses for a network and a target, and why: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from camlib import targets
from camlib.errors import CamlibError
from camlib.inputs import Inputs, Outputs, detections_in
from camlib.methods.base import Method
from camlib.methods.eigen_cam import EigenGradCAM
from camlib.methods.grad_cam import GradCAM
from camlib.methods.layer_cam import LayerCAM
from camlib.methods.libra_grad import LibraGrad
from camlib.passes.attention import ATTENTION
from camlib.passes.isolation import undisturbed
from camlib.passes.network import Network

Kind = Literal["box", "placed", "function", "transformer", "convolutional"]
"""What decides: the score belongs to a box, has another place, is a function of the outputs, or belongs to the whole
image of a network."""
BOXES = (targets.Box, targets.Detection)
"""Targets whose scores are those of boxes."""
WHOLE = (
    *(targets.Classes, targets.Confidence, targets.Contrast, targets.ReST),
    *(targets.BinaryLogit, targets.MultiLabel, targets.Output),
    *(targets.Similarity, targets.Difference, targets.BoundLogits),
)
"""Targets whose scores belong to the whole image, unless the outputs have places."""


@dataclass(frozen=True)
class Recommendation:
    """A method, and why it is recommended.

    Example:
        >>> RECOMMENDED["convolutional"].method.name
        'grad_cam'
    """

    method: type[Method]
    reason: str


RECOMMENDED: dict[Kind, Recommendation] = {
    "box": Recommendation(
        EigenGradCAM,
        "the score belongs to a box: EigenGradCAM, the first component of gradient times activation, put most of its "
        "map on the object where the truth was known",
    ),
    "placed": Recommendation(
        LayerCAM,
        "the score has a place in the image: LayerCAM weights each position by its own gradient, where Grad-CAM gives "
        "each channel one weight for all positions",
    ),
    "function": Recommendation(
        LayerCAM,
        "the score is a function, which may have a place in the image: LayerCAM weights each position by its own "
        "gradient",
    ),
    "transformer": Recommendation(
        LibraGrad,
        "the network has attention, so activation times gradient does not sum to the score; with LibraGrad's balanced "
        "gradients it does",
    ),
    "convolutional": Recommendation(
        GradCAM,
        "the score belongs to the whole image, and the network has no attention: few methods that cost as little did "
        "better, and if pooling and one linear layer follow, Grad-CAM and HiResCAM are the same map",
    ),
}
"""By what decides. The measurements are in the guide to methods and on the pages of evidence."""


def recommended(network: Network, inputs: Any, target: Any = None) -> Recommendation:
    """Return the method to explain a target of a network with, from one forward pass of the first image.

    Args:
        network: the network.
        inputs: what it takes.
        target: as for :meth:`camlib.methods.Method.__call__`.

    Example:
        >>> import torch, torchvision
        >>> network = Network.of(torchvision.models.resnet18(num_classes=4).eval())
        >>> recommended(network, torch.rand(2, 3, 64, 64)).method.name
        'grad_cam'
    """
    return RECOMMENDED[_kind(network, network.ready(inputs), target)]


def _kind(network: Network, inputs: Inputs, target: Any) -> Kind:
    if isinstance(target, BOXES):
        return "box"
    if isinstance(target, targets.Region):
        return "placed"
    if callable(target) or (isinstance(target, targets.Target) and not isinstance(target, WHOLE)):
        return "function"
    outputs, attends = _first_pass(network, inputs)
    if _are_detections(outputs):
        return "box"
    main = Outputs(outputs).main
    if main is not None and main.dim() > 2:
        return "placed"
    return "transformer" if attends else "convolutional"


def _first_pass(network: Network, inputs: Inputs) -> tuple[Any, bool]:
    """The outputs of the first image, and whether attention was computed for them."""
    with undisturbed(network.module), _Attends() as seen:
        return network.run(inputs.first()), seen.found


class _Attends(TorchFunctionMode):
    """Notes attention: torch's functions, or the softmax of a product of tokens with tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note what it is."""
        if func in ATTENTION:
            self.found = True
        if func in (F.softmax, torch.softmax, torch.Tensor.softmax) and getattr(args[0], "ndim", 0) >= 4:
            self.found = self.found or args[0].shape[-1] == args[0].shape[-2] > 1
        return func(*args, **(kwargs or {}))


def _are_detections(outputs: Any) -> bool:
    try:
        return detections_in(outputs) is not None
    except CamlibError:
        return True
