"""One method's explanation of one batch, with all that any metric may ask about it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from camlib.errors import CamlibValueError
from camlib.explanation import Explanation
from camlib.metrics.coherency import coherency_of
from camlib.metrics.scorer import Scorer, Trial
from camlib.smoothing import Explainer


class Case(Trial):
    """An explanation on trial: its heatmaps, who made it of what, and where the truth lies if that is known.

    Args:
        scorer: of the images; one for all methods.
        explainer: who explained.
        explanation: of those images.
        target: what was explained, bound to the outputs: the explainer explains it again on changed images.
        masks: (N, H, W), where the truth lies.

    Example:
        >>> import camlib, torch, torchvision
        >>> from camlib.metrics import METRICS, Case, Scorer
        >>> model, images = torchvision.models.resnet18(num_classes=4), torch.rand(2, 3, 64, 64)
        >>> cam = camlib.GradCAM(model)
        >>> case = Case(Scorer(model, images, 1), cam, cam(images, 1), 1)
        >>> METRICS["adcc"].judge(case).shape, METRICS["deletion"].judge(case, steps=4).shape
        (torch.Size([2]), torch.Size([2]))
    """

    def __init__(
        self, scorer: Scorer, explainer: Explainer, explanation: Explanation, target: Any, masks: Tensor | None = None
    ) -> None:
        super().__init__(scorer, explanation.heatmaps())
        self.explainer = explainer
        self.explanation = explanation
        self.target = target
        self._masks = masks

    @cached_property
    def masks(self) -> Tensor:
        """(N, H, W).

        Raises:
            CamlibValueError: there are none.
        """
        if self._masks is None:
            raise CamlibValueError("a metric of localisation compares heatmaps with masks; give masks=")
        return torch.as_tensor(self._masks)

    @cached_property
    def coherency(self) -> Tensor:
        """(N,), see :func:`camlib.metrics.coherency`: once for all metrics that it is a part of."""
        return coherency_of(self.explainer, self.explanation, self.scorer.inputs, self.target)
