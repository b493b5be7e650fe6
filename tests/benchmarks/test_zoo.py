"""The checks of the zoo see what they are made to see; its script records what goes wrong and continues."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import Tensor, nn

import camlib
from benchmarks import results, tables, zoo
from benchmarks.zoo_checks import (
    arrangements,
    differentiable,
    in_own_place,
    near,
    of_places,
    outputs_at,
    places,
    restated,
    spread,
)
from benchmarks.zoo_networks import NETWORKS, Network

PATCH, SIDE = 4, 6


class Tokens(nn.Module):
    """Prefix tokens and patches of a picture, mixed a little, as in a vision transformer."""

    def __init__(self, prefix: int = 1, order: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.prefix = nn.Conv2d(3, 8, PATCH, PATCH), nn.Parameter(torch.randn(1, prefix, 8))
        self.norm, self.head, self.order = nn.LayerNorm(8), nn.Linear(8, 3), order

    def forward(self, picture: Tensor) -> Tensor:
        tokens = self.patch(picture).flatten(2).mT
        tokens = tokens if self.order is None else tokens[:, self.order]
        tokens = torch.cat([self.prefix.expand(len(picture), -1, -1), tokens], 1)
        return self.head(self.norm(tokens + 0.3 * tokens.mean(1, keepdim=True)).mean(1))


def tokens_of(model: nn.Module, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
    inputs, leaves = differentiable(pictures)
    _, kept = outputs_at(model, ["norm"], lambda: model(inputs))
    return kept["norm"][0], leaves


def read(tokens: Tensor, prefix: int, *grid: int) -> Tensor:
    cells = grid or (SIDE, SIDE)
    return tokens[:, prefix : prefix + torch.Size(cells).numel()].unflatten(1, cells)


PICTURES = torch.rand(2, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(0))


def test_the_right_reading_is_proved() -> None:
    tokens, leaves = tokens_of(Tokens(2), PICTURES)
    found = places(read(tokens, 2), leaves)
    assert (found.own, found.cells, found.shift) == (9, 9, (0, 0))
    assert found.proved


class TestSharedOut:
    """Cells that read one place most, and that of a coarse map more than their own."""

    CELLS = spread((1, SIDE, SIDE))

    def shares(self) -> Tensor:
        """(cells, 1, SIDE, SIDE): what all cells read alike, with a maximum, and a tenth of it the own place."""
        common = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double() + 0.5
        common[0, 1, 2] = 20
        shares = torch.stack([common.clone() for _ in self.CELLS])
        for share, cell in zip(shares, self.CELLS, strict=True):
            share[cell] *= 1.1
        return shares / shares.sum((1, 2, 3), keepdim=True)

    def test_each_cell_gets_its_own_place(self) -> None:
        assert in_own_place(self.shares(), self.CELLS) == 9

    @pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)])
    def test_not_if_the_grid_is_mirrored(self, axes: tuple[int, ...]) -> None:
        assert in_own_place(self.shares().flip(axes), self.CELLS) <= 3

    def test_not_if_the_grid_is_transposed_or_shuffled(self) -> None:
        assert in_own_place(self.shares().mT, self.CELLS) == 3
        order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(1))
        shuffled = self.shares().flatten(2)[..., order].unflatten(2, (SIDE, SIDE))
        assert in_own_place(shuffled, self.CELLS) < 9


@pytest.mark.parametrize("wrong", [0, 1, 3, 4])
def test_a_wrong_prefix_is_not_proved(wrong: int) -> None:
    tokens, leaves = tokens_of(Tokens(2), PICTURES)
    tokens = torch.cat([tokens, tokens[:, :2]], 1)
    assert not places(read(tokens, wrong), leaves).proved


@pytest.mark.parametrize(
    "order",
    [
        torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(1)),
        torch.arange(SIDE**2).view(SIDE, SIDE).mT.flatten(),
        torch.arange(SIDE**2).view(2, 3, 2, 3).transpose(1, 2).flatten(),
        torch.arange(SIDE**2).flip(0),
        torch.arange(SIDE**2).roll(1),
    ],
    ids=["shuffled", "columns", "windows", "backwards", "rolled"],
)
def test_another_order_is_not_proved(order: Tensor) -> None:
    tokens, leaves = tokens_of(Tokens(1, order), PICTURES)
    assert not places(read(tokens, 1), leaves).proved


def test_another_grid_of_as_many_cells_is_not_proved() -> None:
    tokens, leaves = tokens_of(Tokens(0), PICTURES)
    assert not places(read(tokens, 0, 4, 9), leaves).proved


def test_an_axis_that_is_no_place_is_not_proved() -> None:
    tokens, leaves = tokens_of(Tokens(0), PICTURES)
    assert not places(tokens[:, :16].transpose(1, 2).unflatten(1, (4, 2)), leaves).proved


def test_cells_of_another_image_are_not_proved() -> None:
    tokens, leaves = tokens_of(Tokens(1), PICTURES)
    assert not places(read(tokens, 1).flip(0), leaves).proved


def test_cells_that_do_not_come_from_the_inputs_are_not_proved() -> None:
    tokens, leaves = tokens_of(Tokens(1), PICTURES)
    assert places(read(tokens.detach().requires_grad_(), 1), leaves).own == 0
    assert not places(read(tokens, 1), []).proved


def test_the_picture_is_the_input_that_the_cells_read_most() -> None:
    tokens, leaves = tokens_of(Tokens(1), PICTURES)
    found = places(read(tokens, 1), [torch.rand(2, 24, 8, requires_grad=True), *leaves])
    assert found.picture == 1
    assert found.proved


def test_axes_say_where_the_grid_lies_in_the_picture() -> None:
    video = torch.rand(2, 4, 3, 24, 24)
    inputs, leaves = differentiable(video)
    patches = nn.Conv2d(3, 8, PATCH, PATCH)(inputs.flatten(0, 1)).unflatten(0, (2, 4)).movedim(2, -1)
    assert places(patches, leaves, (1, 3, 4)).proved
    assert not places(patches.transpose(2, 3), leaves, (1, 3, 4)).proved
    assert not places(patches, leaves).proved


def test_strength_is_the_mean_over_each_cell() -> None:
    strength = torch.arange(6.0).expand(1, 2, 6)
    assert of_places(strength, 1, (3,), None, None).tolist() == [[2 * (0 + 1), 2 * (2 + 3), 2 * (4 + 5)]]
    assert of_places(strength, 1, (2, 3), (None, 2), None).shape == (1, 1, 3)
    assert of_places(strength, 1, (2,), None, (8,)).tolist() == [[2 * (0 + 1 + 2 + 3), 2 * (4 + 5)]]


@pytest.mark.parametrize("shape", [(1, 7), (2, 4, 5), (1, 1, 4, 4), (2, 2, 3, 3), (1, 30)])
def test_the_tried_cells_reach_both_ends(shape: tuple[int, ...]) -> None:
    cells = spread(shape)
    assert 0 < len(cells) <= 9
    assert len(set(cells)) == len(cells)
    for axis, size in enumerate(shape[1:], 1):
        assert {0, size - 1} <= {cell[axis] for cell in cells}


def test_small_grids_have_no_neighbours() -> None:
    assert [near(size) for size in (1, 3, 4, 16, 64)] == [0, 0, 1, 1, 6]


@pytest.mark.parametrize(
    ("shape", "maps", "expected"),
    [
        ((2, 5, 3, 4), (2, 3, 4), "channels first"),
        ((2, 3, 4, 5), (2, 3, 4), "channels last"),
        ((2, 14, 5), (2, 3, 4), "tokens, channels last, 2 in front and 0 behind left out"),
        ((2, 12, 5), (2, 3, 4), "tokens, channels last, axes run as (1, 0)"),
        ((6, 5, 2, 4), (2, 3, 2, 4), "rows are images x frames, channels first"),
        ((6, 5, 2, 4), (2, 3, 2, 4), "rows are frames x images, channels first"),
    ],
)
def test_readings_of_a_layers_axes(shape, maps, expected) -> None:
    found = {one.name: one for one in arrangements(shape, maps)}
    assert found[expected].features(torch.rand(shape)).shape == (*maps, 5)


def test_a_map_of_the_layer_is_restated_and_another_is_not() -> None:
    model = Tokens(1)
    inputs, _ = differentiable(PICTURES)
    outputs, kept = outputs_at(model, ["norm"], lambda: model(inputs))
    score = outputs[:, 1]
    cam = camlib.GradCAM(model, "norm", relu=False, reshape=lambda tokens: tokens[:, 1:].mT.unflatten(2, (SIDE, SIDE)))
    maps = cam(PICTURES, 1).maps
    found = restated(maps, kept["norm"], score)
    assert found.difference < 1e-5
    assert found.arrangement.name == "tokens, channels last, 1 in front and 0 behind left out"
    assert restated(maps.mT, kept["norm"], score).arrangement.name.endswith("axes run as (1, 0)")
    assert restated(torch.rand_like(maps), kept["norm"], score).difference > 0.1


def test_gradients_through_a_norm_of_one_image_are_right() -> None:
    """What torch gives by itself, on the CPU, for a gradient with these strides is not."""
    norm, picture = nn.Sequential(nn.BatchNorm2d(8)).eval(), torch.rand(1, 8, 5, 5)
    norm[0].running_mean += 1
    inputs, leaves = differentiable(picture)
    outputs, _ = outputs_at(norm, [], lambda: norm(inputs))
    weights = torch.rand(1, 25, 8)
    (found,) = torch.autograd.grad((outputs.flatten(2).mT * weights).sum(), leaves)
    expected = weights.mT.unflatten(2, (5, 5)) / (norm[0].running_var + norm[0].eps).sqrt()[:, None, None]
    torch.testing.assert_close(found, expected)


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))


class Broken(nn.Module):
    """Works, but not while hooks look at its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = cnn()

    def forward(self, picture: Tensor) -> Tensor:
        if any(module._forward_hooks for module in self.cnn):
            raise KeyError("hooked")
        return self.cnn(picture)


