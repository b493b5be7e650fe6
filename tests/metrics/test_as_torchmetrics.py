"""torchmetrics' classes accumulate what the functions say, over batches and over processes."""

from __future__ import annotations

import inspect
import math
import pickle

import pytest
import torch
import torch.multiprocessing as mp
import torchmetrics

import camlib
from camlib import metrics
from camlib.metrics import METRICS, as_torchmetrics
from tests.networks import small_cnn

CLASSES = {
    name: cls
    for name, cls in vars(as_torchmetrics).items()
    if inspect.isclass(cls) and issubclass(cls, as_torchmetrics.ImageMean) and cls is not as_torchmetrics.ImageMean
}


def test_each_metric_has_its_class_and_they_agree_which_way_is_better():
    of_metrics = {cls.metric.name: cls for cls in CLASSES.values()}
    assert set(of_metrics) == set(METRICS)
    for name, cls in of_metrics.items():
        assert issubclass(cls, torchmetrics.Metric)
        assert cls.higher_is_better == (METRICS[name].better == "higher"), name
        assert f"camlib.metrics.{name}`" in cls.__doc__


def test_classes_are_named_as_their_metrics_and_can_be_pickled():
    assert {"AverageDrop", "IoU", "ROADCombined", "ADCC", "TopKIntersection", "SensitivityN"} < set(CLASSES)
    metric = as_torchmetrics.Sparseness()
    metric.update(torch.rand(2, 6, 6))
    assert torch.equal(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())


def test_batches_of_different_sizes_weigh_by_their_images():
    heatmaps = torch.rand(5, 6, 6)
    metric = as_torchmetrics.Sparseness()
    metric.update(heatmaps[:1])
    metric.update(heatmaps[1:])
    torch.testing.assert_close(metric.compute(), metrics.sparseness(heatmaps).double().mean())
    metric.reset()
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert math.isnan(metric.compute())


def test_options_and_models_reach_the_function():
    model, images, heatmaps = small_cnn().eval(), torch.rand(3, 3, 8, 8), torch.rand(3, 8, 8)
    metric = as_torchmetrics.Deletion({"steps": 3})
    metric.update(model, images, heatmaps, 1)
    expected = metrics.deletion(model, images, heatmaps, 1, steps=3).double().mean()
    torch.testing.assert_close(metric.compute(), expected)
    explained = as_torchmetrics.Coherency()
    explained.update(camlib.GradCAM(model, "3"), images)
    torch.testing.assert_close(
        explained.compute(), metrics.coherency(camlib.GradCAM(model, "3"), images).double().mean()
    )


def test_images_that_cannot_be_evaluated_are_left_out():
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, 2, 2] = True
    metric = as_torchmetrics.EnergyPointingGame({"empty": "nan"})
    metric.update(torch.ones(2, 6, 6), masks)
    assert (float(metric.compute()), int(metric.weight)) == (pytest.approx(1 / 36), 1)


def located() -> tuple[torch.Tensor, torch.Tensor]:
    """Two heatmaps and masks: the first heatmap misses its object, so that every metric is 0; the second does not."""
    heatmaps = torch.zeros(2, 8, 8)
    heatmaps[0, 0, 0] = heatmaps[1, 3, 3] = 1
    heatmaps[1, 2:6, 2:6] += 0.6
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:4] = True
    return heatmaps.clamp(max=1), masks


def collection() -> torchmetrics.MetricCollection:
    return torchmetrics.MetricCollection(
        {
            "iou": as_torchmetrics.IoU(),
            "iou90": as_torchmetrics.IoU({"threshold": 0.9}),
            "pointing": as_torchmetrics.PointingGame({"tolerance": 0}),
            "energy": as_torchmetrics.EnergyPointingGame(),
        }
    )


# By hand, of the second image (the first gives 0): 16 cells of at least 0.6 hold the 8 of the mask; one cell of 1 is in
# it; the energy in the mask is 7 * 0.6 + 1 of 15 * 0.6 + 1.
EXPECTED = {"iou": 8 / 16 / 2, "iou90": 1 / 8 / 2, "pointing": 1 / 2, "energy": 5.2 / 10 / 2}


def plain(values: dict) -> dict:
    return {name: pytest.approx(float(value)) for name, value in values.items()}


