"""Detectors as they are used: outputs as targets, the levels that heads read, and maps as plain autograd's."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import detection

import camlib
from camlib import targets
from camlib.discovery.levels import find_levels, head_inputs
from camlib.inputs import Outputs, detections_in
from camlib.inputs.detections import SIGMOID, SOFTMAX
from camlib.passes.network import Network

LEVELS = {
    "yolov8n": ["model.15", "model.18", "model.21"],
    "yolo11n": ["model.16", "model.19", "model.22"],
    "yolo26n": ["model.16", "model.19", "model.22"],
}
YOLOS = [("yolov8n", False), ("yolo11n", False), ("yolo26n", False), ("yolo26n", True)]
each_yolo = pytest.mark.parametrize(("name", "end_to_end"), YOLOS)


def fresh(package: ModuleType, name: str, end_to_end: bool = False) -> Any:
    """A YOLO object with random weights whose scores differ, in float64."""
    torch.manual_seed(1)
    yolo = package.YOLO(f"{name}.yaml")
    head = yolo.model.model[-1]
    for module in yolo.model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:  # a fixed one sums the bins of the boxes
            nn.init.kaiming_normal_(module.weight)
    for heads in (head.cv3, getattr(head, "one2one_cv3", None)):
        for level in heads or ():
            nn.init.zeros_(level[-1].bias)
    if end_to_end:
        yolo.model.end2end = True
    yolo.model.double()
    return yolo


def quietly(model: Any, *args: Any, method: Any = camlib.LayerCAM, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", camlib.CamlibWarning)
        return method(model, *args, **options)


def maps_by_autograd(
    network: nn.Module, inputs: Any, layers: Sequence[str], score: Callable[[Any], Tensor]
) -> list[Tensor]:
    """LayerCAM of a score at each layer, by hooks and one backward pass through the whole network."""
    kept: dict[str, Tensor] = {}
    network = copy.deepcopy(network).eval().requires_grad_()
    for name in layers:
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, output)
        )
    value = score(network(inputs))
    gradients = torch.autograd.grad(value.sum(), [kept[name] for name in layers])
    return [(G.relu() * kept[name]).sum(1).relu().detach() for name, G in zip(layers, gradients, strict=True)]


def assert_layers(
    explanation: camlib.Explanation, expected: Sequence[Tensor], tolerance: float = 1e-9, everywhere: bool = True
) -> None:
    positive = [bool((one > 0).any()) for one in expected]
    assert all(positive) if everywhere else any(positive), "a map that is zero proves nothing"
    for (name, found), wanted in zip(explanation.layers.items(), expected, strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted.to(found.dtype), atol=tolerance * scale, rtol=tolerance, msg=name)


def levels_of(model: nn.Module, inputs: Any, forward: Any = None) -> list[str] | None:
    network = Network.of(model, forward)
    return head_inputs(network, network.ready(inputs))


class TestUltralytics:
    """YOLO: from the object or its network."""

    def pictures(self) -> Tensor:
        return torch.rand(2, 3, 96, 128, dtype=torch.float64)

    @each_yolo
    def test_ultralytics_box_is_the_best_candidate_and_its_maps_are_autograds(self, ultralytics, name, end_to_end):
        yolo, images = fresh(ultralytics, name, end_to_end), self.pictures()

        def best(outputs: Any) -> Tensor:
            table = outputs[0]
            return table[..., 4].amax(1) if end_to_end else table[:, 4:].amax((1, 2))

        with torch.no_grad():
            scores = best(yolo.model.eval()(images))
        explanation = quietly(yolo, LEVELS[name], fuse="max")(images, targets.Box())
        torch.testing.assert_close(explanation.scores, scores)
        wanted = maps_by_autograd(yolo.model, images, LEVELS[name], best)
        assert_layers(explanation, wanted, everywhere=False)  # coarse levels do not lead to a candidate of a finer one
        on_one_scale = [camlib.normalize(camlib.resize(one, (12, 16))) for one in wanted]
        torch.testing.assert_close(explanation.maps, torch.stack(on_one_scale).amax(0))

    @each_yolo
    def test_ultralytics_class_is_its_best_candidate(self, ultralytics, name, end_to_end):
        yolo, images = fresh(ultralytics, name, end_to_end), self.pictures()
        with torch.no_grad():
            table = yolo.model.eval()(images)[0]
        if end_to_end:
            labels = table[:, :3, 5].long()
            labels = torch.stack([row.unique()[[0, -1]] for row in labels])
            scores = torch.stack(
                [
                    torch.stack([rows[rows[:, 5] == label, 4].amax() for label in own])
                    for rows, own in zip(table, labels, strict=True)
                ]
            )
            first = table[torch.arange(2), table[..., 4].argmax(1), 5].long()
        else:
            labels = torch.tensor([[3, 7], [70, 3]])
            scores = table[:, 4:].amax(2).gather(1, labels)
            first = table[:, 4:].amax(2).argmax(1)
        cam = quietly(yolo.model, LEVELS[name], fuse="max")
        explanation = cam(images, labels)
        torch.testing.assert_close(explanation.scores, scores)
        torch.testing.assert_close(explanation.target, labels)
        for k in range(2):
            alone = cam(images, labels[:, k])
            torch.testing.assert_close(alone.maps, explanation.maps[:, k])
        torch.testing.assert_close(cam(images).target, first)
        assert cam(images, camlib.TopK(2)).target[:, 0].tolist() == first.tolist()

    def test_ultralytics_every_level_gives_autograds_map_of_a_class(self, ultralytics):
        yolo, images, levels = fresh(ultralytics, "yolov8n"), self.pictures(), LEVELS["yolov8n"]
        label = 5
        with torch.no_grad():  # a coarse candidate, whose score all levels lead to
            table = yolo.model.eval()(images)[0]
        boxes = table[:, :4, -1]
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        explanation = quietly(yolo, levels)(images, targets.Box(corners, label, iou=0.999))
        torch.testing.assert_close(explanation.scores, table[:, 4 + label, -1])
        assert_layers(
            explanation, maps_by_autograd(yolo.model, images, levels, lambda outputs: outputs[0][:, 4 + label, -1])
        )

    @each_yolo
    def test_ultralytics_is_explained_after_a_prediction_in_inference_mode(self, ultralytics, name, end_to_end):
        yolo, images = fresh(ultralytics, name, end_to_end), self.pictures()
        before = quietly(yolo, LEVELS[name])(images, targets.Box()).maps
        with torch.inference_mode():
            yolo.model.eval()(images.flip(-1)[..., :64])  # at another size, the head computes its anchors again
            yolo.model(images)
        torch.testing.assert_close(quietly(yolo, LEVELS[name])(images, targets.Box()).maps, before)
        yolo.model.float()
        picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        yolo.predict(picture, imgsz=(96, 128), verbose=False, save=False, device="cpu")
        quietly(yolo, LEVELS[name])(images.float(), targets.Box())
        fused = yolo.predictor.model.model  # a copy, with frozen and fused weights
        assert not any(weight.requires_grad for weight in fused.parameters())
        quietly(fused, LEVELS[name])(images.float(), targets.Box())

    @each_yolo
    def test_ultralytics_reported_detection_is_explained_by_its_box(self, ultralytics, name, end_to_end):
        yolo, images = fresh(ultralytics, name, end_to_end), self.pictures().float()
        yolo.model.float()
        head = {"nms": False} if end_to_end else {}
        reported = yolo.predict(images, conf=1e-9, max_det=1, verbose=False, device="cpu", **head)
        boxes = torch.stack([result.boxes.xyxy[0] for result in reported])
        labels = torch.stack([result.boxes.cls[0] for result in reported]).long()
        confidences = torch.stack([result.boxes.conf[0] for result in reported])
        if name != "yolo26n":  # whose fresh boxes are small
            assert bool((boxes == 0).any() | (boxes == torch.tensor([128, 96, 128, 96])).any()), "none is cut off"
        cam = quietly(yolo, LEVELS[name], fuse="max")
        explanation = cam(images, targets.Box(boxes, labels, iou=0.95))  # predict fuses weights, which rounds
        torch.testing.assert_close(explanation.scores, confidences, atol=2e-3, rtol=0)
        again = targets.bind(targets.Box(boxes, labels, iou=0.95), explanation.outputs)
        torch.testing.assert_close(targets.score(again, explanation.outputs, torch.arange(2)), explanation.scores)

    @each_yolo
    def test_ultralytics_levels_are_what_the_head_reads(self, ultralytics, name, end_to_end):
        yolo, images = fresh(ultralytics, name, end_to_end), self.pictures()
        assert levels_of(yolo.model, images) == LEVELS[name] == [f"model.{place}" for place in yolo.model.model[-1].f]
        if not end_to_end:
            assert levels_of(yolo.model, images, lambda m, x: m(x)[0][:, 4:].amax((1, 2))[:, None]) == LEVELS[name]
        yolo.model.requires_grad_(False)
        assert levels_of(yolo.model, images) == LEVELS[name]

    def test_ultralytics_object_is_unwrapped_with_a_warning(self, ultralytics):
        yolo = fresh(ultralytics, "yolov8n")
        with pytest.warns(camlib.CamlibWarning, match=r"a YOLO.*inference mode.*its \.model, a DetectionModel"):
            cam = camlib.GradCAM(yolo, "model.21")
        assert cam.model is yolo.model
        yolo.model.train()
        cam(self.pictures(), 3)
        assert yolo.model.training
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            camlib.GradCAM(yolo.model, "model.21")

    def test_ultralytics_exported_model_is_refused(self, ultralytics):
        yolo = fresh(ultralytics, "yolov8n")
        yolo._modules["model"] = None
        yolo.__dict__["model"] = "yolov8n.onnx"
        with pytest.raises(camlib.CamlibTypeError, match=r"holds no network in PyTorch.*yolov8n\.onnx"):
            camlib.GradCAM(yolo, "model.21")

    @pytest.mark.parametrize("task", ["seg", "pose", "obb"])
    def test_ultralytics_other_tasks_read_the_same(self, ultralytics, task):
        network = ultralytics.YOLO(f"yolov8n-{task}.yaml").model.eval()
        images = self.pictures().float()
        with torch.no_grad():
            outputs = network(images)
        table = outputs[0][0] if task == "seg" else outputs[0]
        classes = outputs[1]["scores"].shape[1]
        explanation = camlib.GradCAM(network, "model.15")(images, classes - 1)
        torch.testing.assert_close(explanation.scores, table[:, 4 + classes - 1].amax(1))
        if task == "obb":
            with pytest.raises(camlib.CamlibTypeError, match="boxes are rotated"):
                camlib.GradCAM(network, "model.15")(images, targets.Box())
        else:
            assert camlib.GradCAM(network, "model.15")(images, targets.Box()).target == "Box"

    def test_ultralytics_predictions_picked_by_forward_are_read_by_box(self, ultralytics):
        yolo, images = fresh(ultralytics, "yolov8n"), self.pictures()
        whole = camlib.GradCAM(yolo.model, "model.15")(images, targets.Box())
        picked = camlib.GradCAM(yolo.model, "model.15", forward=lambda m, x: m(x)[0])(images, targets.Box())
        torch.testing.assert_close(picked.maps, whole.maps)


def old_outputs(end_to_end: bool) -> tuple[Tensor, Any]:
    """What earlier versions of ultralytics return: the predictions, and each level's raw map."""
    maps = [torch.rand(2, 70, 4, 6), torch.rand(2, 70, 2, 3)]
    if end_to_end:
        boxes = torch.tensor([[1.0, 2, 9, 8], [4, 4, 20, 20]]).expand(2, 2, 4)
        table = torch.cat(
            [boxes, torch.tensor([[0.9], [0.4]]).expand(2, 2, 1), torch.tensor([[1.0], [3]]).expand(2, 2, 1)], 2
        )
        return table, {"one2many": maps, "one2one": maps}
    return torch.cat([torch.rand(2, 4, 30) * 40 + 2, torch.rand(2, 6, 30)], 1), maps