def refusing() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 3))


def broken_builder() -> nn.Module:
    raise OSError("no such weights")


def picture() -> Tensor:
    return torch.rand(1, 3, 24, 24)


@pytest.mark.parametrize(
    ("build", "verdict"),
    [(cnn, "proved"), (Broken, "crash"), (refusing, "refused"), (broken_builder, "not built")],
)
def test_what_becomes_of_a_network_is_recorded(build, verdict) -> None:
    record = zoo.measured(Network("own", build, picture))
    assert zoo.verdict_of(record) == verdict
    json.dumps(record)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "proved"),
        ({"layers": [{"difference": 0.1, "proved": True}]}, "differs"),
        ({"layers": [{"difference": None, "proved": False}]}, "not restated"),
        ({"layers": [{"difference": 0.0, "proved": False}]}, "unproved"),
        ({"layers": [{"difference": 0.0, "proved": True, "is output": True}]}, "the output"),
        ({"scores apart": 0.1}, "differs"),
        ({"trunks shown": "1 of 2"}, "one trunk"),
        ({"trunks shown": "1 of 2", "warnings": ["one of two trunks"]}, "proved"),
        ({"grid of the last map": [4, 4]}, "another layer"),
    ],
)
def test_verdicts(change, verdict) -> None:
    record = {
        "precision": "float64",
        "layers": [{"difference": 0.0, "proved": True}],
        "scores apart": 0,
        "warnings": [],
    }
    assert zoo.verdict_of(record | change) == verdict


