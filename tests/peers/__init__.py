"""Tests of other libraries, as adapters: their inputs and expected values as facts, and code of camlib's own."""

from tests.peers import captum, grad_cam, monai, quantus, torchcam
from tests.peers.case import Case as Case

CASES: list[Case] = [*captum.CASES, *torchcam.CASES, *grad_cam.CASES, *quantus.CASES, *monai.CASES]
