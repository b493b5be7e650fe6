"""What is explained: a score for each row of the outputs, whose gradient or change a method measures."""

from camlib.targets.base import BoundTarget, Score, Target, score
from camlib.targets.box import Box
from camlib.targets.classes import BoundLogits, Classes, Confidence, Contrast, Probability, ReST, bind
from camlib.targets.detection import Detection
from camlib.targets.difference import Difference
from camlib.targets.indices import Link, TopK, class_logits, class_outputs, class_probabilities, two_class_logits
from camlib.targets.labels import BinaryLogit, MultiLabel, Output
from camlib.targets.region import Region
from camlib.targets.similarity import Similarity

__all__ = [
    "BinaryLogit",
    "BoundLogits",
    "BoundTarget",
    "Box",
    "Classes",
    "Confidence",
    "Contrast",
    "Detection",
    "Difference",
    "Link",
    "MultiLabel",
    "Output",
    "Probability",
    "ReST",
    "Region",
    "Score",
    "Similarity",
    "Target",
    "TopK",
    "bind",
    "class_logits",
    "class_outputs",
    "class_probabilities",
    "score",
    "two_class_logits",
]
