"""Training is repeatable, survives being killed, and treats a rare class as the common one."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
import torch
from torch import nn

from pneumonia import InputError
from pneumonia import train as training_module
from pneumonia.augment import augment, prepare, views
from pneumonia.checkpoint import Recipe
from pneumonia.data import Pictures
from pneumonia.model import read_state
from pneumonia.network import Network
from pneumonia.sources import Splits
from pneumonia.train import Run, batch_loss, fast_bfloat16, train

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    size=32,
    learning_rate=1e-3,
    seed=0,
    finetune="full",
    weights="none",
    images="x",
    full_size_epochs=3,
)


class Tiny(nn.Module):
    """A convolution, BatchNorm and a head: quick, and with every kind of state that a checkpoint must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def tiny():
    torch.manual_seed(5)
    return Tiny()


def pictures(normal=16, pneumonia=16, side=36):
    generator = torch.Generator().manual_seed(0)
    count = normal + pneumonia
    pixels = torch.randint(0, 256, (count, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0] * normal + [1] * pneumonia)
    names = [f"image {index}" for index in range(count)]
    return Pictures(pixels, labels, names, names)


def trained(folder, **options):
    folder.mkdir(exist_ok=True)
    return train(tiny(), pictures(), pictures(6, 6), options.pop("recipe", RECIPE), folder, device=CPU, **options)


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def without_seconds(history):
    return [dataclasses.replace(row, seconds=0) for row in history]


def test_seed_makes_training_repeatable(tmp_path):
    (first, history), (again, history_again) = trained(tmp_path / "a"), trained(tmp_path / "b")
    assert same(first, again)
    assert without_seconds(history) == without_seconds(history_again)
    other, _ = trained(tmp_path / "c", recipe=dataclasses.replace(RECIPE, seed=1))
    assert not same(first, other)


@pytest.mark.parametrize("killed_in", [1, 2])
def test_killed_run_resumes_to_the_same_network(tmp_path, monkeypatch, killed_in):
    whole, history = trained(tmp_path / "whole")
    epochs = iter(range(100))

    plain = Network.margins

    def killed(network, pixels):
        if next(epochs) == killed_in:
            raise KeyboardInterrupt
        return plain(network, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "margins", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "killed")
    assert len(rows_of(tmp_path / "killed/history.csv")) == killed_in
    resumed, history_resumed = trained(tmp_path / "killed", resume=True)
    assert same(whole, resumed)
    assert without_seconds(history) == without_seconds(history_resumed)


def test_finished_run_is_resumed_without_training(tmp_path, monkeypatch):
    whole, history = trained(tmp_path)
    monkeypatch.setattr(training_module, "_epoch", None)
    again, history_again = trained(tmp_path, resume=True)
    assert same(whole, again)
    assert history == history_again


def test_another_recipe_is_not_resumed_and_the_difference_is_named(tmp_path):
    trained(tmp_path)
    with pytest.raises(InputError, match=r"another recipe \(batch_size: 8 there, 4 now; seed: 0 there, 2 now\)"):
        trained(tmp_path, resume=True, recipe=dataclasses.replace(RECIPE, batch_size=4, seed=2))


def test_other_images_are_not_resumed(tmp_path):
    first, other = pictures(), pictures(15, 17)
    assert Splits(first, other, first, []).fingerprint != Splits(other, first, first, []).fingerprint
    assert Splits(first, other, first, []).fingerprint == Splits(pictures(), pictures(15, 17), other, []).fingerprint
    trained(tmp_path)
    with pytest.raises(InputError, match="images: 'x' there, 'y' now"):
        trained(tmp_path, resume=True, recipe=dataclasses.replace(RECIPE, images="y"))


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 32), (1, 8), (2, 16), (4, 32), (4, 20)])
def test_the_shortest_trainings_run(tmp_path, epochs, batch_size):
    _, history = trained(tmp_path, recipe=dataclasses.replace(RECIPE, epochs=epochs, batch_size=batch_size))
    assert len(history) == epochs


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(InputError, match="training diverged; give a lower --lr"):
        trained(tmp_path, recipe=dataclasses.replace(RECIPE, learning_rate=1e30))


@pytest.mark.parametrize("state", [{"x": 1}, {"recipe": dataclasses.asdict(RECIPE)}])
def test_foreign_checkpoint_is_not_resumed(tmp_path, state):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt .*start without --resume"):
        trained(tmp_path, resume=True)


