"""torchvision's test of its classifiers: each keeps its outputs, and camlib explains it at a layer with a grid."""

from __future__ import annotations

import functools

import torch
import torchvision

import camlib
from tests.peers.case import Case

PEER = "torchvision " + torchvision.__version__.split("+")[0]
SIZES = {"inception_v3": 160}
"""Sides of the images, in pixels, where 64 are too few."""
NETWORKS = (
    "alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t",
)  # fmt: skip


def explained(name: str) -> None:
    """Outputs (1, 50), as the test expects, the same after a call; a finite map at a layer that is found."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=50, **options).eval()
    side = SIZES.get(name, 64)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(images)
    explanation = camlib.GradCAM(model)(images, 7)
    with torch.no_grad():
        after = model(images)
    assert before.shape == (1, 50)
    assert torch.equal(before, after)
    torch.testing.assert_close(explanation.scores, before[:, 7])
    assert explanation.heatmaps().shape == (1, side, side)
    assert bool(explanation.maps.isfinite().all())


CASES = [
    Case(PEER, f"test_models.classification_model.{name}", "pass", functools.partial(explained, name))
    for name in NETWORKS
]
