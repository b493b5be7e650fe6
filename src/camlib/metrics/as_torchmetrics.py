"""The metrics as classes of torchmetrics: accumulated over a data set and over processes.

They need the package torchmetrics: ``pip install -e '.[metrics]'``. ``update`` takes what the function of the same name
takes; ``compute`` returns the mean over all images, those left out that could not be judged (NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torchmetrics
from torch import Tensor

from camlib import metrics
from camlib.errors import CamlibValueError, positive_int
from camlib.metrics.localisation import checked_share


class ImageMean(torchmetrics.Metric):
    """The mean over images of a metric of :mod:`camlib.metrics`.

    Args:
        options: for the function, at every update.
        **kwargs: as for :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from camlib.metrics.as_torchmetrics import Sparseness
        >>> metric = Sparseness()
        >>> metric.update(torch.rand(2, 8, 8))
        >>> metric.update(torch.rand(3, 8, 8))
        >>> metric.compute().shape, int(metric.images)
        (torch.Size([]), 5)
    """

    function: ClassVar[Callable[..., Tensor]]
    """What judges a batch."""
    full_state_update = False
    is_differentiable = False
    total: Tensor
    """The sum over images so far."""
    images: Tensor
    """How many could be judged so far."""

    def __init__(self, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = dict(options or {})
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Judge a batch."""
        values = type(self).function(*args, **self.options, **kwargs)
        known = values[~values.isnan()]
        self.total = self.total + known.sum().to(self.total)
        self.images = self.images + len(known)

    def compute(self) -> Tensor:
        """Return the mean over all images; NaN if none could be judged."""
        return self.total / self.images


class AverageDrop(ImageMean):
    """See :func:`camlib.metrics.average_drop`."""

    function = staticmethod(metrics.average_drop)
    higher_is_better = False


class AverageIncrease(ImageMean):
    """See :func:`camlib.metrics.average_increase`."""

    function = staticmethod(metrics.average_increase)
    higher_is_better = True


class Insertion(ImageMean):
    """See :func:`camlib.metrics.insertion`."""

    function = staticmethod(metrics.insertion)
    higher_is_better = True


class Deletion(ImageMean):
    """See :func:`camlib.metrics.deletion`."""

    function = staticmethod(metrics.deletion)
    higher_is_better = False


class ROADMostRelevantFirst(ImageMean):
    """See :func:`camlib.metrics.road_most_relevant_first`."""

    function = staticmethod(metrics.road_most_relevant_first)
    higher_is_better = False


class ROADLeastRelevantFirst(ImageMean):
    """See :func:`camlib.metrics.road_least_relevant_first`."""

    function = staticmethod(metrics.road_least_relevant_first)
    higher_is_better = True


class ROADCombined(ImageMean):
    """See :func:`camlib.metrics.road_combined`."""

    function = staticmethod(metrics.road_combined)
    higher_is_better = True


class Infidelity(ImageMean):
    """See :func:`camlib.metrics.infidelity`."""

    function = staticmethod(metrics.infidelity)
    higher_is_better = False


class FaithfulnessCorrelation(ImageMean):
    """See :func:`camlib.metrics.faithfulness_correlation`."""

    function = staticmethod(metrics.faithfulness_correlation)
    higher_is_better = True


class SensitivityN(ImageMean):
    """See :func:`camlib.metrics.sensitivity_n`."""

    function = staticmethod(metrics.sensitivity_n)
    higher_is_better = True


class Coherency(ImageMean):
    """See :func:`camlib.metrics.coherency`."""

    function = staticmethod(metrics.coherency)
    higher_is_better = True


class ADCC(ImageMean):
    """See :func:`camlib.metrics.adcc`."""

    function = staticmethod(metrics.adcc)
    higher_is_better = True


class ARCC(ImageMean):
    """See :func:`camlib.metrics.arcc`."""

    function = staticmethod(metrics.arcc)
    higher_is_better = True


class PointingGame(ImageMean):
    """See :func:`camlib.metrics.pointing_game`."""

    function = staticmethod(metrics.pointing_game)
    higher_is_better = True


class EnergyPointingGame(ImageMean):
    """See :func:`camlib.metrics.energy_pointing_game`."""

    function = staticmethod(metrics.energy_pointing_game)
    higher_is_better = True


class RelevanceRank(ImageMean):
    """See :func:`camlib.metrics.relevance_rank`."""

    function = staticmethod(metrics.relevance_rank)
    higher_is_better = True