def test_a_run_that_was_stopped_is_continued(tmp_path, monkeypatch, capsys) -> None:
    measured = []
    monkeypatch.setattr(zoo, "NETWORKS", {name: Network("own", cnn, picture) for name in ("one", "two")})
    monkeypatch.setattr(zoo, "measured", lambda network: measured.append(network) or {"refused": "no", "seconds": 0})

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["zoo", "--folder", str(tmp_path), *arguments])
        zoo.main()

    run("--only", "two")
    run()
    assert list(results.load("zoo", tmp_path)["networks"]) == ["one", "two"]
    assert len(measured) == 2
    run("--only", "o")
    assert len(measured) == 4
    run("--fresh")
    assert len(measured) == 6


def test_the_tables_show_every_network_and_every_reason(tmp_path, monkeypatch) -> None:
    layer = {"layer": "x", "grid": [2, 3], "difference": 1e-9, "own": 9, "shared out": 9, "cells": 9, "proved": True}
    good = {"precision": "float64", "input": "3 x 8 x 8", "layers": [layer, layer], "scores apart": 0, "warnings": []}
    names = list(NETWORKS)
    found = {
        names[0]: good,
        names[1]: good | {"layers": [layer | {"proved": False, "own": 2}]},
        names[2]: {"refused": "CamlibValueError: a *reason* of `it`", "input": "8"},
        names[3]: {"crash": "KeyError: a_ (x.py, y)", "input": "8"},
    }
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "load", lambda name: {"networks": found})
    (tmp_path / "zoo.json").write_text("{}")
    rows = {line[0]: line[1:] for line in tables.zoo_networks()}
    assert rows[names[0]] == ["3 x 8 x 8", "``x``; ``x``", "2 x 3; 2 x 3", *["9 of 9; 9 of 9"] * 2, "1e-09; 1e-09", ""]
    assert rows[names[1]][-1] == "unproved"
    assert rows[names[3]][-1] == r"crash: KeyError: a\_ (x.py, y)"
    assert rows[names[4]][-1] == "not measured"
    assert names[2] not in rows
    assert tables.zoo_refusals()[1:] == [[names[2], "8", r"a \*reason\* of \`it\`"]]
    head, *_, total = tables.zoo_sources()
    assert dict(zip(head, total, strict=True)) == {
        "source": "all", "networks": str(len(names)), "proved": "1", "refused": "1", "unproved": "1", "crash": "1",
        "not measured": str(len(names) - 4),
    }  # fmt: skip


def test_the_zoo_is_as_large_as_the_documentation_says() -> None:
    sources = [network.source for network in NETWORKS.values()]
    assert len(sources) >= 200
    assert sources.count("timm") >= 60
    assert sources.count("Hugging Face") >= 25
