"""A row of a run: the map of one image, what it explains, and which part of the picture it covers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camlib.explanation import Explanation
from camlib.imaging.geometry import Window
from camlib.imaging.resizing import checked_size, resize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fields = Mapping[str, Any]
"""What is stored of an image, as JSON apart from its map."""


@dataclass(frozen=True)
class Row:
    """The map of one image of a run.

    Example:
        >>> import camlib, tempfile, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> images = torch.utils.data.StackDataset(torch.rand(3, 3, 64, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = camlib.explain_dataset(cam, images, folder, storage="webdataset", progress=False)
        ...     [(row.path, row.map.shape, row.heatmap().shape) for row in run][0]
        ('0', torch.Size([2, 2]), torch.Size([64, 64]))
    """

    number: int
    """The position of the image in the source."""
    path: str
    """Its path, or its number as text if there is no path. Bytes that are not UTF-8 are as in ``os.fsdecode``."""
    classes: tuple[int, ...]
    """The classes that are explained, one for each map; empty if the target is not a class."""
    scores: tuple[float, ...]
    """The score of each map."""
    degenerate: tuple[bool, ...]
    """Whether each map is constant or nowhere positive."""
    confidence: float
    """The probability of the predicted class; NaN if the model has no classes."""
    size: tuple[int, int] | None
    """(H, W) of the picture, upright; None if the source holds tensors."""
    window: Window | None
    """Which part of the picture the network saw; None if that is unknown, or if the source holds tensors."""
    files: Mapping[str, Path]
    """With ``storage="files"``, the files of the image by what they hold, such as "overlay" and "map"."""
    frame: Mapping[str, Any] = field(repr=False)
    """What many images have in common, as JSON: method, layer, input size and others."""
    load: Callable[[], NDArray[np.generic]] = field(repr=False, compare=False)
    """Reads the maps, (K, h, w)."""

    @functools.cached_property
    def map(self) -> Tensor:
        """(h, w), or (K, h, w) for K classes; read from the disk when it is first used."""
        maps = torch.from_numpy(self.load().astype("float32"))
        return maps if self.frame["class_axis"] else maps[0]

    @property
    def explanation(self) -> Explanation:
        """The explanation of this image, without the model's outputs. Its heatmap covers what the network saw."""
        maps, scores = self.map[None], torch.tensor([self.scores])
        classes: Any = torch.tensor([self.classes], dtype=torch.long)
        if not self.frame["class_axis"]:
            scores, classes = scores[:, 0], classes[:, 0] if self.classes else classes
        places: dict[str, Any] = {
            name: self.frame[name] and tuple(self.frame[name]) for name in ("input_size", "extent", "origin")
        }
        texts: dict[str, Any] = {
            name: self.frame[name] for name in ("method", "layer", "class_agnostic", "quantity", "relu")
        }
        target = classes if self.classes else self.frame["target"]
        return Explanation(maps=maps, scores=scores, outputs=None, target=target, **texts, **places)

    def heatmap(self, size: tuple[int, int] | None = None) -> Tensor:
        """Return the heatmap on the whole picture; zero where the network did not see it.

        Args:
            size: (H, W); by default the picture's, or the input's if it was not read from a picture.

        Returns:
            (H, W), or (K, H, W) for K classes, in [0, 1]; in [-1, 1] for signed maps.
        """
        size = None if size is None else checked_size(size)
        explanation = self.explanation
        signed = "signed" if explanation.signed else "minmax"
        if self.window is None:
            return explanation.heatmaps(size or self.size, signed)[0]
        heatmap = self.window.restore(explanation.heatmaps(normalize=signed)[0])
        return heatmap if size is None else resize(heatmap, size)


def fields_of(explanation: Explanation, window: Window | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what is stored of the explanation of one image, apart from its maps.

    Args:
        explanation: of one image.
        window: as in :class:`Row`.
        size: as in :class:`Row`.
    """
    target = explanation.target
    frame = {
        **{name: getattr(explanation, name) for name in ("method", "layer", "class_agnostic", "quantity", "relu")},
        **{name: getattr(explanation, name) for name in ("input_size", "extent", "origin")},
        "class_axis": explanation.has_class_axis,
        "target": target if isinstance(target, str) else "",
        "size": size,
        "window": None if window is None else [round(side, 3) for side in window.box],
    }
    return {
        "classes": target.flatten().tolist() if isinstance(target, Tensor) else [],
        "scores": explanation.scores.flatten().tolist(),
        "degenerate": explanation.degenerate.flatten().tolist(),
        "frame": json.dumps(frame),
    }


def row_of(fields: Fields, load: Callable[[], NDArray[np.generic]], out: Path) -> Row:
    """Return the row of what is stored.

    Args:
        fields: as :func:`fields_of` returns them, with the number, the path and the files.
        load: reads the maps.
        out: the folder of the run.
    """
    frame = json.loads(fields["frame"])
    size, box, shown = frame["size"], frame["window"], frame["input_size"]
    return Row(
        number=fields["number"],
        path=fields["path"],
        classes=tuple(fields["classes"]),
        scores=tuple(fields["scores"]),
        degenerate=tuple(fields["degenerate"]),
        confidence=float("nan") if fields["confidence"] is None else fields["confidence"],
        size=size and tuple(size),
        window=box and Window(tuple(size), tuple(shown), tuple(box)),
        files={name: out / path for name, path in fields.get("files", {}).items()},
        frame=frame,
        load=load,
    )
