"""Tests of other libraries, as adapters: their inputs and expected values as facts, and code of camlib's own."""

from tests.peers import (
    captum,
    captum_ablation,
    grad_cam,
    monai,
    quantus,
    quantus_values,
    torchcam,
    torchcam_values,
    vision,
    zennit,
)
from tests.peers.case import Case as Case

MODULES = (
    captum, captum_ablation, torchcam, torchcam_values, grad_cam, quantus, quantus_values, monai, zennit, vision
)  # fmt: skip
CASES: list[Case] = [case for module in MODULES for case in module.CASES]