class TestOutputs:
    """The forms of outputs, without the libraries that make them."""

    def test_earlier_pairs_of_predictions_and_maps(self):
        outputs = old_outputs(end_to_end=False)
        found = detections_in(outputs)
        assert [len(one) for one in found] == [30, 30]
        assert found[0].classes == 6
        table = outputs[0]
        torch.testing.assert_close(found[1].scores, table[1, 4:].T)
        torch.testing.assert_close(found[1].boxes[:, 2] - found[1].boxes[:, 0], table[1, 2])
        torch.testing.assert_close((found[1].boxes[:, 3] + found[1].boxes[:, 1]) / 2, table[1, 1])
        assert Outputs(outputs).rows == 2
        assert Outputs(outputs).main.shape == (2, 6, 30)

    def test_earlier_end_to_end_pairs(self):
        outputs = old_outputs(end_to_end=True)
        found = detections_in(outputs)
        assert found[0].labels.tolist() == [1, 3]
        assert found[0].boxes[1].tolist() == [4, 4, 20, 20]
        target = targets.bind(3, outputs)
        assert targets.score(target, outputs, torch.arange(2)).tolist() == pytest.approx([0.4, 0.4])

    @pytest.mark.parametrize(
        "outputs",
        [
            torch.rand(2, 10),
            (torch.rand(2, 10), torch.rand(2, 10)),
            (torch.rand(2, 10, 30), torch.rand(2, 10, 30)),
            (torch.rand(2, 10, 31), [torch.rand(2, 70, 4, 6), torch.rand(2, 70, 2, 3)]),
            {"logits": torch.rand(2, 3)},
            {"logits": torch.rand(2, 3, 4), "pred_boxes": torch.rand(2, 5, 4)},
            "text",
            [],
            None,
        ],
    )
    def test_other_outputs_are_no_detections(self, outputs):
        assert detections_in(outputs) is None

    @pytest.mark.parametrize("table", [torch.randn(2, 9, 30), torch.rand(2, 9, 30), -torch.rand(2, 5, 6)])
    def test_bare_tensors_that_are_no_predictions_are_refused(self, table):
        with pytest.raises(camlib.CamlibTypeError, match=r"Box needs detections.*returns a tensor \(2, "):
            targets.bind(targets.Box(), table)

    def test_bare_predictions_are_no_classes(self):
        with pytest.raises(camlib.CamlibTypeError, match=r"class targets need \(N, C\)"):
            targets.bind(3, old_outputs(end_to_end=False)[0])

    def test_bare_end_to_end_predictions(self):
        table = old_outputs(end_to_end=True)[0]
        target = targets.bind(targets.Box(labels=3), table)
        assert targets.score(target, table, torch.arange(2)).tolist() == pytest.approx([0.4, 0.4])

    def test_unknown_queries_are_refused_with_the_mend(self):
        outputs = {"logits": torch.rand(2, 5, 4), "pred_boxes": torch.rand(2, 5, 4)}
        for target in (targets.Box(), 1, None):
            with pytest.raises(camlib.CamlibTypeError, match=r"a dict with logits \(2, 5, 4\).*softmax.*forward="):
                targets.bind(target, outputs)

    @pytest.mark.parametrize("make", [targets.ReST, targets.Contrast])
    def test_scores_that_need_logits_refuse_detections(self, make):
        with pytest.raises(camlib.CamlibTypeError, match=r"a class index or camlib\.targets\.Box"):
            targets.bind(make(1), old_outputs(end_to_end=False))


