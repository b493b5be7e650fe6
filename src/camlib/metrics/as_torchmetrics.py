"""The metrics as torchmetrics classes, which accumulate over batches and over processes.

They need the package torchmetrics: ``pip install -e '.[metrics]'``. Every metric of :data:`camlib.metrics.METRICS` has
a class, named as the metric in capitalised words: ``AverageDrop``, ``IoU``, ``ROADCombined``. ``update`` takes what the
metric takes; ``compute`` returns the mean over all images, without those that could not be evaluated (NaN).

They can be collected in a ``torchmetrics.MetricCollection``, tracked by a ``MetricTracker`` and pickled.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torchmetrics
from torch import Tensor

from camlib import metrics
from camlib.errors import CamlibValueError, positive_int
from camlib.metrics.masks import checked_share
from camlib.metrics.readings import LocatedHeatmaps

ACRONYMS = {"adcc": "ADCC", "arcc": "ARCC", "irof": "IROF", "iou": "IoU", "road": "ROAD"}


class Apart(torchmetrics.Metric):
    """A metric that ``torchmetrics.MetricCollection`` never joins with another one.

    A collection updates only one of several metrics whose states are equal after the first batch, which two different
    metrics of heatmaps often are: both 0, or both 1. A state that is another one for each instance keeps them apart.
    """

    own: Tensor
    """(128,), the bits of a number that no other instance has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        number = uuid.uuid4().int
        bits = torch.tensor([number >> place & 1 for place in range(128)])
        self.add_state("own", bits, dist_reduce_fx="max")


class ImageMean(Apart, torchmetrics.MeanMetric):
    """The mean over images of a metric of :mod:`camlib.metrics`, in double precision.

    Args:
        options: for the metric, at every update.
        **kwargs: as for :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from camlib.metrics.as_torchmetrics import Sparseness
        >>> metric = Sparseness()
        >>> metric.update(torch.rand(2, 8, 8))
        >>> metric.update(torch.rand(3, 8, 8))
        >>> metric.compute().shape, int(metric.weight)
        (torch.Size([]), 5)
    """

    metric: ClassVar[metrics.Metric[Any, ...]]
    """The metric that evaluates a batch."""

    def __init__(self, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(nan_strategy="ignore", **kwargs)
        self.options = dict(options or {})
        self._batches = 0  # not a state, which forward() would reset
        super().set_dtype(torch.float64)

    def set_dtype(self, dst_type: Any) -> ImageMean:
        """Stay in double precision, in which a mean over any number of images is exact enough."""
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Evaluate a batch. Ties are broken independently for each image, across batches too."""
        metric, drawn = type(self).metric, {}
        if metric.reads is LocatedHeatmaps and "generator" in metric.__signature__.parameters:
            drawn = {"generator": torch.Generator().manual_seed(self._batches)}
            self._batches += 1
        super().update(metric(*args, **drawn | self.options, **kwargs))


class MaxBoxAcc(Apart):
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
    """Number of images so far."""

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


def _class_of(metric: metrics.Metric[Any, ...]) -> type[ImageMean]:
    name = "".join(ACRONYMS.get(word, word.capitalize()) for word in metric.name.split("_"))
    members = {
        "__module__": __name__,
        "__doc__": f"See :func:`camlib.metrics.{metric.name}`.",
        "metric": metric,
        "higher_is_better": metric.better == "higher",
    }
    return type(name, (ImageMean,), members)


globals().update({made.__name__: made for made in map(_class_of, metrics.METRICS.values())})

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[ImageMean]: ...
