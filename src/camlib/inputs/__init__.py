"""What a model takes and what it returns, parsed once."""

from camlib.inputs.detections import Detections as Detections
from camlib.inputs.detections import detections_in as detections_in
from camlib.inputs.inputs import ImageAxes as ImageAxes
from camlib.inputs.inputs import Inputs as Inputs
from camlib.inputs.inputs import Size as Size
from camlib.inputs.outputs import Outputs as Outputs
