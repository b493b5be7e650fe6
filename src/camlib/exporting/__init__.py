"""A model together with its heatmaps as one graph: a module, a program of torch.export, a file of ONNX."""

from camlib.exporting.module import WithHeatmaps as WithHeatmaps
from camlib.exporting.module import as_module as as_module
from camlib.exporting.onnx_file import export_onnx as export_onnx
from camlib.exporting.preprocessing import Preprocessing as Preprocessing
from camlib.exporting.program import export as export
