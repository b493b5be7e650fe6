"""FEM, the Feature Explanation Method (Fuad et al. 2020, https://doi.org/10.1109/IPTA50016.2020.9286629)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from camlib.methods.arithmetic import over_channels, per_channel
from camlib.methods.base import ActivationMethod


def fem(activations: Tensor, deviations: float = 2.0) -> Tensor:
    r"""Sum the channels' rare, strong activations, each weighted by the channel's mean.

    .. math:: \sum_k \mu_k \, [A_k \ge \mu_k + 2 \sigma_k]

    with the mean and the (population) standard deviation of channel k over its positions.

    Args:
        activations: (N, C, ...).
        deviations: how many standard deviations above the mean are rare.

    Returns:
        (N, ...), signed where activations are.

    Example:
        >>> import camlib, torch
        >>> camlib.fem(torch.tensor([[[[9.0, 0.0, 0.0, 0.0, 0.0, 0.0]]]]))
        tensor([[[1.5000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000]]])
    """
    flat = activations.flatten(2)
    mean, deviation = flat.mean(2), flat.std(2, correction=0)
    rare = activations >= per_channel(mean + deviations * deviation, activations)
    return over_channels(mean, rare.to(activations.dtype))


class FEM(ActivationMethod):
    """FEM: where many channels respond far more strongly than they usually do.

    See :func:`camlib.fem` for the equation; Fuad et al. 2020, https://doi.org/10.1109/IPTA50016.2020.9286629. grad-cam
    weights the activations by the share of rare positions instead of the rare positions by the mean.

    One forward pass, no gradient: the same map for every target.

    Args:
        model: as for :class:`camlib.Method`.
        layer: as for :class:`camlib.Method`.
        deviations: as for :func:`camlib.fem`.
        **options: as for :class:`camlib.Method`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.FEM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "fem"

    def __init__(self, model: Any, layer: Any = None, *, deviations: float = 2.0, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.deviations = deviations

    def maps(self, activations: Tensor) -> Tensor:
        """Return :func:`camlib.fem`."""
        return fem(activations, self.deviations)
