"""Where the pictures come from, and how they are split into training, validation and test."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit, train_test_split

from pneumonia import InputError, phantoms
from pneumonia.augment import MARGIN
from pneumonia.data import Pictures, class_folders, concatenate, list_images, load
from pneumonia.duplicates import notes_of, with_joined_patients, without_copies_of


@dataclass(frozen=True)
class Splits:
    """The images that train, those that choose the threshold, and those that are evaluated once, at the end."""

    training: Pictures
    validation: Pictures
    test: Pictures
    notes: list[str]
    """What was read and found, for the log and the report."""
    skipped: list[str] = field(default_factory=list)
    """Files that cannot be read, and why."""

    @property
    def fingerprint(self) -> str:
        """A hash of the names and labels that train and validate, which does not depend on where the folder is."""
        rows = [
            (Path(name).name, label)
            for part in (self.training, self.validation)
            for name, label in [*zip(part.names, part.labels.tolist(), strict=True), ("", -1)]
        ]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Source:
    """Which data set to read, how to split it, and how much of it to train on."""

    data: str = "phantoms"
    """phantoms, kaggle, medmnist, or a folder."""
    split: str = "patient"
    """A name in :data:`DIVISIONS`."""
    max_train: int | None = None
    """Train on this many random images only."""

    def read(self, size: int, seed: int) -> Splits:
        """Read the images at a working size a little above the input size of the network.

        Raises:
            InputError: there is no such data, or it cannot be used.
        """
        working, divide = round(size * MARGIN), DIVISIONS[self.split]
        if self.data == "phantoms":
            splits = from_phantoms(1120, working, seed)
        elif self.data == "kaggle":
            splits = from_kaggle(working, divide, seed)
        elif self.data == "medmnist":
            splits = from_medmnist(working)
        else:
            splits = from_folder(Path(self.data), working, divide, seed)
        if not self.max_train or self.max_train >= len(splits.training):
            return splits
        labels = splits.training.labels.numpy()
        chosen, _ = train_test_split(
            np.arange(len(labels)), train_size=self.max_train, stratify=labels, random_state=seed
        )
        fewer = splits.training.take(chosen)
        return replace(splits, training=fewer, notes=[*splits.notes, f"training on {len(fewer)} images only"])


KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"

Divide = Callable[[Pictures, float, int], tuple[Pictures, Pictures]]


def by_patient(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split off a share of the pictures, keeping all pictures of a patient on one side.

    Of 20 random splits it takes the one whose size and class balance are the nearest to those asked for.

    Raises:
        InputError: there are too few patients.
    """
    labels = pictures.labels.numpy()
    if len(set(pictures.patients)) < 2 / share:
        raise InputError(
            f"too few patients to split by: {len(set(pictures.patients))}; give more images, or --split image"
        )
    splitter = GroupShuffleSplit(n_splits=20, test_size=share, random_state=seed)
    candidates = list(splitter.split(labels, labels, pictures.patients))

    def imbalance(split: tuple[np.ndarray, np.ndarray]) -> float:
        return float(abs(labels[split[1]].mean() - labels.mean()) + abs(len(split[1]) / len(labels) - share))

    kept, taken = min(candidates, key=imbalance)
    return pictures.take(kept), pictures.take(taken)