def listed(*detections: tuple[float, int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[0.0, 0, 4, 4]]).repeat(len(detections), 1),
        "scores": torch.tensor([score for score, _ in detections]),
        "labels": torch.tensor([label for _, label in detections], dtype=torch.long),
    }


class TestClassesOfLists:
    """A class of torchvision's detections."""

    OUTPUTS = (listed((0.3, 2), (0.9, 1), (0.5, 2)), listed((0.8, 7), (0.2, 2)))

    def scores(self, target: Any, outputs: Any = OUTPUTS) -> list[Any]:
        bound = targets.bind(target, self.OUTPUTS)
        return [
            [round(one, 6) for one in row] if isinstance(row, list) else round(row, 6)
            for row in targets.score(bound, outputs, torch.arange(len(outputs))).tolist()
        ]

    def test_class_is_its_best_detection(self):
        assert self.scores(2) == [0.5, 0.2]
        assert self.scores([1, 7]) == [0.9, 0.8]
        assert self.scores([[1, 2], [2, 7]]) == [[0.9, 0.5], [0.2, 0.8]]

    def test_predicted_class_is_that_of_the_best_detection(self):
        assert targets.bind(None, self.OUTPUTS).explained.tolist() == [1, 7]
        assert targets.bind(camlib.TopK(2), self.OUTPUTS).explained.tolist() == [[1, 2], [7, 2]]

    def test_confidence_and_probability_are_the_detectors_score(self):
        assert self.scores(targets.Confidence(2)) == [0.5, 0.2]
        assert self.scores(targets.Probability(2)) == [0.5, 0.2]

    def test_what_has_vanished_scores_zero(self):
        assert self.scores(2, [listed((0.9, 1)), listed()]) == [0.0, 0.0]
        assert self.scores([[1, 2], [2, 7]], [listed((0.4, 1)), listed((0.6, 7))]) == [[0.4, 0.0], [0.0, 0.6]]

    def test_gradients_flow_to_the_best_detection_alone(self):
        outputs = [listed((0.3, 2), (0.9, 1), (0.5, 2))]
        scores = outputs[0]["scores"].requires_grad_()
        targets.score(targets.bind(2, outputs), outputs, torch.arange(1)).sum().backward()
        assert scores.grad.tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("target", "outputs", "message"),
        [
            (7, OUTPUTS, r"image 0 has no detection of class 7; the classes of its 3 detections: \[1, 2\]"),
            (2, (listed(),), "image 0 has no detection of class 2; the classes of its 0 detections: none"),
            (camlib.TopK(3), OUTPUTS, r"TopK\(3\) asks for more classes than image 0 has in its detections, 2"),
            ([1, 2, 3], OUTPUTS, r"target has shape \(3,\) for 2 images"),
            (-1, OUTPUTS, "target has class index -1"),
            (6, old_outputs(end_to_end=False), "the outputs have classes 0 to 5"),
            (targets.Box(labels=6), old_outputs(end_to_end=False), "label has class index 6"),
        ],
    )
    def test_classes_that_are_not_there_are_refused(self, target, outputs, message):
        with pytest.raises(camlib.CamlibValueError, match=message):
            targets.bind(target, outputs)

    def test_nothing_detected_has_no_predicted_class(self):
        with pytest.raises(camlib.CamlibTypeError, match="image 0 has no detections, so no class is predicted"):
            targets.bind(None, [listed()])


