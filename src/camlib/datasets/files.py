"""Runs stored as files that people open: overlays, maps, heatmaps and a table."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camlib.datasets.manifest import parts, record_at, records
from camlib.datasets.results import Loader, Result
from camlib.datasets.rows import Row, fields_of, row_of
from camlib.errors import CamlibValueError, number
from camlib.files import replacing
from camlib.imaging import DEFAULT_COLORMAP, DEFAULT_SIGNED_COLORMAP, overlay, overlay_signed
from camlib.imaging.colors import lookup_table
from camlib.imaging.geometry import Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUALITY = 95
"""Of the overlays' JPEG."""
IN_A_FOLDER = 10_000
"""The most images whose files are in one folder; those of later images are in numbered folders."""
INDEX = "index.csv"
"""The table of all images."""
COLUMNS = ("number", "path", "classes", "names", "scores", "confidence", "degenerate", "overlay", "map", "error")
"""Its columns."""


class Files:
    """Writes an overlay, a map and perhaps a heatmap for each image.

    Args:
        out: the folder of the run.
        temporary: a folder for files that are not whole yet.
        loader: reads large pictures again.
        colormap: of the overlays.
        alpha: of the overlays.
        heatmaps: whether to write heatmaps as 16-bit PNG.
    """

    def __init__(
        self, out: Path, temporary: Path, loader: Loader, colormap: Any, alpha: float | str, *, heatmaps: bool
    ) -> None:
        lookup_table(colormap)
        if not isinstance(alpha, str) or alpha != "heat":
            number("alpha", alpha, at_least=0, at_most=1, instead='"heat"')
        self._out, self._temporary, self._loader = out, temporary, loader
        self._colormap, self._alpha, self._heatmaps = colormap, alpha, heatmaps

    def fields(self, result: Result) -> dict[str, Any]:
        """Write the files of an image and return what is stored of it, with their paths."""
        loaded, explanation = result.loaded, result.explanation
        maps = explanation.maps.numpy()
        fields = {
            "number": loaded.item.number,
            "path": loaded.item.path,
            "confidence": result.confidence,
            **fields_of(explanation, loaded.window, loaded.size),
        }
        row = row_of(fields, lambda: maps.reshape(-1, *maps.shape[-2:]), self._out)
        name, files = _name(loaded.item.number, loaded.item.path), {}
        stored = io.BytesIO()
        _numpy().savez(stored, map=row.map.numpy())
        files["map"] = self._write(f"maps/{name}.npz", stored.getvalue())
        if loaded.size is not None or self._heatmaps:
            heatmaps = row.heatmap().numpy()
            planes = heatmaps.reshape(-1, *heatmaps.shape[-2:])
            for place, plane in enumerate(planes):
                ending = f"-{place + 1}" if len(planes) > 1 else ""
                if loaded.size is not None:
                    label = f"overlay{ending.replace('-', ' ')}"
                    files[label] = self._write(f"overlays/{name}{ending}.jpg", self._overlay(result, plane, row.window))
                if self._heatmaps:
                    label = f"heatmap{ending.replace('-', ' ')}"
                    files[label] = self._write(f"heatmaps/{name}{ending}.png", _as_png(plane, explanation.signed))
        return {**fields, "files": files}

    def _overlay(self, result: Result, heatmap: NDArray[Any], window: Window | None) -> bytes:
        """The overlay as JPEG; pixels that the network did not see have no colour of the heatmap."""
        picture = result.loaded.picture
        if picture is None:
            picture = self._loader.again(result.loaded.item)
        if result.explanation.signed:
            jet = isinstance(self._colormap, str) and self._colormap.lower() == DEFAULT_COLORMAP
            colors = DEFAULT_SIGNED_COLORMAP if jet else self._colormap
            laid = overlay_signed(picture, heatmap, colors, self._alpha)
        else:
            laid = overlay(picture, heatmap, self._colormap, self._alpha)
        if window is not None:
            unseen = ~window.covered().numpy()
            laid[unseen] = picture[unseen]
        return _encoded(".jpg", laid[..., ::-1])

    def _write(self, name: str, content: bytes) -> str:
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, self._temporary) as file:
            file.write(content)
        return name

    def record(self, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the manifest holds of some images, after their folders are on the disk."""
        for folder in {(self._out / path).parent for one in fields for path in one["files"].values()}:
            synced(folder)
        frames = list(dict.fromkeys(one["frame"] for one in fields))
        return {
            "frames": frames,
            "rows": [{**one, "frame": frames.index(one["frame"])} for one in fields],
            "count": len(fields),
        }


def rows_of_files(record: Mapping[str, Any], out: Path) -> Iterator[Row]:
    """Yield the rows that a line of the manifest holds."""
    for fields in record["rows"]:
        load = functools.partial(_loaded_map, out / fields["files"]["map"])
        yield row_of({**fields, "frame": record["frames"][fields["frame"]]}, load, out)


def write_index(out: Path, temporary: Path, class_names: Any) -> None:
    """Write the table of all images, from the manifest."""
    with replacing(out / INDEX, temporary) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text)
        table.writerow(COLUMNS)
        for record in ordered(out):
            table.writerows(_lines(record, class_names))
        text.flush()
        text.detach()


def ordered(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the manifest in the order of their images, each once."""
    for path, offset in places(out):
        yield record_at(path, offset)


def places(out: Path) -> list[tuple[Path, int]]:
    """Return where the lines of the manifest are, in the order of their images, each once."""
    found: dict[int, tuple[Path, int]] = {}
    for path in parts(out):
        for offset, record in records(path):
            if "batches" in record:
                found.setdefault(record["batches"][0][0], (path, offset))
    return [found[first] for first in sorted(found)]


def _lines(record: Mapping[str, Any], class_names: Any) -> list[list[Any]]:
    lines = []
    for one in record["rows"]:
        files = one["files"]
        overlays = [path for name, path in files.items() if name.startswith("overlay")]
        names = [_named(class_names, index) for index in one["classes"]] if class_names is not None else []
        cells = [
            " ".join(map(str, one["classes"])),
            _cell("; ".join(names)),
            " ".join(f"{score:.6g}" for score in one["scores"]),
            "" if one["confidence"] is None else f"{one['confidence']:.6g}",
            " ".join(str(int(flag)) for flag in one["degenerate"]),
            " ".join(overlays),
            files["map"],
        ]
        lines.append([one["number"], _cell(one["path"]), *cells, ""])
    empty = [""] * (len(COLUMNS) - 3)
    lines += [[place, _cell(path), *empty, _cell(why)] for place, path, why in record["errors"]]
    return sorted(lines, key=lambda line: line[0])


def _named(class_names: Any, index: int) -> str:
    try:
        return str(class_names[index])
    except (IndexError, KeyError):  # the maps are made, so that a name that is missing costs only itself
        return f"class {index}"


def _cell(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def _name(place: int, path: str) -> str:
    """A file name that no other image has, made of the image's number and name."""
    stem = os.path.basename(path).rpartition(".")[0] or os.path.basename(path)
    safe = "".join(one if one.isalnum() or one in "-_." else "_" for one in stem[:60])
    while len(os.fsencode(safe)) > 120:
        safe = safe[:-1]
    folder = f"{place // IN_A_FOLDER:04d}/" if place >= IN_A_FOLDER else ""
    return f"{folder}{place:06d}-{safe}" if safe != str(place) else f"{folder}{place:06d}"


def _loaded_map(path: Path) -> NDArray[np.generic]:
    try:
        with _numpy().load(path, allow_pickle=False) as stored:
            found: NDArray[np.generic] = stored["map"]
    except (OSError, ValueError, KeyError) as error:
        raise CamlibValueError(f"{path} is missing or damaged: {error}; run again into another folder") from error
    return found.reshape(-1, *found.shape[-2:])


def _as_png(heatmap: NDArray[Any], signed: bool) -> bytes:
    """A heatmap as PNG of 16 bits; zero is in the middle if it is signed."""
    import numpy as np

    share = (heatmap + 1) / 2 if signed else heatmap
    return _encoded(".png", np.rint(share * 65535).astype(np.uint16))


def _encoded(ending: str, picture: NDArray[Any]) -> bytes:
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if ending == ".jpg" else []
    return bytes(cv2.imencode(ending, picture, options)[1])


def synced(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numpy() -> Any:
    import numpy as np

    return np
