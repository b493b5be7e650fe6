"""Maps on a real Ray: two workers, of which one is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import camlib
from tests.datasets.small import Scaled, explained, network, pictures

ROOT = Path(__file__).parents[2]
NO_RAY = "ray is not installed: pip install 'torch-camlib[ray]'"

PROGRAM = """
import json, os, signal, sys
from pathlib import Path

import ray

import camlib
from examples.cluster.explain import explain
from tests.datasets.small import Scaled, network

MARK = Path(sys.argv[3])


def make():
    return camlib.GradCAM(network(), "1")


class KilledOnce(Scaled):
    def __call__(self, picture):
        try:
            os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__call__(picture)
        os.kill(os.getpid(), signal.SIGKILL)


ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
explain(sys.argv[1], sys.argv[2], make, KilledOnce(), workers=2)
"""


@pytest.fixture(scope="module")
def needs_ray():
    """Skip where Ray is missing; with the variable CI set the tests fail instead."""
    if not os.environ.get("CI") and importlib.util.find_spec("ray") is None:
        pytest.skip(NO_RAY)
    assert importlib.util.find_spec("ray"), NO_RAY


@pytest.mark.slow
@pytest.mark.usefixtures("needs_ray")
def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path):
    source = pictures(tmp_path / "in", 200)
    mark = tmp_path / "killed"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out"), str(mark)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    from pyarrow import parquet

    from camlib.datasets import read_parquet

    table = parquet.read_table(tmp_path / "out").to_pylist()
    paths = sorted(os.path.basename(one["path"]) for one in table)
    assert paths == [f"{number:04d}.png" for number in range(200)]
    whole = explained(source, tmp_path / "whole", storage="webdataset")
    assert {one["path"]: bool(one["error"]) for one in table} == {
        **{row.path: False for row in whole},
        **{path: True for path, _ in whole.errors},
    }
    found = {row.path: row for row in read_parquet(tmp_path / "out")}
    assert len(found) == len(whole)
    for row in whole:
        torch.testing.assert_close(found[row.path].map, row.map, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(found[row.path].heatmap(), row.heatmap(), rtol=0, atol=5e-3)
        assert found[row.path].classes == row.classes


@pytest.mark.usefixtures("needs_ray")
def test_an_explainer_can_be_pickled_and_its_copy_gives_the_same_rows(tmp_path):
    from camlib.integrations.ray import Explainer

    explain = Explainer(camlib.GradCAM(network(), "1"), transforms=Scaled())
    source = pictures(tmp_path / "in", 6)
    files = sorted(source.iterdir())
    batch = {"bytes": [file.read_bytes() for file in files], "path": list(map(str, files))}
    table = explain(batch)
    assert pickle.loads(pickle.dumps(explain))(batch).equals(table)
    assert [bool(error) for error in table["error"].to_pylist()] == [False] * 5 + [True]
    shown = [camlib.read_image(file) for file in files[:5]]
    arrays = Explainer(camlib.GradCAM(network(), "1"), transforms=Scaled(), column="image")({"image": shown})
    assert arrays["map"].to_pylist() == table["map"].to_pylist()[:5]
    assert json.loads(arrays["frame"].to_pylist()[0])["size"] == [30, 40]


def test_wrong_arguments_are_refused():
    from camlib.integrations.ray import Explainer

    with pytest.raises(camlib.CamlibValueError, match="does not keep the order"):
        Explainer(camlib.GradCAM(network(), "1"), target=[1, 2])
    with pytest.raises(camlib.CamlibTypeError, match="make must be a function"):
        Explainer("resnet18")
    with pytest.raises(camlib.CamlibValueError, match="no column 'bytes', but 'image'"):
        Explainer(camlib.GradCAM(network(), "1"), transforms=Scaled())({"image": []})