FEW = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 10}
FEW_REGIONS = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
SMALL = {"min_size": 96, "max_size": 128}
PYRAMID = [f"backbone.fpn.layer_blocks.{level}" for level in range(3)]
OF_TORCHVISION = {
    "retinanet_resnet50_fpn": (FEW | SMALL, [*PYRAMID, "backbone.fpn.extra_blocks.p6", "backbone.fpn.extra_blocks.p7"]),
    "fcos_resnet50_fpn": (FEW | SMALL, [*PYRAMID, "backbone.fpn.extra_blocks.p6", "backbone.fpn.extra_blocks.p7"]),
    "fasterrcnn_resnet50_fpn": (FEW_REGIONS | SMALL, [*PYRAMID, "backbone.fpn.layer_blocks.3"]),
    "ssd300_vgg16": (FEW, ["backbone.features", *(f"backbone.extra.{level}" for level in range(5))]),
    "ssdlite320_mobilenet_v3_large": (
        FEW,
        ["backbone.features.0", "backbone.features.1", *(f"backbone.extra.{level}" for level in range(4))],
    ),
}


def of_torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    options, _ = OF_TORCHVISION[name]
    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=4, **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_levels_of_torchvisions_detectors(name):
    assert levels_of(of_torchvision(name), [torch.rand(3, 60, 80)]) == OF_TORCHVISION[name][1]


