"""``run.py predict IMAGES...``: new images predicted and explained by a trained network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

import camlib
from pneumonia import NOTICE, InputError
from pneumonia.augment import MARGIN
from pneumonia.calibration import probabilities_of
from pneumonia.checkpoint import read_checkpoint
from pneumonia.data import CLASSES, ENDINGS
from pneumonia.network import Network
from pneumonia.options import Parser, add_device, make_folder
from pneumonia.results import write_json

AT_ONCE = 16
"""Images in memory at the same time."""


@dataclass(frozen=True)
class PredictedImage:
    """What was predicted for one image."""

    image: str
    probability: float
    decision: str
    overlay: str
    heatmap_is_empty: bool

    def __str__(self) -> str:
        empty = "  (empty heatmap: no evidence for the decision at this layer)" if self.heatmap_is_empty else ""
        return f"  {self.probability:6.3f}  {self.decision:10} {self.image}{empty}"


def parser() -> Parser:
    """Return the parser of the command."""
    p = Parser(
        prog="run.py predict",
        description=f"Predict and explain new images with a checkpoint that run.py has trained. {NOTICE}",
    )
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="JPEG, PNG or DICOM files, or folders of them")
    p.add_argument("--checkpoint", type=Path, default=Path("runs/pneumonia/checkpoint.pt"), help="default: %(default)s")
    p.add_argument("--method", default="grad_cam", metavar="NAME", help="method of camlib (default: %(default)s)")
    p.add_argument("--layer", help="layer to explain (default: the one that the run chose)")
    add_device(p)
    p.add_argument("--output", type=Path, default=Path("runs/predictions"), metavar="DIR", help="default: %(default)s")
    return p


def predict(arguments: Sequence[str]) -> int:
    """Predict and explain every image; write an overlay of each at its own resolution, and ``predictions.json``.

    Returns:
        The exit status: 2 if no image can be read.
    """
    options = parser().parse_args(arguments)
    checkpoint = read_checkpoint(options.checkpoint)
    decision = checkpoint.decision
    if decision is None:
        raise InputError(
            f"{options.checkpoint} has no decision threshold yet: the run was not finished; run.py --resume finishes it"
        )
    files, folder = list_files(options.images), make_folder(options.output)
    network = Network(checkpoint.model.to(options.device), checkpoint.recipe.size, options.device)
    layer = options.layer or decision.layer
    cam = camlib.create(options.method, network.model, layer=layer)
    names, side = unique_names(files), round(network.size * MARGIN)
    rows: list[PredictedImage] = []
    skipped: list[str] = []
    for batch in _batches(files, skipped):
        resized = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for _, picture in batch]
        pixels = torch.stack([torch.from_numpy(picture) for picture in resized])
        probabilities = probabilities_of(network.margins(pixels).double().numpy(), decision.temperature).tolist()
        called = [int(probability >= decision.threshold) for probability in probabilities]
        explanation = cam(network.inputs(pixels), called)
        for (path, picture), one, probability, label in zip(batch, explanation, probabilities, called, strict=True):
            Image.fromarray(one.overlays([picture])[0]).save(folder / names[path])
            empty = bool(one.degenerate.item())
            rows.append(PredictedImage(str(path), probability, CLASSES[label], names[path], empty))
    results = {
        "notice": NOTICE,
        "model": fingerprint(network.model),
        "threshold": decision.threshold,
        "threshold_rule": decision.rule,
        "temperature": decision.temperature,
        "method": options.method,
        "layer": layer,
        "predictions": rows,
        "skipped": skipped,
    }
    write_json(folder / "predictions.json", results)
    print(f"Probability of PNEUMONIA; decision threshold {decision.threshold:.3f} ({decision.rule})\n")
    print(*rows, sep="\n")
    print(f"\n{_counted(len(rows), 'overlay')} and predictions.json in {folder}. {NOTICE}")
    if skipped:
        print(f"\n{_counted(len(skipped), 'file')} skipped:", *skipped, sep="\n  ")
    return 0 if rows else 2


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the weights."""
    weights = b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:12]


def list_files(paths: Sequence[Path]) -> list[Path]:
    """List the files, including those in folders, each once.

    Raises:
        InputError: a path does not exist, or a folder holds no images.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no image {path}; give files, or folders that hold some")
        inside = [path]
        if not path.is_file():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in ENDINGS)
        if not inside:
            raise InputError(
                f"{path} holds no JPEG, PNG or DICOM images; files with another ending must be named one by one"
            )
        files += inside
    return list(dict.fromkeys(files))


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name the overlay of each file after the file; equal names get numbers.

    Example:
        >>> list(unique_names([Path("a/x.png"), Path("b/x.jpeg"), Path("y.dcm")]).values())
        ['x-overlay.png', 'x-2-overlay.png', 'y-overlay.png']
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        number, stem = 1, path.stem
        while stem.casefold() in taken:  # some file systems ignore case
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        names[path] = f"{stem}-overlay.png"
    return names


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _batches(files: Sequence[Path], skipped: list[str]) -> Iterator[list[tuple[Path, NDArray[Any]]]]:
    """Read the files in batches; those that cannot be read are added to ``skipped``."""
    batch: list[tuple[Path, NDArray[Any]]] = []
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
