"""Methods by metrics: which of them to trust for a model and its images."""

from camlib.evaluation.run import evaluate
from camlib.evaluation.table import Evaluation, Row

__all__ = ["Evaluation", "Row", "evaluate"]
