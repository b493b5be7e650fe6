"""A scan measures a method at each layer as the metrics alone do, and refuses what has no layers to scan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camlib
from camlib import metrics

SIDE = 16


class Stages(nn.Module):
    """A network of three resolutions."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.coarse(self.middle(self.fine(images))).mean((2, 3)))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stages().eval()


@pytest.fixture
def images():
    return torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks():
    upper = torch.zeros(5, SIDE, SIDE, dtype=torch.bool)
    upper[:, : SIDE // 2] = True
    return upper


@pytest.mark.parametrize("method", ["layer_cam", camlib.HiResCAM])
def test_each_layer_has_the_metric_of_its_own_maps(model, images, masks, method):
    scan = camlib.scan_layers(model, images, method, masks=masks, target=1)
    kind = camlib.METHODS[method] if isinstance(method, str) else method
    assert scan.layers == camlib.find_stages(model, images)
    means = {}
    for layer in scan.layers:
        explanation = kind(model, layer)(images, 1)
        values = metrics.energy_pointing_game(explanation.heatmaps(), masks)
        means[layer] = float(values.double().mean())
        assert scan.mean(layer) == pytest.approx(means[layer], abs=1e-6)
        assert scan.grids[layer] == tuple(explanation.maps.shape[1:])
    assert scan.best == max(means, key=means.get)
    low, high = scan.interval(scan.best)
    assert low <= means[scan.best] <= high
    assert len(set(means.values())) == len(means)  # or the best is not tested


def test_a_lower_value_is_better_where_the_metric_says_so(model, images):
    scan = camlib.scan_layers(model, images, "layer_cam", metric="deletion", options={"steps": 4})
    assert scan.best == min(scan.layers, key=scan.mean)
    worst = max(scan.layers, key=scan.mean)
    assert scan.difference(scan.best, worst)[0] == pytest.approx(scan.mean(worst) - scan.mean(scan.best), abs=1e-9)


def test_an_explainer_with_options_is_scanned_as_it_is(model, images, masks):
    pooled = camlib.scan_layers(model, images, camlib.HiResCAM(model, pool=3), ["fine", "middle"], masks=masks)
    explained = camlib.HiResCAM(model, "middle", pool=3)(images).heatmaps()
    values = metrics.energy_pointing_game(explained, masks)
    assert pooled.mean("middle") == pytest.approx(float(values.double().mean()), abs=1e-6)


def test_layers_are_scanned_in_one_pass(model, images, masks):
    """One finds the layers, two try the first image and read its grids, and one explains all layers of the batch."""
    rows = []
    handle = model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    camlib.scan_layers(model, images, "layer_cam", masks=masks)
    handle.remove()
    assert rows.count(len(images)) <= 2  # the other is that of the classes that are explained


def test_a_scan_of_mosaics_finds_where_the_class_is(model, images):
    tiles = metrics.mosaics(images, torch.arange(5) % 4, 2).by_tile()
    scan = camlib.scan_layers(model, tiles.pop("loader"), "layer_cam", metric="grid_pointing_game", **tiles)
    assert all(0 <= scan.mean(layer) <= 1 for layer in scan.layers)
    assert scan.evaluation.images == 8


def test_the_figure_names_each_layer_its_grid_and_the_metric(model, images, masks):
    scan = camlib.scan_layers(model, images, masks=masks)
    (axes,) = scan.plot().axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"{layer}\n{' x '.join(map(str, grid))}" for layer, grid in scan.grids.items()]
    assert "energy pointing game" in axes.get_ylabel()
    shown = {line.get_label() for line in axes.get_legend().get_lines()} | set(axes.get_legend_handles_labels()[1])
    assert {"layer_cam", "Gaussian in the centre"} <= shown
    drawn = next(line for line in axes.get_lines() if len(line.get_ydata()) == len(scan.layers))
    assert list(drawn.get_ydata()) == pytest.approx([scan.mean(layer) for layer in scan.layers])


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({"method": "sobel"}, camlib.CamlibValueError, "reads no single layer"),
        ({"method": "refine_cam"}, camlib.CamlibValueError, "reads no single layer"),
        ({"layers": "fine"}, camlib.CamlibTypeError, "list of names"),
        ({"layers": []}, camlib.CamlibValueError, "at least one"),
        ({"layers": ["fine", "fine"]}, camlib.CamlibValueError, "different names"),
        ({"layers": ["fin"]}, camlib.CamlibValueError, "fine"),
        ({"masks": None}, camlib.CamlibValueError, "masks"),
        ({"method": "layer_can"}, camlib.CamlibValueError, "layer_cam"),
    ],
)
def test_what_cannot_be_scanned_is_refused(model, images, masks, given, error, why):
    with pytest.raises(error, match=why):
        camlib.scan_layers(model, images, **{"masks": masks, **given})


def test_an_explainer_that_has_its_layer_is_refused(model, images, masks):
    with pytest.raises(camlib.CamlibValueError, match="has a layer already"):
        camlib.scan_layers(model, images, camlib.LayerCAM(model, "fine"), masks=masks)


def test_a_loader_that_can_be_read_once_is_refused(model, images, masks):
    with pytest.raises(camlib.CamlibTypeError, match="only once"):
        camlib.scan_layers(model, iter(images.split(2)), masks=masks)


def test_a_layer_that_was_not_measured_is_refused(model, images, masks):
    scan = camlib.scan_layers(model, images, layers=["fine", "middle"], masks=masks)
    with pytest.raises(camlib.CamlibValueError, match="coarse.*fine, middle"):
        scan.mean("coarse")
