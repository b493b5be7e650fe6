"""The public names of camlib: explainers, verbs and errors. This file imports and does nothing else.

Pure functions are in ``functional``, base classes in ``methods``, targets in ``targets``, metrics in ``metrics``.
"""

from camlib import functional as functional
from camlib import imaging as imaging
from camlib import methods as methods
from camlib import metrics as metrics
from camlib import reporting as reporting
from camlib import targets as targets
from camlib import testing as testing
from camlib.comparison import compare as compare
from camlib.concepts import deep_feature_factorization as deep_feature_factorization
from camlib.datasets import explain_dataset as explain_dataset
from camlib.datasets import open_run as open_run
from camlib.discovery.finding import find_layer as find_layer
from camlib.discovery.finding import find_stages as find_stages
from camlib.discovery.finding import list_layers as list_layers
from camlib.errors import CamlibError as CamlibError
from camlib.errors import CamlibRuntimeError as CamlibRuntimeError
from camlib.errors import CamlibTypeError as CamlibTypeError
from camlib.errors import CamlibValueError as CamlibValueError
from camlib.errors import CamlibWarning as CamlibWarning
from camlib.evaluation import evaluate as evaluate
from camlib.evaluation import scan_layers as scan_layers
from camlib.explaining import explain as explain
from camlib.explanation import Explanation as Explanation
from camlib.exporting import as_module as as_module
from camlib.exporting import export as export
from camlib.exporting import export_onnx as export_onnx
from camlib.imaging import colorize as colorize
from camlib.imaging import normalize as normalize
from camlib.imaging import overlay as overlay
from camlib.imaging import read_image as read_image
from camlib.imaging import resize as resize
from camlib.methods.catalogue import *  # noqa: F403
from camlib.methods.libra_grad import balanced as balanced
from camlib.methods.registry import METHODS as METHODS
from camlib.methods.registry import create as create
from camlib.passes.capture import capture as capture
from camlib.reporting.page import report as report
from camlib.smoothing import MultiScale as MultiScale
from camlib.smoothing import NoiseAveraging as NoiseAveraging
from camlib.smoothing import TestTimeAugmentation as TestTimeAugmentation
from camlib.targets import TopK as TopK
