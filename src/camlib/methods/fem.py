"""FEM, the Feature Explanation Method (Fuad et al. 2020, https://doi.org/10.1109/IPTA50016.2020.9286629)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from camlib.errors import number
from camlib.methods.arithmetic import check_alike, over_channels, per_channel
from camlib.methods.base import ActivationMethod
from camlib.methods.eigen_cam import with_sign


def fem(activations: Tensor, deviations: float = 2.0) -> Tensor:
    r"""Sum the channels' rare, strong activations, each weighted by the channel's mean.

    .. math:: \sum_k \mu_k \, [A_k \ge \mu_k + 2 \sigma_k]

    with the mean and the (population) standard deviation of channel k over its positions. None of n values can be more
    than :math:`\sqrt{n - 1}` deviations above their mean. On a grid of fewer than 5 cells (``1 + deviations**2``)
    nothing can be rare, and the map is zero except for constant channels, which add a constant.

    The paper's activations come from a ReLU, and so their means are weights. Those of a layer before its activation may
    be negative: where they make the sum of the map negative, the sign of the whole map is flipped, so that a ReLU does
    not remove what is rare.

    Args:
        activations: (N, C, ...).
        deviations: how many standard deviations above the mean count as rare; not negative.

    Returns:
        (N, ...), signed where activations are.

    Raises:
        CamlibTypeError: ``deviations`` is not a number.
        CamlibValueError: it is negative or not finite.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.fem(torch.tensor([[[[9.0, 0.0, 0.0, 0.0, 0.0, 0.0]]]]))
        tensor([[[1.5000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    check_alike(activations)
    number("deviations", deviations, at_least=0)
    flat = activations.flatten(2)
    mean, deviation = flat.mean(2), flat.std(2, correction=0)
    rare = activations >= per_channel(mean + deviations * deviation, activations)
    maps = over_channels(mean, rare.to(activations.dtype))
    return with_sign(maps, maps.flatten(1).sum(1))


class FEM(ActivationMethod):
    """FEM: where many channels respond far more strongly than they usually do.

    See :func:`camlib.functional.fem` for the equation; Fuad et al. 2020,
    https://doi.org/10.1109/IPTA50016.2020.9286629. grad-cam weights the activations by the share of rare positions
    instead of the rare positions by the mean.

    One forward pass, no gradient: the same map for every target. On a layer of fewer than 5 cells, such as 2 x 2,
    nothing can be rare at the default of 2 deviations, and the maps are degenerate; choose a finer layer or larger
    images.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        deviations: as for :func:`camlib.functional.fem`.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: as for :func:`camlib.functional.fem`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.FEM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 96, 96)).maps.shape
        torch.Size([2, 3, 3])
    """

    name: ClassVar[str] = "fem"

    def __init__(self, model: Any, layer: Any = None, *, deviations: float = 2.0, **options: Any) -> None:
        super().__init__(model, layer, **options)
        number("deviations", deviations, at_least=0)
        self.deviations = deviations

    def maps(self, activations: Tensor) -> Tensor:
        """Return :func:`camlib.functional.fem`."""
        return fem(activations, self.deviations)
