"""Every method is evaluated as the metrics alone do it; passes are shared; after a failure the rest continues."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import camlib
from camlib import metrics
from camlib.evaluation import Failure, TableRow
from camlib.evaluation.evaluator import _counting
from camlib.evaluation.run_log import as_json, locked
from camlib.inputs import Inputs
from camlib.metrics import METRICS
from camlib.metrics.declaration import metric
from camlib.metrics.readings import Heatmaps
from tests.few_passes import OF_ATTENTION
from tests.networks import Network, small_cnn

SIDE = 12


@pytest.fixture
def model():
    return small_cnn().eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, SIDE, SIDE)


@pytest.fixture
def masks():
    found = torch.zeros(5, SIDE, SIDE, dtype=torch.bool)
    found[:, 3:7, 2:9] = True
    return found


class Counting(nn.Module):
    """A network that counts the images that run through it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return self.model(x)


FEW = {"average_drop": {}, "deletion": {"steps": 3}, "sparseness": {}}


def test_cells_are_what_the_metrics_say_alone(model, images, masks):
    asked = FEW | {"pointing_game": {"tolerance": 1}, "adcc": {}, "max_sensitivity": {"samples": 2}}
    found = camlib.evaluate(model, images, ["grad_cam", "occlusion"], ["3"], asked, masks)
    for row, explainer in (
        (TableRow("grad_cam", "3"), camlib.GradCAM(model, "3")),
        (TableRow("occlusion", ""), camlib.Occlusion(model)),
    ):
        target = camlib.GradCAM(model, "3")(images).target
        heatmaps = explainer(images, target).heatmaps()
        alone = {
            "average_drop": metrics.average_drop(model, images, heatmaps, target),
            "deletion": metrics.deletion(model, images, heatmaps, target, steps=3),
            "sparseness": metrics.sparseness(heatmaps),
            "pointing_game": metrics.pointing_game(heatmaps, masks, tolerance=1),
            "adcc": metrics.adcc(explainer, images, target),
            "max_sensitivity": metrics.max_sensitivity(explainer, images, target, samples=2),
        }
        assert list(found.values[row]) == list(alone)
        for name, expected in alone.items():
            torch.testing.assert_close(found.values[row][name], expected.double(), rtol=1e-4, atol=1e-5, msg=name)


def test_baselines_are_always_there(model, images):
    found = camlib.evaluate(model, images, ["layer_cam"], metrics=FEW)
    assert [row.method for row in found.rows] == ["layer_cam", "random_cam", "center_gaussian"]
    again = camlib.evaluate(model, images, ["random_cam", "layer_cam"], metrics=FEW)
    assert [row.method for row in again.rows] == ["random_cam", "layer_cam", "center_gaussian"]


@pytest.mark.slow
def test_every_method_and_every_metric_work_or_say_why_not(model, images, masks):
    options = {"top_k_intersection": {"k": 20}, "deletion": {"steps": 2}, "insertion": {"steps": 2}}
    asked = {name: options.get(name, {}) for name in METRICS}
    found = camlib.evaluate(
        model, images[:2], "all", ["3"], {name: asked[name] for name in asked if "randomization" not in name},
        masks[:2], max_passes=200,
    )  # fmt: skip
    left_out = {"rise", "expected_gradients"} | OF_ATTENTION
    assert set(found.left_out) == {TableRow(name, "") for name in left_out}
    assert "give baselines=" in found.left_out[TableRow("expected_gradients", "")]
    assert found.left_out[TableRow("rise", "")] == "more than 200 forward passes an image"
    assert not found.failures
    assert {row.method for row in found.rows} == set(camlib.METHODS) - left_out
    for row in found.rows:
        for name in found.metrics:
            assert not found.values[row][name].isnan().any(), (row, name)


def test_a_method_of_too_many_passes_is_stopped_and_named(images):
    counting = Counting(small_cnn(channels=64).eval())
    found = camlib.evaluate(counting, images[:1], ["score_cam"], ["model.3"], ["sparseness"], max_passes=20)
    assert found.left_out == {TableRow("score_cam", "model.3"): "more than 20 forward passes an image"}
    assert counting.rows < 64


def test_one_pass_serves_all_methods_that_need_no_more_and_scores_are_shared(images):
    counting = Counting(small_cnn().eval())
    names = ["grad_cam", "layer_cam", "hires_cam", "eigen_cam"]
    camlib.evaluate(counting, images, names, ["model.3"], ["average_drop", "average_increase"])
    tried = 6  # on the first image, one by one
    assert counting.rows == tried + 5 + 6 * 5  # one pass for all explanations, and one of masked images for each


def test_passes_are_those_of_the_explanation_alone(images):
    found = camlib.evaluate(Counting(small_cnn().eval()), images, ["grad_cam", "score_cam"], ["model.3"], ["entropy"])
    assert found.passes[TableRow("grad_cam", "model.3")] == 1
    assert found.passes[TableRow("score_cam", "model.3")] == 1 + 4


def test_passes_of_other_threads_are_not_counted(model, images):
    with _counting(model, limit=5) as counted:
        other = threading.Thread(target=model, args=(images.repeat(2, 1, 1, 1),))
        other.start()
        other.join()
        model(images)
    assert counted == [5]


