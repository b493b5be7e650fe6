"""``camlib compare`` and ``camlib evaluate``: methods side by side, and in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camlib.cli import options
from camlib.cli.failures import list_failed, printable
from camlib.errors import CamlibError, CamlibValueError

if TYPE_CHECKING:
    from torch import Tensor

    from camlib.explaining.sources import Preparation

Methods = Annotated[str, typer.Option(metavar="A,B,...", help="Names of `camlib methods`, separated by commas.")]


def compare(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture.")],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The figure: .png, .pdf or .svg.")],
    methods: Methods = "grad_cam,layer_cam,hires_cam,eigen_cam",
    weights: options.Weights = "default",
    layer: options.Layer = None,
    target: options.Target = None,
    classes: options.Classes = None,
    colormap: options.Colormap = "jet",
    device: options.Device = "auto",
) -> None:
    """Draw what several methods show of a picture, side by side.

    \b
    camlib compare cat.jpg --model torchvision:resnet50 --methods grad_cam,layer_cam,rise --out methods.png
    """
    from camlib.comparison import compare as compare_methods
    from camlib.explaining.sources import batches_of

    loaded = options.opened(model, weights, classes, device)
    options.transforms_of(loaded)
    (batch, *more) = batches_of(image, loaded, 1)
    if more:
        raise CamlibValueError(f"{printable(image)} holds several pictures; camlib compare takes one")
    comparison = compare_methods(
        loaded.model,
        batch.inputs,
        _names(methods),
        options.target_of(target, loaded),
        layer=layer,
    )
    figure = comparison.plot(list(batch.pictures or ()), class_names=loaded.classes, colormap=colormap)
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise CamlibValueError(f"{printable(str(out))} cannot be written: {error}") from error
    typer.echo(printable(str(out)))


def evaluate(
    images: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures.")],
    model: options.Model,
    methods: Methods = "grad_cam,layer_cam",
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Names of camlib.metrics.METRICS; by default a selection.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Masks of the objects: pictures with the same names, not black.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="A table: .csv or .json.")] = None,
    weights: options.Weights = "default",
    layer: options.Layer = None,
    target: options.Target = None,
    classes: options.Classes = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that the network takes at once.")] = 16,
    device: options.Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Measure how faithful heatmaps are, and with masks, how well they find the object.

    \b
    camlib evaluate photos/ --model torchvision:resnet50 --methods grad_cam,layer_cam
    camlib evaluate photos/ --masks masks/ --model torchvision:resnet50 --metrics pointing_game --out table.csv

    Pictures that cannot be read are left out and listed; the exit status is then 1.
    """
    from camlib.evaluation import evaluate as evaluate_methods
    from camlib.explaining.sources import Preparation

    if out is not None and out.suffix not in (".csv", ".json"):
        raise CamlibValueError(f"--out must end in .csv or .json, got {printable(str(out))}")
    loaded = options.opened(model, weights, classes, device)
    options.transforms_of(loaded)
    preparation = Preparation(loaded)
    paths, failed = _readable(_pictures_in(images))
    evaluation = evaluate_methods(
        loaded.model,
        _Batches(preparation, paths, batch_size),
        _names(methods),
        None if layer is None else [layer],
        None if metrics is None else _names(metrics),
        None if masks is None else _masks(preparation, paths, masks),
        target=options.target_of(target, loaded),
        progress=not quiet,
    )
    if out is not None:
        (evaluation.to_csv if out.suffix == ".csv" else evaluation.to_json)(out)
    typer.echo(str(evaluation))
    list_failed(failed)


class _Batches:
    """Batches of inputs, which are read when they are needed."""

    def __init__(self, preparation: Preparation, paths: list[str], size: int) -> None:
        self._preparation, self._paths, self._size = preparation, paths, size

    def __iter__(self) -> Iterator[Any]:
        from camlib.imaging import read_image

        for start in range(0, len(self._paths), self._size):
            pictures = [read_image(path) for path in self._paths[start : start + self._size]]
            yield self._preparation.of_pictures(pictures).inputs


def _pictures_in(folder: Path) -> list[str]:
    from camlib.datasets.source import source_of

    paths = []
    for item in source_of(folder, folder / ".nothing"):
        if item.fault:
            raise CamlibValueError(f"{printable(item.path)}: {item.fault}")
        paths.append(item.path)
    if not paths:
        raise CamlibValueError(f"{printable(str(folder))} holds no pictures")
    return paths


def _readable(paths: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The pictures that can be read, and the others with the reason."""
    from camlib.imaging import read_image

    readable, failed = [], []
    for path in paths:
        try:
            read_image(path)
            readable.append(path)
        except CamlibError as error:
            failed.append((path, str(error)))
    if not readable:
        raise CamlibValueError(f"none of {len(failed)} pictures can be read; {printable(failed[0][0])}: {failed[0][1]}")
    return readable, failed


def _masks(preparation: Preparation, paths: list[str], folder: Path) -> Tensor:
    """Masks (M, H, W) of what the network saw, by the names of the pictures, whose endings may differ."""
    import torch

    from camlib.imaging import read_gray

    by_name = {Path(path).stem: path for path in _pictures_in(folder)}
    missing = [path for path in paths if Path(path).stem not in by_name]
    if missing:
        raise CamlibValueError(
            f"{len(missing)} pictures have no mask in {printable(str(folder))}, such as {printable(missing[0])}; a "
            "mask has the name of its picture"
        )
    found = []
    for path in paths:
        mask = torch.from_numpy((read_gray(by_name[Path(path).stem]) > 0).astype("float32"))
        window = preparation.window((mask.shape[0], mask.shape[1]))
        if window is None:
            raise CamlibValueError(
                "the transforms do not show which part of a picture they take, so masks cannot follow"
            )
        found.append(window.apply(mask) > 0.5)
    return torch.stack(found)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