def test_torchvisions_maps_are_autograds_at_every_level():
    network, picture = of_torchvision("retinanet_resnet50_fpn").double(), [torch.rand(3, 60, 80, dtype=torch.float64)]
    with torch.no_grad():
        (found,) = network(picture)
    label = int(found["labels"][0])
    layers = PYRAMID

    def score(outputs: Any) -> Tensor:
        return outputs[0]["scores"][outputs[0]["labels"] == label].max()

    explanation = camlib.LayerCAM(network, layers, fuse="max")(picture, label)
    torch.testing.assert_close(explanation.scores, found["scores"][found["labels"] == label].max()[None])
    assert_layers(explanation, maps_by_autograd(network, picture, layers, score), 1e-8, everywhere=False)


@pytest.mark.parametrize("build", ["fcn_resnet50", "resnet18"])
def test_networks_with_one_last_map_have_no_levels(build):
    from torchvision.models import get_model

    options = {"weights_backbone": None} if "fcn" in build else {}
    assert levels_of(get_model(build, weights=None, **options), torch.rand(1, 3, 64, 96)) is None


class Pyramid(nn.Module):
    """A neck of two levels, and a head that reads them in some way."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head = Head(head)
        self.how = head

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images).relu()
        levels = [fine, self.coarse(fine).relu()]
        if self.how == "keyword":
            return self.head(levels=levels)
        return self.head(dict(zip("ab", levels, strict=True)) if self.how == "mapping" else levels)


class Head(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.scores, self.merge, self.last = nn.Conv2d(4, 5, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 5, 1)
        self.how = how

    def forward(self, levels: Any) -> Tensor:
        levels = list(levels.values()) if isinstance(levels, dict) else levels
        if self.how == "merged":
            coarse = F.interpolate(levels[1], size=levels[0].shape[2:])
            return self.last(self.merge(torch.cat([levels[0], coarse], 1)).relu()).mean((2, 3))
        if self.how == "overwritten":
            for place, level in enumerate(levels):
                levels[place] = self.scores(level)
            return torch.cat([level.flatten(2) for level in levels], 2).amax(2)
        if self.how == "detached":
            levels = [levels[0], levels[1].detach()]
        return torch.cat([self.scores(level).flatten(2) for level in levels], 2).amax(2)


@pytest.mark.parametrize("how", ["list", "mapping", "keyword", "overwritten"])
def test_levels_are_found_however_the_head_takes_them(how):
    assert levels_of(Pyramid(how), torch.rand(2, 3, 32, 48)) == ["fine", "coarse"]


@pytest.mark.parametrize("how", ["merged", "detached"])
def test_levels_that_merge_or_do_not_lead_to_the_scores_are_none(how):
    assert levels_of(Pyramid(how), torch.rand(2, 3, 32, 48)) is None


def test_finding_levels_leaves_no_trace():
    network = Pyramid("list").train()
    levels_of(network, torch.rand(2, 3, 32, 48))
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(weight.grad is None for weight in network.parameters())


class Caching(nn.Module):
    """A network that keeps tensors between passes, as a detector's head keeps its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.cache, self.kept = nn.Conv2d(3, 4, 3), None, {}

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        if self.cache is None:
            self.cache = torch.linspace(1, 2, features.shape[-1])
            self.kept["one"] = [torch.ones(4)]
        return (features * self.cache).relu().mean((2, 3)) * self.kept["one"][0]


