"""The score while regions, such as superpixels, are removed: region perturbation and IROF."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from camlib.errors import positive_int
from camlib.methods.region_labels import region_labels
from camlib.metrics.confidence import positive_scores
from camlib.metrics.declaration import after, metric
from camlib.metrics.fills import Baseline, baseline_images
from camlib.metrics.ranking import ranks
from camlib.metrics.readings import ScoredHeatmaps


class Removal(NamedTuple):
    """Scores of images whose most important regions are replaced, one after another."""

    heatmaps: ScoredHeatmaps
    scores: Tensor
    """(N, L + 1), from the image as it is to that without a region."""
    counts: Tensor
    """(N,), the regions L of each image; its later scores repeat the last one."""

    def means(self, values: Tensor) -> Tensor:
        """Return the mean (N,) of values (N, L + 1) of each image's own steps."""
        steps = torch.arange(values.shape[1], device=values.device)
        return values.where(steps <= self.counts[:, None], 0).sum(1) / (self.counts + 1)


def removing_regions(
    heatmaps: ScoredHeatmaps,
    *,
    regions: Any = 16,
    baseline: Baseline = "mean",
    generator: torch.Generator | None = None,
) -> Removal:
    """Replace the regions of each image, the one of the highest mean importance first.

    Args:
        regions: the side of square regions, in pixels; or integers (N, H, W), or (H, W) for all images, which are equal
            for pixels of one region, such as the superpixels of scikit-image's ``slic``.
        baseline: what replaces them: "mean" of the image's channels, "zero", "blur", a number or a tensor (C, 1, 1);
            see :func:`camlib.metrics.fills.baseline_images`.
        generator: shuffles ties, which a ReLU'd map has many of; without one, every call draws the same.

    Raises:
        CamlibTypeError: ``regions`` that are no integers, or a ``baseline`` of another type.
        CamlibValueError: ``regions`` of another shape, or not a positive int, or a ``baseline`` that cannot be
            broadcast.
    """
    scorer, labels = heatmaps.scorer, _labels(regions, heatmaps.values)
    images = len(labels)
    index, size = labels.flatten(1), int(labels.max()) + 1
    pixels = torch.zeros(images, size, device=labels.device, dtype=torch.long)
    pixels = pixels.scatter_add(1, index, torch.ones_like(index))
    sums = torch.zeros(images, size, device=labels.device, dtype=torch.float64)
    means = sums.scatter_add(1, index, heatmaps.values.flatten(1).double()) / pixels
    # A region that an image does not have is the last of all.
    order = ranks(means.masked_fill(pixels == 0, -torch.inf), generator).gather(1, index).reshape(labels.shape)
    counts = (pixels > 0).sum(1)
    instead = baseline_images(scorer.images, baseline)
    of_image = scorer.image_index.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    removed = torch.arange(len(of_image), device=counts.device) - starts[of_image] + 1

    def without(images: Tensor, rows: slice) -> Tensor:
        which, count = of_image[rows], removed[rows].reshape(-1, *[1] * (labels.dim() - 1))
        return torch.where((order[which] < count)[:, None], instead[which], images)

    found = scorer.scores(of_image, without)
    steps = torch.arange(size + 1, device=counts.device).clamp(max=counts[:, None])
    table = torch.cat([scorer.clean.to(found), found])
    clean = torch.arange(images, device=counts.device)[:, None]
    scores = table[torch.where(steps == 0, clean, images + starts[:, None] + steps - 1).to(table.device)]
    counts = counts.to(scores.device)
    return Removal(heatmaps, scores.to(torch.result_type(scores, heatmaps.values)), counts)


@metric(ScoredHeatmaps, "higher", "between -1 and 1 for probabilities")
@after(removing_regions)
def region_perturbation(removal: Removal) -> Tensor:
    r"""Mean fall of the score while the most important regions are replaced (AOPC).

    .. math::
        \frac{1}{L + 1} \sum_{k=0}^{L} s(x) - s(x_k)

    where the k most important of the L regions of :math:`x_k` are replaced. Samek et al. 2017,
    https://arxiv.org/abs/1509.06321, who replace squares of 9 x 9 pixels by uniform noise, the first 100 of them.
    Higher is better: the score falls early. :func:`camlib.metrics.deletion` replaces single pixels; its area is the
    mean of the scores themselves.

    ``N (1 + L)`` forward passes of an image.
    """
    return removal.means(removal.scores[:, :1] - removal.scores)


@metric(ScoredHeatmaps, "higher", "at most 1 for positive scores")
@after(removing_regions)
def irof(removal: Removal) -> Tensor:
    r"""IROF: area over the relative score while the most important superpixels are replaced by the mean colour.

    .. math::
        1 - \frac{1}{L} \sum_{k=1}^{L} \frac{s(x_{k-1}) + s(x_k)}{2\, s(x)}

    where the k most important of the L regions of :math:`x_k` are replaced. Rieger and Hansen 2020,
    https://arxiv.org/abs/2003.08747, with the superpixels of SLIC, which ``regions`` takes. Higher is better: the score
    falls early. NaN for an image among others whose probability is 0 in floating point. Quantus does not divide by L,
    and its area begins after the first superpixel has been replaced.

    ``N (1 + L)`` forward passes of an image.

    Raises:
        CamlibTypeError: ``regions`` that are no integers, or a ``baseline`` of another type.
        CamlibValueError: an image with a score of 0 or less; ``regions`` of another shape, or not a positive int, or a
            ``baseline`` that cannot be broadcast.
        CamlibRuntimeError: only images of probability 0.
    """
    clean = positive_scores(removal.heatmaps.scorer, "the relative score")[:, None].to(removal.scores)
    shares = removal.scores / clean
    ends = (1 + shares[:, -1]) / 2  # of trapezoids: the first and the last count half
    sums = removal.means(shares) * (removal.counts + 1)
    return 1 - (sums - ends) / removal.counts


def _labels(regions: Any, heatmaps: Tensor) -> Tensor:
    """Return the number of each pixel's region, (N, ...), from 0 in each image."""
    shape, device = heatmaps.shape, heatmaps.device
    if isinstance(regions, int):
        side = positive_int("regions", regions)
        labels = torch.zeros(shape[1:], dtype=torch.long, device=device)
        for axis, length in enumerate(shape[1:]):
            place = torch.arange(length, device=device) // side
            labels = labels * (int(place[-1]) + 1) + place.reshape(-1, *[1] * (len(shape) - 2 - axis))
        return labels.expand(shape)
    return region_labels(regions, shape, device, "heatmaps", "a side in pixels or integers (N, H, W)")
