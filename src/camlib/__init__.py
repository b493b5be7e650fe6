"""camlib: where a neural network looked. Grad-CAM and its family for PyTorch.

cam = camlib.GradCAM(model)
explanation = cam(images)
explanation.plot(pictures)
"""

from camlib import imaging, targets
from camlib.capture import Captured, CapturedLayers, capture
from camlib.discovery import LayerInfo, find_layer, list_layers
from camlib.errors import (
    CamlibError,
    CamlibRuntimeError,
    CamlibTypeError,
    CamlibValueError,
    CamlibWarning,
)
from camlib.explanation import Explanation
from camlib.imaging import colorize, normalize, overlay, resize
from camlib.methods import METHODS, GradCAM, GradientMethod, Method, create, grad_cam
from camlib.targets import TopK

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "CamlibError",
    "CamlibRuntimeError",
    "CamlibTypeError",
    "CamlibValueError",
    "CamlibWarning",
    "Captured",
    "CapturedLayers",
    "Explanation",
    "GradCAM",
    "GradientMethod",
    "LayerInfo",
    "Method",
    "TopK",
    "capture",
    "colorize",
    "create",
    "find_layer",
    "grad_cam",
    "imaging",
    "list_layers",
    "normalize",
    "overlay",
    "resize",
    "targets",
]
