"""Methods by metrics: which of them to trust for a model and its images."""

from camlib.evaluation.run import evaluate
from camlib.evaluation.table import Evaluation, TableRow

__all__ = ["Evaluation", "TableRow", "evaluate"]