def test_layers_make_rows_of_their_own(model, images):
    found = camlib.evaluate(model, images, ["grad_cam", "sobel"], ["1", "3"], FEW)
    assert [str(row) for row in found.rows] == [
        "grad_cam, 1",
        "grad_cam, 3",
        "sobel",
        "random_cam, 1",
        "random_cam, 3",
        "center_gaussian",
    ]
    one = camlib.evaluate(model, images, ["grad_cam"], ["1"], FEW)
    for name in FEW:
        assert torch.equal(found.values[TableRow("grad_cam", "1")][name], one.values[TableRow("grad_cam", "1")][name])


@pytest.mark.slow
def test_batches_do_not_matter(model, images, masks):
    whole = camlib.evaluate(model, images, ["grad_cam"], ["3"], None, masks)
    parts = camlib.evaluate(model, [images[:2], (images[2:], "labels")], ["grad_cam"], ["3"], None, masks)
    assert whole.metrics == [
        "average_drop", "average_increase", "insertion", "deletion", "road_combined", "pointing_game",
        "energy_pointing_game",
    ]  # fmt: skip
    for row in whole.rows:
        for name in whole.metrics:
            torch.testing.assert_close(whole.values[row][name], parts.values[row][name], rtol=1e-4, atol=1e-5)


THREE_AXES = {
    "a single image": (3, (3, 12, 16), "give image[None]", lambda image: image[None]),
    "an array": (3, (12, 16, 3), "give image.movedim(-1, 0)[None]", lambda image: image.movedim(-1, 0)[None]),
    "one gray picture": (1, (1, 12, 16), "give image[None]", lambda image: image[None]),
    "gray pictures": (1, (9, 12, 16), "9 pictures without the axis of the channels: give images[:, None]", None),
    "gray for colour": (3, (20, 12, 16), "20 pictures without the axis of the channels: give images[:, None].ex", None),
}
"""Channels of the network, a shape that lacks an axis, the advice, and the batch that follows it."""


@pytest.mark.parametrize(("channels", "shape", "advice", "correct"), THREE_AXES.values(), ids=THREE_AXES)
def test_images_that_lack_an_axis_are_refused_with_their_shape_and_advice(channels, shape, advice, correct):
    network, images = small_cnn().eval(), torch.rand(shape)
    network[0] = nn.Conv2d(channels, 4, 3, padding=1)
    said = re.escape(f"the images have shape {shape}, and the model takes a batch (N, C, H, W) with C = {channels}; ")
    for call in (
        lambda: camlib.evaluate(network, images, ["grad_cam"], metrics=["sparseness"]),
        lambda: camlib.evaluate(network, images, ["grad_cam", "rise"], ["2"], ["deletion"]),
        lambda: camlib.evaluate(network, [(images, 1)], ["grad_cam"], metrics=["sparseness"]),
        lambda: camlib.GradCAM(network)(images),
        lambda: camlib.metrics.deletion(network, images, torch.rand(len(images), *shape[1:])),
    ):
        with pytest.raises(camlib.CamlibValueError, match=f"^{said}.*{re.escape(advice)}"):
            call()
    batch = correct(images) if correct else images[:, None].expand(-1, channels, -1, -1)
    values = camlib.evaluate(network, batch, ["grad_cam"], metrics=["sparseness"]).values
    assert len(values[TableRow("grad_cam", "3")]["sparseness"]) == len(batch)


def test_a_data_loader_and_a_limit_of_images(model, images):
    loader = DataLoader(TensorDataset(images, torch.zeros(5)), batch_size=2)
    found = camlib.evaluate(model, loader, ["grad_cam"], ["3"], FEW, max_images=3)
    assert found.images == 3
    whole = camlib.evaluate(model, images, ["grad_cam"], ["3"], FEW)
    for name in FEW:
        torch.testing.assert_close(found.values[found.rows[0]][name], whole.values[found.rows[0]][name][:3])


def test_classes_go_with_their_images(model, images):
    classes = [2, 0, 1, 1, 0]
    found = camlib.evaluate(model, images.split(2), ["grad_cam"], ["3"], {"deletion": {"steps": 2}}, target=classes)
    heatmaps = camlib.GradCAM(model, "3")(images, classes).heatmaps()
    alone = metrics.deletion(model, images, heatmaps, classes, steps=2)
    torch.testing.assert_close(found.values[found.rows[0]]["deletion"], alone.double(), rtol=1e-4, atol=1e-5)


def test_the_score_is_the_probability_by_default(model, images):
    target = 1
    heatmaps = camlib.GradCAM(model, "3")(images, target).heatmaps()
    for options, score in (({}, None), ({"score": camlib.targets.Classes}, camlib.targets.Classes)):
        found = camlib.evaluate(
            model, images, ["grad_cam"], ["3"], {"deletion": {"steps": 2}}, target=target, **options
        )
        alone = metrics.deletion(model, images, heatmaps, target, steps=2, **({"score": score} if score else {}))
        torch.testing.assert_close(found.values[found.rows[0]]["deletion"], alone.double(), rtol=1e-4, atol=1e-5)


