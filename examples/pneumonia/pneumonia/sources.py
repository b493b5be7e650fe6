"""Where the pictures come from, and which of them train, validate and test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

from pneumonia import phantoms
from pneumonia.data import Pictures, class_folders, concatenate, list_images, load
from pneumonia.duplicates import notes_of, with_joined_patients, without_copies_of
from pneumonia.errors import InputError


@dataclass(frozen=True)
class Splits:
    """What trains, what chooses the threshold, and what is looked at once, at the end."""

    training: Pictures
    validation: Pictures
    test: Pictures
    notes: list[str]
    """What was done and found, for the log and the results."""


KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"

Divide = Callable[[Pictures, float, int], tuple[Pictures, Pictures]]


def by_patient(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split off a share of the pictures, a patient's all on one side; classes are close to their shares.

    Of many random splits by patient the one with the class balance nearest to the whole is taken.

    Raises:
        InputError: there are too few patients.
    """
    labels = pictures.labels.numpy()
    if len(set(pictures.patients)) < 2 / share:
        raise InputError(f"too few patients to split by: {len(set(pictures.patients))}; give more, or --split image")
    splitter = GroupShuffleSplit(n_splits=20, test_size=share, random_state=seed)
    candidates = list(splitter.split(labels, labels, pictures.patients))

    def imbalance(split: tuple[np.ndarray, np.ndarray]) -> float:
        return float(abs(labels[split[1]].mean() - labels.mean()) + abs(len(split[1]) / len(labels) - share))

    kept, taken = min(candidates, key=imbalance)
    return pictures.take(kept), pictures.take(taken)


def by_image(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split off a share of the pictures at random, classes in proportion: the original notebook's way.

    Raises:
        InputError: there are too few images.
    """
    if min(pictures.labels.bincount(minlength=2)) < 2 / share:
        raise InputError(f"too few images to split: {len(pictures)}; give more")
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    kept, taken = next(splitter.split(pictures.labels, pictures.labels))
    return pictures.take(kept), pictures.take(taken)


DIVISIONS: dict[str, Divide] = {"patient": by_patient, "image": by_image}
"""The ways to split, by the name ``--split`` takes."""


def from_phantoms(count: int, size: int, seed: int) -> Splits:
    """Draw phantoms: ``count`` to train with, a quarter of that to validate and a quarter to test."""
    drawn = phantoms.generate(count + 2 * (count // 4), size=size, seed=seed)
    names = [f"phantom {index}" for index in range(len(drawn.images))]
    pictures = Pictures(drawn.images, drawn.labels, names, names, drawn.masks)
    ends = [0, count, count + count // 4, len(names)]
    training, validation, test = (pictures.take(range(a, b)) for a, b in itertools.pairwise(ends))
    return Splits(training, validation, test, ["phantoms: drawings, not medical images"])


def from_folder(folder: Path, size: int, divide: Divide, seed: int) -> Splits:
    """Read the Kaggle layout ``{train,val,test}/{NORMAL,PNEUMONIA}``, or one folder with the two class folders.

    The test folder is kept apart; ``train`` and ``val`` are joined and divided anew, nine to one. One folder is
    divided into 70% training, 15% validation and 15% test. Either may be nested once or twice.

    Raises:
        InputError: no such folder, neither layout in it, or too many unreadable images.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; give --data the folder that holds train/ and test/, or NORMAL/ and "
            "PNEUMONIA/"
        )
    root = _root(folder)
    if class_folders(root):
        everything = with_joined_patients(load(list_images(root), size, root.name))
        rest, test = divide(everything, 0.15, seed)
        training, validation = divide(rest, 0.15 / 0.85, seed)
        unreadable = everything.unreadable
        notes = [f"{len(everything)} images of {folder} divided 70/15/15", *notes_of(everything, root.name)]
    else:
        names = [name for name in ("train", "val") if any(path.is_file() for path in (root / name).rglob("*.*"))]
        read = concatenate([load(list_images(root / name), size, name) for name in names])
        test = load(list_images(root / "test"), size, "test")
        pool = with_joined_patients(without_copies_of(read, test))
        training, validation = divide(pool, 0.1, seed)
        unreadable = read.unreadable + test.unreadable
        notes = [f"{len(pool)} images of {' and '.join(names)} divided 90/10; test kept apart"]
        notes += [*notes_of(pool, " and ".join(names)), *notes_of(test, "test")]
        if len(pool) < len(read):
            notes.append(f"left out of training: {len(read) - len(pool)} images that are in test as well")
        notes += ["numbers of patients recur between the official folders without being the same child"]
    for name, part in (("training", training), ("validation", validation), ("test", test)):
        if len(set(part.labels.tolist())) < 2:
            raise InputError(f"too few images in {folder}: {name} has {len(part)}, of one class; give more images")
    notes += [_overlap(training, validation, test)]
    notes += [f"skipped {note}" for note in unreadable]
    return Splits(training, validation, test, notes)