def test_caches_of_a_pass_in_inference_mode_are_renewed():
    network, images = Caching(), torch.rand(2, 3, 8, 8)
    expected = camlib.GradCAM(network, "features")(images, 1).maps
    network.cache = None
    with torch.inference_mode():
        network(images)
    assert network.cache.is_inference()
    torch.testing.assert_close(camlib.GradCAM(network, "features")(images, 1).maps, expected)


BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1] * 4, "layer_type": "basic"}
THREE = ["stage2", "stage3", "stage4"]
DETR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 12,
    "num_labels": 5,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [12, 16, 24],
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "num_queries": 12,
    "decoder_in_channels": [32] * 3,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "num_labels": 5,
}


def hugging_face_detector(name: str) -> nn.Module:
    """A small detector with random weights."""
    import transformers as hf

    torch.manual_seed(0)
    last = hf.ResNetConfig(**BACKBONE, out_features=["stage4"])
    levels = hf.RTDetrResNetConfig(**BACKBONE, out_features=THREE)
    if name in ("Detr", "ConditionalDetr", "TableTransformer"):
        network = getattr(hf, f"{name}ForObjectDetection")(getattr(hf, f"{name}Config")(backbone_config=last, **DETR))
    elif name in ("RTDetr", "RTDetrV2"):
        network = getattr(hf, f"{name}ForObjectDetection")(
            getattr(hf, f"{name}Config")(backbone_config=levels, **RT_DETR)
        )
    elif name == "Yolos":
        config = hf.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=[96, 128],
            num_detection_tokens=8,
            num_labels=5,
        )
        network = hf.YolosForObjectDetection(config)
    else:
        text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "max_position_embeddings": 8}
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = hf.OwlViTConfig(
            text_config=text, vision_config=vision | {"image_size": 128, "patch_size": 32}, projection_dim=32
        )
        network = hf.OwlViTForObjectDetection(config)
    for module in network.modules():  # the fresh ones of RT-DETR score every class the same
        if isinstance(module, nn.Linear) and module.out_features in (5, 6):
            nn.init.normal_(module.weight, std=1.0)
    return network.eval()