def test_metrics_of_a_collection_stay_apart_after_an_equal_first_batch():
    heatmaps, masks = located()
    metric = collection()
    for image in range(2):
        metric.update(heatmaps[image : image + 1], masks[image : image + 1])
    assert plain(metric.compute()) == EXPECTED
    assert len(metric.compute_groups) == 4
    again = pickle.loads(pickle.dumps(metric))
    assert plain(again.compute()) == EXPECTED
    again.reset()
    of_batch = [again(heatmaps[image : image + 1], masks[image : image + 1]) for image in range(2)]
    assert plain(of_batch[0]) == dict.fromkeys(EXPECTED, 0)
    assert plain(of_batch[1]) == {name: 2 * value for name, value in EXPECTED.items()}
    assert plain(again.compute()) == EXPECTED


def test_box_accuracies_of_a_collection_stay_apart():
    heatmaps = torch.zeros(2, 8, 8)
    heatmaps[:, 2:6, 2:6] = 1
    boxes = torch.tensor([[6, 6, 8, 8], [2, 2, 6, 4]])  # the second has an IoU of one half
    metric = torchmetrics.MetricCollection(
        {"middle": as_torchmetrics.MaxBoxAcc(ious=(0.5,)), "most": as_torchmetrics.MaxBoxAcc(ious=(0.9,))}
    )
    for image in range(2):
        metric.update(heatmaps[image : image + 1], boxes[image : image + 1])
    assert plain(metric.compute()) == {"middle": 0.5, "most": 0}


def test_tracked_collections_count_each_epoch_alone():
    heatmaps, masks = located()
    tracker = torchmetrics.MetricTracker(collection())
    for epoch in ([0, 1], [0], [1, 1, 0]):
        tracker.increment()
        for image in epoch:
            tracker.update(heatmaps[image : image + 1], masks[image : image + 1])
    for name, value in EXPECTED.items():
        assert tracker.compute_all()[name].tolist() == pytest.approx([value, 0, value * 4 / 3])


def test_half_precision_changes_neither_sums_nor_counts():
    metric = as_torchmetrics.PointingGame({"tolerance": 0}).half().set_dtype(torch.float16)
    heatmaps, masks = located()
    for _ in range(70):  # 2**11 is the last whole number that float16 counts to
        metric.update(heatmaps.half().repeat(16, 1, 1), masks.repeat(16, 1, 1))
    assert (float(metric.compute()), int(metric.weight)) == (0.5, 70 * 32)


def test_box_accuracy_takes_the_threshold_that_is_best_for_the_whole_data_set():
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.rand(6, 12, 12, generator=generator)
    heatmaps[:3, 2:7, 3:9] += 2
    heatmaps[3:, 4:10, 1:6] += 0.6
    heatmaps = camlib.normalize(heatmaps)
    boxes = torch.tensor([[3, 2, 9, 7]] * 3 + [[1, 4, 6, 10]] * 3)
    for cls, function in (
        (as_torchmetrics.MaxBoxAcc, metrics.max_box_acc),
        (as_torchmetrics.MaxBoxAccV2, metrics.max_box_acc_v2),
    ):
        metric = cls()
        metric.update(heatmaps[:4], boxes[:4])
        metric.update(heatmaps[4:], boxes[4:])
        torch.testing.assert_close(metric.compute(), function(heatmaps, boxes).double().mean(), msg=cls.__name__)


def test_box_accuracy_refuses_what_the_functions_refuse():
    for options in ({"ious": ()}, {"ious": (0.0,)}, {"ious": (1.5,)}, {"thresholds": 0}):
        with pytest.raises(camlib.CamlibValueError):
            as_torchmetrics.MaxBoxAcc(**options)


def _in_a_process(rank, address, heatmaps, boxes, found):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mean, box = as_torchmetrics.Sparseness(), as_torchmetrics.MaxBoxAcc()
    part = slice(0, 2) if rank == 0 else slice(2, None)
    mean.update(heatmaps[part])
    box.update(heatmaps[part], boxes[part])
    found[rank] = torch.stack([mean.compute(), box.compute()])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    heatmaps = camlib.normalize(torch.rand(5, 8, 8))
    boxes = torch.tensor([[1, 1, 6, 6]] * 5)
    found = torch.zeros(2, 2, dtype=torch.float64).share_memory_()
    address = (tmp_path / "meet").as_uri()
    mp.spawn(_in_a_process, (address, heatmaps, boxes, found), nprocs=2)
    alone = [metrics.sparseness(heatmaps).double().mean(), metrics.max_box_acc(heatmaps, boxes).double().mean()]
    for of_process in found:
        torch.testing.assert_close(of_process, torch.stack(alone))