def test_an_explained_contrast_is_evaluated_by_the_probability_of_its_class(model, images):
    found = camlib.evaluate(
        model, images, ["grad_cam"], ["3"], {"deletion": {"steps": 2}}, target=camlib.targets.Contrast(1, 2)
    )
    heatmaps = camlib.GradCAM(model, "3")(images, camlib.targets.Contrast(1, 2)).heatmaps()
    alone = metrics.deletion(model, images, heatmaps, 1, steps=2)
    torch.testing.assert_close(found.values[found.rows[0]]["deletion"], alone.double(), rtol=1e-4, atol=1e-5)


def test_an_image_with_an_empty_mask_is_nan_for_metrics_of_masks(model, images, masks):
    masks[2] = False
    found = camlib.evaluate(model, images, ["grad_cam"], ["3"], ["pointing_game", "sparseness"], masks)
    row = found.rows[0]
    assert found.values[row]["pointing_game"].isnan().tolist() == [False, False, True, False, False]
    assert not found.values[row]["sparseness"].isnan().any()


class Failing(camlib.methods.GradientMethod):
    """Refuses dark pictures."""

    name = "failing"

    def maps(self, activations, gradients):
        if activations.amax() > 50:
            raise camlib.CamlibRuntimeError("too bright")
        return activations.sum(1)


def test_what_fails_on_the_way_is_listed_and_costs_nothing_else(model, images):
    loader = [images[:2], 1000 * images[2:4], images[4:]]
    found = camlib.evaluate(model, loader, ["grad_cam", Failing], ["3"], FEW)
    assert found.failures == [Failure(TableRow("failing", "3"), None, (2, 3), "too bright")]
    failing, grad_cam = (next(row for row in found.rows if row.method == name) for name in ("failing", "grad_cam"))
    for name in FEW:
        assert found.values[failing][name].isnan().tolist() == [False, False, True, True, False]
        assert not found.values[grad_cam][name].isnan().any()
    assert "\nimages 2 to 3: failing, 3: too bright" in str(found)


def test_a_metric_that_fails_for_all_methods_is_an_error_at_the_first_batch(model, images):
    with pytest.raises(camlib.CamlibRuntimeError, match="deletion failed for every method"):
        camlib.evaluate(model, images, ["grad_cam"], ["3"], {"deletion": {"steps": 0}})


def test_the_model_is_left_as_it_was(images):
    model = Network().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    camlib.evaluate(model, images, ["grad_cam", "score_cam"], ["norm"], [*FEW, "cascading_randomization"])
    assert [module.training for module in (model, model.features, model.norm)] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# Resuming -------------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stopping(batches, after):
    """A loader that is interrupted."""
    for number, batch in enumerate(batches):
        if number == after:
            raise Stopped
        yield batch


@pytest.fixture
def batches(images):
    return [images[:2], images[2:4], images[4:]]


def test_a_stopped_evaluation_resumes_without_repeating_a_batch(batches, tmp_path):
    path = tmp_path / "deep" / "record.jsonl"
    counting = Counting(small_cnn().eval())
    whole = camlib.evaluate(counting, batches, ["grad_cam", "le_grad"], ["model.3"], FEW)
    in_one_go = counting.rows
    with pytest.raises(Stopped):
        camlib.evaluate(counting, stopping(batches, 2), ["grad_cam", "le_grad"], ["model.3"], FEW, path=path)
    assert len(path.read_text().splitlines()) == 3
    with path.open("a") as file:
        file.write('{"images": 1, "rows": [{"meth')  # killed in the middle of a line
    counting.rows = 0
    resumed = camlib.evaluate(counting, batches, ["grad_cam", "le_grad"], ["model.3"], FEW, path=path)
    assert 0 < counting.rows < in_one_go / 2
    counting.rows = 0
    camlib.evaluate(counting, batches, ["grad_cam", "le_grad"], ["model.3"], FEW, path=path)
    assert counting.rows == 0
    assert resumed.left_out == whole.left_out != {}
    assert resumed.passes == whole.passes
    for row in whole.rows:
        for name in FEW:
            assert torch.equal(whole.values[row][name], resumed.values[row][name])


def test_a_record_of_another_evaluation_is_refused(model, batches, tmp_path):
    path = tmp_path / "record.jsonl"
    camlib.evaluate(model, batches, ["grad_cam"], ["3"], FEW, path=path)
    with pytest.raises(camlib.CamlibValueError, match=r"of another evaluation \(different metrics"):
        camlib.evaluate(model, batches, ["grad_cam"], ["3"], ["sparseness"], path=path)
    with pytest.raises(camlib.CamlibValueError, match=r"of another evaluation \(different methods"):
        camlib.evaluate(model, batches, ["layer_cam"], ["3"], FEW, path=path)
    with pytest.raises(camlib.CamlibValueError, match=r"of another evaluation \(different model"):
        camlib.evaluate(small_cnn().eval(), batches, ["grad_cam"], ["3"], FEW, path=path)
    with pytest.raises(camlib.CamlibValueError, match="batch 0 has other images"):
        camlib.evaluate(model, batches[::-1], ["grad_cam"], ["3"], FEW, path=path)
    path.write_text("a shopping list\n")
    with pytest.raises(camlib.CamlibValueError, match="not a record of an evaluation"):
        camlib.evaluate(model, batches, ["grad_cam"], ["3"], FEW, path=path)
    assert path.read_text() == "a shopping list\n"


