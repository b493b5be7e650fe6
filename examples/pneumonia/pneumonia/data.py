"""Labelled pictures: finding them in folders, recognising patients, and reading them into one tensor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import camlib
from pneumonia import InputError

CLASSES = ("NORMAL", "PNEUMONIA")
ENDINGS = {".jpg", ".jpeg", ".png", ".dcm", ".dicom"}
MOST_UNREADABLE = 0.1
"""If a larger share of the images cannot be read, reading fails."""


@dataclass(frozen=True)
class Pictures:
    """Grayscale pictures at one working size, with their labels and patients."""

    pixels: Tensor
    """(N, S, S), uint8."""
    labels: Tensor
    """(N,), int64: 0 NORMAL, 1 PNEUMONIA."""
    patients: list[str]
    """The patient of each picture, as far as the file name identifies one."""
    names: list[str]
    """The path of each picture, or another name."""
    masks: Tensor | None = None
    """(N, S, S), bool: the opacities; for phantoms only."""
    digests: list[str] = field(default_factory=list)
    """A hash of the content of each picture at its original resolution; empty if there are no files."""
    unreadable: list[str] = field(default_factory=list)
    """Files that cannot be read, and why."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """Return the pictures at ``indices``, in that order."""
        chosen = [int(index) for index in indices]
        at = torch.tensor(chosen, dtype=torch.long)
        return Pictures(
            self.pixels[at],
            self.labels[at],
            [self.patients[index] for index in chosen],
            [self.names[index] for index in chosen],
            None if self.masks is None else self.masks[at],
            [self.digests[index] for index in chosen] if self.digests else [],
        )

    def sick(self, count: int | None = None) -> Pictures:
        """Return the PNEUMONIA pictures, or the first ``count`` of them."""
        return self.take(self.labels.nonzero().flatten()[:count].tolist())

    def masks_at(self, size: int) -> Tensor | None:
        """Return the masks at another resolution, (N, size, size)."""
        return None if self.masks is None else camlib.resize(self.masks.float(), (size, size)) >= 0.5


def concatenate(parts: Sequence[Pictures]) -> Pictures:
    """Join pictures that have no masks."""
    return Pictures(
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.labels for part in parts]),
        [patient for part in parts for patient in part.patients],
        [name for part in parts for name in part.names],
        None,
        [digest for part in parts for digest in part.digests],
        [note for part in parts for note in part.unreadable],
    )


def patient_of(path: Path, label: int) -> str:
    """Return the patient that a file name of the Kaggle data set identifies; any other name counts as one patient.

    ``person1000_bacteria_2931`` is patient 1000; ``IM-0115-0001`` and ``NORMAL2-IM-1422-0001`` hold the number
    of an examination. The two kinds of numbers are unrelated, so the result includes the class.

    Example:
        >>> patient_of(Path("person1000_bacteria_2931.jpeg"), 1), patient_of(Path("NORMAL2-IM-1422-0001.jpeg"), 0)
        ('PNEUMONIA person1000', 'NORMAL NORMAL2-IM-1422')
    """
    found = re.match(r"(person\d+)_", path.stem) or re.match(r"((?:NORMAL\d*-)?IM-\d+)-", path.stem)
    return f"{CLASSES[label]} {found.group(1) if found else path.stem}"


def class_folders(folder: Path) -> dict[str, Path] | None:
    """Return the folders NORMAL and PNEUMONIA (in any case) inside ``folder``, or None if it has neither.

    Raises:
        InputError: only one of them exists.
    """
    inside = {path.name.upper(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: inside[name] for name in CLASSES if name in inside}
    if len(found) == 1:
        missing = next(name for name in CLASSES if name not in found)
        raise InputError(f"{folder} has a folder {next(iter(found))} but no folder {missing}; both classes are needed")
    return found or None


def list_images(folder: Path) -> list[tuple[Path, int]]:
    """List the images in the two class folders of ``folder``, with their labels.

    Raises:
        InputError: a class has no images.
    """
    folders = class_folders(folder)
    if not folders:
        raise InputError(f"{folder} has no folders NORMAL and PNEUMONIA; put the images of each class into one of them")
    files = []
    for label, name in enumerate(CLASSES):
        inside = [
            (path, label)
            for path in sorted(folders[name].rglob("*"))
            if path.suffix.lower() in ENDINGS and not path.name.startswith("._") and "__MACOSX" not in path.parts
        ]
        if not inside:
            raise InputError(f"{folders[name]} holds no JPEG, PNG or DICOM images; put the {name} images there")
        files += inside
    return files


def load(files: Sequence[tuple[Path, int]], size: int, title: str) -> Pictures:
    """Read images, resized to ``size`` x ``size``; those that cannot be read are skipped and listed.

    Raises:
        InputError: more than a tenth of the images, or all images of a class, cannot be read.
    """
    pixels, labels, patients, names, digests, unreadable = [], [], [], [], [], []
    for path, label in tqdm(files, desc=f"reading {title}", unit="image", leave=False):
        try:
            image = camlib.imaging.read_gray(path)
        except ValueError as error:
            unreadable.append(f"{path}: {error}")
            continue
        pixels.append(torch.from_numpy(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)))
        labels.append(label)
        patients.append(patient_of(path, label))
        names.append(str(path))
        digests.append(hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest())
    if len(unreadable) > MOST_UNREADABLE * len(files) or len(set(labels)) < len(CLASSES):
        raise InputError(
            f"{len(unreadable)} of {len(files)} images in {title} cannot be read, the first is {unreadable[0]}; "
            "copy the data again"
        )
    return Pictures(torch.stack(pixels), torch.tensor(labels), patients, names, None, digests, unreadable)
