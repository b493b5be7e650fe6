"""Smooth Grad-CAM++ (Omeiza et al. 2019, https://arxiv.org/abs/1908.01224)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.inputs.noise import Noise, check_noise, own_generator
from camlib.methods.arithmetic import check_alike, check_tensors, divided, over_channels, per_channel
from camlib.methods.base import Method
from camlib.passes.chunks import Chunks, ChunkSize, for_each_chunk
from camlib.passes.copies import Copies
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.rows import with_known_rows


def smooth_grad_cam_plus_plus(activations: Tensor, gradients: Iterable[Tensor]) -> Tensor:
    r"""Grad-CAM++ with derivatives averaged over noisy copies of the input.

    .. math::
        \alpha = \frac{\overline{G^2}}{2 \overline{G^2} + \overline{G^3} \sum_{ab} A_{kab}}, \quad
        w_k = \sum_{ij} \alpha_{kij} \operatorname{ReLU}(\overline{G_{kij}})

    The bars are means over the copies; A is that of the clean input. For a single clean copy this is Grad-CAM++.

    Args:
        activations: (N, C, ...).
        gradients: (N, C, ...) for each copy.

    Returns:
        (N, ...), signed where activations are.

    Example:
        >>> import camlib, torch
        >>> ones = torch.ones(1, 1, 1, 2)
        >>> camlib.functional.smooth_grad_cam_plus_plus(ones, [ones, ones])
        tensor([[[0.5000, 0.5000]]])
    """
    derivatives, copies = _Derivatives(), 0
    check_tensors("gradients", gradients, "(N, C, ...)")
    for gradient in gradients:
        check_alike(activations, gradients=gradient)
        derivatives.add(gradient[None])
        copies += 1
    return derivatives.maps(activations, copies)


class _Derivatives:
    """Sums of G, G^2 and G^3, in units of the largest G so far, so that small values do not underflow."""

    def __init__(self) -> None:
        self._unit = self._first = self._second = self._third = torch.zeros(())

    def add(self, gradients: Tensor) -> None:
        """Add the gradients (S, N, C, ...) of S more copies; those that are zero add nothing."""
        largest = gradients.abs().flatten(2).amax((0, 2)).reshape(-1, *[1] * (gradients.dim() - 2))
        unit = torch.maximum(self._unit.to(largest), largest)
        shrink, scaled = divided(self._unit.to(largest), unit), divided(gradients, unit)
        self._first = self._first.to(largest) * shrink + scaled.sum(0)
        self._second = self._second.to(largest) * shrink**2 + (scaled**2).sum(0)
        self._third = self._third.to(largest) * shrink**3 + (scaled**3).sum(0)
        self._unit = unit

    def maps(self, activations: Tensor, copies: int) -> Tensor:
        """The map of activations with the mean derivatives; the number of copies cancels in alpha."""
        total = per_channel(activations.flatten(2).sum(2), activations)
        alpha = divided(self._second, 2 * self._second + self._third * self._unit * total)
        weights = (alpha * self._first.relu() * self._unit / copies).flatten(2).sum(2)
        return over_channels(weights, activations)


class SmoothGradCAMPlusPlus(Method):
    """Smooth Grad-CAM++: Grad-CAM++ whose derivatives do not depend on single pixels.

    See :func:`camlib.functional.smooth_grad_cam_plus_plus` for the equation; Omeiza et al. 2019,
    https://arxiv.org/abs/1908.01224. All images of a batch get the same noise, scaled to the range of each image.

    ``N + N samples`` single-image forward passes, each of the noisy ones with a tail gradient (K for K classes). The
    peak memory is that of ``chunk_size`` noisy images and of their tail gradients, regardless of N and ``samples``,
    plus the noise of one image's copies, and three sums (N, K, ...) like the layer's activations.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        samples: the number of noisy copies.
        sigma: standard deviation of the noise, as a fraction of each image's range of values.
        generator: for the noise; without one, every call draws the same noise.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        **options: as for :class:`camlib.methods.Method`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.SmoothGradCAMPlusPlus(torchvision.models.resnet18(num_classes=4).eval(), samples=2)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "smooth_grad_cam_plus_plus"
    stochastic: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        *,
        samples: int = 8,
        sigma: float = 0.1,
        generator: torch.Generator | None = None,
        chunk_size: ChunkSize = "auto",
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size)
        check_noise(samples, sigma)
        self.samples = samples
        self.sigma = sigma
        self.generator = generator

    @property
    def forward_passes(self) -> int:
        """One of the clean image, and one of each noisy copy."""
        return 1 + self.samples

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.smooth_grad_cam_plus_plus` of every layer, for each class."""
        inputs = with_known_rows(self.network, forward_pass.inputs)
        noise = Noise(inputs, self.sigma, own_generator(self.generator), self.samples)
        copies = Copies(inputs, self.samples, noise.added)
        layers = forward_pass.layers
        derivatives = {name: [_Derivatives() for _ in forward_pass.score_of_each_class] for name in layers}

        def gradients(rows: slice) -> list[tuple[_Derivatives, Tensor]]:
            noisy = forward_pass.again(*copies[rows])
            found = [pair for name in layers for pair in zip(derivatives[name], noisy.gradients(name), strict=True)]
            noisy.checks.evaluate()
            return found

        def add(rows: slice, found: list[tuple[_Derivatives, Tensor]]) -> None:
            for of_class, gradient in found:
                of_class.add(copies.by_copy(gradient, rows))

        for_each_chunk(gradients, add, len(copies), self.chunks, forward_pass.device, self.name)
        return {
            name: forward_pass.stacked(
                [of_class.maps(forward_pass.activations(name), self.samples) for of_class in derivatives[name]]
            )
            for name in layers
        }
