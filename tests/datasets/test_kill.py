"""A run that was killed and called again equals one that was not stopped: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import camlib
from camlib.datasets.manifest import records
from tests.datasets.small import contents, explained, pictures, rows

ROOT = Path(__file__).parents[2]
IMAGES = 90


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize(("storage", "trials"), [("files", 8), ("parquet", 6), ("webdataset", 6)])
def test_killed_at_random_moments_it_equals_a_run_that_was_not_stopped(tmp_path, storage, trials):
    pictures(tmp_path / "in", IMAGES)
    command = [sys.executable, "-m", "tests.datasets.small", str(tmp_path), storage, str(trials), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = camlib.open_run(tmp_path / "whole")
    assert [row.number for row in whole] == [number for number in range(IMAGES) if number % 17 != 5]
    assert [path[-8:-4] for path, _ in whole.errors] == [f"{number:04d}" for number in range(5, IMAGES, 17)]
    expected = contents(tmp_path / "whole")
    lines = expected["manifest.jsonl"].count(b'"batches":')
    killed = json.loads(done.stdout)
    assert len([count for count in killed if 0 < count < lines]) >= trials // 2, killed  # amid their work
    for trial in range(trials):
        assert contents(tmp_path / f"trial{trial}") == expected


def test_the_manifest_is_read_to_its_last_whole_line_wherever_it_ends(tmp_path):
    explained(pictures(tmp_path / "in", 10), tmp_path / "out", storage="webdataset")
    manifest = tmp_path / "out" / "manifest.jsonl"
    content = manifest.read_bytes()
    complete = list(records(manifest))
    assert len(complete) == 3  # the settings and two shards
    for end in range(len(content) + 1):
        manifest.write_bytes(content[:end])
        assert list(records(manifest)) == complete[: content[:end].count(b"\n")]


@pytest.mark.parametrize("storage", ["files", "webdataset"])
def test_a_run_resumes_from_a_manifest_that_ends_within_any_line(tmp_path, storage):
    source = pictures(tmp_path / "in", 10)
    explained(source, tmp_path / "out", storage=storage)
    expected = contents(tmp_path / "out")
    manifest = expected["manifest.jsonl"]
    lines = [place + 1 for place, byte in enumerate(manifest) if byte == ord("\n")]
    for end in [0, 1, *(line + step for line in lines[:-1] for step in (-1, 0, 1, 100)), len(manifest) - 1]:
        (tmp_path / "out" / "manifest.jsonl").write_bytes(manifest[:end])
        explained(source, tmp_path / "out", storage=storage)
        assert contents(tmp_path / "out") == expected


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    source = pictures(tmp_path / "in", 5)
    explained(source, tmp_path / "out", storage="webdataset")
    manifest = tmp_path / "out" / "manifest.jsonl"
    content = manifest.read_bytes()
    changed = content.replace(b'"count": 5', b'"count": 9')
    assert changed != content
    manifest.write_bytes(changed)
    with pytest.raises(camlib.CamlibValueError, match="was changed"):
        camlib.open_run(tmp_path / "out")
    with pytest.raises(camlib.CamlibValueError, match="was changed"):
        explained(source, tmp_path / "out", storage="webdataset")


def test_ctrl_c_finishes_the_batch_and_the_next_call_goes_on(tmp_path):
    source = pictures(tmp_path / "in", 20)
    expected = rows(explained(source, tmp_path / "whole", storage="webdataset", shard_size=100))
    program = (
        "import os, signal, sys\n"
        "from tests.datasets import small\n"
        "from camlib.datasets.results import Explaining\n"
        "before = Explaining.__call__\n"
        "def interrupted(self, batch):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return before(self, batch)\n"
        "Explaining.__call__ = interrupted\n"
        "from pathlib import Path\n"
        "small.explained(Path(sys.argv[1]), Path(sys.argv[2]), storage='webdataset', shard_size=100)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "KeyboardInterrupt" in done.stderr, done.stderr
    assert [row.number for row in camlib.open_run(tmp_path / "out")] == [0, 1, 2, 3]
    assert rows(explained(source, tmp_path / "out", storage="webdataset", shard_size=100)) == expected
