"""The command: what it writes, its exit statuses, and that no file name, picture or checkpoint harms it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import camlib
from camlib.cli import doctor
from camlib.cli.app import app, main
from camlib.loading import load

NETWORK = "torchvision:resnet18"
RANDOM = ("--model", NETWORK, "--weights", "none")

FACTORY = """
import time
import torch
import torchvision
from torchvision import transforms
PREPARE = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
def small():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3), PREPARE, ["cat", "dog", "owl"]
def bare():
    return small()[0]
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small()[0]
    def forward(self, images):
        time.sleep(0.5)
        return self.network(images)
def slow():
    return Slow(), PREPARE
def one_name():
    return small()[0], PREPARE, ["=cat"]
"""


def save_picture(path: Path | bytes, height: int = 100, width: int = 150, seed: int = 0) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: pictures in photos/, and a module of networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "factories.py").write_text(FACTORY)
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        save_picture(tmp_path / "photos" / name, seed=seed)
    return tmp_path


class Done(NamedTuple):
    """What a command left."""

    returncode: object
    stdout: str
    stderr: str


def command(*arguments: object) -> Done:
    """Run a command in this process, which is faster than to import torch again."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", ["camlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
    return Done(exit_.value.code, output.getvalue(), errors.getvalue())


def process(*arguments: object) -> Done:
    """Run a command as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "camlib", *map(str, arguments)], capture_output=True, text=True, env=environment()
    )
    return Done(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(camlib.__file__).parents[1]), "COLUMNS": "100"}


def index(out: Path) -> list[dict[str, str]]:
    with (out / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_explain_writes_overlays_maps_heatmaps_a_table_a_manifest_and_a_page(folder):
    out = folder / "out"
    done = process(
        "explain", "photos", "--model", "factories:small", "--target", "dog", "--heatmaps", "--report", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "3 explained, 0 failed" in done.stdout
    assert "method: grad_cam, because" in done.stderr
    rows = index(out)
    assert [row["names"] for row in rows] == ["dog"] * 3
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    for row in rows:
        assert np.asarray(Image.open(out / row["overlay"])).shape == (100, 150, 3)
        with np.load(out / row["map"], allow_pickle=False) as arrays:
            assert arrays["map"].shape == (2, 2)
    heatmaps = sorted((out / "heatmaps").iterdir())
    assert [cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype for path in heatmaps] == [np.uint16] * 3
    assert (out / "report.html").read_text().count("<article") == 3
    for line in (out / "manifest.jsonl").read_text().splitlines():
        json.loads(line)


def test_the_maps_are_those_of_the_library_and_lie_where_the_crop_was(folder):
    out = folder / "out"
    arguments = ("--model", "factories:small", "--method", "layer_cam", "--target", 1, "--heatmaps", "-q", "--out", out)
    assert command("explain", "photos/a.png", *arguments).returncode == 0
    loaded = load("factories:small")
    picture = Image.fromarray(camlib.read_image("photos/a.png"))
    explanation = camlib.LayerCAM(loaded.model)(loaded.transforms(picture)[None], 1)
    (row,) = camlib.open_run(out)
    torch.testing.assert_close(row.map, explanation.maps[0])
    drawn = cv2.imread(str(next((out / "heatmaps").iterdir())), cv2.IMREAD_UNCHANGED) / 65535
    assert not drawn[:, :25].any()
    assert not drawn[:, 125:].any()
    expected = explanation.heatmaps((100, 100))[0].numpy()
    assert np.abs(drawn[:, 25:125] - expected).max() < 0.02


def test_several_classes_have_an_overlay_each_and_share_a_page(folder):
    out = folder / "out"
    done = command(
        "explain", "photos", "--model", "factories:small", "--target", "top2", "--report", "-q", "--out", out
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert all(len(row["overlay"].split()) == 2 for row in index(out))
    assert "class 2 of 2" in (out / "report.html").read_text()


def test_pictures_that_fail_are_listed_with_the_reason_and_the_others_are_explained(folder):
    (folder / "photos" / "bad.png").write_bytes(b"no picture")
    (folder / "photos" / "empty.png").touch()
    done = process("explain", "photos", "--model", "factories:small", "--out", "out")
    assert done.returncode == 1
    assert "3 explained, 2 failed" in done.stdout
    assert re.findall(r"^failed: photos/(\w+)\.png: .+$", done.stderr, re.MULTILINE) == ["bad", "empty"]
    assert [row["path"] for row in index(folder / "out") if row["error"]] == ["photos/bad.png", "photos/empty.png"]


def test_a_file_without_permission_is_listed(folder):
    unreadable = folder / "photos" / "secret.png"
    save_picture(unreadable)
    unreadable.chmod(0)
    if os.access(unreadable, os.R_OK):  # root reads everything: a folder in its place cannot be read by anybody
        unreadable.unlink()
        unreadable.symlink_to(folder / "nowhere.png")
    done = command("explain", "photos", "--model", "factories:small", "--out", "out")
    assert done.returncode == 1
    assert re.search(r"^failed: photos/secret\.png: .*cannot be opened", done.stderr, re.MULTILINE)


def test_where_every_picture_fails_the_status_is_1(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    done = command("explain", "bad.png", "--model", "factories:small", "--out", "out")
    assert done.returncode == 1
    assert "0 explained, 1 failed" in done.stdout


HOSTILE = [
    b"two\nlines.png", b"=cmd.png", b"<script>alert(1)<.png", b"\xff\xfe.png", b"-rf.png", b"a b'\"$(touch x).png",
    b"\x1b[31mred.png", "k\u00e4tzchen \U0001f431.png".encode(),
]  # fmt: skip


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses names that are not UTF-8")
def test_hostile_names_are_names(folder):
    for name in HOSTILE:
        save_picture(os.fsencode(folder / "photos") + b"/" + name)
    save_picture(b"photos/not\x1bread.png")
    Path("photos/broken\x1b[2J\nname.png").write_bytes(b"no picture")
    out = folder / "out"
    done = process("explain", "photos", "--model", "factories:small", "--report", "--out", out)
    assert done.returncode == 1, done.stderr
    assert f"{len(HOSTILE) + 4} explained, 1 failed" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\x1b[2J" not in done.stderr
    assert r"failed: photos/broken\x1b[2J\nname.png" in done.stderr
    assert "<script>alert(1)" not in (out / "report.html").read_text()
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert all(out in path.parents or path.parent.name in ("photos", "__pycache__") or path.suffix == ".py"
               for path in written)  # fmt: skip
    assert len(camlib.open_run(out)) == len(HOSTILE) + 4


def test_a_run_goes_on_and_another_command_does_not_overwrite_it(folder):
    arguments = ("explain", "photos", "--model", "factories:small", "--out", "out")
    assert command(*arguments).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "maps").iterdir()}
    assert "3 explained" in command(*arguments).stdout
    after = {path: path.stat().st_mtime_ns for path in (folder / "out" / "maps").iterdir()}
    assert after == before
    other = command(*arguments, "--target", "owl")
    assert other.returncode == 2
    assert "target" in other.stderr


def test_random_weights_are_the_same_each_time_so_that_a_run_goes_on():
    first, second = (load(NETWORK, "none").model.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_loading_draws_no_random_numbers_of_the_caller():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(NETWORK, "none")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a single process")
def test_ctrl_c_ends_with_130_after_the_batch_and_the_same_command_goes_on(folder):
    for number in range(30):
        save_picture(folder / "photos" / f"{number:02}.png", seed=number)
    arguments = ["explain", "photos", "--model", "factories:slow", "--method", "grad_cam", "--batch-size", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "camlib", *arguments, "--out", "out"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "out" / "maps").is_dir() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert 0 < len(camlib.open_run("out")) < 33
    again = command(*arguments, "--out", "out")
    assert again.returncode == 0, again.stderr
    assert "33 explained" in again.stdout


WRONG = {
    "no command": ([], "Usage"),
    "an unknown command": (["explane"], "explane"),
    "no model": (["explain", "photos", "--out", "out"], "--model"),
    "no library": (["explain", "photos", "--model", "resnet18", "--out", "out"], "did you mean torchvision:resnet18"),
    "no network": (["explain", "photos", "--model", "torchvision:resnt18", "--out", "out"], "torchvision:resnet18"),
    "no class": (["explain", "photos", *RANDOM, "--target", "tabbi", "--out", "out"], "did you mean 'tabby'"),
    "a class too far": (["explain", "photos", *RANDOM, "--target", "1000", "--out", "out"], "1000"),
    "no picture": (["explain", "nowhere", *RANDOM, "--out", "out"], "nowhere does not exist"),
    "no method": (["explain", "photos", *RANDOM, "--method", "grad_cm", "--out", "out"], "did you mean 'grad_cam'"),
    "no layer": (["explain", "photos", *RANDOM, "--layer", "layer5", "--out", "out"], "layer5"),
    "no colormap": (["explain", "photos", *RANDOM, "--colormap", "turbu", "--out", "out"], "turbo"),
    "no opacity": (["explain", "photos", *RANDOM, "--alpha", "2", "--out", "out"], "--alpha"),
    "no precision": (["explain", "photos", *RANDOM, "--precision", "int8", "--out", "out"], "int8"),
    "no device": (["explain", "photos", *RANDOM, "--device", "cuda:99", "--out", "out"], "--device cuda:99"),
    "no storage": (["explain", "photos", *RANDOM, "--storage", "zip", "--out", "out"], "webdataset"),
    "no weights": (["explain", "photos", "--model", NETWORK, "--weights", "no.pt", "--out", "out"], "no.pt cannot be"),
    "no transforms": (
        ["explain", "photos", "--model", "factories:bare", "--out", "out"],
        "factories:bare are not known",
    ),
    "no factory": (["explain", "photos", "--model", "factories:none", "--out", "out"], "no 'none'"),
    "no table": (["evaluate", "photos", *RANDOM, "--out", "table.txt"], ".csv or .json"),
    "no size": (["layers", NETWORK, "--size", "big"], "--size"),
    "several pictures": (["compare", "photos", *RANDOM, "--out", "figure.png"], "several pictures"),
}


def test_usage_errors_end_a_process_with_2():
    assert process("explain", "--nonsense").returncode == 2


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_with_2_and_say_what_is_wrong(name, folder):
    arguments, message = WRONG[name]
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split()) + done.stdout
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists()


def test_a_pickled_model_is_refused_and_its_code_does_not_run(folder):
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(folder / "owned"),)

    torch.save(Payload(), folder / "model.pt")
    done = process("explain", "photos", "--model", NETWORK, "--weights", "model.pt", "--out", "out")
    assert done.returncode == 2
    assert "torch.save(model.state_dict()" in done.stderr
    assert not (folder / "owned").exists()
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "whole.pt")
    whole = command("explain", "photos", "--model", NETWORK, "--weights", "whole.pt", "--out", "out")
    assert whole.returncode == 2
    assert "whole.pt holds pickled objects" in whole.stderr


def test_weights_of_a_file_are_used(folder):
    torch.manual_seed(3)
    trained = torchvision.models.resnet18(num_classes=2)
    save_file(trained.state_dict(), folder / "trained.safetensors")
    (folder / "names.txt").write_text("benign\nmalignant\n")
    done = command(
        *("explain", "photos", "--model", NETWORK, "--weights", "trained.safetensors", "--classes", "names.txt"),
        *("--target", "malignant", "--out", "out"),
    )
    assert done.returncode == 0, done.stderr
    picture = Image.fromarray(camlib.read_image("photos/a.png"))
    inputs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()(picture)[None]
    first = camlib.open_run("out")[0]
    torch.testing.assert_close(first.map, camlib.GradCAM(trained.eval())(inputs, 1).maps[0])
    assert index(folder / "out")[0]["names"] == "malignant"


def test_half_precision_changes_the_map_little(folder):
    for precision in ("float32", "bfloat16"):
        arguments = ("--model", "factories:small", "--target", "1", "--precision", precision, "--out", precision)
        assert command("explain", "photos", *arguments).returncode == 0
    for exact, short in zip(camlib.open_run("float32"), camlib.open_run("bfloat16"), strict=True):
        assert not torch.equal(exact.map, short.map)
        torch.testing.assert_close(exact.map, short.map, rtol=0, atol=0.1 * float(exact.map.abs().max()))


def test_layers_marks_the_layer_that_is_found():
    done = CliRunner().invoke(app, ["layers", NETWORK])
    assert done.exit_code == 0
    assert re.findall(r"^\* (\S+) +\S+ +(.*)$", done.stdout, re.MULTILINE) == [("layer4", "1 x 512 x 7 x 7")]


def test_methods_lists_every_method():
    done = CliRunner().invoke(app, ["methods"])
    assert done.exit_code == 0
    assert set(camlib.METHODS) == {line.split()[0] for line in done.stdout.splitlines()[1:]}


def test_compare_draws_a_figure(folder):
    done = command(
        *("compare", "photos/a.png", "--model", "factories:small", "--methods", "grad_cam, layer_cam"),
        *("--target", "owl", "--out", "figure.png"),
    )
    assert (done.returncode, done.stdout) == (0, "figure.png\n"), done.stderr
    assert min(camlib.read_image("figure.png").shape[:2]) > 100


def test_evaluate_writes_a_table_and_masks_follow_the_crop(folder):
    (folder / "masks").mkdir()
    (folder / "photos" / "bad.png").write_bytes(b"no picture")
    mask = np.zeros((100, 150), np.uint8)
    mask[:, :25] = 255  # only what the network did not see
    for name in "abc":
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    arguments = ("--model", "factories:small", "--methods", "layer_cam", "--masks", "masks", "-q")
    done = command("evaluate", "photos", *arguments, "--metrics", "pointing_game,sparseness", "--out", "table.json")
    assert done.returncode == 1, done.stderr
    assert "failed: photos/bad.png" in done.stderr
    table = json.loads((folder / "table.json").read_text())
    assert table["images"] == 3
    (first, *_) = table["values"]
    assert first["pointing_game"] == [None] * 3  # an empty mask has no value
    assert all(0 <= value <= 1 for value in first["sparseness"])


def test_doctor_finds_nothing_wrong_here():
    done = process("doctor")
    assert done.returncode == 0, done.stderr
    assert f"torch            {torch.__version__.partition('+')[0]}" in done.stdout
    assert done.stdout.rstrip().endswith("an explanation works")


def test_doctor_explains_a_mismatch(monkeypatch):
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.16.2" if name == "torchvision" else installed(name))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert f"torchvision 0.16.2 was built for torch 2.1, and torch {installed('torch')} is installed" in done.output
    assert "pip install --upgrade torch torchvision" in done.output


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "fits"),
    [("2.4.0", "0.19.0", True), ("2.4.1+cu121", "0.19.1+cu121", True), ("2.14.1", "0.29.1", True),
     ("2.5.0", "0.19.0", False), ("2.4.0", "0.20.0", False)],
)  # fmt: skip
def test_pairs_of_torch_and_torchvision(torch_version, torchvision_version, fits):
    assert (doctor.mismatch(torch_version, torchvision_version) == []) is fits


def test_a_torchvision_that_does_not_work_is_a_problem(monkeypatch):
    def broken(*arguments: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "torchvision does not work: operator torchvision::nms does not exist; install both in one" in done.output


@pytest.mark.parametrize("name", ["explain", "layers", "methods", "compare", "evaluate", "doctor"])
def test_help_teaches_by_example(name):
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"^ +camlib {name}", done.stdout, re.MULTILINE)


def test_completion_is_offered(monkeypatch):
    names = {
        option
        for option in re.findall(r"--[\w-]+", CliRunner().invoke(app, ["--help"]).stdout)
        if "completion" in option
    }
    assert names == {"--install-completion", "--show-completion"}


def test_the_version_is_that_of_the_library():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"camlib {camlib.__version__}\n"


def test_help_loads_neither_torch_nor_pictures():
    code = """
import sys
from camlib.cli.app import app
sys.argv = ["camlib", "--help"]
try:
    app()
finally:
    print(sorted({"torch", "cv2", "torchvision"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.splitlines()[-1] == "[]"


def test_names_of_too_few_classes_stop_no_report(folder):
    out = folder / "out"
    done = command("explain", "photos", "-m", "factories:one_name", "-q", "--target", "top3", "--report", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "class 2" in (out / "report.html").read_text()
    assert {frozenset(row["names"].removeprefix("'").split("; ")) for row in index(out)} == {
        frozenset({"=cat", "class 1", "class 2"})
    }


def test_an_empty_folder_is_wrong_use(folder):
    (folder / "empty").mkdir()
    done = command("explain", "empty", "-m", "factories:small", "-q", "-o", folder / "out")
    assert (done.returncode, "empty holds no pictures" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("device", ["meta", "nonsense", "", "cpu:x"])
def test_a_device_that_cannot_be_used_is_wrong_use(device, folder):
    done = command("explain", "photos", "-m", "factories:small", "--device", device, "-o", folder / "out")
    assert (done.returncode, "--device" in done.stderr) == (2, True), done.stderr


def test_the_table_holds_no_formulas(folder, monkeypatch):
    monkeypatch.chdir(folder / "photos")
    monkeypatch.syspath_prepend(folder)
    for name in ("=1+1.png", "-1+1.png", "+1.png", "@sum.png"):
        save_picture(Path(name))
    out = folder / "out"
    done = command("explain", "./=1+1.png", "./-1+1.png", "./+1.png", "./@sum.png", "-m", "factories:one_name", "-q",
                   "--target", "0", "-o", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["path"] for row in index(out)] == ["'=1+1.png", "'-1+1.png", "'+1.png", "'@sum.png"]
    assert {row["names"] for row in index(out)} == {"'=cat"}
    assert all(np.isfinite(float(row["scores"])) for row in index(out))  # a minus sign stays as it is
