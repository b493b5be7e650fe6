"""Runs stored in shards that machines read: maps of the layer's resolution, as Parquet or as WebDataset tar."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camlib.datasets.files import synced
from camlib.datasets.results import Result
from camlib.datasets.rows import Row, fields_of, row_of
from camlib.errors import CamlibRuntimeError, CamlibValueError
from camlib.files import path_of, replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENDINGS = {"parquet": ".parquet", "webdataset": ".tar"}
"""Kinds of shards with the endings of their names."""


def stored_fields(result: Result) -> dict[str, Any]:
    """Return what a shard holds of an image.

    The maps are float16, divided by their largest magnitude, which is stored too: the smallest gradients would be zero
    in float16.
    """
    import numpy as np

    explanation = result.explanation
    maps = explanation.maps.double().numpy().reshape(-1, *explanation.maps.shape[-2:])
    scales = np.abs(maps).max((1, 2))
    item = result.loaded.item
    return {
        "number": item.number,
        "path": item.path,
        "confidence": result.confidence,
        "scales": scales.tolist(),
        "map": (maps / np.where(scales > 0, scales, 1)[:, None, None]).astype(np.float16),
        **fields_of(explanation, result.loaded.window, result.loaded.size),
    }


class Shards:
    """Writes the maps of many images into one file.

    Args:
        out: the folder of the run.
        temporary: a folder for files that are not whole yet.
        kind: "parquet" or "webdataset".

    Raises:
        CamlibRuntimeError: pyarrow is not installed.
    """

    def __init__(self, out: Path, temporary: Path, kind: str) -> None:
        if kind == "parquet":
            _pyarrow()
        self._out, self._temporary, self._kind = out, temporary, kind

    def record(self, first: int, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write a shard, and return what the manifest holds of it.

        Args:
            first: the number of its first image, also if that has no map.
            fields: what to store of each image.
        """
        if not fields:
            return {"shard": "", "count": 0, "odd": {}}
        name = f"maps-{first:09d}{ENDINGS[self._kind]}"
        write = _write_parquet if self._kind == "parquet" else _write_tar
        with replacing(self._out / name, self._temporary) as file:
            write(file, fields)
        synced(self._out)
        odd = {str(one["number"]): one["path"] for one in fields if _text(one["path"]) != one["path"]}
        return {"shard": name, "count": len(fields), "odd": odd}


def rows_of_shard(record: Mapping[str, Any], out: Path) -> Iterator[Row]:
    """Yield the rows of the shard that a line of the manifest names."""
    if not record["shard"]:
        return
    path = out / record["shard"]
    read = _read_parquet if path.suffix == ".parquet" else _read_tar
    with damaged_as_error(path):
        for fields in read(path):
            fields["path"] = record["odd"].get(str(fields["number"]), fields["path"])
            yield row_of(fields, functools.partial(_scaled, fields["map"], fields["scales"]), out)


@contextlib.contextmanager
def damaged_as_error(path: Path) -> Iterator[None]:
    """Raise CamlibValueError where a file is missing or damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        if isinstance(error, CamlibValueError):
            raise
        raise CamlibValueError(f"{path} is missing or damaged: {error}; run again into another folder") from error


def as_columns(fields: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return what is stored of images as columns of plain values; the maps as bytes, with their shapes."""
    return {
        "number": [one["number"] for one in fields],
        "path": [_text(one["path"]) for one in fields],
        "classes": [one["classes"] for one in fields],
        "scores": [one["scores"] for one in fields],
        "degenerate": [one["degenerate"] for one in fields],
        "confidence": [one["confidence"] for one in fields],
        "scales": [one["scales"] for one in fields],
        "map": [one["map"].tobytes() for one in fields],
        "shape": [list(one["map"].shape) for one in fields],
        "frame": [one["frame"] for one in fields],
    }


def schema() -> Any:
    """Return the types of the columns in Parquet."""
    arrow = _pyarrow()
    return arrow.schema(
        {
            "number": arrow.int64(),
            "path": arrow.string(),
            "classes": arrow.list_(arrow.int32()),
            "scores": arrow.list_(arrow.float32()),
            "degenerate": arrow.list_(arrow.bool_()),
            "confidence": arrow.float32(),
            "scales": arrow.list_(arrow.float32()),
            "map": arrow.binary(),
            "shape": arrow.list_(arrow.int32()),
            "frame": arrow.string(),
        }
    )


def _write_parquet(file: Any, fields: Sequence[Mapping[str, Any]]) -> None:
    arrow = _pyarrow()
    table = arrow.table(as_columns(fields), schema=schema())
    arrow.parquet.write_table(table, file, compression="zstd")


def read_parquet(path: str | PathLike[str]) -> Iterator[Row]:
    """Yield the rows of a Parquet file of maps, or of a folder of these, as :mod:`camlib.integrations.ray` makes them.

    Images that failed have no row; the column "error" says why.

    Args:
        path: the file or the folder.

    Raises:
        CamlibRuntimeError: pyarrow is not installed.
        CamlibValueError: a file is missing or damaged.
    """
    given = path_of(path)
    files = sorted(given.rglob("*.parquet")) if given.is_dir() else [given]
    if not files:
        raise CamlibValueError(f"{path} holds no Parquet file; give the folder that write_parquet wrote")
    number = itertools.count()
    for file in files:
        with damaged_as_error(file):
            for fields in _read_parquet(file):
                numbered = {"number": next(number), **fields}
                yield row_of(numbered, functools.partial(_scaled, fields["map"], fields["scales"]), given)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import numpy as np

    with _pyarrow().parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            for one in batch.to_pylist():
                if one["map"] is not None:
                    yield {**one, "map": np.frombuffer(one["map"], np.float16).reshape(one["shape"])}


def _write_tar(file: Any, fields: Sequence[Mapping[str, Any]]) -> None:
    import numpy as np

    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in fields:
            array = io.BytesIO()
            np.save(array, one["map"])
            about = {**one, "path": _text(one["path"])}
            del about["map"]
            for ending, content in (("json", json.dumps(about).encode()), ("npy", array.getvalue())):
                info = tarfile.TarInfo(f"{one['number']:09d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _read_tar(path: Path) -> Iterator[dict[str, Any]]:
    import numpy as np

    with tarfile.open(path) as tar:
        about: dict[str, Any] = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            if member.name.endswith(".json"):
                about = json.load(content)
            else:
                yield {**about, "map": np.load(io.BytesIO(content.read()), allow_pickle=False)}


def _scaled(maps: NDArray[np.float16], scales: Sequence[float]) -> NDArray[np.generic]:
    import numpy as np

    found: NDArray[np.generic] = maps.astype(np.float64) * np.asarray(scales)[:, None, None]
    return found


def _text(path: str) -> str:
    """A path as text that can be encoded: bytes that are not UTF-8 are written as backslashes and digits."""
    return path.encode("utf-8", "backslashreplace").decode()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CamlibRuntimeError(
            'storage="parquet" needs the package pyarrow: install the extra parquet, or give storage="webdataset"'
        ) from error
    return pyarrow
