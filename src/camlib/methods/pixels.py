"""Methods that attribute a score to pixels: maps of pixels, or of cells of pixels."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camlib.errors import CamlibValueError
from camlib.explanation import Explanation
from camlib.methods.base import Layer, Method, one_pass
from camlib.methods.sides import checked_sides, of_each_side
from camlib.passes.chunks import Chunks, for_each_chunk
from camlib.passes.copies import by_copy
from camlib.passes.forward_pass import ForwardPass
from camlib.passes.numbers import single_or_double
from camlib.passes.rows import with_known_rows


@dataclasses.dataclass(frozen=True, eq=False)
class Attributions:
    """Scores attributed to pixels: ``scores = baseline_scores + the sum of values + residual``.

    For K scores per image, every tensor has a class axis after the first.
    """

    values: Tensor
    """(N, C, ...), the share of each value of the image in the score, signed."""
    scores: Tensor
    """(N,), the scores that are attributed."""
    baseline_scores: Tensor
    """(N,), the scores of the baseline; for several baselines, the mean."""
    residual: Tensor
    """(N,), the scores minus those of the baseline, minus the sum of the values. It is the error of completeness, which
    is zero if the integral is exact."""


class PixelMethod(Method):
    """A method that attributes the score to the pixels. A subclass defines :meth:`pixels`.

    Args:
        model: as for :class:`camlib.methods.Method`.
        layer: not used; the method reads the whole network.
        pool: None for a value of each pixel. A number of pixels, or one for each side of the image: the map holds the
            mean over each such window, since the values of single pixels are noisy. Windows at the far border may reach
            beyond the image; their mean is over the pixels inside.
        **options: as for :class:`camlib.methods.Method`.

    Raises:
        CamlibTypeError, CamlibValueError: ``pool`` are not positive ints; when called, if the window is larger than the
            image.
    """

    def __init__(
        self, model: nn.Module, layer: Layer = None, *, pool: int | Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(model, layer, **options)
        self.pool = checked_sides("pool", pool)

    @abstractmethod
    def pixels(self, forward_pass: ForwardPass) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Attribute the scores of a pass to the values of its images.

        Returns:
            Each class's attributions (N, C, ...), signed; and a function that runs the baselines and returns their
            scores, (N,), or (N, K) for K classes.
        """

    def attributions(self, inputs: Any, target: Any = None) -> Attributions:
        """Attribute the scores to every value of the images, without the sum over the channels, the pool and the ReLU.

        The scores of the baselines take further forward passes: one for each image and baseline.

        Args:
            inputs: as for a call of the method.
            target: as for a call of the method.

        Returns:
            The attributions, and the error of completeness.

        Raises:
            CamlibError: as for a call of the method.

        Example:
            >>> import camlib, torch, torchvision
            >>> cam = camlib.IntegratedGradients(torchvision.models.resnet18(num_classes=4).eval())
            >>> found = cam.attributions(torch.rand(2, 3, 64, 64), 1)
            >>> found.values.shape, found.residual.shape
            (torch.Size([2, 3, 64, 64]), torch.Size([2]))
        """
        with one_pass([self], inputs, target) as (forward_pass,):
            forward_pass.target.warn_if_flat()
            of_classes, baseline_scores = self.pixels(forward_pass)
            values, scores = forward_pass.stacked(of_classes), single_or_double(forward_pass.scores.detach())
            of_baselines = baseline_scores().to(scores)
            return Attributions(
                values, scores, of_baselines, scores - of_baselines - values.flatten(scores.dim()).sum(-1)
            )

    def maps_by_layer(self, forward_pass: ForwardPass) -> dict[str, Tensor]:
        """Return the sums of the attributions over the channels, for each class."""
        of_classes, _ = self.pixels(forward_pass)
        maps = forward_pass.stacked([values.sum(1) for values in of_classes])
        size = tuple(forward_pass.inputs.images.shape[2:])
        window = of_each_side("pool", self.pool, size)
        return {"": pooled(maps, window) if window else maps}

    def explanation(self, forward_pass: ForwardPass) -> Explanation:
        """Return the explanation; its cells may reach beyond the image."""
        found, size = super().explanation(forward_pass), tuple(forward_pass.inputs.images.shape[2:])
        window = of_each_side("pool", self.pool, size)
        covered = tuple(float(-(-side // each) * each) for side, each in zip(size, window, strict=False))
        return found if covered in ((), size) else dataclasses.replace(found, extent=covered)


def pooled(maps: Tensor, window: tuple[int, ...]) -> Tensor:
    """Return the means of maps (..., h, w) over windows that lie side by side; those at the far border may be smaller.

    Raises:
        CamlibValueError: the window is larger than the maps.

    Example:
        >>> import torch
        >>> pooled(torch.tensor([[1.0, 3.0, 5.0, 7.0, 8.0]]), (2,))
        tensor([[2., 6., 8.]])
    """
    dims = len(window)
    size = tuple(maps.shape[-dims:])
    if any(each > side for each, side in zip(window, size, strict=True)):
        raise CamlibValueError(f"pool {window} is larger than the image, {size}; choose a smaller one")
    mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    cells = mean(maps.reshape(-1, 1, *size), window, ceil_mode=True, count_include_pad=False)
    return cells.reshape(*maps.shape[:-dims], *cells.shape[2:])


def along_lines(
    forward_pass: ForwardPass,
    start: Callable[[Tensor, Tensor], Tensor],
    fractions: Tensor,
    weights: Tensor,
    chunks: Chunks,
    what: str,
) -> list[Tensor]:
    r"""Add up weighted gradients along lines from baselines to the images, each times the difference of its ends.

    .. math:: \sum_i w_i \, (x - b_i) \circ \nabla s(b_i + \alpha_i (x - b_i))

    Args:
        forward_pass: the pass of the images x.
        start: from the number of the image (rows,) and that of the step i (rows,) to the baselines b (rows, C, ...).
        fractions: (steps,), how far along the line each gradient is taken, alpha.
        weights: (steps,), w.
        chunks: how many rows run at a time.
        what: the title of the progress bar.

    Returns:
        (N, C, ...) for each class. ``steps`` forward and backward passes of each image (K backward passes for K
        classes).
    """
    forward_pass.checks.finite("score", forward_pass.scores)
    inputs = with_known_rows(forward_pass.network, forward_pass.inputs)
    images = inputs.floats
    count, per_row = len(images), [-1] + [1] * (images.dim() - 1)
    sums = [single_or_double(torch.zeros_like(images)) for _ in forward_pass.score_of_each_class]

    def shares(rows: slice) -> list[Tensor]:
        number = torch.arange(rows.start, rows.stop, device=images.device)
        image, step = number % count, number // count
        begin = start(image, step)
        difference = images[image] - begin
        points = begin + fractions.to(images)[step].view(per_row) * difference
        gradients = forward_pass.input_gradients(inputs.pick(image, count).with_images(points), image)
        weighted = single_or_double(difference) * weights.to(sums[0])[step].view(per_row)
        return [weighted * gradient.to(weighted.device) for gradient in gradients]

    def add(rows: slice, found: list[Tensor]) -> None:
        for total, share in zip(sums, found, strict=True):
            total += by_copy(share, rows, count).sum(0)

    for_each_chunk(shares, add, count * len(fractions), chunks, images.device, what)
    return sums