def by_image(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """Split off a share of the pictures at random, keeping the class balance, as the original notebook did.

    Raises:
        InputError: there are too few images.
    """
    if min(pictures.labels.bincount(minlength=2)) < 2 / share:
        raise InputError(f"too few images to split: {len(pictures)}; give more images")
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    kept, taken = next(splitter.split(pictures.labels, pictures.labels))
    return pictures.take(kept), pictures.take(taken)


DIVISIONS: dict[str, Divide] = {"patient": by_patient, "image": by_image}
"""The ways to split, by the value of ``--split``."""


def from_phantoms(count: int, size: int, seed: int) -> Splits:
    """Draw phantoms: ``count`` for training, a quarter of that for validation and as many for the test."""
    drawn = phantoms.generate(count + 2 * (count // 4), size=size, seed=seed)
    names = [f"phantom {index}" for index in range(len(drawn.images))]
    pictures = Pictures(drawn.images, drawn.labels, names, names, drawn.masks)
    ends = [0, count, count + count // 4, len(names)]
    training, validation, test = (pictures.take(range(a, b)) for a, b in itertools.pairwise(ends))
    return Splits(training, validation, test, ["phantoms: drawings, not medical images"])


def from_folder(folder: Path, size: int, divide: Divide, seed: int) -> Splits:
    """Read the Kaggle layout ``{train,val,test}/{NORMAL,PNEUMONIA}``, or one folder with the two class folders.

    The test folder stays the test set; ``train`` and ``val`` are joined and split again, nine to one. One folder is
    split into 70% training, 15% validation and 15% test. Both layouts may be nested one or two folders deep.

    Raises:
        InputError: the folder does not exist, has neither layout, or has too many unreadable images.
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
        notes = [f"{len(everything)} images of {folder}, split 70/15/15", *notes_of(everything, root.name)]
    else:
        names = [name for name in ("train", "val") if any(path.is_file() for path in (root / name).rglob("*.*"))]
        read = concatenate([load(list_images(root / name), size, name) for name in names])
        test = load(list_images(root / "test"), size, "test")
        pool = with_joined_patients(without_copies_of(read, test))
        training, validation = divide(pool, 0.1, seed)
        unreadable = read.unreadable + test.unreadable
        notes = [f"{len(pool)} images of {' and '.join(names)} split 90/10; the test folder is the test set"]
        notes += [*notes_of(pool, " and ".join(names)), *notes_of(test, "test")]
        if len(pool) < len(read):
            notes.append(f"left out of training: {len(read) - len(pool)} images that are also in test")
        notes += ["the official folders use the same patient numbers for different children"]
    for name, part in (("training", training), ("validation", validation), ("test", test)):
        if len(set(part.labels.tolist())) < 2:
            raise InputError(f"too few images in {folder}: {name} has {len(part)} of one class only; give more images")
    notes += [_overlap(training, validation, test)]
    return Splits(training, validation, test, notes, unreadable)


def _root(folder: Path) -> Path:
    """The folder that holds the layout: ``folder`` itself, or one inside it, as the archive unpacks."""
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
    """Count the patients of each part, and those in two parts, as far as the file names identify patients."""
    known, chosen, kept = (set(part.patients) for part in (training, validation, test))
    return (
        f"patients by file name: {len(known)} in training, {len(chosen)} in validation, {len(kept)} in test; shared: "
        f"{len(known & chosen)} by training and validation, {len((known | chosen) & kept)} by these and test"
    )


def from_kaggle(size: int, divide: Divide, seed: int) -> Splits:
    """Read the Kaggle data set from kagglehub's cache, or let kagglehub download it.

    The cache comes first because kagglehub asks Kaggle for the current version even if the data set is cached.

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
        except Exception as error:  # kagglehub raises the errors of its network library
            raise InputError(
                "the Kaggle data set is not cached and cannot be downloaded (no network, or no Kaggle access): "
                f"{type(error).__name__}; download it elsewhere and give --data FOLDER"
            ) from error
    return from_folder(folder, size, divide, seed)


def _cached_by_kagglehub() -> Path | None:
    """The newest complete version in kagglehub's cache, or None."""
    cache = Path(os.environ.get("KAGGLEHUB_CACHE", Path.home() / ".cache" / "kagglehub"))
    dataset = cache / "datasets" / KAGGLE_DATASET
    complete = [int(marker.stem) for marker in dataset.glob("*.complete") if marker.stem.isdecimal()]
    return dataset / "versions" / str(max(complete)) if complete else None


def from_medmnist(size: int) -> Splits:
    """Read PneumoniaMNIST at 224 px with its own splits, from its cached ``.npz`` or through medmnist.

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
            raise InputError(f"there is no {path}; put it there, or install the extra medmnist") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            medmnist.PneumoniaMNIST(split="train", size=224, download=True, root=str(folder))
        except Exception as error:  # medmnist raises the errors of its network library
            raise InputError(
                f"PneumoniaMNIST is not in {folder} and cannot be downloaded: {type(error).__name__}"
            ) from error
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            parts = [_medmnist_part(file, name, size) for name in ("train", "val", "test")]
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of errors
        raise InputError(f"{path} is not PneumoniaMNIST as medmnist saves it: {error}") from error
    training, validation, test = parts
    return Splits(
        training,
        validation,
        test,
        [f"PneumoniaMNIST with its own splits, from {path.name}; it does not identify patients"],
    )


def _medmnist_part(file: Any, name: str, size: int) -> Pictures:
    images, labels = file[f"{name}_images"], file[f"{name}_labels"].flatten()
    known = sorted(set(labels.tolist()))
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels) or known != [0, 1]:
        raise ValueError(f"{name} has {images.dtype} images {images.shape} and labels {labels.shape} of {known}")
    pixels = [torch.from_numpy(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)) for image in images]
    names = [f"{name} {index}" for index in range(len(images))]
    return Pictures(torch.stack(pixels), torch.from_numpy(labels).long(), names, names)
