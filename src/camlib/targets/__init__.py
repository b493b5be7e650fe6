"""What is explained: the score, one for each row of the outputs, whose gradient or change a method measures."""

from camlib.targets.base import Score, Target, score
from camlib.targets.classes import Classes, Confidence, Contrast, Probability, ReST, resolve
from camlib.targets.columns import BinaryLogit, MultiLabel, Output
from camlib.targets.dense import Region
from camlib.targets.detection import Box
from camlib.targets.embedding import Similarity
from camlib.targets.indices import TopK, class_outputs, two_class_logits

__all__ = [
    "BinaryLogit",
    "Box",
    "Classes",
    "Confidence",
    "Contrast",
    "MultiLabel",
    "Output",
    "Probability",
    "ReST",
    "Region",
    "Score",
    "Similarity",
    "Target",
    "TopK",
    "class_outputs",
    "resolve",
    "score",
    "two_class_logits",
]
