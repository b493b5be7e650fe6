"""Ablation-CAM and Score-CAM beside a bare forward pass and beside the peers, on one image of 224 x 224.

Every subject explains the class that the network predicts, whose logit is positive. Times are medians over rounds in
which the subjects take turns; resident memory is measured in a process for each. Maps are compared divided by their
own largest value.

Run it with ``benchmarks/run perturbation``; it writes ``benchmarks/results/perturbation.json``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import camlib
from benchmarks.measure import Call, measure_resident_peak, ratio, resident_peak, seconds

LAYER = "layer4"
MEMORY = {"camlib": LAYER, "camlib, layer3": "layer3", "camlib, layer2": "layer2", "torchcam": LAYER, "grad-cam": LAYER}
"""The layer at which each subject's memory is measured: 512, 256 and 128 channels, and so many passes."""


def build(name: str) -> tuple[nn.Module, Tensor, int]:
    """The model with random weights, an image, and the class it predicts."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        logits = model(image)
    assert logits.max() > 0
    return model, image, int(logits.argmax())


def bare(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """The forward pass alone, in inference mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(image)

    return call


def camlib_ablation(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """Camlib's Ablation-CAM."""
    explainer = camlib.AblationCAM(model, layer)
    return lambda: explainer(image, target).maps[0]


def grad_cam_ablation(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """pytorch-grad-cam's Ablation-CAM, which explains at the input's resolution."""
    return _grad_cam("AblationCAM", model, image, target, layer)


def camlib_score(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """Camlib's Score-CAM."""
    explainer = camlib.ScoreCAM(model, layer)
    return lambda: explainer(image, target).maps[0]


def camlib_score_bfloat16(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """Camlib's Score-CAM under autocast."""
    call = camlib_score(model, image, target, layer)

    def under_autocast() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return under_autocast


def grad_cam_score(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """pytorch-grad-cam's Score-CAM."""
    return _grad_cam("ScoreCAM", model, image, target, layer)


def torchcam_score(model: nn.Module, image: Tensor, target: int, layer: str = LAYER) -> Call:
    """Torchcam's Score-CAM."""
    from torchcam.methods import ScoreCAM

    extractor = ScoreCAM(model, target_layer=layer)

    def call() -> Any:
        with torch.no_grad():
            return extractor(target, model(image))[0][0]

    return call


def _grad_cam(method: str, model: nn.Module, image: Tensor, target: int, layer: str) -> Call:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = getattr(pytorch_grad_cam, method)(model=model, target_layers=[model.get_submodule(layer)])
    return lambda: torch.from_numpy(explainer(input_tensor=image, targets=[ClassifierOutputTarget(target)])[0])


ABLATION = {"forward": bare, "camlib": camlib_ablation, "grad-cam": grad_cam_ablation}
SCORE = {
    "forward": bare,
    "camlib": camlib_score,
    "camlib, bfloat16": camlib_score_bfloat16,
    "torchcam": torchcam_score,
    "grad-cam": grad_cam_score,
}


def measured(subjects: dict[str, Any], name: str, rounds: int) -> tuple[dict[str, Call], dict[str, list[float]]]:
    """The calls of each subject on its own copy of the model, and their seconds."""
    model, image, target = build(name)
    calls = {subject: make(copy.deepcopy(model), image, target) for subject, make in subjects.items()}
    return calls, seconds(calls, rounds)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two maps, each divided by its largest value and brought to the larger one's size."""
    one, other = (camlib.normalize(camlib.resize(maps.float(), tuple(other.shape)), "minmax") for maps in (one, other))
    return float((one - other).abs().max())


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of two maps without ties."""
    return float(
        torch.corrcoef(torch.stack([maps.flatten().argsort().argsort().double() for maps in (one, other)]))[0, 1]
    )


def ablation(name: str, rounds: int) -> dict[str, Any]:
    """Ablation-CAM: how much faster than grad-cam, and how far apart the maps are."""
    calls, took = measured(ABLATION, name, rounds)
    return {
        "seconds": {subject: statistics.median(found) for subject, found in took.items()},
        "forwards of time": {subject: ratio(found, took["forward"]) for subject, found in took.items()},
        "times faster than grad-cam": ratio(took["grad-cam"], took["camlib"]),
        "maps apart": apart(calls["camlib"](), calls["grad-cam"]()),
    }


def score(name: str, rounds: int) -> dict[str, Any]:
    """Score-CAM: how much faster than the faster of the peers, in both precisions, and what memory it takes."""
    calls, took = measured(SCORE, name, rounds)
    faster = min(("torchcam", "grad-cam"), key=lambda peer: statistics.median(took[peer]))
    exact, half = calls["camlib"](), calls["camlib, bfloat16"]()
    memory = {
        subject: resident_peak(f"{__package__}.perturbation", subject, name, layer) for subject, layer in MEMORY.items()
    }
    return {
        "seconds": {subject: statistics.median(found) for subject, found in took.items()},
        "forwards of time": {subject: ratio(found, took["forward"]) for subject, found in took.items()},
        "the faster peer": faster,
        "times faster": ratio(took[faster], took["camlib"]),
        "times faster in bfloat16": ratio(took[faster], took["camlib, bfloat16"]),
        "rank correlation of bfloat16": rank_correlation(exact, half),
        "resident MB": {subject: found / 1e6 for subject, found in memory.items()},
        "memory of torchcam's": memory["camlib"] / memory["torchcam"],
        "memory of grad-cam's": memory["camlib"] / memory["grad-cam"],
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", nargs=3, metavar=("SUBJECT", "MODEL", "LAYER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        subject, name, layer = arguments.peak
        print(measure_resident_peak(SCORE[subject.partition(", layer")[0]](*build(name), layer)))
        return
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, native bfloat16: {torch.cpu._is_avx512_bf16_supported()}",
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "torchvision", "grad-cam", "torchcam")},
        "rounds": arguments.rounds,
    }
    print(results["machine"], results["versions"])
    for what, measure, names in (
        ("ablation_cam", ablation, ("resnet18", "resnet50")),
        ("score_cam", score, ("resnet18",)),
    ):
        for name in names:
            results[f"{what}, {name}"] = found = measure(name, arguments.rounds)
            print(f"{what}, {name}:", json.dumps(found, indent=2), flush=True)
    path = Path(__file__).parent / "results" / "perturbation.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
