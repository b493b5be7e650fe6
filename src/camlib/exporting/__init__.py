from camlib.exporting.module import WithHeatmaps as WithHeatmaps
from camlib.exporting.module import as_module as as_module
from camlib.exporting.onnx_file import export_onnx as export_onnx
from camlib.exporting.preprocessing import Preprocessing as Preprocessing
from camlib.exporting.program import export as export
