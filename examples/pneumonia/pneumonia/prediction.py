"""``run.py predict IMAGES... --checkpoint FILE``: new images explained by a trained network."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from tqdm import tqdm

import camlib
from pneumonia import NOTICE
from pneumonia.augment import MARGIN, prepare
from pneumonia.calibration import probabilities_of
from pneumonia.data import CLASSES, ENDINGS
from pneumonia.errors import InputError
from pneumonia.model import build, read_checkpoint
from pneumonia.options import choose_device, make_folder
from pneumonia.train import margins

AT_ONCE = 16
"""Images in memory together."""


@dataclass(frozen=True)
class Reader:
    """A trained network, and how it comes to a decision."""

    model: nn.Module
    size: int
    threshold: float
    temperature: float
    rule: str
    layer: str
    fingerprint: str
    """Of the weights."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="run.py predict",
        description=f"Predict and explain new images with a checkpoint that run.py has trained. {NOTICE}",
    )
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG or DICOM files, or folders of them")
    p.add_argument("--checkpoint", type=Path, default=Path("runs/pneumonia/checkpoint.pt"), help="default: %(default)s")
    p.add_argument("--method", default="grad_cam", metavar="NAME", help="method of camlib (default: %(default)s)")
    p.add_argument("--layer", help="default: the one that the run chose")
    p.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    p.add_argument("--output", type=Path, default=Path("runs/predictions"), help="default: %(default)s")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict; return the exit status: 2 for bad input or if no image could be read, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        return predict(options)
    except (InputError, camlib.CamlibError) as error:
        print(f"run.py predict: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py predict: stopped; the overlays drawn so far are kept", file=sys.stderr)
        return 130


def predict(options: argparse.Namespace) -> int:
    """Predict and explain every image; write an overlay of each, at its own resolution, and ``predictions.json``."""
    device, reader = choose_device(options.device), load_reader(options.checkpoint)
    files, folder = list_files(options.images), make_folder(options.output)
    model = reader.model.to(device)
    cam = camlib.create(options.method, model, layer=options.layer or reader.layer)
    names = unique_names(files)
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for batch in _batches(files, skipped):
        side = round(reader.size * MARGIN)
        pixels = torch.stack(
            [torch.from_numpy(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)) for _, picture in batch]
        )
        views = margins(model, pixels, reader.size, device=device).double().numpy()
        probabilities = probabilities_of(views, reader.temperature)
        called = [int(probability >= reader.threshold) for probability in probabilities]
        explanation = cam(prepare(pixels.to(device), reader.size), called)
        overlays = [one.overlays([picture])[0] for one, (_, picture) in zip(explanation, batch, strict=True)]
        for (path, _), overlay, probability, label, empty in zip(
            batch, overlays, probabilities, called, explanation.degenerate.tolist(), strict=True
        ):
            write_png(overlay, folder / names[path])
            rows.append(
                {
                    "image": str(path),
                    "probability": float(probability),
                    "decision": CLASSES[label],
                    "overlay": names[path],
                    "heatmap_is_empty": empty,
                }
            )
    results = {
        "notice": NOTICE,
        "model": reader.fingerprint,
        "threshold": reader.threshold,
        "threshold_rule": reader.rule,
        "temperature": reader.temperature,
        "method": options.method,
        "layer": options.layer or reader.layer,
        "predictions": rows,
        "skipped": skipped,
    }
    (folder / "predictions.json").write_text(json.dumps(results, indent=1) + "\n")
    print_rows(results, folder)
    return 0 if rows else 2


def load_reader(path: Path) -> Reader:
    """Return the network of a checkpoint with how it decides.

    Raises:
        InputError: there is none, or it is not one of a run that has come to its end.
    """
    state = read_checkpoint(path)
    if "model" in state and "decision" not in state:
        raise InputError(
            f"{path} holds no decision threshold yet: the run was not finished; run.py --resume finishes it"
        )
    model = build("none")[0].eval()
    try:
        model.load_state_dict(state["model"])
        decision = state["decision"]
        size, threshold, temperature = (
            int(state["recipe"]["size"]), float(decision["threshold"]), float(decision["temperature"])
        )  # fmt: skip
        rule, layer = str(decision["rule"]), str(decision["layer"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is not a checkpoint of run.py ({reason}); train one with run.py") from error
    if not (0 <= threshold <= 1 and 0 < temperature < math.inf and size >= 32):
        raise InputError(
            f"{path} holds a threshold of {threshold}, a temperature of {temperature} and a size of {size}; expected "
            "0 to 1, above 0, and at least 32: train it again"
        )
    weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    return Reader(model, size, threshold, temperature, rule, layer, weights[:12])


def list_files(paths: Sequence[Path]) -> list[Path]:
    """List the files, those in folders included, each once.

    Raises:
        InputError: a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no image {path}; give files, or folders that hold some")
        inside = (
            [path]
            if path.is_file()
            else sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in ENDINGS)
        )
        if not inside:
            raise InputError(f"{path} holds no JPEG, PNG or DICOM images; name files without such an ending one by one")
        files += inside
    return list(dict.fromkeys(files))


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name an overlay for each file, after it; files of the same name get numbers.

    Example:
        >>> list(unique_names([Path("a/x.png"), Path("b/x.jpeg"), Path("y.dcm")]).values())
        ['x-overlay.png', 'x-2-overlay.png', 'y-overlay.png']
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        number, stem = 1, path.stem
        while stem.casefold() in taken:  # some file systems do not tell capitals apart
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        names[path] = f"{stem}-overlay.png"
    return names


def write_png(picture: Any, path: Path) -> None:
    """Write an RGB picture (H, W, 3)."""
    from PIL import Image

    Image.fromarray(picture).save(path)


def print_rows(results: dict[str, Any], folder: Path) -> None:
    """Print a line for each image, and at the end what was skipped."""
    print(f"probability of PNEUMONIA, called so at {results['threshold']:.3f} or above ({results['threshold_rule']})\n")
    for row in results["predictions"]:
        empty = "  (the heatmap is empty: no evidence at this layer)" if row["heatmap_is_empty"] else ""
        print(f"  {row['probability']:6.3f}  {row['decision']:10} {row['image']}{empty}")
    print(f"\n{len(results['predictions'])} overlays and predictions.json in {folder}. {NOTICE}")
    if results["skipped"]:
        print(f"\n{len(results['skipped'])} files were skipped:", *results["skipped"], sep="\n  ")


def _batches(files: Sequence[Path], skipped: list[str]) -> Iterator[list[tuple[Path, Any]]]:
    """Read the files, a few at a time; those that cannot be read are skipped, and noted."""
    batch: list[tuple[Path, Any]] = []
    for path in tqdm(files, desc="predicting", unit="image", leave=False):
        try:
            batch.append((path, camlib.imaging.read_gray(path)))
        except camlib.CamlibError as error:
            skipped.append(f"{path}: {error}")
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
