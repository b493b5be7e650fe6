"""Maps of any number of images on a Ray cluster: a class for ``ray.data.Dataset.map_batches``.

It needs the extra ``ray``. This module imports nothing of Ray: Ray calls the class, once for each worker, and gives it
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from camlib.datasets.explainers import device_of, prepared
from camlib.datasets.results import Explaining, Failed, Loader, Result
from camlib.datasets.shards import as_columns, schema, stored_fields
from camlib.datasets.source import Item
from camlib.errors import CamlibTypeError, CamlibValueError, optional_function
from camlib.imaging.reading import decode_image


class Explainer:
    """Explains batches of images; its instances can be pickled.

    Give Ray the class, not an instance, so that each worker makes the model once. Each image becomes a row with the
    columns of a run stored as Parquet: path, classes, scores, confidence, and the map at the layer's resolution as
    float16; :func:`camlib.datasets.read_parquet` reads them. An image that cannot be read or explained costs only
    itself: its row has the reason in the column "error", and no map.

    Args:
        make: a function without arguments that returns the explainer, such as ``camlib.GradCAM(model)``, for the worker
            that calls it; or an explainer.
        transforms: as for :func:`camlib.explain_dataset`; None for images that are inputs.
        target: as for :func:`camlib.explain_dataset`, but no list, since Ray does not keep the order.
        column: the images: contents of files, as ``ray.data.read_binary_files`` gives them in "bytes"; or arrays, as
            ``ray.data.read_images`` gives them in "image".
        path: the column of the paths; without it, rows have none.
        device: where the model runs; by default on the worker's GPU, if Ray gives it one.

    Raises:
        CamlibTypeError: ``make`` is neither a function nor an explainer.
        CamlibValueError: the target is a list.

    Example:
        >>> import camlib, io, torch, torchvision
        >>> from PIL import Image
        >>> from torchvision.transforms import Compose, Resize, ToTensor
        >>> def make():
        ...     return camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (80, 60)).save(file, "png")
        >>> explain = Explainer(make, transforms=Compose([Resize((64, 64)), ToTensor()]))
        >>> table = explain({"bytes": [file.getvalue(), b""], "path": ["a.png", "b.png"]})
        >>> table["shape"].to_pylist(), table["error"].to_pylist()[1][:27]
        ([[1, 2, 2], None], 'b.png cannot be read as a p')

        On a cluster, with one GPU for each of eight workers::

            files = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
            maps = files.map_batches(
                Explainer,
                fn_constructor_kwargs={"make": make, "transforms": transforms},
                batch_size=64, concurrency=8, num_gpus=1,
            )
            maps.write_parquet("s3://bucket/maps")
    """

    def __init__(
        self,
        make: Any,
        *,
        transforms: Callable[[Any], Any] | None = None,
        target: Any = None,
        column: str = "bytes",
        path: str = "path",
        device: torch.device | str | None = None,
    ) -> None:
        optional_function("transforms", transforms)
        if not callable(make):
            raise CamlibTypeError(f"make must be a function that returns an explainer, or an explainer, got {make!r}")
        if isinstance(target, (list, tuple)) or getattr(target, "ndim", False):
            raise CamlibValueError("target must not be a list: Ray does not keep the order of the images")
        explainer = make if hasattr(make, "on_nonfinite") else make()
        self._explainer = prepared(explainer, torch.device(device or _device_of_worker(device_of(explainer))))
        self._column, self._path = column, path
        self._transforms, self._target = transforms, target
        self._start()

    def _start(self) -> None:
        self._loader = Loader(self, self._transforms, aligned=False)
        self._explaining = Explaining(self._explainer, self._target, device_of(self._explainer))
        self._images: Any = ()

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Return the rows of a batch as a pyarrow table.

        Args:
            batch: its columns by name, as Ray gives them.

        Raises:
            CamlibValueError: there is no such column.
            CamlibError: all images of the first batch fail for a reason of the arguments.
        """
        if self._column not in batch:
            raise CamlibValueError(
                f"the batch has no column {self._column!r}, but {', '.join(map(repr, batch))}; give column="
            )
        self._images = batch[self._column]
        paths = [str(one) for one in batch.get(self._path, [""] * len(self._images))]
        items = [Item(number, path) for number, path in enumerate(paths)]
        results = self._explaining([self._loader(item) for item in items])
        self._images = ()
        return _table(results)

    def read(self, item: Item) -> Any:
        """Return an image of the batch."""
        found = self._images[item.number]
        return decode_image(bytes(found), item.path or "the image") if isinstance(found, (bytes, bytearray)) else found

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: not the thread lock of the loader."""
        return {key: value for key, value in vars(self).items() if key not in ("_loader", "_explaining", "_images")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()


def _device_of_worker(otherwise: torch.device) -> torch.device:
    """The GPU that Ray shows this worker, if there is one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else otherwise


def _table(results: list[Result | Failed]) -> Any:
    import pyarrow

    whole = schema().remove(0).append(pyarrow.field("error", pyarrow.string()))
    columns: dict[str, list[Any]] = {name: [] for name in whole.names}
    for one in results:
        if isinstance(one, Failed):
            row = {"path": [one.item.path], "error": [one.reason]}
        else:
            row = as_columns([stored_fields(one)])
        for name, values in columns.items():
            values += row.get(name, [None])
    return pyarrow.table(columns, schema=whole)
