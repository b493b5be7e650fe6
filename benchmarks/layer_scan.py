"""Energy on the truth, or the grid pointing game, layer by layer: :func:`camlib.scan_layers` on three subjects.

``benchmarks/run layer_scan`` writes ``layer_scan.json`` in ``benchmarks/results``, in about two minutes.
``python -m benchmarks.layer_scan NAME`` scans one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import camlib
from benchmarks import drawn, pretrained
from benchmarks.results import load_if_there, provenance, save
from camlib.methods import Method

METHODS = ("grad_cam", "hires_cam", "layer_cam")


def scanned(methods: Mapping[str, Any], model: Any, loader: Any, **options: Any) -> dict[str, Any]:
    """By method and layer: the mean and its interval; and the grids."""
    found: dict[str, Any] = {"grids": {}, "methods": {}}
    for name, method in methods.items():
        scan = camlib.scan_layers(model, loader, method, **options)
        print(scan, flush=True)
        found |= {"metric": scan.metric, "grids": {layer: list(grid) for layer, grid in scan.grids.items()}}
        found["methods"][name] = {
            layer: {"mean": scan.mean(layer), "interval": scan.interval(layer)} for layer in scan.layers
        }
    return found


def watermark() -> dict[str, Any]:
    """The class that a mark raises; the truth is the mark."""
    (marked,) = pretrained.watermark(None)
    options: dict[str, Any] = {"masks": marked.truth, "target": pretrained.CARTON}
    return scanned({name: name for name in METHODS}, marked.model, marked.inputs, **options)


def mosaic() -> dict[str, Any]:
    """The class of each tile."""
    (grid,) = pretrained.grid()
    tiles = len(grid.truth[0])
    loader = [one.expand(tiles, *one.shape).contiguous() for one in grid.inputs]
    options: dict[str, Any] = {"masks": grid.truth.flatten(0, 1), "metric": "grid_pointing_game"}
    classes = grid.target(slice(None)).flatten()
    return scanned({name: name for name in METHODS}, grid.model, loader, target=classes, **options)


def transformer() -> dict[str, Any]:
    """One of two shapes, at the first norm of each block."""
    of = drawn.attended(drawn.SEEDS[0])
    blocks = [f"encoder.layers.encoder_layer_{n}.ln_1" for n in range(drawn.VIT["num_layers"])]
    methods: dict[str, str | Method] = {name: name for name in METHODS}
    methods["balanced layer_cam"] = camlib.balanced(camlib.LayerCAM(of.model))
    options: dict[str, Any] = {"masks": of.truth, "target": of.target(slice(None))}
    return scanned(methods, of.model, of.inputs, layers=blocks, **options)


SUBJECTS = (watermark, mosaic, transformer)


def main() -> None:
    """Scan the subjects that are named, or all; print, and write the JSON after each."""
    given = sys.argv[1:] or [make.__name__ for make in SUBJECTS]
    kept = load_if_there("layer_scan").get("subjects", {})
    versions = provenance("torch", "torchvision", "foolbox", "imagenet-w")
    for make in SUBJECTS:
        if make.__name__ in given:
            kept[make.__name__] = make()
            ordered = {of.__name__: kept[of.__name__] for of in SUBJECTS if of.__name__ in kept}
            save("layer_scan", versions | {"subjects": ordered})


if __name__ == "__main__":
    main()
