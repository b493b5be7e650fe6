"""Energy on the truth, or the grid pointing game, layer by layer: :func:`camlib.scan_layers` on three subjects.

``benchmarks/run layer_scan`` writes ``layer_scan.json`` in ``benchmarks/results``, in about two minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import camlib
from benchmarks import drawn, pretrained
from benchmarks.results import provenance, save
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


def main() -> None:
    """Scan, print, write the JSON."""
    named = {name: name for name in METHODS}
    found = {}
    (marked,) = pretrained.watermark(None)
    options: dict[str, Any] = {"masks": marked.truth, "target": pretrained.CARTON}
    found["watermark"] = scanned(named, marked.model, marked.inputs, **options)
    (grid,) = pretrained.grid()
    tiles = len(grid.truth[0])
    loader = [mosaic.expand(tiles, *mosaic.shape).contiguous() for mosaic in grid.inputs]
    options = {"masks": grid.truth.flatten(0, 1), "metric": "grid_pointing_game"}
    classes = grid.target(slice(None)).flatten()
    found["mosaic"] = scanned(named, grid.model, loader, target=classes, **options)
    of = drawn.attended(drawn.SEEDS[0])
    blocks = [f"encoder.layers.encoder_layer_{n}.ln_1" for n in range(drawn.VIT["num_layers"])]
    methods: dict[str, str | Method] = {**named, "balanced layer_cam": camlib.balanced(camlib.LayerCAM(of.model))}
    options = {"masks": of.truth, "target": of.target(slice(None))}
    found["transformer"] = scanned(methods, of.model, of.inputs, layers=blocks, **options)
    versions = provenance("torch", "torchvision", "foolbox", "imagenet-w")
    save("layer_scan", versions | {"subjects": found})


if __name__ == "__main__":
    main()
