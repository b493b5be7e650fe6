"""Baselines: maps that do not depend on the class, which every method should beat."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibTypeError, items, positive_int, positive_number
from camlib.inputs.noise import normal, own_generator
from camlib.methods.arithmetic import centered, check_alike, check_tensor, over_channels
from camlib.methods.base import ActivationMethod, Method, Reads
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.numbers import single_or_double


def random_cam(activations: Tensor, generator: torch.Generator) -> Tensor:
    r"""Weight the channels at random: :math:`\sum_k w_k (A_k - \operatorname{mean} A_k), w_k \sim \mathcal{N}(0, 1)`.

    The channels' means are subtracted because most features are positive. Otherwise a random sum of means would decide
    the sign of the whole map, and the ReLU would set half of all maps to zero.

    Args:
        activations: (N, C, ...).
        generator: draws the C weights, which are the same for every image.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.random_cam(torch.ones(2, 3, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 4, 4])
    """
    check_alike(activations)
    if not isinstance(generator, torch.Generator):
        raise CamlibTypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    weights = normal((1, activations.shape[1]), generator, activations)
    return over_channels(weights.expand(len(activations), -1), centered(activations))


class RandomCAM(ActivationMethod):
    """RandomCAM: random channel weights. It shows how convincing the features look on their own.

    See :func:`camlib.functional.random_cam` for the equation.

    One forward pass, no gradient: the same map for every target.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: as for :class:`camlib.methods.Method`.
        generator: for the weights; without one, every call draws the same weights.
        **options: as for :class:`camlib.methods.Method`.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.RandomCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 2, 2])
    """

    name: ClassVar[str] = "random_cam"
    stochastic: ClassVar[bool] = True

    def __init__(
        self, model: Any, layer: Any = None, *, generator: torch.Generator | None = None, **options: Any
    ) -> None:
        super().__init__(model, layer, **options)
        self.generator = generator

    def maps(self, activations: Tensor) -> Tensor:
        """Return :func:`camlib.functional.random_cam`."""
        return random_cam(activations, own_generator(self.generator))


class _OfInputs(Method):
    """A map that depends only on the input. The forward pass is for the scores that the explanation shows."""

    reads: ClassVar[Reads] = "inputs"
    class_agnostic: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """Return maps (N, ...) of images (N, C, ...)."""

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :meth:`maps`, repeated for each class."""
        return {"": forward_pass.repeated(self.maps(single_or_double(forward_pass.inputs.images)))}


def center_gaussian(size: tuple[int, ...], sigma: float = 0.25) -> Tensor:
    r"""Return a Gaussian in the centre: :math:`\exp(-\sum_d (x_d - c_d)^2 / 2 (\sigma L_d)^2)` at the pixel centres.

    Args:
        size: (L,), (H, W) or (T, H, W).
        sigma: its standard deviation along each side, as a fraction of that side's length.

    Returns:
        A map of that size, at most 1.

    Example:
        >>> import camlib
        >>> camlib.functional.center_gaussian((1, 3)).argmax()
        tensor(1)
    """
    positive_number("sigma", sigma)
    sides = [positive_int("each side of size", side) for side in items("size", size, "a size, such as (H, W)")]
    gaussian = torch.ones((), dtype=torch.float64)
    for side in sides:
        along = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
        gaussian = gaussian[..., None] * torch.exp(-(along**2) / (2 * sigma**2))
    return gaussian


class CenterGaussian(_OfInputs):
    """A Gaussian in the centre of every image, where photographers put what matters.

    See :func:`camlib.functional.center_gaussian` for the equation.

    One forward pass, for the scores that the explanation shows; the map does not depend on it.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; leave it out.
        sigma: as for :func:`camlib.functional.center_gaussian`.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``sigma`` is not a positive number.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.CenterGaussian(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str] = "center_gaussian"

    def __init__(self, model: Any, layer: Any = None, *, sigma: float = 0.25, **options: Any) -> None:
        super().__init__(model, layer, **options)
        self.sigma = positive_number("sigma", sigma)

    def maps(self, images: Tensor) -> Tensor:
        """Return :func:`camlib.functional.center_gaussian`, for each image."""
        return center_gaussian(tuple(images.shape[2:]), self.sigma).to(images).expand(len(images), *images.shape[2:])


def sobel(images: Tensor) -> Tensor:
    r"""Return the gradient magnitude of the grey image by Sobel's filter: :math:`\sqrt{\sum_d (S_d * g)^2}`.

    The grey image g is the mean of the channels; :math:`S_d` differentiates along one axis (-1, 0, 1) and smooths
    along the others (1, 2, 1). The image is mirrored at its border.

    Args:
        images: (N, C, ...).

    Returns:
        (N, ...), not negative.

    Example:
        >>> import camlib, torch
        >>> camlib.functional.sobel(torch.tensor([[[[0.0, 0.0, 1.0, 1.0]] * 3]]))[0, 1]
        tensor([0., 4., 4., 0.])
    """
    check_tensor("images", images, "(N, C, ...)")
    grey = images.mean(1, keepdim=True)
    axes = range(2, images.dim())
    squared = torch.zeros_like(grey)
    for derived in axes:
        edges = grey
        for axis in axes:
            edges = _filtered(edges, axis, (-1.0, 0.0, 1.0) if axis == derived else (1.0, 2.0, 1.0))
        squared = squared + edges**2
    return squared.sqrt().squeeze(1)


def _filtered(images: Tensor, axis: int, kernel: tuple[float, float, float]) -> Tensor:
    """Correlate along one axis, with the image mirrored at its border (a single pixel is repeated)."""
    length = images.shape[axis]
    mirrored = torch.tensor([min(1, length - 1), *range(length), max(length - 2, 0)], device=images.device)
    padded = images.index_select(axis, mirrored)
    parts = (weight * padded.narrow(axis, start, length) for start, weight in enumerate(kernel) if weight)
    return sum(parts, torch.zeros_like(images))


class Sobel(_OfInputs):
    """The edges of the image, whatever the network. A heatmap that looks like this explains the image, not the network.

    See :func:`camlib.functional.sobel` for the equation.

    One forward pass, for the scores that the explanation shows; the map does not depend on it.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.Sobel(torchvision.models.resnet18(num_classes=4).eval())
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
    """

    name: ClassVar[str] = "sobel"

    def maps(self, images: Tensor) -> Tensor:
        """Return :func:`camlib.functional.sobel`."""
        return sobel(images)