class TopKIntersection(ImageMean):
    """See :func:`camlib.metrics.top_k_intersection`."""

    function = staticmethod(metrics.top_k_intersection)
    higher_is_better = True


class IoU(ImageMean):
    """See :func:`camlib.metrics.iou`."""

    function = staticmethod(metrics.iou)
    higher_is_better = True


class MaxSensitivity(ImageMean):
    """See :func:`camlib.metrics.max_sensitivity`."""

    function = staticmethod(metrics.max_sensitivity)
    higher_is_better = False


class AverageSensitivity(ImageMean):
    """See :func:`camlib.metrics.average_sensitivity`."""

    function = staticmethod(metrics.average_sensitivity)
    higher_is_better = False


class LipschitzEstimate(ImageMean):
    """See :func:`camlib.metrics.lipschitz_estimate`."""

    function = staticmethod(metrics.lipschitz_estimate)
    higher_is_better = False


class CascadingRandomization(ImageMean):
    """See :func:`camlib.metrics.cascading_randomization`."""

    function = staticmethod(metrics.cascading_randomization)
    higher_is_better = False


class IndependentRandomization(ImageMean):
    """See :func:`camlib.metrics.independent_randomization`."""

    function = staticmethod(metrics.independent_randomization)
    higher_is_better = False


class RandomLogit(ImageMean):
    """See :func:`camlib.metrics.random_logit`."""

    function = staticmethod(metrics.random_logit)
    higher_is_better = False


class Sparseness(ImageMean):
    """See :func:`camlib.metrics.sparseness`."""

    function = staticmethod(metrics.sparseness)
    higher_is_better = True


class Entropy(ImageMean):
    """See :func:`camlib.metrics.entropy`."""

    function = staticmethod(metrics.entropy)
    higher_is_better = False


class Complexity(ImageMean):
    """See :func:`camlib.metrics.complexity`."""

    function = staticmethod(metrics.complexity)
    higher_is_better = False


class MaxBoxAcc(torchmetrics.Metric):
    """See :func:`camlib.metrics.max_box_acc`: one threshold, the best, for the whole data set.

    ``update`` takes heatmaps (N, H, W) and boxes.

    Args:
        thresholds: as for :func:`camlib.metrics.max_box_acc`.
        ious: each with its best threshold; the mean over these is returned.
        **kwargs: as for :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from camlib.metrics.as_torchmetrics import MaxBoxAcc
        >>> metric = MaxBoxAcc()
        >>> heatmaps = torch.zeros(2, 8, 8)
        >>> heatmaps[:, 2:5, 3:6] = 0.7
        >>> metric.update(heatmaps, torch.tensor([[3, 2, 6, 5], [0, 0, 2, 2]]))
        >>> float(metric.compute())
        0.5
    """

    regions: ClassVar[str] = "largest"
    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    hits: Tensor
    """(ious, thresholds) images hit so far."""
    images: Tensor
    """How many images so far."""

    def __init__(self, thresholds: int = 100, ious: Sequence[float] = (0.5,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ious = tuple(checked_share("iou", iou) for iou in ious)
        if not self.ious:
            raise CamlibValueError("ious is empty; give at least one, such as 0.5")
        shape = (len(self.ious), positive_int("thresholds", thresholds))
        self.add_state("hits", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, heatmaps: Any, boxes: Any) -> None:
        """Count the hits of a batch."""
        overlaps = metrics.box_overlaps(heatmaps, boxes, thresholds=self.hits.shape[1], regions=self.regions)
        self.hits = self.hits + torch.stack([(overlaps >= iou).sum(0) for iou in self.ious]).to(self.hits)
        self.images = self.images + len(overlaps)

    def compute(self) -> Tensor:
        """Return the share of images hit; NaN if there were none."""
        return (self.hits.amax(1) / self.images).double().mean()


class MaxBoxAccV2(MaxBoxAcc):
    """See :func:`camlib.metrics.max_box_acc_v2`.

    Args:
        thresholds: as for :func:`camlib.metrics.max_box_acc_v2`.
        ious: the same.
        **kwargs: as for :class:`torchmetrics.Metric`.
    """

    regions: ClassVar[str] = "all"

    def __init__(self, thresholds: int = 100, ious: Sequence[float] = (0.3, 0.5, 0.7), **kwargs: Any) -> None:
        super().__init__(thresholds, ious, **kwargs)