def test_checkpoint_holds_plain_values_and_replaces_the_old_one_whole(tmp_path):
    trained(tmp_path)
    state = read_state(tmp_path / "checkpoint.pt")
    assert len(state["history"]) == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_history_is_written_as_csv(tmp_path):
    _, history = trained(tmp_path)
    rows = rows_of(tmp_path / "history.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["training_loss"]) for row in rows] == [row.training_loss for row in history]


def test_pictures_grow_to_their_full_size():
    recipe = dataclasses.replace(RECIPE, epochs=14, size=160, full_size_epochs=4)
    sizes = [recipe.size_at(epoch) for epoch in range(14)]
    assert sizes[0] <= 96
    assert sizes == sorted(sizes)
    assert sizes[-4:] == [160] * 4
    assert all(size % 32 == 0 for size in sizes)
    assert RECIPE.size_at(0) == 32
    odd = dataclasses.replace(RECIPE, epochs=5, size=100, full_size_epochs=2)
    assert [odd.size_at(epoch) for epoch in (3, 4)] == [100, 100]


def test_rare_class_weighs_as_much_as_the_common_one(tmp_path):
    class Constant(nn.Module):
        """Predicts PNEUMONIA with probability p for every picture."""

        def __init__(self, p):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([math.log(1 - p), math.log(p)]))

        def forward(self, x):
            return self.logits.expand(len(x), 2)

    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=40, learning_rate=1e-12, label_smoothing=0.0)
    _, history = train(Constant(0.9), pictures(4, 36), pictures(2, 2), recipe, tmp_path, device=CPU)
    assert history[0].training_loss == pytest.approx((-math.log(0.9) - math.log(0.1)) / 2, rel=1e-5)


def test_average_follows_the_weights():
    run = Run(tiny(), RECIPE, 4)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(1)
    before = run.average.fc.weight.clone()
    run.update_average()
    torch.testing.assert_close(run.average.fc.weight, before + (1 - before) * (1 - 2 / 11))
    for _ in range(3000):
        run.update_average()
    torch.testing.assert_close(run.average.fc.weight, torch.ones_like(before))


def test_smoothed_labels_of_both_classes_have_the_same_weight():
    class_weights = torch.tensor([2.0, 2 / 3])
    outputs = torch.zeros(4, 2, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 1])  # once weighed, as many of each
    batch_loss(outputs, labels, labels, class_weights, 0.2).backward()
    torch.testing.assert_close(outputs.grad.sum(0), torch.zeros(2))
    losses = -(0.9 * math.log(0.5) + 0.1 * math.log(0.5))
    assert batch_loss(outputs, labels, labels, class_weights, 0.2).item() == pytest.approx(losses)


def test_views_are_the_whole_picture_its_middle_and_their_mirror_images():
    pixels = pictures().pixels
    whole, whole_mirrored, middle, middle_mirrored = views(pixels, 32)
    torch.testing.assert_close(whole, prepare(pixels, 32))
    torch.testing.assert_close(whole_mirrored, prepare(pixels.flip(2), 32), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(middle, prepare(pixels[:, 2:34, 2:34], 32))
    torch.testing.assert_close(middle_mirrored, prepare(pixels.flip(2)[:, 2:34, 2:34], 32))


def test_margin_is_the_difference_of_the_logits_of_every_view():
    model, pixels = tiny().eval(), pictures().pixels
    network = Network(model, 32, CPU)
    found = network.margins(pixels)
    assert found.shape == (32, 4)
    torch.testing.assert_close(found, network.margins(pixels, batch_size=5))
    torch.testing.assert_close(found, network.margins(pixels.flip(2))[:, [1, 0, 3, 2]], atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        logits = model(prepare(pixels, 32))
    torch.testing.assert_close(found[:, 0].sigmoid(), logits.softmax(1)[:, 1])


def test_mixed_precision_runs_and_stays_close(tmp_path):
    model, pixels = tiny().eval(), pictures().pixels
    exact, mixed = (Network(model, 32, CPU, amp).margins(pixels) for amp in (False, True))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(exact, mixed, atol=0.2, rtol=0)
    (_, history), (_, exact_history) = trained(tmp_path / "amp", amp=True), trained(tmp_path / "exact")
    assert history[0].training_loss == pytest.approx(exact_history[0].training_loss, abs=0.05)


def test_compiled_training_is_the_same_and_its_checkpoint_has_the_same_names(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    (first, _), (again, _) = trained(tmp_path / "plain"), trained(tmp_path / "compiled", compiled=True)
    assert len(compiled) == 1
    assert same(first, again)
    assert "conv.weight" in read_state(tmp_path / "compiled/checkpoint.pt")["model"]


def test_bfloat16_is_fast_where_the_processor_says_so(monkeypatch):
    for known, fast in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert fast_bfloat16(CPU) is fast
    assert fast_bfloat16(torch.device("meta")) is False


def test_input_is_standardised_and_independent_of_the_exposure():
    pixels = torch.randint(40, 120, (3, 36, 36), dtype=torch.uint8)
    inputs = prepare(pixels, 32)
    assert inputs.shape == (3, 3, 32, 32)
    torch.testing.assert_close(inputs.mean((1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((1, 2, 3)), torch.ones(3), atol=0.02, rtol=0)
    torch.testing.assert_close(prepare(pixels * 2, 32), inputs, atol=0.05, rtol=0)


def test_every_picture_is_changed_in_its_own_way_and_repeatably():
    pixels = torch.randint(0, 256, (1, 36, 36), dtype=torch.uint8).expand(8, -1, -1)
    first, again = (augment(pixels, 32, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (8, 3, 32, 32)
    assert bool(first.isfinite().all())
    distances = (first[:, None] - first[None]).abs().amax((2, 3, 4))
    assert bool((distances + torch.eye(8) > 0.1).all())
    state = torch.random.get_rng_state()
    augment(pixels, 32, torch.Generator().manual_seed(3))
    assert torch.equal(state, torch.random.get_rng_state())
