"""``camlib explain``: overlays, maps, a table and a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from camlib.cli import options
from camlib.cli.failures import list_failed, printable
from camlib.errors import CamlibError, CamlibValueError

if TYPE_CHECKING:
    from camlib.datasets import Row, Run
    from camlib.loading import Loaded
    from camlib.methods import Method

SHOWN = 500
"""The most pictures in a report; a page of more would be too large for a browser."""

WIDEST = 448
"""The longer side of a picture in a report, in pixels."""


def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Pictures, folders or globs.")],
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="The folder to write; a run that was stopped there resumes."),
    ],
    weights: options.Weights = "default",
    method: options.MethodName = "auto",
    layer: options.Layer = None,
    target: options.Target = None,
    classes: options.Classes = None,
    colormap: options.Colormap = None,
    alpha: Annotated[
        str,
        typer.Option(metavar="0..1|heat", help="Opacity of the heatmap; heat: the more important, the more opaque."),
    ] = "0.5",
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Also write heatmaps as 16-bit PNG.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Also write report.html; needs the extra report.")] = False,
    storage: Annotated[
        Literal["files", "parquet", "webdataset"],
        typer.Option(help="Overlays and maps as files, or only maps in shards."),
    ] = "files",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that the network takes at once.")] = 32,
    workers: Annotated[
        int, typer.Option(min=0, help="Threads that read, and as many that write; 0: one thread does everything.")
    ] = 0,
    device: options.Device = "auto",
    precision: options.PrecisionName = options.Precision.AUTO,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Explain pictures: where did the network look?

    \b
    camlib explain cat.jpg --model torchvision:resnet50 --out heatmaps/
    camlib explain photos/ "scans/**/*.png" --model timm:convnext_tiny --target top3 --out heatmaps/ --report
    camlib explain xrays/ --model package.module:factory --weights best.safetensors --target pneumonia --out maps/

    DIR then holds overlays/ at the pictures' resolution, drawn where the network looked; maps/ (.npz) at the layer's
    resolution; index.csv with a line for each picture; and manifest.jsonl, with which the same command resumes after it
    was stopped. Pictures that cannot be read are listed with the reason, and the others are explained; the exit status
    is then 1.
    """
    from camlib.datasets import explain_dataset
    from camlib.errors import number
    from camlib.imaging.colors import DEFAULT_COLORMAP, lookup_table

    colormap = colormap or DEFAULT_COLORMAP
    lookup_table(colormap)
    opacity = alpha if alpha == "heat" else number("--alpha", _number(alpha), at_least=0, at_most=1, instead="heat")
    loaded = options.opened(model, weights, classes, device, precision)
    transforms, wanted = options.transforms_of(loaded), options.target_of(target, loaded)
    with _Processes() as first:
        explainer, reason = _chosen(images, out, loaded, method, layer, wanted)
        if reason and first and not quiet:
            typer.echo(f"method: {reason}", err=True)
        run = explain_dataset(
            explainer,
            list(images),
            out,
            target=wanted,
            transforms=transforms,
            batch_size=batch_size,
            workers=workers,
            storage=storage,
            class_names=loaded.classes,
            colormap=colormap,
            alpha=opacity,
            heatmaps=heatmaps,
            progress=first and not quiet,
        )
        if not first:
            return
        if report:
            _write_report(run, loaded, reason, colormap, opacity)
        _summary(run, out, images, quiet=quiet)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


class _Processes:
    """The processes of torchrun, which wait for each other at the end of the run; whether this is the first of them."""

    def __enter__(self) -> bool:
        from torch import distributed

        self._started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized()
        if self._started:
            distributed.init_process_group("gloo")
        return not distributed.is_initialized() or distributed.get_rank() == 0

    def __exit__(self, *_: object) -> None:
        from torch import distributed

        if self._started:
            distributed.destroy_process_group()


def _chosen(
    images: list[str], out: Path, loaded: Loaded, method: str, layer: str | None, target: Any
) -> tuple[Method, str]:
    """The explainer, and why it was recommended by the first picture that can be explained."""
    from camlib.comparison import on_network
    from camlib.datasets.source import source_of
    from camlib.errors import NotFiniteError
    from camlib.explaining.choice import AUTO, choose
    from camlib.explaining.sources import Preparation
    from camlib.layers.names import resolve_layers
    from camlib.passes.network import Network

    network = Network.of(loaded.model)
    layers = None if layer is None else list(resolve_layers(loaded.model, layer.split(",")))
    if method != AUTO:
        return on_network(method, network, layers), ""
    preparation, source = Preparation(loaded), source_of(list(images), out)
    for item in source:
        if item.fault:
            continue
        try:
            inputs = preparation.of_pictures([source.read(item)]).inputs
        except CamlibError:
            continue  # the run lists it
        try:
            return choose(method, network, inputs, target, layers)[:2]
        except NotFiniteError:
            continue
    return on_network("grad_cam", network, layers), ""


def _summary(run: Run, out: Path, images: list[str], *, quiet: bool) -> None:
    """Say what was written, and list what failed; then the exit status is 1."""
    errors = run.errors
    if not errors and not len(run):
        raise CamlibValueError(f"{', '.join(map(printable, images))} holds no pictures")
    if not quiet:
        typer.echo(f"{len(run)} explained, {len(errors)} failed: {printable(str(out))}")
    list_failed(errors)


def _write_report(run: Run, loaded: Loaded, reason: str, colormap: str, alpha: Any) -> None:
    """Write the page of the first pictures of a run."""
    import dataclasses
    import itertools

    from camlib.explanation import Explanation
    from camlib.reporting.page import report

    rows = list(itertools.islice(run, SHOWN))
    if not rows:
        return
    seen = list(map(_small, rows))
    whole = Explanation.cat([row.explanation for row in rows])
    by_method = {whole.method: whole}
    if whole.has_class_axis:
        by_method = {
            f"class {k + 1} of {whole.scores.shape[1]}": dataclasses.replace(
                whole, maps=whole.maps[:, k], scores=whole.scores[:, k], target=_of_class(whole.target, k), layers={}
            )
            for k in range(whole.scores.shape[1])
        }
    card = {"network": loaded.name, "method": f"{whole.method} at {whole.layer}" if whole.layer else whole.method}
    page = report(
        by_method,
        seen,
        names=[printable(row.path) for row in rows],
        class_names=_names_of_all(loaded.classes, rows),
        card=card | ({"why this method": reason} if reason else {}),
        colormap=colormap,
        alpha=alpha,
    )
    page.save(run.out / "report.html")


def _names_of_all(names: Any, rows: list[Row]) -> list[str] | None:
    """The names of the classes, also of those that have none: the run is done, so that a short list stops nothing."""
    if names is None:
        return None
    explained = 1 + max((index for row in rows for index in row.classes), default=-1)
    return [*map(str, names), *(f"class {index}" for index in range(len(names), explained))]


def _small(row: Row) -> Any:
    """What the network saw of the picture of a row, small enough for a page of many."""
    import numpy as np
    from PIL import Image

    from camlib.explaining.sources import seen_in
    from camlib.imaging import read_image

    picture = read_image(row.path)
    shown = Image.fromarray(picture if row.window is None else seen_in(row.window, picture))
    shown.thumbnail((WIDEST, WIDEST))
    return np.asarray(shown)


def _of_class(target: Any, k: int) -> Any:
    return target if isinstance(target, str) else target[:, k]
