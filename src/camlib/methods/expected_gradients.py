"""Expected gradients (Erion et al. 2021, https://arxiv.org/abs/1906.10670)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camlib.errors import CamlibTypeError, CamlibValueError, number, positive_int
from camlib.inputs.noise import own_generator
from camlib.methods.arithmetic import check_tensor, check_tensors
from camlib.methods.base import Layer, Reads
from camlib.methods.pixels import PixelMethod, along_lines
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def expected_gradients(images: Tensor, baselines: Tensor, gradients: Iterable[Tensor]) -> Tensor:
    r"""Average the gradient at random points between baselines drawn from data and the image, times the difference.

    .. math:: \frac{1}{n} \sum_{i=1}^n \sum_c (x - b_i)_c \, \frac{\partial s}{\partial x_c} (b_i + \alpha_i (x - b_i)),
        \qquad \alpha_i \sim U(0, 1)

    This estimates the mean of integrated gradients over the baselines, without their integrals.

    Args:
        images: (N, C, ...).
        baselines: (n, C, ...), those that were drawn, which are the same for every image.
        gradients: (N, C, ...) for each of them, of the scores with respect to the images at its point.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> images, baselines = torch.tensor([[[3.0], [1.0]]]), torch.zeros(2, 2, 1)
        >>> gradients = [2 * alpha * images for alpha in (0.25, 0.75)]  # of the sum of the squares
        >>> camlib.functional.expected_gradients(images, baselines, gradients)
        tensor([[10.]])
    """
    check_tensor("images", images, "(N, C, ...)")
    check_tensor("baselines", baselines, "(n, C, ...)")
    check_tensors("gradients", gradients, "(N, C, ...)")
    found = list(gradients)
    if baselines.shape[1:] != images.shape[1:] or len(found) != len(baselines):
        raise CamlibValueError(
            f"baselines must be (n, C, ...) for n gradients, here ({len(found)}, *{tuple(images.shape[1:])}), got "
            f"{tuple(baselines.shape)}"
        )
    total = torch.zeros_like(images[:, 0])
    for baseline, one in zip(baselines, found, strict=True):
        check_tensor("gradients", one, "(N, C, ...), the shape of the images", images)
        total = total + ((images - baseline) * one).sum(1)
    return total / len(found)


class ExpectedGradients(PixelMethod):
    """Expected gradients: integrated gradients, averaged over baselines that are drawn from data.

    See :func:`camlib.functional.expected_gradients` for the equation; Erion et al. 2021,
    https://arxiv.org/abs/1906.10670. No single baseline has to be chosen (a black one hides black pixels): the image is
    compared with images that the network knows. Each sample draws a baseline, with replacement, and a point on the line
    from it to the image; all images get the same draws. The signed values sum to the score minus the mean score of the
    baselines, up to the sampling error, which :meth:`~camlib.methods.pixels.PixelMethod.attributions` gives as
    ``residual``. The map is the signed sum over the channels, whose negative values are set to zero, like those of
    other methods; ``relu=False`` keeps them. captum's GradientShap is this method with noise, by default of zero.

    The method reads no layer: the maps (N, ...) have the input's resolution, or one cell for each window of ``pool``.

    ``N + N samples`` single-image forward passes, each of those on the lines with a backward pass of the whole
    network (K for K classes). The peak memory is that of ``chunk_size`` images with their backward pass, regardless of
    N and ``samples``, plus sums (N, K, C, ...).

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads the whole network.
        baselines: (B, C, ...), images from which baselines are drawn, such as a hundred of the training set, as the
            model takes them; or a number, for images of that value. Without them, calls are refused.
        samples: how many draws.
        generator: for the draws; without one, every call makes the same draws.
        pool: the window whose mean is a cell of the map, in pixels: one number, or one for each side. None for a value
            of each pixel, which is noisy. Windows that reach beyond the image are averaged over the pixels inside.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``samples`` or ``pool`` are not positive ints, or ``baselines`` are
            neither a tensor of floats nor a number; when called, if there are no baselines, or if they or ``pool`` do
            not fit the images.

    Example:
        >>> import camlib, torch, torchvision
        >>> network, training = torchvision.models.resnet18(num_classes=4).eval(), torch.rand(10, 3, 64, 64)
        >>> cam = camlib.ExpectedGradients(network, baselines=training, samples=8, pool=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 8, 8])
    """

    name: ClassVar[str] = "expected_gradients"
    reads: ClassVar[Reads] = "inputs"
    stochastic: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        layer: Layer = None,
        *,
        baselines: Tensor | float | None = None,
        samples: int = 50,
        generator: torch.Generator | None = None,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)
        self.samples = positive_int("samples", samples)
        self.generator = generator
        self.baselines = None if baselines is None else _checked(baselines)

    @property
    def forward_passes(self) -> int:
        """One of the images, and one for each sample."""
        return 1 + self.samples

    def pixels(self, forward_pass: ForwardPass) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Return the estimates for each class, and how to score the baselines that were drawn."""
        baselines = self._baselines(forward_pass.inputs.floats)
        generator = own_generator(self.generator)
        here = generator.device
        drawn = torch.randint(len(baselines), (self.samples,), generator=generator, device=here).to(baselines.device)
        points = torch.rand(self.samples, generator=generator, device=here, dtype=torch.float64)
        weights = torch.full((self.samples,), 1 / self.samples, dtype=torch.float64)
        values = along_lines(
            forward_pass, lambda _, sample: baselines[drawn[sample]], points, weights, self.chunks, self.name
        )
        passes, count = forward_pass.perturbed(self.name, self.chunks), forward_pass.count

        def scores_of_baselines() -> Tensor:
            used, often = drawn.unique(return_counts=True)
            image = torch.arange(count, device=used.device).repeat_interleave(len(used))
            number = used.repeat(count)
            scores = passes.of_images(image, lambda _, rows: baselines[number[rows]])
            share = often.to(scores) / self.samples
            return torch.einsum("nb...,b->n...", scores.reshape(count, len(used), *scores.shape[1:]), share)

        return values, scores_of_baselines

    def _baselines(self, images: Tensor) -> Tensor:
        """The baselines that can be drawn, (B, C, ...)."""
        if self.baselines is None:
            raise CamlibValueError(
                "ExpectedGradients draws its baselines from data: give baselines=, images (B, C, ...) such as a "
                "hundred of the training set, as the model takes them. For a single constant baseline use "
                "camlib.IntegratedGradients"
            )
        if self.baselines.dim() == 0:
            return self.baselines.to(images).expand(1, *images.shape[1:])
        if self.baselines.shape[1:] != images.shape[1:]:
            raise CamlibValueError(
                f"baselines must be images (B, {', '.join(map(str, images.shape[1:]))}) like those that are explained, "
                f"got {tuple(self.baselines.shape)}"
            )
        return self.baselines.to(images)


def _checked(baselines: object) -> Tensor:
    """The baselines as a tensor: (B, C, ...), or without axes for a number."""
    if not isinstance(baselines, Tensor):
        return torch.tensor(number("baselines, if not a tensor,", baselines), dtype=torch.float64)
    if not baselines.is_floating_point():
        raise CamlibTypeError(f"baselines must hold floating-point numbers, got {baselines.dtype}")
    if baselines.is_meta:
        raise CamlibTypeError("baselines are on the meta device and have no values; give a tensor with values")
    if baselines.dim() < 2 or not baselines.numel():
        raise CamlibValueError(f"baselines must be images (B, C, ...), got {tuple(baselines.shape)}")
    if not bool(baselines.isfinite().all()):
        raise CamlibValueError("baselines hold numbers that are not finite (NaN or infinity)")
    return baselines.detach()
