"""Occlusion (Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from camlib.errors import CamlibValueError, number, positive_int
from camlib.methods.base import Method, Reads
from camlib.methods.masks import Masks, SlidingWindows, mean_under, scores_under
from camlib.passes.chunks import Chunks, ChunkSize
from camlib.passes.forward_pass import ForwardPass


def occlusion(masks: Masks, score: Tensor, scores: Tensor) -> Tensor:
    r"""Average how much the score falls under the windows that cover a pixel: :math:`s - \operatorname{mean}_i s_i`.

    Args:
        masks: (M, ...), true inside each window, or :class:`camlib.methods.masks.SlidingWindows`.
        score: (N,), s.
        scores: (N, M), of each image under each window.

    Returns:
        (N, ...), signed.

    Example:
        >>> import camlib, torch
        >>> windows = torch.tensor([[True, True, False], [False, True, True]])
        >>> camlib.functional.occlusion(windows, torch.tensor([5.0]), torch.tensor([[1.0, 4.0]]))
        tensor([[4.0000, 2.5000, 1.0000]])
    """
    return mean_under(masks, score[:, None] - scores)


class Occlusion(Method):
    """Occlusion: a window slides over the picture; a pixel counts as much as the score falls when it is covered.

    See :func:`camlib.functional.occlusion` for the equation; Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901.
    No gradients are needed.

    ``N + N M`` forward passes of an image, for any number K of classes, where M is the number of windows: the product
    over the sides of ``ceil((side - window) / stride) + 1``, 169 for 224 x 224 by default. At the peak there are
    ``chunk_size`` covered images and what their forward pass holds, or 64 windows, whatever N and M are; besides,
    scores (N, M, K). The maps (N, ...) have the input's resolution.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: none; the whole network is looked at from outside.
        window: pixels along each side, one number or one for each; by default a seventh of the side.
        stride: the same; by default half the window.
        baseline: what covered pixels become: a number, or a tensor that is broadcast to a picture (C, ...), such as
            the mean of each channel (C, 1, 1). Zero is grey where images are normalised.
        chunk_size: how many rows run at a time, :attr:`camlib.passes.chunks.Chunks.size`.
        progress: whether to show a progress bar.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibValueError: ``window`` or ``stride`` are no positive ints; on calling, if they do not fit the picture or
            leave pixels out.
        CamlibTypeError: ``baseline`` is neither a number nor a tensor.

    Example:
        >>> import camlib, torch, torchvision
        >>> cam = camlib.Occlusion(torchvision.models.resnet18(num_classes=4).eval(), window=16, stride=8)
        >>> cam(torch.rand(2, 3, 64, 64)).maps.shape
        torch.Size([2, 64, 64])
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
        baseline: float | Tensor = 0.0,
        chunk_size: ChunkSize = "auto",
        progress: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, layer, **options)
        self.chunks = Chunks(chunk_size, progress)
        if not isinstance(baseline, Tensor):
            number("baseline, if not a tensor,", baseline)
        self.window = _checked_sides("window", window)
        self.stride = _checked_sides("stride", stride)
        self.baseline = baseline

    @property
    def forward_passes(self) -> int | None:
        """That depends on how large the picture is."""
        return None

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return :func:`camlib.functional.occlusion`, for each class."""
        images = forward_pass.inputs.images
        windows = self._windows(tuple(images.shape[2:]), images.device)
        baseline = torch.as_tensor(self.baseline).to(images)
        try:
            baseline.expand(images.shape[1:])
        except RuntimeError as error:
            raise CamlibValueError(
                f"baseline of shape {tuple(baseline.shape)} cannot be broadcast to images {tuple(images.shape[1:])}; "
                "give a number, or a tensor with one value for each channel, (C, 1, 1)"
            ) from error
        passes = forward_pass.perturbed(self.name, self.chunks)
        of_classes = scores_under(passes, windows, lambda images, covered: torch.where(covered, baseline, images))
        clean = [score.detach() for score in forward_pass.score_of_each_class]
        return {"": forward_pass.stacked([occlusion(windows, *both) for both in zip(clean, of_classes, strict=True)])}

    def _windows(self, size: tuple[int, ...], device: torch.device) -> SlidingWindows:
        window = _of_each_side("window", self.window, size) or tuple(max(round(side / 7), 1) for side in size)
        stride = _of_each_side("stride", self.stride, size) or tuple(max(side // 2, 1) for side in window)
        if any(width > side for width, side in zip(window, size, strict=True)):
            raise CamlibValueError(f"window {window} is larger than the picture, {size}; choose a smaller one")
        if any(step > width for step, width in zip(stride, window, strict=True)):
            raise CamlibValueError(f"stride {stride} is larger than the window, {window}, and would leave pixels out")
        return SlidingWindows(size, window, stride, device)


def _checked_sides(name: str, sides: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if sides is None:
        return None
    return (
        tuple(positive_int(name, side) for side in sides) if isinstance(sides, Sequence) else positive_int(name, sides)
    )


def _of_each_side(name: str, sides: int | tuple[int, ...] | None, size: tuple[int, ...]) -> tuple[int, ...]:
    """One number for each side of the picture; none where nothing was asked for."""
    if sides is None:
        return ()
    each = sides if isinstance(sides, tuple) else (sides,) * len(size)
    if len(each) != len(size):
        raise CamlibValueError(f"{name} has {len(each)} sides, {each}, and the picture has {len(size)}, {size}")
    return each