def _root(folder: Path) -> Path:
    """The folder that holds the layout: ``folder`` itself, or one nested in it as the archive unpacks."""
    candidates = [
        folder,
        *sorted(p for p in folder.glob("*") if p.is_dir()),
        *sorted(p for p in folder.glob("*/*") if p.is_dir()),
    ]
    for candidate in candidates:
        if candidate.name == "__MACOSX" or candidate.parent.name == "__MACOSX":
            continue
        if (candidate / "train").is_dir() and (candidate / "test").is_dir():
            return candidate
        of_a_split = candidate != folder and candidate.name in ("train", "val", "test")
        if not of_a_split and class_folders(candidate):
            return candidate
    raise InputError(
        f"{folder} holds no images in a known layout; expected train/ and test/ with NORMAL/ and PNEUMONIA/ in each, "
        f"or the two class folders; found {', '.join(sorted(p.name for p in folder.iterdir())[:5]) or 'nothing'}"
    )


def _overlap(training: Pictures, validation: Pictures, test: Pictures) -> str:
    """How many patients, as far as the file names tell, are on both sides of a split."""
    known, chosen, kept = (set(part.patients) for part in (training, validation, test))
    return (
        f"patients by file name: {len(known)} train, {len(chosen)} validate, {len(kept)} test; on both sides: "
        f"{len(known & chosen)} of train and validation, {len((known | chosen) & kept)} of these and test"
    )


def from_kaggle(size: int, divide: Divide, seed: int) -> Splits:
    """Read the Kaggle data set from kagglehub's cache, or have kagglehub download it into there.

    The cache is looked into first, because kagglehub itself asks Kaggle for the current version even then.

    Raises:
        InputError: it is not cached, and kagglehub is not installed or cannot download it.
    """
    folder = _cached_by_kagglehub()
    if folder is None:
        try:
            import kagglehub
        except ImportError as error:
            raise InputError("--data kaggle needs the package kagglehub: install the extra kaggle") from error
        try:
            folder = Path(kagglehub.dataset_download(KAGGLE_DATASET))
        except Exception as error:  # kagglehub passes on whatever its network library raises
            raise InputError(
                "the Kaggle data set is not cached and cannot be downloaded (no network, or no Kaggle access): "
                f"{type(error).__name__}; download it elsewhere and give --data FOLDER"
            ) from error
    return from_folder(folder, size, divide, seed)


def _cached_by_kagglehub() -> Path | None:
    """The newest version that kagglehub's cache holds completely, or None."""
    cache = Path(os.environ.get("KAGGLEHUB_CACHE", Path.home() / ".cache" / "kagglehub"))
    dataset = cache / "datasets" / KAGGLE_DATASET
    complete = [int(marker.stem) for marker in dataset.glob("*.complete") if marker.stem.isdecimal()]
    return dataset / "versions" / str(max(complete)) if complete else None


def from_medmnist(size: int) -> Splits:
    """Read PneumoniaMNIST at 224 px with its own splits: from its ``.npz`` where cached, or through medmnist.

    The cache is the folder ``$MEDMNIST_ROOT``, or ``.medmnist`` in the home folder.

    Raises:
        InputError: it is not cached, and medmnist is not installed or cannot download it; or the file is damaged.
    """
    folder = Path(os.environ.get("MEDMNIST_ROOT", Path.home() / ".medmnist"))
    path = folder / "pneumoniamnist_224.npz"
    if not path.exists():
        try:
            import medmnist
        except ImportError as error:
            raise InputError(f"{path} is not there; put it there, or install the extra medmnist") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            medmnist.PneumoniaMNIST(split="train", size=224, download=True, root=str(folder))
        except Exception as error:  # medmnist passes on whatever its network library raises
            raise InputError(
                f"PneumoniaMNIST is not in {folder} and cannot be downloaded: {type(error).__name__}"
            ) from error
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            parts = [_medmnist_part(file, name, size) for name in ("train", "val", "test")]
    except Exception as error:  # a damaged file raises what zipfile, zlib or NumPy please
        raise InputError(f"{path} is not PneumoniaMNIST as medmnist saves it: {error}") from error
    training, validation, test = parts
    return Splits(
        training, validation, test, [f"PneumoniaMNIST with its own splits; it names no patients, from {path.name}"]
    )


def _medmnist_part(file: Any, name: str, size: int) -> Pictures:
    images, labels = file[f"{name}_images"], file[f"{name}_labels"].flatten()
    known = sorted(set(labels.tolist()))
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels) or known != [0, 1]:
        raise ValueError(f"{name} has {images.dtype} images {images.shape} and labels {labels.shape} of {known}")
    pixels = [torch.from_numpy(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)) for image in images]
    names = [f"{name} {index}" for index in range(len(images))]
    return Pictures(torch.stack(pixels), torch.from_numpy(labels).long(), names, names)
