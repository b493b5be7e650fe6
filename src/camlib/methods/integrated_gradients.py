"""Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, positive_int
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.base import Layer, Reads
from camlib.methods.fill import check_fill, fill_for
from camlib.methods.pixels import PixelMethod, along_lines
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass

Baseline = float | Tensor | Callable[[Tensor], Tensor]
"""A number, a tensor that broadcasts to an image (C, ...), or a function from images (N, C, ...) to their baselines."""


def gauss_legendre(steps: int) -> tuple[Tensor, Tensor]:
    """Return the nodes in [0, 1] and the weights of the Gauss-Legendre rule, as in captum.

    The rule with n steps is exact for polynomials of degree 2 n - 1.

    Args:
        steps: how many nodes.

    Returns:
        The nodes and the weights, (steps,) each, in double precision. The weights sum to 1.

    Example:
        >>> nodes, weights = gauss_legendre(2)
        >>> float(weights @ nodes**3)
        0.25
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def integrated_gradients(images: Tensor, baselines: Tensor, gradients: Iterable[Tensor]) -> Tensor:
    r"""Integrate the gradient on the straight line from a baseline b to the image, by the Gauss-Legendre rule.

    .. math:: \sum_c (x - b)_c \int_0^1 \frac{\partial s}{\partial x_c} (b + \alpha (x - b)) \, d\alpha
        \approx \sum_c (x - b)_c \sum_i w_i \frac{\partial s}{\partial x_c} (b + \alpha_i (x - b))

    Without the rule's error, the map sums to s(x) - s(b).

    Args:
        images: (N, C, ...).
        baselines: (N, C, ...).
        gradients: (N, C, ...) for each node, of the scores with respect to the images on the line:
            :func:`camlib.methods.integrated_gradients.gauss_legendre` has the nodes.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> images, baselines = torch.tensor([[[3.0], [1.0]]]), torch.zeros(1, 2, 1)
        >>> gradients = [2 * node * images for node in (0.2113248654, 0.7886751346)]  # of the sum of the squares
        >>> camlib.functional.integrated_gradients(images, baselines, gradients)
        tensor([[10.]])
    """
    check_tensor("images", images, "(N, C, ...)")
    check_tensor("baselines", baselines, "(N, C, ...), the shape of the images", images)
    check_tensors("gradients", gradients, "(N, C, ...)")
    steps = list(gradients)
    if not steps:
        raise CamlibValueError("gradients are empty; give those at each node of the line")
    for one in steps:
        check_tensor("gradients", one, "(N, C, ...), the shape of the images", images)
    _, weights = gauss_legendre(len(steps))
    mean = torch.zeros_like(images)
    for weight, one in zip(weights.tolist(), steps, strict=True):
        mean = mean + weight * one
    return ((images - baselines) * mean).sum(1)


class IntegratedGradients(PixelMethod):
    """Integrated gradients: how much each pixel adds to the score on the straight line from a baseline to the image.

    See :func:`camlib.functional.integrated_gradients` for the equation; Sundararajan et al. 2017,
    https://arxiv.org/abs/1703.01365. The integral is taken by the Gauss-Legendre rule. The signed values sum to the
    score minus that of the baseline, up to the rule's error, which
    :meth:`~camlib.methods.pixels.PixelMethod.attributions` gives as ``residual``: raise ``steps`` if it is not small.
    If a network normalises its first features, as ConvNeXt does, darker copies of an image have the same score. From a
    baseline of zero the score then changes almost only between the baseline and the first node, and the residual is
    most of the score: choose another baseline. The map is the signed sum over the channels, whose negative values are
    set to zero, like those of other methods; ``relu=False`` keeps them.

    The method reads no layer: the maps (N, ...) have the input's resolution, or one cell for each window of ``pool``.

    ``N + N steps`` single-image forward passes, each of those on the line with a backward pass of the whole network (K
    for K classes). The peak memory is that of ``chunk_size`` images with their backward pass, regardless of N and
    ``steps``, plus sums (N, K, C, ...).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads the whole network.
        steps: how many gradients on the line, the nodes of the rule.
        baseline: where the line begins: a number; a tensor that is broadcast to an image (C, ...), such as a value of
            each channel (C, 1, 1); or a function from the images (N, C, ...) to a baseline for each, such as blurred
            images. Zero is grey if images are normalised.
        pool: the window whose mean is a cell of the map, in pixels: one number, or one for each side. None for a value
            of each pixel, which is noisy. Windows that reach beyond the image are averaged over the pixels inside.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``steps`` or ``pool`` are not positive ints, or ``baseline`` is neither a
            number, a tensor nor a function; when called, if ``pool`` or ``baseline`` does not fit the images.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.IntegratedGradients(torchvision.models.resnet18(num_classes=4).eval(), steps=8, pool=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 8, 8])
    """

    name: ClassVar[str] = "integrated_gradients"
    reads: ClassVar[Reads] = "inputs"

    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        steps: int = 50,
        baseline: Baseline = 0.0,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)
        self.steps = positive_int("steps", steps)
        if isinstance(baseline, (type, nn.Module)) or not callable(baseline):
            check_fill(baseline)
        self.baseline = baseline

    @property
    def forward_passes(self) -> int:
        """One of the images, and one for each step."""
        return 1 + self.steps

    def pixels(self, forward_pass: ForwardPass) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Return the integrals for each class, and how to score the baselines."""
        baselines = self._baselines(forward_pass.inputs.floats)
        nodes, weights = gauss_legendre(self.steps)
        values = along_lines(forward_pass, lambda image, _: baselines[image], nodes, weights, self.chunks, self.name)
        image = torch.arange(forward_pass.count, device=forward_pass.device)
        passes = forward_pass.perturbed(self.name, self.chunks)
        return values, lambda: passes.of_images(image, lambda _, rows: baselines[rows])

    def _baselines(self, images: Tensor) -> Tensor:
        """The baselines of the images, (N, C, ...)."""
        if isinstance(self.baseline, Tensor) or not callable(self.baseline):
            return fill_for(self.baseline, images).expand_as(images)
        found = self.baseline(images.detach().clone())
        if not isinstance(found, Tensor):
            raise CamlibTypeError(f"baseline returned a {type(found).__name__}; it must return a tensor (N, C, ...)")
        if found.shape != images.shape:
            raise CamlibValueError(
                f"baseline returned {tuple(found.shape)} for images {tuple(images.shape)}; it must return a baseline "
                "of the same shape for each"
            )
        return found.detach().to(images)
