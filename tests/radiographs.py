"""Small folders of made-up radiographs for the tests of the example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (40, 56)
"""Height and width of the pictures on disk."""


def write_classes(
    folder: Path, normal: int = 12, pneumonia: int = 12, *, per_patient: int = 1, start: int = 0
) -> list[Path]:
    """Write NORMAL/ and PNEUMONIA/ with names as in the Kaggle data set; PNEUMONIA has a bright spot on the left."""
    names = [f"NORMAL/IM-{start + i // per_patient:04}-{i % per_patient:04}.jpeg" for i in range(normal)]
    names += [
        f"PNEUMONIA/person{start + i // per_patient}_{('bacteria', 'virus')[i % 2]}_{i}.jpeg" for i in range(pneumonia)
    ]
    random = np.random.default_rng(start)
    for name in names:
        picture = random.integers(60, 120, SHAPE, dtype=np.uint8)
        if name.startswith("PNEUMONIA"):
            picture[10:25, 8:24] = 240
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return [folder / name for name in names]


def write_kaggle(folder: Path, *, val: bool = True) -> Path:
    """Write the Kaggle layout: train/, test/ and perhaps val/, each with both classes."""
    write_classes(folder / "train", 24, 32, per_patient=2)
    write_classes(folder / "test", 6, 8, start=500)
    if val:
        write_classes(folder / "val", 2, 2, start=900)
    return folder