LAYERS = {
    "Detr": ["model.backbone.model.encoder.stages.3"],
    "ConditionalDetr": ["model.backbone.model.encoder.stages.3"],
    "TableTransformer": ["model.backbone.conv_encoder.model.encoder.stages.3"],
    "RTDetr": ["model.encoder.fpn_blocks.1", "model.encoder.pan_blocks.0", "model.encoder.pan_blocks.1"],
    "RTDetrV2": ["model.encoder.fpn_blocks.1", "model.encoder.pan_blocks.0", "model.encoder.pan_blocks.1"],
}
PROCESSORS = {"TableTransformer": "Detr", "RTDetrV2": "RTDetr"}


def reported(name: str, outputs: Any, size: tuple[int, int], images: int = 1) -> list[dict[str, Tensor]]:
    """What the post-processor of Hugging Face's library makes of the outputs, in pixels."""
    import transformers as hf

    processor = getattr(hf, f"{PROCESSORS.get(name, name)}ImageProcessor")()
    return processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[size] * images)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_hugging_face_box_and_class_are_what_the_post_processor_reports(name):
    network, images = hugging_face_detector(name), torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        outputs = network(images)
    best = [
        {key: value[found["scores"].argmax()] for key, value in found.items()}
        for found in reported(name, outputs, (96, 128), 2)
    ]
    boxes, labels = torch.stack([one["boxes"] for one in best]), torch.stack([one["labels"] for one in best])
    scores = torch.stack([one["scores"] for one in best])
    cam = camlib.LayerCAM(network, LAYERS[name], fuse="max")
    for target in (targets.Box(), targets.Box(boxes, labels, iou=0.99), labels.tolist(), None):
        torch.testing.assert_close(cam(images, target).scores, scores)
    assert cam(images).target.tolist() == labels.tolist()
    fractions = boxes / torch.tensor([128, 96, 128, 96])
    torch.testing.assert_close(cam(images, targets.Box(fractions, labels, iou=0.99)).scores, scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_hugging_face_maps_are_autograds_in_float64(name):
    network, images, label = hugging_face_detector(name).double(), torch.rand(2, 3, 96, 128, dtype=torch.float64), 3

    def score(outputs: Any) -> Tensor:
        softmax = name in ("Detr", "TableTransformer")
        return (outputs.logits.softmax(-1) if softmax else outputs.logits.sigmoid())[..., label].amax(1)

    explanation = camlib.LayerCAM(network, LAYERS[name], fuse="max")(images, label)
    assert_layers(explanation, maps_by_autograd(network, images, LAYERS[name], score), 1e-8)


@pytest.mark.slow
def test_hugging_face_levels():
    images = torch.rand(1, 3, 96, 128)
    for name in ("RTDetr", "RTDetrV2"):
        assert levels_of(hugging_face_detector(name), images) == LAYERS[name]
    for name in ("Detr", "Yolos"):
        assert levels_of(hugging_face_detector(name), images) is None


@pytest.mark.slow
def test_hugging_face_tokens_and_words_are_read():
    yolos, images = hugging_face_detector("Yolos"), torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        outputs = yolos(images)
    expected = torch.stack([found["scores"].max() for found in reported("Yolos", outputs, (96, 128), 2)])
    torch.testing.assert_close(targets.score(targets.bind(None, outputs), outputs, torch.arange(2)), expected)
    owl = hugging_face_detector("OwlViT")
    words = torch.tensor([[1, 5, 2, 49], [1, 7, 9, 49]])  # two descriptions to search for
    query = {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": torch.rand(1, 3, 128, 128)}
    with torch.no_grad():
        outputs = owl(**query)
    (found,) = reported("OwlViT", outputs, (128, 128))
    place = found["scores"].argmax()
    target = targets.bind(None, outputs)
    assert target.explained.tolist() == [found["labels"][place]]
    cam = camlib.GradCAM(
        owl, "owlvit.vision_model.encoder.layers.1.layer_norm1", relu=False, forward=lambda m, q: m(**q)
    )
    for target in (None, targets.Box(found["boxes"][place], iou=0.99)):
        explanation = cam(query, target)
        torch.testing.assert_close(explanation.scores[0], found["scores"][place])
        assert explanation.maps.shape == (1, 4, 4)
    # the class scores of the patches are no feature map, nor are the factors that scale them
    assert camlib.find_layer(owl, query, forward=lambda m, q: m(**q).logits.amax(1)) == "layer_norm"


def output_class(kind: str) -> type | None:
    """A class of outputs by its name; None if this version of the library does not have it."""
    import transformers.models

    (folder,) = transformers.models.__path__
    for path in Path(folder).glob("*/modeling_*.py"):
        if f"class {kind}(" in path.read_text():
            found: type = getattr(importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}"), kind)
            return found
    return None


PROCESSOR_OF_OUTPUTS = {
    "DetrSegmentation": "Detr",
    "TableTransformer": "Detr",
    "ConditionalDetrSegmentation": "ConditionalDetr",
    "DabDetr": "ConditionalDetr",
    "DFine": "RTDetr",
    "Deimv2": "RTDetr",
    "RTDetrV2": "RTDetr",
    "LwDetr": "DeformableDetr",
    "MMGroundingDino": "GroundingDino",
    "RfDetrInstanceSegmentation": "RfDetr",
}
"""Where it is not the class of the same name."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SOFTMAX | SIGMOID))
def test_hugging_face_scores_follow_each_post_processor(kind):
    import transformers as hf

    outputs_of = output_class(kind)
    assert outputs_of is not None, f"this version of transformers has no {kind}; pyproject.toml says which is needed"
    name = kind.removesuffix("Output").removesuffix("ObjectDetection").removesuffix("For")
    processor = getattr(hf, f"{PROCESSOR_OF_OUTPUTS.get(name, name)}ImageProcessor")()
    outputs = outputs_of(logits=torch.randn(2, 7, 4), pred_boxes=torch.rand(2, 7, 4) / 2 + 0.25)
    if "order_logits" in {field.name for field in outputs.__dataclass_fields__.values()}:
        outputs["order_logits"] = torch.randn(2, 7, 7)
    height, width = (64, 64) if kind.startswith("Owlv2") else (48, 64)  # the inputs of OWLv2 are padded to squares
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(height, width)] * 2)
    for image, (mine, theirs) in enumerate(zip(detections_in(outputs), found, strict=True)):
        place = theirs["scores"].argmax()
        scores, labels = mine.best()
        assert int(labels[scores.argmax()]) == int(theirs["labels"][place]), image
        torch.testing.assert_close(scores.max(), theirs["scores"][place])
        box = mine.boxes[scores.argmax()] * torch.tensor([width, height, width, height])
        torch.testing.assert_close(box, theirs["boxes"][place].to(box.dtype))


@pytest.mark.slow
def test_hugging_face_boxes_in_pixels_need_the_size_and_leave_out_padding():
    network = hugging_face_detector("Detr")
    images, mask = torch.rand(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.long)
    mask[0], mask[1, :48, :64] = 1, 1
    query = {"pixel_values": images, "pixel_mask": mask}
    with torch.no_grad():
        outputs = network(**query)
    found = [reported("Detr", outputs, size, 2)[image] for image, size in enumerate([(96, 128), (48, 64)])]
    boxes = torch.stack([one["boxes"][one["scores"].argmax()] for one in found])
    scores = torch.stack([one["scores"].max() for one in found])
    cam = camlib.GradCAM(network, LAYERS["Detr"], forward=lambda model, inputs: model(**inputs))
    torch.testing.assert_close(cam(query, targets.Box(boxes, iou=0.999)).scores, scores)
    with pytest.raises(camlib.CamlibValueError, match="fractions of the image's width and height"):
        targets.bind(targets.Box(boxes), outputs)


def test_a_classifier_has_no_levels() -> None:
    with pytest.raises(camlib.CamlibRuntimeError, match="no head of ResNet reads maps.*camlib.find_layer"):
        find_levels(torchvision.models.resnet18(num_classes=4), torch.rand(1, 3, 64, 64))