def test_a_record_is_json(model, images, tmp_path):
    camlib.evaluate(model, images, ["grad_cam"], ["3"], FEW, path=tmp_path / "record.jsonl")
    for line in (tmp_path / "record.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_record_of_other_masks_scores_or_options_is_refused(model, batches, masks, tmp_path):
    path = tmp_path / "record.jsonl"
    asked = {"pointing_game": {}, "deletion": {"steps": 2}}
    camlib.evaluate(model, batches, ["grad_cam"], ["3"], asked, masks, path=path)
    with pytest.raises(camlib.CamlibValueError, match="other images or masks"):
        camlib.evaluate(model, batches, ["grad_cam"], ["3"], asked, ~masks, path=path)
    with pytest.raises(camlib.CamlibValueError, match=r"\(different score\)"):
        camlib.evaluate(model, batches, ["grad_cam"], ["3"], asked, masks, score=camlib.targets.Classes, path=path)
    with pytest.raises(camlib.CamlibValueError, match=r"\(different methods\)"):
        camlib.evaluate(model, batches, [camlib.GradCAM(model, "3", relu=False)], ["3"], asked, masks, path=path)
    path.write_text('{"asked": 3}\n')
    with pytest.raises(camlib.CamlibValueError, match="not a record"):
        camlib.evaluate(model, batches, ["grad_cam"], ["3"], asked, masks, path=path)


def test_the_same_explainer_and_the_same_target_resume_a_record(batches, tmp_path):
    counting = Counting(small_cnn().eval())
    cam, path = camlib.GradCAM(counting), tmp_path / "record.jsonl"
    camlib.evaluate(counting, batches, [cam], None, FEW, target=camlib.targets.Contrast(1, 2), path=path)
    counting.rows = 0
    camlib.evaluate(counting, batches, [cam], None, FEW, target=camlib.targets.Contrast(1, 2), path=path)
    assert counting.rows == 1, "one pass finds the layer of the baselines"
    with pytest.raises(camlib.CamlibValueError, match=r"\(different target\)"):
        camlib.evaluate(counting, batches, [cam], None, FEW, target=camlib.targets.Contrast(1, 0), path=path)


@pytest.mark.parametrize("as_list", [False, True])
def test_the_inputs_of_a_batch_are_parsed_once(model, images, tmp_path, monkeypatch, as_list):
    batch = list(images) if as_list else images
    parsed, init = [], Inputs.__init__
    monkeypatch.setattr(Inputs, "__init__", lambda self, raw, *more: (parsed.append(raw), init(self, raw, *more))[1])
    asked = {"methods": ["grad_cam", "rise"], "metrics": ["deletion", "coherency", "adcc"], "max_passes": 9000}
    forward = (lambda m, x: m(torch.stack(x))) if as_list else None
    camlib.evaluate(model, [batch], forward=forward, path=None if as_list else tmp_path / "record.jsonl", **asked)
    assert any(raw is batch for raw in parsed)
    assert len({id(raw) for raw in parsed}) == len(parsed)


class Overridden(camlib.GradCAM):
    def __call__(self, inputs, target=None):
        assert isinstance(inputs, torch.Tensor)
        return super().__call__(inputs, target)


def test_a_call_of_the_users_own_gets_what_the_model_takes(model, images):
    found = camlib.evaluate(model, images, [Overridden(model, "3")], metrics=["coherency"])
    assert "grad_cam" in [row.method for row in found.rows]


def test_generators_cannot_be_restored(model, images, tmp_path):
    random = camlib.RandomCAM(model, "3", generator=torch.Generator())
    with pytest.raises(camlib.CamlibValueError, match="generator cannot be restored"):
        camlib.evaluate(model, images, [random], ["3"], FEW, path=tmp_path / "record.jsonl")
    camlib.evaluate(model, images, [random], ["3"], FEW)


def first_probability(outputs):
    return outputs.softmax(1)[:, 0]


def last_probability(outputs):
    return outputs.softmax(1)[:, 2]


def probability(outputs, category):
    return outputs.softmax(1)[:, category]


class Probability:
    """A callable that is recognised by its attributes."""

    def __init__(self, category):
        self.category = category

    def __call__(self, outputs):
        return outputs.softmax(1)[:, self.category]

    def method(self, outputs):
        return self(outputs)


def nested(category):
    def inside(outputs):
        return outputs.softmax(1)[:, category]

    return inside


def decorated(function):
    @functools.wraps(function)
    def inner(outputs):
        return function(outputs)

    return inner


def hidden(category):
    """A nested function under the name of another."""
    function = nested(category)
    function.__qualname__ = "first_probability"
    return function


decorated_first, decorated_last = decorated(first_probability), decorated(last_probability)


def through_decorated(outputs):
    return decorated_first(outputs)


UNRECOGNISABLE = {
    "lambda": lambda outputs: outputs.softmax(1)[:, 0],
    "functools.partial": functools.partial(probability, category=0),
    "nested function": nested(0),
    "bound method": Probability(0).method,
    "decorated function": decorated_last,
    r"function that calls .*first_probability, a decorated or nested function,": through_decorated,
}


@pytest.mark.parametrize("kind", UNRECOGNISABLE)
def test_a_function_that_is_not_named_is_not_recorded(model, images, tmp_path, kind):
    function, path = UNRECOGNISABLE[kind], tmp_path / "record.jsonl"
    refused = f"a {kind} cannot be recognised when .*; give a named"
    asked = {"metrics": ["average_drop"], "path": path}
    for options in ({"target": function}, {"score": function, "target": 0}, {"forward": function}):
        with pytest.raises(camlib.CamlibValueError, match=refused):
            camlib.evaluate(model, images, ["grad_cam"], ["3"], **asked | options)
    with pytest.raises(camlib.CamlibValueError, match=refused):
        camlib.evaluate(model, images, [camlib.GradCAM(model, "3", reshape=function)], ["3"], **asked)
    assert not path.exists()
    assert camlib.evaluate(model, images, ["grad_cam"], metrics=["average_drop"], target=function).images == 5


@pytest.mark.parametrize("pair", [(first_probability, last_probability), (Probability(0), Probability(2))])
def test_another_function_is_another_evaluation(model, images, tmp_path, pair):
    asked, path = {"methods": ["grad_cam"], "metrics": ["deletion"]}, tmp_path / "record.jsonl"
    one, other = (camlib.evaluate(model, images, target=target, **asked) for target in pair)
    row = one.rows[0]
    assert not torch.equal(one.values[row]["deletion"], other.values[row]["deletion"])
    for _ in range(2):
        found = camlib.evaluate(model, images, target=pair[0], path=path, **asked)
        assert torch.equal(found.values[row]["deletion"], one.values[row]["deletion"])
    with pytest.raises(camlib.CamlibValueError, match=r"of another evaluation \(different target"):
        camlib.evaluate(model, images, target=pair[1], path=path, **asked)


def test_an_edited_function_is_another_function():
    versions = []
    for column in (0, 2, 2):
        names = {"__name__": "mine"}
        exec(f"def score(outputs):\n    return outputs[:, {column}]", names)
        versions.append(as_json(names["score"]))
    assert versions[0] != versions[1] == versions[2]
    assert versions[0][0] == "mine.score"


READS = """
def score(outputs):
    return (lambda column: half(outputs[:, column]))(CAT)

def half(values):
    return score(values) if values.dim() == 2 else values * FACTOR

CAT, FACTOR, UNREAD = {cat}, {factor}, {unread}
"""


def test_a_nested_function_under_another_name_is_not_recognised():
    with pytest.raises(camlib.CamlibValueError, match="a nested function cannot be recognised"):
        as_json(hidden(0))


def described_source(source, name="score"):
    names = {"__name__": "mine", "torch": torch, "functools": functools}
    exec(source, names)
    return as_json(names[name])


def test_an_edited_constant_or_helper_is_another_function():
    def version(cat="0", factor="1", unread="0", source=READS):
        return described_source(source.format(cat=cat, factor=factor, unread=unread))

    assert version() == version() == version(unread="5")
    others = [
        version(cat="2"), version(cat="'0'"), version(cat="torch.tensor(0)"), version(cat="torch.tensor(1)"),
        version(cat="{'cat': 0}"), version(cat="(0,)"), version(cat="(0, {1})"), version(factor="0.5"),
        version(cat="torch.nn.Linear(1, 1)"), version(source=READS.replace("* FACTOR", "+ FACTOR")),
    ]  # fmt: skip
    assert all(one != other for one, other in itertools.combinations([version(), *others], 2))


def test_a_cached_helper_is_followed():
    source = "@functools.cache\ndef column():\n    return {}\n\ndef score(outputs):\n    return outputs[:, column()]"
    assert described_source(source.format(0)) != described_source(source.format(2))


def test_a_record_is_the_same_in_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(
        "NAMES = {'cat', 'dog', 'bird'}\n\n"
        "def score(outputs):\n"
        "    return outputs[:, len(NAMES) if 'a' in {'a', 'b', 'c', 'd'} else 0]\n"
    )
    code = "import json, mine; from camlib.evaluation.run_log import as_json; print(json.dumps(as_json(mine.score)))"
    found = []
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        found.append(done.stdout)
    assert found[0] == found[1] == found[2]


class Slots:
    __slots__ = ("category",)

    def __init__(self, category):
        self.category = category

    def __call__(self, outputs):
        return outputs[:, self.category]


def test_an_object_with_slots_is_not_recorded(model, images, tmp_path):
    with pytest.raises(camlib.CamlibValueError, match=r"a .*\.Slots cannot be recognised .* without __slots__"):
        camlib.evaluate(model, images, ["grad_cam"], ["3"], FEW, target=Slots(0), path=tmp_path / "record.jsonl")


def test_options_of_every_type_are_distinguished():
    many = np.arange(5000.0)
    pairs = [
        (many, np.where(many == 2500, 0, many)), (np.int64(3), np.int64(4)), ({"a", "b"}, {"a"}), (b"a", b"b"),
        (torch.float32, torch.float64), (range(2), range(3)),
    ]  # fmt: skip
    for one, other in pairs:
        assert json.dumps(as_json(one)) != json.dumps(as_json(other))
        assert as_json(one) == as_json(copy.deepcopy(one))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_recorded(name):
    json.dumps([as_json(part) for part in METRICS[name].parts])


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_arguments_are_errors(model, images, masks):
    for arguments, error, told in (
        ({"methods": "grad_cam"}, TypeError, '"all" or a list'),
        ({"methods": ["grad_camm"]}, ValueError, "did you mean 'grad_cam'"),
        ({"methods": [3]}, TypeError, "each method must be a name"),
        ({"methods": ["grad_cam", "grad_cam"]}, ValueError, "twice"),
        ({"layers": "3"}, TypeError, r"give \['3'\]"),
        ({"layers": ["nowhere"]}, ValueError, "nowhere"),
        ({"metrics": "iou"}, TypeError, r"give \['iou'\]"),
        ({"metrics": []}, ValueError, "metrics is empty"),
        ({"metrics": ["insertio"]}, ValueError, "did you mean 'insertion'"),
        ({"metrics": ["iou"]}, ValueError, "give masks="),
        ({"max_images": 0}, ValueError, "max_images"),
        ({"max_passes": 0}, ValueError, "max_passes"),
        ({"masks": masks[:3]}, ValueError, "give a mask for each image"),
        ({"masks": torch.cat([masks, masks])}, ValueError, "masks has entries for 10 images, but the loader gave 5"),
        ({"masks": masks[:, :4]}, ValueError, "of the inputs' size"),
        ({"loader": []}, ValueError, "no images"),
        ({"target": [[0, 1]] * 5}, ValueError, "one heatmap of each image"),
        ({"target": camlib.TopK(2)}, ValueError, "one heatmap of each image"),
        ({"target": [0, 1]}, ValueError, "classes for 2 images"),
        ({"target": [0] * 9}, ValueError, "target has entries for 9 images, but the loader gave 5"),
        ({"max_images": "3", "masks": masks}, TypeError, "max_images"),
        ({"target": [0.5] * 5}, TypeError, "class indices are integers"),
    ):
        given = {"loader": images, "methods": ["grad_cam"], "layers": ["3"], "metrics": None} | arguments
        with pytest.raises(error, match=told) as raised:
            camlib.evaluate(model, **given)
        assert isinstance(raised.value, camlib.CamlibError)


def test_two_explainers_of_one_row_are_refused(model, images):
    with pytest.raises(camlib.CamlibValueError, match="grad_cam, 3 is among the methods twice"):
        camlib.evaluate(model, images, ["grad_cam", camlib.GradCAM(model, "3")], metrics=FEW)


def test_another_forward_is_refused_and_another_reshape_is_kept_apart(model, images):
    turned = camlib.GradCAM(model, "3", forward=lambda m, x: -m(x))
    with pytest.raises(camlib.CamlibValueError, match="by another forward"):
        camlib.evaluate(model, images, ["layer_cam", turned], ["3"], FEW)
    mirrored = camlib.GradCAM(model, "3", reshape=lambda features: features[:, ::2])
    found = camlib.evaluate(model, images, ["layer_cam", mirrored], ["3"], {"deletion": {"steps": 2}})
    alone = metrics.deletion(model, images, mirrored(images).heatmaps(), steps=2)
    torch.testing.assert_close(
        found.values[TableRow("grad_cam", "3")]["deletion"], alone.double(), rtol=1e-4, atol=1e-5
    )


def test_a_single_class_may_be_any_integer(model, images):
    for one in (1, torch.tensor(1), np.int64(1)):
        found = camlib.evaluate(model, images, ["grad_cam"], ["3"], ["entropy"], target=one)
        expected = metrics.entropy(camlib.GradCAM(model, "3")(images, 1).heatmaps())
        torch.testing.assert_close(found.values[found.rows[0]]["entropy"], expected.double())


class Steep(nn.Module):
    """Of bright pictures so sure that the probability of the other classes underflows."""

    def __init__(self):
        super().__init__()
        self.model = small_cnn()

    def forward(self, x):
        return self.model(x) * (1e6 if x.amax() > 1 else 1)


def test_a_metric_that_fails_late_is_listed_and_the_others_continue(images):
    model, bright = Steep().eval(), 2 + images[2:]
    with torch.no_grad():
        ruled_out = model(bright).argmin(1)
    assert len(set(ruled_out.tolist())) == 1
    found = camlib.evaluate(model, [images[:2], bright], ["grad_cam"], ["model.3"], FEW, target=int(ruled_out[0]))
    assert {(failure.row, failure.metric, failure.images) for failure in found.failures} == {
        (row, "average_drop", (2, 3, 4)) for row in found.rows
    }
    assert all("the average drop is undefined for scores <= 0" in failure.why for failure in found.failures)
    row = found.rows[0]
    assert found.values[row]["average_drop"].isnan().tolist() == [False] * 2 + [True] * 3
    assert not found.values[row]["sparseness"].isnan().any()


def test_every_metric_of_single_images_is_in_the_table():
    assert list(METRICS) == [
        "average_drop", "average_increase", "insertion", "deletion", "road_most_relevant_first",
        "road_least_relevant_first", "road_combined", "infidelity", "faithfulness_correlation", "sensitivity_n",
        "region_perturbation", "irof", "completeness", "coherency", "adcc", "arcc", "pointing_game",
        "energy_pointing_game", "grid_pointing_game", "relevance_rank", "top_k_intersection", "roc_auc", "iou",
        "max_sensitivity", "average_sensitivity", "lipschitz_estimate", "relative_input_stability",
        "relative_output_stability", "relative_representation_stability", "cascading_randomization",
        "independent_randomization", "efficient_randomization", "random_logit", "sparseness", "entropy", "complexity",
    ]  # fmt: skip
    assert all(METRICS[name] is getattr(metrics, name) for name in METRICS)


@metric(Heatmaps, "lower")
def peak_row(heatmaps, *, of=0):
    """The row of the peak."""
    return (heatmaps.values.flatten(1).argmax(1) // heatmaps.values.shape[2] - of).abs().float()


def test_a_metric_of_the_users_own_needs_one_declaration(model, images):
    found = camlib.evaluate(model, images, ["grad_cam"], ["3"], {peak_row: {"of": 5}, "entropy": {}})
    heatmaps = camlib.GradCAM(model, "3")(images).heatmaps()
    assert found.metrics == ["peak_row", "entropy"]
    assert torch.equal(found.values[found.rows[0]]["peak_row"], peak_row(heatmaps, of=5).double())
    assert found.better["peak_row"] == "lower"


def test_a_vision_transformer_can_be_evaluated():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    found = camlib.evaluate(model, torch.rand(2, 3, 32, 32), ["grad_cam", "le_grad", "cam"], None, FEW)
    assert {row.method for row in found.rows} == {"grad_cam", "le_grad", "random_cam", "center_gaussian"}
    assert [row.method for row in found.left_out] == ["cam"]
    assert not any(math.isnan(found.mean(row, name)) for row in found.rows for name in FEW)


class Tempered(nn.Module):
    """A network with everything that may change its outputs; it counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.temperature, self.flags, self.passes = small_cnn(), 1.0, {"flip": False}, 0
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x):
        self.passes += 1
        x = x.flip(-1) if self.flags["flip"] else x
        return self.net(x) * self.scale / self.temperature


def edited(cls):
    """The class with another forward, under the same name, as after an edit of its file."""

    def forward(self, x):
        return 2 * cls.forward(self, x)

    return type(cls.__name__, (nn.Module,), {**vars(cls), "forward": forward})


CHANGES = {
    "a buffer that is not saved": lambda model: model.scale.fill_(3),
    "an attribute": lambda model: setattr(model, "temperature", 0.1),
    "an item of an attribute": lambda model: model.flags.update(flip=True),
    "an option of a layer": lambda model: setattr(model.net[0], "padding_mode", "circular"),
    "the type of a layer": lambda model: model.net.__setitem__(3, nn.Tanh()),
    "a parameter": lambda model: model.net[6].bias.data.add_(1),
    "a hook": lambda model: model.net[6].register_forward_hook(lambda module, args, output: 5 * output),
    "a method of its class": lambda model: setattr(model, "__class__", edited(type(model))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_record_of_a_model_that_was_changed_is_refused(images, tmp_path, change):
    asked, model = {"methods": ["grad_cam"], "layers": ["net.2"], "metrics": ["average_drop"], "target": 1}, Tempered()
    asked["path"] = tmp_path / "record.jsonl"
    camlib.evaluate(model, images, **asked)
    camlib.evaluate(model, images, **asked)  # its counter has moved
    camlib.evaluate(Tempered(), images, **asked)
    change(model)
    with pytest.raises(camlib.CamlibValueError, match="different (attributes|model)"):
        camlib.evaluate(model, images, **asked)


def test_a_record_of_other_versions_or_of_autocast_is_refused(images, tmp_path, monkeypatch):
    asked = {"methods": ["grad_cam"], "layers": ["2"], "metrics": ["average_drop"], "path": tmp_path / "record.jsonl"}
    model = small_cnn().eval()
    camlib.evaluate(model, images, **asked)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(camlib.CamlibValueError, match="different autocast"),
    ):
        camlib.evaluate(model, images, **asked)
    monkeypatch.setattr("camlib.evaluation.run_log.__version__", "99")
    with pytest.raises(camlib.CamlibValueError, match="different versions"):
        camlib.evaluate(model, images, **asked)


def damages(lines):
    """A record's lines, changed by somebody else than camlib."""
    first, *batches = lines
    changed = json.loads(batches[0])
    changed["holds"]["rows"][0]["values"]["average_drop"][0] = 0.5
    dropped = json.loads(batches[0])
    del dropped["holds"]["rows"]
    return {
        "a value changed": [first, json.dumps(changed).encode(), *batches[1:]],
        "rows dropped": [first, json.dumps(dropped).encode(), *batches[1:]],
        "a line lost": [first, *batches[1:]],
        "a line twice": [first, batches[0], *batches],
        "lines swapped": [first, *reversed(batches)],
        "a list": [first, b"[1, 2]", *batches],
        "a number": [b"3", *batches],
        "NaN": [
            first,
            batches[0].replace(b'"passes": 1.0', b'"passes": NaN').replace(b": 1,", b": NaN,"),
            *batches[1:],
        ],
        "binary": [b"\xff\xfe\x00", *batches],
    }


@pytest.fixture
def recorded(images, tmp_path):
    """A model, what was asked of it, and the file of a record of three batches."""
    model, path = small_cnn().eval(), tmp_path / "record.jsonl"
    asked = {"methods": ["grad_cam"], "layers": ["2"], "metrics": ["average_drop"], "path": path}
    batches = [images[:1], images[1:2], images[2:3]]
    return lambda: camlib.evaluate(model, batches, **asked), path


@pytest.mark.parametrize("kind", damages([b"{}", b'{"holds": {"rows": [{"values": {"average_drop": [0]}}]}}']))
def test_a_record_that_somebody_changed_is_refused_and_stays(recorded, kind):
    run, path = recorded
    run()
    damaged = b"\n".join(damages(path.read_bytes().splitlines())[kind]) + b"\n"
    path.write_bytes(damaged)
    with pytest.raises(camlib.CamlibValueError, match="not a record of an evaluation"):
        run()
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content", [b'{"precious": [1, 2, 3]}', b"a line of text", b"\xff\xfea\x00", b"\n", b'{"asked": 1}\n']
)
def test_a_file_that_is_not_a_record_stays(recorded, content):
    run, path = recorded
    path.write_bytes(content)
    with pytest.raises(camlib.CamlibValueError, match="not a record of an evaluation"):
        run()
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path)])
def test_a_path_that_is_not_a_regular_file_is_refused(recorded, make):
    run, path = recorded
    make(path)
    with pytest.raises(camlib.CamlibValueError, match=r"not a regular file|cannot be opened"):
        run()


