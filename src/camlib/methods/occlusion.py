"""Occlusion (Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.methods.arithmetic import check_tensor
from camlib.methods.base import Method, Reads
from camlib.methods.fill import check_fill, fill_for
from camlib.methods.masks import Masks, SlidingWindows, check_masked, mean_under, scores_under
from camlib.methods.region_labels import region_labels, regions_of
from camlib.methods.sides import checked_sides, of_each_side
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.perturbed import PerturbedPasses


def occlusion(masks: Masks, score: Tensor, scores: Tensor) -> Tensor:
    r"""Average the score's fall over the windows that cover a pixel: :math:`s - \operatorname{mean}_i s_i`.

    Args:
        masks: (M, ...), true inside each window, or :class:`camlib.methods.masks.SlidingWindows`.
        score: (N,), s.
        scores: (N, M), the scores of each image with each window covered.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> windows = torch.tensor([[True, True, False], [False, True, True]])
        >>> camlib.functional.occlusion(windows, torch.tensor([5.0]), torch.tensor([[1.0, 4.0]]))
        tensor([[4.0000, 2.5000, 1.0000]])
    """
    check_masked(masks, scores)
    check_tensor("score", score, "(N,)", scores, 1)
    return mean_under(masks, score[:, None] - scores)


def occlusion_of_regions(labels: Tensor, score: Tensor, scores: Tensor) -> Tensor:
    r"""Give each pixel the score's fall when its region is covered: :math:`s - s_{l}` where the label is l.

    Args:
        labels: (N, ...), the number of each pixel's region, from 0 in each image.
        score: (N,), s.
        scores: (R,), the scores with each region covered: all regions of the first image, then those of the second.

    Returns:
        (N, ...), signed.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, 1, 1], [0, 0, 0]])
        >>> occlusion_of_regions(labels, torch.tensor([5.0, 2.0]), torch.tensor([1.0, 4.0, 3.0]))
        tensor([[ 4.,  1.,  1.],
                [-1., -1., -1.]])
    """
    counts = labels.flatten(1).amax(1) + 1
    first = (counts.cumsum(0) - counts).reshape(-1, *[1] * (labels.dim() - 1))
    return score.reshape(first.shape) - scores[(first + labels).to(scores.device)]


class Occlusion(Method):
    """Occlusion: a window slides over the image; a pixel's value is how much the score falls when it is covered.

    See :func:`camlib.functional.occlusion` for the equation; Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901.
    It needs no gradients. With ``regions`` it covers one region of the image after another, such as superpixels or
    organs, which is also called feature ablation: a pixel's value is the score's fall when its region is covered.

    ``N + N M`` single-image forward passes for any number K of classes, where M is the number of regions or of windows:
    the product over the sides of ``ceil((side - window) / stride) + 1``, which is 169 for 224 x 224 by default. The
    peak memory is that of a forward pass of ``chunk_size`` covered images, or of 64 windows, regardless of N and M,
    plus the scores (N, M, K). The maps (N, ...) have the input's resolution.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method only reads inputs and scores.
        window: pixels along each side, one number or one per side; by default a seventh of the side.
        stride: the step, given like ``window``; by default half the window.
        regions: what is covered, in place of windows: integers that are equal for pixels of one region, (H, W) for all
            images, or (N, H, W); or a function from the images (N, C, H, W) to them, such as superpixels.
        baseline: the value of covered pixels: a number, or a tensor that is broadcast to an image (C, ...), such as
            the mean of each channel (C, 1, 1). Zero is grey if images are normalised.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibValueError: ``window`` or ``stride`` are not positive ints, or are given with ``regions``; when called, if
            they do not fit the image or leave pixels uncovered, or ``regions`` have another shape than the images.
        CamlibTypeError: ``baseline`` is neither a number nor a tensor; when called, if ``regions`` are no integers.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.Occlusion(torchvision.models.resnet18(num_classes=4).eval(), window=16, stride=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
        >>> halves = torch.arange(64).expand(64, 64) // 32
        >>> cam = camlib.Occlusion(cam.model, regions=halves, relu=False)
        >>> len(cam(torch.rand(1, 3, 64, 64)).maps.unique())
        2
    """

    name: ClassVar[str] = "occlusion"
    reads: ClassVar[Reads] = "inputs"
    needs_gradients: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        *,
        window: int | Sequence[int] | None = None,
        stride: int | Sequence[int] | None = None,
        regions: Any = None,
        baseline: float | Tensor = 0.0,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)
        check_fill(baseline)
        self.window = checked_sides("window", window)
        self.stride = checked_sides("stride", stride)
        if regions is not None and not (window is None and stride is None):
            raise CamlibValueError("regions are covered in place of windows; give either regions, or window and stride")
        self.regions = regions
        self.baseline = baseline

    @property
    def forward_passes(self) -> int | None:
        """None: the number depends on the size of the image."""
        return None

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.occlusion`, for each class."""
        images = forward_pass.inputs.images
        baseline = fill_for(self.baseline, images)
        passes = forward_pass.perturbed(self.name, self.chunks)
        clean = [score.detach() for score in forward_pass.score_of_each_class]
        covering = self._with_windows if self.regions is None else self._with_regions
        return {"": forward_pass.stacked(covering(passes, images, baseline, clean))}

    def _with_windows(
        self, passes: PerturbedPasses, images: Tensor, baseline: Tensor, clean: list[Tensor]
    ) -> list[Tensor]:
        windows = self._windows(tuple(images.shape[2:]), images.device)
        of_classes = scores_under(passes, windows, lambda images, covered: torch.where(covered, baseline, images))
        return [occlusion(windows, *both) for both in zip(clean, of_classes, strict=True)]

    def _with_regions(
        self, passes: PerturbedPasses, images: Tensor, baseline: Tensor, clean: list[Tensor]
    ) -> list[Tensor]:
        is_function = callable(self.regions) and not isinstance(self.regions, type)
        given = self.regions(images) if is_function else self.regions
        takes = "integers (N, H, W) or (H, W), or a function from images to them"
        labels = region_labels(given, (len(images), *images.shape[2:]), images.device, "images without channels", takes)
        image, region = regions_of(labels)

        def without(images: Tensor, rows: slice) -> Tensor:
            covered = labels[image[rows]] == region[rows].reshape(-1, *[1] * (labels.dim() - 1))
            return torch.where(covered[:, None], baseline, images)

        scores = passes.of_images(image, without)
        return [
            occlusion_of_regions(labels, *both) for both in zip(clean, scores.reshape(len(image), -1).T, strict=True)
        ]

    def _windows(self, size: tuple[int, ...], device: torch.device) -> SlidingWindows:
        window = of_each_side("window", self.window, size) or tuple(max(round(side / 7), 1) for side in size)
        stride = of_each_side("stride", self.stride, size) or tuple(max(side // 2, 1) for side in window)
        if any(width > side for width, side in zip(window, size, strict=True)):
            raise CamlibValueError(f"window {window} is larger than the image, {size}; choose a smaller one")
        if any(step > width for step, width in zip(stride, window, strict=True)):
            raise CamlibValueError(
                f"stride {stride} is larger than the window, {window}, and would leave pixels uncovered"
            )
        return SlidingWindows(size, window, stride, device)
