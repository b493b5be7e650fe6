"""The tests of the heatmaps give the right answers for networks whose behaviour is known."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import camlib
from camlib.metrics import Scorer, insertion
from pneumonia import phantoms, quality_figures
from pneumonia.augment import prepare
from pneumonia.data import Pictures
from pneumonia.measures import Estimate
from pneumonia.model import build
from pneumonia.network import Network
from pneumonia.page import flags
from pneumonia.quality import METHODS, agreement, faithfulness, quality, randomisation, region_use, regions
from pneumonia.results import plain

CPU = torch.device("cpu")
SIDE = 32
NOTHING = Estimate(0.0, (0.0, 0.0))


class Reader(nn.Module):
    """Predicts PNEUMONIA from the brightness of one region, and reads nothing else."""

    def __init__(self, region):
        super().__init__()
        self.gray = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.gray.weight, 1 / 3)
        self.seen = nn.ReLU()
        self.register_buffer("region", regions(SIDE)[region])

    def forward(self, pictures):
        score = 20 * self.seen(self.gray(pictures) * self.region).sum((1, 2, 3)) / self.region.sum() - 10
        return torch.stack([-score, score], 1)


def bright(region, count=12):
    """Pictures of dim noise with one bright region."""
    noise = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (noise + 0.7 * regions(SIDE)[region]).expand(-1, 3, -1, -1).contiguous()


def patients(count):
    return [str(number) for number in range(count)]


def region_use_of(region, inputs):
    model = Reader(region)
    explanation = camlib.GradCAM(model, "seen")(inputs, 1)
    return region_use(Scorer(model, inputs, 1), explanation, 0.5, patients(len(inputs)), 0)


@pytest.fixture(scope="module")
def network(pictures):
    """An untrained network that calls half of the pictures PNEUMONIA."""
    torch.manual_seed(0)
    model = build("none")[0].eval()
    with torch.no_grad():
        margins = model(prepare(pictures.pixels, SIDE)).diff(dim=1)
        model.fc.bias[1] -= margins.quantile(0.5)
    return model


@pytest.fixture(scope="module")
def pictures():
    made = phantoms.generate(24, size=40, seed=0)
    names = [f"phantom {index}" for index in range(24)]
    return Pictures(made.images, made.labels, names, names, made.masks)


@pytest.fixture(scope="module")
def found(network, pictures):
    return answers(network, pictures)


def answers(model, pictures, seed=0, images=6, **options):
    options = {"threshold": 0.5, "progress": False} | options
    return quality(Network(model, SIDE, CPU), pictures, "layer2", seed, images, **options)


def estimates(results):
    """Every estimate in nested results."""
    if isinstance(results, Estimate):
        yield results
    elif is_dataclass(results):
        yield from estimates(list(vars(results).values()))
    elif isinstance(results, dict):
        yield from estimates(list(results.values()))
    elif isinstance(results, list):
        for part in results:
            yield from estimates(part)


def test_network_that_reads_the_corners_is_detected_by_its_heatmap_and_by_covering_them():
    corners = region_use_of("corners", bright("corners")).regions["corners"]
    assert corners.area == pytest.approx(regions(SIDE)["corners"].double().mean())
    assert corners.energy.value == pytest.approx(1)
    assert corners.energy_by_area.value == pytest.approx(1 / corners.area)
    assert corners.flagged
    assert corners.flips == Estimate(1.0, (1.0, 1.0))
    assert corners.change.value > 0.9


def test_covering_what_a_network_does_not_read_changes_nothing():
    found = region_use_of("middle", bright("middle")).regions
    for region in ("corners", "border"):
        assert found[region].change == found[region].flips == NOTHING
        assert found[region].energy.value == 0
        assert not found[region].flagged
    assert found["middle"].flips.value == 1
    assert found["middle"].flagged


def test_report_names_the_flagged_regions_except_the_middle():
    corners, middle = (region_use_of(region, bright(region)) for region in ("corners", "middle"))
    assert flags({"NORMAL": corners, "PNEUMONIA": middle}).startswith("Flagged: corners (images called NORMAL)")
    assert flags({"PNEUMONIA": middle}) == "Neither corners nor border are flagged."


def test_even_energy_is_no_preference():
    inputs = bright("middle", 40)
    model = Reader("middle")
    maps = torch.rand(40, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    classes = torch.ones(40, dtype=torch.long)
    even = camlib.Explanation(maps, torch.zeros(40), None, classes, "even", "none", (SIDE, SIDE))
    found = region_use(Scorer(model, inputs, 1), even, 0.5, patients(40), 0).regions
    for region in ("corners", "border", "middle"):
        assert found[region].energy_by_area.value == pytest.approx(1, abs=0.05)


def test_regions_are_symmetric_and_the_middle_is_as_large_as_the_corners():
    for side in (32, 64, 96, 128, 224):
        masks = regions(side)
        assert masks["middle"].sum() == masks["corners"].sum()
        for mask in masks.values():
            assert torch.equal(mask, mask.flip(0))
            assert torch.equal(mask, mask.T)


def test_heatmap_that_ignores_the_weights_fails(network):
    inputs = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for blind in (camlib.Sobel(network), camlib.CenterGaussian(network)):
        found = randomisation(blind, inputs, patients(8), 0)
        assert found.verdict == "no"
        assert found.similarities["spearman"].stages[-1].value == pytest.approx(1, abs=1e-6)


def test_heatmap_that_depends_on_the_weights_passes(network, pictures):
    found = randomisation(camlib.GradCAM(network, "layer2"), prepare(pictures.pixels[:8], SIDE), patients(8), 0)
    assert found.stages[0] == "fc"
    assert found.stages[-1] == "conv1"
    assert found.verdict == "yes"
    assert list(found.similarities) == ["ssim", "spearman"]
    for similarity in found.similarities.values():
        assert len(similarity.stages) == len(found.stages)
        beyond = similarity.stages[-1].value - similarity.different_images.value
        assert similarity.beyond.value == pytest.approx(beyond)


def test_heatmap_of_what_the_network_reads_is_more_faithful_than_one_that_ignores_it():
    model, inputs = Reader("corners"), bright("corners")
    explanation = camlib.GradCAM(model, "seen")(inputs, 1)
    found = faithfulness(Scorer(model, inputs, 1), explanation, patients(12), 0)
    for curves, sign in ((found.insertion, 1), (found.deletion, -1)):
        for rival in ("random", "center_gaussian"):
            difference = curves.difference[rival]
            assert difference.verdict == "better"
            assert sign * difference.value > 0.2
    area = float(insertion(model, inputs, explanation.heatmaps(), 1, steps=8, baseline="zero").mean())
    assert found.insertion.area["grad_cam"].value == pytest.approx(area, abs=1e-5)
    wrong = camlib.GradCAM(Reader("middle"), "seen")(bright("middle"), 1)
    missed = faithfulness(Scorer(model, inputs, 1), wrong, patients(12), 0)
    assert missed.insertion.difference["random"].verdict == "worse"
    assert missed.deletion.difference["random"].verdict == "worse"


def test_difference_that_may_be_zero_is_inconclusive():
    class Deaf(Reader):
        def forward(self, pictures):
            return super().forward(pictures) * 0

    inputs = bright("corners")
    explanation = camlib.GradCAM(Reader("corners"), "seen")(inputs, 1)
    found = faithfulness(Scorer(Deaf("corners"), inputs, 1), explanation, patients(12), 0)
    for curves in (found.insertion, found.deletion):
        for difference in curves.difference.values():
            assert (difference.value, difference.interval, difference.verdict) == (0, (0, 0), "inconclusive")


def test_methods_that_are_equal_by_construction_agree_and_the_matrix_is_symmetric(network):
    inputs = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    found = agreement(camlib.compare(network, inputs, METHODS, 1, layer="layer4"), patients(4), 0)
    matrix, at = np.array(found.matrix), found.methods.index
    assert found.methods == list(METHODS)
    assert np.array_equal(matrix, matrix.T)
    assert np.diag(matrix) == pytest.approx(1)
    assert matrix[at("grad_cam"), at("hires_cam")] == pytest.approx(1, abs=1e-3)
    assert matrix[at("grad_cam"), at("x_grad_cam")] == pytest.approx(1, abs=1e-3)
    assert matrix[at("grad_cam"), at("eigen_cam")] < 0.99
    low, high = np.moveaxis(np.array(found.intervals), 2, 0)
    assert (low - 1e-9 <= matrix).all()
    assert (matrix <= high + 1e-9).all()


def test_sample_is_pneumonia_or_called_pneumonia_and_of_the_given_size(network, pictures, found):
    labels = dict(zip(pictures.names, pictures.labels.tolist(), strict=True))
    assert len(set(found.images)) == 6
    never = answers(network, pictures, threshold=1.1, images=99)
    assert sorted(never.images) == sorted(name for name, label in labels.items() if label == 1)
    assert list(never.shortcuts.called) == ["NORMAL"]
    assert never.shortcuts.called["NORMAL"].images == 24
    always = answers(network, pictures, threshold=0.0, images=99)
    assert sorted(always.images) == sorted(pictures.names)
    assert list(always.shortcuts.called) == ["PNEUMONIA"]


def test_temperature_changes_probabilities_and_not_heatmaps(network, pictures, found):
    warm = answers(network, pictures, temperature=1000.0)
    assert warm.agreement == found.agreement
    assert warm.faithfulness.deletion.area["grad_cam"].value == pytest.approx(0.5, abs=0.02)


def test_every_interval_contains_its_value(found):
    every = list(estimates(found))
    assert len(every) > 50
    for estimate in every:
        low, high = estimate.interval
        assert low - 1e-9 <= estimate.value <= high + 1e-9


def test_answers_depend_on_the_seed_alone(network, pictures, found):
    torch.manual_seed(123)
    assert answers(network, pictures) == found
    assert answers(network, pictures, seed=1).images != found.images


def test_answers_can_be_written_as_json(found):
    assert json.loads(json.dumps(plain(found))) == plain(found)


def test_network_is_left_as_it_was(pictures):
    torch.manual_seed(1)
    model = build("none")[0].train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    answers(model, pictures, images=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_cost_is_bounded_by_the_number_of_images(network, pictures, monkeypatch):
    seen = []
    plain = type(network).forward

    def counted(self, inputs):
        seen.append(len(inputs))
        return plain(self, inputs)

    monkeypatch.setattr(type(network), "forward", counted)
    answers(network, pictures, images=4)
    assert len(pictures) < sum(seen) <= len(pictures) + 80 * 4


def test_network_without_any_heatmap_has_no_answers_and_no_error(pictures):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer2 = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4, 2)
            nn.init.zeros_(self.layer2.weight)
            nn.init.ones_(self.layer2.bias)  # of every picture the same constant map

        def forward(self, inputs):
            return self.fc(self.layer2(inputs).mean((2, 3)))

    torch.manual_seed(0)
    found = answers(Blind(), pictures)
    assert found.empty_heatmaps == 6
    assert found.randomisation.verdict == "unknown"
    assert np.isnan(found.agreement.matrix).all()
    (use,) = found.shortcuts.called.values()
    assert math.isnan(use.regions["corners"].energy.value)
    assert not use.regions["corners"].flagged
    for curves in (found.faithfulness.insertion, found.faithfulness.deletion):  # the order of pixels does not matter
        assert {difference.verdict for difference in curves.difference.values()} == {"inconclusive"}
    assert len(drawn_from(found)) == 4


def test_one_image_is_too_few_for_a_verdict(network, pictures):
    assert answers(network, pictures, images=1).randomisation.verdict == "unknown"


def drawn_from(found):
    """The four figures, drawn."""
    figures = {
        part: getattr(quality_figures, f"draw_{part}")(getattr(found, part))
        for part in ("randomisation", "faithfulness", "shortcuts", "agreement")
    }
    for figure in figures.values():
        figure.canvas.draw()
    return figures


def test_figures_say_what_was_found(found):
    figures = drawn_from(found)
    assert all(isinstance(figure, Figure) for figure in figures.values())
    texts = {
        name: " ".join(text.get_text() for text in figure.findobj(match=_is_text)) for name, figure in figures.items()
    }
    assert quality_figures.ANSWERS[found.randomisation.verdict] in figures["randomisation"].get_suptitle()
    for stage in found.randomisation.stages:
        assert stage in texts["randomisation"]
    for difference in found.faithfulness.insertion.difference.values():
        assert difference.verdict in texts["faithfulness"]
    for name in ("NORMAL", "PNEUMONIA"):
        assert f"6 images called {name}" in texts["shortcuts"]
    for value in np.ravel(found.agreement.matrix):
        assert f"{value:.2f}" in texts["agreement"]


def _is_text(artist):
    return hasattr(artist, "get_text")
