"""Methods by metrics: which of them to trust for a model and its images."""

from camlib.evaluation.run import evaluate as evaluate
from camlib.evaluation.scan import LayerScan as LayerScan
from camlib.evaluation.scan import scan_layers as scan_layers
from camlib.evaluation.table import Evaluation as Evaluation
from camlib.evaluation.table import Failure as Failure
from camlib.evaluation.table import TableRow as TableRow
