"""Is the heatmap true? Faithfulness, localisation, robustness, sanity and shape, one number for each image.

Those that re-run the model take ``(model, inputs, heatmaps, target)``, those that re-run the explanation ``(explainer,
inputs, target)``, those of localisation ``(heatmaps, masks)``, those of shape ``(heatmaps)``. All return (N,); their
mean over images is what papers report. :func:`camlib.evaluate` asks many of them of many methods at once, and
:mod:`camlib.metrics.as_torchmetrics` has each as a class of torchmetrics.
"""

from camlib.metrics.box_accuracy import box_hits, box_overlaps, max_box_acc, max_box_acc_v2
from camlib.metrics.cases import Case
from camlib.metrics.coherency import adcc, arcc, coherency
from camlib.metrics.confidence import average_drop, average_increase
from camlib.metrics.correlation import faithfulness_correlation, sensitivity_n
from camlib.metrics.curves import deletion, deletion_curve, insertion, insertion_curve
from camlib.metrics.imputation import impute
from camlib.metrics.infidelity import infidelity
from camlib.metrics.localisation import (
    box_masks,
    energy_pointing_game,
    iou,
    pointing_game,
    relevance_rank,
    top_k_intersection,
)
from camlib.metrics.randomization import Randomization as Randomization
from camlib.metrics.ranking import ranked, ranks
from camlib.metrics.registry import METRICS, Metric
from camlib.metrics.road import road_combined, road_least_relevant_first, road_most_relevant_first
from camlib.metrics.robustness import average_sensitivity, lipschitz_estimate, max_sensitivity
from camlib.metrics.sanity import (
    cascading_randomization,
    independent_randomization,
    random_logit,
    randomization,
)
from camlib.metrics.scorer import Scorer, Trial
from camlib.metrics.shape import complexity, entropy, sparseness
from camlib.metrics.similarity import SIMILARITIES, hog, pearson, spearman, ssim

__all__ = [
    "METRICS",
    "SIMILARITIES",
    "Case",
    "Metric",
    "Randomization",
    "Scorer",
    "Trial",
    "adcc",
    "arcc",
    "average_drop",
    "average_increase",
    "average_sensitivity",
    "box_hits",
    "box_masks",
    "box_overlaps",
    "cascading_randomization",
    "coherency",
    "complexity",
    "deletion",
    "deletion_curve",
    "energy_pointing_game",
    "entropy",
    "faithfulness_correlation",
    "hog",
    "impute",
    "independent_randomization",
    "infidelity",
    "insertion",
    "insertion_curve",
    "iou",
    "lipschitz_estimate",
    "max_box_acc",
    "max_box_acc_v2",
    "max_sensitivity",
    "pearson",
    "pointing_game",
    "random_logit",
    "randomization",
    "ranked",
    "ranks",
    "relevance_rank",
    "road_combined",
    "road_least_relevant_first",
    "road_most_relevant_first",
    "sensitivity_n",
    "sparseness",
    "spearman",
    "ssim",
    "top_k_intersection",
]
