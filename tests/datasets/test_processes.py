"""Several processes make one run, equal to that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import camlib
from camlib.datasets.manifest import MANIFEST, records
from tests.datasets.small import contents, explained, pictures

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path
import torch.distributed
from tests.datasets.small import explained

torch.distributed.init_process_group("gloo")
run = explained(Path(sys.argv[1]), Path(sys.argv[2]), storage=sys.argv[3])
torch.distributed.barrier()
Path(sys.argv[2] + f".{torch.distributed.get_rank()}").write_text(str(len(run)))
torch.distributed.destroy_process_group()
"""


def by_torchrun(folder, *arguments):
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [*command, str(folder / "program.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["files", "webdataset"])
def test_two_gloo_processes_make_the_run_of_one(tmp_path, storage):
    source = pictures(tmp_path / "in", 30)
    one = explained(source, tmp_path / "one", storage=storage)
    done = by_torchrun(tmp_path, source, tmp_path / "two", storage)
    assert done.returncode == 0, done.stderr
    two = camlib.open_run(tmp_path / "two")
    assert [(tmp_path / f"two.{rank}").read_text() for rank in (0, 1)] == [str(len(one))] * 2
    assert [row.path for row in one] == [row.path for row in two]
    assert one.errors == two.errors
    for first, second in zip(one, two, strict=True):
        assert first.classes == second.classes
        torch.testing.assert_close(first.map, second.map, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(first.heatmap(), second.heatmap(), rtol=1e-5, atol=1e-5)
    assert set(contents(tmp_path / "one")) == set(contents(tmp_path / "two")) - {".tmp-lock"}
    if storage == "files":
        assert contents(tmp_path / "one")["index.csv"] == contents(tmp_path / "two")["index.csv"]


def as_process(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def test_each_process_takes_its_share_and_merges_it(tmp_path, monkeypatch):
    source = pictures(tmp_path / "in", 30)
    whole = explained(source, tmp_path / "whole")
    found = []
    for rank in (2, 0, 1):
        as_process(monkeypatch, rank, 3)
        found.append(len(explained(source, tmp_path / "out")))
    assert 0 < found[0] < found[1] < found[2] == len(whole)
    assert not list((tmp_path / "out").glob("manifest.*.jsonl"))
    lines = [record["batches"] for _, record in records(tmp_path / "out" / MANIFEST) if "batches" in record]
    assert sorted(number for line in lines for number, _ in line) == list(range(8))


def test_what_processes_left_that_were_killed_is_neither_lost_nor_done_again(tmp_path, monkeypatch):
    source = pictures(tmp_path / "in", 30)
    expected = [row.path for row in explained(source, tmp_path / "whole")]
    as_process(monkeypatch, 1, 4)
    merge = camlib.datasets.manifest.Manifest.merge
    monkeypatch.setattr(camlib.datasets.manifest.Manifest, "merge", lambda self: None)
    explained(source, tmp_path / "out")
    monkeypatch.setattr(camlib.datasets.manifest.Manifest, "merge", merge)
    part = tmp_path / "out" / "manifest.1.jsonl"
    before = part.read_bytes()
    part.write_bytes(before + b'{"crc": 1')  # it was killed in the middle of a line
    assert 0 < len(camlib.open_run(tmp_path / "out")) < len(expected)
    as_process(monkeypatch, 0, 1)
    run = explained(source, tmp_path / "out")
    assert [row.path for row in run] == expected
    assert not part.exists()
    lines = (tmp_path / "out" / MANIFEST).read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 9


def test_a_share_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    source = pictures(tmp_path / "in", 1)
    as_process(monkeypatch, 2, 2)
    with pytest.raises(camlib.CamlibValueError, match="RANK='2' must be a number below WORLD_SIZE='2'"):
        explained(source, tmp_path / "out")
