"""Two processes give the gradients and predictions of one, and only one of them prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pneumonia import distributed
from pneumonia.network import Network
from pneumonia.train import batch_loss
from tests.radiographs import write_classes

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[2] / "examples/pneumonia/run.py"
LIMIT = 300
"""Seconds after which a hang is a failure."""


class Net(nn.Module):
    """A convolution, BatchNorm and a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def network():
    torch.manual_seed(3)
    return Net().eval()


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 3, 16, 16, generator=generator), torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 1, 0])


def gradients(model, forward):
    """The gradients and the loss of one step on this process's part of the batch."""
    inputs, labels = batch()
    own = distributed.own_part(torch.arange(len(labels)))
    loss = batch_loss(forward(inputs[own]), labels[own], labels, torch.tensor([1.7, 0.7]), 0.1)
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters()}, distributed.mean(loss)


def predictions():
    pixels = torch.randint(0, 256, (13, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Network(network(), 32, torch.device("cpu")).margins(pixels, batch_size=4)


def worker(folder):
    """What each of the two processes does and writes."""
    with distributed.joined(cuda=False):
        model = network()
        found, loss = gradients(model, distributed.together(model, torch.device("cpu")))
        stray = network()
        with torch.no_grad():
            stray.fc.weight += distributed.own_part(torch.arange(2)).item()
        distributed.share_first(stray)
        state = {
            "gradients": found,
            "loss": loss,
            "predictions": predictions(),
            "count": distributed.count(),
            "shared": stray.fc.weight.detach(),
            "draw": torch.rand(3, generator=distributed.own_generator(torch.Generator(), 0, 0)),
        }
        print("one voice")
        torch.save(state, Path(folder) / f"{os.environ['RANK']}.pt")


def launched(*command, **options):
    """Run a command in two processes by PyTorch's own launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=environment,
        **options,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = launched(__file__, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["count"] == second["count"] == 2
    return first, second, done.stdout


def test_one_step_has_the_gradients_of_a_single_process(found):
    model = network()
    expected, loss = gradients(model, model)
    for state in found[:2]:
        for name, gradient in expected.items():
            torch.testing.assert_close(state["gradients"][name], gradient, rtol=1e-5, atol=1e-7)
        assert state["loss"] == pytest.approx(loss, rel=1e-5)


def test_shared_evaluation_equals_that_of_one_process(found):
    for state in found[:2]:
        torch.testing.assert_close(state["predictions"], predictions(), rtol=0, atol=1e-6)


def test_all_processes_get_the_weights_of_the_first(found):
    for state in found[:2]:
        torch.testing.assert_close(state["shared"], network().fc.weight.detach())


def test_processes_draw_their_own_random_numbers(found):
    assert not torch.equal(found[0]["draw"], found[1]["draw"])


def test_only_the_first_process_prints(found):
    assert found[2].count("one voice") == 1


def test_one_process_needs_no_launcher():
    assert distributed.count() == 1
    assert distributed.is_first()
    with distributed.joined(cuda=False):
        assert distributed.count() == 1
    generator = torch.Generator()
    assert distributed.own_generator(generator, 1, 2) is generator
    assert distributed.own_part(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


QUICK = ["--weights", "none", "--size", "32", "--batch-size", "8", "--show", "2", "--subsets", "1", "--explain", "4"]


def test_whole_run_works_under_torchrun_and_is_evaluated_the_same_by_one_process(tmp_path):
    write_classes(tmp_path / "data", 24, 24)
    options = [
        "--data",
        tmp_path / "data",
        "--output",
        tmp_path / "out",
        "--epochs",
        "2",
        "--precision",
        "float32",
        *QUICK,
    ]
    done = launched(RUN, *options, "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test set:") == 1
    two = json.loads((tmp_path / "out/metrics.json").read_text())
    alone = [sys.executable, str(RUN), *map(str, options), "--device", "cpu", "--resume"]
    assert subprocess.run(alone, capture_output=True, timeout=LIMIT, check=False).returncode == 0
    one = json.loads((tmp_path / "out/metrics.json").read_text())
    assert one["history"] == two["history"]
    assert len(one["history"]) == 2
    assert one["temperature"] == pytest.approx(two["temperature"], rel=1e-3)
    for here, there in zip(one["predictions"], two["predictions"], strict=True):
        assert here["probability"] == pytest.approx(there["probability"], abs=1e-4)


def test_bad_input_under_torchrun_is_one_line_and_a_failure(tmp_path):
    done = launched(RUN, "--data", tmp_path / "nowhere", "--device", "cpu")
    assert done.returncode != 0
    assert done.stderr.count("run.py: there is no folder") == 1
    few = launched(
        RUN, "--device", "cpu", *QUICK, "--batch-size", "3", "--max-train", "16", "--output", tmp_path / "out"
    )
    assert few.returncode != 0
    assert few.stderr.count("is shared by 2 processes") == 1


if __name__ == "__main__":
    worker(sys.argv[1])
