"""Explain a set of images of any size in a run that can be resumed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from camlib.datasets.explainers import device_of, prepared
from camlib.datasets.files import Files, write_index
from camlib.datasets.manifest import Manifest
from camlib.datasets.pipeline import Pipeline, as_disk_errors
from camlib.datasets.processes import own_share, wait_for_others
from camlib.datasets.results import Explaining, Loader
from camlib.datasets.run import Run, open_run
from camlib.datasets.settings import settings_of
from camlib.datasets.shards import ENDINGS, Shards
from camlib.datasets.source import PathSource, source_of
from camlib.errors import (
    CamlibError,
    CamlibValueError,
    boolean,
    check_class_names,
    number,
    optional_function,
    positive_int,
)
from camlib.files import path_of
from camlib.imaging import DEFAULT_COLORMAP
from camlib.passes.devices import device_of_name

Storage = Literal["files", "parquet", "webdataset"]
"""How a run stores what it makes."""
MAX_WORKERS = 1024


def explain_dataset(
    explainer: Any,
    source: Any,
    out: str | PathLike[str],
    *,
    target: Any = None,
    transforms: Any = None,
    batch_size: int = 32,
    workers: int = 0,
    storage: Storage = "files",
    class_names: Any = None,
    colormap: Any = DEFAULT_COLORMAP,
    alpha: float | str = 0.5,
    heatmaps: bool = False,
    shard_size: int = 4096,
    resume: bool = True,
    progress: bool = True,
    device: torch.device | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Explain a set of images and store the maps; a run that was stopped resumes where it was.

    If an image cannot be read or explained, or its numbers are not finite, :attr:`camlib.datasets.Run.errors` lists it
    with the reason, and the others are explained. The memory does not grow with the number of images.

    Each file is complete or absent: it is written under a temporary name and then renamed. When a batch is on the disk,
    ``manifest.jsonl`` gets a line. After a kill, a full disk or Ctrl-C, which lets the current batch finish, the same
    call resumes, and the result is the same as without the interruption. A call is refused if anything differs from
    the run in the folder: the explainer with its options, its model's tensors, attributes or code; the target, the
    transforms, the batch size, the storage; the versions of camlib, torch or Python; or the names of the images that
    are done.

    Under ``torchrun``, each process explains its share, by RANK and WORLD_SIZE, and the folder holds one run.

    Args:
        explainer: a method, such as ``camlib.GradCAM(model)``, or a smoothing of one.
        source: a path, a folder, a glob such as ``"scans/**/*.png"``, or a list of these; or a dataset with ``__len__``
            and ``__getitem__``, whose entries are inputs or pictures, or tuples that begin with one. A folder stands
            for all files with a picture's ending in it and in its subfolders, in the order of their names.
        out: the folder of the run, which is created. It may be inside the source: its files are not read.
        target: as for :meth:`camlib.methods.Method.__call__`; a list has one class for each image, in their order.
        transforms: a function from a PIL image in RGB to an input (C, H, W), such as torchvision's
            ``weights.transforms()``. With ``workers``, several threads call it. Datasets of inputs need none.
        batch_size: images in a batch.
        workers: threads that read pictures, and as many that draw and write; with 0, one thread does everything.
        storage: "files" for an overlay and a map for each image, with a table, ``index.csv``; "parquet" (extra
            ``parquet``) or "webdataset" for shards of maps at the layer's resolution, as float16.
        class_names: names of the classes, for the table.
        colormap: of the overlays, as for :func:`camlib.overlay`.
        alpha: of the overlays, as for :func:`camlib.overlay`.
        heatmaps: whether "files" also stores heatmaps, as 16-bit PNG at the resolution of the picture.
        shard_size: images in a shard, rounded up to whole batches.
        resume: whether the run can be resumed. False requires a new or empty folder and allows settings that cannot be
            compared, such as transforms that are a lambda.
        progress: whether to show a progress bar.
        device: where the model runs; if the model is on another device, a copy of it runs there.
        settings: JSON that describes what camlib cannot compare: ``{"transforms": "v2"}`` is compared in place of the
            transforms. Other names are compared, too.

    Returns:
        The run, as :func:`camlib.open_run` opens it.

    Raises:
        CamlibTypeError, CamlibValueError: an argument is wrong; the folder holds something else or a run with other
            settings; the explainer, the target or the transforms cannot be compared; or, with "files", the transforms
            do more than resize, crop, pad, mirror and normalise.
        CamlibRuntimeError: a file cannot be written, for instance because the disk is full: make room, and call again.
        KeyboardInterrupt: after Ctrl-C.

    Example:
        >>> import camlib, tempfile, torch, torchvision
        >>> cam = camlib.GradCAM(torchvision.models.resnet18(num_classes=4).eval())
        >>> images = torch.utils.data.StackDataset(torch.rand(3, 3, 64, 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = camlib.explain_dataset(cam, images, folder, storage="webdataset", progress=False)
        ...     len(run), run[0].heatmap().shape
        (3, torch.Size([64, 64]))
    """
    folder, share = path_of(out), own_share()
    if not isinstance(storage, str) or storage not in get_args(Storage):
        raise CamlibValueError(f"storage must be one of {', '.join(get_args(Storage))}, got {storage!r}")
    optional_function("transforms", transforms)
    check_class_names(class_names)
    images = source_of(source, folder)
    if transforms is None and isinstance(images, PathSource):
        raise CamlibValueError(
            "pictures need transforms that turn them into inputs; give transforms=, such as torchvision's "
            "weights.transforms()"
        )
    threads = int(number("workers", workers, at_least=0, at_most=MAX_WORKERS))
    in_batch = positive_int("batch_size", batch_size)
    in_shard = -(-positive_int("shard_size", shard_size) // in_batch) if storage in ENDINGS else 1
    running = prepared(explainer, None if device is None else device_of_name(device))
    asked = {
        "explainer": explainer,
        "target": target,
        "transforms": transforms,
        "source": images.kind,
        "storage": storage,
        "batch_size": in_batch,
        "batches_in_shard": in_shard,
        "colormap": colormap if storage == "files" else "",
        "alpha": alpha if storage == "files" else "",
        "heatmaps": boolean("heatmaps", heatmaps),
    }
    described = settings_of(asked, settings, resumes=boolean("resume", resume))
    _check_new(folder, resume=resume)
    loader = Loader(images, transforms, aligned=storage == "files")
    temporary = folder / f".tmp-{share.rank}"
    writer: Files | Shards = (
        Files(folder, temporary, loader, colormap, alpha, heatmaps=heatmaps)
        if storage == "files"
        else Shards(folder, temporary, storage)
    )
    with contextlib.closing(Manifest(folder, described, *share)) as manifest:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        explaining = Explaining(running, target, device_of(running), worked=bool(manifest.done))
        pipeline = Pipeline(
            images,
            manifest,
            loader,
            explaining,
            writer,
            batch_size=in_batch,
            in_shard=in_shard,
            share=share,
        )
        try:
            pipeline.run(threads, show=boolean("progress", progress) and share.rank == 0)
        except BaseException:
            with contextlib.suppress(OSError, CamlibError):  # the disk may be full
                _finish(manifest, folder, temporary, class_names if storage == "files" else False)
            raise
        _finish(manifest, folder, temporary, class_names if storage == "files" else False)
    if pipeline.interrupted:
        raise KeyboardInterrupt
    wait_for_others()
    return open_run(folder)


def _finish(manifest: Manifest, folder: Path, temporary: Path, class_names: Any) -> None:
    """Merge the manifest, and write the table, unless the names of its classes are False."""
    with as_disk_errors():
        manifest.merge()
        if class_names is not False:
            write_index(folder, temporary, class_names)
    shutil.rmtree(temporary, ignore_errors=True)


def _check_new(folder: Path, *, resume: bool) -> None:
    """Raise CamlibValueError if a run that must not resume finds files in its folder."""
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise CamlibValueError(f"resume=False needs a new or an empty folder, and {folder} holds files; delete them")
