"""Metrics of heatmaps: faithfulness, localisation, robustness, sanity and shape, one number for each image.

Those that re-run the model take ``(model, inputs, heatmaps, target)``, those that re-run the explanation ``(explainer,
inputs, target)``, those of localisation ``(heatmaps, masks)``, those of shape ``(heatmaps)``. All return (N,); papers
report the mean over images. :func:`camlib.evaluate` applies many of them to many methods, and
:mod:`camlib.metrics.as_torchmetrics` has a torchmetrics class for each.
"""

# ruff: noqa: I001
from typing import Any as Any

# The metrics of single images, in the order of METRICS.
from camlib.metrics.confidence import average_drop as average_drop
from camlib.metrics.confidence import average_increase as average_increase
from camlib.metrics.curves import insertion as insertion
from camlib.metrics.curves import deletion as deletion
from camlib.metrics.road import road_most_relevant_first as road_most_relevant_first
from camlib.metrics.road import road_least_relevant_first as road_least_relevant_first
from camlib.metrics.road import road_combined as road_combined
from camlib.metrics.infidelity import infidelity as infidelity
from camlib.metrics.correlation import faithfulness_correlation as faithfulness_correlation
from camlib.metrics.correlation import sensitivity_n as sensitivity_n
from camlib.metrics.regions import region_perturbation as region_perturbation
from camlib.metrics.regions import irof as irof
from camlib.metrics.completeness import completeness as completeness
from camlib.metrics.coherency import coherency as coherency
from camlib.metrics.coherency import adcc as adcc
from camlib.metrics.coherency import arcc as arcc
from camlib.metrics.localisation import pointing_game as pointing_game
from camlib.metrics.localisation import energy_pointing_game as energy_pointing_game
from camlib.metrics.localisation import grid_pointing_game as grid_pointing_game
from camlib.metrics.localisation import relevance_rank as relevance_rank
from camlib.metrics.localisation import top_k_intersection as top_k_intersection
from camlib.metrics.localisation import roc_auc as roc_auc
from camlib.metrics.localisation import iou as iou
from camlib.metrics.robustness import max_sensitivity as max_sensitivity
from camlib.metrics.robustness import average_sensitivity as average_sensitivity
from camlib.metrics.robustness import lipschitz_estimate as lipschitz_estimate
from camlib.metrics.stability import relative_input_stability as relative_input_stability
from camlib.metrics.stability import relative_output_stability as relative_output_stability
from camlib.metrics.stability import relative_representation_stability as relative_representation_stability
from camlib.metrics.sanity import cascading_randomization as cascading_randomization
from camlib.metrics.sanity import independent_randomization as independent_randomization
from camlib.metrics.sanity import efficient_randomization as efficient_randomization
from camlib.metrics.sanity import random_logit as random_logit
from camlib.metrics.shape import sparseness as sparseness
from camlib.metrics.shape import entropy as entropy
from camlib.metrics.shape import complexity as complexity

# Metrics of data sets, what metrics are made of, and what they read.
from camlib.metrics.box_accuracy import box_hits as box_hits
from camlib.metrics.box_accuracy import box_overlaps as box_overlaps
from camlib.metrics.box_accuracy import max_box_acc as max_box_acc
from camlib.metrics.box_accuracy import max_box_acc_v2 as max_box_acc_v2
from camlib.metrics.curves import deletion_curve as deletion_curve
from camlib.metrics.curves import insertion_curve as insertion_curve
from camlib.metrics.declaration import Measure as Measure
from camlib.metrics.declaration import Metric as Metric
from camlib.metrics.imputation import impute as impute
from camlib.metrics.masks import box_masks as box_masks
from camlib.metrics.mosaic import Mosaics as Mosaics
from camlib.metrics.mosaic import mosaics as mosaics
from camlib.metrics.randomization_result import Randomization as Randomization
from camlib.metrics.ranking import ranked as ranked
from camlib.metrics.ranking import ranks as ranks
from camlib.metrics.sanity import randomization as randomization
from camlib.metrics.readings import Explained as Explained
from camlib.metrics.readings import HeatmapCase as HeatmapCase
from camlib.metrics.readings import ScoredHeatmaps as ScoredHeatmaps
from camlib.metrics.scorer import Scorer as Scorer
from camlib.metrics.similarity import SIMILARITIES as SIMILARITIES
from camlib.metrics.similarity import hog as hog
from camlib.metrics.similarity import pearson as pearson
from camlib.metrics.similarity import spearman as spearman
from camlib.metrics.similarity import ssim as ssim

METRICS: dict[str, Metric[Any, ...]] = {name: one for name, one in globals().items() if isinstance(one, Metric)}
"""Every metric of single images by name; those of box accuracy, :func:`max_box_acc`, are of a data set."""