@pytest.mark.parametrize("path", [5, True, object(), "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(images, path):
    with pytest.raises(camlib.CamlibError, match="path|opened"):
        camlib.evaluate(small_cnn(), images, ["grad_cam"], ["2"], ["sparseness"], path=path)


def test_line_endings_of_windows_do_no_harm(recorded):
    run, path = recorded
    whole = run()
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\r\n".join(lines[:2]) + b"\r\n" + lines[2][:30])  # a batch is cut short
    for _ in range(3):
        resumed = run()
        assert torch.equal(
            resumed.values["grad_cam", "2"]["average_drop"], whole.values["grad_cam", "2"]["average_drop"]
        )
    assert path.read_bytes().splitlines() == lines
    assert path.read_bytes().count(b"\r") == 2


def test_a_record_that_another_evaluation_writes_is_refused(recorded, images, tmp_path):
    run, path = recorded
    with path.open("a+b") as file:
        assert locked(file)
        with pytest.raises(camlib.CamlibValueError, match="in use by another evaluation"):
            run()
    run()
    run()


def test_a_record_cut_at_any_byte_resumes_to_the_same_bytes(recorded):
    run, path = recorded
    run()
    whole = path.read_bytes()
    for length in range(0, len(whole), 211):
        path.write_bytes(whole[:length])
        run()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_is_nan_and_the_others_have_their_values(model, images, bad, value):
    asked = {"methods": ["grad_cam", "rise"], "layers": ["3"], "metrics": ["average_drop", "sparseness"], "target": 1}
    asked["methods"][1] = camlib.RISE(model, samples=10)
    whole = camlib.evaluate(model, [images[:2], images[2:4]], **asked)
    damaged = images.clone()
    damaged[bad, 0, 0, 0] = value
    found = camlib.evaluate(model, [damaged[:2], damaged[2:4]], **asked)
    for row in whole.rows:
        for name in asked["metrics"]:
            expected, values = whole.values[row][name].clone(), found.values[row][name]
            if name == "average_drop" or row.method not in ("random_cam", "center_gaussian"):
                assert values[bad].isnan()
            expected[bad] = values[bad]
            torch.testing.assert_close(values, expected, equal_nan=True)
    assert {failure.images for failure in found.failures} == {(bad,)}
    assert all("not finite" in failure.why for failure in found.failures)


def test_an_error_names_the_image_that_is_not_finite(model, images):
    damaged = images.clone()
    damaged[2, 0, 0, 0] = math.nan
    for call in (camlib.GradCAM(model, "3"), camlib.RISE(model, samples=4)):
        with pytest.raises(camlib.CamlibRuntimeError, match="not finite.*for image 2"):
            call(damaged)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loader": None}, "loader must give batches"),
        ({"loader": "images"}, "loader must give batches"),
        ({"methods": None}, "methods must be a list"),
        ({"layers": 5}, "layers must be a list"),
        ({"metrics": 5}, "metrics must be a list"),
        ({"metrics": [5]}, "each of metrics must be a name or a metric"),
        ({"metrics": {"deletion": {"stps": 3}}}, "deletion has no option 'stps'; did you mean 'steps'"),
        ({"metrics": {"deletion": 3}}, "options of deletion must be a mapping"),
        ({"score": None}, "score must make a target"),
        ({"masks": 5}, "masks must be a tensor"),
        ({"chunk_size": 0}, "chunk_size must be"),
    ],
)
def test_arguments_of_another_kind_are_refused(model, images, changed, said):
    asked = {"loader": images, "methods": ["grad_cam"], "layers": ["3"], "metrics": ["deletion"]} | changed
    with pytest.raises(camlib.CamlibError, match=said):
        camlib.evaluate(model, **asked)


def test_a_row_or_a_metric_that_is_not_in_the_table_is_named(model, images):
    table = camlib.evaluate(model, images, ["grad_cam"], ["3"], ["sparseness"])
    for call in (table.mean, table.interval, lambda row, metric: table.difference(row, table.rows[0], metric)):
        with pytest.raises(camlib.CamlibValueError, match="no row 'grad_cam'; evaluation.rows has.*grad_cam, 3"):
            call("grad_cam", "sparseness")
        with pytest.raises(camlib.CamlibValueError, match="no metric 'sparsness'; the table has sparseness"):
            call(table.rows[0], "sparsness")
